//! DNS: decodes a query and its response, and derives the outcome (RFC 1035, RFC 2308).
//!
//! The network chooses the bytes of both messages. They are read within the bounds of the wire records. A message that lacks a
//! part that its header counts is `malformed`, with the reason; what a record's data say is not judged, because types and values
//! that a library does not know are legal.

mod name;
mod record_type;
mod structure;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use podopsy_wire::{
    ANSWER_FORMERR, ANSWER_NODATA, ANSWER_NOERROR, ANSWER_NXDOMAIN, ANSWER_REFUSED, ANSWER_SERVFAIL,
    ANSWER_TRUNCATED, AnswerRecords, DNS_HEADER_BYTES, DNS_QUESTION_MAX, DnsHeader, DnsKey, DnsPending,
    DnsRecord, OPCODE_QUERY, STATE_TIMED_OUT, SocketClosed, SocketError, StrayAnswer, WHY_BESIDE_A, WHY_SLOW,
    answer_class,
};

use self::name::Name;
use super::read::{self, BadRecord};
use podopsy_model::dns::opcode_name;
use podopsy_model::event::{Protocol, QueryFacts};
use podopsy_model::{DnsTransaction, Outcome};

/// A record of the ring `DNS_EVENTS`; the kinds are distinguished by size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsMessage {
    /// A query with its response.
    Answered(Box<DnsRecord>),
    /// The network reported an error to a socket.
    SocketError(SocketError),
    /// A socket was closed while queries had no answer.
    SocketClosed(SocketClosed),
    /// An answer belongs to no query of its socket.
    Stray(StrayAnswer),
}

/// Reads one record of the ring.
pub fn record(bytes: &[u8]) -> Result<DnsMessage, BadRecord> {
    // aya returns the length that the kernel side reserved, without padding.
    const ERROR: usize = size_of::<SocketError>();
    const CLOSED: usize = size_of::<SocketClosed>();
    const STRAY: usize = size_of::<StrayAnswer>();
    match bytes.len() {
        ERROR => read::whole("dns", bytes).map(DnsMessage::SocketError),
        CLOSED => read::whole("dns", bytes).map(DnsMessage::SocketClosed),
        STRAY => read::whole("dns", bytes).map(DnsMessage::Stray),
        _ => read::whole("dns", bytes).map(|record| DnsMessage::Answered(Box::new(record))),
    }
}

/// The transaction of a query with its response.
pub fn answered(record: &DnsRecord) -> DnsTransaction {
    let len = (record.message_len as usize).min(record.message.len());
    let is_whole = record.message_size as usize == len;
    let message = &record.message[..len];
    let question = question(&record.pending);
    let mut transaction = transaction(&record.key, &record.pending, &question, record.time_ns);
    transaction.slow = record.why & WHY_SLOW != 0;
    transaction.facts.beside_a = record.why & WHY_BESIDE_A != 0;
    transaction.rcode = message.get(3).map(|flags| u16::from(flags & 0x0f));
    transaction.outcome = match response(message, is_whole, question.as_ref().ok()) {
        Ok((outcome, rcode)) => {
            transaction.rcode = Some(rcode);
            // The timeout was reported already, so the answer itself does not matter any more.
            if record.pending.state == STATE_TIMED_OUT { Outcome::Late } else { outcome }
        }
        Err(reason) => {
            transaction.malformed = Some(format!("response: {reason}"));
            Outcome::Malformed
        }
    };
    transaction
}

/// The transaction of a query without a response, which ended at `time_ns` with `outcome` (timeout, unreachable).
pub fn unanswered(key: &DnsKey, pending: &DnsPending, outcome: Outcome, time_ns: u64) -> DnsTransaction {
    let question = question(pending);
    let mut transaction = transaction(key, pending, &question, time_ns);
    transaction.outcome = outcome;
    transaction
}

fn transaction(
    key: &DnsKey,
    pending: &DnsPending,
    question: &Result<Question, String>,
    time_ns: u64,
) -> DnsTransaction {
    let opcode = opcode(pending);
    let (name, qtype, malformed) = match question {
        Ok(question) => (Some(question.name.clone()), Some(question.qtype.clone()), None),
        // What other operation codes ask need not be a question.
        Err(_) if opcode != OPCODE_QUERY => (None, None, None),
        Err(reason) => (None, None, Some(format!("query: {reason}"))),
    };
    DnsTransaction {
        name,
        qtype,
        server: server(key, pending),
        protocol: if key.protocol == 6 { Protocol::Tcp } else { Protocol::Udp },
        id: key.id,
        latency_ns: time_ns.saturating_sub(pending.first_sent_ns),
        outcome: Outcome::Other,
        rcode: None,
        sends: pending.sends,
        malformed,
        slow: false,
        answer_dropped: pending.drops > 0,
        facts: Box::new(QueryFacts { opcode: opcode_name(opcode), ..QueryFacts::default() }),
    }
}

/// The server of a query.
fn server(key: &DnsKey, pending: &DnsPending) -> SocketAddr {
    match key.is_rewritten() {
        true => socket_address(pending.server, pending.port),
        false => socket_address(key.server, key.port),
    }
}

fn opcode(pending: &DnsPending) -> u16 {
    DnsHeader { flags: pending.flags, id: 0, questions: 0, answers: 0, authority: 0, additional: 0 }.opcode()
}

/// An address from its words in network order.
pub fn socket_address(words: [u32; 4], port: u16) -> SocketAddr {
    let mut octets = [0; 16];
    for (to, word) in octets.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    let address = Ipv6Addr::from(octets);
    let ip = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
    SocketAddr::new(ip, port)
}

/// The one question of a query.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    /// In lower case, safe to print.
    name: String,
    kind: u16,
    qtype: String,
    class: u16,
}

/// The question of a query; an error says why it has none.
fn question(pending: &DnsPending) -> Result<Question, String> {
    if pending.questions != 1 {
        return Err(format!("{} questions instead of 1", pending.questions));
    }
    let len = (pending.question_len as usize).min(DNS_QUESTION_MAX);
    // Compression pointers count from the start of the header, so an empty one is put in front.
    let mut message = vec![0; DNS_HEADER_BYTES];
    message.extend_from_slice(&pending.question[..len]);
    read_question(&message)
}

/// Reads the question behind the header of a message.
fn read_question(message: &[u8]) -> Result<Question, String> {
    let name = Name::read(message, DNS_HEADER_BYTES).map_err(|error| error.to_string())?;
    let fixed = message.get(name.end..).and_then(|rest| rest.first_chunk::<4>());
    let fixed = fixed.ok_or("the message ends in the question")?;
    Ok(Question {
        name: name.text,
        kind: u16::from_be_bytes([fixed[0], fixed[1]]),
        qtype: record_type::name(u16::from_be_bytes([fixed[0], fixed[1]])),
        class: u16::from_be_bytes([fixed[2], fixed[3]]),
    })
}

/// The outcome by a response, and its whole response code; an error says why it is malformed. `is_whole`: `message` is all of
/// it.
fn response(message: &[u8], is_whole: bool, asked: Option<&Question>) -> Result<(Outcome, u16), String> {
    let header = DnsHeader::from_message(message)
        .ok_or_else(|| format!("{} bytes are less than a header", message.len()))?;
    if header.opcode() != OPCODE_QUERY {
        return Ok((answer_outcome(answer_class(&header, AnswerRecords::UNREAD)), header.rcode()));
    }
    check_question(&header, message, is_whole, asked)?;
    if header.is_truncated() {
        return Ok((Outcome::Truncated, header.rcode()));
    }
    if is_whole {
        structure::walk(message)?;
    }
    let records = match asked {
        Some(asked) => AnswerRecords::from_message(message, asked.kind),
        None => AnswerRecords::UNREAD,
    };
    let rcode = u16::from(records.extended_rcode) << 4 | header.rcode();
    Ok((answer_outcome(answer_class(&header, records)), rcode))
}

/// The outcome of an answer of this class, an index into `DnsCounters::answers`.
pub fn answer_outcome(class: usize) -> Outcome {
    match class {
        ANSWER_NOERROR => Outcome::Noerror,
        ANSWER_NODATA => Outcome::Nodata,
        ANSWER_TRUNCATED => Outcome::Truncated,
        ANSWER_FORMERR => Outcome::Formerr,
        ANSWER_SERVFAIL => Outcome::Servfail,
        ANSWER_NXDOMAIN => Outcome::Nxdomain,
        ANSWER_REFUSED => Outcome::Refused,
        _ => Outcome::Other,
    }
}

/// Checks that a response repeats the question of its query. A server may leave the question out of an error response
/// (RFC 1035 does not rule it out; BIND does it).
fn check_question(
    header: &DnsHeader,
    message: &[u8],
    is_whole: bool,
    asked: Option<&Question>,
) -> Result<(), String> {
    if header.questions != 1 {
        let may_be_absent = header.questions == 0 && header.rcode() != 0;
        return if may_be_absent {
            Ok(())
        } else {
            Err(format!("{} questions instead of 1", header.questions))
        };
    }
    let answered = match read_question(message) {
        Ok(answered) => answered,
        // A TCP segment may end in the middle of the question.
        Err(_) if !is_whole && message.len() < DNS_HEADER_BYTES + DNS_QUESTION_MAX => return Ok(()),
        Err(reason) => return Err(reason),
    };
    if asked.is_some_and(|asked| *asked != answered) {
        return Err("it answers another question".to_owned());
    }
    Ok(())
}
