//! `podopsy net`, `enter` and `core` on real pods, against `ip` and `ss` in the same namespace.

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support;
use podopsy_harness::{ContainerSpec, Node, PodHandle, PodSpec};
use serde_json::Value;
use support::node;

const SOON: Duration = Duration::from_secs(30);

fn podopsy(node: &Node, args: &[&str]) -> Output {
    let binaries = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let mut command = Command::new(&binaries[0]);
    command.arg("--cri-socket").arg(node.cri_socket()).args(args).output().expect("run podopsy")
}

fn net(node: &Node, target: &str) -> Value {
    let output = podopsy(node, &["net", target, "-o", "json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{target}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{target}: {error}; {stderr}"))
}

/// The output of a tool of the host in a container's network namespace.
fn nsenter(pod: &PodHandle, container: &str, command: &[&str]) -> String {
    let pid = pod.pid(container).expect("its pid").to_string();
    let output = Command::new("nsenter").args(["-t", &pid, "-n"]).args(command).output().expect("nsenter");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn statements(net: &Value) -> Vec<&str> {
    let all = net["verdicts"].as_array().expect("verdicts").iter();
    all.filter_map(|verdict| verdict["statement"].as_str()).collect()
}

/// `LOCAL` of all TCP listeners.
fn listeners(net: &Value) -> BTreeSet<String> {
    let all = net["sockets"].as_array().expect("sockets").iter();
    let listening = all.filter(|socket| socket["state"] == "listen");
    listening.filter_map(|socket| socket["local"].as_str()).map(str::to_owned).collect()
}

/// Asks until the container's program listens.
fn once_listening(node: &Node, target: &str) -> Value {
    let begin = Instant::now();
    loop {
        let net = net(node, target);
        if !listeners(&net).is_empty() {
            return net;
        }
        assert!(begin.elapsed() < SOON, "{net:#}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn check_addresses(net: &Value, pod: &PodHandle, container: &str) {
    let listed: Value = serde_json::from_str(&nsenter(pod, container, &["ip", "-j", "addr"])).expect("JSON");
    let expected: BTreeSet<String> = listed
        .as_array()
        .expect("links")
        .iter()
        .flat_map(|link| link["addr_info"].as_array().expect("addresses"))
        .map(|address| format!("{}/{}", address["local"].as_str().expect("text"), address["prefixlen"]))
        .collect();
    let found: BTreeSet<String> = net["interfaces"]
        .as_array()
        .expect("interfaces")
        .iter()
        .flat_map(|link| link["addresses"].as_array().expect("addresses"))
        .map(|address| format!("{}/{}", address["ip"].as_str().expect("text"), address["prefix"]))
        .collect();
    assert_eq!(found, expected);
}

fn check_listeners(net: &Value, pod: &PodHandle, container: &str) {
    let listed = nsenter(pod, container, &["ss", "-Hlnt"]);
    let local = |line: &str| line.split_whitespace().nth(3).expect("an address").to_owned();
    assert_eq!(listeners(net), listed.lines().map(local).collect());
}

fn server(name: &str, image: &str, address: &str) -> ContainerSpec {
    ContainerSpec::new(name, image).command(["resolver", address])
}

#[test]
fn declared_ports_are_compared_with_what_listens() {
    let (node, image) = node();
    let api = server("api", &image, "0.0.0.0:8081").port(8080).port(8081);
    let pod = node.run_pod(PodSpec::new("shop", "cart").container(api)).expect("run the pod");
    let net = once_listening(&node, "shop/cart");
    check_addresses(&net, &pod, "api");
    check_listeners(&net, &pod, "api");
    assert_eq!(
        statements(&net),
        ["container api declares TCP port 8080, and nothing listens there"],
        "{net:#}"
    );
    let is_it = |socket: &&Value| socket["local"] == "0.0.0.0:8081";
    let socket = net["sockets"].as_array().expect("sockets").iter().find(is_it).expect("the listener");
    let owner = &socket["processes"][0];
    assert_eq!((&owner["comm"], &owner["container"]), (&"resolver".into(), &"api".into()));
    assert_eq!(owner["pid"], pod.pid("api").expect("its pid"));
}

#[test]
fn containers_of_a_pod_share_its_network_and_each_socket_has_its_own() {
    let (node, image) = node();
    let spec = PodSpec::new("shop", "pair").container(server("api", &image, "127.0.0.1:8080").port(8080));
    let pod = node
        .run_pod(spec.container(server("proxy", &image, "0.0.0.0:9090").port(9090)))
        .expect("run the pod");
    let begin = Instant::now();
    let net = loop {
        let net = net(&node, "shop/pair");
        if listeners(&net).len() == 2 {
            break net;
        }
        assert!(begin.elapsed() < SOON, "{net:#}");
    };
    check_listeners(&net, &pod, "proxy");
    let all = statements(&net);
    assert!(
        all.len() == 1
            && all[0].contains("container api declares TCP port 8080")
            && all[0].contains("127.0.0.1")
    );
    let core = podopsy(&node, &["core", "shop/pair", "-w", "/dev/shm/podopsy-never"]);
    let error = String::from_utf8_lossy(&core.stderr).into_owned();
    assert_eq!(core.status.code(), Some(2), "{error}");
    assert!(error.contains("shop/pair/api") && error.contains("shop/pair/proxy"), "{error}");
}

/// The containers of a pod with one pid namespace: a restart gives one of them another process, and the network stays.
#[test]
fn a_restarted_container_in_a_shared_pid_namespace_has_its_new_sockets() {
    let (node, image) = node();
    let spec = PodSpec::new("shop", "shared").share_pids();
    let spec = spec.container(server("api", &image, "0.0.0.0:8080")).container(server(
        "side",
        &image,
        "0.0.0.0:9090",
    ));
    let pod = node.run_pod(spec).expect("run the pod");
    let before = pod.pid("side").expect("its pid");
    pod.stop_container("side", Duration::from_secs(2)).expect("stop it");
    pod.restart("side").expect("start it again");
    let begin = Instant::now();
    let net = loop {
        let net = net(&node, "shop/shared");
        if listeners(&net).len() == 2 {
            break net;
        }
        assert!(begin.elapsed() < SOON, "{net:#}");
    };
    check_addresses(&net, &pod, "api");
    check_listeners(&net, &pod, "api");
    let is_it = |socket: &&Value| socket["local"] == "0.0.0.0:9090";
    let socket = net["sockets"].as_array().expect("sockets").iter().find(is_it).expect("the listener");
    let owner = &socket["processes"][0];
    assert_eq!(
        (&owner["container"], &owner["pid"]),
        (&"side".into(), &pod.pid("side").expect("its pid").into())
    );
    assert_ne!(owner["pid"], before);
}

/// After a node's restart, the kubelet makes a new sandbox: another network namespace, and another address.
#[test]
fn a_pod_with_a_new_sandbox_has_the_network_of_that_one() {
    let (node, image) = node();
    let spec = PodSpec::new("shop", "moved").container(server("api", &image, "0.0.0.0:8080"));
    let mut pod = node.run_pod(spec).expect("run the pod");
    let first = once_listening(&node, "shop/moved");
    pod.replace_sandbox().expect("a new sandbox");
    let net = once_listening(&node, "shop/moved");
    check_addresses(&net, &pod, "api");
    check_listeners(&net, &pod, "api");
    assert_ne!(net["interfaces"], first["interfaces"]);
}

#[test]
fn a_pod_in_the_hosts_network_shows_its_own_sockets_alone() {
    let (node, image) = node();
    let spec =
        PodSpec::new("shop", "host").host_network().container(server("api", &image, "127.0.0.1:18473"));
    let _pod = node.run_pod(spec).expect("run the pod");
    let net = once_listening(&node, "shop/host");
    assert_eq!(net["host_network"], true);
    assert_eq!(listeners(&net), BTreeSet::from(["127.0.0.1:18473".to_owned()]));
}

#[test]
fn an_image_without_a_shell_is_entered_with_the_hosts_tools_and_gives_a_core() {
    let (node, image) = node();
    let idle = ContainerSpec::new("app", &image).command(["pause"]);
    let pod = node.run_pod(PodSpec::new("shop", "bare").container(idle)).expect("run the pod");
    let entered = podopsy(&node, &["enter", "shop/bare", "--", "ip", "-o", "addr"]);
    assert_eq!(String::from_utf8_lossy(&entered.stdout), nsenter(&pod, "app", &["ip", "-o", "addr"]));
    assert_eq!(podopsy(&node, &["enter", "shop/bare", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    // In memory: a core is refused on a disk that is nearly full, as that of a machine that builds may be.
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let path = folder.path().join("core");
    let core = podopsy(&node, &["core", "shop/bare/app", "-w", path.to_str().expect("text")]);
    let error = String::from_utf8_lossy(&core.stderr).into_owned();
    assert!(core.status.success() && error.contains("the process was paused for"), "{error}");
    eprintln!("{error}");
    assert!(std::fs::read(&path).expect("the core").starts_with(b"\x7fELF"));
}
