//! Outcomes that the header of an answer does not show: queries that were abandoned, aliases without data, other operation
//! codes, extended response codes, TCP connections that fail, answers from other addresses, and what is not DNS.
//!
//! Each situation is reported once, or not at all if it is no failure, and counted as the event says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use crate::support;
use nix::sys::socket::{Backlog, listen};
use podopsy_model::event::Protocol;
use podopsy_model::{Detail, DnsCounts, DnsTransaction, Event, EventKind, Outcome, TcpFailure};
use podopsy_recorder::{DnsOptions, RecorderOptions};
use support::{Recording, dns, fine, in_own_network, no_runtime, options, query, respond, transactions};

const SOON: Duration = Duration::from_secs(60);
const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const ANY: u16 = 255;
const SERVER: &str = "127.0.0.1:53";

/// A recorder whose timeout no test waits for.
fn recording(change: impl FnOnce(&mut DnsOptions)) -> Recording {
    let mut dns = DnsOptions { timeout: Duration::from_secs(5), ..dns() };
    change(&mut dns);
    Recording::start(RecorderOptions { oom: false, dns: Some(dns), ..options() }, no_runtime())
}

/// The transactions of a name, whose events are all of this kind.
fn of<'a>(seen: &'a [Event], name: &str, kind: EventKind) -> Vec<&'a DnsTransaction> {
    let found = transactions(seen, name);
    assert!(found.iter().all(|(event, _)| event.kind == kind), "{name}: {found:#?}");
    found.into_iter().map(|(_, dns)| dns).collect()
}

/// The one failure of a name.
fn failure<'a>(recording: &'a mut Recording, name: &str) -> &'a DnsTransaction {
    recording.until(name, SOON, |seen| !transactions(seen, name).is_empty());
    recording.receive_for(Duration::from_millis(500));
    let found = of(&recording.seen, name, EventKind::DnsFailure);
    assert_eq!(found.len(), 1, "{name}: {found:#?}");
    found[0]
}

/// The sum of all counts.
fn counts(recording: &Recording) -> DnsCounts {
    let mut sum = DnsCounts::default();
    recording.dns_counts().iter().for_each(|counts| sum.add(counts));
    sum
}

fn millis(dns: &DnsTransaction) -> u64 {
    dns.latency_ns / 1_000_000
}

fn server_at(address: &str) -> UdpSocket {
    UdpSocket::bind(address).expect("bind port 53 in our own namespace")
}

fn client() -> UdpSocket {
    UdpSocket::bind("0.0.0.0:0").expect("a client")
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 1500];
    let (length, from) = socket.recv_from(&mut buffer).expect("a message");
    (buffer[..length].to_vec(), from)
}

/// Sends `message` from a connected socket, and receives what the server makes of it.
fn exchange(message: &[u8], answer: impl Fn(&[u8]) -> Vec<u8>) {
    let (server, client) = (server_at(SERVER), client());
    client.connect(SERVER).expect("connect");
    client.send(message).expect("ask");
    let (asked, from) = receive(&server);
    server.send_to(&answer(&asked), from).expect("answer");
    receive(&client);
}

/// A record whose owner is the question's name.
fn record(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_be_bytes();
    [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 30], &length, data].concat()
}

/// An answer with these records, of which `answers` are in the answer section and the rest in the additional one.
fn with_records(query: &[u8], flags: u16, answers: u16, additional: u16, records: &[Vec<u8>]) -> Vec<u8> {
    let mut out = respond(query, flags, 1, answers);
    out[10..12].copy_from_slice(&additional.to_be_bytes());
    out.extend(records.concat());
    out
}

#[test]
fn a_query_that_another_server_answered_first_is_abandoned_and_no_failure() {
    let mut recording = recording(|_| ());
    in_own_network(|| {
        let (quick, slow) = (server_at(SERVER), server_at("127.0.0.2:53"));
        for id in 1..=10 {
            // As musl asks: both servers at once, with one id, from one socket that is not connected.
            let client = client();
            for (id, qtype) in [(2 * id, A), (2 * id + 1, AAAA)] {
                for server in [SERVER, "127.0.0.2:53"] {
                    client.send_to(&query(id, "both.test", qtype), server).expect("ask");
                }
            }
            for _ in 0..2 {
                let (asked, from) = receive(&quick);
                quick.send_to(&fine(&asked), from).expect("answer");
                receive(&client);
                receive(&slow);
            }
        }
        exchange_beside(&quick, &query(99, "mark.test", A));
    });
    recording.until("the mark", SOON, |seen| !transactions(seen, "mark.test").is_empty());
    recording.receive_for(Duration::from_millis(6500));
    assert_eq!(transactions(&recording.seen, "both.test").len(), 0, "{:#?}", recording.seen);
    let counts = counts(&recording);
    let outcomes = [Outcome::Abandoned, Outcome::Timeout, Outcome::Late].map(|it| counts.outcome(it));
    assert_eq!(outcomes, [20, 0, 0], "{counts:?}");
    assert_eq!(counts.queries, counts.outcomes.values().sum::<u64>(), "{counts:?}");
}

#[test]
fn a_query_beside_a_truncated_answer_is_abandoned_and_no_failure() {
    let mut recording = recording(|_| ());
    in_own_network(|| {
        // As glibc does: it closes the socket at once, and asks for both by TCP.
        let (server, client) = (server_at(SERVER), client());
        client.connect(SERVER).expect("connect");
        client.send(&query(1, "large.test", A)).expect("ask");
        client.send(&query(2, "beside.test", AAAA)).expect("ask");
        let (asked, from) = receive(&server);
        server.send_to(&respond(&asked, 0x8380, 1, 0), from).expect("answer");
        receive(&client);
    });
    let truncated = failure(&mut recording, "large.test");
    assert_eq!(truncated.outcome, Outcome::Truncated);
    recording.receive_for(Duration::from_millis(1500));
    assert_eq!(transactions(&recording.seen, "beside.test").len(), 0);
    assert_eq!(counts(&recording).outcome(Outcome::Abandoned), 1);
}

#[test]
fn who_closes_the_socket_early_abandons_the_query_and_who_waits_as_resolvers_do_has_a_timeout() {
    let mut recording = recording(|_| ());
    in_own_network(|| {
        let silent = server_at(SERVER);
        for (id, name, wait) in [(1, "deadline.test", 200), (2, "patient.test", 1300)] {
            let client = client();
            client.connect(SERVER).expect("connect");
            client.send(&query(id, name, A)).expect("ask");
            sleep(Duration::from_millis(wait));
        }
        // An answer after the close reaches no socket.
        let client = client();
        client.connect(SERVER).expect("connect");
        client.send(&query(3, "after.test", A)).expect("ask");
        let (asked, from) = loop {
            let received = receive(&silent);
            if received.0[..2] == [0, 3] {
                break received;
            }
        };
        sleep(Duration::from_millis(100));
        drop(client);
        silent.send_to(&fine(&asked), from).expect("answer");
    });
    for (name, outcome, wait) in [
        ("deadline.test", Outcome::Abandoned, 200..1000),
        ("patient.test", Outcome::Timeout, 1300..3000),
        ("after.test", Outcome::Abandoned, 100..1000),
    ] {
        let dns = failure(&mut recording, name);
        assert_eq!(
            (dns.outcome, dns.facts.socket_closed, dns.facts.superseded),
            (outcome, true, false),
            "{name}"
        );
        assert!(wait.contains(&millis(dns)), "{name}: {} ms", millis(dns));
    }
    recording.receive_for(Duration::from_millis(6500));
    assert_eq!(recording.seen.len(), 3, "each is reported once: {:#?}", recording.seen);
    let counts = counts(&recording);
    assert_eq!((counts.outcome(Outcome::Abandoned), counts.outcome(Outcome::Timeout)), (2, 1), "{counts:?}");
}

#[test]
fn aaaa_that_is_abandoned_beside_an_answered_a_is_no_failure() {
    let mut recording = recording(|_| ());
    in_own_network(|| {
        let server = server_at(SERVER);
        let ask = |socket: &UdpSocket, id, name, qtype| {
            socket.connect(SERVER).expect("connect");
            socket.send(&query(id, name, qtype)).expect("ask");
            receive(&server)
        };
        // Both from one socket, as glibc; and from two, as Go.
        let (one, two) = (client(), client());
        for (name, a, aaaa) in [("one.test", &one, &one), ("two.test", &one, &two)] {
            ask(aaaa, 1, name, AAAA);
            let (asked, from) = ask(a, 2, name, A);
            server.send_to(&fine(&asked), from).expect("answer");
            receive(a);
        }
        drop((one, two));
        // Neither was answered, and there was no query for A.
        let client = client();
        for (id, name, qtype) in [(3, "neither.test", A), (4, "neither.test", AAAA), (5, "alone.test", AAAA)]
        {
            ask(&client, id, name, qtype);
        }
    });
    let abandoned = |seen: &[Event], name| of(seen, name, EventKind::DnsFailure).len();
    recording.until("the failures", SOON, |seen| {
        abandoned(seen, "neither.test") == 2 && abandoned(seen, "alone.test") == 1
    });
    recording.receive_for(Duration::from_millis(500));
    assert_eq!(recording.seen.len(), 3, "{:#?}", recording.seen);
    let counts = counts(&recording);
    assert_eq!((counts.outcome(Outcome::Abandoned), counts.outcome(Outcome::Noerror)), (5, 2), "{counts:?}");
}

#[test]
fn an_alias_with_nothing_behind_it_is_no_data() {
    let target = |label: &[u8]| [&[label.len() as u8][..], label, &[0xc0, 12]].concat();
    let mut recording = recording(|_| ());
    in_own_network(move || {
        let alias = record(CNAME, &target(b"gone"));
        let answers: [(&str, u16, Vec<Vec<u8>>); 7] = [
            ("dangling.test", A, vec![alias.clone()]),
            ("chain.test", AAAA, vec![alias.clone(), alias.clone(), alias.clone()]),
            // Not the type that was asked for.
            ("other-type.test", AAAA, vec![alias.clone(), record(A, &[192, 0, 2, 1])]),
            ("alias.test", A, vec![alias.clone(), record(A, &[192, 0, 2, 1])]),
            ("long.test", A, [vec![alias.clone(); 6], vec![record(A, &[192, 0, 2, 1])]].concat()),
            ("asked.test", CNAME, vec![alias.clone()]),
            ("any.test", ANY, vec![alias]),
        ];
        for (id, (name, qtype, records)) in (1..).zip(answers) {
            let count = records.len() as u16;
            exchange(&query(id, name, qtype), |query| with_records(query, 0x8180, count, 0, &records));
        }
    });
    for name in ["dangling.test", "chain.test", "other-type.test"] {
        assert_eq!(failure(&mut recording, name).outcome, Outcome::Nodata, "{name}");
    }
    assert_eq!(recording.seen.len(), 3, "{:#?}", recording.seen);
    let counts = counts(&recording);
    assert_eq!((counts.outcome(Outcome::Nodata), counts.outcome(Outcome::Noerror)), (3, 4), "{counts:?}");
}

/// The same message with another operation code.
fn with_opcode(mut query: Vec<u8>, opcode: u8) -> Vec<u8> {
    query[2] = opcode << 3;
    query
}

#[test]
fn other_operation_codes_are_named_and_noerror_is_their_success() {
    const UPDATE: u8 = 5;
    const NOTIFY: u8 = 4;
    const NOTAUTH: u16 = 9;
    let mut recording = recording(|_| ());
    in_own_network(|| {
        let flags = |opcode: u8, rcode: u16| 0x8000 | u16::from(opcode) << 11 | rcode;
        exchange(&with_opcode(query(1, "zone.test", SOA), UPDATE), |it| {
            respond(it, flags(UPDATE, 0), 0, 0)[..12].to_vec()
        });
        exchange(&with_opcode(query(2, "zone.test", SOA), NOTIFY), |it| respond(it, flags(NOTIFY, 0), 1, 0));
        exchange(&with_opcode(query(3, "not-mine.test", SOA), UPDATE), |it| {
            respond(it, flags(UPDATE, NOTAUTH), 1, 0)
        });
        // Inverse queries and status requests have no question.
        let status = [0, 4, 2 << 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        exchange(&status, |it| respond(it, flags(2, 4), 0, 0));
    });
    let refused = failure(&mut recording, "not-mine.test");
    assert_eq!((refused.facts.opcode.as_deref(), refused.outcome), (Some("UPDATE"), Outcome::Other));
    assert_eq!(refused.rcode, Some(NOTAUTH));
    recording.until("the status request", SOON, |seen| seen.len() >= 2);
    let Detail::Dns(status) = &recording.seen[1].detail else { panic!("{:#?}", recording.seen) };
    assert_eq!((status.facts.opcode.as_deref(), status.rcode), (Some("STATUS"), Some(4)), "{status:?}");
    assert_eq!((&status.name, &status.malformed), (&None, &None), "{status:?}");
    let counts = counts(&recording);
    let outcomes = [Outcome::Noerror, Outcome::Nodata, Outcome::Other].map(|it| counts.outcome(it));
    assert_eq!(outcomes, [2, 0, 2], "{counts:?}");
}

#[test]
fn the_response_code_has_its_upper_bits_in_events_and_in_counts() {
    const BADVERS: u16 = 16;
    const BADKEY: u16 = 17;
    const BADCOOKIE: u16 = 23;
    let mut recording = recording(|_| ());
    in_own_network(|| {
        for (id, name, rcode) in
            [(1, "badvers.test", BADVERS), (2, "badkey.test", BADKEY), (3, "badcookie.test", BADCOOKIE)]
        {
            let opt = vec![0, 0, 41, 4, 208, (rcode >> 4) as u8, 0, 0, 0, 0, 0];
            exchange(&query(id, name, A), |query| {
                with_records(query, 0x8180 | rcode & 15, 0, 1, std::slice::from_ref(&opt))
            });
        }
    });
    for (name, rcode) in [("badvers.test", BADVERS), ("badkey.test", BADKEY), ("badcookie.test", BADCOOKIE)] {
        let dns = failure(&mut recording, name);
        assert_eq!((dns.outcome, dns.rcode), (Outcome::Other, Some(rcode)), "{name}");
    }
    let counts = counts(&recording);
    assert_eq!(counts.outcomes, [(Outcome::Other, 3)].into(), "{counts:?}");
}

/// A truncated answer over UDP, which makes the client ask by TCP.
fn truncated(name: &str) {
    exchange(&query(1, name, A), |query| respond(query, 0x8380, 1, 0));
}

#[test]
fn a_tcp_connection_that_fails_after_a_truncated_answer_is_an_outcome_with_its_time() {
    let mut recording = recording(|_| ());
    in_own_network(|| {
        truncated("refused.test");
        TcpStream::connect(SERVER).expect_err("no server listens");
        truncated("reset.test");
        let listener = TcpListener::bind(SERVER).expect("listen");
        let mut client = TcpStream::connect(SERVER).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        let asked = query(2, "reset.test", A);
        client.write_all(&[&(asked.len() as u16).to_be_bytes()[..], &asked].concat()).expect("ask");
        // What is not read makes the close a reset.
        server.read_exact(&mut [0; 2]).expect("the length");
        drop(server);
        client.read_exact(&mut [0; 2]).expect_err("the connection was reset");
        // A queue of connections that is full: further SYNs are not answered.
        listen(&listener, Backlog::new(0).expect("a length")).expect("listen with a shorter queue");
        let _waiting = TcpStream::connect(SERVER).expect("the one that fits");
        truncated("silent.test");
        let to: SocketAddr = SERVER.parse().expect("an address");
        TcpStream::connect_timeout(&to, Duration::from_millis(1200)).expect_err("no SYN is answered");
    });
    let facts =
        |dns: &DnsTransaction| (dns.outcome, dns.facts.tcp_failure, dns.protocol, dns.facts.after_truncated);
    for (name, expected) in [
        ("refused.test", (Outcome::Unreachable, Some(TcpFailure::Refused), Protocol::Tcp, true)),
        ("reset.test", (Outcome::Unreachable, Some(TcpFailure::Reset), Protocol::Tcp, false)),
        ("silent.test", (Outcome::Timeout, Some(TcpFailure::Unanswered), Protocol::Tcp, true)),
    ] {
        let is_tcp = |dns: &&DnsTransaction| dns.protocol == Protocol::Tcp;
        recording.until(name, SOON, |seen| of(seen, name, EventKind::DnsFailure).iter().any(is_tcp));
        recording.receive_for(Duration::from_millis(300));
        let found = of(&recording.seen, name, EventKind::DnsFailure);
        assert_eq!(found.len(), 2, "truncated, and TCP: {found:#?}");
        assert_eq!(facts(found[1]), expected, "{name}: {found:#?}");
        let wait = if name == "silent.test" { 1200..3000 } else { 0..1000 };
        assert!(wait.contains(&millis(found[1])), "{name}: {} ms", millis(found[1]));
    }
    let counts = counts(&recording);
    assert_eq!(counts.queries, counts.outcomes.values().sum::<u64>(), "{counts:?}");
}

#[test]
fn an_answer_from_another_address_is_named() {
    let mut recording = recording(|dns| dns.timeout = Duration::from_secs(1));
    in_own_network(|| {
        let (server, other) = (server_at(SERVER), server_at("127.0.0.5:53"));
        let mut clients = Vec::new();
        for (id, name, is_connected) in [(1, "connected.test", true), (2, "open.test", false)] {
            let client = client();
            match is_connected {
                true => client.connect(SERVER).and_then(|()| client.send(&query(id, name, A))),
                false => client.send_to(&query(id, name, A), SERVER),
            }
            .expect("ask");
            let (asked, from) = receive(&server);
            other.send_to(&fine(&asked), from).expect("answer");
            sleep(Duration::from_millis(50));
            clients.push(client);
        }
        // Two answers from the server itself, and a second answer of a server that was asked, too.
        let client = client();
        let second = server_at("127.0.0.2:53");
        for to in [SERVER, "127.0.0.2:53"] {
            client.send_to(&query(3, "twice.test", A), to).expect("ask");
        }
        let ((asked, from), _) = (receive(&server), receive(&second));
        for _ in 0..2 {
            server.send_to(&fine(&asked), from).expect("answer");
            sleep(Duration::from_millis(50));
        }
        sleep(Duration::from_millis(2500));
    });
    for name in ["connected.test", "open.test"] {
        let dns = failure(&mut recording, name);
        assert_eq!(dns.outcome, Outcome::Timeout, "{name}");
        assert_eq!(dns.facts.answered_from, Some("127.0.0.5:53".parse().unwrap()), "{name}");
    }
    let twice = failure(&mut recording, "twice.test");
    assert_eq!((twice.outcome, twice.facts.answered_from), (Outcome::Timeout, None), "{twice:?}");
}

#[test]
fn what_is_not_dns_is_neither_a_query_nor_a_failure() {
    let mut recording = recording(|dns| dns.timeout = Duration::from_secs(1));
    in_own_network(|| {
        let (server, client) = (server_at(SERVER), client());
        client.connect(SERVER).expect("connect");
        // WireGuard (its first handshake message, and data), OpenVPN, QUIC, and text.
        let wireguard = [&[1, 0, 0, 0, 0x9a, 0x1c, 0x44, 0xe1][..], &[0x5a; 140]].concat();
        let data = [&[4, 0, 0, 0, 0x17, 0x90, 0x33, 0x02, 1, 0, 0, 0, 0, 0, 0, 0][..], &[0xc3; 80]].concat();
        let openvpn = [&[0x38, 0x91, 0x77, 0x31, 0x0a, 0xee, 0x8c, 0x5f, 0x20, 0, 0, 0, 0, 0][..]].concat();
        let quic = [&[0xc3, 0, 0, 0, 1, 8, 0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51][..], &[7; 40]].concat();
        for message in [wireguard, data, openvpn, quic, b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
            client.send(&message).expect("send");
            receive(&server);
        }
        exchange_beside(&server, &query(9, "mark.test", A));
        sleep(Duration::from_millis(1500));
    });
    recording.until("the mark", SOON, |seen| !transactions(seen, "mark.test").is_empty());
    recording.receive_for(Duration::from_millis(2500));
    assert_eq!(recording.seen.len(), 1, "{:#?}", recording.seen);
    let counts = counts(&recording);
    assert_eq!((counts.not_dns, counts.queries), (5, 1), "{counts:?}");
}

/// As `exchange`, with a server that is there already, and NXDOMAIN.
fn exchange_beside(server: &UdpSocket, message: &[u8]) {
    let client = client();
    client.connect(SERVER).expect("connect");
    client.send(message).expect("ask");
    let (asked, from) = receive(server);
    server.send_to(&respond(&asked, 0x8183, 1, 0), from).expect("answer");
    receive(&client);
}

#[test]
fn aaaa_without_data_is_a_failure_only_where_a_was_not_asked_for() {
    for (aaaa_nodata, expected) in [(false, 0), (true, 1)] {
        let mut recording = recording(|dns| dns.aaaa_nodata = aaaa_nodata);
        in_own_network(|| {
            // Both from one socket, as glibc; in upper case, which makes no difference.
            let (server, client) = (server_at(SERVER), client());
            client.connect(SERVER).expect("connect");
            client.send(&query(1, "both.test", A)).expect("ask");
            client.send(&query(2, "Both.Test", AAAA)).expect("ask");
            for answer in [fine as fn(&[u8]) -> Vec<u8>, |query| respond(query, 0x8180, 1, 0)] {
                let (asked, from) = receive(&server);
                server.send_to(&answer(&asked), from).expect("answer");
                receive(&client);
            }
            drop((server, client));
            // As Go may do: AAAA was answered before A is asked for.
            exchange(&query(4, "first.test", AAAA), |query| respond(query, 0x8180, 1, 0));
            exchange(&query(5, "first.test", A), fine);
            exchange(&query(3, "alone.test", AAAA), |query| respond(query, 0x8180, 1, 0));
        });
        assert_eq!(failure(&mut recording, "alone.test").outcome, Outcome::Nodata);
        assert_eq!(of(&recording.seen, "both.test", EventKind::DnsFailure).len(), expected);
        assert_eq!(of(&recording.seen, "first.test", EventKind::DnsFailure).len(), expected);
        let counts = counts(&recording);
        assert_eq!((counts.outcome(Outcome::Nodata), counts.outcome(Outcome::Noerror)), (3, 2), "{counts:?}");
    }
}
