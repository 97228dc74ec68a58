//! TCP connections to DNS servers: who opened each, and how far its two streams were read.
//!
//! A connection is inserted when its first segment leaves, normally the SYN, and counts for the cgroup of the task that
//! sends it (`dns_share`). A connection beyond the share is not read. It is removed when its socket closes. User space
//! removes what has been idle for long; a connection that goes on after that is inserted again, as one that was first seen in
//! its middle.

use core::ptr::read_volatile;

use aya_ebpf::{
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_kernel},
    macros::{map, raw_tracepoint},
    maps::HashMap,
    programs::{RawTracePointContext, SkBuffContext},
};
use podopsy_wire::{DnsConnection, DnsCounters, Loss, TABLE_CONNECTIONS};

use crate::{
    dns_close, dns_counts, dns_share,
    maps::{CONFIG, count},
    task,
};

/// The initial value of an entry; too big for the BPF stack.
static EMPTY: DnsConnection = DnsConnection::EMPTY;
const BPF_NOEXIST: u64 = 1;

/// Connections by socket cookie. It is not LRU on purpose: see `maps::DNS_IN_FLIGHT`.
#[map]
static DNS_CONNECTIONS: HashMap<u64, DnsConnection> = HashMap::with_max_entries(2048, 0);

/// The connection of a socket.
#[inline(always)]
pub fn find(cookie: u64) -> Option<*mut DnsConnection> {
    DNS_CONNECTIONS.get_ptr_mut(cookie)
}

/// Inserts the connection that a segment with `length` bytes of queries leaves on; None: it is not read.
#[inline(always)]
pub fn insert(ctx: &SkBuffContext, cookie: u64, length: u32) -> Option<*mut DnsConnection> {
    if !is_sent_by_current(ctx) {
        if length > 0 {
            count(Loss::DnsTcpUnparsed);
        }
        return None;
    }
    let asker = task::identify(task::current(), &CONFIG.load());
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let counters = dns_counts::find_or_insert(asker.cgroup_id, now);
    let has_share = dns_share::has_share(counters, asker.cgroup_id, TABLE_CONNECTIONS);
    if !has_share || DNS_CONNECTIONS.insert(cookie, &EMPTY, BPF_NOEXIST).is_err() {
        if length > 0 {
            count_unread(counters, has_share);
        }
        return None;
    }
    dns_share::count_inserted(counters, TABLE_CONNECTIONS);
    let connection = find(cookie)?;
    // SAFETY: a map value; a concurrent removal recycles the slot, it does not unmap it.
    unsafe { ((*connection).asker, (*connection).opened_ns) = (asker, now) };
    Some(connection)
}

/// Counts a segment of queries that is not read, as one query.
#[inline(always)]
fn count_unread(counters: Option<*mut DnsCounters>, has_share: bool) {
    count(if has_share { Loss::DnsConnected } else { Loss::DnsOverShare });
    if let Some(counters) = counters {
        // SAFETY: words of a map value.
        unsafe {
            dns_counts::add(&raw mut (*counters).queries);
            dns_counts::add(&raw mut (*counters).untracked);
        }
    }
}

/// Whether the current task sends this segment. A softirq, whose current task is the one that was interrupted, sends only
/// while no task holds the socket (`sock_owned_by_user`, `include/net/sock.h`).
#[inline(always)]
fn is_sent_by_current(ctx: &SkBuffContext) -> bool {
    // SAFETY: the context is this program's own.
    let sk = unsafe { read_volatile(&raw const (*ctx.skb.skb).__bindgen_anon_2.sk) };
    let mut address = 0u64;
    // The verifier allows no arithmetic with a socket's address. Read from the stack it is a number.
    // SAFETY: both are local variables of eight bytes.
    unsafe { bpf_probe_read_kernel((&raw mut address).cast(), 8, (&raw const sk).cast()) };
    task::read::<u32>(address, CONFIG.load().layout.sock_owned) != Some(0)
}

/// A socket changes its TCP state: `(struct sock *sk, int from, int to)`. This is called for all sockets of the node.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn dns_tcp_state(ctx: RawTracePointContext) -> i32 {
    /// `include/net/tcp_states.h`.
    const SYN_SENT: u32 = 2;
    const CLOSE: u32 = 7;
    let (sock, from, to): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if to as u32 == CLOSE {
        closed(sock, from as u32 == SYN_SENT);
    }
    0
}

#[inline(always)]
fn closed(sock: u64, never_connected: bool) {
    let at = &CONFIG.load().layout;
    let cookie = task::read::<u64>(sock, at.sock_cookie).unwrap_or(0);
    // Most sockets have no cookie: it is made when a program first asks for it.
    if cookie == 0 {
        return;
    }
    let Some(connection) = find(cookie) else { return };
    let errno = task::read::<u32>(sock, at.sock_err).unwrap_or(0);
    dns_close::connection(cookie, connection, errno, never_connected);
    // SAFETY: a word of a map value.
    let cgroup_id = unsafe { (*connection).asker.cgroup_id };
    if DNS_CONNECTIONS.remove(cookie).is_ok() {
        dns_share::count_removed(dns_counts::find(cgroup_id), TABLE_CONNECTIONS);
    }
}
