//! `kubectl podopsy` through a real API server: `pods/exec`, RBAC, and an agent that is gone.

use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::*;

/// The plugin as a user has it: beside kubectl, in a folder of the PATH.
struct Plugin(tempfile::TempDir);

impl Plugin {
    fn install() -> Plugin {
        let folder = tempfile::tempdir().expect("a folder");
        let [podopsy, _] = podopsy_harness::podopsy(&|line| eprintln!("{line}")).expect("build podopsy");
        symlink(podopsy, folder.path().join("kubectl-podopsy")).expect("a link to podopsy");
        symlink(kubectl_path(), folder.path().join("kubectl")).expect("a link to kubectl");
        Plugin(folder)
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").expect("a PATH"));
        let program = self.0.path().join("kubectl-podopsy");
        Command::new(program).args(arguments).env("PATH", path).output().expect("start the plugin")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A second agent: the DaemonSet's pod, as a pod of its own with another node's name and another folder for its state.
fn second_agent(first: &str) {
    let mut pod = get(&["pod", "-n", "podopsy", first]);
    let mut spec = pod["spec"].take();
    for field in ["nodeName", "serviceAccount", "priority", "ephemeralContainers"] {
        spec.as_object_mut().expect("an object").remove(field);
    }
    let container = &mut spec["containers"][0];
    for variable in container["env"].as_array_mut().expect("variables") {
        match variable["name"].as_str() {
            Some("NODE_NAME") => *variable = json!({ "name": "NODE_NAME", "value": "node2" }),
            Some("PODOPSY_LISTEN") => variable["value"] = "[::]:9465".into(),
            _ => {}
        }
    }
    for probe in ["startupProbe", "livenessProbe", "readinessProbe", "ports"] {
        container.as_object_mut().expect("an object").remove(probe);
    }
    for volume in spec["volumes"].as_array_mut().expect("volumes") {
        if volume["name"] == "state" {
            *volume = json!({ "name": "state", "emptyDir": {} });
        }
    }
    // A DaemonSet adopts a pod with its labels that nothing controls, and then deletes one of the two.
    let _ = try_kubectl(&["-n", "podopsy", "delete", "configmap", "second", "--ignore-not-found"]);
    kubectl(&["-n", "podopsy", "create", "configmap", "second"]);
    let uid = get(&["configmap", "-n", "podopsy", "second"])["metadata"]["uid"].clone();
    let owner =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "second", "uid": uid, "controller": true });
    let labels = json!({ "app.kubernetes.io/name": "podopsy-agent", "second": "true" });
    let metadata = json!({ "name": "second-agent", "namespace": "podopsy", "labels": labels, "ownerReferences": [owner] });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
    create(&pod);
}

/// The nodes of the kills in a namespace, and what the plugin wrote to stderr.
fn nodes_of_kills(plugin: &Plugin, namespace: &str) -> (Vec<String>, Option<i32>, String) {
    let output = plugin.call(&["oom", "-n", namespace, "--since", "1h", "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let kills = report["incidents"].as_array().cloned().unwrap_or_default();
    let nodes = kills.iter().filter_map(|kill| kill["node"].as_str().map(str::to_owned));
    (nodes.collect(), output.status.code(), text(&output.stderr))
}

#[test]
fn the_fleet_is_asked_through_exec_and_an_agent_that_is_gone_is_named() {
    let agent = Agent::apply("base");
    let plugin = Plugin::install();
    second_agent(&agent.pod());
    kubectl(&["-n", "podopsy", "wait", "--for=condition=Ready", "pod/second-agent", "--timeout=120s"]);
    let answers = || {
        let output = plugin.call(&["pods", "-A", "-o", "json"]);
        (output.status.code() == Some(0)).then_some(())
    };
    until("answer of both agents", answers, || text(&plugin.call(&["pods", "-A"]).stderr));

    let shop = Namespace::new("fleet");
    shop.create(pod("orders", json!({ "containers": [container("api", &["leak", "--fast"], "24Mi")] })));
    let both = || {
        let (nodes, code, _) = nodes_of_kills(&plugin, "fleet");
        let has = |name: &str| nodes.iter().any(|node| node == name);
        (code == Some(0) && has("node1") && has("node2")).then_some(())
    };
    until("kill that both agents saw", both, || {
        format!("{:?}\n{}", nodes_of_kills(&plugin, "fleet"), shop.describe())
    });
    let listed = text(&plugin.call(&["events", "orders", "-n", "fleet"]).stdout);
    assert!(listed.contains("NODE") && listed.contains("node2"), "{listed}");
    let inspected = plugin.call(&["inspect", "orders", "-n", "fleet"]);
    assert!(text(&inspected.stdout).contains("fleet/orders"), "{inspected:?}");

    // Its agent has ended, and its pod is still listed.
    kubectl(&["-n", "podopsy", "delete", "pod", "second-agent", "--wait=false"]);
    let gone = || {
        let (nodes, code, error) = nodes_of_kills(&plugin, "fleet");
        let is_named = error.contains("no answer from node2");
        (code == Some(3) && is_named && nodes.iter().all(|node| node == "node1") && !nodes.is_empty())
            .then_some(())
    };
    let named = is_soon(gone);
    let rest = || (nodes_of_kills(&plugin, "fleet").1 == Some(0)).then_some(());
    until("answer of the other agent", rest, || format!("{:?}", nodes_of_kills(&plugin, "fleet")));
    assert!(named, "the agent was gone before it could be named: {:?}", nodes_of_kills(&plugin, "fleet"));
}

#[test]
fn live_commands_go_to_the_pods_own_node_and_histories_are_merged() {
    Agent::apply("base");
    let plugin = Plugin::install();
    let shop = Namespace::new("plugin");
    shop.create(pod("pricing", json!({ "containers": [container("api", &["burner"], "64Mi")] })));
    let leaker = container("api", &["leak", "--fast", "--wait", "1000"], "24Mi");
    shop.create(pod("orders", json!({ "containers": [leaker] })));
    shop.wait_ready("pricing");
    let call = |arguments: &[&str]| {
        let output = plugin.call(arguments);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };

    let file = plugin.0.path().join("pricing.folded");
    let profile = ["profile", "pricing", "-n", "plugin", "-d", "3s", "-o", file.to_str().expect("UTF-8")];
    let (code, _, error) = call(&profile);
    assert_eq!(code, Some(0), "{error}");
    let folded = std::fs::read_to_string(&file).expect("the profile is here");
    assert!(folded.contains("price_options") && folded.contains("plugin/pricing/api"), "{folded}");

    let watch = ["watch", "oom", "-n", "plugin", "--count", "1", "-d", "180s", "-o", "json"];
    let (code, events, error) = call(&watch);
    assert_eq!(code, Some(0), "{error}");
    let event: Value = serde_json::from_str(events.lines().next().expect("an event")).expect("JSON");
    assert_eq!((&event["pod"]["name"], &event["node"]), (&json!("orders"), &json!("node1")), "{event}");

    let (code, used, error) = call(&["top", "-n", "plugin", "-o", "json"]);
    assert_eq!(code, Some(0), "{error}");
    let used: Value = serde_json::from_str(&used).expect("JSON");
    let rows = used["rows"].as_array().expect("rows");
    let pricing = rows.iter().find(|row| row["pod"] == "pricing").expect("pricing");
    assert_eq!(pricing["node"], "node1", "{used}");
    assert!(pricing["cpu_millis"].as_u64() > Some(50), "{used}");

    let (code, checks, error) = call(&["doctor", "--all-nodes"]);
    assert!(matches!(code, Some(0 | 3)) && checks.contains("CAP_BPF"), "{code:?} {checks} {error}");
    let restarted = || {
        let (_, listed, _) = call(&["restarts", "-n", "plugin"]);
        (listed.contains("orders") && listed.contains("OOMKilled")).then_some(())
    };
    until("restart with its reason", restarted, || format!("{:?}", call(&["restarts", "-n", "plugin"])));
    let (code, timeline, error) = call(&["timeline", "orders", "-n", "plugin"]);
    assert!(code == Some(0) && timeline.contains("OOM"), "{code:?} {timeline} {error}");
}

/// Polls while the pod's deletion takes: fifteen seconds at most.
fn is_soon(mut look: impl FnMut() -> Option<()>) -> bool {
    (0..30).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        look().is_some()
    })
}

#[test]
fn a_user_without_exec_gets_one_line() {
    Agent::apply("base");
    let plugin = Plugin::install();
    kubectl(&["-n", "podopsy", "create", "serviceaccount", "reader"]);
    let role = ["create", "role", "reader", "--verb=get,list", "--resource=pods"];
    kubectl(&[&["-n", "podopsy"], &role[..]].concat());
    kubectl(&[
        "-n",
        "podopsy",
        "create",
        "rolebinding",
        "reader",
        "--role=reader",
        "--serviceaccount=podopsy:reader",
    ]);
    let identity = "--as=system:serviceaccount:podopsy:reader";
    let can = try_kubectl(&["auth", "can-i", "create", "pods/exec", "-n", "podopsy", identity]);
    assert!(can.is_err(), "{can:?}");
    let config = kubeconfig_as("system:serviceaccount:podopsy:reader");
    let output = plugin.call(&["oom", "-A", "--kubeconfig", &config.path().display().to_string()]);
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(4), 1), "{error}");
    assert!(error.contains("pods/exec"), "{error}");
    kubectl(&["-n", "podopsy", "delete", "rolebinding,role,serviceaccount", "reader"]);
}

/// The administrator's kubeconfig, as another user.
fn kubeconfig_as(user: &str) -> tempfile::NamedTempFile {
    let config = kubectl(&["config", "view", "--raw", "--flatten", "--output=json"]);
    let mut config: Value = serde_json::from_str(&config).expect("kubectl writes JSON");
    config["users"][0]["user"]["as"] = user.into();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), config.to_string()).expect("write it");
    file
}
