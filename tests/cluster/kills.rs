//! Kills of a real kubelet's containers: by the OOM killer, by a failed probe, by an eviction.

use podopsy_model::sigkill::Sender;
use podopsy_model::{Event, EventKind};
use serde_json::{Value, json};

use crate::support::*;

fn deployment(name: &str, container: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": { "app": name } },
            "template": template(name, json!({ "containers": [container] })),
        },
    })
}

/// The restarts that Kubernetes counts of a pod's first container.
fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

#[test]
fn each_kill_of_a_deployment_has_its_pod_and_attempt_as_kubernetes_counts_them() {
    let agent = Agent::apply("base");
    let shop = Namespace::new("shop");
    shop.create(deployment("orders", container("api", &["leak", "--fast"], "24Mi")));
    let is_third = |event: &Event| is_of(event, "orders-") && attempt(event) == Some(2);
    agent.wait_event("shop", EventKind::OomKill, "third kill", is_third);

    let kills = agent.events("shop", EventKind::OomKill);
    let attempts: Vec<_> = kills.iter().filter_map(attempt).collect();
    assert_eq!(attempts[..3], [0, 1, 2], "one kill for each attempt: {kills:#?}");
    let pod = &shop.pods("orders")[0];
    assert!(restarts(pod) >= 2, "{pod:#}");
    for kill in &kills {
        let named = kill.pod.as_ref().expect("a pod");
        assert_eq!(pod["metadata"]["name"], named.name.as_str());
        assert_eq!(pod["metadata"]["uid"], named.uid.as_str());
        assert_eq!(named.labels.get("app").map(String::as_str), Some("orders"), "{named:?}");
        // What Kubernetes has no name for at the runtime: the Deployment's ReplicaSet, by its hash.
        assert!(named.labels.contains_key("pod-template-hash"), "{named:?}");
        assert_eq!(kill.container.as_ref().map(|one| one.image.as_str()), Some(VICTIMS));
        assert_eq!(kill.node, NODE);
    }
    let incident = agent.wait_event("shop", EventKind::OomIncident, "incident of an attempt", |event| {
        event.incident.as_ref().is_some_and(|one| one.runtime.as_ref().is_some_and(|view| view.restarts > 0))
    });
    let view = incident.incident.as_ref().and_then(|one| one.runtime.as_ref()).expect("just found");
    assert_eq!(Some(view.restarts), attempt(&incident), "the runtime's count is the attempt");

    // The ReplicaSet is the pod's owner at the API; the agent infers it.
    let set = pod["metadata"]["ownerReferences"][0]["name"].as_str().expect("an owner");
    let id = incident.incident.as_ref().map(|one| one.id.clone()).expect("just found");
    let autopsy = agent.podopsy(&["oom", "show", &id]).expect("the autopsy");
    let workload = format!("workload     Deployment orders, ReplicaSet {set} (by its labels and name)");
    assert!(autopsy.contains(&workload), "no {workload:?} in\n{autopsy}");
}

#[test]
fn a_kill_is_an_event_on_the_pod_that_kubectl_shows() {
    Agent::apply("overlays/kubernetes-events");
    let finance = Namespace::new("finance");
    finance.create(deployment("checkout", container("app", &["leak", "--fast"], "24Mi")));
    let reason = "--field-selector=reason=PodopsyOOMKilled";
    let find = || get(&["events", "-n", "finance", reason])["items"].get(0).cloned();
    let event = until("Event", find, || format!("{}\n{}", finance.describe(), Agent::describe()));
    let (pod, object) = (&finance.pods("checkout")[0], &event["involvedObject"]);
    assert_eq!((&object["kind"], &object["name"]), (&"Pod".into(), &pod["metadata"]["name"]));
    assert_eq!(object["uid"], pod["metadata"]["uid"]);
    assert_eq!(object["fieldPath"], "spec.containers{app}");
    let message = event["message"].as_str().expect("a message");
    assert!(message.contains("OOM killer killed leak[") && message.contains("podopsy oom show"), "{message}");
    // The way that people see it.
    assert!(finance.describe().contains("PodopsyOOMKilled"), "{}", finance.describe());
}

#[test]
fn a_failed_liveness_probe_ends_in_a_sigkill_by_the_runtime() {
    let agent = Agent::apply("base");
    let shop = Namespace::new("probes");
    // Without a handler for SIGTERM, PID 1 of a container ignores it, and the grace period passes.
    let mut api = container("api", &["leak", "--deaf", "--up-to", "1KiB"], "32Mi");
    api["livenessProbe"] = json!({ "tcpSocket": { "port": 9 }, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 2 });
    shop.create(pod("deaf", json!({ "containers": [api], "terminationGracePeriodSeconds": 2 })));
    let event = agent.wait_event("probes", EventKind::Sigkill, "SIGKILL", |event| is_of(event, "deaf"));
    let sigkill = event.sigkill().expect("its facts");
    assert_eq!((sigkill.by, sigkill.first_process), (Sender::Runtime, Some(true)), "{sigkill:?}");
    assert_eq!(event.container.as_ref().map(|one| one.name.as_str()), Some("api"));
    let pods = || shop.pods("deaf").first().filter(|pod| restarts(pod) > 0).cloned();
    let pod = until("restart", pods, || shop.describe());
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 137, "{pod:#}");
    // It is no OOM kill, and is not reported as one.
    assert!(agent.events("probes", EventKind::OomKill).is_empty());
}

#[test]
fn the_end_of_an_evicted_pod_is_no_oom_kill() {
    let agent = Agent::apply("base");
    let shop = Namespace::new("evicted");
    // The kubelet counts the container's log, too: about 10 KB of it every second.
    let mut app = container("app", &["lookup", "--every", "1", "nxdomain.example.com"], "32Mi");
    app["resources"]["limits"]["ephemeral-storage"] = "64Ki".into();
    shop.create(pod("chatty", json!({ "containers": [app], "terminationGracePeriodSeconds": 1 })));
    let find = || {
        let pod = shop.pods("chatty").first().cloned()?;
        (pod["status"]["reason"] == "Evicted").then_some(pod)
    };
    let pod = until("eviction", find, || shop.describe());
    assert_eq!(pod["status"]["phase"], "Failed");
    assert!(agent.events("evicted", EventKind::OomKill).is_empty());
    // Its lookups are in the history with the pod's name, although the pod is gone.
    let failure =
        agent.wait_event("evicted", EventKind::DnsFailure, "failed query", |event| is_of(event, "chatty"));
    assert_eq!(failure.pod.as_ref().map(|one| &*one.uid), pod["metadata"]["uid"].as_str());
}
