//! Why nobody got an answer, provoked: what the recorder says of it.

mod support;

use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use podopsy_agent::model::lookup::{LookupResult, Verdict};
use podopsy_agent::model::{Detail, DnsTransaction, Event, Lookup, Outcome};
use podopsy_agent::recorder::Options;
use support::{Recording, in_own_network, no_runtime, options, query, respond};

const SOON: Duration = Duration::from_secs(60);
const A: u16 = 1;

fn lookups<'a>(events: &'a [Event], name: &str) -> Vec<&'a Lookup> {
    let of = |event: &'a Event| match &event.detail {
        Detail::Lookup(lookup) if lookup.name == name => Some(lookup.as_ref()),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn transactions<'a>(events: &'a [Event], name: &str) -> Vec<&'a DnsTransaction> {
    let of = |event: &'a Event| match &event.detail {
        Detail::Dns(dns) if dns.name.as_deref() == Some(name) => Some(dns),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

/// An answer with one address.
fn fine(query: &[u8]) -> Vec<u8> {
    let mut out = respond(query, 0x8180, 1, 1);
    out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    out
}

/// Asks for `names` by a socket that reads nothing, and whose receive buffer is filled up by others before the last one
/// is asked for; its answer comes, and there is no room for it. The first one's still fits.
fn ask_and_do_not_read(first: &'static str, last: &'static str, address: &'static str) {
    in_own_network(move || {
        let server = UdpSocket::bind((address, 53)).expect("bind");
        let client = UdpSocket::bind((address, 0)).expect("a client");
        setsockopt(&client, sockopt::RcvBuf, &2048).expect("a small buffer");
        client.connect((address, 53)).expect("connect");
        let mut buffer = [0; 1500];
        let mut asked = |id: u16, name: &str| {
            client.send(&query(id, name, A)).expect("ask");
            let (len, from) = server.recv_from(&mut buffer).expect("the query");
            (fine(&buffer[..len]), from)
        };
        let (answer, from) = asked(7, first);
        server.send_to(&answer, from).expect("answer");
        let (answer, from) = asked(8, last);
        for _ in 0..100 {
            server.send_to(&[0; 600], from).expect("fill the buffer up");
        }
        server.send_to(&answer, from).expect("answer");
        client.recv(&mut [0; 1500]).expect("the first answer");
    });
}

#[test]
fn an_answer_that_finds_a_full_receive_buffer_is_a_timeout_that_says_so() {
    let options = Options { oom: false, dns_answers: true, dns_lookups: true, ..options() };
    let mut recording = Recording::start(options, no_runtime());
    ask_and_do_not_read("room.test", "no-room.test", "127.0.0.1");
    recording.until("both lookups", SOON, |seen| {
        !lookups(seen, "room.test").is_empty() && !lookups(seen, "no-room.test").is_empty()
    });
    let results = |name| lookups(&recording.seen, name).iter().map(|it| it.result).collect::<Vec<_>>();
    assert_eq!(results("room.test"), [LookupResult::Answered]);
    assert_eq!(results("no-room.test"), [LookupResult::Timeout]);
    let it = lookups(&recording.seen, "no-room.test")[0];
    let diagnosis = it.diagnosis.as_ref().expect("a timeout has one");
    assert_eq!(diagnosis.verdict, Verdict::AnswerDropped, "{diagnosis:?}");
    assert!(diagnosis.text.contains("receive buffer was full"), "{diagnosis:?}");
    // What the node's counter says of it.
    assert!(diagnosis.counters.get("udp_rcvbuf_errors").is_some_and(|&grown| grown > 0), "{diagnosis:?}");
}

#[test]
fn where_only_failures_are_told_such_an_answer_is_one_and_the_counts_agree() {
    let mut recording = Recording::host();
    // This process's own memory cgroup: others ask too, but nobody asks so little.
    ask_and_do_not_read("room.test", "no-room.test", "::1");
    recording.until("a timeout", SOON, |seen| !transactions(seen, "no-room.test").is_empty());
    let found = transactions(&recording.seen, "no-room.test");
    assert_eq!(
        found.iter().map(|dns| (dns.outcome, dns.answer_dropped)).collect::<Vec<_>>(),
        [(Outcome::Timeout, true)]
    );
    assert!(transactions(&recording.seen, "room.test").is_empty());
}
