//! The machine's memory runs out. Only in the lab's machines: here it would be this machine's memory.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support;
use podopsy_model::incident::{Level, Verdict};
use podopsy_model::{Detail, EventKind};
use podopsy_recorder::RecorderOptions;
use support::{Recording, no_runtime, options};

const PATIENCE: Duration = Duration::from_secs(240);
/// The free memory that is left for the glutton: writing to all memory takes an emulated machine many minutes.
const LEFT_KIB: u64 = 640 << 10;

/// Most of the machine's memory, reserved as unused huge pages; released when this is dropped.
struct Reserved;

impl Reserved {
    const PAGES: &str = "/proc/sys/vm/nr_hugepages";

    fn all_but(left_kib: u64) -> Reserved {
        let (page, free) = (meminfo("Hugepagesize"), meminfo("MemAvailable"));
        let pages = free.saturating_sub(left_kib) / page.max(1);
        // On a kernel without huge pages, the test takes longer.
        let _ = fs::write(Reserved::PAGES, pages.to_string());
        Reserved
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = fs::write(Reserved::PAGES, "0");
    }
}

/// A line of /proc/meminfo, in KiB; 0: there is none.
fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[test]
fn a_kill_for_want_of_the_machines_memory_is_a_node_oom() {
    if !support::is_emulated() {
        eprintln!("not run: `cargo xtask vm 6.1 --test node_oom` runs it in a machine of its own");
        return;
    }
    let mut recording = Recording::start(RecorderOptions { dns: None, ..options() }, no_runtime());
    let _reserved = Reserved::all_but(LEFT_KIB);
    let left = meminfo("MemAvailable") << 10;
    // oom_score_adj makes it the first victim: the test runner must survive.
    let mut glutton = Command::new("/bin/sh")
        .args(["-c", "echo 1000 > /proc/self/oom_score_adj && exec /usr/bin/tail /dev/zero"])
        .stdout(Stdio::null())
        .spawn()
        .expect("start the glutton");
    let pid = glutton.id();
    let _ = glutton.wait();
    recording.until("incident", PATIENCE, |seen| {
        seen.iter().any(|event| event.kind == EventKind::OomIncident && event.process.pid == pid)
    });
    let is_it = |kind| move |event: &&podopsy_model::Event| event.kind == kind && event.process.pid == pid;
    let kill = recording.seen.iter().find(is_it(EventKind::OomKill)).expect("the kill comes first");
    let Detail::Oom(detail) = &kill.detail else { panic!("{kill:?}") };
    assert_eq!(detail.oom_score_adj, Some(1000));
    let report = recording.seen.iter().find(is_it(EventKind::OomIncident)).expect("just found");
    let incident = report.incident.as_deref().expect("it has one");
    assert_eq!((incident.limit.of, incident.constraint.as_deref()), (Level::Node, Some("none")));
    assert_eq!(incident.verdicts, [Verdict::NodeOom]);
    let node = incident.levels.last().expect("the machine is a level");
    assert_eq!(node.of, Level::Node);
    let anon = detail.rss.map(|rss| rss.anon_bytes).expect("this kernel reports it");
    assert!(node.limit_bytes.is_some_and(|all| all > left) && anon > left / 2, "{anon} of {left}, {node:?}");
    let table = incident.processes.as_ref().expect("the killer's table");
    let victim = table.rows.iter().find(|row| row.pid == pid).expect("the victim is in it");
    assert!(victim.victim && victim.oom_score_adj == 1000, "{victim:?}");
    assert!(table.rows.len() > 1, "the whole machine is in it: {table:?}");
}
