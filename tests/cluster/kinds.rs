//! Containers and pods of every kind: a kill in each has the names that Kubernetes gives.

use podopsy_model::{Event, EventKind};
use serde_json::{Value, json};

use crate::support::*;

const LEAK: [&str; 2] = ["leak", "--fast"];

fn wait_kill(agent: &Agent, namespace: &str, pod: &str, container: &str) -> Event {
    let is_wanted = |event: &Event| {
        is_of(event, pod) && event.container.as_ref().is_some_and(|one| one.name == container)
    };
    agent.wait_event(namespace, EventKind::OomKill, &format!("kill of {pod}/{container}"), is_wanted)
}

#[test]
fn an_init_containers_kill_names_the_init_container() {
    let agent = Agent::apply("base");
    let shop = Namespace::new("init");
    shop.create(pod(
        "migrates",
        json!({
            "initContainers": [container("migration", &LEAK, "24Mi")],
            "containers": [container("app", &["pause"], "24Mi")],
            "restartPolicy": "Never",
        }),
    ));
    let kill = wait_kill(&agent, "init", "migrates", "migration");
    assert_eq!(attempt(&kill), Some(0));
    let status =
        || Some(shop.pods("migrates").first()?["status"].clone()).filter(|one| one["phase"] == "Failed");
    let status = until("failed pod", status, || shop.describe());
    let reason = &status["initContainerStatuses"][0]["state"]["terminated"]["reason"];
    assert_eq!(reason, "OOMKilled", "{status:#}");
}

#[test]
fn a_jobs_and_a_stateful_sets_kills_name_their_pods() {
    let agent = Agent::apply("base");
    let shop = Namespace::new("workloads");
    let containers = json!([container("app", &LEAK, "24Mi")]);
    shop.create(json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "report" },
        "spec": {
            "backoffLimit": 0,
            "template": template("report", json!({ "restartPolicy": "Never", "containers": containers })),
        },
    }));
    shop.create(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "db" },
        "spec": {
            "serviceName": "db",
            "selector": { "matchLabels": { "app": "db" } },
            "template": template("db", json!({ "containers": containers })),
        },
    }));
    let job = wait_kill(&agent, "workloads", "report-", "app");
    let label = |event: &Event, key: &str| event.pod.as_ref().and_then(|pod| pod.labels.get(key).cloned());
    assert_eq!(label(&job, "job-name").as_deref(), Some("report"));
    let database = wait_kill(&agent, "workloads", "db-0", "app");
    assert_eq!(label(&database, "statefulset.kubernetes.io/pod-name").as_deref(), Some("db-0"));
}

#[test]
fn a_sidecars_kill_names_the_sidecar_and_the_application_runs_on() {
    let agent = Agent::apply("base");
    let shop = Namespace::new("sidecars");
    let app = container("app", &["lookup", "--every", "500", "nxdomain.example.com"], "32Mi");
    shop.create(pod("orders", json!({ "containers": [app, container("proxy", &LEAK, "24Mi")] })));
    let kill = wait_kill(&agent, "sidecars", "orders", "proxy");
    // The pod's limit is the sum: the container's own was met.
    assert_eq!(kill.pod.as_ref().map(|pod| pod.name.as_str()), Some("orders"));
    let failure =
        agent.wait_event("sidecars", EventKind::DnsFailure, "failed query", |event| is_of(event, "orders"));
    assert_eq!(failure.container.as_ref().map(|one| one.name.as_str()), Some("app"), "{failure:#?}");
    let statuses = shop.pods("orders")[0]["status"]["containerStatuses"].clone();
    let app = statuses.as_array().and_then(|all| all.iter().find(|one| one["name"] == "app"));
    assert_eq!(app.map(|one| &one["restartCount"]), Some(&0.into()), "{statuses:#}");
}

/// A static pod's manifest on the node, removed when this is dropped.
struct StaticPod(std::path::PathBuf);

impl StaticPod {
    fn new(name: &str, manifest: &Value) -> StaticPod {
        let folder = node_folder();
        // Beside the watched folder first, so that the kubelet reads it whole.
        let new = folder.join(format!("{name}.json"));
        std::fs::write(&new, manifest.to_string()).expect("write the manifest");
        let path = folder.join("static-pods").join(format!("{name}.json"));
        std::fs::rename(new, &path).expect("move it to the kubelet's folder");
        StaticPod(path)
    }
}

impl Drop for StaticPod {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_static_pods_kill_has_the_kubelets_hash_as_its_uid() {
    let agent = Agent::apply("base");
    let _shop = Namespace::new("static");
    let mut manifest = pod("gateway", json!({ "containers": [container("app", &LEAK, "24Mi")] }));
    manifest["metadata"]["namespace"] = "static".into();
    let _static = StaticPod::new("gateway", &manifest);
    let kill = wait_kill(&agent, "static", "gateway-node1", "app");
    let named = kill.pod.as_ref().expect("a pod");
    // 32 hexadecimal digits; the API server's mirror pod has a uid of its own and this one as an annotation.
    assert!(named.uid.len() == 32 && named.uid.bytes().all(|byte| byte.is_ascii_hexdigit()), "{named:?}");
    let mirror = || try_kubectl(&["get", "pod", "-n", "static", "gateway-node1", "--output=json"]).ok();
    let mirror = until("mirror pod", mirror, || kubectl(&["-n", "static", "get", "pods"]));
    let mirror: Value = serde_json::from_str(&mirror).expect("kubectl writes JSON");
    let annotations = &mirror["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.hash"], named.uid.as_str(), "{annotations:#}");
}
