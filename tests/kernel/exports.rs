//! A real OOM kill and a real DNS failure at Loki and at an OpenTelemetry collector: decoded by other crates and
//! compared with stdout. The collector is down until the agent ends; nothing is lost, and the counts of /metrics add
//! up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::support;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use opentelemetry_proto::tonic::metrics::v1::NumberDataPoint;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use podopsy_harness::{ContainerSpec, Node, PodSpec};
use prost::Message;
use serde_json::{Value, json};
use support::agent::{Agent, SOON, get, until};
use support::destination::Destination;
use support::{Running, VICTIMS_IMAGE, failed_lookup, node};

const MIB: i64 = 1 << 20;

/// Looked up at a server that does not exist.
const NAME: &str = "exports.podopsy.test";

/// The agent's page of metrics; None: it does not respond yet.
fn page_of(agent: &Agent) -> Option<String> {
    get(&agent.address, "/metrics", "*/*").map(|(_, page)| page)
}

/// Starts an agent that exports to both.
fn agent(node: &Node, loki: &Destination, otlp: &Destination) -> Agent {
    let token = node.directory().join("token");
    fs::write(&token, "Bearer of-the-test\n").expect("write a token");
    let state = node.directory().join("state").display().to_string();
    let (loki, otlp) = (format!("http://{}", loki.address), format!("http://{}/otlp", otlp.address));
    let header = format!("--otlp-header=Authorization=@{}", token.display());
    let mut arguments = vec!["--node", "n1", "--state-dir", &state];
    arguments.extend(["--loki-url", &loki, "--loki-header=X-Scope-OrgID=shop"]);
    arguments.extend(["--otlp-url", &otlp, "--otlp-metrics-every", "1s", &header]);
    Agent::start(node, &arguments)
}

/// Each line that Loki got: its stream's labels, and the value with time, line and metadata.
fn entries(loki: &Destination) -> Vec<(Value, Value)> {
    let mut all = Vec::new();
    for (head, body) in loki.received() {
        assert!(head.starts_with("post /loki/api/v1/push http/1.1\r\n"), "{head}");
        assert!(head.contains("x-scope-orgid: shop") && head.contains("content-type: application/json"));
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        for stream in body["streams"].as_array().expect("streams") {
            let values = stream["values"].as_array().expect("values").iter();
            all.extend(values.map(|value| (stream["stream"].clone(), value.clone())));
        }
    }
    all
}

/// The bodies that were posted to the collector at a path.
fn posted(otlp: &Destination, path: &str) -> Vec<Vec<u8>> {
    let (mut all, known) = (Vec::new(), ["/otlp/v1/logs", "/otlp/v1/metrics"]);
    for (head, body) in otlp.received() {
        let at = head.strip_prefix("post ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        assert!(known.contains(&at), "{head}");
        assert!(head.contains("authorization: bearer of-the-test\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        if at == path {
            all.push(body);
        }
    }
    all
}

/// The points of a container's metric, in the order of the requests.
fn points(otlp: &Destination, name: &str, container: &str) -> Vec<NumberDataPoint> {
    let mut all = Vec::new();
    for body in posted(otlp, "/otlp/v1/metrics") {
        let request = ExportMetricsServiceRequest::decode(body.as_slice()).expect("OTLP");
        let scopes = request.resource_metrics.into_iter().flat_map(|page| page.scope_metrics);
        for metric in scopes.flat_map(|scope| scope.metrics).filter(|metric| metric.name == name) {
            let Some(Data::Sum(sum)) = metric.data else { panic!("{name} is a sum") };
            assert!(sum.is_monotonic, "{name} only grows");
            all.extend(sum.data_points.into_iter().filter(|point| {
                attributes(&point.attributes).get("k8s.container.name").cloned() == string(container)
            }));
        }
    }
    all
}

/// Each record that the collector got, with the attributes of its resource.
fn records(otlp: &Destination) -> Vec<(BTreeMap<String, Any>, LogRecord)> {
    let mut all = Vec::new();
    for body in posted(otlp, "/otlp/v1/logs") {
        let request = ExportLogsServiceRequest::decode(body.as_slice()).expect("OTLP");
        for logs in request.resource_logs {
            let resource = attributes(&logs.resource.expect("a resource").attributes);
            for record in logs.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                all.push((resource.clone(), record));
            }
        }
    }
    all
}

fn attributes(all: &[KeyValue]) -> BTreeMap<String, Any> {
    let one = |pair: &KeyValue| Some((pair.key.clone(), pair.value.clone()?.value?));
    all.iter().filter_map(one).collect()
}

fn string(text: &str) -> Option<Any> {
    Some(Any::StringValue(text.to_owned()))
}

/// The sum of a metric's samples for a destination.
fn sum(page: &str, name: &str, destination: &str) -> f64 {
    let prefix = format!("{name}{{destination=\"{destination}\"");
    let samples = page.lines().filter(|line| line.starts_with(&prefix));
    samples.map(|line| line.rsplit_once(' ').expect("a value").1.parse::<f64>().expect("a number")).sum()
}

#[test]
fn a_silent_resolver_does_not_delay_the_exit() {
    support::require_root();
    let dir = tempfile::tempdir().expect("a folder");
    let silent = UdpSocket::bind("127.0.0.77:53").expect("a resolver's address");
    let resolv = dir.path().join("resolv.conf");
    fs::write(&resolv, "nameserver 127.0.0.77\noptions timeout:30 attempts:5\n").expect("write it");
    let [_, program] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let log = dir.path().join("agent.log");
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&resolv).arg(program);
    command.args(["--otlp-url", "http://collector.podopsy.test", "--otlp-metrics-every", "1s"]);
    command.args(["--cri-socket", "/nonexistent/podopsy-test.sock"]);
    command.arg("--socket").arg(dir.path().join("agent.sock"));
    let child = command.stdout(Stdio::null()).stderr(fs::File::create(&log).expect("its log")).spawn();
    let mut agent = Running(child.expect("start the agent"));
    silent.set_read_timeout(Some(SOON)).expect("a timeout");
    silent.recv(&mut [0; 512]).expect("it asks");
    let began = Instant::now();
    kill(Pid::from_raw(agent.0.id() as i32), Signal::SIGTERM).expect("send SIGTERM");
    assert!(agent.0.wait().expect("its end").success());
    // The C library's lookup would take two and a half minutes.
    assert!(
        began.elapsed() < SOON,
        "{:?}: {}",
        began.elapsed(),
        fs::read_to_string(&log).unwrap_or_default()
    );
}

#[test]
fn loki_and_a_collector_get_the_events_of_stdout() {
    let (node, _) = node();
    let (loki, otlp) = (Destination::start(true), Destination::start(false));
    let mut agent = agent(&node, &loki, &otlp);
    let page = until("page", || page_of(&agent));
    for zero in ["delivered_total", "retries_total", "lost_total", "queue_bytes"] {
        for destination in ["loki", "otlp_logs"] {
            let line = format!("podopsy_export_{zero}{{destination=\"{destination}\"");
            assert!(page.lines().any(|one| one.starts_with(&line)), "the first page lacks {line}:\n{page}");
        }
    }
    failed_lookup(NAME, 7);
    let container = ContainerSpec::new("api", VICTIMS_IMAGE)
        .command(["leak", "--fast", "--wait", "1000"])
        .memory_limit(32 * MIB);
    let pod = node.run_pod(PodSpec::new("shop", "basket").container(container)).expect("run the pod");

    let kinds =
        || entries(&loki).iter().map(|(labels, _)| labels["kind"].to_string()).collect::<BTreeSet<_>>();
    until("kill, incident and failed lookup at Loki", || {
        let wanted = ["\"oom.kill\"", "\"oom.incident\"", "\"dns.failure\""];
        wanted.iter().all(|kind| kinds().contains(*kind)).then_some(())
    });
    until("request that the collector refused", || otlp.refused.load(Relaxed).then_some(()));
    let page = until("page on which Loki has it all", || {
        let page = page_of(&agent)?;
        (sum(&page, "podopsy_export_waiting", "loki") == 0.0).then_some(page)
    });
    for destination in ["loki", "otlp_logs"] {
        let of = |name: &str| sum(&page, &format!("podopsy_export_{name}"), destination);
        assert_eq!(of("offered_total"), of("delivered_total") + of("lost_total") + of("waiting"), "{page}");
        assert!(of("offered_total") >= 3.0 && of("lost_total") == 0.0, "{page}");
    }
    assert!(sum(&page, "podopsy_export_queue_bytes", "otlp_logs") > 0.0, "{page}");

    // The collector is up again: queued events are sent at the end.
    otlp.up.store(true, Relaxed);
    kill(Pid::from_raw(agent.pid() as i32), Signal::SIGTERM).expect("send SIGTERM");
    assert!(agent.process.0.wait().expect("its end").success());
    let log = agent.log();
    assert!(!log.contains("of-the-test") && log.contains("export closed"), "{log}");

    // Each line of stdout arrived once, and nothing else did.
    let printed = fs::read_to_string(node.directory().join("agent.out")).expect("its events");
    let mut printed: Vec<&str> = printed.lines().collect();
    printed.sort_unstable();
    let (entries, records) = (entries(&loki), records(&otlp));
    let mut lines: Vec<&str> = entries.iter().map(|(_, value)| value[1].as_str().expect("a line")).collect();
    lines.sort_unstable();
    assert_eq!(lines, printed);
    let body = |record: &LogRecord| match record.body.clone().and_then(|body| body.value) {
        Some(Any::StringValue(line)) => line,
        other => panic!("{other:?}"),
    };
    let mut lines: Vec<String> = records.iter().map(|(_, record)| body(record)).collect();
    lines.sort_unstable();
    assert_eq!(lines, printed);

    of_the_kill(&pod.uid, &entries, &records);
    of_the_lookup(&entries, &records);

    let kills = points(&otlp, "podopsy_oom_kills", "api");
    let last = kills.last().expect("the kill is counted");
    assert_eq!(last.value, Some(Number::AsInt(1)), "{kills:?}");
    assert!(last.start_time_unix_nano < last.time_unix_nano, "{last:?}");
    let of = attributes(&last.attributes);
    assert_eq!(
        (of.get("k8s.pod.name").cloned(), of.get("k8s.namespace.name").cloned()),
        (string("basket"), string("shop"))
    );
    let incident = attributes(&last.exemplars.first().expect("an exemplar").filtered_attributes);
    assert!(incident.contains_key("podopsy.incident.id"), "{incident:?}");
}

#[test]
fn a_reload_sends_queued_events_to_the_new_address() {
    support::require_root();
    let dir = tempfile::tempdir().expect("a folder");
    let (loki, config) = (Destination::start(true), dir.path().join("agent.toml"));
    let set = |address: &str| {
        let text = format!("loki-url = \"http://{address}\"\nloki-header = [\"X-Scope-OrgID=shop\"]\n");
        fs::write(&config, text).expect("write the configuration");
    };
    set("127.0.0.1:9");
    let file = config.display().to_string();
    let nowhere = Path::new("/nonexistent/podopsy-test.sock");
    let agent = Agent::start_in(dir.path(), nowhere, &["--config", &file]);
    failed_lookup(NAME, 7);
    until("queued event", || {
        let waits = sum(&page_of(&agent)?, "podopsy_export_waiting", "loki") > 0.0;
        (waits && agent.log().contains("cannot deliver, retrying")).then_some(())
    });
    set(&loki.address);
    kill(Pid::from_raw(agent.pid() as i32), Signal::SIGHUP).expect("send SIGHUP");
    until("failed lookup at the new address", || {
        entries(&loki).iter().any(|(labels, _)| labels["kind"] == "dns.failure").then_some(())
    });
    assert!(agent.log().contains("read the configuration again; changed: loki-url"), "{}", agent.log());
    let page = page_of(&agent).expect("a page");
    assert_eq!(sum(&page, "podopsy_export_lost_total", "loki"), 0.0, "{page}");
}

#[test]
fn events_unsent_when_the_agent_was_killed_are_sent_by_the_next() {
    let (node, _) = node();
    let (loki, otlp) = (Destination::start(true), Destination::start(false));
    let mut killed = agent(&node, &loki, &otlp);
    failed_lookup(NAME, 7);
    let at_loki = || {
        let is_ours = |(labels, value): &&(Value, Value)| {
            labels["kind"] == "dns.failure"
                && value[2]["dns_name"].as_str().is_some_and(|name| name.starts_with(NAME))
        };
        entries(&loki).iter().filter(is_ours).count()
    };
    until("failed lookup at Loki", || (at_loki() > 0).then_some(()));
    until("position of each destination on disk", || {
        let text = fs::read_to_string(node.directory().join("state/exports.json")).ok()?;
        let positions: BTreeMap<String, i64> = serde_json::from_str(&text).ok()?;
        (positions.get("loki")? > positions.get("otlp_logs")?).then_some(())
    });
    killed.process.0.kill().expect("kill it");
    killed.process.0.wait().expect("its end");
    otlp.up.store(true, Relaxed);
    let _next = agent(&node, &loki, &otlp);
    until("failed lookup at the collector", || {
        records(&otlp).iter().any(|(_, record)| record.event_name == "podopsy.dns.failure").then_some(())
    });
    // A duplicate would have arrived by then.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(at_loki(), 1, "Loki must not get it again");
}

fn of_the_kill(uid: &str, entries: &[(Value, Value)], records: &[(BTreeMap<String, Any>, LogRecord)]) {
    let is_ours = |labels: &Value| labels["kind"] == "oom.kill" && labels["namespace"] == "shop";
    let (labels, value) = entries.iter().find(|(labels, _)| is_ours(labels)).expect("the kill");
    let wanted = json!({"service_name": "podopsy", "node": "n1", "kind": "oom.kill", "namespace": "shop"});
    assert_eq!(labels, &wanted);
    let event: Value = serde_json::from_str(value[1].as_str().expect("a line")).expect("an event");
    let metadata = &value[2];
    assert_eq!((&metadata["pod"], &metadata["container"]), (&json!("basket"), &json!("api")));
    assert_eq!((&metadata["pod_uid"], &metadata["comm"]), (&json!(uid), &json!("leak")));
    assert_eq!(metadata["pid"], event["process"]["pid"].to_string());
    assert_eq!(metadata["incident"], event["oom"]["incident"]);
    let nanoseconds: u64 = value[0].as_str().expect("a text").parse().expect("a number");

    let (resource, record) = records
        .iter()
        .find(|(resource, record)| {
            record.event_name == "podopsy.oom.kill" && resource.contains_key("k8s.pod.uid")
        })
        .expect("the kill");
    let of = |key: &str| resource.get(key).cloned();
    assert_eq!(of("k8s.namespace.name"), string("shop"));
    assert_eq!((of("k8s.pod.name"), of("k8s.pod.uid")), (string("basket"), string(uid)));
    assert_eq!((of("k8s.container.name"), of("k8s.node.name")), (string("api"), string("n1")));
    assert_eq!(of("k8s.container.restart_count"), Some(Any::IntValue(0)));
    assert_eq!(of("container.id"), string(event["container"]["id"].as_str().expect("an id")));
    assert_eq!(of("container.image.name"), string("registry.podopsy.test/shop/victims"));
    assert_eq!(record.severity_number(), SeverityNumber::Error);
    assert_eq!(record.time_unix_nano, nanoseconds);
    assert!(record.observed_time_unix_nano >= nanoseconds);
    let attributes = attributes(&record.attributes);
    let pid = event["process"]["pid"].as_i64().expect("a number");
    assert_eq!(attributes.get("process.pid"), Some(&Any::IntValue(pid)));
    assert_eq!(attributes.get("process.title").cloned(), string("leak"));
    let incident = event["oom"]["incident"].as_str().expect("its incident");
    assert_eq!(attributes.get("podopsy.incident.id").cloned(), string(incident));
}

fn of_the_lookup(entries: &[(Value, Value)], records: &[(BTreeMap<String, Any>, LogRecord)]) {
    let name = format!("{NAME}.");
    let is_ours =
        |value: &Value| value[2]["dns_name"].as_str().is_some_and(|it| it.trim_end_matches('.') == NAME);
    let (labels, value) = entries.iter().find(|(_, value)| is_ours(value)).expect("the lookup");
    assert!(labels["kind"].as_str().is_some_and(|kind| kind.starts_with("dns.")), "{labels}");
    assert_eq!(labels.get("namespace"), None, "this process is in no pod");
    assert_eq!(value[2]["outcome"], "unreachable");
    let (resource, record) = records
        .iter()
        .find(|(_, record)| {
            let asked = attributes(&record.attributes).get("dns.question.name").cloned();
            record.event_name == "podopsy.dns.failure" && (asked == string(NAME) || asked == string(&name))
        })
        .expect("the lookup");
    assert!(!resource.contains_key("k8s.pod.name"), "{resource:?}");
    let attributes = attributes(&record.attributes);
    let of = |key: &str| attributes.get(key).cloned();
    assert_eq!((of("server.address"), of("server.port")), (string("127.0.0.9"), Some(Any::IntValue(53))));
    assert_eq!((of("network.transport"), of("error.type")), (string("udp"), string("unreachable")));
    assert_eq!(of("process.pid"), Some(Any::IntValue(std::process::id().into())));
    assert!(matches!(of("podopsy.dns.duration"), Some(Any::DoubleValue(time)) if time > 0.0));
    assert_eq!(record.severity_number(), SeverityNumber::Warn);
}
