//! podopsy in an ephemeral container of a real kubelet, by the alpha API of Kubernetes 1.20.

use serde_json::{Value, json};

use crate::support::*;

/// How many pods of each sort; the pod's limit is that of an ordinary small application.
const RUNS: usize = 10;
const SMALL: &str = "24Mi";

/// Starts podopsy in an ephemeral container of a pod.
fn debug(namespace: &str, pod: &str, command: &[&str]) {
    let image = format!("--image={PODOPSY}");
    // From 1.23 on, kubectl does not know the alpha API of 1.20.
    let debug = ["alpha", "debug", "-n", namespace, pod, &image, "--target=app", "--container=podopsy"];
    old_kubectl(&[&debug[..], &["--image-pull-policy=IfNotPresent", "--"], command].concat());
}

/// The state in which podopsy's container ended, and what it wrote.
fn wait_end(shop: &Namespace, pod: &str) -> (Value, String) {
    let status = || {
        let statuses = shop.pods(pod).first()?["status"]["ephemeralContainerStatuses"].clone();
        let state = statuses[0]["state"]["terminated"].clone();
        (!state.is_null()).then_some(state)
    };
    let state = until("end of podopsy", status, || shop.describe());
    (state, kubectl(&["-n", shop.0, "logs", pod, "--container=podopsy"]))
}

fn restarts(shop: &Namespace, pod: &str) -> u64 {
    let pods = shop.pods(pod);
    pods[0]["status"]["containerStatuses"][0]["restartCount"].as_u64().expect("a count")
}

#[test]
fn an_ephemeral_container_sees_the_failed_lookups_of_its_pod() {
    let shop = Namespace::new("debug");
    // Enough for podopsy beside the application.
    let app = container("app", &["lookup", "--every", "300", "nxdomain.example.com"], "96Mi");
    shop.create(pod("pricing", json!({ "containers": [app] })));
    shop.wait_ready("pricing");
    debug("debug", "pricing", &["/podopsy", "dns", "--for", "5s"]);
    let (state, log) = wait_end(&shop, "pricing");
    assert_ne!(state["reason"], "OOMKilled", "{state:#}\n{log}");
    assert!(log.contains("nxdomain.example.com"), "{state:#}\n{log}");
    // It does no harm.
    assert_eq!(restarts(&shop, "pricing"), 0, "{}", shop.describe());
}

#[test]
fn in_a_small_pod_podopsy_fits_or_refuses_and_the_application_restarts_as_without_it() {
    let shop = Namespace::new("small");
    let names = |sort: &str| (0..RUNS).map(|run| format!("{sort}-{run}")).collect::<Vec<_>>();
    let (debugged, alone) = (names("debugged"), names("alone"));
    for name in debugged.iter().chain(&alone) {
        let mut app = container("app", &["lookup", "--every", "300", "nxdomain.example.com"], SMALL);
        app["resources"]["requests"] = json!({ "memory": "4Mi", "cpu": "1m" });
        shop.create(pod(name, json!({ "containers": [app] })));
    }
    debugged.iter().chain(&alone).for_each(|name| shop.wait_ready(name));
    debugged.iter().for_each(|name| debug("small", name, &["/podopsy", "dns", "--for", "5s"]));
    let mut refused = 0;
    for name in &debugged {
        let (state, log) = wait_end(&shop, name);
        assert_ne!(state["reason"], "OOMKilled", "{name}: {state:#}\n{log}");
        let has_refused = log.contains("MiB) are left") && log.contains("on the node instead");
        assert!(has_refused || log.contains("nxdomain.example.com"), "{name}: {state:#}\n{log}");
        refused += usize::from(has_refused);
    }
    let count = |names: &[String]| names.iter().map(|name| restarts(&shop, name)).sum::<u64>();
    eprintln!(
        "{refused} of {RUNS} refused; restarts {} with podopsy, {} without",
        count(&debugged),
        count(&alone)
    );
    assert_eq!((count(&debugged), count(&alone)), (0, 0), "{}", shop.describe());
}
