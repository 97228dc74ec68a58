//! Pure DNS rules. The kernel side applies them to packets of the whole node, `agent/packets` to those of a packet
//! socket, and `agent/decode` to the bytes of a record; a rule that stood on each side could drift apart.
//!
//! Everything is inlined into the BPF programs: no recursion, no 128-bit arithmetic (so no `saturating_mul` of `u64`).

use crate::{
    ANSWER_FORMERR, ANSWER_NODATA, ANSWER_NOERROR, ANSWER_NXDOMAIN, ANSWER_OTHER, ANSWER_REFUSED,
    ANSWER_SERVFAIL, ANSWER_TRUNCATED, DNS_LATENCY_BUCKETS, STATE_WAITING,
};

/// Length of the fixed header (RFC 1035 §4.1.1).
pub const DNS_HEADER_BYTES: usize = 12;

/// The shortest answer record: a compressed name (2 bytes) and the fixed fields (10 bytes), RFC 1035 §4.1.3.
const ANSWER_BYTES_MIN: usize = 12;

/// The fields of the fixed header that podopsy uses (RFC 1035 §4.1.1), in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsHeader {
    pub id: u16,
    pub flags: u16,
    /// QDCOUNT.
    pub questions: u16,
    /// ANCOUNT.
    pub answers: u16,
}

impl DnsHeader {
    /// Reads the first eight bytes of a message: NSCOUNT and ARCOUNT are not used.
    #[inline(always)]
    pub const fn from_start(start: [u8; 8]) -> DnsHeader {
        DnsHeader {
            id: u16::from_be_bytes([start[0], start[1]]),
            flags: u16::from_be_bytes([start[2], start[3]]),
            questions: u16::from_be_bytes([start[4], start[5]]),
            answers: u16::from_be_bytes([start[6], start[7]]),
        }
    }

    /// Reads the header of a message; None: the message is shorter than a header.
    pub fn from_message(message: &[u8]) -> Option<DnsHeader> {
        let header: &[u8; DNS_HEADER_BYTES] = message.first_chunk()?;
        header.first_chunk().map(|start| DnsHeader::from_start(*start))
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

    /// The class of an answer: an index into `DnsCounters::answers`.
    #[inline(always)]
    pub const fn answer_class(&self) -> usize {
        if self.is_truncated() {
            return ANSWER_TRUNCATED;
        }
        match self.rcode() {
            0 if self.answers == 0 => ANSWER_NODATA,
            0 => ANSWER_NOERROR,
            1 => ANSWER_FORMERR,
            2 => ANSWER_SERVFAIL,
            3 => ANSWER_NXDOMAIN,
            5 => ANSWER_REFUSED,
            _ => ANSWER_OTHER,
        }
    }

    /// Whether an answer needs no look at its bytes: it came in time and reports success, and its `size` can hold the
    /// header, the bytes after the query's header (`question_len`) and one answer record. A shorter message (and the
    /// rare honest one whose server left out the query's EDNS record) is decoded in user space.
    #[inline(always)]
    pub const fn is_plain_success(&self, state: u32, question_len: u32, size: u32) -> bool {
        state == STATE_WAITING
            && self.rcode() == 0
            && self.answers > 0
            && self.questions == 1
            && !self.is_truncated()
            && question_len > 0
            && size >= DNS_HEADER_BYTES as u32 + question_len + ANSWER_BYTES_MIN as u32
    }

    /// Whether bytes in the middle of a TCP stream can be a message in this direction: query or response as expected, a
    /// known opcode (0 QUERY to 5 UPDATE, RFC 2136), and one question at most.
    #[inline(always)]
    pub const fn is_plausible(&self, is_response: bool) -> bool {
        self.is_response() == is_response && self.opcode() <= 5 && self.questions <= 1
    }
}

/// The index into `DnsCounters::latency`: the number of bits of the latency in µs, at most the last bucket.
#[inline(always)]
pub const fn latency_bucket(latency_us: u64) -> usize {
    let bits = (u64::BITS - latency_us.leading_zeros()) as usize;
    if bits < DNS_LATENCY_BUCKETS { bits } else { DNS_LATENCY_BUCKETS - 1 }
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

    /// Takes a token at `now_ns` from a bucket that is paid until `paid_ns`. Returns what it is paid until afterwards;
    /// None: it is empty.
    #[inline(always)]
    pub const fn take(&self, paid_ns: u64, now_ns: u64) -> Option<u64> {
        if self.interval_ns == 0 {
            return Some(paid_ns);
        }
        let start_ns = if paid_ns > now_ns { paid_ns } else { now_ns };
        let due_ns = start_ns.saturating_add(self.interval_ns);
        if due_ns > now_ns.saturating_add(self.depth_ns) { None } else { Some(due_ns) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::STATE_TIMED_OUT;

    fn header(flags: u16, questions: u16, answers: u16) -> DnsHeader {
        DnsHeader { id: 7, flags, questions, answers }
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
            assert_eq!(header(flags, 1, answers).answer_class(), class, "{flags:#06x}");
        }
    }

    #[test]
    fn a_plain_success_is_in_time_and_long_enough_for_its_answer() {
        let success = header(0x8180, 1, 1);
        assert!(success.is_plain_success(STATE_WAITING, 20, 44));
        assert!(!success.is_plain_success(STATE_WAITING, 20, 43), "too short for an answer record");
        assert!(!success.is_plain_success(STATE_WAITING, 0, 512), "a query without a question");
        assert!(!success.is_plain_success(STATE_TIMED_OUT, 20, 44), "late");
        for other in [(0x8183, 1, 1), (0x8180, 1, 0), (0x8180, 0, 1), (0x8180, 2, 1), (0x8380, 1, 1)] {
            let (flags, questions, answers) = other;
            assert!(!header(flags, questions, answers).is_plain_success(STATE_WAITING, 20, 44), "{other:?}");
        }
    }

    #[test]
    fn a_message_in_the_middle_of_a_stream_has_to_be_plausible() {
        assert!(header(0x0100, 1, 0).is_plausible(false) && header(0x8180, 1, 3).is_plausible(true));
        assert!(!header(0x0100, 1, 0).is_plausible(true), "the wrong direction");
        assert!(header(0x2800, 0, 0).is_plausible(false), "UPDATE");
        assert!(!header(0x3000, 1, 0).is_plausible(false), "an unassigned opcode");
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
    fn a_burst_passes_at_once_and_then_one_record_an_interval() {
        let bucket = TokenBucket::new(2000, 3);
        assert_eq!(bucket, TokenBucket { interval_ns: 2_000_000, depth_ns: 6_000_000 });
        let (mut paid_ns, mut shipped) = (0, 0);
        let mut ship = |now_ns| {
            let Some(paid) = bucket.take(paid_ns, now_ns) else { return false };
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
    fn a_bucket_without_an_interval_has_no_limit() {
        let bucket = TokenBucket::new(0, 1);
        assert_eq!(bucket.take(5, 3), Some(5));
        assert_eq!(
            TokenBucket::new(1_000_000, u32::MAX).take(0, u64::MAX >> 1),
            Some((u64::MAX >> 1) + 1_000_000_000)
        );
        assert_eq!(TokenBucket::new(1, 1).take(u64::MAX, 3), None, "no overflow");
    }
}
