//! DNS: decodes a query and its response, and derives the outcome (RFC 1035, RFC 2308).
//!
//! The network chooses the bytes of both messages. hickory-proto parses them, within the bounds of the wire records;
//! what it cannot parse is `malformed`, with the reason.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Message, Query};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use podopsy_wire::{
    ANSWER_FORMERR, ANSWER_NODATA, ANSWER_NOERROR, ANSWER_NXDOMAIN, ANSWER_REFUSED, ANSWER_SERVFAIL,
    ANSWER_TRUNCATED, DNS_HEADER_BYTES, DNS_QUESTION_MAX, DnsHeader, DnsKey, DnsPending, DnsRecord,
    STATE_TIMED_OUT, SocketError, WHY_SLOW,
};

use super::read::{self, BadRecord};
use podopsy_model::event::Protocol;
use podopsy_model::{DnsTransaction, Outcome, text};

/// A record of the ring `DNS_EVENTS`; the two kinds are distinguished by size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsMessage {
    /// A query with its response.
    Answered(Box<DnsRecord>),
    /// The network reported an error to a socket.
    SocketError(SocketError),
}

/// Reads one record of the ring.
pub fn record(bytes: &[u8]) -> Result<DnsMessage, BadRecord> {
    // aya returns the length that the kernel side reserved, without padding.
    if bytes.len() == size_of::<SocketError>() {
        return read::whole("dns", bytes).map(DnsMessage::SocketError);
    }
    read::whole("dns", bytes).map(|record| DnsMessage::Answered(Box::new(record)))
}

/// The transaction of a query with its response.
pub fn answered(record: &DnsRecord) -> DnsTransaction {
    let len = (record.message_len as usize).min(record.message.len());
    let is_whole = record.message_size as usize == len;
    let message = &record.message[..len];
    let question = question(&record.pending);
    let mut transaction = transaction(&record.key, &record.pending, &question, record.time_ns);
    let outcome = response_outcome(message, is_whole, question.as_ref().ok());
    transaction.slow = record.why & WHY_SLOW != 0;
    transaction.rcode = message.get(3).map(|flags| flags & 0x0f);
    transaction.outcome = match outcome {
        // The timeout was reported already, so the answer itself does not matter any more.
        Ok(_) if record.pending.state == STATE_TIMED_OUT => Outcome::Late,
        Ok(outcome) => outcome,
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
    let (name, qtype, malformed) = match question {
        Ok(question) => (Some(question.name.clone()), Some(question.qtype.clone()), None),
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
    }
}

/// The server's address from its words in network order.
fn server(key: &DnsKey, pending: &DnsPending) -> SocketAddr {
    let (words, port) =
        if key.is_rewritten() { (pending.server, pending.port) } else { (key.server, key.port) };
    let mut octets = [0; 16];
    for (to, word) in octets.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    let address = Ipv6Addr::from(octets);
    let ip = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
    SocketAddr::new(ip, port)
}

/// The one question of a query.
struct Question {
    name: String,
    qtype: String,
    query: Query,
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
    let mut decoder = BinDecoder::new(message);
    decoder.read_slice(DNS_HEADER_BYTES).map_err(|_| "shorter than a header".to_owned())?;
    let query = Query::read(&mut decoder).map_err(|error| escape_error(&error.to_string()))?;
    Ok(Question { name: text::escape(&presentation(&query)), qtype: qtype(&query), query })
}

/// The name as people write it: absolute, with `\DDD` escapes, without the final dot except for the root.
fn presentation(query: &Query) -> String {
    let name = query.name().to_ascii();
    match name.strip_suffix('.') {
        Some("") | None => name,
        Some(relative) => relative.to_owned(),
    }
}

/// The type's mnemonic (`A`, `AAAA`, …), or `TYPE65280` and the like for a type without one (RFC 3597).
fn qtype(query: &Query) -> String {
    let number = u16::from(query.query_type());
    let name = query.query_type().to_string();
    if name.chars().all(|c| c.is_ascii_alphanumeric()) { name } else { format!("TYPE{number}") }
}

/// The outcome by a response; an error says why it is malformed. `is_whole`: `message` is all of it.
fn response_outcome(message: &[u8], is_whole: bool, asked: Option<&Question>) -> Result<Outcome, String> {
    let header = DnsHeader::from_message(message)
        .ok_or_else(|| format!("{} bytes are less than a header", message.len()))?;
    check_question(&header, message, is_whole, asked)?;
    if header.is_truncated() {
        return Ok(Outcome::Truncated);
    }
    if is_whole {
        Message::from_vec(message).map_err(|error| escape_error(&error.to_string()))?;
    }
    Ok(answer_outcome(header.answer_class()))
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
    if asked.is_some_and(|asked| asked.query != answered.query) {
        return Err("it answers another question".to_owned());
    }
    Ok(())
}

/// Escapes and shortens a library's error text, which may quote the packet.
fn escape_error(error: &str) -> String {
    let mut text = text::escape(error);
    if let Some((cut, _)) = text.char_indices().nth(120) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
