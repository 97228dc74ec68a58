//! The kernel side's counts of each container's queries, and which queries become events.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support;
use podopsy_model::{EventKind, Outcome};
use podopsy_recorder::{DnsOptions, RecorderOptions};
use support::{
    MemoryCgroup, Recording, dns, fine, in_own_network, no_runtime, options, query, respond, transactions,
};

const SOON: Duration = Duration::from_secs(60);
const A: u16 = 1;
/// A limit that no test reaches.
const MEMORY: u64 = 1 << 30;

fn nxdomain(query: &[u8]) -> Vec<u8> {
    respond(query, 0x8183, 1, 0)
}

/// The work of a child process in a memory cgroup; the child is this test's own program.
#[derive(Clone)]
struct Asks {
    name: &'static str,
    count: u32,
    flags: &'static str,
}

/// Runs `asks` in `cgroup`, with its own server in its own network namespace.
fn ask_in(cgroup: &MemoryCgroup, asks: &Asks) -> std::process::Child {
    let this: PathBuf = std::env::current_exe().expect("this test's own program");
    let asker = full_name!("asker_process_for_other_tests");
    let mut command = cgroup.command(&format!("{} --ignored --exact {asker}", this.display()));
    command.env("PODOPSY_ASKS", format!("{} {} {}", asks.name, asks.count, asks.flags));
    command.stdout(std::process::Stdio::null()).spawn().expect("start ourselves again")
}

#[test]
#[ignore = "called by others, in a memory cgroup of their own"]
fn asker_process_for_other_tests() {
    let Ok(asks) = std::env::var("PODOPSY_ASKS") else { return };
    let words: Vec<&str> = asks.split(' ').collect();
    let (name, count, flags) = (words[0].to_owned(), words[1].parse::<u32>().unwrap(), words[2].to_owned());
    in_own_network(move || {
        let server = UdpSocket::bind("127.0.0.1:53").expect("bind port 53 in our own namespace");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
        client.connect("127.0.0.1:53").expect("connect");
        let mut buffer = [0; 1500];
        for n in 0..count {
            client.send(&query(n as u16, &name, A)).expect("ask");
            let (len, from) = server.recv_from(&mut buffer).expect("the query");
            let answer = match flags.as_str() {
                "silent" => continue,
                "nxdomain" => nxdomain(&buffer[..len]),
                _ => fine(&buffer[..len]),
            };
            server.send_to(&answer, from).expect("answer");
            client.recv(&mut buffer).expect("the answer");
        }
        if flags == "silent" {
            // As resolvers do: longer than the timeout.
            std::thread::sleep(Duration::from_millis(1500));
        }
    });
}

/// Runs `asks` to its end.
fn ask(cgroup: &MemoryCgroup, name: &'static str, count: u32, flags: &'static str) {
    let status = ask_in(cgroup, &Asks { name, count, flags }).wait().expect("wait for ourselves");
    assert!(status.success(), "{name}: {status}");
}

#[test]
fn successes_are_counted_to_the_last_one_for_the_client_alone() {
    let (one, other) = (MemoryCgroup::new("asks", MEMORY), MemoryCgroup::new("asks-too", MEMORY));
    let mut recording = Recording::host();
    ask(&one, "many.test", 1000, "fine");
    ask(&other, "few.test", 30, "fine");
    ask(&other, "none.test", 4, "nxdomain");
    recording.until("the failures", SOON, |seen| transactions(seen, "none.test").len() == 4);
    // Client and server are in the same cgroup, whose hooks see both ends of the same packets over loopback.
    let (one, other) = (recording.dns_counts_of(one.id()), recording.dns_counts_of(other.id()));
    assert_eq!((one.queries, one.outcome(Outcome::Noerror), one.resends), (1000, 1000, 0), "{one:?}");
    assert_eq!((other.queries, other.outcome(Outcome::Noerror)), (34, 30), "{other:?}");
    assert_eq!(other.outcome(Outcome::Nxdomain), 4);
    assert_eq!((one.latency.count(), other.latency.count()), (1000, 34));
    let median = one.latency.percentile(0.5).expect("answers took less than four seconds");
    assert!((Duration::from_micros(2)..Duration::from_secs(1)).contains(&median), "{median:?}");
    assert!(transactions(&recording.seen, "many.test").is_empty(), "successes are not shipped");
    let (_, losses) = recording.stop();
    assert_eq!(losses.get("dns_counters_full"), None, "{losses:?}");
}

#[test]
fn a_forwarder_that_asks_from_port_53_is_counted_once() {
    let mut recording = Recording::start(
        RecorderOptions { dns: Some(DnsOptions { answers: true, ..dns() }), ..options() },
        no_runtime(),
    );
    in_own_network(|| {
        // Both ports are DNS ports: at both ends, both hooks take each packet for DNS.
        let server = UdpSocket::bind("127.0.0.1:53").expect("bind port 53 in our own namespace");
        let forwarder = UdpSocket::bind("127.0.0.2:53").expect("bind the other port 53");
        let mut buffer = [0; 1500];
        for (name, answer) in [("forward.test", fine as fn(&[u8]) -> Vec<u8>), ("mark.test", nxdomain)] {
            forwarder.send_to(&query(5, name, A), "127.0.0.1:53").expect("ask");
            let (len, from) = server.recv_from(&mut buffer).expect("the query");
            server.send_to(&answer(&buffer[..len]), from).expect("answer");
            forwarder.recv(&mut buffer).expect("the answer");
        }
    });
    recording.until("the mark", SOON, |seen| !transactions(seen, "mark.test").is_empty());
    // Until after the timeout: the other end's view would be a query without an answer.
    recording.receive_for(Duration::from_millis(2500));
    let outcomes = |name: &str| -> Vec<Outcome> {
        transactions(&recording.seen, name).iter().map(|(_, dns)| dns.outcome).collect()
    };
    assert_eq!(
        (outcomes("forward.test"), outcomes("mark.test")),
        (vec![Outcome::Noerror], vec![Outcome::Nxdomain])
    );
    let (event, _) = transactions(&recording.seen, "forward.test")[0];
    assert_eq!(event.process.pid, std::process::id());
}

#[test]
fn a_flood_of_one_cgroup_is_counted_and_drops_no_failure_of_another() {
    let flood_of = support::times(20_000) as u32;
    let (loud, quiet) = (MemoryCgroup::new("loud", MEMORY), MemoryCgroup::new("quiet", MEMORY));
    let mut recording = Recording::host();
    let flood = Asks { name: "flood.test", count: flood_of, flags: "nxdomain" };
    let mut flood = ask_in(&loud, &flood);
    let begun = Instant::now();
    for _ in 0..4 {
        ask(&quiet, "quiet.test", 10, "nxdomain");
    }
    recording.until("the quiet one's failures", SOON, |seen| transactions(seen, "quiet.test").len() == 40);
    while flood.try_wait().expect("wait for the flood").is_none() {
        // Events are received meanwhile, as by a real reader.
        recording.receive_for(Duration::from_millis(50));
    }
    let took = begun.elapsed();
    let counts = recording.dns_counts_of(loud.id());
    assert_eq!((counts.queries, counts.outcome(Outcome::Nxdomain)), (flood_of.into(), flood_of.into()));
    assert_eq!(recording.dns_counts_of(quiet.id()).events_dropped, 0);
    let due = u64::from(flood_of) - counts.events_dropped;
    recording
        .until("the flood's other events", SOON, |seen| transactions(seen, "flood.test").len() as u64 >= due);
    // The burst, and five hundred a second.
    let most = 500 + 500 * (took.as_secs() + 1);
    assert!(due <= most, "{due} of at most {most} in {took:?}");
    let (seen, losses) = recording.stop();
    assert_eq!(transactions(&seen, "flood.test").len() as u64, due);
    if due < u64::from(flood_of) {
        // If the machine drains the ring too slowly, events are dropped there, too, and counted.
        let lost = ["dns_throttled", "dns_ring"].map(|name| losses.get(name).copied().unwrap_or(0));
        assert_eq!(lost.iter().sum::<u64>(), counts.events_dropped, "{losses:?}");
    }
}

#[test]
fn timeouts_of_an_outage_are_counted_and_do_not_flood() {
    const ASKED: u32 = 3000;
    let cgroup = MemoryCgroup::new("outage", MEMORY);
    let mut recording = Recording::host();
    ask(&cgroup, "outage.test", ASKED, "silent");
    let end = Instant::now() + SOON;
    while recording.dns_counts_of(cgroup.id()).outcome(Outcome::Timeout) < ASKED.into() {
        assert!(Instant::now() < end, "{:?}", recording.dns_counts_of(cgroup.id()));
        recording.receive_for(Duration::from_millis(100));
    }
    let counts = recording.dns_counts_of(cgroup.id());
    let (seen, losses) = recording.stop();
    let reported = transactions(&seen, "outage.test").len() as u64;
    assert_eq!(reported + counts.events_dropped, u64::from(ASKED), "{losses:?}");
    assert_eq!(counts.outcome(Outcome::Timeout), u64::from(ASKED));
    assert_eq!(losses.get("dns_throttled").copied().unwrap_or(0), counts.events_dropped);
    assert_eq!(losses.get("dns_in_flight_evicted"), None, "{losses:?}");
}

/// A query and its answer after `delay`.
fn exchange(port: u16, name: &str, delay: Duration) {
    let server = UdpSocket::bind(("127.0.0.1", port)).expect("bind in our own namespace");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
    client.connect(("127.0.0.1", port)).expect("connect");
    client.send(&query(7, name, A)).expect("ask");
    let mut buffer = [0; 1500];
    let (len, from) = server.recv_from(&mut buffer).expect("the query");
    std::thread::sleep(delay);
    server.send_to(&fine(&buffer[..len]), from).expect("answer");
    client.recv(&mut buffer).expect("the answer");
}

#[test]
fn slow_answers_are_shipped_and_others_are_not() {
    let slow_over = Duration::from_millis(300);
    let dns = DnsOptions { slow_over: Some(slow_over), timeout: Duration::from_secs(5), ..dns() };
    let options = RecorderOptions { dns: Some(dns), ..options() };
    let mut recording = Recording::start(options, no_runtime());
    in_own_network(move || {
        exchange(53, "quick.test", Duration::ZERO);
        exchange(53, "slow.test", slow_over);
    });
    recording.until("the slow answer", SOON, |seen| !transactions(seen, "slow.test").is_empty());
    let (event, dns) = transactions(&recording.seen, "slow.test")[0];
    assert_eq!((event.kind, dns.outcome, dns.slow), (EventKind::DnsAnswer, Outcome::Noerror, true));
    assert!(Duration::from_nanos(dns.latency_ns) >= slow_over);
    // An emulated machine may be slow with the other, too; then it is reported.
    assert!(transactions(&recording.seen, "quick.test").iter().all(|(_, dns)| dns.slow));
}

#[test]
fn every_success_is_a_sample_of_one_in_one() {
    let mut recording = Recording::start(
        RecorderOptions { dns: Some(DnsOptions { sample: 1, ..dns() }), ..options() },
        no_runtime(),
    );
    in_own_network(|| exchange(53, "sample.test", Duration::ZERO));
    recording.until("the sample", SOON, |seen| !transactions(seen, "sample.test").is_empty());
    assert!(!transactions(&recording.seen, "sample.test")[0].1.slow);
}

#[test]
fn other_ports_carry_dns_if_configured() {
    let dns = DnsOptions { ports: [5300, 53, 0, 0], answers: true, ..dns() };
    let options = RecorderOptions { dns: Some(dns), ..options() };
    let mut recording = Recording::start(options, no_runtime());
    in_own_network(|| {
        exchange(5301, "elsewhere.test", Duration::ZERO);
        exchange(5300, "moved.test", Duration::ZERO);
        exchange(53, "mark.test", Duration::ZERO);
    });
    recording.until("the mark", SOON, |seen| !transactions(seen, "mark.test").is_empty());
    assert_eq!(transactions(&recording.seen, "moved.test").len(), 1);
    assert!(transactions(&recording.seen, "elsewhere.test").is_empty());
}

#[test]
fn encrypted_lookups_are_counted_as_not_visible() {
    let recording = Recording::host();
    // This process's own memory cgroup.
    let mine = || recording.dns_counts().into_iter().map(|c| (c.not_visible.tls, c.not_visible.https));
    let sum = || mine().fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
    let before = sum();
    in_own_network(|| {
        // Local addresses in this namespace only: 9.9.9.9 is a known HTTPS resolver, 127.0.0.1 is not.
        let add = ["addr", "add", "9.9.9.9/32", "dev", "lo"];
        assert!(std::process::Command::new("ip").args(add).status().is_ok_and(|status| status.success()));
        for address in ["127.0.0.1:853", "9.9.9.9:443", "[::1]:853", "127.0.0.1:443"] {
            let _server = TcpListener::bind(address).expect("bind in our own namespace");
            TcpStream::connect(address).expect("connect");
        }
    });
    let after = sum();
    // Other processes on this machine may use encrypted DNS, too, so there are at least these.
    assert!(after.0 >= before.0 + 2 && after.1 > before.1, "{before:?} {after:?}");
}
