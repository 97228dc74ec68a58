//! A core against gdb's own view of the live process: the same threads with the same backtraces, and the same values.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use podopsy_coredump::{CoreError, CoreOptions, CorePlan, CoreSummary};

/// Threads that wait at different depths; one counts, and 64 MiB are in use.
const PROGRAM: &str = r#"
#include <atomic>
#include <cmath>
#include <cstdio>
#include <semaphore.h>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>
static sem_t never;
std::atomic<long> ticks{0};
struct Order { int id; std::string note; };
__attribute__((noinline)) int wait_in(const Order &order, int depth) {
    if (depth == 0) { sem_wait(&never); return order.id; }
    return wait_in(order, depth - 1) + 1;
}
int main() {
    sem_init(&never, 0, 0);
    std::vector<char> memory(64 << 20, 'm');
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; i++)
        threads.emplace_back([i] { wait_in(Order{100 + i, "note " + std::to_string(i)}, i); });
    threads.emplace_back([] { for (;;) { ticks++; usleep(1000); } });
    usleep(200000);
    puts("ready");
    fflush(stdout);
    Order own{7, "main"};
    wait_in(own, 3);
    return memory[5];
}
"#;

struct Target {
    child: Child,
    folder: tempfile::TempDir,
}

impl Target {
    fn start() -> Target {
        Target::of(PROGRAM)
    }

    fn of(text: &str) -> Target {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("orders.cc");
        fs::write(&source, text).unwrap();
        let program = folder.path().join("orders");
        let mut compiler = Command::new("g++");
        compiler.args(["-g", "-O1", "-pthread", "-o"]).arg(&program).arg(&source);
        assert!(compiler.status().expect("g++ is installed").success());
        let mut child = Command::new(&program).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Target { child, folder }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn core(&self, options: CoreOptions) -> (std::path::PathBuf, CoreSummary) {
        let path = self.folder.path().join("core");
        let plan = CorePlan::new(self.pid(), options).unwrap();
        let summary = plan.write(&AtomicBool::new(false), &mut File::create(&path).unwrap()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), summary.bytes);
        (path, summary)
    }

    fn gdb(&self, from: &[&str]) -> String {
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-q", "-batch"]).arg(self.folder.path().join("orders")).args(from);
        gdb.args(["-ex", "thread apply all bt", "-ex", "thread apply all info registers rip rsp rbp xmm0"]);
        let output = gdb.output().expect("gdb is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Whether its threads run: the counter grows, and no thread is traced.
    fn runs(&self) -> bool {
        let switches = || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            let status = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
            let lines: Vec<String> =
                status.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
            assert!(
                lines.iter().filter(|line| line.starts_with("TracerPid")).all(|line| line == "TracerPid:\t0")
            );
            assert!(!lines.iter().any(|line| line.starts_with("State:") && line.contains("stop")));
            let number =
                |line: &String| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok();
            lines.iter().filter_map(number).sum::<u64>()
        };
        let before = switches();
        sleep(Duration::from_millis(50));
        switches() > before
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output of each thread, by its id, without what differs between a live process and a core. The thread that counts is
/// somewhere else at each moment.
fn by_thread(gdb: &str) -> BTreeMap<String, Vec<String>> {
    let mut threads: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = None;
    for line in gdb.lines() {
        if let Some((_, rest)) = line.split_once("LWP ").filter(|_| line.starts_with("Thread ")) {
            current = Some(rest.split(')').next().unwrap().to_owned());
        } else if let Some(lwp) = &current
            && (line.starts_with('#') || line.starts_with("r") || line.starts_with("xmm"))
        {
            threads.entry(lwp.clone()).or_default().push(line.to_owned());
        }
    }
    threads
        .retain(|_, lines| !lines.iter().any(|line| line.contains("usleep") || line.contains("nanosleep")));
    threads
}

#[test]
#[ignore = "needs root, gdb and g++"]
fn gdb_sees_the_same_in_a_core_as_in_the_live_process() {
    let target = Target::start();
    let live = by_thread(&target.gdb(&["-p", &target.pid().to_string()]));
    assert_eq!(live.len(), 7, "{live:#?}");
    for options in [
        CoreOptions::default(),
        CoreOptions { exclude_file_backed: true, ..CoreOptions::default() },
        CoreOptions { stream: true, ..CoreOptions::default() },
    ] {
        let (path, summary) = target.core(options);
        assert_eq!((summary.threads, summary.unreadable, summary.swapped), (8, 0, 0), "{summary:?}");
        assert!(summary.bytes > 64 << 20);
        println!(
            "{options:?}: {} bytes, paused for {:?}, {:?} to stop",
            summary.bytes, summary.pause, summary.stopping
        );
        let core = by_thread(&target.gdb(&[path.to_str().unwrap()]));
        assert_eq!(core, live, "{options:?}");
        assert!(core.values().flatten().any(|line| line.contains("wait_in (order=")), "{core:#?}");
        assert!(target.runs());
    }
}

#[test]
#[ignore = "needs root, gdb and g++"]
fn gdb_knows_the_program_its_files_and_its_memory() {
    let target = Target::start();
    let (path, _) = target.core(CoreOptions::default());
    let core = path.to_str().unwrap();
    let output = target.gdb(&[
        core,
        "-ex",
        "info proc mappings",
        "-ex",
        "info auxv",
        "-ex",
        "thread 1",
        "-ex",
        "frame function main",
        "-ex",
        "print own",
        "-ex",
        "print memory[1234567]",
    ]);
    for expected in ["orders'", "libstdc++.so", "AT_ENTRY", "{id = 7, note = \"main\"}", "109 'm'"] {
        assert!(output.contains(expected), "{expected} is not in:\n{output}");
    }
}

/// A writer that is full after some bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
#[ignore = "needs root and g++"]
fn whatever_goes_wrong_the_process_goes_on() {
    let target = Target::start();
    let write = |options, cancelled: bool, bytes| {
        let plan = CorePlan::new(target.pid(), options).unwrap();
        plan.write(&AtomicBool::new(cancelled), &mut Full(bytes)).unwrap_err()
    };
    let stream = CoreOptions { stream: true, ..CoreOptions::default() };
    assert!(matches!(write(CoreOptions::default(), true, usize::MAX), CoreError::Cancelled));
    assert!(matches!(write(stream, false, 1 << 20), CoreError::Write(_)));
    assert!(target.runs());
    // A process that another one traces.
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-p", &target.pid().to_string()]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut gdb = gdb.stderr(Stdio::null()).spawn().unwrap();
    let status = Path::new("/proc").join(target.pid().to_string()).join("status");
    let begin = Instant::now();
    while fs::read_to_string(&status).unwrap().contains("TracerPid:\t0\n") {
        assert!(begin.elapsed() < Duration::from_secs(30));
        sleep(Duration::from_millis(20));
    }
    let refused = write(CoreOptions::default(), false, usize::MAX).to_string();
    assert!(refused.contains(&format!("process {} traces it already", gdb.id())), "{refused}");
    gdb.kill().unwrap();
    gdb.wait().unwrap();
    assert!(target.runs());
}

/// A thread that waits for the child of a vfork: no signal and no tracer can interrupt it.
const WAITS_IN_THE_KERNEL: &str = r#"
#include <cstdio>
#include <thread>
#include <unistd.h>
int main() {
    std::thread waits([] { if (vfork() == 0) { sleep(20); _exit(0); } });
    std::thread counts([] { for (;;) usleep(1000); });
    usleep(200000);
    puts("ready");
    fflush(stdout);
    pause();
}
"#;

#[test]
#[ignore = "needs root and g++"]
fn a_thread_that_does_not_stop_costs_the_others_a_second() {
    let target = Target::of(WAITS_IN_THE_KERNEL);
    let plan = CorePlan::new(target.pid(), CoreOptions::default()).unwrap();
    let begin = Instant::now();
    let error = plan.write(&AtomicBool::new(false), &mut io::sink()).unwrap_err();
    assert!(matches!(error, CoreError::DoesNotStop { state: 'D', .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(target.runs());
}

/// Counts a real-time signal, and exits with the count.
const COUNTS_SIGNALS: &str = r#"
#include <csignal>
#include <cstdio>
#include <thread>
#include <unistd.h>
volatile sig_atomic_t count = 0;
int main() {
    signal(SIGRTMIN, [](int) { count = count + 1; });
    signal(SIGTERM, [](int) { _exit(count); });
    puts("ready");
    fflush(stdout);
    for (;;) pause();
}
"#;

#[test]
#[ignore = "needs root and g++"]
fn signals_that_come_while_a_core_is_taken_are_delivered() {
    let mut target = Target::of(COUNTS_SIGNALS);
    let pid = target.pid().to_string();
    let send = |signal: &str| {
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    };
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| (0..200).for_each(|_| send("RTMIN")));
        while !sender.is_finished() {
            target.core(CoreOptions::default());
        }
    });
    send("TERM");
    assert_eq!(target.child.wait().unwrap().code(), Some(200));
}

#[test]
#[ignore = "needs root and g++"]
fn a_stopped_process_stays_stopped_and_one_that_ended_is_gone() {
    let mut target = Target::start();
    let pid = nix::unistd::Pid::from_raw(target.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let (_, summary) = target.core(CoreOptions::default());
    assert_eq!(summary.threads, 8);
    let state = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(state.contains("State:\tT (stopped)"), "{state}");
    let plan = CorePlan::new(target.pid(), CoreOptions::default()).unwrap();
    target.child.kill().unwrap();
    target.child.wait().unwrap();
    let error = plan.write(&AtomicBool::new(false), &mut io::sink()).unwrap_err();
    assert!(matches!(error, CoreError::Gone(_)), "{error}");
}
