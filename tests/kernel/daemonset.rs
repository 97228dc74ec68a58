//! The DaemonSet's pod spec, read from manifests/ and run unchanged: its agent must record another pod's kill.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support;
use podopsy_doctor::capability::{Capabilities, Capability};
use podopsy_harness::{ContainerSpec, ContainerState, Node, PodHandle, PodSpec};
use podopsy_model::{Detail, Event, EventKind};
use serde_yaml_ng::Value;

/// An emulated machine needs most of it.
const SOON: Duration = Duration::from_secs(180);

fn text<'a>(value: &'a Value, what: &str) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("daemonset.yaml: {what} is no text: {value:?}"))
}

fn list<'a>(value: &'a Value, what: &str) -> &'a [Value] {
    value.as_sequence().unwrap_or_else(|| panic!("daemonset.yaml: {what} is no list: {value:?}"))
}

/// The pod of a manifest.
fn pod_of(file: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").join(file);
    let manifest: Value =
        serde_yaml_ng::from_str(&std::fs::read_to_string(&file).expect("the manifest")).expect("it is YAML");
    manifest["spec"]["template"]["spec"].clone()
}

/// Applies a container's security context. An unconfined seccomp profile needs nothing: containerd has no filter by
/// default.
fn with_rights(spec: ContainerSpec, security: &Value) -> ContainerSpec {
    if security["privileged"] == true {
        return spec.privileged();
    }
    let capabilities = &security["capabilities"];
    assert_eq!(capabilities["drop"][0], "ALL");
    assert_eq!(security["seccompProfile"]["type"], "Unconfined");
    // This machine may be a container that lacks it, and a runtime can only grant what it has.
    let lacks =
        |name: &&str| *name == "SYS_RESOURCE" && !Capabilities::effective().has(Capability::SysResource);
    let added = list(&capabilities["add"], "add").iter().map(|name| text(name, "a capability"));
    added.filter(|name| !lacks(name)).fold(spec.no_capabilities(), ContainerSpec::capability)
}

/// The pod that a kubelet would make of the manifest: image, command, mounts, host namespaces, security context. A
/// patch replaces the security context. `keep_every` is how often profiles are kept, for a test that does not wait a
/// minute. Only the way to the runtime's socket differs.
fn pod_spec(node: &Node, image: &str, patch: Option<&str>, keep_every: &str) -> PodSpec {
    let pod = &pod_of("base/daemonset.yaml");
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["privileged"], true);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(pod["hostPID"], true);
    let patched = patch.map(|file| pod_of(file)["containers"][0]["securityContext"].clone());

    let command: Vec<&str> =
        list(&container["command"], "command").iter().map(|w| text(w, "command")).collect();
    let limit = text(&container["resources"]["limits"]["memory"], "the memory limit");
    let mib: i64 = limit.strip_suffix("Mi").and_then(|n| n.parse().ok()).expect("a limit in Mi");
    let mut spec = ContainerSpec::new(text(&container["name"], "name"), image)
        .command(command)
        // The fieldRef of the manifest, and the socket's path on this node.
        .env("NODE_NAME", "node-of-the-manifest")
        .env("PODOPSY_CRI_SOCKET", node.cri_socket().display().to_string())
        .env("PODOPSY_KEEP_EVERY", keep_every)
        .memory_limit(mib << 20)
        .read_only_root();
    spec = with_rights(spec, patched.as_ref().unwrap_or(security));
    for mount in list(&container["volumeMounts"], "volumeMounts") {
        let name = &mount["name"];
        let volume =
            list(&pod["volumes"], "volumes").iter().find(|v| &v["name"] == name).expect("its volume");
        let (host, inside) =
            (text(&volume["hostPath"]["path"], "path"), text(&mount["mountPath"], "mountPath"));
        // The harness keeps these in the node's directory.
        let host = match host {
            "/var/log/pods" => node.pod_logs(),
            "/var/lib/podopsy" => node.directory().join("podopsy"),
            _ => host.into(),
        };
        std::fs::create_dir_all(&host).expect("the folder to mount");
        spec = match mount["readOnly"] == true {
            true => spec.mount_read_only(host, inside),
            false => spec.mount(host, inside),
        };
    }
    for variable in list(&container["env"], "env").iter().filter(|variable| !variable["value"].is_null()) {
        spec = spec.env(text(&variable["name"], "name"), text(&variable["value"], "value"));
    }
    // A machine that is a container itself may not permit to look into process 1's root; the suite `pods` reaches the
    // runtime that way.
    let folder = node.cri_socket().parent().expect("a folder");
    spec = spec.mount_read_only(folder, folder.display().to_string());
    PodSpec::new("podopsy", "podopsy-agent-x7k2p")
        .label("app.kubernetes.io/name", "podopsy-agent")
        .host_pid()
        .container(spec)
}

/// Events in the agent's log; a kubelet's log line is `time stdout F text`.
fn events(agent: &PodHandle) -> Vec<Event> {
    let log = agent.log("agent").unwrap_or_default();
    support::whole_lines(&log)
        .filter_map(|line| line.find("{\"schema\"").map(|at| &line[at..]))
        .map(|json| serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}")))
        .collect()
}

/// What each thread of a stuck process waits for: its state, system call and kernel stack.
fn threads(pid: i32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: std::fs::DirEntry| {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let state = read("stat").rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        let (comm, call, stack) = (read("comm"), read("syscall"), read("stack"));
        format!("{} {} {state:?} in {}\n{stack}", task.path().display(), comm.trim(), call.trim())
    };
    tasks.map(of).collect()
}

fn until<T>(agent: &PodHandle, what: &str, found: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        let log = agent.log("agent").unwrap_or_default();
        let status = agent.status("agent").expect("its status");
        let ended = status.state == ContainerState::Exited;
        assert!(!ended, "no {what}: the agent ended with {}; its log: {log}", status.exit_code);
        assert!(
            began.elapsed() < SOON,
            "no {what}; the agent's log: {log}\nits threads:\n{}",
            agent.pid("agent").map_or_else(|error| format!("{error:#}"), threads)
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A node, the victims' image, and an agent that records there; see [`pod_spec`].
fn recording(patch: Option<&str>, keep_every: &str) -> (Node, String, PodHandle) {
    support::require_root();
    let node = Node::up().unwrap_or_else(|error| panic!("bring the node up: {error:#}"));
    let victims = node.victims_image("registry.podopsy.test/shop/victims:2.0").expect("load the image");
    let image = node.podopsy_image("registry.podopsy.test/podopsy:test").expect("load podopsy's image");
    let agent = node.run_pod(pod_spec(&node, &image, patch, keep_every)).expect("run the agent's pod");
    records(&agent);
    (node, victims, agent)
}

fn records(agent: &PodHandle) {
    let log = || agent.log("agent").unwrap_or_default();
    until(agent, "sign of recording", || log().contains("recording").then_some(()));
}

/// The response of the agent's API, by its socket in the state folder, which is on the node.
fn api(node: &Node, path: &str) -> serde_json::Value {
    let mut stream = UnixStream::connect(node.directory().join("podopsy/agent.sock")).expect("connect");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("its answer");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"))
}

/// Ends the agent by SIGTERM, with the manifest's grace period, and checks that it exits in order.
fn stop(agent: &PodHandle) {
    agent.stop_container("agent", Duration::from_secs(15)).expect("stop the agent");
    let end = agent.wait_exited("agent", SOON).expect("it ends");
    let log = agent.log("agent").unwrap_or_default();
    assert_eq!(end.exit_code, 0, "{log}");
    assert!(log.contains("stopped"), "{log}");
}

fn is_kill(event: &Event) -> bool {
    event.kind == EventKind::OomKill
}

/// Runs a pod that leaks until it is killed; returns it and the agent's event.
fn kill_a_pod(node: &Node, victims: &str, agent: &PodHandle) -> (PodHandle, Event) {
    let leaker = ContainerSpec::new("api", victims).command(["leak", "--fast"]).memory_limit(32 << 20);
    let pod =
        node.run_pod(PodSpec::new("shop", "orders").label("app", "orders").container(leaker)).expect("run");
    pod.wait_exited("api", SOON).expect("it is killed");
    let kill = until(agent, "kill", || events(agent).into_iter().find(is_kill));
    assert_eq!(kill.node, "node-of-the-manifest");
    let log = agent.log("agent").expect("its log");
    assert!(log.contains("holds from now on: CAP_BPF") && !log.contains("could not give up"), "{log}");
    let named = kill.pod.as_ref().expect("the pod is named");
    assert_eq!((&*named.namespace, &*named.name, &named.uid), ("shop", "orders", &pod.uid));
    assert_eq!(kill.container.as_ref().expect("the container is named").name, "api");
    (pod, kill)
}

#[test]
fn the_manifests_pod_records_another_pods_kill_and_what_it_missed() {
    let (node, victims, agent) = recording(None, "60s");
    let (pod, kill) = kill_a_pod(&node, &victims, &agent);
    // What was printed is in the store, with the pod; the pod is among the pods; and it became an incident.
    let stored = until(&agent, "stored kill", || {
        let stored = api(&node, "/api/v1/events?kind=oom.kill&namespace=shop&pod=orders&label=app%3Dorders");
        stored["events"].as_array().filter(|events| !events.is_empty()).cloned()
    });
    let pids: Vec<_> = stored.iter().map(|event| &event["process"]["pid"]).collect();
    assert_eq!(pids, [kill.process.pid], "{stored:?}");
    assert_eq!(api(&node, "/readyz")["ready"], true);
    assert_eq!(api(&node, "/api/v1/pods?namespace=shop")["pods"][0]["pod"]["name"], "orders");
    until(&agent, "incident", || {
        let incident = &api(&node, "/api/v1/incidents?pod=orders")["incidents"][0];
        (incident["oom_kills"] == 1 && !incident["ooms"].as_array()?.is_empty()).then_some(())
    });
    stop(&agent);

    // Its state is kept: the next agent reports, once, what happened meanwhile.
    pod.restart("api").expect("restart the leaker");
    pod.wait_exited("api", SOON).expect("it is killed again");
    agent.restart("agent").expect("restart the agent");
    records(&agent);
    let missed = until(&agent, "missed kill", || {
        events(&agent).into_iter().find(|event| {
            is_kill(event) && event.process.comm == "leak" && event.process.pid != kill.process.pid
        })
    });
    assert!(matches!(missed.detail, Detail::Oom(kill) if kill.recovered), "{:?}", missed.process);
    // The time without an agent is a gap, and both attempts are in one history.
    let gaps = api(&node, "/api/v1/gaps")["gaps"].clone();
    assert_eq!((&gaps[0]["reason"], &gaps[1]), (&"stopped".into(), &serde_json::Value::Null), "{gaps}");
    let kills = api(&node, "/api/v1/events?kind=oom.kill&pod=orders")["events"].clone();
    assert_eq!(kills.as_array().map(Vec::len), Some(2), "{kills}");
    stop(&agent);
}

#[test]
fn with_explicit_capabilities_the_missing_kernel_log_is_reported() {
    // On an emulated machine, symbolizing a node's stacks takes all CPU time, and the agent exceeds its budget.
    let profiles = !support::is_emulated();
    let keep_every = if profiles { "3s" } else { "60s" };
    let patch = "components/explicit-capabilities/daemonset.yaml";
    let (node, victims, agent) = recording(Some(patch), keep_every);
    let (_pod, kill) = kill_a_pod(&node, &victims, &agent);
    // The frames' names follow in the incident.
    let is_its_incident =
        |event: &Event| event.kind == EventKind::OomIncident && event.process == kill.process;
    let incident = until(&agent, "incident", || events(&agent).into_iter().find(is_its_incident));
    let Detail::Oom(kill) = &incident.detail else { panic!("no kill's facts: {incident:?}") };
    assert!(kill.rss.is_some() && !kill.kernel_stack.is_empty(), "{kill:?}");
    let ready = api(&node, "/readyz");
    assert_eq!(
        (&ready["ready"], ready["degraded"].as_array().map(Vec::len)),
        (&true.into(), Some(1)),
        "{ready}"
    );
    assert!(ready["degraded"][0].as_str().is_some_and(|why| why.contains("/dev/kmsg")), "{ready}");
    if profiles {
        // Other containers' programs are opened and sampled: most stacks are whole.
        let burner = ContainerSpec::new("app", &victims).command(["burner"]);
        let _burner =
            node.run_pod(PodSpec::new("shop", "pricing").container(burner)).expect("run the burner");
        until(&agent, "profile with whole stacks", || {
            let profiles = &api(&node, "/api/v1/profiles?pod=pricing")["profiles"];
            let is_whole = |one: &serde_json::Value| {
                let count = |name: &str| one["facts"][name].as_u64().unwrap_or(0);
                count("user_stacks") > 10 && count("complete") * 10 > count("user_stacks") * 9
            };
            profiles.as_array()?.iter().any(is_whole).then_some(())
        });
    }
    stop(&agent);
}
