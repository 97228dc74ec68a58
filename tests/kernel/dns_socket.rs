//! DNS by a packet socket: what an ephemeral container sees of its pod, with the capabilities that `kubectl debug`
//! gives.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::support;
use nix::sched::{CloneFlags, setns};
use podopsy_harness::{ContainerSpec, Dns, PodHandle, PodSpec};
use podopsy_model::{Detail, Event, KnownBy, Outcome};
use podopsy_packets::socket::PacketSocket;
use podopsy_recorder::{DnsHook, DnsOptions, RecorderOptions};
use support::{Recording, dns, in_own_network, no_runtime, node, options, query, respond, transactions};

const SOON: Duration = Duration::from_secs(60);
const A: u16 = 1;

fn socket_options() -> RecorderOptions {
    RecorderOptions { oom: false, dns: Some(DnsOptions { hook: DnsHook::Socket, ..dns() }), ..options() }
}

fn outcomes(events: &[Event], name: &str) -> Vec<Outcome> {
    transactions(events, name).iter().map(|(_, dns)| dns.outcome).collect()
}

fn localhost() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

/// One exchange on a connected socket, which stays open until `open` is dropped, so that its owner can be found.
fn exchange(ip: IpAddr, name: &str, open: &mut Vec<UdpSocket>, answer: impl Fn(&[u8]) -> Vec<u8>) {
    let server = UdpSocket::bind(SocketAddr::new(ip, 53)).expect("bind port 53 in our own namespace");
    let client = UdpSocket::bind(SocketAddr::new(ip, 0)).expect("a client");
    client.connect(SocketAddr::new(ip, 53)).expect("connect");
    client.send(&query(7, name, A)).expect("ask");
    let mut buffer = [0; 1500];
    let (len, from) = server.recv_from(&mut buffer).expect("the query");
    server.send_to(&answer(&buffer[..len]), from).expect("answer");
    client.recv(&mut buffer).expect("the answer");
    open.push(client);
}

#[test]
fn every_outcome_is_seen_once_without_bpf() {
    in_own_network(|| {
        let mut recording = Recording::start(socket_options(), no_runtime());
        let mut open = Vec::new();
        let cases = [
            ("servfail.test", 0x8182, Outcome::Servfail),
            ("nxdomain.test", 0x8183, Outcome::Nxdomain),
            ("refused.test", 0x8185, Outcome::Refused),
            ("nodata.test", 0x8180, Outcome::Nodata),
            ("truncated.test", 0x8380, Outcome::Truncated),
        ];
        for (name, flags, _) in cases {
            exchange(localhost(), name, &mut open, |query| respond(query, flags, 1, 0));
        }
        let six = IpAddr::V6(Ipv6Addr::LOCALHOST);
        exchange(six, "six.test", &mut open, |query| respond(query, 0x8183, 1, 0));
        // By TCP, with the prefix, half of the message and the rest in separate segments.
        let server = TcpListener::bind("127.0.0.1:53").expect("bind");
        let mut client = TcpStream::connect("127.0.0.1:53").expect("connect");
        client.set_nodelay(true).expect("segments as we write them");
        let asked = query(13, "tcp.test", A);
        let (mut stream, _) = server.accept().expect("accept");
        let mut buffer = vec![0; asked.len() + 2];
        for part in [&(asked.len() as u16).to_be_bytes()[..], &asked[..9], &asked[9..]] {
            client.write_all(part).expect("ask");
            stream.read_exact(&mut buffer[..part.len()]).expect("a part of the query");
        }
        let answer = respond(&asked, 0x8182, 1, 0);
        stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat()).expect("answer");
        client.read_exact(&mut buffer).expect("the answer");
        // No server listens: the kernel sends an ICMP error.
        let to_closed_port = UdpSocket::bind("127.0.0.1:0").expect("a client");
        to_closed_port.connect("127.0.0.1:53").expect("connect");
        to_closed_port.send(&query(11, "closed.test", A)).expect("ask");
        // A server that is silent until the timeout has been reported.
        let silent = UdpSocket::bind("127.0.0.2:53").expect("bind");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
        client.connect("127.0.0.2:53").expect("connect");
        client.send(&query(9, "silent.test", A)).expect("ask");
        client.send(&query(9, "silent.test", A)).expect("ask again, same id");
        recording.until("a timeout", SOON, |seen| !outcomes(seen, "silent.test").is_empty());
        let mut buffer = [0; 1500];
        let (len, from) = silent.recv_from(&mut buffer).expect("the query");
        silent.send_to(&respond(&buffer[..len], 0x8183, 1, 0), from).expect("answer at last");
        recording.until("all", SOON, |seen| {
            let others = ["six.test", "tcp.test", "closed.test"];
            cases.iter().map(|case| case.0).chain(others).all(|name| !outcomes(seen, name).is_empty())
                && outcomes(seen, "silent.test").len() > 1
        });
        recording.receive_for(Duration::from_millis(500));
        for (name, _, expected) in cases {
            let found = transactions(&recording.seen, name);
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            let (event, dns) = found[0];
            assert_eq!((dns.outcome, dns.server), (expected, SocketAddr::new(localhost(), 53)), "{name}");
            assert_eq!((event.process.pid, event.known_by), (std::process::id(), KnownBy::Host), "{name}");
            assert!(event.process.start_time.is_some() && event.cgroup.id != 0, "{event:?}");
            assert!((1..1_000_000_000).contains(&dns.latency_ns), "{name}: {} ns", dns.latency_ns);
        }
        let of = |name| outcomes(&recording.seen, name);
        assert_eq!(of("six.test"), [Outcome::Nxdomain]);
        assert_eq!(of("tcp.test"), [Outcome::Servfail]);
        assert_eq!(of("closed.test"), [Outcome::Unreachable]);
        assert_eq!(of("silent.test"), [Outcome::Timeout, Outcome::Late]);
        assert_eq!(transactions(&recording.seen, "silent.test")[0].1.sends, 2);
        let counts = recording.dns_counts();
        let queries: u64 = counts.iter().map(|of| of.queries).sum();
        assert_eq!(queries, 9, "{counts:?}");
        let (_, losses) = recording.stop();
        assert!(!losses.keys().any(|name| name.starts_with("dns_")), "{losses:?}");
    });
}

/// Sends malformed messages from servers and clients; `seen` is called before the sockets close.
fn hostile(seen: impl FnOnce()) {
    let mut open = Vec::new();
    exchange(localhost(), "loop.test", &mut open, |query| {
        let mut out = respond(query, 0x8180, 1, 1);
        out.truncate(12);
        out.extend([0xc0, 12, 0, 1, 0, 1]);
        out
    });
    exchange(localhost(), "other.test", &mut open, |_| respond(&query(7, "evil.test", A), 0x8183, 1, 0));
    exchange(localhost(), "nothing.test", &mut open, |query| respond(query, 0x8180, 1, 9));
    exchange(localhost(), "\u{1b}[31m.test", &mut open, |query| respond(query, 0x8183, 1, 0));
    let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
    let server = UdpSocket::bind("127.0.0.1:53").expect("bind");
    client.connect("127.0.0.1:53").expect("connect");
    let long = query(21, &["a".repeat(63).as_str(); 5].join("."), A);
    let mut looped = query(22, "x", A)[..12].to_vec();
    looped.extend([0xc0, 12, 0, 1, 0, 1]);
    for bad in [&query(20, "cut.test", A)[..15], &long, &looped, b"tiny", b""] {
        client.send(bad).expect("send");
    }
    // A stream that is not DNS.
    let listener = TcpListener::bind("127.0.0.1:53").expect("bind");
    let mut stream = TcpStream::connect("127.0.0.1:53").expect("connect");
    stream.write_all(&[0, 3, 1, 2, 3, 0xff]).expect("send");
    seen();
    drop((server, listener, open));
}

#[test]
fn hostile_messages_have_a_reason_or_a_count() {
    in_own_network(|| {
        let mut recording = Recording::start(socket_options(), no_runtime());
        hostile(|| {
            let reasons = |seen: &[Event]| {
                let of = |event: &Event| match &event.detail {
                    Detail::Dns(dns) => dns.malformed.clone(),
                    _ => None,
                };
                seen.iter().filter_map(of).collect::<Vec<_>>()
            };
            recording.until("six malformed messages", SOON, |seen| reasons(seen).len() >= 6);
            for name in ["loop.test", "other.test", "nothing.test"] {
                assert_eq!(outcomes(&recording.seen, name), [Outcome::Malformed], "{name}");
            }
            assert!(recording.seen.iter().all(|event| match &event.detail {
                Detail::Dns(dns) => !dns.name.as_deref().unwrap_or_default().contains('\u{1b}'),
                _ => false,
            }));
        });
        let (_, losses) = recording.stop();
        assert_eq!(
            (losses.get("dns_short"), losses.get("dns_tcp_unparsed")),
            (Some(&2), Some(&1)),
            "{losses:?}"
        );
    });
}

#[test]
fn frames_that_are_not_read_in_time_are_counted() {
    in_own_network(|| {
        support::require_root();
        let mut socket = PacketSocket::open(&[53]).expect("a packet socket");
        let server = UdpSocket::bind("127.0.0.1:53").expect("bind");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
        let asked = query(7, "flood.test", A);
        let mut dropped = 0;
        let end = Instant::now() + SOON;
        while dropped == 0 && Instant::now() < end {
            for _ in 0..1000 {
                client.send_to(&asked, "127.0.0.1:53").expect("ask");
            }
            dropped = socket.dropped();
        }
        assert!(dropped > 0, "its buffer is bounded");
        assert_eq!(socket.dropped(), 0, "each is counted once");
        let first = socket.frame().expect("read").expect("those before are there");
        assert!(first.is_outgoing && first.bytes.ends_with(&asked), "{first:?}");
        drop(server);
    });
}

/// The JSON lines that a container wrote; a kubelet's log line is `time stdout F text`.
fn json_lines(pod: &PodHandle, container: &str) -> Vec<serde_json::Value> {
    let log = pod.log(container).unwrap_or_default();
    let lines = log.lines().filter(|line| line.contains(" stdout F "));
    lines.filter_map(|line| serde_json::from_str(line.split_once(" F ")?.1).ok()).collect()
}

fn until<T>(pod: &PodHandle, container: &str, what: &str, found: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        let log = pod.log(container).unwrap_or_default();
        assert!(began.elapsed() < 2 * SOON, "no {what} by {container}: {log}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs `work` in the network namespace of a container's process, but not in its pid namespace.
fn in_network_of<T: Send + 'static>(pid: i32, work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(move || {
        let network = std::fs::File::open(format!("/proc/{pid}/ns/net")).expect("the pod's network");
        setns(network.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter it");
        work()
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn an_ephemeral_container_sees_its_pods_lookups_with_what_kubectl_debug_gives_it() {
    let (node, victims) = node();
    let image = node.podopsy_image("registry.podopsy.test/podopsy:test").expect("load podopsy's image");
    let _dns = node.resolver("answer").expect("a resolver");
    // The kubelet mounts this into each container; podopsy reads the container's name from its path.
    let uid = "5d3f2a10-7c1e-4b6f-9f57-0c6a1e2b3c4d";
    let folder = node.directory().join(format!("pods/{uid}/containers/web"));
    std::fs::create_dir_all(&folder).expect("the kubelet's folder");
    let log = folder.join("1f2e3d4c");
    std::fs::write(&log, "").expect("the kubelet's file");
    let names = ["api.example.com", "nxdomain-1.example.com"];
    let web = ContainerSpec::new("web", &victims)
        .command(["lookup", names[0], names[1], "--every", "500"])
        .mount(&log, "/dev/termination-log");
    // One container must be privileged, or containerd refuses --profile=sysadmin.
    let idle = ContainerSpec::new("idle", &victims).command(["pause"]).privileged();
    let pod = PodSpec::new("shop", "cart").dns(Dns::cluster(node.dns_address(), "shop"));
    let pod = node.run_pod(pod.container(web).container(idle)).expect("run the pod");

    let debugger = |name: &str, command: &[&str]| {
        let words = ["/podopsy"].iter().chain(command).copied();
        ContainerSpec::new(name, &image).command(words).target("web")
    };
    let dns = ["dns", "--all", "--dns-timeout", "1s", "-o", "json"];
    let watch = ["watch", "dns", "--dns-timeout", "1s", "-o", "json"];
    let profiles = [
        ("legacy", debugger("legacy", &dns)),
        ("general", debugger("general", &dns).capability("SYS_PTRACE")),
        ("netadmin", debugger("netadmin", &watch).capability("NET_ADMIN").capability("NET_RAW")),
        ("sysadmin", debugger("sysadmin", &dns).privileged()),
        ("restricted", debugger("restricted", &dns).no_capabilities()),
    ];
    for (_, container) in &profiles {
        pod.add_container(container.clone()).expect("start an ephemeral container");
    }

    let refused = pod.wait_exited("restricted", SOON).expect("it ends");
    let log = pod.log("restricted").unwrap_or_default();
    assert!(refused.exit_code == 4 && log.contains("NET_RAW") && log.contains("--profile=netadmin"), "{log}");

    // No process is missed or wrong: the socket's owner may be unknown (it is closed at once).
    let of_pod = |event: &serde_json::Value| {
        assert_eq!(
            (&event["pod"]["namespace"], &event["pod"]["name"]),
            (&"shop".into(), &"cart".into()),
            "{event}"
        );
        assert_eq!(event["known_by"], "inside", "{event}");
        assert!(["lookup", ""].contains(&event["process"]["comm"].as_str().expect("a name")), "{event}");
    };
    for profile in ["legacy", "general", "sysadmin"] {
        let lookup = |name: &str, result: &str| {
            until(&pod, profile, name, || {
                json_lines(&pod, profile).into_iter().find(|event| {
                    event["lookup"]["name"] == name
                        && event["lookup"]["result"] == result
                        && event["process"]["comm"] == "lookup"
                        // An earlier one may have begun before the recorder started.
                        && event["lookup"]["futile"]["queries"] == 6
                })
            })
        };
        for (name, result) in names.into_iter().zip(["answered", "nxdomain"]) {
            let event = lookup(name, result);
            of_pod(&event);
            assert_eq!(event["container"]["name"], "web", "{profile}: {event}");
            assert_eq!(event["lookup"]["search"]["domains"][0], "shop.svc.cluster.local", "{event}");
        }
    }
    let failure = until(&pod, "netadmin", "failure", || {
        let mut all = json_lines(&pod, "netadmin").into_iter();
        all.find(|event| event["dns"]["outcome"] == "nxdomain")
    });
    of_pod(&failure);

    // Malformed packets do no harm here either. Their processes are in no pid namespace that podopsy sees.
    let pid = pod.pid("web").expect("it runs");
    in_network_of(pid, || hostile(|| {}));
    let malformed = until(&pod, "netadmin", "malformed message", || {
        json_lines(&pod, "netadmin").into_iter().find(|event| event["dns"]["name"] == "nothing.test")
    });
    assert_eq!(
        (&malformed["dns"]["outcome"], &malformed["process"]["pid"]),
        (&"malformed".into(), &0.into())
    );
    of_pod(&malformed);
    assert!(malformed["losses"]["dns_asker"].as_u64() > Some(0), "{malformed}");

    // The doctor reports the packet socket instead.
    let (_, report, _) = pod.exec("legacy", ["/podopsy", "doctor", "-o", "json"]).expect("run the doctor");
    let report: serde_json::Value = serde_json::from_str(&report).expect("its report");
    let check = |name: &str| {
        let mut checks = report["checks"].as_array().expect("checks").iter();
        checks.find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}: {report}")).clone()
    };
    assert_eq!((&check("dns")["status"], &check("dns-socket")["status"]), (&"missing".into(), &"ok".into()));

    for (profile, reason) in [("legacy", "CAP_BPF"), ("sysadmin", "pid namespace of its own")] {
        pod.stop_container(profile, Duration::from_secs(20)).expect("stop it");
        let ended = pod.wait_exited(profile, SOON).expect("it ends");
        let log = pod.log(profile).unwrap_or_default();
        assert!(ended.exit_code == 0 && log.contains("in this network namespace only"), "{log}");
        let all = json_lines(&pod, profile);
        let last = all.last().expect("a summary");
        assert_eq!(last["kind"], "dns.summary", "{last}");
        assert!(last["seen"].as_str().is_some_and(|seen| seen.contains(reason)), "{last}");
        let queries: u64 =
            last["counts"].as_array().expect("counts").iter().filter_map(|of| of["queries"].as_u64()).sum();
        assert!(queries >= 16, "{last}");
    }
}
