//! The pure parts, against packets made by hand, and against what nobody should send.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use libc::sock_filter;
use podopsy_wire::{DNS_QUESTION_MAX, Task, WHY_ANSWER};

use super::parse::{Frame, Packet, TCP, UDP, packet};
use super::stream::Streams;
use super::table::{PENDING_MAX, Passed, Settings, Table};
use super::{Lost, filter};

const PORTS: [u16; 4] = [53, 5353, 0, 0];
const MS: u64 = 1_000_000;

/// A message with one question, `flags` and so many answers in its header.
fn message(id: u16, flags: u16, answers: u16) -> Vec<u8> {
    let mut out = [id, flags, 1, answers, 0, 0].map(u16::to_be_bytes).concat();
    out.extend(b"\x04name\x04test\0\0\x01\0\x01");
    out
}

fn udp(from: u16, to: u16, message: &[u8]) -> Vec<u8> {
    let mut out = [from, to, message.len() as u16 + 8, 0].map(u16::to_be_bytes).concat();
    out.extend(message);
    out
}

fn tcp(from: u16, to: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = [from, to].map(u16::to_be_bytes).concat();
    out.extend(sequence.to_be_bytes());
    out.extend([0, 0, 0, 0, 5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    out.extend(payload);
    out
}

fn ipv4(protocol: u8, fragment: u16, transport: &[u8]) -> Vec<u8> {
    let mut out = vec![0x45, 0];
    out.extend((20 + transport.len() as u16).to_be_bytes());
    out.extend([0, 0]);
    out.extend(fragment.to_be_bytes());
    out.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    out.extend(transport);
    out
}

fn ipv6(next: u8, transport: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend((transport.len() as u16).to_be_bytes());
    out.extend([next, 64]);
    out.extend([0xfd; 16]);
    out.extend([0xfe; 16]);
    out.extend(transport);
    out
}

fn frame(bytes: &[u8], is_outgoing: bool) -> Frame<'_> {
    Frame { bytes, len: bytes.len(), is_outgoing, is_ours: true, time_ns: 0 }
}

/// What the kernel makes of a classic filter: as much of it as ours needs.
fn run(program: &[sock_filter], bytes: &[u8], is_outgoing: bool) -> u32 {
    let (mut a, mut x, mut at) = (0u32, 0usize, 0);
    let load = |at: usize, size: usize| {
        bytes.get(at..at + size).map(|bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    };
    loop {
        let step = &program[at];
        at += 1;
        let loaded = match u32::from(step.code) {
            // ld [k]: the two properties.
            0x20 if step.k as i32 == -0x1000 => Some(if bytes[0] >> 4 == 6 { 0x86dd } else { 0x0800 }),
            0x20 => Some(if is_outgoing { 4 } else { 0 }),
            0x30 => load(step.k as usize, 1),
            0x28 => load(step.k as usize, 2),
            0x50 => load(x + step.k as usize, 1),
            0x48 => load(x + step.k as usize, 2),
            0xb1 => {
                x = usize::from(bytes[step.k as usize] & 15) * 4;
                continue;
            }
            0x15 => {
                at += usize::from(if a == step.k { step.jt } else { step.jf });
                continue;
            }
            0x45 => {
                at += usize::from(if a & step.k != 0 { step.jt } else { step.jf });
                continue;
            }
            0x06 => return step.k,
            code => panic!("instruction {code:#x}"),
        };
        // A load past the end drops the packet.
        let Some(loaded) = loaded else { return 0 };
        a = loaded;
    }
}

#[test]
fn the_filter_takes_dns_in_its_direction_and_nothing_else() {
    let program = filter::program(&PORTS);
    let icmp = |kind: u8| ipv4(1, 0, &[kind, 3, 0, 0, 0, 0, 0, 0]);
    let cases = [
        (ipv4(17, 0, &udp(4000, 53, b"x")), true, true),
        (ipv4(17, 0, &udp(4000, 5353, b"x")), true, true),
        (ipv4(17, 0, &udp(53, 4000, b"x")), false, true),
        (ipv4(6, 0, &tcp(4000, 53, 1, 2, b"")), true, true),
        (ipv6(17, &udp(4000, 53, b"x")), true, true),
        (ipv6(6, &tcp(53, 4000, 1, 2, b"")), false, true),
        (ipv6(44, &[17, 0, 0, 0, 0, 0, 0, 0]), true, true),
        (icmp(3), false, true),
        (ipv6(58, &[1, 4, 0, 0]), false, true),
        // The server's side of the same packets, and everything else.
        (ipv4(17, 0, &udp(4000, 53, b"x")), false, false),
        (ipv4(17, 0, &udp(53, 4000, b"x")), true, false),
        (ipv4(17, 0, &udp(4000, 443, b"x")), true, false),
        (ipv4(17, 0, &udp(4000, 0, b"x")), true, false),
        (ipv4(17, 0x2001, &udp(4000, 53, b"x")), true, false),
        (ipv4(47, 0, &udp(4000, 53, b"x")), true, false),
        (icmp(3), true, false),
        (icmp(0), false, false),
        (ipv6(58, &[128, 0, 0, 0]), false, false),
        (ipv6(59, &udp(4000, 53, b"x")), true, false),
    ];
    for (index, (bytes, is_outgoing, taken)) in cases.iter().enumerate() {
        assert_eq!(run(&program, bytes, *is_outgoing) > 0, *taken, "case {index}: {bytes:x?}");
    }
    let none = run(&filter::program(&[0; 4]), &cases[0].0, true);
    assert_eq!(none, 0);
}

#[test]
fn options_extension_headers_padding_and_offload_are_seen_through() {
    let mut lost = Lost::default();
    let asked = message(7, 0x0100, 0);
    // IPv4 with options, padded to a frame's least length.
    let mut options = ipv4(17, 0, &[&[1, 1, 1, 0][..], &udp(4000, 53, &asked)].concat());
    options[0] = 0x46;
    options.extend([0xaa; 9]);
    // Destination options, then a first fragment.
    let fragment =
        [&[44, 0, 0, 0, 0, 0, 0, 0][..], &[17, 0, 0, 1, 0, 0, 0, 0], &udp(4000, 53, &asked)].concat();
    let mut offload = ipv4(6, 0, &tcp(4000, 53, 9, 0, b"abc"));
    offload[2..4].fill(0);
    let extended = ipv6(60, &fragment);
    for bytes in [&options, &extended] {
        let Some(Packet::Datagram { ends, message, size }) = packet(&frame(bytes, true), &PORTS, &mut lost)
        else {
            panic!("no datagram: {bytes:x?}")
        };
        assert_eq!((ends.client.port, ends.server.port, ends.protocol), (4000, 53, UDP));
        assert_eq!((message, size as usize), (&asked[..], asked.len()));
    }
    let Some(Packet::Segment { bytes, len, .. }) = packet(&frame(&offload, true), &PORTS, &mut lost) else {
        panic!("no segment")
    };
    assert_eq!((bytes, len), (&b"abc"[..], 3));
    assert_eq!(lost, Lost { fragments: 1, ..Lost::default() });
}

#[test]
fn a_router_that_knows_no_way_names_the_query() {
    let mut lost = Lost::default();
    let quoted = ipv4(17, 0, &udp(4000, 53, &message(7, 0x0100, 0)));
    let error = |code: u8| ipv4(1, 0, &[&[3, code, 0, 0, 0, 0, 0, 0][..], &quoted[..28]].concat());
    let Some(Packet::Unreachable { ends }) = packet(&frame(&error(3), false), &PORTS, &mut lost) else {
        panic!("not seen")
    };
    assert_eq!((ends.client.port, ends.server.port), (4000, 53));
    assert_eq!(ends.server.address, Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped().octets());
    assert_eq!(packet(&frame(&error(4), false), &PORTS, &mut lost), None, "a smaller packet is asked for");
    assert_eq!(packet(&frame(&error(3), true), &PORTS, &mut lost), None, "our own word to others");
    assert_eq!(lost, Lost::default());
}

fn table(settings: Settings) -> Table {
    Table::new(settings, Arc::new(Mutex::new(HashMap::new())))
}

const SETTINGS: Settings =
    Settings { answers: true, slow_ns: 0, sample: 0, interval_ns: 0, burst: 1, timeout_ns: 1000 * MS };

#[test]
fn whatever_comes_nothing_panics_and_memory_stays_bounded() {
    let mut lost = Lost::default();
    let (mut table, mut streams) = (table(SETTINGS), Streams::default());
    // The same each time: a failure can be had again.
    let mut random = fastrand::Rng::with_seed(1);
    let seeds = [
        ipv4(17, 0, &udp(4000, 53, &message(7, 0x0100, 0))),
        ipv4(17, 0, &udp(53, 4000, &message(7, 0x8180, 1))),
        ipv6(60, &[&[17, 0, 0, 0, 0, 0, 0, 0][..], &udp(4000, 53, &message(7, 0x0100, 0))].concat()),
        ipv4(6, 0, &tcp(4000, 53, 100, 0, &[0, 12, 1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 200])),
        ipv4(1, 0, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &ipv4(17, 0, &udp(4000, 53, b""))].concat()),
    ];
    for round in 0..100_000u64 {
        let mut bytes = seeds[random.usize(..seeds.len())].clone();
        for _ in 0..random.u8(..6) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(..bytes.len() + 8));
        let is_outgoing = random.bool();
        // Also one that was cut on its way here.
        let len = bytes.len() + if random.u8(..4) == 0 { 3000 } else { 0 };
        let frame = Frame { bytes: &bytes, len, is_outgoing, is_ours: true, time_ns: round * MS };
        let messages = match packet(&frame, &PORTS, &mut lost) {
            Some(Packet::Datagram { ends, message, size }) => {
                assert!(message.len() <= bytes.len());
                vec![(ends, size, message.to_vec())]
            }
            Some(Packet::Segment { ends, sequence, is_first, bytes, len }) => {
                let found = streams.segment(ends, is_outgoing, (sequence, is_first), bytes, len, &mut lost);
                found.into_iter().map(|found| (ends, found.size, found.bytes)).collect()
            }
            Some(Packet::Unreachable { ends }) => {
                table.unreachable(&ends);
                Vec::new()
            }
            None => Vec::new(),
        };
        for (ends, size, bytes) in messages {
            let passed = Passed { ends, is_outgoing, size, bytes: &bytes, time_ns: round * MS };
            if let Some(record) = table.see(&passed, || Task::UNKNOWN, &mut lost) {
                let _ = podopsy_decode::dns::answered(&record);
            }
        }
        if round.is_multiple_of(1000) {
            for (key, pending) in table.sweep(round * MS) {
                let _ =
                    podopsy_decode::dns::unanswered(&key, &pending, podopsy_model::Outcome::Timeout, round);
            }
        }
    }
    assert!(lost.unparsed > 1000 && lost.short > 100 && lost.tcp_unparsed > 100, "{lost:?}");
}

/// The client's and the server's segments of one connection.
fn ends(client: u16, protocol: u32) -> super::parse::Ends {
    let mut lost = Lost::default();
    let bytes = match protocol {
        TCP => ipv4(6, 0, &tcp(client, 53, 0, 0, b"x")),
        _ => ipv4(17, 0, &udp(client, 53, b"x")),
    };
    match packet(&frame(&bytes, true), &PORTS, &mut lost) {
        Some(Packet::Datagram { ends, .. } | Packet::Segment { ends, .. }) => ends,
        other => panic!("{other:?}"),
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

#[test]
fn messages_are_put_together_however_they_are_cut() {
    let both = [framed(&message(1, 0x0100, 0)), framed(&message(2, 0x0100, 0))].concat();
    let wanted = [message(1, 0x0100, 0), message(2, 0x0100, 0)];
    let of = ends(4000, TCP);
    for cut in 1..both.len() {
        let (mut streams, mut lost) = (Streams::default(), Lost::default());
        let mut found = streams.segment(of, true, (99, true), b"", 0, &mut lost);
        for (at, piece) in [(0, &both[..cut]), (cut, &both[cut..]), (0, &both[..cut])] {
            let place = (100 + at as u32, false);
            found.extend(streams.segment(of, true, place, piece, piece.len() as u32, &mut lost));
        }
        let found: Vec<_> = found.into_iter().map(|message| message.bytes).collect();
        assert_eq!(found, wanted, "cut at {cut}, and the first piece sent again");
        assert_eq!(lost, Lost::default());
    }
}

#[test]
fn a_gap_is_counted_once_and_the_next_message_is_found_again() {
    let (mut streams, mut lost) = (Streams::default(), Lost::default());
    let of = ends(4000, TCP);
    // A long answer, of which one segment in the middle was not seen: nobody needs it.
    let long = framed(&[message(1, 0x8180, 1), vec![0xaa; 4000]].concat());
    let mut found = streams.segment(of, false, (0, false), &long[..1000], 1000, &mut lost);
    let rest = &long[2500..];
    found.extend(streams.segment(of, false, (2500, false), rest, rest.len() as u32, &mut lost));
    let next = framed(&message(2, 0x8183, 0));
    let at = long.len() as u32;
    found.extend(streams.segment(of, false, (at, false), &next, next.len() as u32, &mut lost));
    assert_eq!(found.iter().map(|found| found.bytes[1]).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((found[0].bytes.len(), found[0].size as usize), (512, long.len() - 2));
    assert_eq!(lost, Lost::default());
    // And a gap where a message begins.
    let at = at + next.len() as u32 + 7;
    assert_eq!(streams.segment(of, false, (at, false), b"\xff\xff garbage", 10, &mut lost), []);
    assert_eq!(lost.tcp_unparsed, 1);
    let found = streams.segment(of, false, (at + 10, true), b"", 0, &mut lost);
    assert!(found.is_empty(), "a new connection from the same port");
    let found = streams.segment(of, false, (at + 11, false), &next, next.len() as u32, &mut lost);
    assert_eq!(found.len(), 1);
}

#[test]
fn connections_without_end_push_out_the_oldest() {
    let (mut streams, mut lost) = (Streams::default(), Lost::default());
    for client in 1..=3000 {
        streams.segment(ends(client, TCP), true, (0, true), b"", 0, &mut lost);
    }
    assert_eq!(lost, Lost { streams: 3000 - 2048, ..Lost::default() });
}

fn asker() -> Task {
    Task { pid: 42, cgroup_id: 7, ..Task::UNKNOWN }
}

fn passed(client: u16, is_outgoing: bool, bytes: &[u8], time_ns: u64) -> Passed<'_> {
    Passed { ends: ends(client, UDP), is_outgoing, size: bytes.len() as u32, bytes, time_ns }
}

#[test]
fn a_query_has_one_end_answered_late_or_never() {
    let (mut table, mut lost) = (table(SETTINGS), Lost::default());
    let (asked, refused) = (message(7, 0x0100, 0), message(7, 0x8185, 0));
    let mut see = |table: &mut Table, client, is_outgoing, bytes: &[u8], at_ms: u64| {
        table.see(&passed(client, is_outgoing, bytes, at_ms * MS), asker, &mut lost)
    };
    assert!(see(&mut table, 4000, true, &asked, 0).is_none());
    assert!(see(&mut table, 4000, true, &asked, 300).is_none(), "sent again");
    assert!(see(&mut table, 4001, false, &refused, 310).is_none(), "of a socket that never asked");
    assert!(see(&mut table, 4000, true, &refused, 310).is_none(), "the wrong way");
    let record = see(&mut table, 4000, false, &refused, 320).expect("an answer");
    assert_eq!((record.pending.sends, record.time_ns, record.why), (2, 320 * MS, WHY_ANSWER));
    assert_eq!((record.pending.asker, record.message_len as usize), (asker(), refused.len()));
    assert!(see(&mut table, 4000, false, &refused, 330).is_none(), "a second answer");

    see(&mut table, 4002, true, &asked, 400);
    assert!(table.sweep(1300 * MS).is_empty());
    assert_eq!(table.sweep(1400 * MS).len(), 1);
    assert!(table.sweep(1500 * MS).is_empty(), "told once");
    let late = see(&mut table, 4002, false, &refused, 9000).expect("late");
    assert_eq!(late.pending.state, podopsy_wire::STATE_TIMED_OUT);
    see(&mut table, 4003, true, &asked, 10_000);
    assert_eq!(table.unreachable(&ends(4003, UDP)).len(), 1);
    assert!(table.unreachable(&ends(4003, UDP)).is_empty());
    assert_eq!(lost, Lost::default());
}

#[test]
fn what_is_not_told_is_counted() {
    let settings = Settings { answers: false, interval_ns: 2 * MS, burst: 3, ..SETTINGS };
    let counters = Arc::new(Mutex::new(HashMap::new()));
    let (mut table, mut lost) = (Table::new(settings, counters.clone()), Lost::default());
    let mut plain = message(7, 0x8180, 1);
    plain.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    let mut told = 0;
    for (client, answer) in (1..).zip([&plain, &message(7, 0x8183, 0)].into_iter().cycle()).take(20) {
        table.see(&passed(client, true, &message(7, 0x0100, 0), 0), asker, &mut lost);
        told += u64::from(table.see(&passed(client, false, answer, 3 * MS), asker, &mut lost).is_some());
    }
    let counts = counters.lock().unwrap()[&7];
    assert_eq!((told, lost.throttled, counts.throttled), (3, 7, 7), "a burst of three failures of ten");
    assert_eq!((counts.queries, counts.answers[0], counts.answers[5]), (20, 10, 10));
    assert_eq!(counts.latency[12], 20, "3 ms");
}

#[test]
fn an_outage_pushes_out_the_oldest_and_counts_them() {
    let (mut table, mut lost) = (table(SETTINGS), Lost::default());
    let long = [message(0, 0x0100, 0), vec![b'x'; 2 * DNS_QUESTION_MAX]].concat();
    for query in 0..PENDING_MAX as u32 + 1000 {
        let mut bytes = long.clone();
        bytes[..2].copy_from_slice(&(query as u16).to_be_bytes());
        let client = 1000 + (query >> 16) as u16;
        table.see(&passed(client, true, &bytes, u64::from(query)), asker, &mut lost);
    }
    assert_eq!(lost, Lost { evicted: 1000, ..Lost::default() });
    assert_eq!(table.sweep(2000 * MS).len(), PENDING_MAX);
}

#[test]
fn what_may_have_been_answered_unseen_is_no_timeout() {
    let (mut table, mut lost) = (table(SETTINGS), Lost::default());
    let asked = message(7, 0x0100, 0);
    for client in [4000, 4001] {
        table.see(&passed(client, true, &asked, 0), asker, &mut lost);
    }
    table.doubt(&mut lost);
    assert_eq!(lost.evicted, 2);
    assert!(table.sweep(2000 * MS).is_empty());
}
