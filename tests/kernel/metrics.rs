//! The agent's metrics as a real Prometheus has them, of a real pod that is OOM-killed; and promtool's word on the page.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podopsy_harness::{ContainerSpec, Node, PodSpec};
use serde_json::Value;
use support::place::unpacked;
use support::{Running, VICTIMS_IMAGE, node};

const MIB: i64 = 1 << 20;
const SOON: Duration = Duration::from_secs(90);

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(began.elapsed() < SOON, "no {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Head and body of an answer; None: nobody answers yet.
fn get(address: &str, path: &str, accept: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut all = String::new();
    stream.read_to_string(&mut all).ok()?;
    all.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.to_owned()))
}

/// The agent, and where it answers.
fn agent(node: &Node) -> (Running, String) {
    let [_, program] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let log = node.directory().join("agent.log");
    let mut command = Command::new(program);
    command.arg("--cri-socket").arg(node.cri_socket()).args(["--listen", "127.0.0.1:0"]);
    command.arg("--socket").arg(node.directory().join("agent.sock"));
    // Nobody listens there: that changes nothing, and promtool sees what is said of it.
    command.args(["--loki-url", "http://127.0.0.1:9"]);
    let child =
        command.stdout(Stdio::null()).stderr(fs::File::create(&log).expect("the agent's log")).spawn();
    let child = Running(child.expect("start the agent"));
    let address = until("agent that records", || {
        let said = fs::read_to_string(&log).ok().filter(|said| said.contains("recording"))?;
        let (_, rest) = said.split_once("address=")?;
        Some(rest.split_whitespace().next()?.to_owned())
    });
    (child, address)
}

/// A Prometheus that scrapes it, and where that answers.
fn prometheus(folder: &Path, agent: &str) -> (Running, String) {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its number");
    let config = folder.join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s}}\n\
         scrape_configs:\n\
         - job_name: podopsy\n\
         \x20 honor_labels: true\n\
         \x20 static_configs: [{{targets: ['{agent}']}}]\n"
    );
    fs::write(&config, text).expect("write its configuration");
    let mut command = Command::new(unpacked("usr/bin/prometheus"));
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()));
    command.arg(format!("--web.listen-address={free}")).arg("--enable-feature=exemplar-storage");
    let log = fs::File::create(folder.join("prometheus.log")).expect("its log");
    let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("start Prometheus");
    (Running(child), free.to_string())
}

/// The value of the one series that a query finds.
fn value(prometheus: &str, query: &str) -> Option<f64> {
    let (_, body) = get(prometheus, &format!("/api/v1/query?query={query}"), "*/*")?;
    let answer: Value = serde_json::from_str(&body).ok()?;
    match answer["data"]["result"].as_array()?.as_slice() {
        [one] => one["value"][1].as_str()?.parse().ok(),
        _ => None,
    }
}

#[test]
fn prometheus_has_the_zero_the_kill_and_the_incident() {
    let (node, _) = node();
    let (_agent, address) = agent(&node);
    let folder: PathBuf = node.directory().to_owned();
    let (_prometheus, prometheus) = prometheus(&folder, &address);
    let container = ContainerSpec::new("api", VICTIMS_IMAGE)
        .command(["leak", "--fast", "--wait", "15000"])
        .memory_limit(32 * MIB);
    let _pod = node.run_pod(PodSpec::new("shop", "basket").container(container)).expect("run the pod");

    let series = "podopsy_oom_kills_total%7Bnamespace=%22shop%22,pod=%22basket%22,container=%22api%22%7D";
    // First a zero, so that the first kill is an increase.
    until("series before the kill", || value(&prometheus, series).filter(|kills| *kills == 0.0));
    until("kill", || value(&prometheus, series).filter(|kills| *kills == 1.0));
    let increase = format!("increase({series}[5m])");
    until("increase", || value(&prometheus, &increase).filter(|kills| *kills > 0.0));
    let ends = "start=1&end=4102444800";
    let exemplar = until("exemplar", || {
        let path = format!("/api/v1/query_exemplars?query={series}&{ends}");
        let answer: Value = serde_json::from_str(&get(&prometheus, &path, "*/*")?.1).ok()?;
        answer["data"][0]["exemplars"][0]["labels"]["incident_id"].as_str().map(str::to_owned)
    });
    assert!(exemplar.contains('-'), "{exemplar}");
    until("incident by its limit", || {
        value(&prometheus, "sum(podopsy_oom_incidents_total%7Bpod=%22basket%22%7D)").filter(|n| *n == 1.0)
    });
    let rss = value(&prometheus, "process_resident_memory_bytes").expect("what the agent costs");
    assert!(rss > 4e6, "{rss}");

    // What is not OpenMetrics is read by everything else, and by promtool.
    let (head, page) = get(&address, "/metrics", "text/plain").expect("a page");
    assert!(head.contains("version=0.0.4"), "{head}");
    let mut promtool = Command::new(unpacked("usr/bin/promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start promtool");
    promtool.stdin.take().expect("piped").write_all(page.as_bytes()).expect("hand it the page");
    let zero = "podopsy_export_lost_total{destination=\"loki\",reason=\"queue_full\"} 0\n";
    assert!(page.contains(zero), "{page}");
    let said = promtool.wait_with_output().expect("promtool ends");
    let words = [said.stdout, said.stderr].concat();
    assert!(said.status.success() && words.is_empty(), "{}\n{page}", String::from_utf8_lossy(&words));
}
