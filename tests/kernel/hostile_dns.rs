//! A container that floods DNS takes nothing from its neighbour: not its place among the queries in flight, not its place in
//! the rings and queues, not its share of the events. What the flood loses is counted on the container that floods.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::support;
use podopsy_model::{DnsCounts, Outcome};
use podopsy_recorder::shed::{ShedMode, ShedStep};
use support::dns_flood::{SOON, Task, Work, cgroups, counts, recording, report_sent, sent};
use support::{MemoryCgroup, in_own_network, query, respond, transactions};

const A: u16 = 1;
/// Queries a second of a flood: with the default timeout, more than twice as many as the map of queries in flight holds.
const FLOOD: u32 = 8000;
const SECONDS: u32 = 12;
/// How long sockets stay open behind the last query.
const HELD_OPEN: Duration = Duration::from_millis(1500);
/// The neighbour's queries.
const ASKED: usize = 10;

#[test]
#[ignore = "called by others, in a memory cgroup of their own"]
fn process_for_other_tests() {
    let Some(task) = Task::of_this_process() else { return };
    in_own_network(move || {
        // It never reads: a query stays without an answer.
        let server = UdpSocket::bind("127.0.0.1:53").expect("bind port 53 in our own namespace");
        let pace = Pace { rate: task.rate, seconds: task.seconds, cgroups: task.cgroups };
        let sent = match &*task.kind {
            "udp" => pace.run(|client, n| client.send(&query(n as u16, "flood.test", A)).is_ok()),
            "names" => {
                pace.run(|client, n| client.send(&query(n as u16, &format!("n{n}.flood.test"), A)).is_ok())
            }
            "nxdomain" => {
                std::thread::spawn(move || {
                    let mut buffer = [0; 512];
                    while let Ok((len, from)) = server.recv_from(&mut buffer) {
                        let _ = server.send_to(&respond(&buffer[..len], 0x8183, 1, 0), from);
                    }
                });
                // Every query is answered, so that the count is exact.
                pace.run(|client, n| {
                    client.send(&query(n as u16, "flood.test", A)).is_ok()
                        && client.recv(&mut [0; 512]).is_ok()
                })
            }
            "tcp" => {
                let listener = TcpListener::bind("127.0.0.1:53").expect("listen on port 53");
                let mut stream = TcpStream::connect("127.0.0.1:53").expect("connect");
                stream.set_nodelay(true).expect("a segment for each message");
                let (mut accepted, _) = listener.accept().expect("accept");
                std::thread::spawn(move || while accepted.read(&mut [0; 65_536]).is_ok_and(|len| len > 0) {});
                pace.run(|_, n| {
                    let message = query(n as u16, "flood.test", A);
                    let prefix = (message.len() as u16).to_be_bytes();
                    stream.write_all(&[&prefix[..], &message].concat()).is_ok()
                })
            }
            other => unreachable!("{other}"),
        };
        report_sent(sent);
    });
}

/// How fast a flood asks, for how long, and in which cgroups.
struct Pace {
    rate: u32,
    seconds: u32,
    cgroups: Vec<PathBuf>,
}

impl Pace {
    /// Calls `ask` for each query, with a new socket for each 60,000 of them, so that no transaction id is used twice.
    fn run(&self, mut ask: impl FnMut(&UdpSocket, u32) -> bool) -> u64 {
        let began = Instant::now();
        let (mut sent, mut clients) = (0, Vec::new());
        // Each turn in one cgroup.
        let turn = (self.rate / 20).max(1);
        for n in 0.. {
            if n % turn == 0 && self.cgroups.len() > 1 {
                let cgroup = &self.cgroups[(n / turn) as usize % self.cgroups.len()];
                std::fs::write(cgroup.join("cgroup.procs"), "0").expect("move to the next cgroup");
            }
            if n % 60_000 == 0 {
                let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
                client.connect("127.0.0.1:53").expect("connect");
                clients.push(client);
            }
            sent += u64::from(ask(clients.last().expect("a client"), n));
            if began.elapsed() > Duration::from_secs(self.seconds.into()) {
                break;
            }
            let due = Duration::from_secs_f64(f64::from(n) / f64::from(self.rate));
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
        // A query whose socket is closed in less than a second is abandoned, and no timeout.
        std::thread::sleep(HELD_OPEN);
        sent
    }
}

/// Runs a flood that nothing answers beside a neighbour whose queries are not answered either.
fn silent_flood(kind: &'static str, attackers: usize) {
    let (loud, quiet) = (cgroups(kind, attackers), cgroups("quiet", 1));
    let mut recording = recording();
    let mut flood = Work { kind, rate: FLOOD, seconds: SECONDS, cgroups: &loud }
        .start(full_name!("process_for_other_tests"));
    // The map is full of the flood's queries, as far as it may be.
    let end = Instant::now() + SOON;
    while counts(&recording, &loud).untracked == 0 {
        assert!(Instant::now() < end, "the flood does not reach its share: {:?}", counts(&recording, &loud));
        recording.receive_for(Duration::from_millis(100));
    }
    let mut neighbour = Work { kind: "names", rate: 5, seconds: 2, cgroups: &quiet }
        .start(full_name!("process_for_other_tests"));
    while flood.try_wait().expect("wait for the flood").is_none() {
        recording.receive_for(Duration::from_millis(50));
    }
    assert!(neighbour.try_wait().expect("wait for the neighbour").is_some(), "it is done before the flood");
    let (asked, sent) = (sent(neighbour), sent(flood));
    assert!(asked >= ASKED as u64, "{asked}");
    // The kernel may put several messages into one segment, of which only 33 are read.
    let is_seen = |queries: u64| if kind == "tcp" { queries > sent / 10 * 9 } else { queries == sent };
    let timeouts = |counts: &DnsCounts| counts.outcome(Outcome::Timeout);
    let end = Instant::now() + SOON;
    loop {
        let (loud, quiet) = (counts(&recording, &loud), counts(&recording, &quiet));
        if timeouts(&quiet) >= asked && timeouts(&loud) + loud.untracked >= loud.queries {
            break;
        }
        assert!(Instant::now() < end, "sent {sent}, asked {asked}: {loud:?} {quiet:?}");
        recording.receive_for(Duration::from_millis(200));
    }
    let (loud_counts, quiet_counts) = (counts(&recording, &loud), counts(&recording, &quiet));
    let id = quiet[0].id();
    let (seen, losses) = recording.stop();
    let reported = seen.iter().filter(|event| event.cgroup.id == id).count() as u64;
    println!(
        "{kind}, {attackers} cgroups: {sent} sent, {} untracked; neighbour {reported} of {asked}; {losses:?}",
        loud_counts.untracked
    );
    assert_eq!(
        (reported, timeouts(&quiet_counts), quiet_counts.queries),
        (asked, asked, asked),
        "{losses:?}"
    );
    assert_eq!((quiet_counts.untracked, quiet_counts.events_dropped), (0, 0));
    // Each query of the flood is counted once, and its outcome once, or that it has none.
    assert!(is_seen(loud_counts.queries), "{sent} sent, {loud_counts:?}");
    assert_eq!(timeouts(&loud_counts) + loud_counts.untracked, loud_counts.queries, "{loud_counts:?}");
    assert_eq!(losses.get("dns_over_share"), Some(&loud_counts.untracked), "{losses:?}");
    assert_eq!(losses.get("dns_in_flight"), None, "the map is never full: {losses:?}");
}

#[test]
fn a_flood_of_unanswered_queries_leaves_a_neighbour_its_timeouts() {
    silent_flood("udp", 1);
}

#[test]
fn a_flood_of_different_names_leaves_a_neighbour_its_timeouts() {
    silent_flood("names", 1);
}

#[test]
fn a_flood_of_many_cgroups_leaves_a_neighbour_its_timeouts() {
    silent_flood("udp", 64);
}

#[test]
fn a_flood_over_tcp_leaves_a_neighbour_its_timeouts() {
    silent_flood("tcp", 1);
}

/// The ring holds 1,100 records, and each cgroup may ship 500 at once.
#[test]
fn a_flood_of_failures_from_many_cgroups_leaves_a_neighbour_its_events() {
    let (loud, quiet) = (cgroups("failing", 64), cgroups("quiet", 1));
    let mut recording = recording();
    let mut flood = Work { kind: "nxdomain", rate: 50_000, seconds: 6, cgroups: &loud }
        .start(full_name!("process_for_other_tests"));
    let end = Instant::now() + SOON;
    while counts(&recording, &loud).outcome(Outcome::Nxdomain) < 5000 {
        assert!(Instant::now() < end, "{:?}", counts(&recording, &loud));
        recording.receive_for(Duration::from_millis(100));
    }
    let neighbour = Work { kind: "nxdomain", rate: 10, seconds: 1, cgroups: &quiet }
        .start(full_name!("process_for_other_tests"));
    while flood.try_wait().expect("wait for the flood").is_none() {
        recording.receive_for(Duration::from_millis(50));
    }
    let (asked, sent) = (sent(neighbour), sent(flood));
    let (id, loud_ids) = (quiet[0].id(), loud.iter().map(MemoryCgroup::id).collect::<Vec<_>>());
    recording.until("the neighbour's failures", SOON, |seen| {
        seen.iter().filter(|event| event.cgroup.id == id).count() as u64 == asked
    });
    let due = sent - counts(&recording, &loud).events_dropped;
    recording.until("the flood's other failures", SOON, |seen| {
        seen.iter().filter(|event| loud_ids.contains(&event.cgroup.id)).count() as u64 >= due
    });
    let (loud, quiet) = (counts(&recording, &loud), counts(&recording, &quiet));
    let (seen, losses) = recording.stop();
    println!(
        "64 cgroups: {sent} failures, {} events dropped; neighbour {asked} of {asked}; {losses:?}",
        loud.events_dropped
    );
    assert_eq!((quiet.events_dropped, quiet.outcome(Outcome::Nxdomain)), (0, asked), "{losses:?}");
    assert_eq!(loud.outcome(Outcome::Nxdomain), sent);
    assert_eq!(
        transactions(&seen, "flood.test").len() as u64,
        asked + sent - loud.events_dropped,
        "{losses:?}"
    );
}

/// Failures of several cgroups that are over the budget of events together, beside a neighbour with a few.
fn failures_over_budget(works: &[(u32, usize)], allowed: u64) {
    let quiet = cgroups("quiet", 1);
    let mut recording = recording();
    let shed = recording.shed();
    shed.set_events_allowed(allowed);
    shed.set(ShedStep::DnsFailures, ShedMode::LargestUsers);
    let loud: Vec<Vec<MemoryCgroup>> =
        works.iter().enumerate().map(|(at, (_, count))| cgroups(&format!("loud{at}-"), *count)).collect();
    let floods: Vec<Child> = works
        .iter()
        .zip(&loud)
        .map(|((rate, _), cgroups)| {
            Work { kind: "nxdomain", rate: *rate, seconds: 8, cgroups }
                .start(full_name!("process_for_other_tests"))
        })
        .collect();
    // Bursts are over.
    recording.receive_for(Duration::from_secs(4));
    let (began, clock) = (jiff::Timestamp::now(), Instant::now());
    let mut neighbour = Work { kind: "nxdomain", rate: 5, seconds: 2, cgroups: &quiet }
        .start(full_name!("process_for_other_tests"));
    while neighbour.try_wait().expect("wait for the neighbour").is_none() {
        recording.receive_for(Duration::from_millis(50));
    }
    let asked = sent(neighbour);
    recording.receive_for(Duration::from_secs(1));
    let (ended, seconds) = (jiff::Timestamp::now(), clock.elapsed().as_secs_f64());
    recording.receive_for(Duration::from_secs(2));
    let sent: u64 = floods.into_iter().map(sent).sum();
    recording.receive_for(Duration::from_secs(1));
    let loud: Vec<MemoryCgroup> = loud.into_iter().flatten().collect();
    let (loud_counts, quiet_counts) = (counts(&recording, &loud), counts(&recording, &quiet[..]));
    let (id, loud_ids) = (quiet[0].id(), loud.iter().map(MemoryCgroup::id).collect::<Vec<_>>());
    let (seen, losses) = recording.stop();
    let reported = seen.iter().filter(|event| event.cgroup.id == id).count() as u64;
    let of_loud = seen.iter().filter(|event| loud_ids.contains(&event.cgroup.id)).count() as u64;
    println!("{works:?}: {of_loud} of {sent} reported; neighbour {reported} of {asked}; {losses:?}");
    assert_eq!((reported, quiet_counts.events_dropped), (asked, 0), "{losses:?}");
    // What they lose is counted on them.
    assert_eq!(of_loud + loud_counts.events_dropped, sent, "{losses:?}");
    assert!(losses.get("shed_dns_failures").is_some_and(|shed| *shed > 0), "{losses:?}");
    let is_within = |event: &&podopsy_model::Event| event.time >= began && event.time <= ended;
    let rate = seen.iter().filter(is_within).count() as f64 / seconds;
    assert!(rate < allowed as f64 * 1.25, "{rate} events a second");
}

#[test]
fn three_cgroups_over_the_budget_lose_their_own_events() {
    failures_over_budget(&[(350, 1), (350, 1), (350, 1)], 200);
}

#[test]
fn many_cgroups_over_the_budget_lose_their_own_events() {
    failures_over_budget(&[(1000, 12), (1000, 12)], 200);
}
