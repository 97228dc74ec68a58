//! How long a kill takes to be reported: at rest, with a store, and beside a program that takes a minute to read. The
//! storm of a thousand kills is in `storm.rs`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::support;
use podopsy_model::Event;
use support::MemoryCgroup;
use support::hostile;
use support::stdout::{Latencies, StdoutAgent, is_kill};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(90);
const GLUTTON: &str = "/usr/bin/tail /dev/zero";
/// A path that is no runtime's socket.
const NO_RUNTIME: &str = "/nonexistent/podopsy-test.sock";
/// How long after its kill a line may come, at the median. A quiet machine is ten times as fast (docs/costs.md).
const LATE: Duration = Duration::from_millis(500);

/// Has a process killed every 200 ms, each in a cgroup of its own.
fn kill_one_by_one(name: &str, program: &str, times: usize) {
    for round in 0..times {
        let cgroup = MemoryCgroup::new(&format!("{name}{round}"), 32 * MIB);
        let child = cgroup.command(program).stderr(Stdio::null()).spawn();
        let _ = child.expect("start the program").wait();
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn latencies_of(agent: &mut StdoutAgent, kills: usize) -> Latencies {
    let enough = |seen: &[Event]| seen.iter().filter(|event| is_kill(event)).count() >= kills;
    agent.until("every kill", SOON, enough, |seen| format!("{} events", seen.len()));
    agent.latencies(is_kill)
}

#[test]
fn a_kill_is_on_stdout_at_once() {
    support::require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let mut agent = StdoutAgent::start(folder.path(), Path::new(NO_RUNTIME), &[]);
    let kills = support::times(50);
    kill_one_by_one("latency", GLUTTON, kills);
    let latencies = latencies_of(&mut agent, kills);
    println!("at rest, from the kill to its line on stdout:\n{latencies}");
    assert!(latencies.percentile(50) < LATE, "{latencies}");
}

#[test]
fn a_kill_that_is_stored_first_is_on_stdout_soon() {
    support::require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    let arguments = ["--state-dir", state.to_str().expect("UTF-8")];
    let mut agent = StdoutAgent::start(folder.path(), Path::new(NO_RUNTIME), &arguments);
    let kills = support::times(50);
    kill_one_by_one("stored", GLUTTON, kills);
    let latencies = latencies_of(&mut agent, kills);
    println!("at rest, from the kill over the store to its line on stdout:\n{latencies}");
    assert!(latencies.percentile(50) < LATE, "{latencies}");
}

#[test]
fn a_program_that_is_slow_to_read_delays_no_kill() {
    const SLOW_KILLS: usize = 4;
    support::require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let victims = podopsy_harness::victims(&|what| eprintln!("{what}")).expect("build the victims");
    let slow = folder.path().join("slow");
    hostile::slow_debug_information(&victims.join("leak"), &slow);
    let mut agent = StdoutAgent::start(folder.path(), Path::new(NO_RUNTIME), &[]);
    kill_one_by_one("slow", &format!("{} --fast", slow.display()), SLOW_KILLS);
    let kills = support::times(20);
    kill_one_by_one("neighbour", GLUTTON, kills);
    let latencies = latencies_of(&mut agent, SLOW_KILLS + kills);
    println!(
        "beside a program that takes a minute to read, from the kill to its line on stdout:\n{latencies}"
    );
    assert!(latencies.percentile(100) < 4 * LATE, "{latencies}");
    let slow_kills = agent.seen.iter().filter(|event| is_kill(event) && event.process.comm == "slow");
    assert_eq!(slow_kills.count(), SLOW_KILLS);
}
