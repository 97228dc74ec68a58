//! The network of a namespace of the test's own, against what `ip` and `ss` say of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use podopsy_net::{DeclaredPort, Network, PodProcess, Socket, Transport, VerdictKind, verdicts};
use serde_json::Value;

/// Two listeners, of which one's accept queue is full; a UDP socket; connections that are not answered.
const PROGRAM: &str = r#"
import socket, sys, time
keep = []
def listen(family, address, backlog):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(address); s.listen(backlog); keep.append(s)
listen(socket.AF_INET, ("0.0.0.0", 8081), 16)
listen(socket.AF_INET, ("127.0.0.1", 8082), 1)
listen(socket.AF_INET6, ("::", 8083), 16)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("10.77.0.2", 5353)); keep.append(u)
for _ in range(4):
    c = socket.socket(); c.setblocking(False)
    try: c.connect(("127.0.0.1", 8082))
    except BlockingIOError: pass
    keep.append(c)
for _ in range(3):
    c = socket.socket(); c.setblocking(False)
    try: c.connect(("10.77.0.9", 5432))
    except BlockingIOError: pass
    keep.append(c)
a = socket.create_connection(("127.0.0.1", 8081)); keep.append(a)
b, _ = keep[0].accept(); keep.append(b)
b.sendall(b"x" * 100000)
print("ready", flush=True)
time.sleep(600)
"#;

/// A process in a network namespace of its own, with a veth pair, of which the other end answers to nothing.
struct Namespace(Child);

impl Namespace {
    fn start() -> Namespace {
        let setup = "set -e
            ip link set lo up
            ip link add eth0 type veth peer name peer0
            ip link set eth0 up; ip link set peer0 up
            ip addr add 10.77.0.2/24 dev eth0
            ip -6 addr add fd77::2/64 dev eth0 nodad
            ip route add default via 10.77.0.1
            ip route add blackhole 10.99.0.0/16
            ip neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0
            exec python3 -c \"$PROGRAM\"";
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", setup]).env("PROGRAM", PROGRAM).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the program has started");
        Namespace(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid()).into()
    }

    fn read(&self) -> Network {
        let member = PodProcess { pid: self.pid(), container: Some("api".into()) };
        Network::read(&self.path(), &[member]).unwrap()
    }

    fn run(&self, command: &[&str]) -> String {
        let net = format!("--net={}", self.path().display());
        let output = Command::new("nsenter").arg(net).args(command).output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, command: &[&str]) -> Value {
        serde_json::from_str(&self.run(command)).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[test]
#[ignore = "needs root, iproute2 and python3"]
fn addresses_and_routes_are_those_that_ip_lists() {
    let namespace = Namespace::start();
    let network = namespace.read();
    let listed = namespace.json(&["ip", "-j", "addr"]);
    let expected: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|link| {
            let addresses = link["addr_info"].as_array().unwrap().iter();
            let addresses = addresses
                .map(|a| format!("{}/{}", text(&a["local"]), a["prefixlen"]))
                .collect::<BTreeSet<_>>();
            let up = link["flags"].as_array().unwrap().iter().any(|flag| flag == "UP");
            (
                link["ifindex"].as_u64().unwrap(),
                text(&link["ifname"]),
                up,
                link["mtu"].as_u64(),
                text(&link["address"]),
                addresses,
            )
        })
        .collect();
    let found: Vec<_> = network
        .interfaces
        .iter()
        .map(|link| {
            let addresses =
                link.addresses.iter().map(|a| format!("{}/{}", a.ip, a.prefix)).collect::<BTreeSet<_>>();
            (
                u64::from(link.index),
                link.name.clone(),
                link.is_up,
                link.mtu.map(u64::from),
                link.mac.clone(),
                addresses,
            )
        })
        .collect();
    assert_eq!(found, expected);
    let routes = |family: &str| {
        let all = namespace.json(&["ip", "-j", family, "route", "show", "table", "main"]);
        let one = |route: &Value| (text(&route["dst"]), text(&route["gateway"]), text(&route["dev"]));
        all.as_array().unwrap().iter().map(one).collect::<BTreeSet<_>>()
    };
    let expected: BTreeSet<_> = routes("-4").union(&routes("-6")).cloned().collect();
    let found: BTreeSet<_> = network
        .routes
        .iter()
        .map(|route| {
            let gateway = route.gateways.first().map(ToString::to_string).unwrap_or_default();
            (route.destination.clone(), gateway, route.interface.clone())
        })
        .collect();
    // ip leaves out the prefix length of a host route, and the interface of a blackhole's.
    assert_eq!(found, expected);
}

/// `ss` output without its header: protocol, state, queues, addresses.
fn ss_lines(output: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().take(6).collect();
        fields
            .join(" ")
            .replace('*', "[::]")
            .replace("[::]:[::]", "[::]:*")
            .replace("0.0.0.0:[::]", "0.0.0.0:*")
    };
    output.lines().map(line).collect()
}

fn as_ss(socket: &Socket) -> String {
    let any = if socket.local.is_ipv4() { "0.0.0.0:*" } else { "[::]:*" };
    let remote = socket.remote.map_or_else(|| any.to_owned(), |remote| remote.to_string());
    let (transport, state) = (socket.transport.as_str(), socket.state.as_str());
    format!("{transport} {state} {} {} {} {remote}", socket.receive_queue, socket.send_queue, socket.local)
}

#[test]
#[ignore = "needs root, iproute2 and python3"]
fn sockets_are_those_that_ss_lists_with_their_processes() {
    let namespace = Namespace::start();
    let begin = Instant::now();
    // Connections that are not answered end in between: what both list is from one moment, sooner or later.
    let network = loop {
        let network = namespace.read();
        let found: BTreeSet<String> = network.sockets.iter().map(as_ss).collect();
        let expected = ss_lines(&namespace.run(&["ss", "-Hantu"]));
        if found == expected {
            break network;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{found:#?} is not {expected:#?}");
    };
    let listeners = network.sockets.iter().filter(|socket| socket.is_listener());
    for listener in listeners {
        let [owner] = &listener.processes[..] else { panic!("{listener:?}") };
        assert_eq!(
            (owner.pid, owner.comm.as_str(), owner.container.as_deref()),
            (namespace.pid(), "python3", Some("api"))
        );
    }
}

#[test]
#[ignore = "needs root, iproute2 and python3"]
fn the_verdicts_are_those_that_the_program_deserves() {
    let namespace = Namespace::start();
    let port = |port| DeclaredPort { container: "api".into(), port, transport: Transport::Tcp };
    let declared = [port(8080), port(8081), port(8082), port(8083)];
    let begin = Instant::now();
    // The kernel retransmits what is not acknowledged after a second.
    let all = loop {
        let all = verdicts(&namespace.read(), &declared);
        if all.iter().any(|verdict| verdict.kind == VerdictKind::AcceptQueueOverflowed)
            || begin.elapsed() > Duration::from_secs(10)
        {
            break all;
        }
        sleep(Duration::from_millis(100));
    };
    let statement =
        |kind| all.iter().find(|verdict| verdict.kind == kind).map(|verdict| verdict.statement.as_str());
    let silent = "container api declares TCP port 8080, and nothing listens there";
    assert_eq!(statement(VerdictKind::PortNotListening), Some(silent), "{all:#?}");
    assert!(statement(VerdictKind::ListensOnLoopbackOnly).unwrap().contains("8082"), "{all:#?}");
    assert!(
        statement(VerdictKind::AcceptQueueFull)
            .unwrap()
            .contains("127.0.0.1:8082 is full: 2 connections wait, the limit is 1"),
        "{all:#?}"
    );
    let unanswered = all.iter().filter(|verdict| verdict.kind == VerdictKind::ConnectionsUnanswered);
    let unanswered: Vec<&str> = unanswered.map(|verdict| verdict.statement.as_str()).collect();
    assert!(
        unanswered.contains(&"3 connections in SYN_SENT to 10.77.0.9:5432: it does not answer"),
        "{all:#?}"
    );
    assert!(statement(VerdictKind::DataUnread).unwrap().contains("python3["), "{all:#?}");
}

#[test]
#[ignore = "needs root, iproute2 and python3"]
fn nothing_is_left_behind_and_this_thread_stays_where_it_is() {
    let namespace = Namespace::start();
    let own = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    let inode = fs::read_link(namespace.path()).unwrap();
    let before = own();
    namespace.read();
    assert_eq!(own(), before);
    let mut threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let is_there = |path: PathBuf| fs::read_link(path.join("ns/net")).is_ok_and(|other| other == inode);
    assert!(!threads.any(|thread| is_there(thread.path())));
    drop(namespace);
    let holders = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| fs::read_link(entry.path().join("ns/net")).is_ok_and(|other| other == inode));
    assert_eq!(holders.count(), 0);
}
