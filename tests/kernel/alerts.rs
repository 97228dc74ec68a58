//! The rules, the dashboard and their manifests: promtool checks each alert, each metric name is on a real agent's
//! page, and a real kill goes through Prometheus and Alertmanager to a webhook.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::support;
use podopsy_harness::{ContainerSpec, PodSpec};
use serde_json::Value;
use support::agent::{Agent, SOON, get, prometheus, until, value};
use support::dns_sandbox::unpacked;
use support::{Running, VICTIMS_IMAGE, node};

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

fn read(path: &str) -> String {
    let path = manifests().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> serde_yaml_ng::Value {
    serde_yaml_ng::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn promtool(arguments: &[&str]) {
    let mut promtool = Command::new(unpacked("usr/bin/promtool"));
    let done =
        promtool.args(arguments).current_dir(manifests().join("prometheus")).output().expect("promtool");
    let output = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(done.status.success(), "{arguments:?}: {output}");
}

/// The names of podopsy's metrics in a text, as Prometheus stores them.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.filter(|word| word.starts_with("podopsy_")).map(str::to_owned).collect()
}

/// Names on the agent's page, with what a histogram is stored as.
fn on_page(page: &str) -> BTreeSet<String> {
    let mut on_page = BTreeSet::new();
    for line in page.lines() {
        let mut words = line.strip_prefix("# TYPE ").into_iter().flat_map(|rest| rest.split(' '));
        if let (Some(name), Some(kind)) = (words.next(), words.next()) {
            on_page.insert(if kind == "histogram" { format!("{name}_bucket") } else { name.to_owned() });
        }
    }
    on_page
}

#[test]
fn promtool_agrees() {
    promtool(&["check", "rules", "podopsy.rules.yaml"]);
    promtool(&["test", "rules", "podopsy.rules.test.yaml"]);
}

#[test]
fn the_pod_monitor_finds_the_pods_and_alertmanager_reads_its_example() {
    // By their labels, and the name of a port.
    let monitor = yaml("components/prometheus-operator/podmonitor.yaml");
    let template = yaml("base/daemonset.yaml")["spec"]["template"].clone();
    let wanted = monitor["spec"]["selector"]["matchLabels"].as_mapping().expect("labels");
    for (name, value) in wanted {
        assert_eq!(&template["metadata"]["labels"][name], value);
    }
    let container = &template["spec"]["containers"][0];
    let port = &monitor["spec"]["podMetricsEndpoints"][0]["port"];
    assert_eq!(&container["ports"][0]["name"], port);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(&container[probe]["httpGet"]["port"], port, "{probe}");
    }
    let config = manifests().join("prometheus/alertmanager.example.yaml");
    let done =
        Command::new(unpacked("usr/bin/amtool")).arg("check-config").arg(config).output().expect("amtool");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&[done.stdout, done.stderr].concat()));
}

/// Starts a webhook; returns its address and the posted bodies.
fn webhook() -> (SocketAddr, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind the webhook");
    let address = listener.local_addr().expect("its address");
    let (send, posted) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().expect("the stream again"));
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("the body");
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = send.send(serde_json::from_slice(&body).expect("JSON"));
        }
    });
    (address, posted)
}

/// Starts an Alertmanager without group delays; returns it and its address.
fn alertmanager(folder: &Path, webhook: SocketAddr) -> (Running, String) {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its number");
    let config = folder.join("alertmanager.yml");
    let text = format!(
        "route: {{receiver: test, group_by: ['...'], group_wait: 0s, group_interval: 1s}}\n\
         receivers: [{{name: test, webhook_configs: [{{url: 'http://{webhook}/'}}]}}]\n"
    );
    fs::write(&config, text).expect("write its configuration");
    // Debian's has its templates at a fixed path: what was unpacked beside the system is put there, for it alone.
    let program = unpacked("usr/bin/prometheus-alertmanager");
    let share = unpacked("usr/share/prometheus/alertmanager/default.tmpl");
    let share = share.ancestors().nth(3).expect("usr/share");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", r#"mount --bind "$0" /usr/share && exec "$@""#])
        .arg(share)
        .arg(program);
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.path={}", folder.join("alertmanager").display()));
    command.arg(format!("--web.listen-address={free}")).arg("--cluster.listen-address=");
    let log = fs::File::create(folder.join("alertmanager.log")).expect("its log");
    let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("start Alertmanager");
    (Running(child), free.to_string())
}

#[test]
fn a_kill_that_kubernetes_does_not_show_reaches_the_webhook() {
    let (node, _) = node();
    let agent = Agent::start(&node, &[]);
    let (webhook, posted) = webhook();
    let (_alertmanager, alertmanager) = alertmanager(node.directory(), webhook);
    until("Alertmanager", || {
        get(&alertmanager, "/-/ready", "*/*").filter(|(head, _)| head.contains(" 200 "))
    });
    let rules = manifests().join("prometheus/podopsy.rules.yaml");
    let more = format!(
        "rule_files: ['{}']\nalerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager}']}}]}}]}}\n",
        rules.canonicalize().expect("the rules").display()
    );
    let (_prometheus, prometheus) = prometheus(node.directory(), &agent.address, "200ms", &more);
    let container = ContainerSpec::new("api", VICTIMS_IMAGE).command(["pause"]).memory_limit(32 << 20);
    let pod = node.run_pod(PodSpec::new("shop", "basket").container(container)).expect("run the pod");
    let series = "podopsy_oom_silent_kills_total%7Bpod=%22basket%22%7D";
    until("series before the kill", || value(&prometheus, series).filter(|kills| *kills == 0.0));

    // The container keeps running: only the process that is started in it is killed.
    let _ = pod.exec("api", ["leak", "--fast"]);
    let mut alerts = BTreeMap::new();
    let end = std::time::Instant::now() + SOON;
    while alerts.len() < 2 {
        let left = end.saturating_duration_since(std::time::Instant::now()).max(Duration::from_millis(1));
        let body = posted.recv_timeout(left).unwrap_or_else(|_| panic!("no alert; so far: {alerts:?}"));
        for alert in body["alerts"].as_array().expect("alerts") {
            alerts.insert(alert["labels"]["alertname"].as_str().expect("a name").to_owned(), alert.clone());
        }
    }
    for name in ["PodopsyOomKilled", "PodopsyOomKilledWhileRunning"] {
        let labels = &alerts[name]["labels"];
        let label = |name: &str| labels[name].as_str().unwrap_or_default().to_owned();
        let found = ["namespace", "pod", "container", "severity", "cluster"].map(label);
        assert_eq!(found, ["shop", "basket", "api", "warning", "test"], "{labels}");
        assert_eq!(alerts[name]["status"], "firing");
    }

    // Every name that rules and dashboard use is on this agent's page.
    let (_, page) = get(&agent.address, "/metrics", "text/plain").expect("a page");
    let known = on_page(&page);
    for file in ["prometheus/podopsy.rules.yaml", "grafana/podopsy.json"] {
        let used = names(&read(file));
        // If few names are found, the file was not parsed.
        assert!(used.len() >= 8, "{file}: {used:?}");
        let unknown: Vec<_> = used
            .into_iter()
            .filter(|name| !known.contains(name) && !PROSE.contains(&name.as_str()))
            .collect();
        assert!(unknown.is_empty(), "{file} uses what is not on the page: {unknown:?}; there are {known:?}");
    }
    serde_json::from_str::<Value>(&read("grafana/podopsy.json")).expect("the dashboard is JSON");
}

/// Names that this agent's page lacks, because the agent has no state folder.
const PROSE: [&str; 1] = ["podopsy_state_bytes"];
