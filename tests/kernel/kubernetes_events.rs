//! A real kill and a real streak of failed lookups as Events on their pod, at a stub of the API server that validates
//! them as upstream does, and fails on demand. A real API server, compiled from Debian 12's source package, gets them in
//! tests/cluster/kills.rs.

use std::time::{Duration, Instant};

use crate::support;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podopsy_deliver::testing::api_server_stub::ApiServerStub;
use podopsy_harness::{ContainerSpec, Dns, PodSpec};
use serde_json::Value;
use support::agent::{Agent, SOON, get, until};
use support::{VICTIMS_IMAGE, node};

/// The Events with this reason.
fn events(stub: &ApiServerStub, reason: &str) -> Vec<Value> {
    let state = stub.state();
    state.events.values().filter(|event| event["reason"] == reason).cloned().collect()
}

#[test]
fn a_kill_that_kubernetes_does_not_show_and_failing_lookups_are_on_the_pod() {
    let (node, _) = node();
    let _dns = node.resolver("answer").expect("a resolver");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let stub = runtime.block_on(ApiServerStub::start(node.directory()));
    let file = |path: &std::path::Path| path.display().to_string();
    let (token, authority) = (file(&stub.token), file(&stub.authority));
    let mut arguments = vec!["--node", "n1", "--kubernetes-events", "--kubernetes-api", &stub.url];
    arguments.extend(["--kubernetes-token", &token, "--kubernetes-ca", &authority]);
    let mut agent = Agent::start(&node, &arguments);

    let container = ContainerSpec::new("api", VICTIMS_IMAGE).command(["pause"]).memory_limit(32 << 20);
    let dns = Dns::cluster(node.dns_address(), "shop");
    let pod =
        node.run_pod(PodSpec::new("shop", "basket").dns(dns).container(container)).expect("run the pod");
    let names = ["nxdomain-1.example.com", "nxdomain-2.example.com"];
    pod.exec("api", ["lookup", names[0], names[1], "--times", "4", "--every", "1"]).expect("look up");
    // The container keeps running: only the process that is started in it is killed.
    let _ = pod.exec("api", ["leak", "--fast"]);

    let wait = |reason: &str| {
        let end = Instant::now() + SOON;
        loop {
            if let Some(event) = events(&stub, reason).pop() {
                return event;
            }
            assert!(Instant::now() < end, "no {reason}: {:?}\n{}", stub.state().log, agent.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    let oom = wait("PodopsyOOMKilledWhileRunning");
    let regarding = &oom["regarding"];
    assert_eq!((&regarding["kind"], &regarding["apiVersion"]), (&"Pod".into(), &"v1".into()));
    assert_eq!((&regarding["namespace"], &regarding["name"]), (&"shop".into(), &"basket".into()));
    assert_eq!(regarding["uid"], pod.uid.as_str());
    assert_eq!(regarding["fieldPath"], "spec.containers{api}");
    assert_eq!((&oom["reportingController"], &oom["reportingInstance"]), (&"podopsy".into(), &"n1".into()));
    let note = oom["note"].as_str().expect("a note");
    for words in
        ["OOM killer killed leak[", "container's limit of 32 MiB", "shows no OOMKilled", "podopsy oom show"]
    {
        assert!(note.contains(words), "{note}");
    }
    let lookups = wait("PodopsyDNSLookupsFailing");
    assert!(
        lookups["note"].as_str().is_some_and(|note| note.contains("nxdomain-1.example.com")),
        "{lookups}"
    );
    assert_eq!(lookups["regarding"]["uid"], pod.uid.as_str());

    let delivered = "podopsy_export_delivered_total{destination=\"kubernetes_events\"} ";
    until("page on which it is delivered", || {
        let (_, page) = get(&agent.address, "/metrics", "*/*")?;
        let count = page.lines().find_map(|line| line.strip_prefix(delivered)?.parse::<f64>().ok());
        count.filter(|count| *count >= 2.0)
    });
    // A series' last event is written at the end.
    kill(Pid::from_raw(agent.pid() as i32), Signal::SIGTERM).expect("ask it to end");
    assert!(agent.process.0.wait().expect("its end").success());
    assert_eq!(events(&stub, "PodopsyOOMKilledWhileRunning").len(), 1, "one incident is one Event");
    let lookups = events(&stub, "PodopsyDNSLookupsFailing");
    assert_eq!((lookups.len(), &lookups[0]["series"]["count"]), (1, &8.into()), "{lookups:?}");
    assert!(stub.state().log.iter().all(|(_, status)| *status < 300), "{:?}", stub.state().log);
    assert!(!agent.log().contains("first-token"), "the token is nowhere");
}
