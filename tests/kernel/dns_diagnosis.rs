//! Causes of a missing answer, provoked, and the diagnosis of each.

use std::io::{BufRead, Write};
use std::net::UdpSocket;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use crate::support;
use nix::sys::socket::{setsockopt, sockopt};
use podopsy_model::lookup::{DiagnosisVerdict, LookupResult};
use podopsy_model::{Detail, DnsTransaction, Event, Lookup, Outcome};
use podopsy_recorder::{DnsOptions, RecorderOptions};
use support::{MemoryCgroup, Recording, dns, fine, no_runtime, options, query, transactions};

const SOON: Duration = Duration::from_secs(60);
const A: u16 = 1;
/// A limit that no test reaches.
const MEMORY: u64 = 1 << 30;

fn lookups<'a>(events: &'a [Event], name: &str) -> Vec<&'a Lookup> {
    let of = |event: &'a Event| match &event.detail {
        Detail::Lookup(lookup) if lookup.name == name => Some(lookup.as_ref()),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn of<'a>(events: &'a [Event], name: &str) -> Vec<&'a DnsTransaction> {
    transactions(events, name).into_iter().map(|(_, dns)| dns).collect()
}

/// A child process that sends queries by a socket which it does not read, in its own network namespace. It is this
/// test's own program.
struct Asker {
    child: Child,
    orders: Option<ChildStdin>,
}

impl Asker {
    fn start(cgroup: &MemoryCgroup, address: &str) -> Asker {
        let this = std::env::current_exe().expect("this test's own program");
        let asker = full_name!("asker_process_for_other_tests");
        // A namespace of the whole process, because its counters are read by its pid.
        let this = format!("unshare --net {} --ignored --exact {asker}", this.display());
        let mut command = cgroup.command(&this);
        command.env("PODOPSY_ASKS_AT", address).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("start ourselves again: apt-get install util-linux");
        let orders = child.stdin.take();
        Asker { child, orders }
    }

    fn go_on(&mut self) {
        writeln!(self.orders.as_mut().expect("open"), "go on").expect("it waits");
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "called by others, in a network of its own"]
fn asker_process_for_other_tests() {
    let Ok(address) = std::env::var("PODOPSY_ASKS_AT") else { return };
    let mut orders = std::io::stdin().lock().lines();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "`ip link set lo up`: apt-get install iproute2");
    let server = UdpSocket::bind((address.as_str(), 53)).expect("bind");
    let client = UdpSocket::bind((address.as_str(), 0)).expect("a client");
    setsockopt(&client, sockopt::RcvBuf, &2048).expect("a small buffer");
    client.connect((address.as_str(), 53)).expect("connect");
    let mut buffer = [0; 1500];
    let mut asked = |id: u16, name: &str| {
        client.send(&query(id, name, A)).expect("ask");
        let (len, from) = server.recv_from(&mut buffer).expect("the query");
        (fine(&buffer[..len]), from)
    };
    // This answer fits into the receive buffer.
    let (answer, from) = asked(7, "fits.test");
    server.send_to(&answer, from).expect("answer");
    let _ = orders.next();
    // Other datagrams fill it before this answer.
    let (answer, from) = asked(8, "dropped.test");
    for _ in 0..100 {
        server.send_to(&[0; 600], from).expect("fill the buffer up");
    }
    server.send_to(&answer, from).expect("answer");
    let len = client.recv(&mut [0; 1500]).expect("the first answer");
    assert!(len > 40, "the first answer");
    // Until the test has seen enough.
    let _ = orders.next();
}

#[test]
fn an_answer_that_finds_a_full_receive_buffer_is_a_timeout_with_this_diagnosis() {
    let options = RecorderOptions {
        oom: false,
        dns: Some(DnsOptions { answers: true, lookups: true, ..dns() }),
        ..options()
    };
    let cgroup = MemoryCgroup::new("reads-not", MEMORY);
    let mut recording = Recording::start(options, no_runtime());
    let mut asker = Asker::start(&cgroup, "127.0.0.1");
    // Before this event, the recorder has read the counters for the first time.
    recording.until("the first answer", SOON, |seen| !of(seen, "fits.test").is_empty());
    asker.go_on();
    recording.until("both lookups", SOON, |seen| {
        !lookups(seen, "fits.test").is_empty() && !lookups(seen, "dropped.test").is_empty()
    });
    let results = |name| lookups(&recording.seen, name).iter().map(|it| it.result).collect::<Vec<_>>();
    assert_eq!(results("fits.test"), [LookupResult::Answered]);
    assert_eq!(results("dropped.test"), [LookupResult::Timeout]);
    let it = lookups(&recording.seen, "dropped.test")[0];
    let diagnosis = it.diagnosis.as_ref().expect("a timeout has one");
    assert_eq!(diagnosis.verdict, DiagnosisVerdict::AnswerDropped, "{diagnosis:?}");
    assert!(diagnosis.text.contains("receive buffer was full"), "{diagnosis:?}");
    // The kernel's own counter agrees.
    assert!(diagnosis.counters.get("udp_rcvbuf_errors").is_some_and(|&grown| grown > 0), "{diagnosis:?}");
}

#[test]
fn with_failures_alone_such_an_answer_is_reported_and_the_counts_agree() {
    let cgroup = MemoryCgroup::new("reads-not-either", MEMORY);
    let mut recording = Recording::host();
    let mut asker = Asker::start(&cgroup, "127.0.0.1");
    asker.go_on();
    recording.until("a timeout", SOON, |seen| !of(seen, "dropped.test").is_empty());
    let found = of(&recording.seen, "dropped.test");
    let facts: Vec<_> = found.iter().map(|dns| (dns.outcome, dns.answer_dropped)).collect();
    assert_eq!(facts, [(Outcome::Timeout, true)]);
    assert!(of(&recording.seen, "fits.test").is_empty());
    let counts = recording.dns_counts_of(cgroup.id());
    let outcomes = (counts.outcome(Outcome::Noerror), counts.outcome(Outcome::Timeout));
    assert_eq!((counts.queries, outcomes, counts.latency.count()), (2, (1, 1), 1), "{counts:?}");
}
