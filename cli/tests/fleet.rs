//! `kubectl podopsy` from outside: a script in kubectl's place leads to real agents' sockets.
#![forbid(unsafe_code)]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/outcome.rs"]
mod outcome;
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use agent::TestAgent;
use jiff::{SignedDuration, Timestamp};
use outcome::{expect, text};
use podopsy_model::testing::{dns, incident, kill, owner};
use podopsy_model::{Event, EventKind};
use serde_json::{Value, json};
use support::SimulatedAgents;
use tokio::runtime::Runtime;

/// kubectl, as far as the plugin calls it: lists two agents, and executes podopsy here instead of in their pods.
const KUBECTL: &str = r#"#!/bin/sh
while :; do case "$1" in --context=*|--kubeconfig=*) shift;; *) break;; esac; done
case "$1" in
config) echo -n shop; exit;;
get)
    case "$*" in
    *"pods --namespace=podopsy"*) cat "$FAKE/agents.json"; exit;;
    *deployments.apps/web*) echo '{"spec":{"selector":{"matchLabels":{"app":"web"}}}}'; exit;;
    *"pods web-1 "*) echo '{"metadata":{"name":"web-1"},"spec":{"nodeName":"n2"},"status":{"phase":"Running"}}'; exit;;
    *"pods --namespace=shop"*) cat "$FAKE/pods.json"; exit;;
    *) echo 'Error from server (NotFound): there is no such thing' >&2; exit 1;;
    esac;;
exec)
    pod=$2
    if [ -e "$FAKE/forbidden" ]; then
        echo "Error from server (Forbidden): pods \"$pod\" is forbidden: User \"u\" cannot create resource \"pods/exec\"" >&2
        exit 1
    fi
    while [ "$1" != -- ]; do shift; done
    shift 2
    if [ "$1" = bridge ]; then exec "$PODOPSY" bridge --socket "$FAKE/$pod.sock"; fi
    echo "on $pod: $*"; printf 'hostile \033[2J\n'; echo 'a note' >&2; exit 0;;
esac
echo "fake kubectl: $*" >&2; exit 1
"#;

struct TestCluster {
    folder: tempfile::TempDir,
    agents: Vec<TestAgent>,
    runtime: Runtime,
}

impl TestCluster {
    fn start() -> TestCluster {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("kubectl"), KUBECTL).unwrap();
        fs::set_permissions(path.join("kubectl"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink(env!("CARGO_BIN_EXE_podopsy"), path.join("kubectl-podopsy")).unwrap();
        let pod = |n: u32| {
            json!({
                "metadata": { "name": format!("agent-{n}"), "namespace": "podopsy" },
                "spec": { "nodeName": format!("n{n}") }, "status": { "phase": "Running" },
            })
        };
        fs::write(path.join("agents.json"), json!({ "items": [pod(1), pod(2)] }).to_string()).unwrap();
        fs::write(path.join("pods.json"), json!({ "items": [] }).to_string()).unwrap();
        let agents = ["agent-1", "agent-2"].map(|pod| TestAgent::start(&runtime, path, pod)).into();
        TestCluster { folder, agents, runtime }
    }

    fn plugin(&self, arguments: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap();
        Command::new(self.folder.path().join("kubectl-podopsy"))
            .args(arguments)
            .env("PATH", format!("{}:{path}", self.folder.path().display()))
            .env("FAKE", self.folder.path())
            .env("PODOPSY", env!("CARGO_BIN_EXE_podopsy"))
            .output()
            .unwrap()
    }
}

fn oom(seconds_ago: i64, pod: &str, label: &str, id: &str) -> Event {
    let time = Timestamp::now() - SignedDuration::from_secs(seconds_ago);
    let event = kill(time, owner("shop", pod, &[("app", label)]), id, 9, false);
    let incident = podopsy_model::OomIncident { id: id.into(), ..incident() };
    Event { kind: EventKind::OomIncident, incident: Some(Box::new(incident)), ..event }
}

#[test]
fn kills_of_all_nodes_are_in_one_list_and_a_node_that_is_gone_is_named() {
    let mut cluster = TestCluster::start();
    for (agent, seconds, id) in [(0, 40, "aa-1"), (1, 30, "bb-1"), (0, 20, "aa-2"), (1, 10, "bb-2")] {
        cluster.agents[agent].put(oom(seconds, &format!("web-{id}"), "web", id));
    }
    cluster.agents[0].put(oom(7200, "old", "web", "aa-0"));
    let all = cluster.plugin(&["oom", "-A", "--since", "1h"]);
    let (out, err) = expect(&all, 0);
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..3], ["WHEN", "ID", "NODE"], "{out}");
    // The time has two words: the date and the clock.
    let found: Vec<(&str, &str)> = rows[1..].iter().map(|row| (row[2], row[3])).collect();
    assert_eq!(found, [("aa-1", "n1"), ("bb-1", "n2"), ("aa-2", "n1"), ("bb-2", "n2")]);
    assert!(err.contains("the agents of 2 nodes"), "{err}");

    let (one, _) = expect(&cluster.plugin(&["oom", "show", "bb-2", "-o", "json"]), 0);
    assert_eq!(serde_json::from_str::<Value>(&one).unwrap()["node"], "n2");
    let elsewhere = cluster.plugin(&["-n", "other", "oom", "show", "bb-2", "-o", "json"]);
    assert_eq!(text(&elsewhere.stdout), one, "an id needs no namespace");
    let (none, _) = expect(&cluster.plugin(&["oom", "-n", "other"]), 1);
    assert!(none.is_empty(), "{none}");

    cluster.agents[1].listener = None;
    let (out, err) = expect(&cluster.plugin(&["oom", "-A", "--since", "1h"]), 3);
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.contains("aa-1") && out.contains("aa-2") && !out.contains("bb-"), "{out}");
    let named: Vec<&str> =
        err.lines().filter(|line| line.contains("no answer from n2: no agent answers")).collect();
    assert_eq!(named.len(), 1, "{err}");
}

#[test]
fn events_are_those_of_an_owner_of_one_node_or_of_a_pod_that_is_gone() {
    let mut cluster = TestCluster::start();
    let at = |seconds| Timestamp::now() - SignedDuration::from_secs(seconds);
    cluster.agents[0].put(dns(at(3), owner("shop", "web-gone", &[("app", "web")]), "one.test"));
    cluster.agents[1].put(dns(at(2), owner("shop", "web-1", &[("app", "web")]), "two.test"));
    cluster.agents[1].put(dns(at(1), owner("shop", "db-1", &[("app", "db")]), "three.test"));
    let names = |arguments: &[&str]| -> Vec<String> {
        let (out, _) = expect(&cluster.plugin(&[arguments, &["-o", "json"]].concat()), 0);
        let name = |line: &str| {
            serde_json::from_str::<Value>(line).unwrap()["dns"]["name"].as_str().unwrap().to_owned()
        };
        out.lines().map(name).collect()
    };
    assert_eq!(names(&["events", "-A"]), ["one.test", "two.test", "three.test"]);
    assert_eq!(names(&["events", "deploy/web"]), ["one.test", "two.test"]);
    assert_eq!(names(&["events", "web-gone"]), ["one.test"]);
    assert_eq!(names(&["-l", "app!=web", "events"]), ["three.test"]);
    assert_eq!(names(&["events", "-A", "--node", "n2", "--most", "1"]), ["three.test"]);
    let (_, err) = expect(&cluster.plugin(&["events", "deploy/none"]), 1);
    assert!(err.contains("there is no such thing") && err.lines().count() == 1, "{err}");
}

#[test]
fn a_command_of_one_node_runs_in_the_agents_pod_there() {
    let cluster = TestCluster::start();
    let (out, err) =
        expect(&cluster.plugin(&["--context", "c", "dns", "web-1", "--failed", "--for", "5s"]), 0);
    assert_eq!(out, "on agent-2: dns shop/web-1 --failed --for=5s\nhostile \\x1b[2J\n");
    assert_eq!(err, "a note\n");
    let (_, err) = expect(&cluster.plugin(&["inspect", "pid:1"]), 2);
    assert!(err.contains("--node"), "{err}");
    let (out, _) = expect(&cluster.plugin(&["inspect", "pid:1", "--node", "n1"]), 0);
    assert!(out.starts_with("on agent-1: inspect pid:1\n"), "{out}");
}

/// Pods of two Jobs of a CronJob, and one of a Deployment.
fn pods_of_controllers() -> Value {
    let pod = |name: &str, node: &str, label: (&str, &str)| {
        json!({
            "metadata": { "name": name, "namespace": "shop", "uid": name, "labels": { label.0: label.1 } },
            "spec": { "nodeName": node }, "status": { "phase": "Running" },
        })
    };
    json!({ "items": [
        pod("nightly-29402881-x2v8p", "n1", ("job-name", "nightly-29402881")),
        pod("nightly-29402882-b4cdf", "n1", ("job-name", "nightly-29402882")),
        pod("cart-7d9c5b6f4-x2v8p", "n2", ("pod-template-hash", "7d9c5b6f4")),
    ] })
}

#[test]
fn the_beginning_of_a_name_and_a_cron_job_lead_to_pods_and_their_node() {
    let cluster = TestCluster::start();
    fs::write(cluster.folder.path().join("pods.json"), pods_of_controllers().to_string()).unwrap();
    let (out, _) = expect(&cluster.plugin(&["inspect", "cronjob/nightly"]), 0);
    assert!(
        out.starts_with("on agent-1: inspect shop/nightly-29402881-x2v8p shop/nightly-29402882-b4cdf\n"),
        "{out}"
    );
    let (_, err) = expect(&cluster.plugin(&["inspect", "nightly"]), 2);
    assert!(err.contains("shop/nightly-29402882-b4cdf (running, on n1)"), "{err}");
    let (_, err) = expect(&cluster.plugin(&["dns", "none"]), 1);
    assert!(err.contains("there is no pod shop/none"), "{err}");
    let (out, _) = expect(&cluster.plugin(&["dns", "cart", "--node", "n2"]), 0);
    assert!(out.starts_with("on agent-2: dns shop/cart-7d9c5b6f4-x2v8p\n"), "{out}");
}

#[test]
fn past_events_are_found_by_a_beginning_in_the_cluster_too() {
    let mut cluster = TestCluster::start();
    fs::write(cluster.folder.path().join("pods.json"), pods_of_controllers().to_string()).unwrap();
    let labels = [("pod-template-hash", "7d9c5b6f4")];
    let of_cart = owner("shop", "cart-7d9c5b6f4-x2v8p", &labels);
    cluster.agents[1].put(dns(Timestamp::now(), of_cart, "one.test"));
    cluster.agents[1].put(dns(Timestamp::now(), owner("shop", "other", &[]), "two.test"));
    let (out, _) = expect(&cluster.plugin(&["events", "cart", "-o", "json"]), 0);
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(out.contains("one.test"), "{out}");
    let (out, _) = expect(&cluster.plugin(&["events", "shop/other", "cart", "-n", "elsewhere"]), 0);
    assert_eq!(out.lines().count(), 2, "{out}");
}

#[test]
fn what_rbac_does_not_permit_is_one_line_and_exits_4() {
    let cluster = TestCluster::start();
    fs::write(cluster.folder.path().join("forbidden"), "").unwrap();
    let (out, err) = expect(&cluster.plugin(&["oom", "-A"]), 4);
    assert!(out.is_empty() && err.lines().count() == 1, "{out}{err}");
    assert!(err.contains("cannot create resource \"pods/exec\"") && err.contains("docs/fleet.md"), "{err}");
}

#[test]
fn an_agent_that_says_nothing_costs_no_more_than_the_timeout() {
    let mut cluster = TestCluster::start();
    cluster.agents[0].put(oom(5, "web", "web", "aa-1"));
    cluster.agents[1].listener = None;
    let silent = std::os::unix::net::UnixListener::bind(&cluster.agents[1].socket).unwrap();
    let began = Instant::now();
    let (out, err) = expect(&cluster.plugin(&["oom", "-A", "--timeout", "2s"]), 3);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(out.contains("aa-1") && err.contains("no answer from n2: no answer within 2s"), "{out}{err}");
    drop((silent, cluster.runtime));
}

/// Prints time and memory of the CLI with 500 agents that have 10,000 kills of the last hour each, and the time of a call of
/// kubectl. The bounds are the project's targets, on an idle machine and with an optimised build.
#[test]
#[ignore = "a measurement"]
fn five_hundred_agents() {
    let agents = SimulatedAgents::start(500, 10_000);
    for arguments in [&["oom", "-A", "--since", "1h"][..], &["events", "-A", "--most", "1000"]] {
        let folder = tempfile::tempdir().unwrap();
        let plugin = folder.path().join("kubectl-podopsy");
        symlink(std::env::var("PODOPSY").unwrap_or(env!("CARGO_BIN_EXE_podopsy").into()), &plugin).unwrap();
        let began = Instant::now();
        let output =
            Command::new(plugin).args(arguments).arg("--sockets").arg(agents.folder()).output().unwrap();
        let elapsed = began.elapsed();
        let (out, err) = expect(&output, 0);
        let peak =
            nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap().max_rss();
        eprintln!(
            "{}: {elapsed:.2?}, {} lines, peak of {} MB",
            arguments.join(" "),
            out.lines().count(),
            peak / 1000
        );
        eprintln!(
            "{err}the agents sent {} events in {:.1} MB",
            agents.sent().0,
            agents.sent().1 as f64 / 1e6
        );
        assert!(peak < 200_000, "{peak} kB");
    }
}
