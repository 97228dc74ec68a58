//! The machine's own memory runs out. In the lab's machines only: here it would be this machine's.

mod support;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use podopsy_model::incident::{Level, Verdict};
use podopsy_model::{Detail, Kind};
use podopsy_recorder::RecorderOptions;
use support::{Recording, no_runtime, options};

const PATIENCE: Duration = Duration::from_secs(240);
/// What the glutton finds: to write to all of a machine's memory takes an emulated one many minutes.
const LEFT_KIB: u64 = 640 << 10;

/// Most of the machine's memory, kept as huge pages that nobody uses; given back when dropped.
struct SetAside;

impl SetAside {
    const PAGES: &str = "/proc/sys/vm/nr_hugepages";

    fn all_but(left_kib: u64) -> SetAside {
        let (page, free) = (meminfo("Hugepagesize"), meminfo("MemAvailable"));
        let pages = free.saturating_sub(left_kib) / page.max(1);
        // A kernel without them takes longer.
        let _ = fs::write(SetAside::PAGES, pages.to_string());
        SetAside
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        let _ = fs::write(SetAside::PAGES, "0");
    }
}

/// A line of /proc/meminfo, in KiB; 0: there is none.
fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[test]
fn a_machine_without_memory_is_said_to_be_one() {
    if !support::is_emulated() {
        eprintln!("not run: `cargo xtask vm 6.1 --test node_oom` runs it in a machine of its own");
        return;
    }
    let mut recording = Recording::start(RecorderOptions { dns: None, ..options() }, no_runtime());
    let _aside = SetAside::all_but(LEFT_KIB);
    let left = meminfo("MemAvailable") << 10;
    // The first to go, whatever else is large: the runner must live to tell.
    let mut glutton = Command::new("/bin/sh")
        .args(["-c", "echo 1000 > /proc/self/oom_score_adj && exec /usr/bin/tail /dev/zero"])
        .stdout(Stdio::null())
        .spawn()
        .expect("start the glutton");
    let pid = glutton.id();
    let _ = glutton.wait();
    recording.until("incident", PATIENCE, |seen| {
        seen.iter().any(|event| event.kind == Kind::OomIncident && event.process.pid == pid)
    });
    let is_it = |kind| move |event: &&podopsy_model::Event| event.kind == kind && event.process.pid == pid;
    let kill = recording.seen.iter().find(is_it(Kind::OomKill)).expect("the kill comes first");
    let Detail::Oom(detail) = &kill.detail else { panic!("{kill:?}") };
    assert_eq!(detail.oom_score_adj, Some(1000));
    let told = recording.seen.iter().find(is_it(Kind::OomIncident)).expect("just found");
    let incident = told.incident.as_deref().expect("it has one");
    assert_eq!((incident.limit.of, incident.constraint.as_deref()), (Level::Node, Some("none")));
    assert_eq!(incident.verdicts, [Verdict::NodeOom]);
    let node = incident.levels.last().expect("the machine is a level");
    assert_eq!(node.of, Level::Node);
    let anon = detail.rss.map(|rss| rss.anon_bytes).expect("this kernel says");
    assert!(node.limit_bytes.is_some_and(|all| all > left) && anon > left / 2, "{anon} of {left}, {node:?}");
    let table = incident.processes.as_ref().expect("the killer's table");
    let victim = table.rows.iter().find(|row| row.pid == pid).expect("the victim is in it");
    assert!(victim.victim && victim.oom_score_adj == 1000, "{victim:?}");
    assert!(table.rows.len() > 1, "the whole machine is in it: {table:?}");
}
