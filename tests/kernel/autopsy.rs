//! The autopsy of OOM kills: whose limit was hit, all victims of one visit of the OOM killer, Kubernetes' view of it,
//! and kills without a running recorder.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::support;
use podopsy_harness::{ContainerSpec, Node, PodSpec};
use podopsy_model::incident::{Evidence, Level, OomIncident, Verdict};
use podopsy_model::{Detail, Event, EventKind, KnownBy, OomKill};
use podopsy_pods::Pods;
use podopsy_recorder::RecorderOptions;
use podopsy_recorder::oom::recover;
use support::{MemoryCgroup, Recording, no_runtime, node, options, pods_of};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const GLUTTON: &str = "/usr/bin/tail /dev/zero";

fn oom_only() -> RecorderOptions {
    RecorderOptions { dns: None, ..options() }
}

fn kill_of(events: &[Event], pid: u32) -> Option<(&Event, &OomKill)> {
    events.iter().filter(|event| event.kind == EventKind::OomKill).find_map(|event| match &event.detail {
        Detail::Oom(kill) if kill.victim.pid == pid => Some((event, kill)),
        _ => None,
    })
}

fn incident_of(events: &[Event], pid: u32) -> Option<(&Event, &OomIncident)> {
    events.iter().find_map(|event| {
        let incident = event.incident.as_deref()?;
        incident.victims.iter().any(|victim| victim.task.pid == pid).then_some((event, incident))
    })
}

fn incident_in<'a>(events: &'a [Event], namespace: &str, pod: &str) -> Option<(&'a Event, &'a OomIncident)> {
    events.iter().find_map(|event| {
        let of = event.pod.as_ref()?;
        (of.namespace == namespace && of.name == pod).then_some((event, event.incident.as_deref()?))
    })
}

/// The kernel limits the headers of OOM reports to 10 in 5 s for all kills. Without a header, whose limit it was is
/// inferred on v1 and observed on v2. Either is correct, and the incident must have the right source.
fn assert_limit_source(incident: &OomIncident) {
    let by = incident.limit.by.as_str();
    match incident.limit.how {
        Evidence::Observed => assert!(["kernel log", "memory.events.local"].contains(&by), "{by}"),
        Evidence::Inferred => {
            assert!(incident.constraint.is_none(), "the log has a header: {:?}", incident.limit)
        }
    }
}

/// Starts a process that runs until it is killed, and waits until it has printed `ready`.
fn ready(mut command: std::process::Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("start it");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it prints ready");
    assert_eq!(line.trim(), "ready");
    child
}

#[test]
fn a_leaf_limit_with_every_level_and_the_table() {
    let cgroup = MemoryCgroup::new("autopsy-leaf", 32 * MIB);
    let path = format!("/{}", cgroup.path.file_name().expect("a name").to_string_lossy());
    let mut recording = Recording::start(oom_only(), no_runtime());
    let bystander = ready(
        cgroup.command("/usr/bin/python3 -c 'import time; print(\"ready\", flush=True); time.sleep(60)'"),
    );
    let mut child = cgroup.command(GLUTTON).spawn().expect("start the glutton");
    let pid = child.id();
    let _ = child.wait();
    recording.until("incident", SOON, |seen| incident_of(seen, pid).is_some());
    end(bystander);

    let (event, kill) = kill_of(&recording.seen, pid).expect("the kill comes first");
    let limit = kill.limit.as_ref().expect("whose limit");
    assert_eq!(
        (limit.of, limit.path.as_deref(), limit.limit_bytes),
        (Level::Slice, Some(path.as_str()), Some(32 * MIB))
    );
    assert!(!kill.already_dying && !kill.recovered);
    let (report, incident) = incident_of(&recording.seen, pid).expect("just found");
    assert_eq!((report.kind, kill.incident.as_deref()), (EventKind::OomIncident, Some(incident.id.as_str())));
    assert_eq!((report.time, &report.process), (event.time, &event.process));
    assert_limit_source(incident);
    assert_eq!(incident.victims.len(), 1);
    assert_eq!(incident.trigger.as_ref().map(|trigger| trigger.pid), Some(pid));
    let levels: Vec<_> = incident.levels.iter().map(|level| (level.of, level.path.as_str())).collect();
    assert_eq!(levels, [(Level::Slice, path.as_str()), (Level::Node, "/")]);
    let (leaf, node) = (&incident.levels[0], &incident.levels[1]);
    assert_eq!((leaf.limit_bytes, leaf.oom_kills), (Some(32 * MIB), Some(1)));
    assert_eq!(leaf.headroom_bytes.zip(leaf.usage_bytes).map(|(h, u)| h + u), Some(32 * MIB));
    assert!(node.limit_bytes > Some(256 * MIB), "the machine's memory: {node:?}");
    if let Some(table) = incident.processes.as_ref().filter(|table| table.source == "kernel log") {
        let victim = table.rows.iter().find(|row| row.pid == pid).expect("the victim is in the table");
        assert!(victim.victim && victim.share.is_some_and(|share| share > 0.5), "{victim:?}");
        assert_eq!(table.rows.len(), 2, "the bystander is in it, too: {table:?}");
    }
}

#[test]
fn the_pods_limit_is_not_taken_for_the_containers() {
    let (node, image) = node();
    let mut recording = watching(&node);
    let leaker =
        ContainerSpec::new("leaker", &image).command(["leak", "--fast"]).memory_limit(256 * MIB as i64);
    let spec = PodSpec::new("shop", "basket").memory_limit(64 * MIB as i64).container(leaker);
    let _pod = node.run_pod(spec).expect("run the pod");
    recording.until("incident", SOON, |seen| incident_in(seen, "shop", "basket").is_some());
    let (_, incident) = incident_in(&recording.seen, "shop", "basket").expect("just found");
    assert_eq!(
        (incident.limit.of, incident.limit.limit_bytes),
        (Level::Pod, Some(64 * MIB)),
        "{:?}",
        incident.limit
    );
    assert_limit_source(incident);
    let levels: Vec<_> = incident.levels.iter().map(|level| level.of).collect();
    assert_eq!(levels, [Level::Container, Level::Pod, Level::Slice, Level::Slice, Level::Node]);
    assert_eq!(incident.qos.as_deref(), Some("Burstable"));
    assert!(incident.verdicts == [Verdict::Agrees] || incident.verdicts == [Verdict::RuntimeDisagrees]);
}

#[test]
fn a_group_kill_is_one_incident_with_five_victims() {
    let cgroup = MemoryCgroup::new("autopsy-group", 64 * MIB);
    fs::write(cgroup.path.join("memory.oom.group"), "1").expect("kill as a group: cgroup v2 only");
    let mut recording = Recording::start(oom_only(), no_runtime());
    let sleeper = "/usr/bin/python3 -c 'import time; print(\"ready\", flush=True); time.sleep(60)'";
    let sleepers: Vec<Child> = (0..4).map(|_| ready(cgroup.command(sleeper))).collect();
    let mut glutton = cgroup.command(GLUTTON).spawn().expect("start the glutton");
    let pids: Vec<u32> = sleepers.iter().map(Child::id).chain([glutton.id()]).collect();
    let _ = glutton.wait();
    for mut sleeper in sleepers {
        assert!(!sleeper.wait().expect("it ends").success(), "it must be killed with the others");
    }
    recording.until("incident", SOON, |seen| incident_of(seen, pids[0]).is_some());
    recording.receive_for(Duration::from_secs(3));
    let (_, incident) = incident_of(&recording.seen, pids[0]).expect("just found");
    let mut victims: Vec<u32> = incident.victims.iter().map(|victim| victim.task.pid).collect();
    victims.sort_unstable();
    let mut expected = pids.clone();
    expected.sort_unstable();
    assert_eq!((victims, incident.group), (expected, true));
    let incidents = recording.seen.iter().filter_map(|event| event.incident.as_deref());
    let ours = incidents.filter(|one| one.victims.iter().any(|victim| pids.contains(&victim.task.pid)));
    assert_eq!(ours.count(), 1, "five victims, one incident");
    let (_, losses) = recording.stop();
    assert_eq!((losses.get("oom_unseen"), losses.get("oom_uncounted")), (None, None), "{losses:?}");
}

#[test]
fn a_victim_of_many_threads_is_its_leader() {
    let cgroup = MemoryCgroup::new("autopsy-threads", 48 * MIB);
    let mut recording = Recording::start(oom_only(), no_runtime());
    let threads = "/usr/bin/python3 -c 'import threading, time\n\
                   [threading.Thread(target=time.sleep, args=(60,), daemon=True).start() for _ in range(6)]\n\
                   threading.Thread(target=lambda: (time.sleep(3), bytearray(100 << 20), time.sleep(60))).start()\n\
                   time.sleep(60)'";
    let mut child = cgroup.command(threads).spawn().expect("start it");
    let pid = child.id();
    let _ = child.wait();
    recording.until("incident", SOON, |seen| incident_of(seen, pid).is_some());
    recording.receive_for(Duration::from_secs(1));
    let (_, incident) = incident_of(&recording.seen, pid).expect("just found");
    assert_eq!(incident.victims.len(), 1, "threads are not victims: {:?}", incident.victims);
    let trigger = incident.trigger.as_ref().expect("the probe saw it");
    assert_eq!(trigger.pid, pid);
    assert_ne!(trigger.tid, pid, "the trigger is a thread");
    let kills =
        recording.seen.iter().filter(|event| event.kind == EventKind::OomKill && event.process.pid == pid);
    assert_eq!(kills.count(), 1);
}

#[test]
fn a_silent_child_kill_is_reported_with_the_memory_curve() {
    let (node, image) = node();
    let mut recording = watching(&node);
    let leaker = ContainerSpec::new("api", &image)
        .command(["leak", "--child", "--step", "256KiB", "--every", "50"])
        .memory_limit(64 * MIB as i64)
        .single_process_oom_kill();
    let pod = node.run_pod(PodSpec::new("shop", "orders").container(leaker)).expect("run the pod");
    recording
        .until("incident", Duration::from_secs(60), |seen| incident_in(seen, "shop", "orders").is_some());
    let (event, incident) = incident_in(&recording.seen, "shop", "orders").expect("just found");
    assert_eq!(incident.verdicts, [Verdict::SilentChildKill]);
    let view = incident.runtime.as_ref().expect("containerd answers");
    assert_eq!((view.state.as_str(), view.exit_code), ("running", None));
    assert_eq!(view.pid.map(|pid| pid as i32), pod.pid("api").ok(), "PID 1 keeps running");
    assert_ne!(view.pid, Some(event.process.pid));
    assert_eq!((incident.limit.of, incident.limit.limit_bytes), (Level::Container, Some(64 * MIB)));
    let curve = incident.curve.as_ref().expect("it grew for a dozen seconds");
    let slope = curve.growth_bytes_per_second.expect("enough points");
    let rate = rate(&pod.log("api").expect("its log has its size"));
    assert!(
        (slope / rate - 1.0).abs() < 0.1,
        "{slope} instead of {rate} bytes/s over {:.0} s",
        curve.seconds()
    );
    assert!(curve.current_bytes.iter().max() > Some(&(40 * MIB)), "{:?}", curve.current_bytes);
    // The cgroup still exists, and its counter is compared with the kills that were reported for it; twice, 5 s apart.
    recording.receive_for(Duration::from_secs(12));
    let (_, losses) = recording.stop();
    let differences: Vec<_> = losses.keys().filter(|name| name.ends_with("_by_cgroup")).collect();
    assert!(differences.is_empty(), "{losses:?}");
}

#[test]
fn kills_without_a_running_recorder_are_reported_by_the_next_start() {
    let state = tempfile::tempdir().expect("a folder");
    let remembering = || RecorderOptions { state_dir: Some(state.path().to_owned()), ..oom_only() };
    Recording::start(remembering(), no_runtime()).stop();
    wait_for(&state.path().join("state.json"));
    let cgroup = MemoryCgroup::new("autopsy-missed", 8 * MIB);
    let die = || {
        let mut child = cgroup.command(GLUTTON).spawn().expect("start the glutton");
        let _ = child.wait();
        child.id()
    };
    let missed = [die(), die(), die()];

    let mut recording = Recording::start(remembering(), no_runtime());
    recording.until("missed kills", SOON, |seen| missed.iter().all(|&pid| incident_of(seen, pid).is_some()));
    let seen_live = die();
    recording.until("live kill", SOON, |seen| kill_of(seen, seen_live).is_some());
    for pid in missed {
        let (event, kill) = kill_of(&recording.seen, pid).expect("just found");
        assert!(kill.recovered && kill.incident.is_some(), "{event:?}");
        assert_eq!(event.process.comm, "tail");
        let (_, incident) = incident_of(&recording.seen, pid).expect("just found");
        assert!(incident.recovered);
        // With a header, the log has the cgroup.
        assert!(incident.constraint.is_none() || event.known_by == KnownBy::Host, "{event:?}");
    }
    assert!(kill_of(&recording.seen, seen_live).is_some_and(|(_, kill)| !kill.recovered));
    let (events, losses) = recording.stop();
    let reported =
        events.iter().filter(|event| event.kind == EventKind::OomKill && missed.contains(&event.process.pid));
    assert_eq!(reported.count(), 3, "each is reported once");
    assert_eq!(losses.get("oom_missed_while_down"), None, "the log has all of them: {losses:?}");

    // A third start has nothing to report.
    let (events, _) = Recording::start(remembering(), no_runtime()).stop();
    let again =
        events.iter().filter(|event| missed.contains(&event.process.pid) || event.process.pid == seen_live);
    assert_eq!(again.count(), 0);
}

#[test]
fn a_storm_leaves_no_difference_between_the_kernels_count_and_ours() {
    let kills = support::times(60);
    let mut recording = Recording::start(oom_only(), no_runtime());
    let cgroup = MemoryCgroup::new("autopsy-storm", 4 * MIB);
    let pids: Vec<u32> = (0..kills)
        .map(|_| {
            let mut child = cgroup.command(GLUTTON).spawn().expect("start the glutton");
            let _ = child.wait();
            child.id()
        })
        .collect();
    recording.until("all incidents", SOON, |seen| pids.iter().all(|&pid| incident_of(seen, pid).is_some()));
    recording.receive_for(Duration::from_millis(1500));
    let whose = |pid: u32| incident_of(&recording.seen, pid).map(|(_, one)| one.limit.of);
    assert!(pids.iter().all(|&pid| whose(pid) == Some(Level::Slice)), "with and without a header");
    let (events, losses) = recording.stop();
    let ids: std::collections::BTreeSet<_> =
        events.iter().filter_map(|e| Some(&e.incident.as_ref()?.id)).collect();
    assert!(ids.len() >= kills, "each visit has its own id");
    assert_eq!((losses.get("oom_unseen"), losses.get("oom_uncounted")), (None, None), "{losses:?}");
}

#[test]
fn without_any_recorder_the_kernel_log_and_the_runtime_explain_a_kill() {
    let (node, image) = node();
    let leaker = ContainerSpec::new("api", &image).command(["leak", "--fast"]).memory_limit(32 * MIB as i64);
    let pod = node.run_pod(PodSpec::new("shop", "ledger").container(leaker)).expect("run the pod");
    pod.wait_exited("api", SOON).expect("it is killed");
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    let past = runtime.block_on(async {
        let pods = Pods::start(pods_of(&node)).await.expect("name pods");
        recover::past_incidents(&pods, "test-node").await.expect("read the kernel's log")
    });
    let found = incident_in(&past.incidents, "shop", "ledger");
    // Without a header, the log does not have the pod.
    let Some((event, incident)) = found else {
        let last =
            past.incidents.last().and_then(|event| event.incident.as_deref()).expect("the kill is there");
        assert!(last.constraint.is_none(), "the log has a header: {last:?}");
        return;
    };
    assert_eq!((event.known_by, incident.recovered), (KnownBy::Cri, true));
    assert_eq!((incident.limit.of, incident.limit.how), (Level::Container, Evidence::Observed));
    assert!(incident.processes.as_ref().is_some_and(|table| table.rows.iter().any(|row| row.victim)));
    assert!(incident.runtime.as_ref().is_some_and(|view| view.state == "exited"));
}

/// The growth by a leaker's log, in bytes a second: `<time> stdout F leak: <n> KiB`.
fn rate(log: &str) -> f64 {
    let point = |line: &str| {
        let (time, text) = line.split_once(' ')?;
        let kib: f64 = text.strip_prefix("stdout F leak: ")?.strip_suffix(" KiB")?.parse().ok()?;
        Some((time.parse::<jiff::Timestamp>().ok()?, kib * 1024.0))
    };
    let points: Vec<_> = log.lines().filter_map(point).collect();
    let (first, last) = (points.first().expect("a line"), points.last().expect("a line"));
    (last.1 - first.1) / last.0.duration_since(first.0).as_secs_f64()
}

fn watching(node: &Node) -> Recording {
    Recording::start(oom_only(), pods_of(node))
}

/// Ends a child process.
fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn wait_for(file: &Path) {
    let begin = std::time::Instant::now();
    while !file.exists() {
        assert!(begin.elapsed() < SOON, "no {}", file.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
