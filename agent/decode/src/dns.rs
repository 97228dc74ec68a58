//! DNS: a query, its response, and the outcome that they make (RFC 1035, RFC 2308).
//!
//! Both messages are the network's to choose. hickory-proto reads them, behind the bounds that the
//! wire's records have; what it cannot read is `malformed`, with the reason.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Message, Query};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use podopsy_wire::{DNS_QUESTION_MAX, DnsKey, DnsPending, DnsRecord, STATE_TIMED_OUT, SocketError, WHY_SLOW};

use super::fields::{BadRecord, Fields};
use podopsy_model::event::Protocol;
use podopsy_model::{DnsTransaction, Outcome, text};

const HEADER: usize = 12;

/// What the ring `DNS_EVENTS` carries, told apart by size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsMessage {
    Answered(Box<DnsRecord>),
    SocketError(SocketError),
}

/// Reads one record of the ring.
pub fn record(bytes: &[u8]) -> Result<DnsMessage, BadRecord> {
    let mut fields = Fields::new("dns", bytes);
    // The ring rounds nothing up: aya hands out the length that was reserved.
    if bytes.len() < size_of::<DnsRecord>() {
        let error =
            SocketError { cookie: fields.u64()?, time_ns: fields.u64()?, errno: fields.u32()?, unused: 0 };
        return Ok(DnsMessage::SocketError(error));
    }
    let key = DnsKey {
        cookie: fields.u64()?,
        server: [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?],
        port: fields.u16()?,
        id: fields.u16()?,
        protocol: fields.u32()?,
    };
    let pending = DnsPending {
        asker: fields.task()?,
        first_sent_ns: fields.u64()?,
        last_sent_ns: fields.u64()?,
        sends: fields.u32()?,
        state: fields.u32()?,
        question_len: fields.u32()?,
        flags: fields.u16()?,
        questions: fields.u16()?,
        drops: fields.u32()?,
        question: fields.array()?,
    };
    let record = DnsRecord {
        key,
        pending,
        time_ns: fields.u64()?,
        message_size: fields.u32()?,
        message_len: fields.u32()?,
        why: fields.u32()?,
        unused: fields.u32()?,
        message: fields.array()?,
    };
    Ok(DnsMessage::Answered(Box::new(record)))
}

/// A query that met its response.
pub fn answered(record: &DnsRecord) -> DnsTransaction {
    let len = (record.message_len as usize).min(record.message.len());
    let is_whole = record.message_size as usize == len;
    let message = &record.message[..len];
    let question = question(&record.pending);
    let mut transaction = transaction(&record.key, &record.pending, &question, record.time_ns);
    let judged = judge(message, is_whole, question.as_ref().ok());
    transaction.slow = record.why & WHY_SLOW != 0;
    transaction.rcode = message.get(3).map(|flags| flags & 0x0f);
    transaction.outcome = match judged {
        // The client gave up on it long ago: that it came at all is the news.
        Ok(_) if record.pending.state == STATE_TIMED_OUT => Outcome::Late,
        Ok(outcome) => outcome,
        Err(reason) => {
            transaction.malformed = Some(format!("response: {reason}"));
            Outcome::Malformed
        }
    };
    transaction
}

/// A query that `outcome` (timeout, unreachable) befell at `time_ns`.
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
        server: server(key),
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

fn server(key: &DnsKey) -> SocketAddr {
    let mut octets = [0; 16];
    for (to, word) in octets.chunks_exact_mut(4).zip(key.server) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    let address = Ipv6Addr::from(octets);
    let ip = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
    SocketAddr::new(ip, key.port)
}

struct Question {
    name: String,
    qtype: String,
    query: Query,
}

/// The question of a query, or why it is none.
fn question(pending: &DnsPending) -> Result<Question, String> {
    if pending.questions != 1 {
        return Err(format!("{} questions instead of 1", pending.questions));
    }
    let len = (pending.question_len as usize).min(DNS_QUESTION_MAX);
    // Compression pointers count from the header: put one in front.
    let mut message = vec![0; HEADER];
    message.extend_from_slice(&pending.question[..len]);
    read_question(&message)
}

fn read_question(message: &[u8]) -> Result<Question, String> {
    let mut decoder = BinDecoder::new(message);
    decoder.read_slice(HEADER).map_err(|_| "shorter than a header".to_owned())?;
    let query = Query::read(&mut decoder).map_err(|error| plain(&error.to_string()))?;
    Ok(Question { name: text::escape(&presentation(&query)), qtype: qtype(&query), query })
}

/// Absolute, `\DDD` escapes, final dot left out but for the root: as people write names.
fn presentation(query: &Query) -> String {
    let name = query.name().to_ascii();
    match name.strip_suffix('.') {
        Some("") | None => name,
        Some(relative) => relative.to_owned(),
    }
}

/// `A`, `AAAA`, …; `TYPE65280` for what has no name (RFC 3597).
fn qtype(query: &Query) -> String {
    let number = u16::from(query.query_type());
    let name = query.query_type().to_string();
    if name.chars().all(|c| c.is_ascii_alphanumeric()) { name } else { format!("TYPE{number}") }
}

/// What a response says, or why it is none. `is_whole`: `message` is all of it.
fn judge(message: &[u8], is_whole: bool, asked: Option<&Question>) -> Result<Outcome, String> {
    let header: &[u8; HEADER] =
        message.first_chunk().ok_or_else(|| format!("{} bytes are less than a header", message.len()))?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (flags, questions, answers) = (word(2), word(4), word(6));
    let rcode = flags & 0x000f;
    // Servers may leave the question out when they refuse (RFC 1035 does not say; BIND does).
    if questions == 1 {
        let answered = match read_question(message) {
            Ok(answered) => Some(answered),
            // A segment may end in the middle of it (TCP).
            Err(_) if !is_whole && message.len() < HEADER + DNS_QUESTION_MAX => None,
            Err(reason) => return Err(reason),
        };
        if let Some(answered) = answered
            && asked.is_some_and(|asked| asked.query != answered.query)
        {
            return Err("it answers another question".to_owned());
        }
    } else if questions > 1 || rcode == 0 {
        return Err(format!("{questions} questions instead of 1"));
    }
    if flags & 0x0200 != 0 {
        return Ok(Outcome::Truncated);
    }
    if is_whole {
        Message::from_vec(message).map_err(|error| plain(&error.to_string()))?;
    }
    Ok(match rcode {
        0 if answers == 0 => Outcome::Nodata,
        0 => Outcome::Noerror,
        1 => Outcome::Formerr,
        2 => Outcome::Servfail,
        3 => Outcome::Nxdomain,
        5 => Outcome::Refused,
        _ => Outcome::Other,
    })
}

/// A library's error text may quote the packet.
fn plain(error: &str) -> String {
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
