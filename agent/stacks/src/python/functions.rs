//! Turns the Python frames of a sample into numbers that keep their meaning for as long as the profile is made.
//!
//! Must not depend on: symbols, ELF files, rings.
//!
//! The address of a code object names a function only at this moment: the object may be freed, and another one allocated
//! at the same address. So the object is read while the process is alive and close to the sample, and is read again when
//! the last look at it is a second old.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podopsy_wire::{PYTHON_ENTRY, Task};

use super::InterpreterRegistry;
use super::code_object::{CodeFingerprint, ProcessMemory, PythonFunction};
use super::lines;
use crate::{StackLossReason, StackLosses};
use podopsy_decode as decode;
use podopsy_model::profile::Frame;
use podopsy_opener::Openers;
use podopsy_worker::{CodeLayout, Interpreter};

/// Processes whose memory is held open.
const MAX_PROCESSES: usize = 256;
/// Code objects cached by address, over all processes.
const MAX_CODE_OBJECTS: usize = 131_072;
/// Frames cached with their names.
const MAX_FRAMES: usize = 131_072;
/// Functions that are kept, and the bytes of their names and tables of lines.
const MAX_FUNCTIONS: usize = 65_536;
const MAX_BYTES: usize = 32 << 20;
/// Bytes of tables of lines that are decoded for one profile: a second or two of CPU time.
const MAX_DECODED: usize = 1 << 30;
/// A code object is read again when its last read is this old.
const RECHECK_AFTER: Duration = Duration::from_secs(1);

/// A frame as one number: the function's number in the upper half, the instruction's distance from the start of the code
/// in the lower half. The top two bits of the lower half are [`ENTRY`] and [`NOT_STARTED`].
pub type PackedFrame = u64;

/// This frame is the outermost of a call of the interpreter.
const ENTRY: u64 = 1 << 31;
/// This frame has not run its first instruction.
const NOT_STARTED: u64 = 1 << 30;

/// The number of no function: a call of the interpreter that has no frame yet, or no longer.
const NO_FUNCTION: u32 = 0;

/// The functions of a profile by number. A number is never reused.
pub struct PythonFunctions {
    interpreters: InterpreterRegistry,
    openers: Openers,
    processes: HashMap<ProcessKey, PythonProcess>,
    code_objects: usize,
    /// By number: the function, or the reason why it could not be read.
    functions: Vec<Result<Arc<PythonFunction>, StackLossReason>>,
    numbers: HashMap<Result<Arc<PythonFunction>, StackLossReason>, u32>,
    bytes: usize,
    frames: HashMap<PackedFrame, Frame>,
    decoded: usize,
    losses: StackLosses,
    packed: Vec<PackedFrame>,
}

/// A process, and the interpreter that is mapped in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ProcessKey {
    pid: u32,
    start_ns: u64,
    interpreter: u32,
    /// What leads from an address of the interpreter's mapping to an offset of its file.
    to_offset: u64,
}

struct PythonProcess {
    interpreter: Interpreter,
    memory: Result<ProcessMemory, StackLossReason>,
    code_objects: HashMap<u64, CachedCode>,
}

/// What was last read at the address of a code object.
struct CachedCode {
    number: u32,
    fingerprint: Option<CodeFingerprint>,
    checked: Instant,
}

#[cfg(test)]
impl Default for PythonFunctions {
    fn default() -> Self {
        Self::new(InterpreterRegistry::default(), &Openers::in_threads())
    }
}

impl PythonProcess {
    /// Reads the code objects of frames that are new, or whose last read is more than [`RECHECK_AFTER`] ago, in one round.
    fn read_stale(&self, frames: &[(u64, u64)], now: Instant) -> CodeObjects {
        let is_stale = |address: &u64| {
            let cached = self.code_objects.get(address);
            cached.is_none_or(|cached| now.duration_since(cached.checked) >= RECHECK_AFTER)
        };
        let is_shim = |place: u64| self.interpreter.code.entry_is_shim && place & PYTHON_ENTRY != 0;
        let wanted = frames.iter().filter(|(_, place)| !is_shim(*place)).map(|(address, _)| *address);
        let stale: BTreeSet<u64> = wanted.filter(is_stale).collect();
        if stale.is_empty() {
            return CodeObjects::new();
        }
        let stale: Vec<u64> = stale.into_iter().collect();
        match &self.memory {
            Ok(memory) => stale.iter().copied().zip(memory.read_code_objects(&stale)).collect(),
            Err(reason) => stale.iter().map(|address| (*address, Err(*reason))).collect(),
        }
    }
}

/// The starts of code objects by address, each or the reason why it could not be read.
type CodeObjects = HashMap<u64, Result<Vec<u8>, StackLossReason>>;

impl PythonFunctions {
    pub fn new(interpreters: InterpreterRegistry, openers: &Openers) -> Self {
        Self {
            interpreters,
            openers: openers.clone(),
            processes: HashMap::new(),
            code_objects: 0,
            functions: vec![Err(StackLossReason::PythonNoFrame)],
            numbers: HashMap::new(),
            bytes: 0,
            frames: HashMap::new(),
            decoded: 0,
            losses: StackLosses::default(),
            packed: Vec::new(),
        }
    }

    /// The Python frames of a sample, innermost first. Reads the process's memory for code objects that are new, or whose
    /// last read is more than [`RECHECK_AFTER`] ago.
    pub fn pack_frames(&mut self, task: &Task, python: &decode::Python) -> &[PackedFrame] {
        self.packed.clear();
        if python.frames.is_empty() {
            return &self.packed;
        }
        let key = ProcessKey {
            pid: task.pid,
            start_ns: task.start_ns,
            interpreter: python.number,
            to_offset: python.to_offset,
        };
        self.limit_processes(&key);
        let Some(interpreter) = self.interpreters.get(python.number) else { return &self.packed };
        // Taken out of the map while its code objects are read: that borrows all of `self`.
        let mut process = self.processes.remove(&key).unwrap_or_else(|| PythonProcess {
            interpreter,
            memory: ProcessMemory::open(&self.openers, task.pid),
            code_objects: HashMap::new(),
        });
        let code_type = process.interpreter.code_type.wrapping_sub(python.to_offset);
        let layout = process.interpreter.code;
        let now = Instant::now();
        let read = process.read_stale(&python.frames, now);
        for &(address, place) in &python.frames {
            let entry = if place & PYTHON_ENTRY != 0 { ENTRY } else { 0 };
            if entry != 0 && layout.entry_is_shim {
                self.mark_entry();
                continue;
            }
            let number = self.number_at(&mut process, &read, address, code_type, now);
            let distance = (place as u32).wrapping_sub(layout.instructions);
            // Before its first instruction, a frame points in front of its code.
            let distance = if distance >> 30 == 0 { u64::from(distance) } else { NOT_STARTED };
            self.packed.push(u64::from(number) << 32 | entry | distance);
        }
        self.processes.insert(key, process);
        &self.packed
    }

    /// Empties the caches of processes when the process of `key` would exceed their bounds.
    fn limit_processes(&mut self, key: &ProcessKey) {
        let is_full = self.processes.len() >= MAX_PROCESSES && !self.processes.contains_key(key);
        if is_full || self.code_objects >= MAX_CODE_OBJECTS {
            self.processes.clear();
            self.code_objects = 0;
        }
    }

    /// Marks the frame that the interpreter was called for, when its shim frame is reached.
    fn mark_entry(&mut self) {
        match self.packed.last_mut() {
            Some(last) if *last & ENTRY == 0 => *last |= ENTRY,
            _ => self.packed.push(u64::from(NO_FUNCTION) << 32 | ENTRY),
        }
    }

    /// The number of the function whose code object is at `address`.
    fn number_at(
        &mut self,
        process: &mut PythonProcess,
        read: &CodeObjects,
        address: u64,
        code_type: u64,
        now: Instant,
    ) -> u32 {
        if let Some(cached) = process.code_objects.get(&address)
            && now.duration_since(cached.checked) < RECHECK_AFTER
        {
            return cached.number;
        }
        let layout: &CodeLayout = &process.interpreter.code;
        let memory = process.memory.as_ref().map_err(|reason| *reason);
        let fingerprint = match read.get(&address) {
            Some(Ok(object)) => CodeFingerprint::new(object, code_type, layout),
            Some(Err(reason)) => Err(*reason),
            None => Err(StackLossReason::PythonMemoryUnreadable),
        };
        if let Some(cached) = process.code_objects.get_mut(&address) {
            let is_same = match &fingerprint {
                Ok(new) => cached.fingerprint == Some(*new),
                // The process has ended: the last read is the best that there is.
                Err(reason) => *reason == StackLossReason::PythonProcessGone,
            };
            if is_same {
                cached.checked = now;
                return cached.number;
            }
        } else {
            self.code_objects += 1;
        }
        let function = match (&memory, &fingerprint) {
            (Ok(memory), Ok(fingerprint)) => memory.read_function(fingerprint, layout),
            (_, Err(reason)) | (Err(reason), _) => Err(*reason),
        };
        let number = self.add(function.map(Arc::new));
        let cached = CachedCode { number, fingerprint: fingerprint.ok(), checked: now };
        process.code_objects.insert(address, cached);
        number
    }

    /// The number of a function. Equal functions of several processes have one number.
    fn add(&mut self, function: Result<Arc<PythonFunction>, StackLossReason>) -> u32 {
        match &function {
            Err(reason) => self.count_loss(*reason, 1),
            Ok(function) if function.lines.is_empty() => {
                self.count_loss(StackLossReason::PythonNoLines, 1);
            }
            Ok(_) => {}
        }
        if let Some(&number) = self.numbers.get(&function) {
            return number;
        }
        let size =
            function.as_ref().map_or(0, |found| found.name.len() + found.file.len() + found.lines.len());
        if function.is_ok() && (self.functions.len() >= MAX_FUNCTIONS || self.bytes + size > MAX_BYTES) {
            return self.add(Err(StackLossReason::PythonFunctionsFull));
        }
        self.bytes += size;
        let number = u32::try_from(self.functions.len()).unwrap_or(NO_FUNCTION);
        self.functions.push(function.clone());
        self.numbers.insert(function, number);
        number
    }

    /// True for the outermost frame of a call of the interpreter.
    pub(super) fn is_entry(packed: PackedFrame) -> bool {
        packed & ENTRY != 0
    }

    /// True for a frame that has not run its first instruction.
    pub(super) fn is_not_started(packed: PackedFrame) -> bool {
        packed & NOT_STARTED != 0
    }

    /// The frame with its names. None for a call of the interpreter that has no frame.
    pub(super) fn frame(&mut self, packed: PackedFrame) -> Option<Frame> {
        if (packed >> 32) as u32 == NO_FUNCTION {
            return None;
        }
        let packed = packed & !ENTRY;
        if let Some(frame) = self.frames.get(&packed) {
            return Some(frame.clone());
        }
        let frame = self.resolve(packed)?;
        if self.frames.len() >= MAX_FRAMES {
            self.frames.clear();
        }
        self.frames.insert(packed, frame.clone());
        Some(frame)
    }

    fn resolve(&mut self, packed: PackedFrame) -> Option<Frame> {
        let module = Some(Arc::from(super::MODULE));
        let function = match self.functions.get((packed >> 32) as usize)? {
            Ok(function) => Arc::clone(function),
            Err(reason) => {
                let reason = reason.as_str().trim_start_matches("python_").replace('_', " ");
                return Some(Frame {
                    function: Some(format!("[python: {reason}]").into()),
                    module,
                    ..Frame::default()
                });
            }
        };
        let distance = packed as u32 & (NOT_STARTED as u32 - 1);
        self.decoded += function.lines.len();
        let line = if self.decoded <= MAX_DECODED {
            lines::line_at(&function.lines, function.first_line, distance, function.has_locations)
        } else {
            self.count_loss(StackLossReason::PythonLinesOverBudget, 1);
            None
        };
        let source = Some((Arc::from(&*function.file), line.unwrap_or(function.first_line)));
        let name = format!("{}.{}", module_of(&function.file), function.name);
        Some(Frame { function: Some(name.into()), module, source, ..Frame::default() })
    }

    /// Counts a reason why samples lack Python's functions.
    pub(crate) fn count_loss(&mut self, reason: StackLossReason, count: u64) {
        self.losses.add(reason, count);
    }

    /// Why Python's functions are missing or have no name, by counter name.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        self.losses.by_name()
    }
}

/// The name of a module, from its file: `json.decoder` for `/usr/lib/python3.11/json/decoder.py`. Where no folder of
/// packages is in the path, it is the file's own name. Parts are joined by dots, not slashes, because pprof takes
/// `<module>` after a slash for a template.
fn module_of(file: &str) -> String {
    // <string>, <frozen importlib._bootstrap>
    if let Some(inside) = file.strip_prefix('<').and_then(|file| file.strip_suffix('>')) {
        return inside.strip_prefix("frozen ").unwrap_or(inside).to_owned();
    }
    let parts: Vec<&str> = file.split('/').filter(|part| !part.is_empty()).collect();
    let is_packages = |part: &&str| {
        matches!(*part, "site-packages" | "dist-packages")
            || part.strip_prefix("python3").is_some_and(|rest| rest.starts_with('.'))
    };
    let first = parts.iter().rposition(is_packages).map_or(parts.len().saturating_sub(1), |at| at + 1);
    let mut module = parts.get(first..).unwrap_or_default().to_vec();
    if let Some(last) = module.last_mut() {
        *last = last.strip_suffix(".py").unwrap_or(last);
    }
    if module.len() > 1 && module.last() == Some(&"__init__") {
        module.pop();
    }
    module.join(".")
}

#[cfg(test)]
mod tests {
    use podopsy_wire::PythonEnd;

    use super::super::code_object::tests::{CODE_TYPE, Object};
    use super::*;
    use podopsy_worker::layouts_for_version;

    impl PythonFunctions {
        /// Has one function, number 1, which could not be read.
        pub fn with_unreadable_function() -> Self {
            let mut functions = Self::default();
            functions.add(Err(StackLossReason::PythonNotCode));
            functions
        }
    }

    fn functions(version: (u8, u8)) -> PythonFunctions {
        let (layout, code) = layouts_for_version(version, &[]).unwrap();
        let interpreters = InterpreterRegistry::default();
        interpreters.number(&Interpreter { layout, code, code_type: CODE_TYPE + 5 }, 0);
        PythonFunctions::new(interpreters, &Openers::in_threads())
    }

    fn own_task() -> Task {
        Task { pid: std::process::id(), start_ns: 9, ..Task::UNKNOWN }
    }

    fn python(frames: &[(u64, u64)]) -> decode::Python {
        decode::Python { end: PythonEnd::Complete, number: 1, to_offset: 5, frames: frames.to_vec() }
    }

    fn name(functions: &mut PythonFunctions, packed: PackedFrame) -> String {
        functions.frame(packed).and_then(|frame| frame.function).unwrap_or_default().to_string()
    }

    #[test]
    fn another_function_at_the_same_address_gets_another_number() {
        let (first, second, file) = (Object::ascii("first"), Object::ascii("second"), Object::ascii("/a.py"));
        let lines = Object::bytes(&[0x80]);
        let mut code = Object::code(&first, &file, &lines);
        let mut functions = functions((3, 11));
        let frame = [(code.address(), 184 + 6)];
        let before = functions.pack_frames(&own_task(), &python(&frame))[0];
        code.put(128, second.address());
        // It was read just now, and is not read again yet.
        assert_eq!(functions.pack_frames(&own_task(), &python(&frame)), [before]);
        let begin = Instant::now();
        let mut after = before;
        while after == before {
            assert!(begin.elapsed() < Duration::from_secs(60), "the code object is never read again");
            std::thread::sleep(RECHECK_AFTER / 10);
            after = functions.pack_frames(&own_task(), &python(&frame))[0];
        }
        assert_eq!([name(&mut functions, before), name(&mut functions, after)], ["a.first", "a.second"]);
        assert_eq!(functions.frame(before).unwrap().source, Some(("/a.py".into(), 41)));
        assert_eq!(functions.losses(), BTreeMap::new());
    }

    #[test]
    fn an_entry_is_marked_in_its_frame_or_by_a_shim_frame() {
        let (text, file) = (Object::ascii("f"), Object::ascii("/a.py"));
        let lines = Object::bytes(&[0x80]);
        let code = Object::code(&text, &file, &lines);
        let frames = [(code.address(), 200), (code.address(), 200 | PYTHON_ENTRY), (code.address(), 200)];
        let entries = |packed: &[PackedFrame]| {
            packed.iter().map(|packed| PythonFunctions::is_entry(*packed)).collect::<Vec<_>>()
        };
        let mut by_mark = functions((3, 11));
        assert_eq!(entries(by_mark.pack_frames(&own_task(), &python(&frames))), [false, true, false]);
        let mut by_shim = functions((3, 12));
        assert_eq!(entries(by_shim.pack_frames(&own_task(), &python(&frames))), [true, false]);
        // A call that has no frame yet.
        let mut functions = functions((3, 12));
        let packed = functions.pack_frames(&own_task(), &python(&frames[1..])).to_vec();
        assert_eq!(entries(&packed), [true, false]);
        assert_eq!(functions.frame(packed[0]), None);
    }

    #[test]
    fn an_unreadable_code_object_is_counted_and_its_frame_gives_the_reason() {
        let mut functions = functions((3, 11));
        let no_process = Task { pid: u32::MAX, ..Task::UNKNOWN };
        let packed = functions.pack_frames(&no_process, &python(&[(4096, 0)]))[0];
        assert_eq!(name(&mut functions, packed), "[python: process gone]");
        let text = Object::ascii("f");
        let packed = functions.pack_frames(&own_task(), &python(&[(text.address(), 0)]))[0];
        assert_eq!(name(&mut functions, packed), "[python: not code]");
        let counts = [("python_not_code", 1), ("python_process_gone", 1)];
        assert_eq!(functions.losses(), BTreeMap::from(counts.map(|(name, count)| (name.to_owned(), count))));
        let unknown = decode::Python { number: 60, ..python(&[(4096, 0)]) };
        assert!(functions.pack_frames(&own_task(), &unknown).is_empty());
    }

    #[test]
    fn modules_are_named_after_their_files() {
        for (file, module) in [
            ("/usr/lib/python3.11/json/decoder.py", "json.decoder"),
            ("/usr/lib/python3.11/json/__init__.py", "json"),
            ("/venv/lib/python3.12/site-packages/flask/app.py", "flask.app"),
            ("/srv/app.py", "app"),
            ("app.py", "app"),
            ("<string>", "string"),
            ("<frozen importlib._bootstrap>", "importlib._bootstrap"),
            ("", ""),
            ("/usr/lib/python3.11", ""),
        ] {
            assert_eq!(module_of(file), module, "{file}");
        }
    }
}
