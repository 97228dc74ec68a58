//! Every overlay and component of manifests/, at a real API server.

use podopsy_doctor::capability::{Capabilities, Capability};
use podopsy_model::EventKind;
use serde_json::{Value, json};

use crate::support::*;

/// Takes a capability from the agent that this machine does not have: a runtime can only grant what it has.
fn without_sys_resource() {
    if Capabilities::effective().has(Capability::SysResource) {
        return;
    }
    let set = get(&["daemonset", "-n", "podopsy", "podopsy-agent"]);
    let path = "/spec/template/spec/containers/0/securityContext/capabilities/add";
    let mut added = set.pointer(path).and_then(Value::as_array).cloned().expect("the capabilities");
    added.retain(|name| name != "SYS_RESOURCE");
    let patch = json!([{ "op": "replace", "path": path, "value": added }]).to_string();
    kubectl(&["-n", "podopsy", "patch", "daemonset", "podopsy-agent", "--type=json", "--patch", &patch]);
}

#[test]
fn explicit_capabilities_are_accepted_and_record() {
    Agent::try_apply("overlays/explicit-capabilities-before-1.30", PODOPSY).expect("apply it");
    without_sys_resource();
    Agent::wait_rolled_out();
    let pod = get(&["pod", "-n", "podopsy", &Agent.pod()]);
    let security = &pod["spec"]["containers"][0]["securityContext"];
    assert_eq!(security["privileged"], false, "{security:#}");
    assert_eq!(security["capabilities"]["drop"][0], "ALL");
    let shop = Namespace::new("explicit");
    shop.create(crate::support::pod(
        "orders",
        json!({ "containers": [container("api", &["leak", "--fast"], "24Mi")] }),
    ));
    Agent.wait_event("explicit", EventKind::OomKill, "kill", |event| is_of(event, "orders"));
    // The next test's overlay would keep the list: kubectl applies what changes between manifests.
    kubectl(&["delete", "daemonset", "-n", "podopsy", "podopsy-agent"]);
}

#[test]
fn the_field_of_kubernetes_1_30_is_refused_by_its_name() {
    for overlay in ["overlays/explicit-capabilities", "overlays/named-rights"] {
        let error = Agent::try_apply(overlay, PODOPSY).expect_err("1.20 does not know the field");
        assert!(error.contains("appArmorProfile"), "{overlay}: {error}");
    }
}

#[test]
fn kinds_of_the_prometheus_operator_are_refused_without_it_and_the_rest_is_applied() {
    let monitors = [
        ("prometheus-operator", "PodMonitor"),
        ("network-policy", "PodMonitor"),
        ("service-monitor", "ServiceMonitor"),
    ];
    for (name, monitor) in monitors {
        let overlay = format!("overlays/{name}");
        let error = Agent::try_apply(&overlay, PODOPSY).expect_err("the operator is not installed");
        assert!(error.contains(monitor) && error.contains("PrometheusRule"), "{overlay}: {error}");
        let unknown = error.lines().filter(|line| line.contains("no matches for kind"));
        assert_eq!(unknown.count(), 2, "{overlay}: {error}");
    }
}

/// Overlays whose kinds 1.20 knows, although the node is of another kind: the API server validates them.
#[test]
fn overlays_for_other_nodes_and_exports_are_accepted_by_the_api_server() {
    let names = ["k3s", "cri-o", "kind", "eks", "loki", "otel-collector"];
    Agent::apply("base");
    for name in names {
        let folder = manifests().join("overlays").join(name).display().to_string();
        let applied = try_kubectl(&["apply", "-k", &folder, "--dry-run=server"]);
        let applied = applied.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(applied.contains("daemonset.apps/podopsy-agent configured"), "{name}: {applied}");
    }
}

#[test]
fn the_outage_of_the_clusters_dns_is_undone() {
    let outage = Namespace::new("outage");
    // This cluster has no CoreDNS: a Deployment of its name.
    outage.create(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "coredns" },
        "spec": {
            "replicas": 2, "selector": { "matchLabels": { "app": "coredns" } },
            "template": template("coredns", json!({ "containers": [container("coredns", &["pause"], "16Mi")] })),
        },
    }));
    let script = manifests().join("chaos/dns-outage.sh").display().to_string();
    let run = |action: &str| sh(&format!("NAMESPACE=outage {script} {action}"));
    let replicas = || get(&["deployment", "-n", "outage", "coredns"])["spec"]["replicas"].clone();
    assert!(run("stop").contains("no outage"), "nothing to undo");
    let printed = run("start");
    assert!(printed.contains("brings back 2 replicas"), "{printed}");
    assert_eq!(replicas(), 0);
    assert!(run("start").contains("has begun already"), "the number to go back to is kept");
    let printed = run("stop");
    assert!(printed.contains("successfully rolled out"), "{printed}");
    assert_eq!(replicas(), 2);
}
