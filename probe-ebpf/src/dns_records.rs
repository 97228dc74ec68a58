//! The records of an answer, read as far as they decide its class (`podopsy_wire::answer_class`).
//!
//! Nearly always the first record has the type that was asked for. A chain of aliases, or an answer without one, is walked
//! within bounds. Only an answer in one packet is read.
//!
//! The verifier follows each path through a loop, and then the rest of the program for each result. So all paths through one
//! record end in the same state (`bounded`), and the class goes through a map, from which it comes back as any number.

use core::arch::asm;

use aya_ebpf::{macros::map, maps::PerCpuArray};
use podopsy_wire::{
    ANSWER_NOERROR, AnswerRecords, DnsHeader, OPCODE_QUERY, TYPE_OPT, answer_class, answers_type,
};

use crate::dns_message::{Bytes, HEADER, Message};

/// More aliases than resolvers follow in practice.
const RECORDS_MAX: u32 = 8;
/// Labels before a compression pointer, or the root. Servers compress names.
const LABELS_MAX: u32 = 6;

/// What was read of the answer at hand. An answer comes in in a softirq, which no other one interrupts.
#[repr(C)]
struct Walk {
    /// Records that were read to their end.
    records: u32,
    /// 1: the answer section has a record of the type that was asked for.
    has_asked_type: u32,
    extended_rcode: u32,
    class: u32,
}

#[map]
static DNS_WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// The class of an answer to a question of this type, which has `question_size` bytes.
#[inline(always)]
pub fn class<B: Bytes>(message: &Message<B>, header: &DnsHeader, qtype: u16, question_size: u16) -> usize {
    let is_read = B::HAS_RECORDS
        && !header.is_truncated()
        && header.opcode() == OPCODE_QUERY
        && question_size != 0
        && header.questions <= 1;
    if !is_read {
        return answer_class(header, AnswerRecords::UNREAD);
    }
    let at = HEADER + if header.questions == 1 { question_size as u32 } else { 0 };
    if header.rcode() == 0 && header.answers > 0 {
        let start: [u8; 4] = message.bytes.load(at).unwrap_or_default();
        if start[0] >= 0xc0 && answers_type(u16::from_be_bytes([start[2], start[3]]), qtype) {
            return ANSWER_NOERROR;
        }
    }
    let Some(found) = DNS_WALK.get_ptr_mut(0) else { return answer_class(header, AnswerRecords::UNREAD) };
    // SAFETY: the slot is this CPU's own.
    unsafe {
        *found = Walk { records: 0, has_asked_type: 0, extended_rcode: 0, class: 0 };
        walk(message, header, qtype, at, found);
        let has_asked_type = match ((*found).has_asked_type, (*found).records >= header.answers as u32) {
            (0, false) => None,
            (0, true) => Some(false),
            _ => Some(true),
        };
        let records = AnswerRecords { has_asked_type, extended_rcode: (*found).extended_rcode as u8 };
        let class = (&raw mut (*found).class).cast::<u32>();
        class.write_volatile(answer_class(header, records) as u32);
        class.read_volatile() as usize
    }
}

/// Reads record after record; None: they do not end where they should.
///
/// # Safety
/// `found` is a map value of this CPU.
#[inline(always)]
unsafe fn walk<B: Bytes>(
    message: &Message<B>,
    header: &DnsHeader,
    qtype: u16,
    at: u32,
    found: *mut Walk,
) -> Option<()> {
    let (answers, records) = (header.answers as u32, header.records());
    let mut at = bounded(at);
    for number in 0..RECORDS_MAX {
        if number >= records {
            return None;
        }
        at = skip_name(message, at)?;
        // Type, class, time to live, length of the data.
        let fixed: [u8; 10] = message.bytes.load(at)?;
        let kind = u16::from_be_bytes([fixed[0], fixed[1]]);
        // SAFETY: by this function's contract.
        unsafe {
            if number >= answers {
                if kind == TYPE_OPT {
                    (*found).extended_rcode = fixed[4] as u32;
                    return None;
                }
            } else if answers_type(kind, qtype) {
                (*found).has_asked_type = 1;
                return None;
            }
            at = bounded(at + 10 + u16::from_be_bytes([fixed[8], fixed[9]]) as u32);
            if at > message.available {
                return None;
            }
            (*found).records = number + 1;
        }
    }
    None
}

/// The place behind the name at a place.
#[inline(always)]
fn skip_name<B: Bytes>(message: &Message<B>, mut at: u32) -> Option<u32> {
    for _ in 0..LABELS_MAX {
        let [length] = message.bytes.load(at)?;
        if length == 0 {
            return Some(bounded(at + 1));
        }
        if length >= 0xc0 {
            return Some(bounded(at + 2));
        }
        at = bounded(at + 1 + length as u32);
    }
    None
}

/// An offset in a message, which is at most 65,535 bytes long. In assembly, so that it is bounded for the verifier where LLVM
/// knows it to be smaller.
#[inline(always)]
fn bounded(at: u32) -> u32 {
    let mut at = at as u64;
    // SAFETY: changes nothing but its operand.
    unsafe { asm!("{0} &= 0xffff", inout(reg) at, options(nomem, nostack, pure)) };
    at as u32
}
