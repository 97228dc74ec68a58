//! The agent's metrics of a real OOM-killed pod in a real Prometheus, and in a real VictoriaMetrics, by Prometheus'
//! remote write or by the agent's OTLP; and promtool's check of the page.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support;
use podopsy_agent::api::tcp::listen;
use podopsy_harness::{ContainerSpec, Dns, PodSpec};
use serde_json::Value;
use support::agent::{Agent, get, prometheus, until, value};
use support::dns_sandbox::{in_dns_sandbox, unpacked};
use support::{Running, VICTIMS_IMAGE, node, require_root};

const MIB: i64 = 1 << 20;

/// Starts a VictoriaMetrics; returns it and its address.
fn victoria_metrics(folder: &Path, program: &str, more: &[&str]) -> (Running, String) {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its number");
    let mut command = Command::new(unpacked(program));
    command.args(more);
    command.arg(format!("-httpListenAddr={free}"));
    command.arg(format!("-storageDataPath={}", folder.join("victoria-metrics").display()));
    // Queries must find samples at once, and by default its caches take a share of the machine's memory.
    command.args(["-search.latencyOffset=0s", "-search.disableCache", "-memory.allowedBytes=64MB"]);
    let log = fs::File::create(folder.join("victoria-metrics.log")).expect("its log");
    let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("start VictoriaMetrics");
    (Running(child), free.to_string())
}

#[test]
fn prometheus_has_the_zero_the_kill_and_the_incident() {
    let (node, _) = node();
    // No server listens there: the page then has the exports' metrics, which promtool checks.
    let agent = Agent::start(&node, &["--loki-url", "http://127.0.0.1:9"]);
    let address = agent.address.clone();
    let (_victoria, victoria) = victoria_metrics(node.directory(), "usr/bin/victoria-metrics", &[]);
    let write = format!("remote_write: [{{url: 'http://{victoria}/api/v1/write'}}]\n");
    let (_prometheus, prometheus) = prometheus(node.directory(), &address, "1s", &write);
    let _dns = node.resolver("answer").expect("a resolver");
    let container = ContainerSpec::new("api", VICTIMS_IMAGE)
        .command(["pause"])
        .memory_limit(32 * MIB)
        .single_process_oom_kill();
    let asks =
        ContainerSpec::new("asks", VICTIMS_IMAGE).command(["lookup", "api.example.com", "--every", "300"]);
    let dns = Dns::cluster(node.dns_address(), "shop");
    let pod = PodSpec::new("shop", "basket").dns(dns).container(container).container(asks);
    let pod = node.run_pod(pod).expect("run the pod");

    let series = "podopsy_oom_kills_total%7Bnamespace=%22shop%22,pod=%22basket%22,container=%22api%22%7D";
    // First a zero, so that the first kill is an increase.
    until("series before the kill", || value(&prometheus, series).filter(|kills| *kills == 0.0));
    let _ = pod.exec("api", ["leak", "--fast"]);
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
    // The same series is in VictoriaMetrics, with the labels that Prometheus gave it on the way.
    let there = "podopsy_oom_kills_total%7Bnamespace=%22shop%22,pod=%22basket%22,container=%22api%22,\
                 job=%22podopsy%22,cluster=%22test%22%7D";
    until("kill in VictoriaMetrics", || value(&victoria, there).filter(|kills| *kills == 1.0));
    let quantile = "histogram_quantile(0.5,sum(increase(podopsy_dns_latency_seconds_bucket%7Bpod=%22basket%22,\
                    container=%22asks%22%7D[5m]))by(le))";
    let median = until("median of DNS latency in VictoriaMetrics", || value(&victoria, quantile));
    assert!(median > 1e-6 && median < 5.0, "{median} s");
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
    promtool.stdin.take().expect("piped").write_all(page.as_bytes()).expect("write the page to it");
    let zero = "podopsy_export_lost_total{destination=\"loki\",reason=\"queue_full\"} 0\n";
    assert!(page.contains(zero), "{page}");
    let checked = promtool.wait_with_output().expect("promtool ends");
    let output = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success() && output.is_empty(), "{}\n{page}", String::from_utf8_lossy(&output));
}

/// The names of all series on a page of metrics.
fn names_on(page: &str) -> BTreeSet<String> {
    let samples = page.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    samples.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn otlp_metrics_have_the_names_of_a_scrape() {
    let (node, _) = node();
    // Debian 12's takes no OTLP, and Debian 13's Prometheus is built without.
    let (program, naming) = ("../debian-13/usr/bin/victoria-metrics", "-opentelemetry.usePrometheusNaming");
    let (_victoria, victoria) = victoria_metrics(node.directory(), program, &[naming]);
    let url = format!("--otlp-metrics-url=http://{victoria}/opentelemetry/v1/metrics");
    let agent = Agent::start(&node, &["--node", "n1", &url, "--otlp-metrics-every=1s"]);
    let _dns = node.resolver("answer").expect("a resolver");
    let container = ContainerSpec::new("api", VICTIMS_IMAGE)
        .command(["pause"])
        .memory_limit(32 * MIB)
        .single_process_oom_kill();
    // It still runs after the kill, so that each family of the page is also on a later page.
    let asks = ContainerSpec::new("asks", VICTIMS_IMAGE)
        .command(["lookup", "api.example.com", "--every", "300"])
        .memory_limit(64 * MIB);
    let dns = Dns::cluster(node.dns_address(), "shop");
    let pod = PodSpec::new("shop", "basket").dns(dns).container(container).container(asks);
    let pod = node.run_pod(pod).expect("run the pod");

    let of = |container: &str| {
        format!(
            "%7Bservice_name=%22podopsy%22,service_instance_id=%22n1%22,k8s_namespace_name=%22shop%22,k8s_pod_name=%22basket%22,\
             k8s_container_name=%22{container}%22%7D"
        )
    };
    let kills = format!("podopsy_oom_kills_total{}", of("api"));
    until("series before the kill", || value(&victoria, &kills).filter(|kills| *kills == 0.0));
    let _ = pod.exec("api", ["leak", "--fast"]);
    until("kill", || value(&victoria, &kills).filter(|kills| *kills == 1.0));
    let quantile = format!(
        "histogram_quantile(0.5,sum(increase(podopsy_dns_latency_seconds_bucket{}[5m]))by(le))",
        of("asks")
    );
    let median =
        until("median of DNS latency", || value(&victoria, &quantile).filter(|median| *median > 0.0));
    assert!(median > 1e-6 && median < 5.0, "{median} s");

    // A rule finds the same names by either way.
    let (_, page) = get(&agent.address, "/metrics", "text/plain").expect("a page");
    let names = names_on(&page);
    let there = until("series of each name that the page has", || {
        let (_, body) = get(&victoria, "/api/v1/label/__name__/values", "*/*")?;
        let answer: Value = serde_json::from_str(&body).ok()?;
        let there: BTreeSet<String> = serde_json::from_value(answer["data"].clone()).ok()?;
        names.is_subset(&there).then_some(there)
    });
    assert_eq!(there, names);
    let lost = page
        .lines()
        .filter(|line| line.starts_with("podopsy_export_lost_total{destination=\"otlp_metrics\""));
    let lost: Vec<_> = lost.collect();
    assert!(!lost.is_empty() && lost.iter().all(|line| line.ends_with(" 0")), "{lost:?}");
}

/// CPU seconds of a process so far.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the agent runs");
    let (_, fields) = stat.rsplit_once(") ").expect("the program's name");
    let ticks: f64 =
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<f64>().expect("a number")).sum();
    ticks / 100.0
}

/// Asks by eight connections, each of which asks again when it has its answer, for a while; returns the number of answers.
fn ask_without_end(address: &str, request: &'static str, time: Duration) -> usize {
    let end = Instant::now() + time;
    let threads: Vec<_> = (0..8)
        .map(|at| {
            let address = address.to_owned();
            std::thread::spawn(move || {
                let mut stream = BufReader::new(TcpStream::connect(address).expect("connect"));
                let mut answers = 0;
                while Instant::now() < end {
                    let format =
                        if (answers + at) % 2 == 0 { "text/plain" } else { "application/openmetrics-text" };
                    let request = request.replace("FORMAT", format);
                    stream.get_mut().write_all(request.as_bytes()).expect("ask");
                    let mut length = 0;
                    loop {
                        let mut line = String::new();
                        stream.read_line(&mut line).expect("a header");
                        if let Some(text) = line.to_lowercase().strip_prefix("content-length:") {
                            length = text.trim().parse().expect("a length");
                        }
                        if line.trim().is_empty() {
                            break;
                        }
                    }
                    stream.read_exact(&mut vec![0; length]).expect("the page");
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().expect("it ends")).sum()
}

#[test]
fn clients_that_ask_without_end_cost_a_fiftieth_of_a_cpu() {
    require_root();
    const TIME: Duration = Duration::from_secs(10);
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = Path::new("/nonexistent/podopsy-test.sock");
    let agent = Agent::start_in(folder.path(), runtime, &["--growth", "off"]);
    let used = |work: &mut dyn FnMut()| {
        let (began, before) = (Instant::now(), cpu_seconds(agent.pid()));
        work();
        (cpu_seconds(agent.pid()) - before) / began.elapsed().as_secs_f64()
    };
    // The start's own work is over.
    std::thread::sleep(Duration::from_secs(3));
    let at_rest = used(&mut || std::thread::sleep(TIME));
    let requests = [
        ("both formats", "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: FORMAT\r\n\r\n"),
        ("health", "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("no such path", "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"),
    ];
    for (what, request) in requests {
        let mut answers = 0;
        let with = used(&mut || answers = ask_without_end(&agent.address, request, TIME));
        println!("{what}: {answers} answers in {TIME:?}, {with:.3} CPU, {at_rest:.3} at rest");
        assert!(with - at_rest < 0.02, "{what}: {with} CPU, {at_rest} at rest");
        assert!(answers > 50, "{what}: {answers}");
    }
    let (_, page) = get(&agent.address, "/metrics", "text/plain").expect("a page");
    assert!(page.contains("podopsy_shedding{what=\"dns_failures\"} 0"), "{page}");
}

#[test]
fn the_listener_accepts_ipv4_and_ipv6_even_with_bindv6only() {
    require_root();
    in_dns_sandbox(|_| {
        // With this setting, [::] accepts only IPv6 unless the socket asks for both.
        fs::write("/proc/sys/net/ipv6/bindv6only", "1").expect("our own network's setting");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _entered = runtime.enter();
        let listener = listen("[::]:0".parse().expect("an address")).expect("listen");
        let port = listener.local_addr().expect("its address").port();
        for host in ["127.0.0.1", "::1"] {
            TcpStream::connect((host, port)).unwrap_or_else(|error| panic!("{host}: {error}"));
        }
    });
}
