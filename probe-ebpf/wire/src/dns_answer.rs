//! The class of an answer, by its header and its records.

use crate::{
    ANSWER_FORMERR, ANSWER_NODATA, ANSWER_NOERROR, ANSWER_NXDOMAIN, ANSWER_OTHER, ANSWER_REFUSED,
    ANSWER_SERVFAIL, ANSWER_TRUNCATED, DNS_HEADER_BYTES, DnsHeader, OPCODE_QUERY,
};

/// Record types that the rules know (RFC 1035 §3.2.2, RFC 3596, RFC 6891 §6.1.1).
pub const TYPE_A: u16 = 1;
pub const TYPE_CNAME: u16 = 5;
pub const TYPE_AAAA: u16 = 28;
pub const TYPE_OPT: u16 = 41;
/// From here on, types stand for several others (RFC 6895 §3.1): IXFR, AXFR, MAILB, MAILA, ANY. Any record answers them.
const TYPE_IXFR: u16 = 251;
const TYPE_ANY: u16 = 255;

/// What the records of an answer say, as far as they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerRecords {
    /// The answer section has a record of the type that was asked for; None: not all of it was read.
    pub has_asked_type: Option<bool>,
    /// The upper eight bits of the response code, from an OPT record (RFC 6891 §6.1.3).
    pub extended_rcode: u8,
}

impl AnswerRecords {
    /// None was read.
    pub const UNREAD: AnswerRecords = AnswerRecords { has_asked_type: None, extended_rcode: 0 };
}

impl AnswerRecords {
    /// Reads the records of a message's bytes, as far as they go, for a question of this type.
    pub fn from_message(message: &[u8], qtype: u16) -> AnswerRecords {
        let mut found = AnswerRecords::UNREAD;
        let _ = found.read(message, qtype);
        found
    }

    /// None: the bytes end before the records.
    fn read(&mut self, message: &[u8], qtype: u16) -> Option<()> {
        let header = DnsHeader::from_message(message)?;
        let mut at = DNS_HEADER_BYTES;
        for _ in 0..header.questions {
            at = skip_name(message, at)? + 4;
        }
        let answers = header.answers as u32;
        for number in 0..header.records() {
            if number == answers {
                self.has_asked_type.get_or_insert(false);
            }
            at = skip_name(message, at)?;
            let fixed: &[u8; 10] = message.get(at..)?.first_chunk()?;
            let kind = u16::from_be_bytes([fixed[0], fixed[1]]);
            if number < answers && answers_type(kind, qtype) {
                self.has_asked_type = Some(true);
            }
            if number >= answers + header.authority as u32 && kind == TYPE_OPT {
                self.extended_rcode = fixed[4];
            }
            at += 10 + u16::from_be_bytes([fixed[8], fixed[9]]) as usize;
        }
        self.has_asked_type.get_or_insert(false);
        Some(())
    }
}

/// The place behind the name at a place.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            length => at += 1 + length as usize,
        }
    }
}

/// Whether a record of type `kind` in the answer section answers a question for `qtype`.
#[inline(always)]
pub const fn answers_type(kind: u16, qtype: u16) -> bool {
    kind == qtype || (qtype >= TYPE_IXFR && qtype <= TYPE_ANY)
}

/// The class of an answer: an index into `DnsCounters::answers`.
///
/// An alias with nothing of the asked type behind it is NODATA (RFC 2308 §2.2). An answer whose records were not all read
/// counts as what its header says. Only QUERY is answered by records: to other operation codes NOERROR is success.
#[inline(always)]
pub const fn answer_class(header: &DnsHeader, records: AnswerRecords) -> usize {
    if header.is_truncated() {
        return ANSWER_TRUNCATED;
    }
    if records.extended_rcode != 0 {
        return ANSWER_OTHER;
    }
    match header.rcode() {
        0 if header.opcode() != OPCODE_QUERY => ANSWER_NOERROR,
        0 if header.answers == 0 || matches!(records.has_asked_type, Some(false)) => ANSWER_NODATA,
        0 => ANSWER_NOERROR,
        1 => ANSWER_FORMERR,
        2 => ANSWER_SERVFAIL,
        3 => ANSWER_NXDOMAIN,
        5 => ANSWER_REFUSED,
        _ => ANSWER_OTHER,
    }
}

/// Whether a client takes an answer of this class as the answer to its question, and does not ask another server.
#[inline(always)]
pub const fn is_accepted(class: usize) -> bool {
    matches!(class, ANSWER_NOERROR | ANSWER_NODATA | ANSWER_NXDOMAIN | ANSWER_TRUNCATED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_records<const N: usize>(flags: u16, counts: [u16; 3], bytes: &[&[u8]; N]) -> ([u8; 160], usize) {
        let mut message = [0; 160];
        let mut length = 0;
        let mut add = |bytes: &[u8]| {
            message[length..length + bytes.len()].copy_from_slice(bytes);
            length += bytes.len();
        };
        let [answers, authority, additional] = counts;
        [7, flags, 1, answers, authority, additional].iter().for_each(|word| add(&word.to_be_bytes()));
        add(b"\x01a\x00\x00\x01\x00\x01");
        bytes.iter().for_each(|bytes| add(bytes));
        (message, length)
    }

    #[test]
    fn an_alias_with_nothing_behind_it_is_no_data_and_extended_codes_are_read() {
        const ALIAS: &[u8] = b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x1e\x00\x04\x01b\xc0\x0c";
        const ADDRESS: &[u8] = b"\x01b\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x1e\x00\x04\x0a\x00\x00\x01";
        const OPT: &[u8] = b"\x00\x00\x29\x04\xd0\x01\x00\x00\x00\x00\x00";
        let class = |flags, counts, bytes: &[&[u8]; 2], qtype, cut: usize| {
            let (message, length) = with_records(flags, counts, bytes);
            let header = DnsHeader::from_message(&message).unwrap();
            answer_class(&header, AnswerRecords::from_message(&message[..length - cut], qtype))
        };
        let none: &[u8] = &[];
        assert_eq!(class(0x8180, [1, 0, 0], &[ALIAS, none], TYPE_A, 0), ANSWER_NODATA);
        assert_eq!(class(0x8180, [2, 0, 0], &[ALIAS, ADDRESS], TYPE_A, 0), ANSWER_NOERROR);
        assert_eq!(class(0x8180, [2, 0, 0], &[ALIAS, ADDRESS], TYPE_AAAA, 0), ANSWER_NODATA);
        assert_eq!(class(0x8180, [1, 0, 0], &[ALIAS, none], TYPE_CNAME, 0), ANSWER_NOERROR);
        assert_eq!(class(0x8180, [1, 0, 0], &[ALIAS, none], 255, 0), ANSWER_NOERROR, "ANY");
        // What is not there is not judged.
        assert_eq!(class(0x8180, [2, 0, 0], &[ALIAS, ADDRESS], TYPE_AAAA, 12), ANSWER_NOERROR);
        assert_eq!(class(0x8180, [0, 0, 1], &[none, OPT], TYPE_A, 0), ANSWER_OTHER, "BADVERS");
        assert_eq!(class(0x8181, [0, 0, 1], &[none, OPT], TYPE_A, 0), ANSWER_OTHER, "not FORMERR");
    }
}
