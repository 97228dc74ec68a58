//! Pods whose sandbox died: the kubelet makes another one, and starts the containers again in it.

use std::process::Command;
use std::time::Duration;

use crate::support;
use podopsy_harness::{ContainerSpec, PodSpec};
use serde_json::Value;
use support::node;

const MIB: i64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_pod_with_another_sandbox_is_one_pod_with_its_former_reason() {
    let (node, image) = node();
    let doomed = ContainerSpec::new("app", &image)
        .command(["leak", "--fast", "--wait", "2000"])
        .memory_limit(32 * MIB);
    let mut pod = node.run_pod(PodSpec::new("shop", "ledger").container(doomed)).expect("run the pod");
    pod.wait_exited("app", SOON).expect("it is killed");
    let former = pod.sandbox_id.clone();
    pod.replace_sandbox().expect("another sandbox");
    assert_ne!(pod.sandbox_id, former);

    let binaries = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let podopsy = |args: &[&str]| {
        let mut command = Command::new(&binaries[0]);
        let output =
            command.arg("--cri-socket").arg(node.cri_socket()).args(args).output().expect("run podopsy");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        eprintln!("podopsy {args:?}:\n{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let json = |args: &[&str]| serde_json::from_str::<Value>(&podopsy(args)).expect("JSON");
    let pods = json(&["pods", "-o", "json"]);
    let [one] = &pods.as_array().expect("a list")[..] else { panic!("{pods:#}") };
    assert_eq!((&one["sandbox_id"], &one["state"]), (&pod.sandbox_id.clone().into(), &"ready".into()));
    let containers = one["containers"].as_array().expect("a list");
    let attempts: Vec<_> = containers.iter().map(|one| &one["container"]["attempt"]).collect();
    assert_eq!(attempts, [1, 0], "{one:#}");
    assert_eq!(containers[1]["exit_code"], 137, "{one:#}");

    let table = podopsy(&["pods"]);
    let row = table.lines().find(|line| line.contains("ledger")).expect("a row");
    assert!(row.contains("app") && row.contains("(137)"), "{table}");
    let inspected = podopsy(&["inspect", "shop/ledger"]);
    let state = inspected.lines().find(|line| line.trim_start().starts_with("state")).unwrap_or_default();
    assert!(state.ends_with(" ready") && inspected.contains(&pod.sandbox_id), "{inspected}");
    assert!(!inspected.contains(&former), "{inspected}");
}
