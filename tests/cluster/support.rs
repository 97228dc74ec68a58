//! What the tests share: the cluster's kubectl, manifests, and the agent's events.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use podopsy_model::{Event, EventKind};
use serde_json::{Value, json};

pub const VICTIMS: &str = "registry.podopsy.test/victims:1";
pub const PODOPSY: &str = "registry.podopsy.test/podopsy:1";
/// The same programs under another name.
pub const PODOPSY_NEXT: &str = "registry.podopsy.test/podopsy:2";
pub const NODE: &str = "node1";
/// The longest wait; on an idle machine, everything is seen within seconds.
pub const SOON: Duration = Duration::from_secs(120);

/// The folder of the running cluster's scripts and sockets.
fn run_folder() -> PathBuf {
    let folder = std::env::var_os("PODOPSY_CLUSTER");
    folder.expect("these tests need a Kubernetes node: run `cargo xtask cluster test` as root").into()
}

/// The agent's state folder on the node.
pub fn state_folder() -> PathBuf {
    std::env::var_os("PODOPSY_CLUSTER_STATE").expect("`cargo xtask cluster test` sets it").into()
}

/// The folder of the node's files.
pub fn node_folder() -> PathBuf {
    std::env::var_os("PODOPSY_CLUSTER_NODE").expect("`cargo xtask cluster test` sets it").into()
}

fn output(program: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(run_folder().join("bin").join(program))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start kubectl");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write to kubectl");
    child.wait_with_output().expect("kubectl's output")
}

fn result(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let output = output(program, arguments, input);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Runs a script by `sh` on the node, with the cluster's kubectl first in the path, and returns what it prints. It may fail, as
/// podopsy does when it lists nothing.
pub fn sh(script: &str) -> String {
    let mut path = run_folder().join("bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let output = Command::new("sh").args(["-c", script]).env("PATH", path).stdin(Stdio::null()).output();
    let output = output.expect("start sh");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Calls Debian 13's kubectl. The error is what it writes to stderr.
pub fn try_kubectl(arguments: &[&str]) -> Result<String, String> {
    result("kubectl", arguments, "")
}

/// As [`try_kubectl`], for calls that have to succeed.
pub fn kubectl(arguments: &[&str]) -> String {
    try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
}

/// The script that calls Debian 13's kubectl for this cluster.
pub fn kubectl_path() -> PathBuf {
    run_folder().join("bin/kubectl")
}

/// Creates an object.
pub fn create(object: &Value) {
    let created = result("kubectl", &["create", "--filename=-"], &object.to_string());
    created.unwrap_or_else(|error| panic!("create {object}: {error}"));
}

/// Calls the kubectl of the cluster's own version.
pub fn old_kubectl(arguments: &[&str]) -> String {
    let called = result("kubectl-1.20", arguments, "");
    called.unwrap_or_else(|error| panic!("kubectl-1.20 {}: {error}", arguments.join(" ")))
}

/// The object or list, as JSON.
pub fn get(arguments: &[&str]) -> Value {
    let text = kubectl(&[&["get", "--output=json"], arguments].concat());
    serde_json::from_str(&text).expect("kubectl writes JSON")
}

/// Polls until there is something; `explain` is called when there is nothing in time.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>, explain: impl Fn() -> String) -> T {
    until_within(SOON, what, look, explain)
}

/// [`until`] with another longest wait.
pub fn until_within<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
    explain: impl Fn() -> String,
) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "no {what} within {limit:?}\n{}", explain());
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// A namespace of the test, deleted with all that is in it when this is dropped.
pub struct Namespace(pub &'static str);

impl Namespace {
    pub fn new(name: &'static str) -> Namespace {
        let _ = try_kubectl(&["delete", "namespace", name, "--ignore-not-found"]);
        kubectl(&["create", "namespace", name]);
        // A pod that is created before its ServiceAccount is refused.
        let account = || try_kubectl(&["-n", name, "get", "serviceaccount", "default"]).ok();
        until("ServiceAccount", account, || kubectl(&["get", "namespaces"]));
        Namespace(name)
    }

    /// Creates an object in it.
    pub fn create(&self, mut object: Value) {
        object["metadata"]["namespace"] = self.0.into();
        create(&object);
    }

    /// The pods with this label `app`.
    pub fn pods(&self, app: &str) -> Vec<Value> {
        let list = get(&["pods", "-n", self.0, "-l", &format!("app={app}")]);
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the pod with this name is ready.
    pub fn wait_ready(&self, name: &str) {
        let (pod, limit) = (format!("pod/{name}"), format!("--timeout={}s", SOON.as_secs()));
        let ready = try_kubectl(&["-n", self.0, "wait", "--for=condition=Ready", &pod, &limit]);
        ready.unwrap_or_else(|error| panic!("{error}\n{}", self.describe()));
    }

    /// What the cluster has to say about it, for a failed assertion.
    pub fn describe(&self) -> String {
        kubectl(&["-n", self.0, "describe", "pods"])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = try_kubectl(&["delete", "namespace", self.0, "--wait=false"]);
        let pods = ["delete", "pods", "--all", "-n", self.0, "--grace-period=0", "--force"];
        let _ = try_kubectl(&pods);
    }
}

/// A container of the victims' image with a memory limit.
pub fn container(name: &str, command: &[&str], limit: &str) -> Value {
    json!({
        "name": name,
        "image": VICTIMS,
        "command": command,
        "resources": { "limits": { "memory": limit }, "requests": { "memory": limit } },
    })
}

/// A pod with the label `app`, its name.
pub fn pod(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": spec,
    })
}

/// `spec` of a workload with a selector: a pod template with the label `app`.
pub fn template(app: &str, spec: Value) -> Value {
    json!({ "metadata": { "labels": { "app": app } }, "spec": spec })
}

/// The folder of manifests/.
pub fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").canonicalize().expect("manifests/")
}

/// The agent's DaemonSet.
pub struct Agent;

impl Agent {
    /// Applies an overlay of manifests/ with the image that the cluster has, and waits until it is rolled out.
    pub fn apply(overlay: &str) -> Agent {
        Agent::try_apply(overlay, PODOPSY).unwrap_or_else(|error| panic!("apply {overlay}: {error}"));
        Agent::wait_rolled_out();
        Agent
    }

    /// [`Agent::apply`] without waiting; the error is kubectl's.
    pub fn try_apply(overlay: &str, image: &str) -> Result<String, String> {
        let folder = kustomization(overlay, &[("podopsy", image)], &[patch_of_socket()]);
        try_kubectl(&["apply", "-k", &folder.path().display().to_string()])
    }

    /// Removes the DaemonSet, and waits until its pods are gone.
    pub fn delete() {
        kubectl(&["delete", "daemonset", "-n", "podopsy", "podopsy-agent", "--cascade=foreground"]);
    }

    pub fn wait_rolled_out() {
        let limit = format!("--timeout={}s", SOON.as_secs());
        let status = try_kubectl(&["-n", "podopsy", "rollout", "status", "daemonset/podopsy-agent", &limit]);
        status.unwrap_or_else(|error| panic!("{error}\n{}", Agent::describe()));
    }

    pub fn describe() -> String {
        let logs = try_kubectl(&["-n", "podopsy", "logs", "daemonset/podopsy-agent", "--tail=40"]);
        let pods = kubectl(&["-n", "podopsy", "describe", "pods"]);
        format!("{pods}\n{}", logs.unwrap_or_else(|error| error))
    }

    /// The name of the agent's pod.
    pub fn pod(&self) -> String {
        let pods = get(&["pods", "-n", "podopsy", "--field-selector=status.phase=Running"]);
        let items = pods["items"].as_array().expect("a list");
        let running = items.iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        running.expect("the agent's pod")["metadata"]["name"].as_str().expect("a name").to_owned()
    }

    /// Runs podopsy in the agent's pod. None if it fails, as it does when it lists nothing.
    pub fn podopsy(&self, arguments: &[&str]) -> Option<String> {
        let pod = self.pod();
        try_kubectl(&[&["-n", "podopsy", "exec", &pod, "--", "/podopsy"], arguments].concat()).ok()
    }

    /// The agent's `/metrics`, by way of the API server.
    pub fn metrics(&self) -> String {
        let path = format!("/api/v1/namespaces/podopsy/pods/{}:9464/proxy/metrics", self.pod());
        kubectl(&["get", "--raw", &path])
    }

    /// The events of a namespace in the agent's history, oldest first.
    pub fn events(&self, namespace: &str, kind: EventKind) -> Vec<Event> {
        let kind = kind.as_str();
        let text =
            self.podopsy(&["events", "-n", namespace, "--kind", kind, "-o", "json", "--most", "10000"]);
        let text = text.unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// Waits until an event of that kind fits.
    pub fn wait_event(
        &self,
        namespace: &str,
        kind: EventKind,
        what: &str,
        is_wanted: impl Fn(&Event) -> bool,
    ) -> Event {
        let find = || self.events(namespace, kind).into_iter().find(&is_wanted);
        until(what, find, || format!("{:#?}\n{}", self.events(namespace, kind), Agent::describe()))
    }
}

/// A kustomization of its own that takes an overlay of manifests/ with images of this cluster.
pub fn kustomization(overlay: &str, images: &[(&str, &str)], patches: &[Value]) -> tempfile::TempDir {
    let own = tempfile::tempdir().expect("a folder");
    // kustomize takes relative paths alone.
    let up = "../".repeat(own.path().components().count() - 1);
    let resource = format!("{up}{}", manifests().join(overlay).display().to_string().trim_start_matches('/'));
    let image = |(old, new): &(&str, &str)| {
        let (name, tag) = new.rsplit_once(':').expect("a name with a tag");
        json!({ "name": old, "newName": name, "newTag": tag })
    };
    let text = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [resource],
        "images": images.iter().map(image).collect::<Vec<_>>(),
        "patches": patches.iter().map(|patch| json!({ "patch": patch.to_string() })).collect::<Vec<_>>(),
    });
    std::fs::write(own.path().join("kustomization.yaml"), text.to_string()).expect("write it");
    own
}

/// The way to the runtime's socket. A machine that is a container itself may not permit to look into process 1's root, where
/// the agent finds the socket on other nodes.
fn patch_of_socket() -> Value {
    let folder_of_socket = run_folder().join("cri");
    let socket = folder_of_socket.join("containerd.sock");
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "podopsy-agent", "namespace": "podopsy" },
        "spec": { "template": { "spec": {
            "containers": [{
                "name": "agent",
                "env": [{ "name": "PODOPSY_CRI_SOCKET", "value": socket }],
                "volumeMounts": [{ "name": "cri", "mountPath": folder_of_socket, "readOnly": true }],
            }],
            "volumes": [{ "name": "cri", "hostPath": { "path": folder_of_socket } }],
        }}},
    })
}

/// Whether the event's pod has a name that begins so.
pub fn is_of(event: &Event, prefix: &str) -> bool {
    event.pod.as_ref().is_some_and(|pod| pod.name.starts_with(prefix))
}

/// The attempt of the event's container.
pub fn attempt(event: &Event) -> Option<u32> {
    event.container.as_ref().map(|container| container.attempt)
}
