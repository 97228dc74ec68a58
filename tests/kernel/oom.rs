//! OOM kills of host processes: no pod, no container runtime, and every fact of the event checked.

use std::time::Duration;

use crate::support;
use podopsy_model::{Detail, Event, EventKind, KnownBy, OomKill};
use support::{MemoryCgroup, Recording};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

fn kill_of(events: &[Event], pid: u32) -> Option<(&Event, &OomKill)> {
    events.iter().find_map(|event| match &event.detail {
        Detail::Oom(kill) if kill.victim.pid == pid => Some((event, kill)),
        _ => None,
    })
}

/// Fills memory with a program that every machine has.
const GLUTTON: &str = "/usr/bin/tail /dev/zero";

#[test]
fn a_killed_host_process_is_named_with_its_cgroup_and_memory() {
    let cgroup = MemoryCgroup::new("leaf", 32 * MIB);
    let id = cgroup.id();
    let mut recording = Recording::host();
    let mut child = cgroup.command(GLUTTON).spawn().expect("start the glutton");
    let pid = child.id();
    assert!(!child.wait().expect("it ends").success());
    let is_incident = |event: &Event| event.kind == EventKind::OomIncident && event.process.pid == pid;
    recording.until("OOM kill and its incident", SOON, |seen| seen.iter().any(is_incident));
    drop(cgroup);

    let (event, kill) = kill_of(&recording.seen, pid).expect("just found");
    assert_eq!(event.kind, EventKind::OomKill);
    assert_eq!((event.process.pid, event.process.comm.as_str()), (pid, "tail"));
    assert_eq!((event.cgroup.id, event.known_by, &event.pod), (id, KnownBy::Host, &None));
    let path = event.cgroup.path.as_deref().expect("the cgroup was seen while it lived");
    assert!(path.contains("podopsy-test-leaf"), "{path}");
    assert_eq!((kill.trigger.pid, kill.trigger.comm.as_str()), (pid, "tail"));
    let rss = kill.rss.expect("this kernel has rss by kind");
    assert!((28 * MIB..=33 * MIB).contains(&rss.anon_bytes), "{rss:?}");
    assert_eq!(kill.oom_score_adj, Some(0));
    assert!(kill.kernel_stack.is_empty() && kill.user_stack.is_empty(), "a kill does not wait for names");
    // The incident has the names.
    let incident = recording.seen.iter().find(|event| is_incident(event)).expect("just found");
    let Detail::Oom(named) = &incident.detail else { panic!("{incident:?}") };
    let first = named.kernel_stack.first().and_then(|frame| frame.function.as_deref());
    assert!(first.is_some_and(|name| name.contains("oom")), "kernel stack starts at {first:?}");
    let (_, mut losses) = recording.stop();
    // There is no container runtime here, and the recorder counts that.
    losses.remove("cri_errors");
    assert!(losses.is_empty(), "{losses:?}");
}

#[test]
fn the_trigger_is_not_taken_for_the_victim() {
    let cgroup = MemoryCgroup::new("trigger", 64 * MIB);
    let mut recording = Recording::host();
    // The victim holds 40 MiB and sleeps; it volunteers. The trigger then asks for more than is left.
    let hold = "/usr/bin/python3 -c 'import time; open(\"/proc/self/oom_score_adj\", \"w\").write(\"1000\"); \
                x = bytearray(40 << 20); print(\"held\", flush=True); time.sleep(60)'";
    let mut victim =
        cgroup.command(hold).stdout(std::process::Stdio::piped()).spawn().expect("start the victim");
    let mut line = String::new();
    let out = victim.stdout.as_mut().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)
        .expect("the victim prints held");
    assert_eq!(line.trim(), "held");
    let [anon, file] = rss_by_proc(victim.id());
    let want = "/usr/bin/python3 -c 'import time; x = bytearray(40 << 20); time.sleep(0.2)'";
    let mut trigger = cgroup.command(want).spawn().expect("start the trigger");
    let (victim_pid, trigger_pid) = (victim.id(), trigger.id());
    let _ = trigger.wait();
    assert!(!victim.wait().expect("it ends").success(), "the victim must be killed");
    recording.until("OOM kill", SOON, |seen| kill_of(seen, victim_pid).is_some());
    let (event, kill) = kill_of(&recording.seen, victim_pid).expect("just found");
    assert_eq!(event.process.pid, victim_pid);
    assert_eq!(kill.trigger.pid, trigger_pid);
    assert_eq!(kill.oom_score_adj, Some(1000));
    assert_eq!(kill.victim.comm, "python3");
    // It slept, so its memory is what /proc showed a moment before. The kernel may have reclaimed some of its file
    // pages before the kill.
    let rss = kill.rss.expect("rss by kind");
    let error = (rss.anon_bytes as f64 / anon as f64 - 1.0).abs();
    assert!(error < 0.05, "RssAnon: {anon} bytes by /proc, {} by the probe", rss.anon_bytes);
    assert!(
        rss.file_bytes <= file + file / 20,
        "RssFile: {file} bytes by /proc, {} by the probe",
        rss.file_bytes
    );
}

/// RssAnon and RssFile of /proc/PID/status, in bytes.
fn rss_by_proc(pid: u32) -> [u64; 2] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    ["RssAnon:", "RssFile:"].map(|name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of its status");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kB") << 10
    })
}

#[test]
fn a_storm_of_kills_loses_none() {
    let all = support::times(100);
    let mut recording = Recording::host();
    let mut pids = Vec::new();
    for round in 0..all {
        let cgroup = MemoryCgroup::new(&format!("storm{round}"), 4 * MIB);
        let mut child = cgroup.command(GLUTTON).spawn().expect("start the glutton");
        pids.push(child.id());
        let _ = child.wait();
    }
    recording.until("every kill", SOON, |seen| pids.iter().all(|&pid| kill_of(seen, pid).is_some()));
    let named = pids.iter().filter(|&&pid| {
        kill_of(&recording.seen, pid).is_some_and(|(event, _)| event.known_by == KnownBy::Host)
    });
    assert_eq!(named.count(), all, "every dead cgroup is remembered");
    let (events, losses) = recording.stop();
    let kills = events.iter().filter(|event| event.kind == EventKind::OomKill).count();
    assert_eq!((kills, losses.get("oom_ring")), (all, None));
}
