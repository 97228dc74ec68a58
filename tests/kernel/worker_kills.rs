//! The parsing worker is killed by SIGKILL a hundred times while the agent is under load. No event is lost, and profiles say
//! what they lack.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::support;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podopsy_model::EventKind;
use support::agent::{Agent, descendants, loss, until};
use support::{MemoryCgroup, Running, is_emulated, require_root};

/// Open files of a worker, at most (`agent/worker/src/jail.rs`); its supervisor may have more.
const OPEN_FILES: &str = "Max open files            16";
const LONGEST: Duration = Duration::from_secs(120);
/// So that processes are killed and programs are sampled meanwhile.
const BETWEEN_KILLS: Duration = Duration::from_millis(100);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The workers of an agent that run at the moment.
fn workers(agent: i32) -> Vec<i32> {
    let is_worker = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/limits")).is_ok_and(|limits| limits.contains(OPEN_FILES))
    };
    descendants(agent).into_iter().filter(is_worker).collect()
}

/// Programs that no worker has read yet: copies of one that fills its memory, each in a process that is then OOM-killed.
fn kill_processes(folder: &Path, goes_on: &AtomicBool) -> Vec<u32> {
    let cgroup = MemoryCgroup::new("worker-kills", 8 << 20);
    let mut pids = Vec::new();
    while goes_on.load(Relaxed) {
        let program = folder.join(format!("glutton-{}", pids.len()));
        fs::copy("/usr/bin/tail", &program).expect("copy a program");
        let line = format!("{} /dev/zero", program.display());
        let mut child = cgroup.command(&line).stdout(Stdio::null()).spawn().expect("start the glutton");
        let _ = child.wait();
        pids.push(child.id());
        thread::sleep(Duration::from_millis(100));
    }
    pids
}

/// Programs that use CPU time for a second, one after the other, each a file of its own.
fn use_cpu(folder: &Path, goes_on: &AtomicBool) {
    let mut number = 0;
    while goes_on.load(Relaxed) {
        number += 1;
        let program = folder.join(format!("busy-{number}"));
        fs::copy("/bin/sh", &program).expect("copy a program");
        let mut command = Command::new(&program);
        let busy =
            Running(command.args(["-c", "while :; do :; done"]).spawn().expect("start a busy program"));
        thread::sleep(Duration::from_secs(1));
        drop(busy);
    }
}

#[test]
fn a_hundred_kills_of_the_worker_lose_no_event_and_profiles_say_what_they_lack() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    let arguments = [
        "--state-dir",
        &state.display().to_string(),
        "--profile-hz",
        "49",
        "--keep-every",
        "5s",
        "--cpu-budget",
        "0",
    ];
    let agent = Agent::start_in(folder.path(), Path::new("/nonexistent/podopsy-test.sock"), &arguments);
    let times = if is_emulated() { 10 } else { 100 };
    let goes_on = Arc::new(AtomicBool::new(true));
    let mut killed = HashSet::new();
    let pids = thread::scope(|threads| {
        let kills = threads.spawn(|| kill_processes(folder.path(), &goes_on));
        threads.spawn(|| use_cpu(folder.path(), &goes_on));
        let began = Instant::now();
        while killed.len() < times && began.elapsed() < LONGEST {
            let worker = workers(agent.pid().cast_signed()).into_iter().find(|pid| !killed.contains(pid));
            let is_killed = worker.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
            killed.extend(worker.filter(|_| is_killed));
            thread::sleep(if is_killed { BETWEEN_KILLS } else { POLL_INTERVAL });
        }
        eprintln!("{} workers killed in {:?}", killed.len(), began.elapsed());
        goes_on.store(false, Relaxed);
        kills.join().expect("the kills")
    });
    assert_eq!(killed.len(), times, "too few workers: {}", agent.log());

    let of_kind = |kind: EventKind| {
        let events = agent.events().into_iter().filter(|event| event.kind == kind);
        events.filter(|event| pids.contains(&event.process.pid)).count()
    };
    until("report of every kill", || (of_kind(EventKind::OomKill) == pids.len()).then_some(()));
    until("incident of every kill", || (of_kind(EventKind::OomIncident) == pids.len()).then_some(()));
    let lost = loss(&agent.address, "workers_lost");
    eprintln!("{} OOM kills; workers that were lost in a job: {lost:?}", pids.len());
    assert!(lost.is_some_and(|lost| lost > 0.0));

    // What starts after the kills has its name again.
    let program = folder.path().join("after-kills");
    fs::copy("/bin/sh", &program).expect("copy a program");
    let mut command = Command::new(&program);
    let busy = Running(command.args(["-c", "while :; do :; done"]).spawn().expect("start a busy program"));
    let (said, folded) = until("name of a program that started after the kills", || {
        let (said, folded) = agent.kept_profile();
        folded.filter(|folded| folded.contains("after-kills")).map(|folded| (said, folded))
    });
    drop(busy);
    eprintln!("{said}");
    assert!(said.contains("on the node lost: "), "{said}\n{folded}");
}
