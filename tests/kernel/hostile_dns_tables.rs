//! A container that opens thousands of connections and sockets, or sends from thousands of threads, takes no place in the
//! kernel side's tables from its neighbour, and what it loses is counted on it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use podopsy_model::{Detail, DnsCounts, Event, Outcome};
use support::dns_flood::{
    Task, Work, cgroups, counts, recording, report_ready, report_sent, sent, wait_until_ready,
};
use support::{in_own_network, query, respond, times};

const A: u16 = 1;
const NXDOMAIN: u16 = 0x8183;
/// What an attacker holds open at a time: more than any of the tables has places.
const CONNECTIONS: u32 = 3000;
const THREADS: u32 = 5000;
/// The neighbour's queries.
const ASKED: usize = 10;
/// How long the neighbour's queries are cut in two, and how long their answers take.
const PAUSE: Duration = Duration::from_secs(2);
/// A Service, and the address of the pod behind it.
const SERVICE: &str = "10.96.0.10";
const POD: &str = "10.1.0.1";

#[test]
#[ignore = "called by others, in a memory cgroup of their own"]
fn process_for_other_tests() {
    let Some(task) = Task::of_this_process() else { return };
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of descriptors");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many descriptors as are allowed");
    in_own_network(move || {
        report_sent(match &*task.kind {
            "halves" => hold_connections(&task, |message| message.len() / 2),
            "queries" => hold_connections(&task, <[u8]>::len),
            "pieces" => ask_in_pieces(&task),
            "closed" => ask_by_closed_connections(&task),
            "senders" => send_by_many_threads(&task),
            "service" => ask_a_service(),
            "ended" => ask_by_ended_threads(&task),
            other => unreachable!("{other}"),
        });
    });
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// Opens connections to its own server, sends a part of a query by each, and keeps the newest ones open.
fn hold_connections(task: &Task, part: fn(&[u8]) -> usize) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:53").expect("listen");
    let mut open = VecDeque::new();
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < Duration::from_secs(task.seconds.into()) {
        let mut client = TcpStream::connect("127.0.0.1:53").expect("connect");
        let server = listener.accept().expect("accept").0;
        let message = framed(&query(number as u16, "flood.test", A));
        client.write_all(&message[..part(&message)]).expect("send");
        open.push_back((client, server));
        number += 1;
        if number == CONNECTIONS {
            report_ready();
        }
        if open.len() > CONNECTIONS as usize {
            open.pop_front();
            std::thread::sleep(Duration::from_secs(1) / task.rate);
        }
    }
    u64::from(number)
}

/// Asks over TCP. Each query and each answer comes in two pieces, and in between this process moves to another cgroup.
fn ask_in_pieces(task: &Task) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:53").expect("listen");
    let mut open: Vec<(TcpStream, TcpStream, Vec<u8>)> = (0..ASKED)
        .map(|n| {
            let client = TcpStream::connect("127.0.0.1:53").expect("connect");
            let server = listener.accept().expect("accept").0;
            (client, server, framed(&query(n as u16, &format!("n{n}.pieces.test"), A)))
        })
        .collect();
    open.iter_mut()
        .for_each(|(client, _, message)| client.write_all(&message[..9]).expect("the first piece"));
    std::thread::sleep(PAUSE);
    std::fs::write(task.cgroups[1].join("cgroup.procs"), "0").expect("move to another cgroup");
    for (client, server, message) in &mut open {
        client.write_all(&message[9..]).expect("the rest");
        let mut asked = vec![0; message.len()];
        server.read_exact(&mut asked).expect("the query");
        server.write_all(&framed(&respond(&asked[2..], NXDOMAIN, 1, 0))[..5]).expect("the first piece");
    }
    std::thread::sleep(PAUSE);
    for (client, server, message) in &mut open {
        server.write_all(&framed(&respond(&message[2..], NXDOMAIN, 1, 0))[5..]).expect("the rest");
        let mut answer = vec![0; message.len()];
        client.read_exact(&mut answer).expect("the answer");
    }
    ASKED as u64
}

/// Asks many times, each time by a connection of its own, which is closed.
fn ask_by_closed_connections(task: &Task) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:53").expect("listen");
    for n in 0..task.rate {
        let mut client = TcpStream::connect("127.0.0.1:53").expect("connect");
        let mut server = listener.accept().expect("accept").0;
        let message = query(n as u16, "closed.test", A);
        let mut bytes = vec![0; message.len() + 2];
        client.write_all(&framed(&message)).expect("ask");
        server.read_exact(&mut bytes).expect("the query");
        server.write_all(&framed(&respond(&message, NXDOMAIN, 1, 0))).expect("answer");
        client.read_exact(&mut bytes).expect("the answer");
    }
    task.rate.into()
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().expect("apt-get install iptables");
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes the Service, and returns the socket of its pod. As by a load balancer that rewrites in the socket, an answer comes
/// from the pod.
fn service() -> UdpSocket {
    run("ip", &format!("address add {POD}/32 dev lo"));
    run("ip", &format!("route add {SERVICE}/32 dev lo"));
    let to = format!("-p udp -d {SERVICE} --dport 53 -j DNAT --to-destination {POD}:53");
    run("iptables", &format!("-w -t nat -A OUTPUT {to}"));
    run("iptables", &format!("-w -t raw -A OUTPUT -p udp -s {POD} --sport 53 -j CT --notrack"));
    UdpSocket::bind((POD, 53)).expect("bind")
}

fn ask_by_new_socket(id: u16, name: &str, server: &str) -> UdpSocket {
    let client = UdpSocket::bind("0.0.0.0:0").expect("a client");
    client.send_to(&query(id, name, A), (server, 53)).expect("ask");
    client
}

/// Asks the Service by many threads, which live on, each time by a new socket.
fn send_by_many_threads(task: &Task) -> u64 {
    // It never reads.
    let _server = service();
    let end = Instant::now() + Duration::from_secs(task.seconds.into());
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let ask = move || {
                let mut sent = 0;
                while Instant::now() < end {
                    // The node may track no more connections.
                    let client = UdpSocket::bind("0.0.0.0:0").expect("a client");
                    let message = query(n as u16, "flood.test", A);
                    sent += u64::from(client.send_to(&message, (SERVICE, 53)).is_ok());
                    std::thread::sleep(Duration::from_secs(2));
                }
                sent
            };
            std::thread::Builder::new().stack_size(128 << 10).spawn(ask).expect("a thread")
        })
        .collect();
    report_ready();
    threads.into_iter().map(|thread| thread.join().expect("its number")).sum()
}

/// Asks the Service, each time by a new socket. Its answers take a while.
fn ask_a_service() -> u64 {
    let server = service();
    let clients: Vec<UdpSocket> =
        (0..ASKED).map(|n| ask_by_new_socket(n as u16, &format!("n{n}.service.test"), SERVICE)).collect();
    std::thread::sleep(PAUSE);
    for client in clients {
        answer(&server);
        client.recv(&mut [0; 512]).expect("the answer");
    }
    ASKED as u64
}

/// Asks many times, each time by a thread of its own, which ends, and by a socket that is not connected.
fn ask_by_ended_threads(task: &Task) -> u64 {
    let server = UdpSocket::bind("127.0.0.1:53").expect("bind");
    for n in 0..task.rate {
        let ask = move || ask_by_new_socket(n as u16, "ended.test", "127.0.0.1");
        let client = std::thread::spawn(ask).join().expect("it ends");
        answer(&server);
        client.recv(&mut [0; 512]).expect("the answer");
    }
    task.rate.into()
}

/// Answers one query.
fn answer(server: &UdpSocket) {
    let mut buffer = [0; 512];
    let (len, from) = server.recv_from(&mut buffer).expect("a query");
    server.send_to(&respond(&buffer[..len], NXDOMAIN, 1, 0), from).expect("answer");
}

/// The outcomes of a cgroup's queries, by their names and servers.
fn outcomes(seen: &[Event], cgroup_id: u64) -> Vec<(String, Outcome, String)> {
    let own = seen.iter().filter(|event| event.cgroup.id == cgroup_id);
    let mut found: Vec<_> = own
        .filter_map(|event| {
            let Detail::Dns(dns) = &event.detail else { return None };
            Some((dns.name.clone()?, dns.outcome, dns.server.to_string()))
        })
        .collect();
    found.sort();
    found
}

/// Runs a flood beside a neighbour whose queries fail: each failure is the neighbour's, with its name and its server.
fn flood(attack: &'static str, attackers: usize, rate: u32, neighbour: &'static str, server: &str) {
    let (loud, quiet) = (cgroups(attack, attackers), cgroups("quiet", 2));
    let mut recording = recording();
    let mut floods: Vec<_> = loud
        .chunks(1)
        .map(|cgroup| {
            let mut flood = Work { kind: attack, rate, seconds: 20, cgroups: cgroup }
                .start(full_name!("process_for_other_tests"));
            wait_until_ready(&mut flood);
            flood
        })
        .collect();
    let mut neighbour = Work { kind: neighbour, rate: 1, seconds: 1, cgroups: &quiet }
        .start(full_name!("process_for_other_tests"));
    while neighbour.try_wait().expect("wait for the neighbour").is_none() {
        recording.receive_for(Duration::from_millis(50));
    }
    assert!(
        floods.iter_mut().all(|flood| flood.try_wait().expect("wait for the flood").is_none()),
        "the neighbour is done before the flood"
    );
    let asked = sent(neighbour);
    while floods.iter_mut().any(|flood| flood.try_wait().expect("wait for the flood").is_none()) {
        recording.receive_for(Duration::from_millis(50));
    }
    let sent: u64 = floods.into_iter().map(sent).sum();
    // The timeouts of the neighbour's queries that were not recognised, and those of the flood.
    recording.receive_for(Duration::from_secs(7));
    let (loud_counts, quiet_counts) = (counts(&recording, &loud), counts(&recording, &quiet[..1]));
    let id = quiet[0].id();
    let (seen, losses) = recording.stop();
    let found = outcomes(&seen, id);
    println!("{attack}: {sent} sent, {loud_counts:?}; neighbour {found:?} {quiet_counts:?}; {losses:?}");
    let names = found.iter().filter(|(_, outcome, at)| *outcome == Outcome::Nxdomain && at == server);
    assert_eq!((names.count(), found.len()), (asked as usize, asked as usize), "{losses:?}");
    assert_eq!((quiet_counts.queries, quiet_counts.untracked), (asked, 0));
    // What the flood loses is counted on it, and nothing is counted that it does not lose.
    let lost = |name: &str| losses.get(name).copied().unwrap_or(0);
    assert!(loud_counts.untracked > 0, "{loud_counts:?}");
    assert_eq!(
        (lost("dns_over_share"), lost("dns_named")),
        (loud_counts.untracked, loud_counts.unnamed),
        "{losses:?} {loud_counts:?}"
    );
    assert_eq!((lost("dns_in_flight"), lost("dns_connected")), (0, 0), "no table is ever full: {losses:?}");
}

#[test]
fn thousands_of_half_queries_over_tcp_leave_a_neighbour_its_failures() {
    flood("halves", 1, 4000, "pieces", "127.0.0.1:53");
}

#[test]
fn thousands_of_connections_leave_a_neighbour_its_failures() {
    flood("queries", 1, 4000, "pieces", "127.0.0.1:53");
}

#[test]
fn many_cgroups_with_thousands_of_connections_leave_a_neighbour_its_failures() {
    flood("queries", 12, 200, "pieces", "127.0.0.1:53");
}

#[test]
fn thousands_of_threads_that_ask_a_service_leave_a_neighbour_its_failures() {
    flood("senders", 1, 1, "service", &format!("{SERVICE}:53"));
}

/// Asks more often than a container's share of a table, one query after the other: none is lost.
fn none_is_lost(kind: &'static str, number: usize) {
    let quiet = cgroups(kind, 1);
    let mut recording = recording();
    let mut child = Work { kind, rate: times(number) as u32, seconds: 1, cgroups: &quiet }
        .start(full_name!("process_for_other_tests"));
    while child.try_wait().expect("wait for it").is_none() {
        recording.receive_for(Duration::from_millis(50));
    }
    let asked = sent(child);
    recording.receive_for(Duration::from_secs(1));
    let counts: DnsCounts = counts(&recording, &quiet);
    let (_, losses) = recording.stop();
    assert_eq!(
        (counts.queries, counts.outcome(Outcome::Nxdomain), counts.untracked),
        (asked, asked, 0),
        "{losses:?}"
    );
    let lost = ["dns_over_share", "dns_connected", "dns_named", "dns_tcp_unparsed"];
    assert!(lost.iter().all(|name| !losses.contains_key(*name)), "{losses:?}");
}

#[test]
fn closed_connections_leave_their_places() {
    none_is_lost("closed", 4000);
}

#[test]
fn threads_that_end_leave_their_places() {
    none_is_lost("ended", 6000);
}
