//! Pure DNS rules. The kernel side applies them to packets of the whole node, `agent/packets` to those of a packet
//! socket, and `agent/decode` to the bytes of a record; a rule that stood on each side could drift apart.
//!
//! Everything is inlined into the BPF programs: no recursion, no 128-bit arithmetic (so no `saturating_mul` of `u64`).

use crate::{ANSWER_NOERROR, DNS_LATENCY_BUCKETS, STATE_WAITING};

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
    use crate::{
        ANSWER_FORMERR, ANSWER_NODATA, ANSWER_NXDOMAIN, ANSWER_OTHER, ANSWER_REFUSED, ANSWER_SERVFAIL,
        ANSWER_TRUNCATED, AnswerRecords, STATE_TIMED_OUT, answer_class,
    };

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
