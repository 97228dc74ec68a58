//! The Python frames of a sample → words that mean the same for as long as the profile is made.
//!
//! Must not know: symbols, ELF files, rings.
//!
//! An address of a code object is good for a name only now: the object may be freed, and another lie there. So it is
//! looked at while the process is alive and near the sample, and again every second that it is seen.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podopsy_wire::{PYTHON_ENTRY, Task};

use super::interpreter::{Interpreter, Interpreters};
use super::lines;
use super::read::{Fingerprint, Function, Memory};
use podopsy_decode as decode;
use podopsy_model::profile::Frame;

/// Processes whose memory is held open.
const MAX_PROCESSES: usize = 256;
/// Code objects known by address, all processes together.
const MAX_SEEN: usize = 131_072;
/// Functions, and bytes of their names and tables of lines.
const MAX_FUNCTIONS: usize = 65_536;
const MAX_BYTES: usize = 32 << 20;
/// Bytes of tables of lines that are gone through for a profile's lines: a second or two.
const MAX_DECODED: usize = 1 << 30;
/// An address is believed for so long.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// A frame: the function's number in the upper half, the instruction's distance in the lower, its top bits [`ENTRY`] and
/// [`NEW`].
pub type Word = u64;

/// This frame is the outermost of a call of the interpreter.
const ENTRY: u64 = 1 << 31;
/// This frame has not run its first instruction.
const NEW: u64 = 1 << 30;

/// [`Word`]'s function is none: a call of the interpreter that has no frame yet, or no more.
const NOTHING: u32 = 0;

/// Functions by number; numbers are not given twice.
pub struct Codes {
    interpreters: Interpreters,
    processes: HashMap<Id, Process>,
    seen: usize,
    /// What is at a number: a function, or why there is none.
    functions: Vec<Result<Arc<Function>, &'static str>>,
    numbers: HashMap<Result<Arc<Function>, &'static str>, u32>,
    bytes: usize,
    frames: HashMap<Word, Frame>,
    decoded: usize,
    losses: BTreeMap<&'static str, u64>,
    words: Vec<Word>,
}

/// A process and the interpreter that is mapped in it: pid, start, interpreter, and where it is.
type Id = (u32, u64, u32, u64);

struct Process {
    interpreter: Interpreter,
    memory: Result<Memory, &'static str>,
    codes: HashMap<u64, Seen>,
}

struct Seen {
    number: u32,
    fingerprint: Option<Fingerprint>,
    checked: Instant,
}

impl Default for Codes {
    fn default() -> Self {
        Self::new(Interpreters::default())
    }
}

impl Codes {
    pub fn new(interpreters: Interpreters) -> Self {
        Self {
            interpreters,
            processes: HashMap::new(),
            seen: 0,
            functions: vec![Err("python_no_frame")],
            numbers: HashMap::new(),
            bytes: 0,
            frames: HashMap::new(),
            decoded: 0,
            losses: BTreeMap::new(),
            words: Vec::new(),
        }
    }

    /// The Python frames of a sample, innermost first. Reads the process's memory where it is new.
    pub fn words(&mut self, task: &Task, python: &decode::Python) -> &[Word] {
        self.words.clear();
        if python.frames.is_empty() {
            return &self.words;
        }
        let id = (task.pid, task.start_ns, python.number, python.to_offset);
        if self.processes.len() >= MAX_PROCESSES && !self.processes.contains_key(&id) || self.seen >= MAX_SEEN
        {
            self.processes.clear();
            self.seen = 0;
        }
        let Some(interpreter) = self.interpreters.get(python.number) else { return &self.words };
        let new = || Process { interpreter, memory: Memory::open(task.pid), codes: HashMap::new() };
        let mut process = self.processes.remove(&id).unwrap_or_else(new);
        let code_type = process.interpreter.code_type.wrapping_sub(python.to_offset);
        let layout = process.interpreter.code;
        let now = Instant::now();
        for &(address, place) in &python.frames {
            let entry = if place & PYTHON_ENTRY != 0 { ENTRY } else { 0 };
            if entry != 0 && layout.entry_is_shim {
                match self.words.last_mut() {
                    // The frame that the interpreter was called for.
                    Some(last) if *last & ENTRY == 0 => *last |= ENTRY,
                    _ => self.words.push(u64::from(NOTHING) << 32 | ENTRY),
                }
                continue;
            }
            let number = self.number(&mut process, address, code_type, now);
            let distance = (place as u32).wrapping_sub(layout.instructions);
            // A frame begins before its code.
            let distance = if distance >> 30 == 0 { u64::from(distance) } else { NEW };
            self.words.push(u64::from(number) << 32 | entry | distance);
        }
        self.processes.insert(id, process);
        &self.words
    }

    fn number(&mut self, process: &mut Process, address: u64, code_type: u64, now: Instant) -> u32 {
        if let Some(seen) = process.codes.get(&address)
            && now.duration_since(seen.checked) < GOOD_FOR
        {
            return seen.number;
        }
        let layout = &process.interpreter.code;
        let memory = process.memory.as_ref().map_err(|reason| *reason);
        let fingerprint = memory.and_then(|memory| memory.fingerprint(address, code_type, layout));
        if let Some(seen) = process.codes.get_mut(&address) {
            // Of a process that is gone, what was there last is the best that can be said.
            if fingerprint
                .as_ref()
                .map_or_else(|reason| *reason == "python_process_gone", |new| seen.fingerprint == Some(*new))
            {
                seen.checked = now;
                return seen.number;
            }
        } else {
            self.seen += 1;
        }
        let function = match (&memory, &fingerprint) {
            (Ok(memory), Ok(fingerprint)) => memory.function(fingerprint, layout),
            (_, Err(reason)) | (Err(reason), _) => Err(*reason),
        };
        let number = self.add(function.map(Arc::new));
        process.codes.insert(address, Seen { number, fingerprint: fingerprint.ok(), checked: now });
        number
    }

    /// The function's number; equal functions of several processes are one.
    fn add(&mut self, function: Result<Arc<Function>, &'static str>) -> u32 {
        if let Err(reason) = &function {
            self.lose(reason, 1);
        }
        if function.as_ref().is_ok_and(|function| function.lines.is_empty()) {
            self.lose("python_no_lines", 1);
        }
        if let Some(&number) = self.numbers.get(&function) {
            return number;
        }
        let size =
            |function: &Arc<Function>| function.name.len() + function.file.len() + function.lines.len();
        let size = function.as_ref().map_or(0, size);
        if function.is_ok() && (self.functions.len() >= MAX_FUNCTIONS || self.bytes + size > MAX_BYTES) {
            return self.add(Err("python_functions_full"));
        }
        self.bytes += size;
        let number = u32::try_from(self.functions.len()).unwrap_or(NOTHING);
        self.functions.push(function.clone());
        self.numbers.insert(function, number);
        number
    }

    /// True for the outermost frame of a call of the interpreter.
    pub(super) fn is_entry(word: Word) -> bool {
        word & ENTRY != 0
    }

    /// True for a frame that has not run its first instruction.
    pub(super) fn is_new(word: Word) -> bool {
        word & NEW != 0
    }

    /// The frame that a word stands for; none: for a call of the interpreter without one.
    pub(super) fn frame(&mut self, word: Word) -> Option<Frame> {
        if (word >> 32) as u32 == NOTHING {
            return None;
        }
        let word = word & !ENTRY;
        if let Some(frame) = self.frames.get(&word) {
            return Some(frame.clone());
        }
        let frame = self.name(word)?;
        if self.frames.len() >= MAX_SEEN {
            self.frames.clear();
        }
        self.frames.insert(word, frame.clone());
        Some(frame)
    }

    fn name(&mut self, word: Word) -> Option<Frame> {
        let module = Some(Arc::from(super::MODULE));
        let function = match self.functions.get((word >> 32) as usize)? {
            Ok(function) => Arc::clone(function),
            Err(reason) => {
                let reason = reason.trim_start_matches("python_").replace('_', " ");
                return Some(Frame {
                    function: Some(format!("[python: {reason}]").into()),
                    module,
                    ..Frame::default()
                });
            }
        };
        let distance = word as u32 & (NEW as u32 - 1);
        self.decoded += function.lines.len();
        let line = if self.decoded <= MAX_DECODED {
            lines::line(&function.lines, function.first_line, distance, function.has_locations)
        } else {
            self.lose("python_lines_over_budget", 1);
            None
        };
        let source = Some((Arc::from(&*function.file), line.unwrap_or(function.first_line)));
        let name = format!("{}.{}", module_of(&function.file), function.name);
        Some(Frame { function: Some(name.into()), module, source, ..Frame::default() })
    }

    /// Whose function 1 is one that cannot be named.
    #[cfg(test)]
    pub(super) fn with_a_function() -> Self {
        let mut codes = Self::default();
        codes.add(Err("python_not_code"));
        codes
    }

    /// Counts a reason why samples lack Python's functions.
    pub(crate) fn lose(&mut self, reason: &'static str, count: u64) {
        *self.losses.entry(reason).or_default() += count;
    }

    /// Why Python's functions are not seen or have no name, by counter name.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        self.losses.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
    }
}

/// What a module is called, by its file: `json.decoder` for `/usr/lib/python3.11/json/decoder.py`, and the file's own
/// name where no folder of packages tells more. Dots, not a slash: pprof takes `<module>` behind a slash for a template.
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

    use super::super::offsets::offsets;
    use super::super::read::tests::{CODE_TYPE, Object};
    use super::*;

    fn codes(version: (u8, u8)) -> Codes {
        let (layout, code) = offsets(version, &[]).unwrap();
        let interpreters = Interpreters::default();
        interpreters.number(&Interpreter { layout, code, code_type: CODE_TYPE + 5 });
        Codes::new(interpreters)
    }

    fn own() -> Task {
        Task { pid: std::process::id(), start_ns: 9, ..Task::UNKNOWN }
    }

    fn python(frames: &[(u64, u64)]) -> decode::Python {
        decode::Python { end: PythonEnd::Complete, number: 1, to_offset: 5, frames: frames.to_vec() }
    }

    fn name(codes: &mut Codes, word: Word) -> String {
        codes.frame(word).and_then(|frame| frame.function).unwrap_or_default().to_string()
    }

    #[test]
    fn an_address_that_holds_another_function_now_is_another_word() {
        let (first, second, file) = (Object::ascii("first"), Object::ascii("second"), Object::ascii("/a.py"));
        let lines = Object::bytes(&[0x80]);
        let mut code = Object::code(&first, &file, &lines);
        let mut codes = codes((3, 11));
        let frame = [(code.address(), 184 + 6)];
        let before = codes.words(&own(), &python(&frame))[0];
        code.put(128, second.address());
        // Looked at just now.
        assert_eq!(codes.words(&own(), &python(&frame)), [before]);
        let begin = Instant::now();
        let mut after = before;
        while after == before {
            assert!(begin.elapsed() < Duration::from_secs(60), "the address is believed for ever");
            std::thread::sleep(GOOD_FOR / 10);
            after = codes.words(&own(), &python(&frame))[0];
        }
        assert_eq!([name(&mut codes, before), name(&mut codes, after)], ["a.first", "a.second"]);
        assert_eq!(codes.frame(before).unwrap().source, Some(("/a.py".into(), 41)));
        assert_eq!(codes.losses(), BTreeMap::new());
    }

    #[test]
    fn an_entry_is_the_frames_own_mark_or_a_shim() {
        let (text, file) = (Object::ascii("f"), Object::ascii("/a.py"));
        let lines = Object::bytes(&[0x80]);
        let code = Object::code(&text, &file, &lines);
        let frames = [(code.address(), 200), (code.address(), 200 | PYTHON_ENTRY), (code.address(), 200)];
        let entries = |words: &[Word]| words.iter().map(|word| Codes::is_entry(*word)).collect::<Vec<_>>();
        assert_eq!(entries(codes((3, 11)).words(&own(), &python(&frames))), [false, true, false]);
        assert_eq!(entries(codes((3, 12)).words(&own(), &python(&frames))), [true, false]);
        // A call that has no frame yet.
        let mut codes = codes((3, 12));
        let words = codes.words(&own(), &python(&frames[1..])).to_vec();
        assert_eq!(entries(&words), [true, false]);
        assert_eq!(codes.frame(words[0]), None);
    }

    #[test]
    fn what_cannot_be_read_says_why_and_is_counted() {
        let mut codes = codes((3, 11));
        let nobody = Task { pid: u32::MAX, ..Task::UNKNOWN };
        let word = codes.words(&nobody, &python(&[(4096, 0)]))[0];
        assert_eq!(name(&mut codes, word), "[python: process gone]");
        let text = Object::ascii("f");
        let word = codes.words(&own(), &python(&[(text.address(), 0)]))[0];
        assert_eq!(name(&mut codes, word), "[python: not code]");
        let counts = [("python_not_code", 1), ("python_process_gone", 1)];
        assert_eq!(codes.losses(), BTreeMap::from(counts.map(|(name, count)| (name.to_owned(), count))));
        let unknown = decode::Python { number: 60, ..python(&[(4096, 0)]) };
        assert!(codes.words(&own(), &unknown).is_empty());
    }

    #[test]
    fn modules_are_called_by_their_files() {
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
