//! The question of a query, read by words; and the slots of the small arrays that remember sockets and names.

use crate::{DNS_QUESTION_MAX, DNS_QUESTION_WORDS, NAME_SLOTS, SOCKET_SLOTS};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
