//! The DNS counters of each container, and its token buckets. What is not shipped is still counted, and no container
//! can flood the ring.

use core::arch::asm;

use podopsy_wire::{
    ANSWERS, DNS_LATENCY_BUCKETS, DnsCounters, Loss, TokenBucket, latency_bucket, token_price,
};

use crate::{
    maps::{CONFIG, DNS_COUNTERS, DNS_EVENTS, DNS_EVENTS_BYTES, count, dns_setting},
    task,
};

/// The initial value of an entry; too big for the BPF stack.
static EMPTY: DnsCounters = DnsCounters::EMPTY;
const BPF_NOEXIST: u64 = 1;
/// `bpf_ringbuf_query`: bytes that user space has not read.
const BPF_RB_AVAIL_DATA: u64 = 0;

/// The counters of a memory cgroup (0, not known, has counters of its own). None: the map is full, which is counted.
#[inline(always)]
pub fn find_or_insert(cgroup_id: u64, now: u64) -> Option<*mut DnsCounters> {
    if let Some(counters) = find(cgroup_id) {
        return Some(counters);
    }
    let inserted = DNS_COUNTERS.insert(cgroup_id, &EMPTY, BPF_NOEXIST).is_ok();
    let counters = find(cgroup_id);
    match counters {
        // If another CPU was faster, that CPU sets the time.
        // SAFETY: a map value.
        Some(counters) if inserted => unsafe { (*counters).since_ns = now },
        Some(_) => {}
        None => count(Loss::DnsCounters),
    }
    counters
}

/// The counters of a memory cgroup, if it has any.
#[inline(always)]
pub fn find(cgroup_id: u64) -> Option<*mut DnsCounters> {
    DNS_COUNTERS.get_ptr_mut(cgroup_id)
}

/// Adds one, atomically: several CPUs handle queries of the same container. It is written in assembly because an atomic
/// addition that returns its result needs 5.12, and core has no other one for this target.
#[inline(always)]
pub fn add(counter: *mut u64) {
    add_number(counter, 1);
}

#[inline(always)]
fn add_number(counter: *mut u64, number: u64) {
    // SAFETY: a word of a map value, 8-byte aligned.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) number, options(nostack)) };
}

/// Counts an answer that came in time. `number` is 1, or the two's complement of 1, which takes it back.
#[inline(always)]
pub fn count_answer(counters: *mut DnsCounters, class: usize, latency_ns: u64, number: u64) {
    let us = latency_ns / 1000;
    // As in `dns_message::copy`: the verifier must see the bound on the register that is used.
    let class = core::hint::black_box(class as u64);
    let bucket = core::hint::black_box(latency_bucket(us) as u64);
    if class >= ANSWERS as u64 || bucket >= DNS_LATENCY_BUCKETS as u64 {
        return;
    }
    // SAFETY: within the arrays, by the check above.
    unsafe {
        add_number((&raw mut (*counters).answers).cast::<u64>().add(class as usize), number);
        add_number((&raw mut (*counters).latency).cast::<u64>().add(bucket as usize), number);
        add_number(&raw mut (*counters).latency_us, us.wrapping_mul(number));
    }
}

/// Whether the record of a closed socket may be written. It is small, and queries in flight bound the number of sockets that
/// certainly need one, so that those cost tokens only once the ring is half full. They share the bucket of successes, and
/// what they do not get is no event that was dropped.
#[inline(always)]
pub fn may_ship_close(now: u64, is_certain: bool) -> bool {
    let used = DNS_EVENTS.query(BPF_RB_AVAIL_DATA);
    if is_certain && used < DNS_EVENTS_BYTES as u64 / 2 {
        return true;
    }
    let cgroup_id = task::memory_cgroup(task::current(), &CONFIG.load().layout);
    let Some(counters) = find(cgroup_id) else { return false };
    let bucket = TokenBucket::new(dns_setting!(interval_us), dns_setting!(burst));
    // SAFETY: a word of a map value.
    let paid = unsafe { &raw mut (*counters).paid_answers_ns };
    // SAFETY: as above.
    let Some(paid_until) = bucket.take(unsafe { *paid }, now, token_price(used, DNS_EVENTS_BYTES as u64))
    else {
        return false;
    };
    // SAFETY: as above.
    unsafe { *paid = paid_until };
    true
}

/// Takes tokens for a record from the bucket `paid`; false: it has too few, which is counted. Two CPUs at the same moment may pay once
/// for two records: one record more than allowed does no harm.
#[inline(always)]
pub fn take_token(counters: *mut DnsCounters, paid: *mut u64, now: u64) -> bool {
    let bucket = TokenBucket::new(dns_setting!(interval_us), dns_setting!(burst));
    let price = token_price(DNS_EVENTS.query(BPF_RB_AVAIL_DATA), DNS_EVENTS_BYTES as u64);
    // SAFETY: a word of a map value.
    let Some(paid_until) = bucket.take(unsafe { *paid }, now, price) else {
        count(Loss::DnsThrottled);
        // SAFETY: a word of a map value.
        add(unsafe { &raw mut (*counters).throttled });
        return false;
    };
    // SAFETY: as above.
    unsafe { *paid = paid_until };
    true
}
