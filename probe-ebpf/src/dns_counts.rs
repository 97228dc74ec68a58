//! Each container's counts, and its token bucket: what is not shipped is counted, and nobody floods the ring.

use core::arch::asm;

use podopsy_wire::{
    ANSWER_FORMERR, ANSWER_NODATA, ANSWER_NOERROR, ANSWER_NXDOMAIN, ANSWER_OTHER, ANSWER_REFUSED,
    ANSWER_SERVFAIL, ANSWER_TRUNCATED, ANSWERS, DNS_LATENCY_BUCKETS, DnsCounters, Loss,
};

use crate::maps::{DNS_COUNTERS, count, dns_setting};

/// What a new entry starts from; too big for the BPF stack.
static EMPTY: DnsCounters = DnsCounters::EMPTY;
const BPF_NOEXIST: u64 = 1;

/// The counters of a memory cgroup (0: not known, which has its own); None: there is no room, and that is counted.
#[inline(always)]
pub fn of(cgroup_id: u64, now: u64) -> Option<*mut DnsCounters> {
    if let Some(counters) = DNS_COUNTERS.get_ptr_mut(cgroup_id) {
        return Some(counters);
    }
    let inserted = DNS_COUNTERS.insert(cgroup_id, &EMPTY, BPF_NOEXIST).is_ok();
    let counters = DNS_COUNTERS.get_ptr_mut(cgroup_id);
    match counters {
        // Another CPU may have been faster: then the time is its to set.
        // SAFETY: a map value.
        Some(counters) if inserted => unsafe { (*counters).since_ns = now },
        Some(_) => {}
        None => count(Loss::DnsCounters),
    }
    counters
}

/// Adds one, atomically: every CPU has lookups of the same container. Written out, because an atomic addition whose
/// result may be asked for is of 5.12, and core has none for this target.
#[inline(always)]
pub fn add(counter: *mut u64) {
    add_some(counter, 1);
}

#[inline(always)]
fn add_some(counter: *mut u64, by: u64) {
    // SAFETY: a word of a map value, 8-byte aligned.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) by, options(nostack)) };
}

/// Which of `DnsCounters::answers` a header belongs to.
#[inline(always)]
pub fn class(rcode: u16, answers: u16, is_truncated: bool) -> usize {
    if is_truncated {
        return ANSWER_TRUNCATED;
    }
    match rcode {
        0 if answers == 0 => ANSWER_NODATA,
        0 => ANSWER_NOERROR,
        1 => ANSWER_FORMERR,
        2 => ANSWER_SERVFAIL,
        3 => ANSWER_NXDOMAIN,
        5 => ANSWER_REFUSED,
        _ => ANSWER_OTHER,
    }
}

/// Counts an answer in time. `by`: one, or the two's complement of one, which takes it back.
#[inline(always)]
pub fn answered(counters: *mut DnsCounters, class: usize, latency_ns: u64, by: u64) {
    let us = latency_ns / 1000;
    let bucket = (64 - us.leading_zeros()).min(DNS_LATENCY_BUCKETS as u32 - 1);
    // As in `dns::copy`: the verifier must see the bound on the register that is used.
    let class = core::hint::black_box(class as u64);
    let bucket = core::hint::black_box(bucket as u64);
    if class >= ANSWERS as u64 || bucket >= DNS_LATENCY_BUCKETS as u64 {
        return;
    }
    // SAFETY: within the arrays, by the check above.
    unsafe {
        add_some((&raw mut (*counters).answers).cast::<u64>().add(class as usize), by);
        add_some((&raw mut (*counters).latency).cast::<u64>().add(bucket as usize), by);
        add_some(&raw mut (*counters).latency_us, us.wrapping_mul(by));
    }
}

/// Takes a token; false: there is none. The bucket is the time by which what was shipped is paid for: two CPUs at
/// the same moment may pay once for two records, which costs nobody anything.
#[inline(always)]
pub fn may_ship(counters: *mut DnsCounters, paid: *mut u64, now: u64) -> bool {
    let interval = dns_setting!(interval_us) as u64 * 1000;
    if interval == 0 {
        return true;
    }
    let room = interval * dns_setting!(burst) as u64;
    // SAFETY: a word of a map value.
    let due = unsafe { *paid }.max(now) + interval;
    if due > now + room {
        count(Loss::DnsThrottled);
        // SAFETY: a word of a map value.
        add(unsafe { &raw mut (*counters).throttled });
        return false;
    }
    // SAFETY: as above.
    unsafe { *paid = due };
    true
}
