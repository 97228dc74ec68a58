//! What happens to a node over time: it is drained, podopsy is updated over an old history, it fills up with pods.

use jiff::{SignedDuration, Timestamp};
use podopsy_model::sigkill::Sender;
use podopsy_model::testing::{kill, owner};
use podopsy_model::{Event, EventKind};
use podopsy_store::testing::write_version_1;
use serde_json::{Value, json};

use crate::support::*;

/// Lets pods be scheduled on the node again when it is dropped.
struct Cordoned;

impl Drop for Cordoned {
    fn drop(&mut self) {
        let _ = try_kubectl(&["uncordon", NODE]);
    }
}

#[test]
fn a_drain_leaves_the_agent_and_its_sigkills_are_the_runtimes() {
    let agent = Agent::apply("base");
    let before = agent.pod();
    let shop = Namespace::new("drained");
    // PID 1 of a container ignores SIGTERM without a handler: the drain ends it after the grace period.
    let deaf = container("api", &["leak", "--deaf", "--up-to", "1KiB"], "32Mi");
    shop.create(pod("deaf", json!({ "containers": [deaf], "terminationGracePeriodSeconds": 2 })));
    shop.wait_ready("deaf");

    let _cordoned = Cordoned;
    let selector = "--pod-selector=app=deaf";
    // By force: no controller makes this pod again.
    kubectl(&["drain", NODE, "--ignore-daemonsets", "--force", "--timeout=100s", selector]);
    assert!(shop.pods("deaf").is_empty(), "{}", shop.describe());
    let event = agent.wait_event("drained", EventKind::Sigkill, "SIGKILL", |event| is_of(event, "deaf"));
    assert_eq!(event.sigkill().map(|one| one.by), Some(Sender::Runtime), "{event:#?}");
    assert!(agent.events("drained", EventKind::OomKill).is_empty());
    assert_eq!(agent.pod(), before, "a drain leaves DaemonSets");
}

#[test]
fn an_agent_that_finds_an_old_history_goes_on_with_it() {
    Agent::apply("base");
    Agent::delete();
    let state = state_folder();
    for file in ["store.db", "store.db-wal", "store.db-shm"] {
        let _ = std::fs::remove_file(state.join(file));
    }
    let before = Timestamp::now() - SignedDuration::from_mins(10);
    let old = kill(before, owner("upgraded", "orders-0", &[]), "3f2a-1", 7, false);
    write_version_1(&state, &old).expect("write the old history");

    let agent = Agent::apply("base");
    let shop = Namespace::new("upgraded");
    shop.create(pod("orders", json!({ "containers": [container("api", &["leak", "--fast"], "24Mi")] })));
    let is_new = |event: &Event| event.pod.as_ref().is_some_and(|pod| pod.name == "orders");
    agent.wait_event("upgraded", EventKind::OomKill, "kill after the update", is_new);
    let kills = agent.events("upgraded", EventKind::OomKill);
    assert_eq!(kills[0], old, "the old one first");
}

/// The kubelet's default bound.
const PODS_OF_NODE: usize = 110;

#[test]
fn on_a_full_node_a_kill_is_named_and_every_pod_is_listed() {
    let agent = Agent::apply("base");
    let shop = Namespace::new("crowd");
    let others = get(&["pods", "--all-namespaces"])["items"].as_array().map_or(0, Vec::len);
    // Two places are left: for the pod that leaks, and for one that still ends.
    let count = PODS_OF_NODE - others - 2;
    let mut idle = container("idle", &["pause"], "8Mi");
    idle["resources"]["requests"] = json!({ "memory": "1Mi", "cpu": "1m" });
    shop.create(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "idle" },
        "spec": {
            "replicas": count,
            "selector": { "matchLabels": { "app": "idle" } },
            "template": template("idle", json!({ "containers": [idle], "terminationGracePeriodSeconds": 0 })),
        },
    }));
    let deployment = || get(&["deployment", "-n", "crowd", "idle"])["status"]["readyReplicas"].as_u64();
    let started = std::time::Instant::now();
    // A pod takes the kubelet and the runtime about a second here.
    until_within(
        SOON * 4,
        "full node",
        || deployment().filter(|ready| *ready as usize == count),
        || format!("{:?} of {count} ready\n{}", deployment(), kubectl(&["get", "pods", "-A"])),
    );
    eprintln!("{count} pods are ready after {:?}", started.elapsed());

    shop.create(pod("leaks", json!({ "containers": [container("app", &["leak", "--fast"], "24Mi")] })));
    let kill = agent.wait_event("crowd", EventKind::OomKill, "kill", |event| is_of(event, "leaks"));
    assert_eq!(kill.container.as_ref().map(|one| one.name.as_str()), Some("app"));
    let listed = agent.podopsy(&["pods", "-n", "crowd", "-o", "json"]).expect("a list");
    let listed: Vec<Value> = serde_json::from_str(&listed).expect("JSON");
    let name = |pod: &Value| pod["pod"]["name"].as_str().unwrap_or_default().to_owned();
    let idle = listed.iter().filter(|pod| name(pod).starts_with("idle-"));
    assert_eq!(idle.count(), count, "{listed:#?}");
    let metrics = agent.metrics();
    let own = |name: &str| metrics.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    eprintln!("{}\n{}", own("process_resident_memory_bytes"), own("process_cpu_seconds"));
    let pod = get(&["pod", "-n", "podopsy", &agent.pod()]);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod:#}");
}
