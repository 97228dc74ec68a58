//! The engines that the agent speaks to and that no Debian package has: a real API server and a real Loki, by hand.
//!
//! ```text
//! KUBEBUILDER_ASSETS=DIR cargo test -p podopsy-tests --test engines -- --ignored kubectl
//! PODOPSY_LOKI=FILE cargo test -p podopsy-tests --test engines -- --ignored loki
//! ```
//!
//! `DIR` has etcd, kube-apiserver and kubectl, as setup-envtest leaves them; `FILE` is the program loki.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podopsy_harness::{ContainerSpec, Dns, Node, PodHandle, PodSpec};
use serde_json::Value;
use support::agent::{Agent, get, until};
use support::{Running, VICTIMS_IMAGE, node};

const MIB: i64 = 1 << 20;

/// A port of 127.0.0.1 that nobody has now.
fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its number").port()
}

/// A program under way, its output in a file beside its data.
fn start<S: AsRef<OsStr>>(program: &Path, folder: &Path, arguments: &[S]) -> Running {
    let name = program.file_name().expect("a program").to_string_lossy().into_owned();
    let log = fs::File::create(folder.join(format!("{name}.log"))).expect("its log");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Running(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display())))
}

fn named(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{variable} is not set: see above"))
}

/// A pod whose child is killed by the OOM killer, `kills` times, and whose lookups fail.
fn in_trouble(node: &Node, spec: PodSpec, kills: usize) -> PodHandle {
    let container = ContainerSpec::new("api", VICTIMS_IMAGE).command(["pause"]).memory_limit(32 * MIB);
    let dns = Dns::cluster(node.dns_address(), "shop");
    let pod = node.run_pod(spec.dns(dns).container(container)).expect("run the pod");
    pod.exec("api", ["lookup", "nxdomain-1.example.com", "--times", "5", "--every", "1"]).expect("look up");
    for _ in 0..kills {
        // Only whoever was started in it is killed.
        let _ = pod.exec("api", ["leak", "--fast"]);
    }
    pod
}

/// A control plane of one API server and its store, as root of it has it.
struct ControlPlane {
    _processes: [Running; 2],
    url: String,
    folder: PathBuf,
    kubectl: PathBuf,
}

impl ControlPlane {
    /// RBAC decides, and the agent's token is that of its service account.
    fn start(assets: &Path, folder: &Path) -> ControlPlane {
        let (etcd, peer, port) = (free(), free(), free());
        let (client, peer) = (format!("http://127.0.0.1:{etcd}"), format!("http://127.0.0.1:{peer}"));
        let data = format!("--data-dir={}", folder.join("etcd").display());
        let arguments = [
            data,
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
        ];
        let etcd = start(&assets.join("etcd"), folder, &arguments);
        let key = folder.join("accounts.key");
        let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").output();
        assert!(made.expect("openssl").status.success());
        let tokens =
            "of-root,root,1,system:masters\nof-the-agent,system:serviceaccount:podopsy:podopsy-agent,2\n";
        fs::write(folder.join("tokens.csv"), tokens).expect("write tokens");
        fs::write(folder.join("token"), "of-the-agent\n").expect("write the agent's");
        let (key, folder) = (key.display(), folder.to_owned());
        let arguments = [
            format!("--etcd-servers={client}"),
            format!("--cert-dir={}", folder.display()),
            format!("--token-auth-file={}", folder.join("tokens.csv").display()),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            // There are no controllers to make service accounts.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        let server = start(&assets.join("kube-apiserver"), &folder, &arguments);
        let url = format!("https://127.0.0.1:{port}");
        let plane = ControlPlane { _processes: [etcd, server], url, folder, kubectl: assets.join("kubectl") };
        until("API server that is ready", || plane.try_kubectl(&["get", "--raw", "/readyz"]));
        plane
    }

    /// Made by the server as it starts.
    fn authority(&self) -> PathBuf {
        self.folder.join("apiserver.crt")
    }

    fn try_kubectl(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new(&self.kubectl);
        command.args([
            "--token=of-root",
            "--server",
            &self.url,
            "--kubeconfig=/dev/null",
            "--certificate-authority",
        ]);
        let done = command.arg(self.authority()).args(arguments).output().expect("start kubectl");
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|| panic!("kubectl {}", arguments.join(" ")))
    }
}

#[test]
#[ignore = "needs a kube-apiserver: KUBEBUILDER_ASSETS"]
fn kubectl_describe_pod_shows_what_the_agent_told_a_real_api_server_by_hand() {
    let (node, _) = node();
    let _dns = node.resolver("answer").expect("a resolver");
    let folder = tempfile::tempdir().expect("a folder");
    let plane = ControlPlane::start(&named("KUBEBUILDER_ASSETS"), folder.path());
    ["podopsy", "shop"].iter().for_each(|name| drop(plane.kubectl(&["create", "namespace", name])));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let rights = root.join("manifests/components/kubernetes-events/rbac.yaml");
    plane.kubectl(&["apply", "-f", &rights.display().to_string()]);
    plane.kubectl(&["run", "basket", "--namespace=shop", "--image=example", "--restart=Never"]);
    let uid = ["get", "pod", "basket", "--namespace=shop", "--output=jsonpath={.metadata.uid}"];
    let uid = plane.kubectl(&uid);

    let path = |path: PathBuf| path.display().to_string();
    let (token, authority) = (path(plane.folder.join("token")), path(plane.authority()));
    let mut arguments = vec!["--node", "n1", "--kubernetes-events", "--kubernetes-api", &plane.url];
    arguments.extend(["--kubernetes-token", &token, "--kubernetes-ca", &authority]);
    let agent = Agent::start(&node, &arguments);
    let _pod = in_trouble(&node, PodSpec::new("shop", "basket").uid(&uid), 2);

    let events = ["get", "events.v1.events.k8s.io", "--namespace=shop", "--output=json"];
    let of = |reason: &str| -> Option<Value> {
        let all: Value = serde_json::from_str(&plane.try_kubectl(&events)?).ok()?;
        all["items"].as_array()?.iter().find(|event| event["reason"] == reason).cloned()
    };
    // The second kill is counted in the first one's Event.
    let oom = until("Event that was counted up", || {
        of("PodopsyOOMKilledWhileRunning").filter(|event| event["series"]["count"].as_u64() == Some(2))
    });
    assert_eq!(
        (&oom["regarding"]["uid"], &oom["reportingInstance"]),
        (&uid.as_str().into(), &"n1".into()),
        "{oom}"
    );
    let lookups = until("Event of lookups", || of("PodopsyDNSLookupsFailing"));
    assert!(
        lookups["note"].as_str().is_some_and(|note| note.contains("nxdomain-1.example.com")),
        "{lookups}"
    );

    let described = plane.kubectl(&["describe", "pod", "basket", "--namespace=shop"]);
    eprintln!("{described}");
    let shown =
        described.lines().find(|line| line.contains("PodopsyOOMKilledWhileRunning")).expect("the kill");
    assert!(shown.contains("Warning") && shown.contains("OOM killer killed leak["), "{shown}");

    // It has the rights that it needs, and no others.
    let agents = "--as=system:serviceaccount:podopsy:podopsy-agent";
    for (verb, what) in [("list", "pods"), ("get", "secrets"), ("list", "events.events.k8s.io")] {
        assert_eq!(
            plane.try_kubectl(&["auth", "can-i", verb, what, agents, "--all-namespaces"]),
            None,
            "{what}"
        );
    }
    let (_, page) = get(&agent.address, "/metrics", "*/*").expect("a page");
    let lost = |line: &&str| line.starts_with("podopsy_export_lost_total{destination=\"kubernetes_events\"");
    let lost: Vec<_> = page.lines().filter(lost).collect();
    assert!(!lost.is_empty() && lost.iter().all(|line| line.ends_with(" 0")), "{lost:?}");
}

/// What Loki finds: each line with all that is known of it.
fn found(loki: &str, query: &str) -> Option<Vec<(Value, String)>> {
    let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let path = format!("/loki/api/v1/query_range?limit=1000&since=1h&query={escaped}");
    let answer: Value = serde_json::from_str(&get(loki, &path, "*/*")?.1).ok()?;
    let mut all = Vec::new();
    for stream in answer["data"]["result"].as_array()? {
        let values = stream["values"].as_array()?.iter();
        all.extend(
            values.map(|value| (stream["stream"].clone(), value[1].as_str().unwrap_or_default().to_owned())),
        );
    }
    Some(all)
}

#[test]
#[ignore = "needs a Loki: PODOPSY_LOKI"]
fn a_real_loki_finds_each_line_by_label_and_by_metadata_pushed_and_by_otlp_by_hand() {
    let (node, _) = node();
    let _dns = node.resolver("answer").expect("a resolver");
    let folder = tempfile::tempdir().expect("a folder");
    let loki = format!("127.0.0.1:{}", free());
    let config = folder.path().join("loki.yaml");
    fs::write(&config, loki_config(folder.path(), &loki)).expect("write its configuration");
    let argument = format!("-config.file={}", config.display());
    let _loki = start(&named("PODOPSY_LOKI"), folder.path(), &[argument]);
    until("Loki that is ready", || get(&loki, "/ready", "*/*").filter(|(_, body)| body.trim() == "ready"));

    let (push, otlp) = (format!("--loki-url=http://{loki}"), format!("--otlp-url=http://{loki}/otlp"));
    let mut agent = Agent::start(&node, &["--node", "n1", &push, &otlp]);
    let _pod = in_trouble(&node, PodSpec::new("shop", "basket").label("app", "basket"), 1);
    // By its labels, and then by what is known of a line beside them.
    let pushed = "{service_name=\"podopsy\",node=\"n1\",namespace=\"shop\",kind=\"oom.kill\"} | pod=\"basket\" | container=\"api\"";
    let pushed = until("kill that was pushed", || found(&loki, pushed).filter(|lines| !lines.is_empty()));
    assert_eq!(pushed.len(), 1, "{pushed:?}");
    let by_otlp = "{service_name=\"podopsy\"} | k8s_pod_name=\"basket\" | k8s_container_name=\"api\"";
    until("kill that came by OTLP", || {
        found(&loki, by_otlp)
            .filter(|lines| lines.iter().any(|(_, line)| line.contains("\"kind\":\"oom.kill\"")))
    });
    let lookup = "{kind=\"dns.lookup\"} | dns_name=~`nxdomain-1.*`";
    until("lookup", || found(&loki, lookup).filter(|lines| !lines.is_empty()));

    kill(Pid::from_raw(agent.pid() as i32), Signal::SIGTERM).expect("ask it to end");
    assert!(agent.process.0.wait().expect("its end").success());
    let printed = fs::read_to_string(node.directory().join("agent.out")).expect("its events");
    let mut printed: Vec<String> = printed.lines().map(str::to_owned).collect();
    printed.sort_unstable();
    for (way, query) in [
        ("pushed", "{service_name=\"podopsy\",kind=~\".+\"}"),
        ("by OTLP", "{service_name=\"podopsy\",kind=\"\"}"),
    ] {
        let lines = found(&loki, query).expect("an answer");
        eprintln!("{way}: {} lines, the first known by {}", lines.len(), lines[0].0);
        let mut lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
        lines.sort_unstable();
        assert_eq!(lines, printed, "{way}");
    }
}

/// One process, its data in a folder.
fn loki_config(folder: &Path, address: &str) -> String {
    let (host, port) = address.rsplit_once(':').expect("an address");
    let (data, grpc) = (folder.join("loki").display().to_string(), free());
    format!(
        "auth_enabled: false
server: {{http_listen_address: {host}, http_listen_port: {port}, grpc_listen_address: {host}, grpc_listen_port: {grpc}}}
common:
  instance_addr: {host}
  path_prefix: {data}
  replication_factor: 1
  ring: {{kvstore: {{store: inmemory}}}}
  storage: {{filesystem: {{chunks_directory: {data}/chunks, rules_directory: {data}/rules}}}}
schema_config:
  configs:
  - {{from: 2024-01-01, store: tsdb, object_store: filesystem, schema: v13, index: {{prefix: index_, period: 24h}}}}
analytics: {{reporting_enabled: false}}
"
    )
}
