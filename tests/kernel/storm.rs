//! A storm: a thousand OOM kills within a minute over fifty containers, each reported by the agent that ships.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support;
use podopsy_harness::{ContainerSpec, Node, PodHandle, PodSpec};
use podopsy_model::{Detail, Event, EventKind};
use support::kills_by_vmstat;
use support::stdout::{StdoutAgent, is_kill};

const MIB: i64 = 1 << 20;
const IMAGE: &str = "registry.podopsy.test/shop/victims:2.0";
/// Containers whose PID 1 keeps running while its children are killed, and the number of children.
const PARENTS: usize = 40;
const CHILDREN: usize = 24;
/// Containers that are killed whole, and the number of attempts of each.
const LEAKERS: usize = 10;
const ATTEMPTS: usize = 4;
/// The agent's memory request in the manifest, which it must not exceed.
const MEMORY_BUDGET_KIB: u64 = 96 << 10;
const PATIENCE: Duration = Duration::from_secs(180);
/// How long after its kill a line may come, for 99 of 100. A quiet machine is ten times as fast (docs/costs.md).
const LATE: Duration = Duration::from_millis(2500);

fn kills(events: &[Event]) -> impl Iterator<Item = &Event> {
    events.iter().filter(|event| event.kind == EventKind::OomKill)
}

fn by_pod(events: &[Event]) -> BTreeMap<String, usize> {
    let mut sums = BTreeMap::new();
    for event in kills(events) {
        let name = event.pod.as_ref().map_or_else(|| "no pod".to_owned(), |pod| pod.name.clone());
        *sums.entry(name).or_default() += 1;
    }
    sums
}

/// Runs a pod that begins to leak when `gate` has a file `open`.
fn pod(node: &Node, name: &str, gate: &Path, more: &[&str], limit: i64) -> PodHandle {
    let command = [&["leak", "--fast", "--when", "/gate/open"], more].concat();
    let container = ContainerSpec::new("api", IMAGE).command(command).mount_read_only(gate, "/gate");
    let container = container.memory_limit(limit).single_process_oom_kill();
    node.run_pod(PodSpec::new("storm", name).container(container)).expect("run the pod")
}

/// How many processes of a family were killed, once it has finished: its children, by its log, or, if the kernel chose the
/// parent (which it may while the memory of the last child is still charged), those in the log, the parent, and perhaps one
/// child that the parent could not log any more.
fn killed_of(parent: &PodHandle) -> Option<RangeInclusive<usize>> {
    let children = parent.log("api").ok()?.matches("ended by signal 9").count();
    if children == CHILDREN {
        return Some(children..=children);
    }
    let status = parent.status("api").ok()?;
    (status.exit_code == 137).then_some(children + 1..=children + 2)
}

/// The number of kills of each family, when all have finished.
fn killed_of_all(parents: &[PodHandle]) -> BTreeMap<String, RangeInclusive<usize>> {
    let began = Instant::now();
    loop {
        let found: Option<BTreeMap<_, _>> = parents
            .iter()
            .enumerate()
            .map(|(n, parent)| Some((format!("parent-{n}"), killed_of(parent)?)))
            .collect();
        match found {
            Some(found) => return found,
            None => assert!(began.elapsed() < PATIENCE, "not all families have finished"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_thousand_kills_in_a_minute_each_have_their_pod() {
    support::require_root();
    let node = Node::up().unwrap_or_else(|error| panic!("bring the node up: {error:#}"));
    node.victims_image(IMAGE).expect("load the image");
    // An emulated machine takes seconds to start a container.
    let (parents, leakers) = (support::times(support::times(PARENTS)).max(4), support::times(LEAKERS));
    let mut agent = StdoutAgent::start(node.directory(), node.cri_socket(), &[]);

    // All begin together, when the last one runs.
    let gate = node.directory().join("gate");
    fs::create_dir(&gate).expect("a folder for the gate");
    let times = CHILDREN.to_string();
    let children = ["--child", "--times", &times];
    // Three in four have a tight limit: their children run for milliseconds, if a CPU is free.
    let brief = [&children[..], &["--hold", "12MiB"]].concat();
    let shape = |n: usize| if n.is_multiple_of(4) { &children[..] } else { &brief[..] };
    let families: Vec<_> =
        (0..parents).map(|n| pod(&node, &format!("parent-{n}"), &gate, shape(n), 16 * MIB)).collect();
    let whole: Vec<_> =
        (0..leakers).map(|n| pod(&node, &format!("leaker-{n}"), &gate, &[], 24 * MIB)).collect();
    let cpu = agent.cpu();
    let before = kills_by_vmstat();
    fs::write(gate.join("open"), "").expect("open the gate");
    std::thread::scope(|threads| {
        for pod in &whole {
            threads.spawn(|| {
                for attempt in 1..=ATTEMPTS {
                    pod.wait_exited("api", PATIENCE).expect("it is killed");
                    if attempt < ATTEMPTS {
                        pod.restart("api").expect("restart");
                    }
                }
            });
        }
    });
    let mut expected = killed_of_all(&families);
    expected.extend((0..leakers).map(|n| (format!("leaker-{n}"), ATTEMPTS..=ATTEMPTS)));
    let all = (kills_by_vmstat() - before) as usize;
    let explain = |seen: &[Event]| format!("kills by pod: {:?}, expected: {expected:?}", by_pod(seen));
    agent.until("all kills", PATIENCE, |seen| kills(seen).count() >= all, explain);
    let incidents = |seen: &[Event]| seen.iter().filter(|event| event.incident.is_some()).count();
    agent.until("all incidents", PATIENCE, |seen| incidents(seen) >= all, |_| String::new());

    let cpu = agent.cpu() - cpu;
    assert_eq!(kills(&agent.seen).count(), all, "the kernel's own count; by pod: {:?}", by_pod(&agent.seen));
    let seen = by_pod(&agent.seen);
    assert!(seen.keys().eq(expected.keys()), "{seen:?}");
    for (pod, count) in &seen {
        assert!(expected[pod].contains(count), "{pod}: {count} kills, expected: {:?}", expected[pod]);
    }
    // A parent that was chosen leaves its other children out: few of them, or the storm was none.
    assert!(all * 10 >= (parents * CHILDREN + leakers * ATTEMPTS) * 9, "{expected:?}");
    assert_eq!(incidents(&agent.seen), all, "each kill is its own incident");
    for event in kills(&agent.seen) {
        let Detail::Oom(kill) = &event.detail else { panic!("{event:?}") };
        assert!(kill.limit.is_some() && event.container.is_some(), "{event:?}");
    }
    let last = agent.seen.last().expect("there are events");
    // The number of growth candidates and of their samples is bounded, and samples of growth are given up over the CPU
    // budget, which counts the parsing of a thousand stacks of fifty containers; the number of kills is not bounded.
    let of_growth = |name: &str| {
        let is_bounded = name.starts_with("growth_") || name.starts_with("unwind_");
        is_bounded || ["sample_throttled", "shed_growth"].contains(&name)
    };
    let lost: Vec<_> = last.losses.iter().filter(|(name, _)| !of_growth(name)).collect();
    assert!(lost.is_empty(), "nothing is lost, and all counts agree: {lost:?}: {}", agent.log());
    let peak = agent.peak_kib();
    assert!(peak <= MEMORY_BUDGET_KIB, "{peak} KiB resident");

    let mut times: Vec<_> = kills(&agent.seen).map(|event| event.time).collect();
    times.sort_unstable();
    let lifetimes = kills(&agent.seen)
        .filter_map(|event| Some(event.time.duration_since(event.process.start_time?).as_millis()));
    let latencies = agent.latencies(is_kill);
    println!(
        "{all} kills within {:.1} s, {} of processes that ran for less than 10 ms; the agent: {:.2} ms of CPU a kill, {peak} KiB at most",
        times[all - 1].duration_since(times[0]).as_secs_f64(),
        lifetimes.filter(|&ms| ms < 10).count(),
        cpu.as_secs_f64() * 1e3 / all as f64,
    );
    println!("from the kill to its line on stdout:\n{latencies}");
    assert!(latencies.percentile(99) < LATE, "{latencies}");
}
