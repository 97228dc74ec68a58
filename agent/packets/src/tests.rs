//! Tests of the pure parts, with constructed packets and with random ones.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use libc::sock_filter;
use podopsy_wire::{DNS_QUESTION_MAX, Task, TokenBucket, WHY_ANSWER};

use super::parse::{Flow, Frame, Packet, TCP, UDP, parse};
use super::stream::{Segment, Streams};
use super::table::{AnswerSettings, PENDING_MAX, QueryTable, SeenMessage};
use super::{PacketLosses, filter};

const PORTS: [u16; 4] = [53, 5353, 0, 0];
const MS: u64 = 1_000_000;

/// A message with one question, and these flags and this number of answers in its header.
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

/// Runs a classic filter as the kernel does; only the instructions that ours uses.
fn run(program: &[sock_filter], bytes: &[u8], is_outgoing: bool) -> u32 {
    let (mut a, mut x, mut at) = (0u32, 0usize, 0);
    let load = |at: usize, size: usize| {
        bytes.get(at..at + size).map(|bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    };
    loop {
        let step = &program[at];
        at += 1;
        let loaded = match u32::from(step.code) {
            // ld [k]: protocol, and packet type.
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
fn the_filter_accepts_dns_in_its_direction_and_nothing_else() {
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
        // The same packets on the server's side, and everything else.
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
    for (index, (bytes, is_outgoing, accepted)) in cases.iter().enumerate() {
        assert_eq!(run(&program, bytes, *is_outgoing) > 0, *accepted, "case {index}: {bytes:x?}");
    }
    let none = run(&filter::program(&[0; 4]), &cases[0].0, true);
    assert_eq!(none, 0);
}

#[test]
fn options_extension_headers_padding_and_offload_are_parsed() {
    let mut losses = PacketLosses::default();
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
        let Some(Packet::Datagram { flow, message, size }) = parse(&frame(bytes, true), &PORTS, &mut losses)
        else {
            panic!("no datagram: {bytes:x?}")
        };
        assert_eq!((flow.client.port, flow.server.port, flow.protocol), (4000, 53, UDP));
        assert_eq!((message, size as usize), (&asked[..], asked.len()));
    }
    let Some(Packet::Segment(Segment { bytes, len, .. })) =
        parse(&frame(&offload, true), &PORTS, &mut losses)
    else {
        panic!("no segment")
    };
    assert_eq!((bytes, len), (&b"abc"[..], 3));
    assert_eq!(losses, PacketLosses { fragments: 1, ..PacketLosses::default() });
}

#[test]
fn an_icmp_error_gives_the_client_and_server_of_its_query() {
    let mut losses = PacketLosses::default();
    let quoted = ipv4(17, 0, &udp(4000, 53, &message(7, 0x0100, 0)));
    let error = |code: u8| ipv4(1, 0, &[&[3, code, 0, 0, 0, 0, 0, 0][..], &quoted[..28]].concat());
    let Some(Packet::Unreachable { flow }) = parse(&frame(&error(3), false), &PORTS, &mut losses) else {
        panic!("not recognised")
    };
    assert_eq!((flow.client.port, flow.server.port), (4000, 53));
    assert_eq!(flow.server.address, Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped().octets());
    assert_eq!(parse(&frame(&error(4), false), &PORTS, &mut losses), None, "it asks for a smaller packet");
    assert_eq!(parse(&frame(&error(3), true), &PORTS, &mut losses), None, "an error that leaves");
    assert_eq!(losses, PacketLosses::default());
}

fn table(settings: AnswerSettings) -> QueryTable {
    QueryTable::new(settings, Arc::new(Mutex::new(HashMap::new())))
}

const SETTINGS: AnswerSettings = AnswerSettings {
    answers: true,
    slow_ns: 0,
    sample: 0,
    bucket: TokenBucket::new(0, 1),
    timeout_ns: 1000 * MS,
};

#[test]
fn no_packet_makes_anything_panic() {
    let mut losses = PacketLosses::default();
    let (mut table, mut streams) = (table(SETTINGS), Streams::default());
    // A fixed seed, so that a failure can be reproduced.
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
        // Some frames are longer than what was captured.
        let len = bytes.len() + if random.u8(..4) == 0 { 3000 } else { 0 };
        let frame = Frame { bytes: &bytes, len, is_outgoing, is_ours: true, time_ns: round * MS };
        let messages = match parse(&frame, &PORTS, &mut losses) {
            Some(Packet::Datagram { flow, message, size }) => {
                assert!(message.len() <= bytes.len());
                vec![(flow, size, message.to_vec())]
            }
            Some(Packet::Segment(segment)) => {
                let found = streams.add(&segment, &mut losses);
                found.into_iter().map(|found| (segment.flow, found.size, found.bytes)).collect()
            }
            Some(Packet::Unreachable { flow }) => {
                table.unreachable(&flow);
                Vec::new()
            }
            None => Vec::new(),
        };
        for (flow, size, bytes) in messages {
            let message = SeenMessage { flow, is_outgoing, size, bytes: &bytes, time_ns: round * MS };
            if let Some(record) = table.handle(&message, || Task::UNKNOWN, &mut losses) {
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
    assert!(losses.unparsed > 1000 && losses.short > 100 && losses.tcp_unparsed > 100, "{losses:?}");
}

/// A flow from this port of the client to port 53 of the server.
fn flow(client: u16, protocol: u32) -> Flow {
    let mut losses = PacketLosses::default();
    let bytes = match protocol {
        TCP => ipv4(6, 0, &tcp(client, 53, 0, 0, b"x")),
        _ => ipv4(17, 0, &udp(client, 53, b"x")),
    };
    match parse(&frame(&bytes, true), &PORTS, &mut losses) {
        Some(Packet::Datagram { flow, .. } | Packet::Segment(Segment { flow, .. })) => flow,
        other => panic!("{other:?}"),
    }
}

/// A message behind its length, as TCP carries it.
fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// A segment of the connection from port 4000.
fn segment(is_outgoing: bool, sequence: u32, bytes: &[u8]) -> Segment<'_> {
    let flow = flow(4000, TCP);
    Segment { flow, is_outgoing, sequence, is_first: false, bytes, len: bytes.len() as u32 }
}

#[test]
fn messages_are_assembled_wherever_segments_are_cut() {
    let both = [framed(&message(1, 0x0100, 0)), framed(&message(2, 0x0100, 0))].concat();
    let wanted = [message(1, 0x0100, 0), message(2, 0x0100, 0)];
    for cut in 1..both.len() {
        let (mut streams, mut losses) = (Streams::default(), PacketLosses::default());
        let mut found = streams.add(&Segment { is_first: true, ..segment(true, 99, b"") }, &mut losses);
        for (at, piece) in [(0, &both[..cut]), (cut, &both[cut..]), (0, &both[..cut])] {
            found.extend(streams.add(&segment(true, 100 + at as u32, piece), &mut losses));
        }
        let found: Vec<_> = found.into_iter().map(|message| message.bytes).collect();
        assert_eq!(found, wanted, "cut at {cut}, and the first piece sent again");
        assert_eq!(losses, PacketLosses::default());
    }
}

#[test]
fn a_gap_is_counted_once_and_the_next_message_is_found_again() {
    let (mut streams, mut losses) = (Streams::default(), PacketLosses::default());
    // A long answer, of which one segment in the middle was not seen: its bytes are not needed.
    let long = framed(&[message(1, 0x8180, 1), vec![0xaa; 4000]].concat());
    let mut found = streams.add(&segment(false, 0, &long[..1000]), &mut losses);
    found.extend(streams.add(&segment(false, 2500, &long[2500..]), &mut losses));
    let next = framed(&message(2, 0x8183, 0));
    let at = long.len() as u32;
    found.extend(streams.add(&segment(false, at, &next), &mut losses));
    assert_eq!(found.iter().map(|found| found.bytes[1]).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((found[0].bytes.len(), found[0].size as usize), (512, long.len() - 2));
    assert_eq!(losses, PacketLosses::default());
    // A gap where a message begins.
    let at = at + next.len() as u32 + 7;
    let garbage = segment(false, at, b"\xff\xff garbage");
    assert_eq!(streams.add(&Segment { len: 10, ..garbage }, &mut losses), []);
    assert_eq!(losses.tcp_unparsed, 1);
    let found = streams.add(&Segment { is_first: true, ..segment(false, at + 10, b"") }, &mut losses);
    assert!(found.is_empty(), "a new connection from the same port");
    let found = streams.add(&segment(false, at + 11, &next), &mut losses);
    assert_eq!(found.len(), 1);
}

#[test]
fn too_many_connections_evict_the_oldest() {
    let (mut streams, mut losses) = (Streams::default(), PacketLosses::default());
    for client in 1..=3000 {
        let first = Segment { flow: flow(client, TCP), is_first: true, ..segment(true, 0, b"") };
        streams.add(&first, &mut losses);
    }
    assert_eq!(losses, PacketLosses { streams: 3000 - 2048, ..PacketLosses::default() });
}

fn asker() -> Task {
    Task { pid: 42, cgroup_id: 7, ..Task::UNKNOWN }
}

fn seen(client: u16, is_outgoing: bool, bytes: &[u8], time_ns: u64) -> SeenMessage<'_> {
    SeenMessage { flow: flow(client, UDP), is_outgoing, size: bytes.len() as u32, bytes, time_ns }
}

#[test]
fn a_query_is_answered_late_or_timed_out_once() {
    let (mut table, mut losses) = (table(SETTINGS), PacketLosses::default());
    let (asked, refused) = (message(7, 0x0100, 0), message(7, 0x8185, 0));
    let mut handle = |table: &mut QueryTable, client, is_outgoing, bytes: &[u8], at_ms: u64| {
        table.handle(&seen(client, is_outgoing, bytes, at_ms * MS), asker, &mut losses)
    };
    assert!(handle(&mut table, 4000, true, &asked, 0).is_none());
    assert!(handle(&mut table, 4000, true, &asked, 300).is_none(), "sent again");
    assert!(handle(&mut table, 4001, false, &refused, 310).is_none(), "of a socket without a query");
    assert!(handle(&mut table, 4000, true, &refused, 310).is_none(), "in the wrong direction");
    let record = handle(&mut table, 4000, false, &refused, 320).expect("an answer");
    assert_eq!((record.pending.sends, record.time_ns, record.why), (2, 320 * MS, WHY_ANSWER));
    assert_eq!((record.pending.asker, record.message_len as usize), (asker(), refused.len()));
    assert!(handle(&mut table, 4000, false, &refused, 330).is_none(), "a second answer");

    handle(&mut table, 4002, true, &asked, 400);
    assert!(table.sweep(1300 * MS).is_empty());
    assert_eq!(table.sweep(1400 * MS).len(), 1);
    assert!(table.sweep(1500 * MS).is_empty(), "reported once");
    let late = handle(&mut table, 4002, false, &refused, 9000).expect("late");
    assert_eq!(late.pending.state, podopsy_wire::STATE_TIMED_OUT);
    handle(&mut table, 4003, true, &asked, 10_000);
    assert_eq!(table.unreachable(&flow(4003, UDP)).len(), 1);
    assert!(table.unreachable(&flow(4003, UDP)).is_empty());
    assert_eq!(losses, PacketLosses::default());
}

#[test]
fn answers_without_a_record_are_counted() {
    let settings = AnswerSettings { answers: false, bucket: TokenBucket::new(2000, 3), ..SETTINGS };
    let counters = Arc::new(Mutex::new(HashMap::new()));
    let (mut table, mut losses) = (QueryTable::new(settings, counters.clone()), PacketLosses::default());
    let mut plain = message(7, 0x8180, 1);
    plain.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    let mut shipped = 0;
    for (client, answer) in (1..).zip([&plain, &message(7, 0x8183, 0)].into_iter().cycle()).take(20) {
        table.handle(&seen(client, true, &message(7, 0x0100, 0), 0), asker, &mut losses);
        shipped +=
            u64::from(table.handle(&seen(client, false, answer, 3 * MS), asker, &mut losses).is_some());
    }
    let counts = counters.lock().unwrap()[&7];
    assert_eq!((shipped, losses.throttled, counts.throttled), (3, 7, 7), "a burst of three failures of ten");
    assert_eq!((counts.queries, counts.answers[0], counts.answers[5]), (20, 10, 10));
    assert_eq!(counts.latency[12], 20, "3 ms");
}

#[test]
fn an_outage_evicts_the_oldest_queries_and_counts_them() {
    let (mut table, mut losses) = (table(SETTINGS), PacketLosses::default());
    let long = [message(0, 0x0100, 0), vec![b'x'; 2 * DNS_QUESTION_MAX]].concat();
    for query in 0..PENDING_MAX as u32 + 1000 {
        let mut bytes = long.clone();
        bytes[..2].copy_from_slice(&(query as u16).to_be_bytes());
        let client = 1000 + (query >> 16) as u16;
        table.handle(&seen(client, true, &bytes, u64::from(query)), asker, &mut losses);
    }
    assert_eq!(losses, PacketLosses { evicted: 1000, ..PacketLosses::default() });
    assert_eq!(table.sweep(2000 * MS).len(), PENDING_MAX);
}

#[test]
fn a_query_whose_answer_may_have_been_lost_is_not_a_timeout() {
    let (mut table, mut losses) = (table(SETTINGS), PacketLosses::default());
    let asked = message(7, 0x0100, 0);
    for client in [4000, 4001] {
        table.handle(&seen(client, true, &asked, 0), asker, &mut losses);
    }
    table.drop_waiting(&mut losses);
    assert_eq!(losses.evicted, 2);
    assert!(table.sweep(2000 * MS).is_empty());
}
