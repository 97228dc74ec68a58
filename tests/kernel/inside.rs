//! The probes in a privileged ephemeral container (`kubectl debug --profile=sysadmin --target=CONTAINER`): what the target
//! container does, by the pids of its own namespace, and nothing of anyone else.

use std::fs;
use std::time::Duration;

use crate::support;
use podopsy_harness::{ContainerSpec, Dns, Node, PodHandle, PodSpec};
use podopsy_model::{Detail, Event, EventKind, KnownBy};
use support::agent::until;
use support::{is_emulated, node, whole_lines};

const SOON: Duration = Duration::from_secs(90);
const MIB: i64 = 1 << 20;

fn debugger<S: Into<String>>(node: &Node, name: &str, command: impl IntoIterator<Item = S>) -> ContainerSpec {
    let image = node.podopsy_image("registry.podopsy.test/podopsy:test").expect("load podopsy's image");
    ContainerSpec::new(name, &image).command(command).privileged().target("app")
}

fn pod(node: &Node, name: &str, app: ContainerSpec) -> PodHandle {
    let pod = PodSpec::new("shop", name).dns(Dns::cluster(node.dns_address(), "shop"));
    node.run_pod(pod.container(app)).expect("run the pod")
}

#[test]
fn a_profile_from_inside_a_podhas_the_target_container_alone() {
    let (node, victims) = node();
    // The same program under another name, in a container beside the target.
    let folder = tempfile::tempdir().expect("a folder");
    let programs = podopsy_harness::victims(&|what| eprintln!("{what}")).expect("build the victims");
    fs::copy(programs.join("burner"), folder.path().join("neighbour")).expect("copy the program");
    let beside =
        ContainerSpec::new("beside", &victims).mount_read_only(folder.path(), "/with").command(["/with/neighbour"]);
    let spec = PodSpec::new("shop", "pricing").dns(Dns::cluster(node.dns_address(), "shop"));
    let app = ContainerSpec::new("app", &victims).command(["burner"]);
    let pod = node.run_pod(spec.container(app).container(beside)).expect("run the pod");

    let seconds = if is_emulated() { "30s" } else { "4s" };
    let command = ["/podopsy", "profile", "--all", "-d", seconds, "--format", "folded", "-o", "-"];
    pod.add_container(debugger(&node, "profile", command)).expect("start an ephemeral container");
    let ended = pod.wait_exited("profile", SOON).expect("it ends");
    let log = pod.log("profile").expect("its log");
    assert_eq!(ended.exit_code, 0, "{log}");
    let stacks: Vec<&str> = log.lines().filter(|line| line.contains("burner;") || line.contains(";")).collect();
    assert!(stacks.iter().any(|line| line.contains("price_options")), "{log}");
    for other in ["neighbour", "podopsy"] {
        let found: Vec<_> = stacks.iter().filter(|line| line.starts_with(other)).collect();
        assert!(found.is_empty(), "{other} is no part of the target: {found:?}");
    }
    assert!(!log.contains("NaN") && log.contains("user stacks complete"), "{log}");
}

fn kills(log: &str) -> Vec<Event> {
    let events = whole_lines(log).filter_map(|line| serde_json::from_str::<Event>(line).ok());
    events.filter(|event| event.kind == EventKind::OomKill).collect()
}

#[test]
fn kills_from_inside_a_podare_those_of_the_target_with_its_pids() {
    let (node, victims) = node();
    let leaking = |name: &str| {
        ContainerSpec::new(name, &victims)
            .command(["leak", "--child", "--fast"])
            .memory_limit(48 * MIB)
            .single_process_oom_kill()
    };
    let run = |name: &str| pod(&node, name, leaking("app"));
    let pod = run("orders");
    let _neighbour = run("carts");
    let watch = debugger(&node, "watch", ["/podopsy", "watch", "oom", "-o", "json"]);
    pod.add_container(watch).expect("start an ephemeral container");
    let log = until("two kills", || pod.log("watch").ok().filter(|log| kills(log).len() >= 2));
    for kill in kills(&log) {
        let pod = kill.pod.as_ref().expect("its pod");
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "orders"));
        assert_eq!(kill.known_by, KnownBy::Inside);
        assert_eq!(kill.process.comm, "leak");
        // The namespace is young: its pids are small, and those of the node are not.
        assert!((2..1000).contains(&kill.process.pid), "{:?}", kill.process);
        let Detail::Oom(oom) = &kill.detail else { panic!("{:?}", kill.detail) };
        assert!(oom.rss.as_ref().is_some_and(|rss| rss.anon_bytes > 10 << 20), "{:?}", oom.rss);
    }
    assert!(log.contains("process ids"), "the kernel's log is said to be left out: {log}");
}
