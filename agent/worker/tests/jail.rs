//! The jail, and what becomes of workers that misbehave in it. Run as root: only then is the jail complete.
//!
//! The program is its own supervisor, so its `main` is not that of the usual test harness.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podopsy_worker::testing::Misbehaviour;
use podopsy_worker::{Failure, FailureReason, FileHandle, NamedFiles, ParserOptions, ParserPool};

fn main() -> ExitCode {
    if let Some(code) = podopsy_worker::run_if_asked() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    // Two of them look at all children of this process.
    arguments.test_threads = Some(1);
    let tests: &[(&str, fn())] = &[
        ("a_worker_has_no_rights_and_no_files_and_no_network", a_worker_has_no_rights),
        ("each_misbehaviour_costs_one_answer_within_its_time", each_misbehaviour_costs_one_answer),
        ("a_file_that_a_worker_was_lost_on_is_not_given_to_another_one", a_bad_file_is_remembered),
        ("a_container_with_many_bad_files_uses_up_its_own_time", a_container_uses_up_its_own_time),
        ("the_files_of_another_container_get_another_worker", another_container_gets_another_worker),
        ("a_worker_that_is_killed_again_and_again_is_replaced", a_killed_worker_is_replaced),
        (
            "a_worker_of_a_command_uses_half_of_its_cgroups_memory",
            a_command_in_a_small_cgroup_is_bounded_by_it,
        ),
        ("a_file_that_each_worker_is_killed_on_is_given_up_with_this_reason", each_worker_is_killed),
        ("the_supervisor_in_reserve_goes_on", the_reserve_goes_on),
        ("workers_end_with_their_agent", workers_end_with_their_agent),
        ("own_program_is_described_and_named", own_program_is_named),
        ("a_file_of_each_kind_is_parsed_without_a_refused_call", each_kind_of_file_is_parsed),
    ];
    let trial = |(name, run): &(&str, fn())| {
        let run = *run;
        Trial::test(*name, move || std::panic::catch_unwind(run).map_err(|_| Failed::without_message()))
    };
    libtest_mimic::run(&arguments, tests.iter().map(trial).collect()).exit_code()
}

fn options() -> ParserOptions {
    ParserOptions { job: Duration::from_millis(300), ..ParserOptions::agent(None) }
}

fn pool() -> ParserPool {
    ParserPool::start(options()).unwrap()
}

/// A file with an identity of its own. The next temporary file has the same inode, and often the same tick of the clock.
fn any_file() -> FileHandle {
    static SIZE: AtomicU64 = AtomicU64::new(1);
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE.fetch_add(1, Relaxed)).unwrap();
    FileHandle::from_file(file).unwrap()
}

fn status_field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    field.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn a_worker_has_no_rights() {
    let pool = pool();
    let mut parser = pool.parser();
    parser.misbehave(1, &any_file(), Misbehaviour::None).unwrap();
    let pid = parser.worker_pid().unwrap();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(status_field(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!((status_field(pid, "Seccomp:"), status_field(pid, "NoNewPrivs:")), ("2".into(), "1".into()));
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "1000");
    if !is_root() {
        return eprintln!("not root: the jail is incomplete: {:?}", pool.weaknesses());
    }
    assert_eq!(pool.weaknesses(), [""; 0]);
    assert_eq!(status_field(pid, "Uid:"), "64997 64997 64997 64997");
    assert_eq!(status_field(pid, "Groups:"), "");
    let namespace = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["net", "mnt", "ipc"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind), "{kind}");
    }
    assert_eq!(fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0, "its root is not empty");
    // Standard streams, and its socket.
    assert!(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() <= 5);
}

fn each_misbehaviour_costs_one_answer() {
    use FailureReason::*;
    let pool = pool();
    let mut parser = pool.parser();
    for (tenant, (how, reason)) in (1..).zip([
        (Misbehaviour::Panic, Died),
        (Misbehaviour::UseCpu, TooSlow),
        (Misbehaviour::Sleep, NoAnswer),
        (Misbehaviour::Allocate, OutOfMemory),
        (Misbehaviour::OverflowStack, OutOfMemory),
        (Misbehaviour::OpenFile, Died),
        (Misbehaviour::ConnectSocket, Died),
        (Misbehaviour::Fork, Died),
        (Misbehaviour::AnswerSomethingElse, Died),
    ]) {
        let begin = Instant::now();
        let failed = parser.misbehave(tenant, &any_file(), how).unwrap_err();
        assert_eq!(failed.reason, reason, "{how:?}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{how:?}: {:?}", begin.elapsed());
        parser.misbehave(tenant, &any_file(), Misbehaviour::None).unwrap();
    }
    assert_eq!(pool.workers().1, 9);
}

fn a_bad_file_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let options = ParserOptions { state_dir: Some(folder.path().into()), ..options() };
    let file = any_file();
    let first = ParserPool::start(options.clone()).unwrap();
    first.parser().misbehave(1, &file, Misbehaviour::UseCpu).unwrap_err();
    // Also after a restart, and for another container.
    let second = ParserPool::start(options).unwrap();
    let failed = second.parser().misbehave(2, &file, Misbehaviour::None).unwrap_err();
    assert_eq!((failed.reason, second.workers()), (FailureReason::TooSlow, (0, 0)));
    assert_eq!(failed.to_string(), "took more than 0 s");
    second.parser().misbehave(2, &any_file(), Misbehaviour::None).unwrap();
}

fn a_container_uses_up_its_own_time() {
    let pool = ParserPool::start(ParserOptions { container: Duration::from_secs(1), ..options() }).unwrap();
    let mut parser = pool.parser();
    let reasons: Vec<FailureReason> =
        (0..6).map(|_| parser.misbehave(1, &any_file(), Misbehaviour::UseCpu).unwrap_err().reason).collect();
    assert_eq!(reasons[..3], [FailureReason::TooSlow; 3]);
    assert_eq!(reasons[4..], [FailureReason::OverBudget; 2]);
    parser.misbehave(2, &any_file(), Misbehaviour::None).unwrap();
}

fn another_container_gets_another_worker() {
    let pool = pool();
    let mut parser = pool.parser();
    let mut worker_of = |tenant| {
        parser.misbehave(tenant, &any_file(), Misbehaviour::None).unwrap();
        parser.worker_pid().unwrap()
    };
    let first = worker_of(1);
    assert_eq!(worker_of(1), first);
    assert_ne!(worker_of(2), first);
    assert!(!fs::exists(format!("/proc/{first}")).unwrap(), "the first worker still runs");
}

fn a_command_in_a_small_cgroup_is_bounded_by_it() {
    assert_eq!(ParserOptions::command(None).memory, 1 << 30);
    assert_eq!(ParserOptions::command(Some(64 << 20)).memory, 32 << 20);
    let pool = ParserPool::start(ParserOptions::command(Some(64 << 20))).unwrap();
    let mut parser = pool.parser();
    let failed = parser.misbehave(1, &any_file(), Misbehaviour::Allocate).unwrap_err();
    assert_eq!(failed.reason, FailureReason::OutOfMemory);
    parser.misbehave(1, &any_file(), Misbehaviour::None).unwrap();
}

fn a_killed_worker_is_replaced() {
    let pool = pool();
    let mut parser = pool.parser();
    let file = any_file();
    for round in 0..100 {
        parser.misbehave(1, &file, Misbehaviour::None).unwrap_or_else(|failure: Failure| {
            panic!("round {round}: {failure}");
        });
        kill(Pid::from_raw(parser.worker_pid().unwrap()), Signal::SIGKILL).unwrap();
    }
    assert_eq!(pool.workers(), (100, 99));
}

fn each_worker_is_killed() {
    let pool = pool();
    let mut parser = pool.parser();
    let own = std::process::id().cast_signed();
    let supervisors = descendants(own);
    let has_failed = AtomicBool::new(false);
    let failed = std::thread::scope(|threads| {
        threads.spawn(|| {
            while !has_failed.load(Relaxed) {
                for pid in descendants(own).into_iter().filter(|pid| !supervisors.contains(pid)) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let failed = parser.misbehave(1, &any_file(), Misbehaviour::Sleep).unwrap_err();
        has_failed.store(true, Relaxed);
        failed
    });
    assert_eq!(failed.reason, FailureReason::Killed);
    assert_eq!(failed.to_string(), "the parser was killed each time");
}

/// The children of this process that are supervisors or workers.
fn children() -> Vec<i32> {
    let own = std::process::id().to_string();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        let mut after = stat.rsplit(") ").next().unwrap().split(' ');
        after.next() != Some("Z") && after.next() == Some(own.as_str())
    };
    pids.filter(is_child).collect()
}

fn the_reserve_goes_on() {
    let pool = pool();
    let mut parser = pool.parser();
    parser.misbehave(1, &any_file(), Misbehaviour::None).unwrap();
    for _ in 0..3 {
        // The one that was started last; the reserve that takes over has another parent than this process.
        let supervisor = status_field(parser.worker_pid().unwrap(), "PPid:").parse().unwrap();
        kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
        parser.rest();
        parser.misbehave(1, &any_file(), Misbehaviour::None).unwrap();
    }
    for (_, pid) in (0..10).zip(children()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn workers_end_with_their_agent() {
    // An agent that is killed: this program, started once more with a test that waits.
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "own_program_is_described_and_named"])
        .env("PODOPSY_TEST_WAIT", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let workers = loop {
        let all = descendants(agent.id() as i32);
        if all.len() >= 3 {
            break all;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "no workers: {all:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    agent.kill().unwrap();
    agent.wait().unwrap();
    let begin = Instant::now();
    while workers.iter().any(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok()) {
        assert!(begin.elapsed() < Duration::from_secs(10), "{workers:?} still run");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn descendants(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = list.split_whitespace().map(|child| child.parse().unwrap());
    children.flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}

/// A Go program, compiled for this test.
fn go_program(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/victims/native/deep.go");
    let program = folder.join("deep");
    let mut command = Command::new("go");
    command.arg("build").arg("-o").arg(&program).arg(source).env("GOCACHE", folder.join("cache"));
    assert!(command.status().is_ok_and(|status| status.success()), "go: cargo xtask setup test");
    program
}

/// Everything that a job can be asked about a file. The filter ends a worker at a call that it does not need.
fn parse_all(parser: &mut podopsy_worker::Parser, program: &Path) {
    let file = FileHandle::from_file(File::open(program).unwrap()).unwrap();
    let described = parser.describe(1, &file).unwrap().expect("an ELF file");
    let unwind = parser.find_unwind(1, &file, podopsy_worker::MAX_UNWIND_BYTES).unwrap().unwrap();
    assert!(unwind.digest.is_ok(), "{}", program.display());
    assert!(!parser.rows(1, &file).unwrap().unwrap().rows.is_empty(), "{}", program.display());
    let code = described.layout.segments.iter().find(|segment| segment.is_code).unwrap();
    let offsets = vec![code.offset + code.size / 2];
    let named = NamedFiles { file: &file, debug_file: Some(&file), must_be_unchanged: false };
    parser.names(1, &named, &described.layout, offsets).unwrap().unwrap();
}

fn each_kind_of_file_is_parsed() {
    let pool = ParserPool::start(ParserOptions { memory: 1 << 30, ..ParserOptions::command(None) }).unwrap();
    let mut parser = pool.parser();
    let folder = tempfile::tempdir().unwrap();
    let python = fs::canonicalize("/usr/bin/python3").expect("a Python interpreter: cargo xtask setup test");
    for program in [go_program(folder.path()), python, "/bin/sh".into()] {
        parse_all(&mut parser, &program);
    }
    let map = folder.path().join("perf-1.map");
    fs::write(&map, "1000 10 made_at_run_time\n").unwrap();
    let map = FileHandle::from_file(File::open(&map).unwrap()).unwrap();
    let names = parser.perf_map(1, &map, vec![0x1008]).unwrap().unwrap();
    assert_eq!(names.names[0].as_deref(), Some("made_at_run_time"));
    assert_eq!(pool.workers(), (1, 0), "a worker was lost");
}

fn own_program_is_named() {
    let pool = ParserPool::start(ParserOptions { memory: 1 << 30, ..ParserOptions::command(None) }).unwrap();
    let mut parser = pool.parser();
    let file = FileHandle::from_file(File::open("/proc/self/exe").unwrap()).unwrap();
    let described = parser.describe(1, &file).unwrap().expect("an ELF file");
    assert!(!described.layout.build_id.is_empty());
    let unwind = parser.find_unwind(1, &file, podopsy_worker::MAX_UNWIND_BYTES).unwrap().unwrap();
    assert!(unwind.digest.is_ok() && unwind.python == Ok(None));
    let rows = parser.rows(1, &file).unwrap().unwrap();
    assert!(rows.rows.len() > 1000);
    if std::env::var_os("PODOPSY_TEST_WAIT").is_some() {
        std::thread::sleep(Duration::from_secs(60));
    }
    let code = described.layout.segments.iter().find(|segment| segment.is_code).unwrap();
    let offsets: Vec<u64> = (code.offset..code.offset + code.size).step_by(4001).collect();
    let named = NamedFiles { file: &file, debug_file: None, must_be_unchanged: true };
    let found = parser.names(1, &named, &described.layout, offsets.clone()).unwrap().unwrap();
    let named = found.symbols.iter().filter(|symbol| symbol.as_ref().is_ok_and(|symbol| symbol.has_name()));
    assert!(named.count() * 10 > offsets.len() * 9, "{} offsets", offsets.len());
    parser.rest();
}
