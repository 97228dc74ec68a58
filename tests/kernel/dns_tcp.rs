//! DNS over TCP, cut into segments in every way that is allowed (RFC 7766 §8).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::support;
use podopsy_model::{DnsTransaction, Event, Outcome};
use support::{Recording, in_own_network, query, respond, transactions};

const SOON: Duration = Duration::from_secs(60);
const A: u16 = 1;

fn of<'a>(events: &'a [Event], name: &str) -> Vec<&'a DnsTransaction> {
    transactions(events, name).into_iter().map(|(_, dns)| dns).collect()
}

/// The message after its two-byte length.
fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// A connection over loopback; each write is a segment, because the other side has read the one before.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new() -> Pair {
        let listener = TcpListener::bind("127.0.0.1:53").expect("bind port 53 in our own namespace");
        let client = TcpStream::connect("127.0.0.1:53").expect("connect");
        let (server, _) = listener.accept().expect("accept");
        for end in [&client, &server] {
            end.set_nodelay(true).expect("no delay");
        }
        Pair { client, server }
    }

    /// Sends `bytes` to the server, cut at these places.
    fn ask(&mut self, bytes: &[u8], cuts: &[usize]) {
        pass(&mut self.client, &mut self.server, bytes, cuts);
    }

    fn answer(&mut self, bytes: &[u8], cuts: &[usize]) {
        pass(&mut self.server, &mut self.client, bytes, cuts);
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8], cuts: &[usize]) {
    let mut start = 0;
    for end in cuts.iter().copied().chain([bytes.len()]) {
        from.write_all(&bytes[start..end]).expect("write a segment");
        let mut got = vec![0; end - start];
        to.read_exact(&mut got).expect("read a segment");
        start = end;
    }
}

#[test]
fn messages_are_found_however_they_are_cut() {
    let every_byte: Vec<usize> = (1..300).collect();
    let cases: [(&str, &[usize]); 6] = [
        ("whole.test", &[]),
        ("bytes.test", &every_byte),
        ("length-alone.test", &[2]),
        ("half-a-length.test", &[1]),
        ("half-a-header.test", &[8]),
        ("half-a-name.test", &[2 + 12 + 4]),
    ];
    let names = cases.map(|(name, _)| name);
    let cases = cases.map(|(name, cuts)| (name, cuts.to_vec()));
    let mut recording = Recording::host();
    in_own_network(move || {
        for (name, cuts) in cases {
            // One connection for three questions: what follows a message must be found, too.
            let mut pair = Pair::new();
            for id in 1..=3 {
                let asked = query(id, name, A);
                let within =
                    |length: usize| cuts.iter().copied().filter(|cut| *cut < length).collect::<Vec<_>>();
                let bytes = framed(&asked);
                pair.ask(&bytes, &within(bytes.len()));
                let bytes = framed(&respond(&asked, 0x8183, 1, 0));
                pair.answer(&bytes, &within(bytes.len()));
            }
        }
    });
    recording.until("three failures each", SOON, |seen| names.iter().all(|name| of(seen, name).len() >= 3));
    for name in names {
        let outcomes: Vec<Outcome> = of(&recording.seen, name).iter().map(|dns| dns.outcome).collect();
        assert_eq!(outcomes, [Outcome::Nxdomain; 3], "{name}");
    }
    let (_, losses) = recording.stop();
    assert_eq!(losses.get("dns_tcp_unparsed"), None, "{losses:?}");
}

#[test]
fn several_messages_in_a_segment_are_several_transactions() {
    const MESSAGES: u16 = 20;
    let mut recording = Recording::host();
    in_own_network(|| {
        let mut pair = Pair::new();
        let asked: Vec<Vec<u8>> = (0..MESSAGES).map(|id| query(id, "pipe.test", A)).collect();
        pair.ask(&asked.iter().flat_map(|message| framed(message)).collect::<Vec<_>>(), &[]);
        // RFC 7766 §6.2.1.1: answers in any order. Some are large, and all go in one write.
        let answers = asked.iter().rev().flat_map(|message| {
            let mut answer = respond(message, 0x8182, 1, 0);
            answer.resize(answer.len() + 700, 0);
            framed(&answer)
        });
        pair.answer(&answers.collect::<Vec<_>>(), &[]);
    });
    recording.until("all of them", SOON, |seen| of(seen, "pipe.test").len() >= MESSAGES.into());
    recording.receive_for(Duration::from_millis(1500));
    let found = of(&recording.seen, "pipe.test");
    let mut ids: Vec<u16> = found.iter().map(|dns| dns.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..MESSAGES).collect::<Vec<_>>());
    assert!(found.iter().all(|dns| dns.outcome == Outcome::Servfail), "{found:?}");
}

#[test]
fn a_connection_that_is_older_than_the_recorder_is_followed() {
    let (events, losses) = in_own_network(|| {
        let mut pair = Pair::new();
        let mut recording = Recording::host();
        for id in 1..=3 {
            let asked = query(id, "older.test", A);
            pair.ask(&framed(&asked), &[5]);
            pair.answer(&framed(&respond(&asked, 0x8183, 1, 0)), &[5]);
        }
        recording.until("three failures", SOON, |seen| of(seen, "older.test").len() >= 3);
        recording.stop()
    });
    let found: Vec<Outcome> = of(&events, "older.test").iter().map(|dns| dns.outcome).collect();
    assert_eq!(found, [Outcome::Nxdomain; 3]);
    let askers = transactions(&events, "older.test");
    assert!(askers.iter().all(|(event, _)| event.process.pid == std::process::id()), "{askers:?}");
    assert_eq!(losses.get("dns_tcp_unparsed"), None, "{losses:?}");
}

#[test]
fn a_large_answer_over_many_segments_is_skipped_by_its_length() {
    let mut recording = Recording::host();
    in_own_network(|| {
        let mut pair = Pair::new();
        let asked = query(1, "large.test", A);
        pair.ask(&framed(&asked), &[]);
        let mut answer = respond(&asked, 0x8183, 1, 0);
        // The rest would be taken for a message by a parser that starts at a segment's beginning.
        answer.resize(60_000, 0x11);
        let cuts: Vec<usize> = (1..60).map(|n| n * 1000).collect();
        pair.answer(&framed(&answer), &cuts);
        let asked = query(2, "after.test", A);
        pair.ask(&framed(&asked), &[]);
        pair.answer(&framed(&respond(&asked, 0x8182, 1, 0)), &[]);
    });
    recording.until("the second failure", SOON, |seen| !of(seen, "after.test").is_empty());
    let outcome = |name: &str| of(&recording.seen, name)[0].outcome;
    assert_eq!((outcome("large.test"), outcome("after.test")), (Outcome::Nxdomain, Outcome::Servfail));
    let (_, losses) = recording.stop();
    assert_eq!(losses.get("dns_tcp_unparsed"), None, "{losses:?}");
}

#[test]
fn bytes_that_are_no_message_are_counted() {
    let recording = Recording::host();
    in_own_network(|| {
        let mut pair = Pair::new();
        // A length that is too short for a message.
        pair.ask(&[0, 3, 1, 2, 3], &[]);
        // From now on, the parser accepts only bytes that look like a message.
        pair.ask(&[0, 200, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[]);
    });
    let (_, losses) = recording.stop();
    assert!(losses.get("dns_tcp_unparsed").is_some_and(|count| *count >= 1), "{losses:?}");
}
