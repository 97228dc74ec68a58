//! Compares whole stacks with framehop's, an independent unwinder for the same files and the same memory.
//!
//! A running program is stopped at random points by ptrace. Its stack is walked by our rules (`walk`) and by framehop, and
//! the two lists are compared, address by address.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, Module, Unwinder as _};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use podopsy_wire::{End, FRAMES_MAX, KIND_DEREF, KIND_NONE, KIND_SIGNAL};

use super::walk::{MappedCode, StoppedThread, walk};
use crate::symbolize::maps::{self, Area, Areas};
use podopsy_parse::elf::{layout, read_at, sections};
use podopsy_parse::unwind::{FileRows, MAX_BYTES, find_source};

/// How often each program is stopped.
const STOPS: usize = 250;

/// The stacks of one program, counted by the result of the comparison.
#[derive(Debug, Default)]
pub(super) struct StackComparison {
    pub stops: usize,
    pub same: usize,
    /// Stacks that framehop reports as followed to their end.
    complete: usize,
    /// Of them, those that are the same here.
    complete_same: usize,
    frames: usize,
    /// Stacks that differ in an address, or that are shorter here.
    pub worse: usize,
    /// Stacks that framehop cannot follow, and that are followed to their end here.
    pub beyond: usize,
    /// Stacks that are followed to their end here, and end earlier there.
    pub longer: usize,
    /// Stacks that lead through code made at run time, and end with that as their reason: no table describes it. framehop
    /// guesses its callers.
    pub made_at_run_time: usize,
    /// Stacks whose innermost function no table describes. They are as the frame pointer shows; framehop takes the word at the
    /// stack pointer for a return address, and its stack has one frame more.
    pub as_frame_pointers: usize,
    /// Stacks that end at the same frame, here with the reason that its caller is in no mapping.
    pub lost_alike: usize,
    causes: BTreeMap<String, usize>,
}

/// A running program that is stopped by ptrace.
struct TracedProgram {
    child: Child,
    memory: File,
    areas: Areas,
    /// Rows by the start of the mapping. None if the file has no unwind information.
    tables: HashMap<u64, Option<Rc<FileRows>>>,
    by_path: HashMap<Vec<u8>, Option<Rc<FileRows>>>,
    unwinder: UnwinderX86_64<Vec<u8>>,
    cache: CacheX86_64,
}

impl Drop for TracedProgram {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl TracedProgram {
    fn start(program: &[&str]) -> Self {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{program:?}: {error}"));
        // Wait until it has mapped its libraries. What it maps later is found at the next stop.
        std::thread::sleep(Duration::from_millis(400));
        let memory = File::open(format!("/proc/{}/mem", child.id())).expect("its memory: root");
        let mut traced = Self {
            child,
            memory,
            areas: Areas::default(),
            tables: HashMap::new(),
            by_path: HashMap::new(),
            unwinder: UnwinderX86_64::new(),
            cache: CacheX86_64::new(),
        };
        traced.read_maps();
        traced
    }

    fn read_maps(&mut self) {
        let areas = maps::read_in_test(self.child.id()).expect("its mappings");
        if areas.areas == self.areas.areas {
            return;
        }
        (self.unwinder, self.cache) = (UnwinderX86_64::new(), CacheX86_64::new());
        self.tables.clear();
        for area in &areas.areas {
            let Some(file) = self.file(area) else { continue };
            let rows = self.by_path.entry(area.path.clone());
            let rows = rows
                .or_insert_with(|| {
                    let source = find_source(&file, MAX_BYTES).ok()?;
                    source.read_rows().ok().map(Rc::new)
                })
                .clone();
            self.tables.insert(area.start, rows);
            if let Some(module) = module(area, &file) {
                self.unwinder.add_module(module);
            }
        }
        self.areas = areas;
    }

    /// The file of a mapping, or a copy of the vDSO.
    fn file(&self, area: &Area) -> Option<File> {
        if !area.is_vdso() {
            return area
                .is_file()
                .then(|| File::open(Path::new(std::str::from_utf8(&area.path).ok()?)).ok())?;
        }
        let mut image = vec![0; usize::try_from(area.end - area.start).ok()?];
        self.memory.read_exact_at(&mut image, area.start).ok()?;
        let copy = tempfile::tempfile().ok()?;
        copy.write_all_at(&image, 0).ok()?;
        Some(copy)
    }

    fn mapped_code(&self, address: u64) -> MappedCode {
        let Some(area) = self.areas.find(address) else { return MappedCode::Unmapped };
        let offset = address - area.start + if area.is_vdso() { 0 } else { area.offset };
        match self.tables.get(&area.start) {
            None => MappedCode::Anonymous,
            Some(None) => MappedCode::NoTable,
            Some(Some(rows)) => {
                u32::try_from(offset).map_or(MappedCode::Unmapped, |offset| MappedCode::Rule(rows.at(offset)))
            }
        }
    }

    /// The threads that run now. The stack of a sleeping one is the same at every stop.
    fn threads(&self) -> Vec<Pid> {
        let folder = format!("/proc/{}/task", self.child.id());
        let tids = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let tids = tids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let runs = |tid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R'))
        };
        tids.filter(runs).map(Pid::from_raw).collect()
    }

    /// Stops a thread, walks its stack both ways, and lets it go on.
    fn stop(&mut self, tid: Pid, comparison: &mut StackComparison) -> nix::Result<()> {
        ptrace::seize(tid, ptrace::Options::empty())?;
        let judged = self.compare(tid, comparison);
        ptrace::detach(tid, None)?;
        judged
    }

    fn compare(&mut self, tid: Pid, comparison: &mut StackComparison) -> nix::Result<()> {
        ptrace::interrupt(tid)?;
        loop {
            match waitpid(tid, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceEvent(..) => break,
                // A signal of its own came first: it is to have it.
                WaitStatus::Stopped(_, signal) => ptrace::cont(tid, signal)?,
                other => panic!("{tid}: {other:?}"),
            }
        }
        self.read_maps();
        let r = ptrace::getregs(tid)?;
        // By DWARF number (psABI, figure 3.36).
        let registers = [
            r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ];
        let word = |address: u64| {
            let mut bytes = [0; 8];
            self.memory.read_exact_at(&mut bytes, address).ok().map(|()| u64::from_le_bytes(bytes))
        };
        let path = RefCell::new(Vec::new());
        let mapped_code = |address| {
            let found = self.mapped_code(address);
            path.borrow_mut().push(found);
            found
        };
        let in_syscall = r.orig_rax.cast_signed() >= 0;
        let (ours, end) =
            walk(&StoppedThread { ip: r.rip, registers, in_syscall, word: &word, mapped_code: &mapped_code });

        let mut read = |address| word(address).ok_or(());
        let registers = UnwindRegsX86_64::new(r.rip, r.rsp, r.rbp);
        let mut frames = self.unwinder.iter_frames(r.rip, registers, &mut self.cache, &mut read);
        let mut theirs = Vec::new();
        let their_end = loop {
            match frames.next() {
                _ if theirs.len() >= FRAMES_MAX => break "as deep as ours".to_owned(),
                Ok(Some(frame)) => theirs.push(frame.address()),
                Ok(None) => break "complete".to_owned(),
                Err(error) => break format!("{error:?}").chars().take(60).collect(),
            }
        };
        comparison.stops += 1;
        comparison.frames += ours.len();
        let is_complete = their_end == "complete" || their_end == "as deep as ours";
        comparison.complete += usize::from(is_complete);
        if ours == theirs {
            comparison.same += 1;
            comparison.complete_same += usize::from(is_complete);
            return Ok(());
        }
        let first = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
        let rule = path.borrow().get(first.saturating_sub(1)).map(|code| match code {
            MappedCode::Rule(rule) => format!("rule kind {}", rule.kind),
            other => format!("{other:?}"),
        });
        let rule = rule.unwrap_or_default();
        // Where framehop takes the frame pointer it leaves a function out: the one that a signal interrupted, and the caller of a
        // Go function that has no frame.
        let at_signal = matches!(
            path.borrow().get(first.saturating_sub(1)),
            Some(MappedCode::Rule(rule)) if rule.kind == KIND_SIGNAL
        );
        let is_left_out = (at_signal || first == 1) && ours.get(first + 1..) == theirs.get(first..);
        // It was lost there, and says so.
        let has_failed = !is_complete && end == End::Complete;
        let is_longer = first == theirs.len() || is_left_out || has_failed;
        let is_made_at_run_time = !is_longer && end == End::Anonymous;
        comparison.made_at_run_time += usize::from(is_made_at_run_time);
        let has_no_rule = match path.borrow().first() {
            Some(MappedCode::Rule(rule)) => rule.kind == KIND_NONE,
            Some(MappedCode::NoTable | MappedCode::Anonymous) => true,
            _ => false,
        };
        let is_as_frame_pointers = has_no_rule
            && first == 1
            && ours.get(1).copied() == word(r.rbp.wrapping_add(8))
            && ours.get(1..) == theirs.get(2..);
        comparison.as_frame_pointers += usize::from(is_as_frame_pointers);
        // An address in no mapping is no frame here. framehop has it, and fails behind it.
        let is_lost_alike =
            !is_complete && end == End::NoMapping && theirs.len() == first + 1 && first == ours.len();
        comparison.lost_alike += usize::from(is_lost_alike);
        let is_explained = is_longer || is_made_at_run_time || is_as_frame_pointers || is_lost_alike;
        comparison.worse += usize::from(!is_explained);
        comparison.longer += usize::from(is_longer && end == End::Complete);
        // framehop always ends at a frame whose caller's stack pointer is in memory, and reports the stack as complete. It
        // depends on the processor which of a library's functions with such frames run.
        let stored = |code: &MappedCode| matches!(code, MappedCode::Rule(rule) if rule.kind == KIND_DEREF);
        if first == theirs.len()
            && end == End::Complete
            && path.borrow().get(first.saturating_sub(1)).is_some_and(stored)
        {
            comparison.beyond += 1;
            comparison.complete -= usize::from(is_complete);
        }
        let cause = if first == ours.len() {
            format!("ours ends first: {end:?}, at {rule}; theirs {their_end}")
        } else if first == theirs.len() {
            format!("theirs ends first: {their_end}, at {rule}; ours {end:?}")
        } else {
            format!("different caller, by {rule}; ours {end:?}, theirs {their_end}")
        };
        if !comparison.causes.contains_key(&cause) {
            eprintln!("  {cause}: {:x?} but {:x?} (frame {first})", tail(&ours, first), tail(&theirs, first));
        }
        *comparison.causes.entry(cause).or_default() += 1;
        Ok(())
    }
}

fn tail(frames: &[u64], first: usize) -> &[u64] {
    &frames[first.saturating_sub(1).min(frames.len())..frames.len().min(first + 3)]
}

/// The file of a mapping in the form that framehop takes.
fn module(area: &Area, file: &File) -> Option<Module<Vec<u8>>> {
    let layout = layout(file)?;
    let offset = if area.is_vdso() { 0 } else { area.offset };
    // A mapping begins at the start of a page. Its segment may begin anywhere in that page, after the last bytes of the
    // segment before.
    let segment = layout.segments.iter().rfind(|s| s.offset & !0xfff == offset)?;
    let address = (segment.address & !0xfff) + (offset - (segment.offset & !0xfff));
    let table = sections(file);
    let find = |name: &[u8]| table.iter().find(|section| section.name == name && section.size > 0);
    let range = |name: &[u8]| find(name).map(|section| section.address..section.address + section.size);
    let bytes = |name: &[u8]| {
        let section = find(name)?;
        read_at(file, section.offset, usize::try_from(section.size).ok()?).ok()
    };
    Some(Module::new(
        String::from_utf8_lossy(&area.path).into_owned(),
        area.start..area.end,
        area.start.wrapping_sub(address),
        ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: range(b".text"),
            text: bytes(b".text"),
            got_svma: range(b".got"),
            eh_frame_svma: range(b".eh_frame"),
            eh_frame: bytes(b".eh_frame"),
            eh_frame_hdr_svma: range(b".eh_frame_hdr"),
            eh_frame_hdr: bytes(b".eh_frame_hdr"),
            debug_frame: bytes(b".debug_frame"),
            ..Default::default()
        },
    ))
}

pub(super) fn compare(name: &str, program: &[&str], stops: usize) -> StackComparison {
    let (mut traced, mut comparison) = (TracedProgram::start(program), StackComparison::default());
    let until = Instant::now() + Duration::from_secs(120);
    // The times between stops are random, so that they do not follow a rhythm of the program.
    let mut random = fastrand::Rng::with_seed(1);
    while comparison.stops < stops && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(random.u64(200..3200)));
        let threads = traced.threads();
        let Some(&tid) = random.choice(&threads) else { continue };
        // The thread may have ended meanwhile.
        let _ = traced.stop(tid, &mut comparison);
    }
    eprintln!(
        "{name}: {} of {} stacks the same ({} frames); of {} that framehop calls complete, {}; {:?}",
        comparison.same,
        comparison.stops,
        comparison.frames,
        comparison.complete,
        comparison.complete_same,
        comparison.causes
    );
    comparison
}

fn compile(folder: &Path, how: &[&str], source: &str) -> String {
    compile_as(folder, how, source, &source.replace('.', "-"))
}

/// Compiles a source of the test programs. Returns the path of the program, which has this name in `folder`.
pub(super) fn compile_as(folder: &Path, how: &[&str], source: &str, name: &str) -> String {
    let output: PathBuf = folder.join(name);
    let mut command = Command::new(how[0]);
    command.args(&how[1..]).arg("-o").arg(&output);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/victims/native").join(source));
    command.env("GOCACHE", folder.join("go-cache")).env("GOFLAGS", "-mod=mod");
    let done = command.output().unwrap_or_else(|error| panic!("run {}: {error}", how[0]));
    assert!(done.status.success(), "{how:?} {source}: {}", String::from_utf8_lossy(&done.stderr));
    output.to_string_lossy().into_owned()
}

#[test]
#[ignore = "needs root, g++, go, python3, openssl and xz: cargo xtask setup test"]
fn stacks_agree_with_framehop() {
    let folder = tempfile::tempdir().unwrap();
    let cxx = ["g++", "-O2", "-fomit-frame-pointer", "-g1", "-pthread"];
    let c = ["gcc", "-O2", "-fomit-frame-pointer", "-g1"];
    let rust = ["rustc", "-O", "-C", "force-frame-pointers=no", "--edition", "2024"];
    let deep = compile(folder.path(), &cxx, "deep.cc");
    let threads = compile(folder.path(), &cxx, "threads.cc");
    let signals = compile(folder.path(), &c, "signals.c");
    let go = compile(folder.path(), &["go", "build"], "deep.go");
    let rust = compile(folder.path(), &rust, "deep.rs");
    let python =
        "def f(n):\n    return sum(i * i for i in range(500)) if n == 0 else f(n - 1) + 1\nwhile True: f(20)";
    let mut all = StackComparison::default();
    for (name, program) in [
        ("deep C++", &[deep.as_str()][..]),
        ("threads", &[&threads]),
        ("signal handlers", &[&signals]),
        ("python3", &["/usr/bin/python3", "-c", python]),
        ("openssl rsa2048", &["openssl", "speed", "-seconds", "60", "rsa2048"]),
        ("xz", &["xz", "-9", "-T1", "-c", "/dev/zero"]),
        ("Rust", &[&rust]),
        ("Go", &[&go]),
    ] {
        let comparison = compare(name, program, STOPS);
        assert!(comparison.stops >= STOPS / 2, "{name}: only {} stops", comparison.stops);
        all.stops += comparison.stops;
        all.same += comparison.same;
        all.complete += comparison.complete;
        all.complete_same += comparison.complete_same;
        all.worse += comparison.worse;
        all.beyond += comparison.beyond;
    }
    eprintln!(
        "all: {} of {} stacks the same; of {} that framehop can follow to their end, {}; {} go on where it cannot; {} on \
         which ours is worse or other",
        all.same, all.stops, all.complete, all.complete_same, all.beyond, all.worse
    );
    assert!(all.stops >= 1000 && all.complete >= 1000, "{all:?}");
    assert!(all.worse * 1000 <= all.stops * 5, "{all:?}");
    // framehop knows three registers, and does not follow a stack that leads to lower addresses: the stacks of handlers on
    // a stack of their own (`sigaltstack`) end early there, and some of them are reported as complete.
    assert!(all.complete_same * 1000 >= all.complete * 990, "{all:?}");
}
