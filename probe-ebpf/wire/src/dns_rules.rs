//! Pure DNS rules. The kernel side applies them to packets of the whole node, `agent/packets` to those of a packet
//! socket, and `agent/decode` to the bytes of a record; a rule that stood on each side could drift apart.
//!
//! Everything is inlined into the BPF programs: no recursion, no 128-bit arithmetic (so no `saturating_mul` of `u64`).

use crate::{
    ANSWER_FORMERR, ANSWER_NODATA, ANSWER_NOERROR, ANSWER_NXDOMAIN, ANSWER_OTHER, ANSWER_REFUSED,
    ANSWER_SERVFAIL, ANSWER_TRUNCATED, DNS_LATENCY_BUCKETS, DNS_QUESTION_MAX, DNS_QUESTION_WORDS, NAME_SLOTS,
    SOCKET_SLOTS, STATE_WAITING,
};

/// Length of the fixed header (RFC 1035 §4.1.1).
pub const DNS_HEADER_BYTES: usize = 12;

/// The shortest answer record: a compressed name (2 bytes) and the fixed fields (10 bytes), RFC 1035 §4.1.3.
const ANSWER_BYTES_MIN: usize = 12;

/// Operation codes (RFC 1035 §4.1.1; RFC 1996, 2136 and 8490 for the last three).
pub const OPCODE_QUERY: u16 = 0;
pub const OPCODE_IQUERY: u16 = 1;
pub const OPCODE_STATUS: u16 = 2;
pub const OPCODE_NOTIFY: u16 = 4;
pub const OPCODE_UPDATE: u16 = 5;
pub const OPCODE_DSO: u16 = 6;

/// Record types that the rules know (RFC 1035 §3.2.2, RFC 3596, RFC 6891 §6.1.1).
pub const TYPE_A: u16 = 1;
pub const TYPE_CNAME: u16 = 5;
pub const TYPE_AAAA: u16 = 28;
pub const TYPE_OPT: u16 = 41;
/// From here on, types stand for several others (RFC 6895 §3.1): IXFR, AXFR, MAILB, MAILA, ANY. Any record answers them.
const TYPE_IXFR: u16 = 251;
const TYPE_ANY: u16 = 255;

/// The fixed header (RFC 1035 §4.1.1), in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsHeader {
    pub id: u16,
    pub flags: u16,
    /// QDCOUNT.
    pub questions: u16,
    /// ANCOUNT.
    pub answers: u16,
    /// NSCOUNT.
    pub authority: u16,
    /// ARCOUNT.
    pub additional: u16,
}

impl DnsHeader {
    #[inline(always)]
    pub const fn from_start(start: [u8; DNS_HEADER_BYTES]) -> DnsHeader {
        DnsHeader {
            id: u16::from_be_bytes([start[0], start[1]]),
            flags: u16::from_be_bytes([start[2], start[3]]),
            questions: u16::from_be_bytes([start[4], start[5]]),
            answers: u16::from_be_bytes([start[6], start[7]]),
            authority: u16::from_be_bytes([start[8], start[9]]),
            additional: u16::from_be_bytes([start[10], start[11]]),
        }
    }

    /// Reads the header of a message; None: the message is shorter than a header.
    pub fn from_message(message: &[u8]) -> Option<DnsHeader> {
        message.first_chunk().map(|start| DnsHeader::from_start(*start))
    }

    /// How many records follow the questions.
    #[inline(always)]
    pub const fn records(&self) -> u32 {
        self.answers as u32 + self.authority as u32 + self.additional as u32
    }

    /// Whether this can be the header of a query. What else is sent to a server's port is not DNS, for example a tunnel: four
    /// bytes that are chosen at random pass once in some thousand million times.
    #[inline(always)]
    pub const fn is_query(&self) -> bool {
        if self.is_response() || self.is_truncated() || self.rcode() != 0 {
            return false;
        }
        match self.opcode() {
            OPCODE_QUERY => self.questions <= 4 && self.answers == 0,
            OPCODE_IQUERY => self.questions <= 1 && self.answers <= 1,
            OPCODE_STATUS => self.questions <= 1 && self.answers == 0,
            OPCODE_NOTIFY => self.questions == 1 && self.answers <= 1,
            OPCODE_UPDATE => self.questions == 1,
            OPCODE_DSO => self.records() == 0 && self.questions == 0,
            _ => false,
        }
    }

    #[inline(always)]
    pub const fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    #[inline(always)]
    pub const fn is_truncated(&self) -> bool {
        self.flags & 0x0200 != 0
    }

    #[inline(always)]
    pub const fn opcode(&self) -> u16 {
        (self.flags >> 11) & 0x0f
    }

    /// The lower four bits of the response code; the upper ones are in an OPT record (RFC 6891 §6.1.3).
    #[inline(always)]
    pub const fn rcode(&self) -> u16 {
        self.flags & 0x000f
    }

    /// Whether an answer needs no look at its bytes by user space: it came in time and reports success (`class`), and its
    /// `size` can hold the header, the bytes after the query's header (`question_len`) and one answer record. A shorter
    /// message (and the rare honest one whose server left out the query's EDNS record) is decoded in user space. An answer
    /// to anything but QUERY need not have a record.
    #[inline(always)]
    pub const fn is_plain_success(&self, class: usize, state: u32, question_len: u32, size: u32) -> bool {
        if state != STATE_WAITING || class != ANSWER_NOERROR {
            return false;
        }
        if self.opcode() != OPCODE_QUERY {
            return true;
        }
        self.rcode() == 0
            && self.answers > 0
            && self.questions == 1
            && !self.is_truncated()
            && question_len > 0
            && size >= DNS_HEADER_BYTES as u32 + question_len + ANSWER_BYTES_MIN as u32
    }

    /// Whether bytes in the middle of a TCP stream can be a message in this direction: query or response as expected, a
    /// known opcode (0 QUERY to 6 DSO), and one question at most.
    #[inline(always)]
    pub const fn is_plausible(&self, is_response: bool) -> bool {
        self.is_response() == is_response && self.opcode() <= OPCODE_DSO && self.questions <= 1
    }
}

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

/// What a question has beside its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub qtype: u16,
    /// Its bytes: the name, type and class; 0: the bytes do not begin with a question.
    pub size: u16,
    /// A hash of the name that ignores case.
    pub name_hash: u32,
}

impl Question {
    const NONE: Question = Question { qtype: 0, size: 0, name_hash: 0 };

    /// Scans the bytes behind a query's header, of which `len` are valid.
    pub fn from_bytes(bytes: &[u8; DNS_QUESTION_MAX], len: u32) -> Question {
        let mut words = [0; DNS_QUESTION_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Question::scan(&words, len)
    }

    /// Finds the end of the name at the beginning of a message's bytes, of which `len` are valid, word by word (little
    /// endian). Labels are not followed: a name with a zero byte in a label, which no resolver sends, ends there.
    #[inline(always)]
    pub fn scan(words: &[u64; DNS_QUESTION_WORDS], len: u32) -> Question {
        const ONES: u64 = u64::from_ne_bytes([1; 8]);
        const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
        const LOWER: u64 = u64::from_ne_bytes([0x20; 8]);
        /// 2^64 divided by the golden ratio.
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut hash = 0u64;
        for at in 0..DNS_QUESTION_WORDS - 1 {
            let word = words[at];
            let zeros = word.wrapping_sub(ONES) & !word & HIGH;
            if zeros == 0 {
                hash = (hash ^ (word | LOWER)).wrapping_mul(MULTIPLIER);
                continue;
            }
            // The first zero byte, and the bytes before it.
            let first = zeros & zeros.wrapping_neg();
            let before = (first >> 7).wrapping_sub(1);
            let count = (before & ONES).wrapping_mul(ONES) >> 56;
            hash = (hash ^ ((word | LOWER) & before)).wrapping_mul(MULTIPLIER);
            let size = at as u64 * 8 + count + 5;
            if size > len as u64 {
                return Question::NONE;
            }
            // The two bytes behind the zero byte.
            let qtype = match count {
                7 => words[at + 1],
                _ => word >> (8 * count + 8) | words[at + 1] << (56 - 8 * count),
            };
            let qtype = (qtype as u16).swap_bytes();
            return Question { qtype, size: size as u16, name_hash: (hash >> 32) as u32 };
        }
        Question::NONE
    }
}

/// The slot of a socket in the maps `DNS_ASKED` and `DNS_ANSWERED`.
#[inline(always)]
pub const fn socket_slot(cookie: u64) -> u32 {
    // The kernel gives each CPU cookies in batches of 4096.
    ((cookie ^ (cookie >> 12)) % SOCKET_SLOTS as u64) as u32
}

/// What a process's question for the A records of a name is in the map `DNS_A_NAMES`: its slot, and the value there. The
/// upper half of the value is a hash, and the lower half the time in units of 2^30 ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AName {
    pub slot: u32,
    pub value: u64,
}

impl AName {
    #[inline(always)]
    pub const fn new(name_hash: u32, pid: u32, now_ns: u64) -> AName {
        let mixed = name_hash ^ pid.wrapping_mul(0x9e37_79b1);
        AName { slot: mixed % NAME_SLOTS, value: (mixed as u64) << 32 | (now_ns >> 30) & 0xffff_ffff }
    }

    /// Whether `in_slot`, the value in the slot, is the same question at this time or just before.
    #[inline(always)]
    pub const fn is_recent(&self, in_slot: u64) -> bool {
        /// glibc's `single-request` may ask for A, and ten seconds later for AAAA.
        const RECENT: u64 = 12;
        let age = (self.value & 0xffff_ffff).wrapping_sub(in_slot & 0xffff_ffff);
        self.value >> 32 == in_slot >> 32 && age <= RECENT
    }
}

/// The index into `DnsCounters::latency`: the number of bits of the latency in µs, at most the last bucket.
#[inline(always)]
pub const fn latency_bucket(latency_us: u64) -> usize {
    let bits = (u64::BITS - latency_us.leading_zeros()) as usize;
    if bits < DNS_LATENCY_BUCKETS { bits } else { DNS_LATENCY_BUCKETS - 1 }
}

/// How many entries of `DNS_IN_FLIGHT` are in use, or in use by one cgroup: those that the kernel side inserted less those
/// that it and user space removed. The three are counted at different moments, so that the difference may be negative for
/// a short time; then it is 0.
#[inline(always)]
pub const fn in_flight(inserted: u64, removed: u64, removed_by_user: u64) -> u64 {
    let number = inserted.wrapping_sub(removed).wrapping_sub(removed_by_user);
    if number > i64::MAX as u64 { 0 } else { number }
}

/// How many queries each cgroup may have in flight, while `used` of `max` entries are in use: half as many as there are
/// free entries.
///
/// This is a dynamic threshold (Choudhury and Hahne, 1998), which is fair without counting the cgroups: with n of them at
/// their share, each has max / (n + 2) entries, and 2 max / (n + 2) stay free for those that have fewer. One alone gets a
/// third of the map, eight a tenth each, and two hundred 81 entries each of 16,384.
#[inline(always)]
pub const fn in_flight_share(used: u64, max: u64) -> u64 {
    max.saturating_sub(used) / 2
}

/// An address and a port as one number, which is never 0.
#[inline(always)]
pub const fn fold_address(address: &[u32; 4], port: u16) -> u32 {
    /// FNV-1a.
    const PRIME: u32 = 0x0100_0193;
    let mut folded = 0x811c_9dc5 ^ port as u32;
    folded = folded.wrapping_mul(PRIME) ^ address[0];
    folded = folded.wrapping_mul(PRIME) ^ address[1];
    folded = folded.wrapping_mul(PRIME) ^ address[2];
    folded = folded.wrapping_mul(PRIME) ^ address[3];
    if folded == 0 { 1 } else { folded }
}

/// How many tokens a record costs while `used` of `size` are in use in the buffer that it goes to: 1 until the buffer is half
/// full, then as many as half of the buffer is larger than what is free.
///
/// Each container has a bucket of the same size, so that in a flood of many containers those with few records go on, and
/// those with many get fewer through.
#[inline(always)]
pub const fn token_price(used: u64, size: u64) -> u64 {
    let (half, free) = (size / 2, size.saturating_sub(used));
    if free >= half {
        return 1;
    }
    match half.checked_div(free) {
        Some(price) => price,
        None => half,
    }
}

/// A token bucket whose whole state is one number: the time until which the shipped records are paid for. Each record
/// moves it on by `interval_ns`, and it may be `depth_ns` ahead of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Time after which one more record is allowed; 0: no limit.
    pub interval_ns: u64,
    /// `interval_ns` times the number of records that may be shipped at once.
    pub depth_ns: u64,
}

impl TokenBucket {
    /// A bucket of `burst` records that gets a new token every `interval_us`. One record a second is the lowest rate
    /// there is, so that `interval_us` is at most 1,000,000 and the product fits into 63 bits.
    #[inline(always)]
    pub const fn new(interval_us: u32, burst: u32) -> TokenBucket {
        let interval_ns = interval_us as u64 * 1000;
        TokenBucket { interval_ns, depth_ns: interval_ns.wrapping_mul(burst as u64) }
    }

    /// Takes `price` tokens ([`token_price`]) at `now_ns` from a bucket that is paid until `paid_ns`. Returns what it is
    /// paid until afterwards; None: it has too few.
    #[inline(always)]
    pub const fn take(&self, paid_ns: u64, now_ns: u64, price: u64) -> Option<u64> {
        if self.interval_ns == 0 {
            return Some(paid_ns);
        }
        let start_ns = if paid_ns > now_ns { paid_ns } else { now_ns };
        let due_ns = start_ns.saturating_add(self.interval_ns.wrapping_mul(price));
        if due_ns > now_ns.saturating_add(self.depth_ns) { None } else { Some(due_ns) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::STATE_TIMED_OUT;

    fn header(flags: u16, questions: u16, answers: u16) -> DnsHeader {
        DnsHeader { id: 7, flags, questions, answers, authority: 0, additional: 0 }
    }

    #[test]
    fn the_header_is_read_in_network_order() {
        let message = [0x12, 0x34, 0x85, 0x83, 0, 1, 0, 2, 0xff, 0xff, 0xff, 0xff, 9];
        let read = DnsHeader::from_message(&message).unwrap();
        assert_eq!((read.id, read.questions, read.answers), (0x1234, 1, 2));
        assert_eq!(
            (read.is_response(), read.is_truncated(), read.opcode(), read.rcode()),
            (true, false, 0, 3)
        );
        assert_eq!(DnsHeader::from_message(&message[..12]), Some(read));
        assert_eq!(DnsHeader::from_message(&message[..11]), None);
        assert_eq!(header(0x2800, 1, 0).opcode(), 5);
    }

    #[test]
    fn every_rcode_has_a_class_and_truncation_comes_first() {
        let classes = [
            (0x8180, 1, ANSWER_NOERROR),
            (0x8180, 0, ANSWER_NODATA),
            (0x8181, 0, ANSWER_FORMERR),
            (0x8182, 0, ANSWER_SERVFAIL),
            (0x8183, 0, ANSWER_NXDOMAIN),
            (0x8184, 0, ANSWER_OTHER),
            (0x8185, 0, ANSWER_REFUSED),
            (0x818f, 1, ANSWER_OTHER),
            (0x8380, 1, ANSWER_TRUNCATED),
            (0x8383, 0, ANSWER_TRUNCATED),
        ];
        for (flags, answers, class) in classes {
            assert_eq!(
                answer_class(&header(flags, 1, answers), AnswerRecords::UNREAD),
                class,
                "{flags:#06x}"
            );
        }
    }

    #[test]
    fn a_plain_success_is_in_time_and_long_enough_for_its_answer() {
        let success = header(0x8180, 1, 1);
        assert!(success.is_plain_success(ANSWER_NOERROR, STATE_WAITING, 20, 44));
        assert!(
            !success.is_plain_success(ANSWER_NOERROR, STATE_WAITING, 20, 43),
            "too short for an answer record"
        );
        assert!(
            !success.is_plain_success(ANSWER_NOERROR, STATE_WAITING, 0, 512),
            "a query without a question"
        );
        assert!(!success.is_plain_success(ANSWER_NOERROR, STATE_TIMED_OUT, 20, 44), "late");
        for other in [(0x8183, 1, 1), (0x8180, 1, 0), (0x8180, 0, 1), (0x8180, 2, 1), (0x8380, 1, 1)] {
            let (flags, questions, answers) = other;
            assert!(
                !header(flags, questions, answers).is_plain_success(ANSWER_NOERROR, STATE_WAITING, 20, 44),
                "{other:?}"
            );
        }
    }

    #[test]
    fn only_a_header_of_a_query_is_one() {
        let counts = |flags, questions, answers| header(flags, questions, answers).is_query();
        assert!(counts(0x0100, 1, 0) && counts(0x0120, 1, 0) && counts(0x0100, 2, 0), "QUERY");
        assert!(
            counts(0x2800, 1, 7) && counts(0x2400, 1, 1) && counts(0x1000, 0, 0),
            "UPDATE, NOTIFY, STATUS"
        );
        assert!(counts(0x0800, 0, 1) && counts(0x3000, 0, 0), "IQUERY, DSO");
        for other in [(0x8180, 1, 0), (0x0300, 1, 0), (0x0103, 1, 0), (0x0100, 1, 1), (0x0100, 0x9a1c, 0)] {
            assert!(!counts(other.0, other.1, other.2), "{other:#x?}");
        }
        assert!(!counts(0x7800, 1, 0), "an unassigned opcode");
    }

    fn scan(bytes: &[u8]) -> Question {
        let mut question = [0; DNS_QUESTION_MAX];
        question[..bytes.len()].copy_from_slice(bytes);
        Question::from_bytes(&question, bytes.len() as u32)
    }

    #[test]
    fn a_question_is_found_at_every_length_of_its_name() {
        for length in 1..=63 {
            let name = [&[length][..], &[b'a'; 63][..length as usize], &[0]].concat();
            let question = scan(&[&name[..], &[0x12, 0x34, 0, 1], b"more"].concat());
            assert_eq!((question.qtype, question.size), (0x1234, length as u16 + 6), "{length}");
            assert_eq!(scan(&[&name[..], &[0, 28, 0]].concat()).size, 0, "it is cut off");
        }
        // The longest name.
        let labels = [b"\x3d".as_slice(), &[b'x'; 61]].concat().repeat(4);
        let long = scan(&[&labels[..], b"\x05xxxxx\x00\x00\x1c\x00\x01"].concat());
        assert_eq!((long.qtype, long.size), (28, 255 + 4));
        assert_eq!(scan(&[1; DNS_QUESTION_MAX]).size, 0, "no end");
    }

    #[test]
    fn names_that_differ_have_different_hashes_and_case_makes_no_difference() {
        let hash = |name: &[u8]| scan(&[name, &[0, 0, 1, 0, 1]].concat()).name_hash;
        let names: [&[u8]; 6] = [
            b"\x01a",
            b"\x01b",
            b"\x02aa",
            b"\x07example\x03com",
            b"\x07example\x03org",
            b"\x03api\x07example\x03com",
        ];
        for (at, one) in names.iter().enumerate() {
            assert!(names[..at].iter().all(|other| hash(other) != hash(one)), "{at}");
        }
        assert_eq!(hash(b"\x07ExAmple\x03COM"), hash(b"\x07example\x03com"));
        let aaaa = scan(b"\x07example\x03com\x00\x00\x1c\x00\x01");
        assert_eq!(aaaa.name_hash, hash(b"\x07example\x03com"), "the type is no part of it");
    }

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

    #[test]
    fn noerror_is_the_success_of_other_operation_codes() {
        let class = |flags| answer_class(&header(flags, 1, 0), AnswerRecords::UNREAD);
        assert_eq!(
            (class(0xa800), class(0xa809), class(0x8180)),
            (ANSWER_NOERROR, ANSWER_OTHER, ANSWER_NODATA)
        );
        assert!(header(0xa800, 0, 0).is_plain_success(ANSWER_NOERROR, STATE_WAITING, 20, 12));
    }

    #[test]
    fn sockets_and_names_have_slots_within_their_maps() {
        for number in [0, 1, 4095, 4096, u64::MAX] {
            let slots = (socket_slot(number), AName::new(number as u32, 7, number).slot);
            assert!(slots.0 < SOCKET_SLOTS && slots.1 < NAME_SLOTS);
        }
        const SECOND: u64 = 1_000_000_000;
        let asked = AName::new(5, 1, 100 * SECOND);
        assert!(AName::new(5, 1, 105 * SECOND).is_recent(asked.value));
        assert!(!AName::new(5, 1, 120 * SECOND).is_recent(asked.value), "long ago");
        assert!(!AName::new(5, 2, 105 * SECOND).is_recent(asked.value), "another process");
        assert!(!AName::new(6, 1, 105 * SECOND).is_recent(asked.value), "another name");
    }

    #[test]
    fn a_message_in_the_middle_of_a_stream_has_to_be_plausible() {
        assert!(header(0x0100, 1, 0).is_plausible(false) && header(0x8180, 1, 3).is_plausible(true));
        assert!(!header(0x0100, 1, 0).is_plausible(true), "the wrong direction");
        assert!(header(0x2800, 0, 0).is_plausible(false), "UPDATE");
        assert!(!header(0x3800, 1, 0).is_plausible(false), "an unassigned opcode");
        assert!(!header(0x0100, 2, 0).is_plausible(false), "two questions");
    }

    #[test]
    fn buckets_are_powers_of_two_and_the_last_one_is_open() {
        for (latency_us, bucket) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (3000, 12), (1 << 22, 23)] {
            assert_eq!(latency_bucket(latency_us), bucket, "{latency_us} µs");
        }
        assert_eq!(latency_bucket(u64::MAX), DNS_LATENCY_BUCKETS - 1);
        for us in [1u64, 7, 900, 65_536, 1_000_000] {
            let bucket = latency_bucket(us);
            assert!(us < 1 << bucket && us >= 1 << (bucket - 1), "{us} µs in bucket {bucket}");
        }
    }

    #[test]
    fn what_is_in_flight_is_never_negative() {
        assert_eq!(in_flight(10, 3, 2), 5);
        assert_eq!(in_flight(10, 8, 3), 0);
        assert_eq!(in_flight(0, 1, 0), 0);
        assert_eq!(in_flight(2, u64::MAX, 0), 3, "the counters may wrap");
    }

    /// Lets each cgroup insert in turn, until none may.
    fn fill(each: &mut [u64], max: u64) {
        loop {
            let mut is_full = true;
            for at in 0..each.len() {
                let used = each.iter().sum();
                if each[at] < in_flight_share(used, max) {
                    each[at] += 1;
                    is_full = false;
                }
            }
            if is_full {
                return;
            }
        }
    }

    #[test]
    fn cgroups_that_take_all_they_may_have_equal_shares_and_leave_twice_as_much_to_others() {
        const MAX: u64 = 16_384;
        for n in [1, 2, 3, 8, 64, 200, 1000] {
            let mut all = [0; 1000];
            let each = &mut all[..n];
            fill(each, MAX);
            let share = MAX / (n as u64 + 2);
            assert!(each.iter().all(|has| has.abs_diff(share) <= 1), "{n}: {share}, {each:?}");
            let left = in_flight_share(each.iter().sum(), MAX);
            assert!(left + 1 >= share && left >= 10, "{n}: a newcomer has {left}");
        }
    }

    #[test]
    fn a_full_map_has_no_share_for_any_cgroup() {
        assert_eq!((in_flight_share(16_384, 16_384), in_flight_share(20_000, 16_384)), (0, 0));
    }

    #[test]
    fn addresses_and_ports_that_differ_fold_to_different_numbers() {
        let v4 = |last: u8| [0, 0, u32::from_be(0xffff), u32::from_ne_bytes([10, 96, 0, last])];
        let folded = [
            (v4(10), 53),
            (v4(11), 53),
            (v4(10), 5353),
            ([0; 4], 53),
            ([1, 0, 0, 0], 53),
            ([0, 1, 0, 0], 53),
        ]
        .map(|(address, port)| fold_address(&address, port));
        for (at, one) in folded.iter().enumerate() {
            assert!(*one != 0 && !folded[..at].contains(one), "{at}");
        }
    }

    #[test]
    fn a_burst_passes_at_once_and_then_one_record_an_interval() {
        let bucket = TokenBucket::new(2000, 3);
        assert_eq!(bucket, TokenBucket { interval_ns: 2_000_000, depth_ns: 6_000_000 });
        let (mut paid_ns, mut shipped) = (0, 0);
        let mut ship = |now_ns| {
            let Some(paid) = bucket.take(paid_ns, now_ns, 1) else { return false };
            paid_ns = paid;
            shipped += 1;
            true
        };
        let now_ns = 50_000_000;
        assert!((0..3).all(|_| ship(now_ns)) && !ship(now_ns));
        assert!(!ship(now_ns + 1_999_999) && ship(now_ns + 2_000_000) && !ship(now_ns + 2_000_000));
        assert!((0..3).all(|_| ship(now_ns * 2)) && !ship(now_ns * 2), "no more than a burst after a pause");
        assert_eq!(shipped, 7);
    }

    #[test]
    fn a_record_costs_more_as_the_buffer_fills() {
        let prices = [0, 512, 600, 768, 924, 1014, 1024, 2000].map(|used| token_price(used, 1024));
        assert_eq!(prices, [1, 1, 1, 2, 5, 51, 512, 512]);
    }

    #[test]
    fn a_container_with_few_records_gets_them_through_a_buffer_that_others_fill() {
        let bucket = TokenBucket::new(2000, 500);
        // At the price of 40 a burst of 12 passes where one of 500 passes otherwise.
        let burst = |price| {
            let mut paid_ns = 0;
            (0..).take_while(|_| bucket.take(paid_ns, 1, price).map(|paid| paid_ns = paid).is_some()).count()
        };
        assert_eq!((burst(1), burst(2), burst(40), burst(500), burst(501)), (500, 250, 12, 1, 0));
    }

    #[test]
    fn a_bucket_without_an_interval_has_no_limit() {
        let bucket = TokenBucket::new(0, 1);
        assert_eq!(bucket.take(5, 3, 9), Some(5));
        assert_eq!(
            TokenBucket::new(1_000_000, u32::MAX).take(0, u64::MAX >> 1, 1),
            Some((u64::MAX >> 1) + 1_000_000_000)
        );
        assert_eq!(TokenBucket::new(1, 1).take(u64::MAX, 3, 1), None, "no overflow");
    }
}
