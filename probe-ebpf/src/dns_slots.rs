//! Small facts about sockets and names, in arrays whose slots are overwritten: how many queries a socket sent and how many
//! of them were answered, and which A records a process asked for. A map of sockets would cost an insertion and a removal
//! for each query.
//!
//! Two sockets in one slot make one of them look as if it had queries without an answer, and user space finds none.

use aya_ebpf::{macros::map, maps::Array};
use podopsy_wire::{
    AName, AnsweredSlot, AskedSlot, DnsPending, NAME_SLOTS, SOCKET_SLOTS, TYPE_A, is_accepted, socket_slot,
};

use crate::dns_counts;

#[map]
static DNS_ASKED: Array<AskedSlot> = Array::with_max_entries(SOCKET_SLOTS, 0);
#[map]
static DNS_ANSWERED: Array<AnsweredSlot> = Array::with_max_entries(SOCKET_SLOTS, 0);
/// See [`AName`].
#[map]
static DNS_A_NAMES: Array<u64> = Array::with_max_entries(NAME_SLOTS, 0);

/// Counts a query of a socket that is in flight.
#[inline(always)]
pub fn count_asked(cookie: u64) {
    let Some(slot) = DNS_ASKED.get_ptr_mut(socket_slot(cookie)) else { return };
    // SAFETY: a map value of plain integers.
    unsafe {
        if (*slot).cookie == cookie {
            dns_counts::add(&raw mut (*slot).queries);
        } else {
            *slot = AskedSlot { cookie, queries: 1 };
        }
    }
}

/// Counts a query of a socket that is no longer in flight, because it was answered.
#[inline(always)]
pub fn count_answered(cookie: u64, id: u16, class: usize, now: u64) {
    let Some(slot) = DNS_ANSWERED.get_ptr_mut(socket_slot(cookie)) else { return };
    // SAFETY: a map value of plain integers. Two answers at the same moment may leave the id of one of them.
    unsafe {
        if (*slot).cookie == cookie {
            dns_counts::add(&raw mut (*slot).queries);
        } else {
            ((*slot).cookie, (*slot).queries, (*slot).ids) = (cookie, 1, 0);
        }
        ((*slot).time_ns, (*slot).class) = (now, class as u64);
        if is_accepted(class) {
            (*slot).ids = (*slot).ids << 16 | id as u64;
        }
    }
}

/// Whether queries of a socket have no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    No,
    Yes,
    /// Another socket has its slot.
    NotKnown,
}

/// Whether queries of a socket have no answer.
#[inline(always)]
pub fn unanswered(cookie: u64) -> Unanswered {
    let slot = socket_slot(cookie);
    let (Some(asked), Some(answered)) = (DNS_ASKED.get_ptr(slot), DNS_ANSWERED.get_ptr(slot)) else {
        return Unanswered::No;
    };
    // SAFETY: map values of plain integers.
    unsafe {
        if (*asked).cookie != cookie {
            return Unanswered::NotKnown;
        }
        let is_answered = (*answered).cookie == cookie && (*answered).queries == (*asked).queries;
        if is_answered { Unanswered::No } else { Unanswered::Yes }
    }
}

/// What is known of a socket's answers.
#[inline(always)]
pub fn answered(cookie: u64) -> Option<AnsweredSlot> {
    let slot = DNS_ANSWERED.get_ptr(socket_slot(cookie))?;
    // SAFETY: a map value of plain integers.
    let slot = unsafe { *slot };
    (slot.cookie == cookie).then_some(slot)
}

/// Notes that a process asks for the A records of a name.
#[inline(always)]
pub fn note_question(name_hash: u32, qtype: u16, pid: u32, now: u64) {
    if qtype != TYPE_A {
        return;
    }
    let name = AName::new(name_hash, pid, now);
    if let Some(slot) = DNS_A_NAMES.get_ptr_mut(name.slot) {
        // SAFETY: a word of a map value.
        unsafe { *slot = name.value };
    }
}

/// Whether a query's process has asked for the A records of the same name, as clients do at the same time or just before.
#[inline(always)]
pub fn is_beside_a(pending: *const DnsPending, now: u64) -> bool {
    // SAFETY: words of a map value.
    let (name_hash, pid) = unsafe { ((*pending).name_hash, (*pending).asker.pid) };
    let name = AName::new(name_hash, pid, now);
    // SAFETY: a word of a map value.
    DNS_A_NAMES.get_ptr(name.slot).is_some_and(|slot| name.is_recent(unsafe { *slot }))
}
