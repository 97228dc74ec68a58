//! DNS queries of host processes, each outcome once, to the test's own server in its own network namespace.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::support;
use podopsy_model::event::Protocol;
use podopsy_model::{Detail, Event, EventKind, KnownBy, Outcome};
use podopsy_recorder::{DnsOptions, RecorderOptions};
use support::{Recording, dns, in_own_network, no_runtime, options, query, respond, transactions};

const SOON: Duration = Duration::from_secs(60);
const A: u16 = 1;
const AAAA: u16 = 28;

fn outcomes(events: &[Event], name: &str) -> Vec<Outcome> {
    transactions(events, name).iter().map(|(_, dns)| dns.outcome).collect()
}

/// One exchange on a connected socket: the server sends the result of `answer` for the query.
fn exchange(ip: IpAddr, name: &str, answer: impl Fn(&[u8]) -> Vec<u8>) {
    let server = UdpSocket::bind(SocketAddr::new(ip, 53)).expect("bind port 53 in our own namespace");
    let client = UdpSocket::bind(SocketAddr::new(ip, 0)).expect("a client");
    client.connect(SocketAddr::new(ip, 53)).expect("connect");
    client.send(&query(7, name, A)).expect("ask");
    let mut buffer = [0; 1500];
    let (len, from) = server.recv_from(&mut buffer).expect("the query");
    server.send_to(&answer(&buffer[..len]), from).expect("answer");
    client.recv(&mut buffer).expect("the answer");
}

fn localhost() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

#[test]
fn every_rcode_is_its_own_outcome_reported_once() {
    let cases = [
        ("formerr.test", 0x8181, Outcome::Formerr),
        ("servfail.test", 0x8182, Outcome::Servfail),
        ("nxdomain.test", 0x8183, Outcome::Nxdomain),
        ("refused.test", 0x8185, Outcome::Refused),
        ("nodata.test", 0x8180, Outcome::Nodata),
        ("truncated.test", 0x8380, Outcome::Truncated),
    ];
    let mut recording = Recording::host();
    in_own_network(move || {
        for (name, flags, _) in cases {
            exchange(localhost(), name, |query| respond(query, flags, 1, 0));
        }
    });
    recording.until("six outcomes", SOON, |seen| cases.iter().all(|case| !outcomes(seen, case.0).is_empty()));
    recording.receive_for(Duration::from_millis(500));
    for (name, flags, expected) in cases {
        let found = transactions(&recording.seen, name);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        let (event, dns) = found[0];
        assert_eq!((event.kind, event.known_by), (EventKind::DnsFailure, KnownBy::Host));
        assert_eq!(event.process.pid, std::process::id(), "{name}");
        assert_eq!((dns.outcome, dns.rcode), (expected, Some(flags & 15)), "{name}");
        assert_eq!((dns.qtype.as_deref(), dns.protocol), (Some("A"), Protocol::Udp));
        assert_eq!(dns.server, SocketAddr::new(localhost(), 53));
        assert!((1..1_000_000_000).contains(&dns.latency_ns), "{name}: {} ns", dns.latency_ns);
        assert!(event.process.start_time.is_some() && event.cgroup.id != 0);
    }
}

#[test]
fn silence_is_a_timeout_and_an_answer_after_it_is_late() {
    let mut recording = Recording::host();
    let (asked, resume) = (std::sync::mpsc::channel::<()>(), std::sync::mpsc::channel::<()>());
    let (notify, go_on) = (asked.0, resume.1);
    let network = std::thread::spawn(move || {
        in_own_network(move || {
            let server = UdpSocket::bind("127.0.0.1:53").expect("bind");
            let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
            client.connect("127.0.0.1:53").expect("connect");
            client.send(&query(9, "silent.test", AAAA)).expect("ask");
            client.send(&query(9, "silent.test", AAAA)).expect("ask again, same id");
            let mut buffer = [0; 1500];
            let (len, from) = server.recv_from(&mut buffer).expect("the query");
            notify.send(()).expect("the test listens");
            go_on.recv().expect("the test goes on");
            server.send_to(&respond(&buffer[..len], 0x8183, 1, 0), from).expect("answer at last");
            client.recv(&mut buffer).expect("the late answer");
        })
    });
    asked.1.recv().expect("the query was sent");
    recording.until("timeout", SOON, |seen| outcomes(seen, "silent.test") == [Outcome::Timeout]);
    resume.0.send(()).expect("the network thread waits");
    network.join().expect("the network thread");
    recording.until("late answer", SOON, |seen| {
        outcomes(seen, "silent.test") == [Outcome::Timeout, Outcome::Late]
    });
    let found = transactions(&recording.seen, "silent.test");
    assert_eq!((found[0].1.sends, found[0].1.rcode, found[0].1.qtype.as_deref()), (2, None, Some("AAAA")));
    let waited = Duration::from_nanos(found[0].1.latency_ns);
    assert!((Duration::from_secs(1)..Duration::from_secs(2)).contains(&waited), "{waited:?}");
}

#[test]
fn a_server_that_is_not_there_is_unreachable_and_no_timeout() {
    let mut recording = Recording::host();
    in_own_network(|| {
        let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
        client.connect("127.0.0.1:53").expect("connect");
        client.send(&query(11, "closed.test", A)).expect("ask");
        std::thread::sleep(Duration::from_millis(100));
    });
    recording.until("unreachable", SOON, |seen| !outcomes(seen, "closed.test").is_empty());
    recording.receive_for(Duration::from_millis(1500));
    assert_eq!(outcomes(&recording.seen, "closed.test"), [Outcome::Unreachable]);
}

#[test]
fn ipv6_and_tcp_are_seen_too() {
    let mut recording = Recording::host();
    in_own_network(|| {
        exchange(IpAddr::V6(Ipv6Addr::LOCALHOST), "six.test", |query| respond(query, 0x8183, 1, 0));
        let server = TcpListener::bind("127.0.0.1:53").expect("bind");
        let mut client = TcpStream::connect("127.0.0.1:53").expect("connect");
        let asked = query(13, "tcp.test", A);
        client.write_all(&[&(asked.len() as u16).to_be_bytes()[..], &asked].concat()).expect("ask");
        let (mut stream, _) = server.accept().expect("accept");
        let mut buffer = vec![0; asked.len() + 2];
        stream.read_exact(&mut buffer).expect("the query");
        let answer = respond(&buffer[2..], 0x8182, 1, 0);
        stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat()).expect("answer");
        client.read_exact(&mut buffer).expect("the answer");
    });
    let both =
        |seen: &[Event]| !outcomes(seen, "six.test").is_empty() && !outcomes(seen, "tcp.test").is_empty();
    recording.until("both", SOON, both);
    let six = transactions(&recording.seen, "six.test")[0].1;
    assert_eq!((six.server.to_string().as_str(), six.outcome), ("[::1]:53", Outcome::Nxdomain));
    let (event, tcp) = transactions(&recording.seen, "tcp.test")[0];
    assert_eq!((tcp.protocol, tcp.outcome), (Protocol::Tcp, Outcome::Servfail));
    assert_eq!(event.process.pid, std::process::id());
}

#[test]
fn answers_are_shipped_only_when_asked_for() {
    let plain = |query: &[u8]| {
        let mut out = respond(query, 0x8180, 1, 1);
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        out
    };
    for (answers, expected) in [(false, vec![]), (true, vec![Outcome::Noerror])] {
        let mut recording = Recording::start(
            RecorderOptions { dns: Some(DnsOptions { answers, ..dns() }), ..options() },
            no_runtime(),
        );
        in_own_network(move || {
            exchange(localhost(), "fine.test", plain);
            exchange(localhost(), "mark.test", |query| respond(query, 0x8183, 1, 0));
        });
        recording.until("the mark", SOON, |seen| !outcomes(seen, "mark.test").is_empty());
        assert_eq!(outcomes(&recording.seen, "fine.test"), expected);
    }
}

#[test]
fn malformed_messages_are_reported_with_a_reason_and_nothing_crashes() {
    let mut recording = Recording::host();
    in_own_network(|| {
        // Invalid responses: a pointer to itself, another question, fewer answers than the header says.
        exchange(localhost(), "loop.test", |query| {
            let mut out = respond(query, 0x8180, 1, 1);
            out.truncate(12);
            out.extend([0xc0, 12, 0, 1, 0, 1]);
            out
        });
        exchange(localhost(), "other.test", |_| respond(&query(7, "evil.test", A), 0x8183, 1, 0));
        exchange(localhost(), "nothing.test", |query| respond(query, 0x8180, 1, 9));
        // Invalid queries: cut off, a name of more than 255 bytes, a loop, shorter than a header.
        let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
        let server = UdpSocket::bind("127.0.0.1:53").expect("bind");
        client.connect("127.0.0.1:53").expect("connect");
        let long = query(21, &["a".repeat(63).as_str(); 5].join("."), A);
        let mut looped = query(22, "x", A)[..12].to_vec();
        looped.extend([0xc0, 12, 0, 1, 0, 1]);
        for bad in [&query(20, "cut.test", A)[..15], &long, &looped, b"tiny"] {
            client.send(bad).expect("send");
        }
        drop(server);
    });
    let malformed = |seen: &[Event]| {
        seen.iter()
            .filter_map(|event| match &event.detail {
                Detail::Dns(dns) => dns.malformed.clone(),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    recording.until("six malformed messages", SOON, |seen| malformed(seen).len() >= 6);
    for name in ["loop.test", "other.test", "nothing.test"] {
        assert_eq!(outcomes(&recording.seen, name), [Outcome::Malformed], "{name}");
    }
    let reasons = malformed(&recording.seen);
    assert_eq!(reasons.iter().filter(|reason| reason.starts_with("query: ")).count(), 3, "{reasons:?}");
    let (_, losses) = recording.stop();
    assert_eq!(losses.get("dns_short"), Some(&1), "{losses:?}");
}
