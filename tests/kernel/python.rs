//! Python's functions in the stack: a program with known shares, and an impostor that only exports CPython's symbols.
//!
//! `PODOPSY_PYTHON=/path/to/python3.x` runs the first with another interpreter than the distribution's.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support;
use podopsy_model::profile::{Frame, Profile, Sample, Sampling};
use podopsy_recorder::cpu::Scope;
use support::dns_sandbox::unpacked;
use support::program::take_profile;
use support::{Running, is_emulated, require_root};

impl Running {
    fn start(command: &mut Command) -> Running {
        require_root();
        Running(command.stdout(Stdio::null()).spawn().expect("start the program"))
    }

    /// Samples it until there are enough samples.
    fn profile(&self, enough: u64, longest: Duration) -> Profile {
        let sampling = Sampling::Cpu { frequency_hz: frequency() };
        take_profile(Scope::Process(self.0.id()), longest, sampling, true, enough)
    }
}

/// An emulated machine takes longer for a walk of hundreds of threads than there is between two samples at 997 Hz, and
/// then does nothing else.
fn frequency() -> u64 {
    if is_emulated() { 97 } else { 997 }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("victims/native").join(name)
}

fn function(frame: &Frame) -> &str {
    frame.function.as_deref().unwrap_or("")
}

fn is_python(frame: &Frame) -> bool {
    frame.module.as_deref() == Some("[python]")
}

/// Python's functions of a stack, innermost first.
fn functions(sample: &Sample) -> Vec<&str> {
    sample.stack.iter().filter(|frame| is_python(frame)).map(function).collect()
}

fn has(sample: &Sample, name: &str) -> bool {
    sample.stack.iter().any(|frame| function(frame) == name)
}

fn count<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> u64 {
    samples.into_iter().map(|sample| sample.count).sum()
}

/// How many native frames lie between a Python function and its caller, in the stacks that have both.
fn between<'a>(sample: &'a Sample, callee: &str, caller: &str) -> Option<&'a [Frame]> {
    let position = |name: &str| sample.stack.iter().position(|frame| function(frame) == name);
    sample.stack.get(position(callee)? + 1..position(caller)?)
}

/// Rarely, an interrupt comes during a call, when the interpreter's list of frames is inconsistent.
fn nearly_all(what: &str, right: u64, all: u64, profile: &Profile) {
    eprintln!("{what}: {right} of {all} are right");
    assert!(right * 50 >= all * 49, "{what}: {right} of {all} are right; lost: {:?}", profile.losses);
}

#[test]
fn a_python_programs_functions_have_their_shares_in_order_beside_the_native_ones() {
    let python = std::env::var("PODOPSY_PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned());
    is_known(&Running::start(Command::new(python).arg(source("known.py"))));
}

#[test]
fn a_python_with_its_own_offsets_is_read_in_its_own_root() {
    let root = unpacked("../debian-13/usr/bin/python3.13");
    let root = root.ancestors().nth(3).expect("where it is unpacked");
    std::fs::copy(source("known.py"), root.join("known.py")).expect("copy the program into the root");
    is_known(&Running::start(Command::new("chroot").arg(root).args(["/usr/bin/python3.13", "/known.py"])));
}

/// Profiles known.py, whose functions and shares are known.
fn is_known(running: &Running) {
    let profile = running.profile(6000, Duration::from_secs(20));
    let (user, complete) = profile.complete();
    eprintln!("{complete} of {user} stacks complete; lost: {:?}", profile.losses);
    assert!(user > 500, "only {user} samples");
    assert!(complete as f64 >= user as f64 * 0.995, "native stacks are not what they were");

    let pid = running.0.id();
    let (main, others): (Vec<_>, Vec<_>) = profile.samples.iter().partition(|sample| sample.tid == pid);
    let in_main: Vec<_> = main.into_iter().filter(|sample| has(sample, "known.main")).collect();
    let all = count(in_main.iter().copied());
    for (name, truth) in [("known.Work.plain", 50.0), ("known.generator", 30.0), ("known.native", 20.0)] {
        // Releases before 3.11 have no qualified names.
        let short = name.replace("Work.", "");
        let found = count(in_main.iter().copied().filter(|sample| has(sample, name) || has(sample, &short)));
        let found = found as f64 * 100.0 / all as f64;
        eprintln!("{name}: {found:.1} % of {all} samples");
        assert!((found - truth).abs() <= 4.0, "{name}: {found:.1} % instead of {truth} %");
    }

    // Recursion, each call of it, in order.
    let burning: Vec<_> = in_main.iter().copied().filter(|sample| has(sample, "known.burn")).collect();
    let recursed = burning.iter().copied().filter(|sample| {
        let functions = functions(sample);
        let depth = functions[1..].iter().take_while(|name| **name == "known.recurse").count();
        let outer = functions.get(depth + 1..).unwrap_or_default();
        functions[0] == "known.burn"
            && depth == 20
            && outer.first().is_some_and(|name| name.ends_with("plain"))
            && outer[1..] == ["known.main", "known.<module>"]
    });
    nearly_all("recursion", count(recursed), count(burning.iter().copied()), &profile);
    for sample in &burning {
        assert_eq!(sample.stack.last().map(function), Some("_start"), "the native stack is not whole");
        let inner = sample.stack.iter().find(|frame| function(frame) == "known.burn");
        let (file, line) = inner.and_then(|frame| frame.source.clone()).expect("its source");
        assert!(file.ends_with("known.py") && (8..=12).contains(&line), "{file}:{line}");
    }
    assert!(count(burning.iter().copied()) * 10 > all * 4, "hardly a sample in the function at the bottom");

    // Between a Python function that native code called and its caller is that native code.
    for (callee, caller) in [("known.squares", "known.generator"), ("known.negate", "known.native")] {
        let called: Vec<_> = in_main.iter().copied().filter(|sample| has(sample, callee)).collect();
        assert!(count(called.iter().copied()) * 50 > all, "hardly a sample in {callee}");
        let apart = called.iter().copied().filter(|sample| {
            between(sample, callee, caller)
                .is_some_and(|native| native.len() >= 2 && !native.iter().any(is_python))
        });
        nearly_all(callee, count(apart), count(called.iter().copied()), &profile);
    }

    // A thread that has released the GIL has its own functions, and no other thread has them.
    let hashing = count(others.iter().copied().filter(|sample| has(sample, "known.hashes")));
    let hashed = others.iter().filter(|sample| has(sample, "known.hasher"));
    assert!(hashing > 0 && hashed.clone().all(|sample| !has(sample, "known.main")), "threads are mixed up");
    assert!(in_main.iter().all(|sample| !has(sample, "known.hashes")), "threads are mixed up");
    let share = hashing as f64 / count(others.iter().copied()) as f64;
    assert!(share > 0.97, "only {share:.2} of the other thread's samples are named");

    // A failure is marked, and rare.
    let failed = profile
        .samples
        .iter()
        .filter(|sample| sample.stack.iter().any(|frame| function(frame).starts_with("[python:")));
    let failed = count(failed);
    assert!(failed * 50 < user, "{failed} of {user} stacks lack Python's frames: {:?}", profile.losses);
}

#[test]
fn an_impostor_of_python_is_read_with_bounds_and_escaped() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("impostor");
    let built = Command::new("gcc")
        .args(["-O1", "-rdynamic", "-pthread", "-o"])
        .arg(&program)
        .arg(source("impostor.c"))
        .status();
    assert!(built.expect("run gcc").success());
    let running = Running::start(&mut Command::new(&program));
    let profile = running.profile(1000, Duration::from_secs(20));
    for (lie, counter, text) in [
        ("frames", "python_too_deep", "[python: deeper than 128 frames]"),
        ("code", "python_not_code", "[python: not code]"),
        ("garbage", "python_unreadable", "[python: frames not readable]"),
        ("threads", "python_many_threads", "[python: more than 256 threads]"),
    ] {
        assert!(profile.losses.get(counter).is_some_and(|count| *count > 0), "{lie}: {:?}", profile.losses);
        let evaluating: Vec<_> = profile
            .samples
            .iter()
            .filter(|sample| &*sample.thread == lie && has(sample, "_PyEval_EvalFrameDefault"))
            .collect();
        assert!(!evaluating.is_empty(), "{lie}: no sample in the function that it runs in");
        for sample in evaluating {
            assert!(has(sample, text), "{lie}: no mark that frames are missing: {:?}", sample.stack);
            assert!(sample.stack.len() < 300, "{lie}: {} frames", sample.stack.len());
            for name in sample.stack.iter().map(function) {
                assert!(!name.contains('\x1b') && name.len() < 8192, "{lie}: {} bytes", name.len());
            }
            let escaped = sample.stack.iter().any(|frame| function(frame).contains("\\x1b[2J"));
            assert_eq!(escaped, lie == "frames", "{lie}");
        }
    }
}
