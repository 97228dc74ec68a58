//! Outcomes, names, and malformed messages.

use super::*;
use podopsy_wire::{DNS_MESSAGE_MAX, STATE_WAITING, Task};

const NAME: &[u8] = b"\x08payments\x07finance\x03svc\x00";
const A_IN: &[u8] = &[0, 1, 0, 1];

fn pending(question: &[u8]) -> DnsPending {
    let mut pending = DnsPending { questions: 1, sends: 1, first_sent_ns: 1_000, ..DnsPending::EMPTY };
    let len = question.len().min(DNS_QUESTION_MAX);
    pending.question[..len].copy_from_slice(&question[..len]);
    pending.question_len = len as u32;
    pending
}

fn response(flags: u16, counts: [u16; 4], body: &[u8]) -> Vec<u8> {
    let mut out = vec![0x12, 0x34];
    out.extend(flags.to_be_bytes());
    out.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    out.extend(body);
    out
}

fn answered_by(state: u32, message: &[u8]) -> DnsTransaction {
    answered(&record_of(state, message))
}

fn record_of(state: u32, message: &[u8]) -> DnsRecord {
    let mut record = DnsRecord {
        key: DnsKey {
            cookie: 1,
            server: [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), u32::from_ne_bytes([10, 0, 0, 1])],
            port: 53,
            id: 0x1234,
            protocol: 17,
        },
        pending: DnsPending { state, asker: Task::UNKNOWN, ..pending(&[NAME, A_IN].concat()) },
        time_ns: 3_000,
        message_size: message.len() as u32,
        message_len: message.len().min(DNS_MESSAGE_MAX) as u32,
        why: 0,
        unused: 0,
        message: [0; DNS_MESSAGE_MAX],
    };
    let len = record.message_len as usize;
    record.message[..len].copy_from_slice(&message[..len]);
    record
}

fn outcome(flags: u16, answers: u16, body: &[u8]) -> Outcome {
    answered_by(STATE_WAITING, &response(flags, [1, answers, 0, 0], body)).outcome
}

#[test]
fn every_rcode_has_its_outcome() {
    let question = [NAME, A_IN].concat();
    for (flags, expected) in [
        (0x8180, Outcome::Nodata),
        (0x8181, Outcome::Formerr),
        (0x8182, Outcome::Servfail),
        (0x8183, Outcome::Nxdomain),
        (0x8184, Outcome::Other),
        (0x8185, Outcome::Refused),
        (0x8380, Outcome::Truncated),
    ] {
        assert_eq!(outcome(flags, 0, &question), expected, "{flags:#06x}");
    }
    let answer = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1];
    assert_eq!(outcome(0x8180, 1, &[&question[..], &answer[..]].concat()), Outcome::Noerror);
}

#[test]
fn a_transaction_has_name_type_server_and_latency() {
    let message = response(0x8183, [1, 0, 0, 0], &[NAME, A_IN].concat());
    let transaction = answered_by(STATE_WAITING, &message);
    assert_eq!(transaction.name.as_deref(), Some("payments.finance.svc"));
    assert_eq!(transaction.qtype.as_deref(), Some("A"));
    assert_eq!(transaction.server, "10.0.0.1:53".parse().unwrap());
    assert_eq!((transaction.latency_ns, transaction.rcode), (2_000, Some(3)));
}

#[test]
fn the_server_of_a_rewritten_query_is_the_one_that_the_application_gave() {
    let mut record = record_of(STATE_WAITING, &response(0x8183, [1, 0, 0, 0], &[NAME, A_IN].concat()));
    (record.pending.server, record.pending.port) = (record.key.server, 5353);
    (record.key.server, record.key.port) = (DnsKey::rewritten_server(2), 0);
    assert_eq!(answered(&record).server, "10.0.0.1:5353".parse().unwrap());
    let timeout = unanswered(&record.key, &record.pending, Outcome::Timeout, 3_000);
    assert_eq!(timeout.server, "10.0.0.1:5353".parse().unwrap());
}

#[test]
fn an_answer_after_the_timeout_is_late() {
    let message = response(0x8183, [1, 0, 0, 0], &[NAME, A_IN].concat());
    assert_eq!(answered_by(STATE_TIMED_OUT, &message).outcome, Outcome::Late);
}

#[test]
fn a_question_that_differs_only_in_case_is_the_same() {
    let shouted: Vec<u8> = NAME.iter().map(u8::to_ascii_uppercase).collect();
    assert_eq!(outcome(0x8183, 0, &[&shouted[..], A_IN].concat()), Outcome::Nxdomain);
}

#[test]
fn an_error_response_may_leave_the_question_out() {
    let message = response(0x8181, [0, 0, 0, 0], &[]);
    assert_eq!(answered_by(STATE_WAITING, &message).outcome, Outcome::Formerr);
}

#[test]
fn a_malformed_response_is_reported_with_its_reason() {
    let question = [NAME, A_IN].concat();
    let self_pointer = [0xc0, 12, 0, 1, 0, 1];
    let other = [b"\x05other\x00".as_slice(), A_IN].concat();
    let long_label = [&[63u8; 64][..], &[0xff; 20]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("short header", vec![0x12, 0x34, 0x81, 0x80, 0]),
        ("no question in a success", response(0x8180, [0, 1, 0, 0], &[])),
        ("many questions", response(0x8183, [7, 0, 0, 0], &question)),
        ("pointer to itself", response(0x8180, [1, 1, 0, 0], &self_pointer)),
        ("another question", response(0x8183, [1, 0, 0, 0], &other)),
        ("name runs out of the message", response(0x8183, [1, 0, 0, 0], &long_label)),
        ("answers that are missing", response(0x8180, [1, 9, 0, 0], &question)),
        ("question cut off", response(0x8183, [1, 0, 0, 0], &question[..question.len() - 3])),
    ];
    for (what, message) in cases {
        let transaction = answered_by(STATE_WAITING, &message);
        assert_eq!(transaction.outcome, Outcome::Malformed, "{what}: {transaction:?}");
        assert!(transaction.malformed.is_some_and(|reason| reason.starts_with("response: ")), "{what}");
    }
}

#[test]
fn a_malformed_query_keeps_its_outcome_and_has_a_reason() {
    let label = [b"\x3f".as_slice(), &[b'a'; 63]].concat();
    let too_long = [label.repeat(5), vec![0, 0, 1, 0, 1]].concat();
    let self_pointer = vec![0xc0, 12, 0, 1, 0, 1];
    for question in [too_long, self_pointer, vec![], vec![0x3f, b'a']] {
        let transaction = unanswered(
            &DnsKey { cookie: 0, server: [0; 4], port: 53, id: 0, protocol: 17 },
            &pending(&question),
            Outcome::Timeout,
            9_000,
        );
        assert_eq!((transaction.name, transaction.outcome), (None, Outcome::Timeout));
        assert!(transaction.malformed.is_some_and(|reason| reason.starts_with("query: ")));
    }
}

#[test]
fn an_extended_response_code_is_whole() {
    let opt = |upper: u8| [0, 0, 41, 4, 208, upper, 0, 0, 0, 0, 0];
    // BADVERS (16), BADCOOKIE (23), and SERVFAIL with an OPT record that extends nothing.
    for (flags, upper, expected) in [
        (0x8180, 1, (Outcome::Other, Some(16))),
        (0x8187, 1, (Outcome::Other, Some(23))),
        (0x8182, 0, (Outcome::Servfail, Some(2))),
    ] {
        let message = response(flags, [1, 0, 0, 1], &[NAME, A_IN, &opt(upper)].concat());
        let transaction = answered_by(STATE_WAITING, &message);
        assert_eq!((transaction.outcome, transaction.rcode), expected);
    }
}

#[test]
fn names_are_in_lower_case_and_escaped_once() {
    let question = [b"\x02nX\x03x y\x03CoM\x00".as_slice(), A_IN].concat();
    let name = read_question(&[&[0; DNS_HEADER_BYTES][..], &question].concat()).unwrap().name;
    assert_eq!(name, r"nx.x\032y.com");
}

#[test]
fn names_cannot_carry_control_sequences() {
    let question = [b"\x06\x1b[2J\xff\n\x03com\x00".as_slice(), A_IN].concat();
    let name = read_question(&[&[0; DNS_HEADER_BYTES][..], &question].concat()).unwrap().name;
    assert!(name.is_ascii() && !name.contains('\x1b') && !name.contains('\n'), "{name}");
}

/// Bounded and repeatable: a message cut at every length, with every byte changed to every value, and 200,000 random
/// messages. Each one has an outcome, and each malformed one has a reason.
#[test]
fn no_message_makes_the_decoder_panic_and_every_malformed_one_has_a_reason() {
    let whole = response(
        0x8180,
        [1, 1, 0, 0],
        &[NAME, A_IN, &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]].concat(),
    );
    let mut by_reason = std::collections::BTreeMap::<String, u64>::new();
    let mut fed = 0_u64;
    let mut feed = |message: &[u8]| {
        let it = answered_by(STATE_WAITING, message);
        assert_eq!(it.malformed.is_some(), it.outcome == Outcome::Malformed, "{it:?}");
        let reason = it.malformed.unwrap_or_else(|| it.outcome.as_str().to_owned());
        assert!(reason.len() < 600 && reason.chars().all(|c| !c.is_control()), "{reason}");
        // Without numbers and quotations there are few reasons.
        let kind = reason.split(|c: char| c.is_ascii_digit()).next().unwrap_or_default().to_owned();
        *by_reason.entry(kind).or_default() += 1;
        fed += 1;
    };
    for cut in 0..whole.len() {
        feed(&whole[..cut]);
    }
    for at in 0..whole.len() {
        for value in 0..=255 {
            let mut bad = whole.clone();
            bad[at] = value;
            feed(&bad);
        }
    }
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        seed >> 24
    };
    for round in 0..200_000 {
        let mut message = whole.clone();
        // Shorter, longer, or of the same length, and changed in up to four places.
        match round % 4 {
            0 => message.truncate(random() as usize % whole.len()),
            1 => message.extend((0..random() % 600).map(|byte| byte as u8)),
            _ => {}
        }
        for _ in 0..4 {
            if !message.is_empty() {
                let at = random() as usize % message.len();
                message[at] = random() as u8;
            }
        }
        feed(&message);
    }
    assert_eq!(by_reason.values().sum::<u64>(), fed);
    for (reason, count) in &by_reason {
        println!("{count:8} {reason}");
    }
    let malformed = by_reason.keys().filter(|reason| reason.starts_with("response: ")).count();
    assert!((4..60).contains(&malformed), "{by_reason:?}");
}

#[test]
fn records_are_distinguished_by_size_and_other_sizes_are_refused() {
    assert!(matches!(record(&[1; size_of::<SocketError>()]), Ok(DnsMessage::SocketError(_))));
    assert!(matches!(record(&[1; size_of::<DnsRecord>()]), Ok(DnsMessage::Answered(_))));
    for size in [0, 11, size_of::<SocketError>() + 1, size_of::<DnsRecord>() - 1, size_of::<DnsRecord>() + 1]
    {
        assert!(record(&vec![1; size]).is_err(), "{size}");
    }
}

#[test]
fn a_segment_that_ends_within_the_question_is_not_malformed() {
    let whole = response(0x8183, [1, 0, 0, 0], &[NAME, A_IN].concat());
    for len in [12, 13, 20, whole.len()] {
        let mut record = record_of(STATE_WAITING, &whole[..len]);
        // The rest of the message is in later segments.
        record.message_size = 900;
        let transaction = answered(&record);
        assert_eq!((transaction.outcome, transaction.malformed), (Outcome::Nxdomain, None), "{len}");
    }
    // A complete message must be well-formed.
    assert_eq!(answered(&record_of(STATE_WAITING, &whole[..20])).outcome, Outcome::Malformed);
}

#[test]
fn an_answer_that_the_kernel_side_marked_slow_is_slow() {
    let message = response(0x8183, [1, 0, 0, 0], &[NAME, A_IN].concat());
    let mut record = record_of(STATE_WAITING, &message);
    assert!(!answered(&record).slow);
    record.why = WHY_SLOW;
    assert!(answered(&record).slow);
}

#[test]
fn other_operation_codes_need_no_question_and_noerror_is_their_success() {
    let of = |flags: u16, message: &[u8], question: &[u8]| {
        let mut record = record_of(STATE_WAITING, message);
        record.pending = DnsPending { flags, ..pending(question) };
        record.pending.questions = u16::from(!question.is_empty());
        answered(&record)
    };
    let update = of(0x2800, &response(0xa800, [0; 4], &[]), &[NAME, &[0, 6, 0, 1]].concat());
    assert_eq!((update.outcome, update.facts.opcode.as_deref()), (Outcome::Noerror, Some("UPDATE")));
    assert_eq!((update.qtype.as_deref(), update.is_failure()), (Some("SOA"), false));
    let status = of(0x1000, &response(0x9004, [0; 4], &[]), &[]);
    assert_eq!((status.outcome, status.rcode, status.malformed), (Outcome::Other, Some(4), None));
    let unassigned = of(0x7800, &response(0xf804, [0; 4], &[]), &[]);
    assert_eq!(unassigned.facts.opcode.as_deref(), Some("OPCODE15"));
}

#[test]
fn an_alias_with_nothing_behind_it_is_no_data() {
    let question = [NAME, A_IN].concat();
    let alias = [0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'x', 0xc0, 12];
    assert_eq!(outcome(0x8180, 1, &[&question[..], &alias].concat()), Outcome::Nodata);
}

#[test]
fn aaaa_without_data_beside_a_is_no_failure() {
    let mut record = record_of(STATE_WAITING, &response(0x8180, [1, 0, 0, 0], &[NAME, A_IN].concat()));
    assert!(answered(&record).is_failure());
    record.why = podopsy_wire::WHY_BESIDE_A;
    assert!(!answered(&record).is_failure());
}
