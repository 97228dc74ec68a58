//! The agent is killed by SIGKILL at random moments under load. Events that it reported are in the store once, and the
//! next agent reports what happened meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support;
use jiff::Timestamp;
use podopsy_model::{Detail, Event, EventKind};
use podopsy_store::{GapReason, Reader};
use rusqlite::{Connection, OpenFlags};
use support::agent::{Agent, until, written};
use support::{MemoryCgroup, Running, failed_lookup, require_root, stored};

/// Its memory is full within some milliseconds.
const GLUTTON: &str = "/usr/bin/tail /dev/zero";

/// Random moments, the same in each run, so that a failure can be reproduced.
struct Moments(fastrand::Rng);

impl Moments {
    fn new(seed: u64) -> Moments {
        Moments(fastrand::Rng::with_seed(seed))
    }

    fn within(&mut self, from: u64, until: u64) -> Duration {
        Duration::from_millis(self.0.u64(from..until))
    }
}

/// OOM kills one after the other and failing lookups, until `end`, which returns the pids of the killed processes.
struct Load {
    goes_on: Arc<AtomicBool>,
    kills: JoinHandle<Vec<u32>>,
    lookups: JoinHandle<()>,
}

impl Load {
    fn start() -> Load {
        let goes_on = Arc::new(AtomicBool::new(true));
        let (one, other) = (Arc::clone(&goes_on), Arc::clone(&goes_on));
        let kills = thread::spawn(move || {
            let cgroup = MemoryCgroup::new("killed", 8 << 20);
            let (mut pids, mut moments) = (Vec::new(), Moments::new(7));
            while one.load(Relaxed) {
                let mut child = cgroup.command(GLUTTON).spawn().expect("start the glutton");
                let _ = child.wait();
                pids.push(child.id());
                thread::sleep(moments.within(20, 400));
            }
            pids
        });
        let lookups = thread::spawn(move || {
            let mut number = 0_u64;
            while other.load(Relaxed) {
                number += 1;
                failed_lookup(&format!("n{number}.killed.podopsy.test"), number as u16);
                thread::sleep(Duration::from_millis(25));
            }
        });
        Load { goes_on, kills, lookups }
    }

    fn end(self) -> Vec<u32> {
        self.goes_on.store(false, Relaxed);
        self.lookups.join().expect("lookups");
        self.kills.join().expect("kills")
    }
}

/// The identity of an event, which must be reported once.
fn identity(event: &Event) -> Option<String> {
    match (&event.detail, &event.incident) {
        (_, Some(incident)) if event.kind == EventKind::OomIncident => {
            Some(format!("incident {}", incident.id))
        }
        (Detail::Oom(kill), _) => Some(format!("kill of {}", kill.victim.pid)),
        (Detail::Dns(dns), _) => {
            let name = dns.name.as_ref().filter(|name| name.ends_with("killed.podopsy.test"))?;
            Some(format!("{} of {name} with {}", event.kind.as_str(), dns.id))
        }
        _ => None,
    }
}

/// How often each event since `began` is there. The kernel's log has kills of earlier tests, too, whose process ids are used
/// again.
fn count(events: impl IntoIterator<Item = Event>, began: Timestamp) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let events = events.into_iter().filter(|event| event.time >= began);
    for name in events.filter_map(|event| identity(&event)) {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

#[test]
fn reported_events_survive_a_hundred_kills_of_the_agent_and_none_is_duplicated() {
    require_root();
    let began = Timestamp::now();
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    let arguments = ["--state-dir", &state.display().to_string(), "--growth", "off", "--cpu-budget", "0"];
    let nowhere = Path::new("/nonexistent/podopsy-test.sock");
    // The count of kills begins with the first agent.
    let mut first = Agent::start_in(folder.path(), nowhere, &arguments);
    let load = Load::start();
    thread::sleep(Duration::from_secs(1));
    first.process.0.kill().expect("kill it");
    first.process.0.wait().expect("its end");
    let mut files = vec![folder.path().join("first.out")];
    fs::rename(folder.path().join("agent.out"), &files[0]).expect("keep what it wrote");

    let [_, program] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let mut moments = Moments::new(11);
    // Some are killed while they start, which takes half a second, and ten times that on an emulated machine.
    let is_emulated = support::is_emulated();
    let (times, longest) = if is_emulated { (12, 8000) } else { (100, 1500) };
    for round in 0..times {
        let out = folder.path().join(format!("{round}.out"));
        let mut command = Command::new(&program);
        command.args(arguments).arg("--cri-socket").arg(nowhere).args(["--profile-hz", "0"]);
        command.arg("--socket").arg(folder.path().join("agent.sock"));
        command.stdout(File::create(&out).expect("its output")).stderr(Stdio::null());
        let agent = Running(command.spawn().expect("start the agent"));
        thread::sleep(moments.within(20, longest));
        drop(agent);
        files.push(out);
        thread::sleep(moments.within(0, 100));
    }
    let pids = load.end();

    // The last one is ended once all kills have been reported.
    let mut last = Agent::start_in(folder.path(), nowhere, &arguments);
    let all = || {
        let reported = count(files.iter().flat_map(|file| written(file)).chain(last.events()), began);
        let missing: Vec<_> =
            pids.iter().filter(|pid| !reported.contains_key(&format!("kill of {pid}"))).collect();
        (missing.is_empty() || stored_kills(&state, &missing, began)).then_some(())
    };
    until("report of every kill", all);
    let pid = nix::unistd::Pid::from_raw(last.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("end it");
    assert!(last.process.0.wait().expect("its end").success(), "{}", last.log());
    files.push(folder.path().join("agent.out"));

    let all = stored(&Reader::open(&state));
    let reported = count(files.iter().flat_map(|file| written(file)), began);
    let stored = count(all.iter().cloned(), began);
    let gaps = Reader::open(&state).gaps(Timestamp::UNIX_EPOCH, Timestamp::MAX).expect("the gaps");
    let died = gaps.iter().filter(|gap| gap.reason == GapReason::Died).count();
    eprintln!(
        "{times} times killed: {} kills by the kernel, {} events reported, {} in the store, {died} of {} gaps",
        pids.len(),
        reported.len(),
        stored.len(),
        gaps.len()
    );
    let duplicated: Vec<_> = reported.iter().chain(&stored).filter(|(_, count)| **count > 1).collect();
    for event in all.iter().filter(|event| identity(event).is_some_and(|name| stored.get(&name) > Some(&1))) {
        let Detail::Oom(kill) = &event.detail else { continue };
        eprintln!("{}: {:?}, recovered: {}, {:?}", event.time, kill.victim, kill.recovered, kill.incident);
    }
    assert!(duplicated.is_empty(), "more than once: {duplicated:?}");
    let lost: Vec<_> = reported.keys().filter(|name| !stored.contains_key(*name)).collect();
    assert!(lost.is_empty(), "reported and not in the store: {lost:?}");
    let unknown: Vec<_> = pids.iter().filter(|pid| !stored.contains_key(&format!("kill of {pid}"))).collect();
    assert!(unknown.is_empty(), "kills that were not reported: {unknown:?} of {}", pids.len());
    // Each agent that began to record was killed: its gap has that reason.
    assert!(died * 4 > times && died == gaps.len(), "{died} of {gaps:?}");
    assert!(
        reported.keys().filter(|name| name.starts_with("dns")).count() > times,
        "too little load: {reported:?}"
    );

    let file = Connection::open_with_flags(state.join("store.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)
        .expect("open it");
    let result: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a result");
    assert_eq!(result, "ok");
}

/// Whether the store has all of these kills: an agent may have been killed after it wrote to disk and before its
/// stdout.
fn stored_kills(state: &Path, pids: &[&u32], began: Timestamp) -> bool {
    let stored = count(stored(&Reader::open(state)), began);
    pids.iter().all(|pid| stored.contains_key(&format!("kill of {pid}")))
}
