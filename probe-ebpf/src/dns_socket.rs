//! What a socket learns and no packet shows: its server cannot be reached, or an answer found the receive buffer full.
//!
//! cgroup_skb sees an answer just before it is put into its socket's queue. If the queue is full, the kernel reports
//! that at once, on the same CPU. The query is then put back in flight, because its application has not received an
//! answer.

use core::mem::offset_of;

use aya_ebpf::{
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_kernel},
    macros::{kprobe, map, raw_tracepoint},
    maps::PerCpuArray,
    programs::{ProbeContext, RawTracePointContext},
};
use podopsy_wire::{DnsKey, DnsPending, Loss, SocketError, TABLE_QUERIES};

use crate::{
    dns_counts, dns_packet, dns_share, dns_slots,
    maps::{CONFIG, DNS_EVENTS, DNS_IN_FLIGHT, count},
    task,
};

/// The longest time from cgroup_skb to the socket's queue: microseconds on bare metal, but a hypervisor may take the
/// virtual CPU away in between. What is dropped later is another datagram of the same socket, from a port that is not
/// watched.
const ENQUEUE_NS: u64 = 100_000_000;
const BPF_NOEXIST: u64 = 1;

/// An answered query.
#[repr(C)]
pub struct Answered {
    key: DnsKey,
    pending: DnsPending,
    time_ns: u64,
    class: u64,
}

/// The last answered query of each CPU; cookie 0: there is none, or it is in flight again.
#[map]
static DNS_LAST_ANSWERED: PerCpuArray<Answered> = PerCpuArray::with_max_entries(1, 0);

/// A datagram from a DNS port comes in on this CPU, so the one before it has reached its socket.
#[inline(always)]
pub fn start_datagram() {
    if let Some(answered) = DNS_LAST_ANSWERED.get_ptr_mut(0) {
        // SAFETY: the slot is this CPU's own.
        unsafe { (*answered).key.cookie = 0 };
    }
}

/// Keeps a query that was answered and counted as `class`, for the moment in which its answer may still be dropped.
#[inline(always)]
pub fn keep_answered(key: &DnsKey, pending: *const DnsPending, class: usize, now: u64) {
    let Some(answered) = DNS_LAST_ANSWERED.get_ptr_mut(0) else { return };
    // SAFETY: the slot is this CPU's own, and `pending` a map value; what is read is at most its size.
    unsafe {
        (*answered).key = *key;
        (*answered).time_ns = now;
        (*answered).class = class as u64;
        // Another CPU has just written it: each cache line that is not read need not be fetched from there.
        let size = offset_of!(DnsPending, question) as u32 + (*pending).question_len;
        // As in `dns_message::copy`: the verifier must see the bound on the register that is used.
        let last = core::hint::black_box(size.wrapping_sub(1) as u64);
        if last < size_of::<DnsPending>() as u64 {
            let to = (&raw mut (*answered).pending).cast();
            bpf_probe_read_kernel(to, last as u32 + 1, pending.cast());
        }
    }
}

/// A datagram found the receive buffer full: `(int rc, struct sock *sk, …)`.
#[raw_tracepoint(tracepoint = "udp_fail_queue_rcv_skb")]
pub fn dns_answer_dropped(ctx: RawTracePointContext) -> i32 {
    answer_dropped(ctx.arg(1));
    0
}

#[inline(always)]
fn answer_dropped(sock: u64) -> Option<()> {
    let answered = DNS_LAST_ANSWERED.get_ptr_mut(0)?;
    let cookie = task::read::<u64>(sock, CONFIG.load().layout.sock_cookie)?;
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: the slot is this CPU's own.
    unsafe {
        let (key, time_ns, class) = ((*answered).key, (*answered).time_ns, (*answered).class);
        if cookie == 0 || key.cookie != cookie || now.saturating_sub(time_ns) > ENQUEUE_NS {
            return None;
        }
        (*answered).key.cookie = 0;
        (*answered).pending.drops += 1;
        // Not if the same query has been sent again meanwhile.
        let (cgroup_id, sent_ns) = ((*answered).pending.asker.cgroup_id, (*answered).pending.first_sent_ns);
        // It had a place a moment ago, so no share is asked for.
        DNS_IN_FLIGHT.insert(key, &(*answered).pending, BPF_NOEXIST).ok()?;
        let counters = dns_counts::find_or_insert(cgroup_id, now);
        dns_share::count_inserted(counters, TABLE_QUERIES);
        dns_slots::count_asked(cookie);
        // Takes back what `dns::handle_answer` has counted.
        let counters = counters?;
        dns_counts::count_answer(counters, class as usize, time_ns.saturating_sub(sent_ns), u64::MAX);
    }
    Some(())
}

/// The network reports to a socket that its server cannot be reached.
#[raw_tracepoint(tracepoint = "inet_sk_error_report")]
pub fn dns_socket_error(ctx: RawTracePointContext) -> i32 {
    socket_error(ctx.arg(0));
    0
}

/// The same for kernels before 5.13, which have no such tracepoint: they call `sock_def_error_report`
/// (net/core/sock.c) instead.
#[kprobe]
pub fn dns_socket_error_probe(ctx: ProbeContext) -> u32 {
    if let Some(sock) = ctx.arg(0) {
        socket_error(sock);
    }
    0
}

#[inline(always)]
fn socket_error(sock: u64) {
    let at = &CONFIG.load().layout;
    let port = task::read::<u16>(sock, at.sock_dport).unwrap_or(0);
    if !dns_packet::is_dns(u16::from_be(port)) {
        return;
    }
    let cookie = task::read::<u64>(sock, at.sock_cookie).unwrap_or(0);
    let errno = task::read::<u32>(sock, at.sock_err).unwrap_or(0);
    if cookie == 0 || errno == 0 {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    let error = SocketError { cookie, time_ns, errno, unused: 0 };
    if DNS_EVENTS.output::<SocketError>(error, 0).is_err() {
        count(Loss::DnsRing);
    }
}
