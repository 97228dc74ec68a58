//! The probes in an ephemeral container with the capabilities for them (`kubectl debug --target=CONTAINER`): what the target
//! container does, by the pids of its own namespace, and nothing of anyone else.

use std::fs;
use std::time::{Duration, Instant};

use crate::support;
use podopsy_harness::{ContainerSpec, Dns, Node, PodHandle, PodSpec};
use podopsy_model::{Detail, Event, EventKind, KnownBy};
use support::{is_emulated, node};

/// An emulated machine is slow.
fn patience() -> Duration {
    Duration::from_secs(if is_emulated() { 300 } else { 90 })
}

const MIB: i64 = 1 << 20;
const CAPABILITIES: [&str; 6] = ["BPF", "PERFMON", "SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "NET_RAW"];

pub fn debugger<S: Into<String>>(
    node: &Node,
    name: &str,
    command: impl IntoIterator<Item = S>,
) -> ContainerSpec {
    let image = node.podopsy_image("registry.podopsy.test/podopsy:test").expect("load podopsy's image");
    // What manifests/ephemeral/all.yaml leaves. A privileged container is more, and containerd refuses it in a pod that began
    // without one.
    let container = ContainerSpec::new(name, &image).command(command).target("app").no_capabilities();
    let container = CAPABILITIES.into_iter().fold(container.read_only_root(), ContainerSpec::capability);
    // For maps before 5.11. Where the machine itself lacks it, the runtime cannot grant it.
    if is_emulated() { container.capability("SYS_RESOURCE") } else { container }
}

#[test]
fn a_profile_from_inside_a_pod_has_the_target_container_alone() {
    let (node, victims) = node();
    // The same program under another name, in a container beside the target.
    let folder = tempfile::tempdir().expect("a folder");
    let programs = podopsy_harness::victims(&|what| eprintln!("{what}")).expect("build the victims");
    fs::copy(programs.join("burner"), folder.path().join("neighbour")).expect("copy the program");
    let beside = ContainerSpec::new("beside", &victims)
        .mount_read_only(folder.path(), "/with")
        .command(["/with/neighbour"]);
    let spec = PodSpec::new("shop", "pricing").dns(Dns::cluster(node.dns_address(), "shop"));
    let app = ContainerSpec::new("app", &victims).command(["burner"]);
    let pod = node.run_pod(spec.container(app).container(beside)).expect("run the pod");

    let seconds = if is_emulated() { "30s" } else { "4s" };
    let command = ["/podopsy", "profile", "--all", "-d", seconds, "--format", "folded", "-o", "-"];
    pod.add_container(debugger(&node, "profile", command)).expect("start an ephemeral container");
    let ended = pod.wait_exited("profile", patience()).expect("it ends");
    let log = pod.log("profile").expect("its log");
    assert_eq!(ended.exit_code, 0, "{log}");
    let stacks: Vec<_> = log.lines().filter_map(|line| line.split_once(" stdout F ")).collect();
    assert!(stacks.iter().any(|(_, stack)| stack.contains("price_options")), "{log}");
    // Neither the container beside it nor podopsy's own. Without a kubelet nothing inside has the container's name.
    let is_targets = |stack: &str| stack.starts_with("shop/pricing/") && stack.contains("/;burner;");
    let others: Vec<_> = stacks.iter().filter(|(_, stack)| !is_targets(stack)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(log.contains("user stacks complete"), "{log}");
}

/// The kills in a container's log, whose lines are `time stdout F text`.
fn kills(log: &str) -> Vec<Event> {
    let lines = log.lines().filter_map(|line| line.split_once(" stdout F "));
    let events = lines.filter_map(|(_, text)| serde_json::from_str::<Event>(text).ok());
    events.filter(|event| event.kind == EventKind::OomKill).collect()
}

fn until_in_log(pod: &PodHandle, enough: impl Fn(&str) -> bool) -> String {
    let began = Instant::now();
    loop {
        let log = pod.log("watch").unwrap_or_default();
        if enough(&log) {
            return log;
        }
        assert!(began.elapsed() < patience(), "{log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn kills_from_inside_a_pod_are_those_of_the_target_with_its_pids() {
    let (node, victims) = node();
    let gate = tempfile::tempdir().expect("a folder");
    let run = |name: &str| {
        let app = ContainerSpec::new("app", &victims)
            .command(["leak", "--child", "--fast", "--when", "/gate/open"])
            .mount_read_only(gate.path(), "/gate")
            .memory_limit(64 * MIB)
            .single_process_oom_kill();
        let spec = PodSpec::new("shop", name).dns(Dns::cluster(node.dns_address(), "shop"));
        node.run_pod(spec.container(app)).expect("run the pod")
    };
    let (neighbour, pod) = (run("carts"), run("orders"));
    pod.add_container(debugger(&node, "watch", ["/podopsy", "watch", "oom", "-o", "json"]))
        .expect("start an ephemeral container");
    until_in_log(&pod, |log| log.contains("recording OOM kills"));
    fs::write(gate.path().join("open"), "").expect("let them leak");
    let log = until_in_log(&pod, |log| !kills(log).is_empty());
    for kill in kills(&log) {
        let pod = kill.pod.as_ref().expect("its pod");
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "orders"));
        assert_eq!(kill.known_by, KnownBy::Inside);
        // PID 1 of the namespace is the application, and the victim its child.
        assert!(kill.process.comm == "leak" && (2..1000).contains(&kill.process.pid), "{:?}", kill.process);
        let Detail::Oom(oom) = &kill.detail else { panic!("{:?}", kill.detail) };
        assert!(oom.rss.as_ref().is_some_and(|rss| rss.anon_bytes > 10 << 20), "{:?}", oom.rss);
    }
    assert!(log.contains("/dev/kmsg has the node's process ids"), "{log}");
    // The neighbour's was no later.
    until_counted(&neighbour);
    assert_eq!(kills(&pod.log("watch").expect("its log")).len(), 1);
}

/// Waits until the kernel has counted a kill in the application's container.
fn until_counted(pod: &PodHandle) {
    let cgroup = pod.memory_cgroup("app").expect("its cgroup");
    let began = Instant::now();
    loop {
        let read = |file: &str| fs::read_to_string(cgroup.join(file)).ok();
        let text = read("memory.events").or_else(|| read("memory.oom_control")).expect("its counts");
        if text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0")) {
            return;
        }
        assert!(began.elapsed() < patience(), "{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
