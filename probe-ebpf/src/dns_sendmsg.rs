//! The server address that an application gives to sendmsg on a socket that is not connected.
//!
//! The packet may carry another address. kube-proxy's DNAT rewrites what a process in the node's network sends to a
//! Service before cgroup_skb sees it, and rewrites the answer back before cgroup_skb sees that: the answer comes from
//! the address that the application gave. Other load balancers (Cilium's) replace the address in the same hook as this
//! one: the answer then comes from the address that the packet went to. So such a query has both addresses in its value, and
//! a number in place of the server in its key.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_socket_cookie, bpf_ktime_get_boot_ns},
    macros::{cgroup_sock_addr, map, raw_tracepoint},
    maps::HashMap,
    programs::{RawTracePointContext, SockAddrContext},
};
use podopsy_wire::{DnsKey, DnsPending, DnsSender, Loss, TABLE_SENDERS, fold_address};

use crate::{
    dns_counts,
    dns_packet::{self, Packet, UDP},
    dns_share,
    maps::{CONFIG, DNS_IN_FLIGHT, count},
    task,
};

/// The hook's verdict: allow the call.
const PASS: i32 = 1;
/// How many servers one socket may ask at a time with one transaction id, if their addresses are rewritten: a power of two,
/// and more than a resolver's list may have (MAXNS is 3 in `<resolv.h>`).
const NUMBERS: u32 = 4;

/// The address that a task's last send gave, by `task_struct`: its packet is seen before the task can send another one. An
/// entry counts for the task's cgroup (`dns_share`), and is removed when the task ends.
#[map]
static DNS_SENDERS: HashMap<u64, DnsSender> = HashMap::with_max_entries(4096, 0);

#[cgroup_sock_addr(sendmsg4)]
pub fn dns_sendmsg4(ctx: SockAddrContext) -> i32 {
    store_address(&ctx, ipv4);
    PASS
}

#[cgroup_sock_addr(sendmsg6)]
pub fn dns_sendmsg6(ctx: SockAddrContext) -> i32 {
    store_address(&ctx, ipv6);
    PASS
}

/// The address that an application gave, in a connect or sendmsg hook of IPv4.
#[inline(always)]
pub fn ipv4(ctx: &SockAddrContext) -> [u32; 4] {
    // SAFETY: the context is this program's own; the field is readable in these hooks.
    dns_packet::mapped(unsafe { (*ctx.sock_addr).user_ip4 })
}

/// The address that an application gave, in a connect or sendmsg hook of IPv6.
#[inline(always)]
pub fn ipv6(ctx: &SockAddrContext) -> [u32; 4] {
    // Word by word: before 5.12 the verifier allows no wider reads.
    // SAFETY: as above.
    unsafe {
        let address = &raw const (*ctx.sock_addr).user_ip6;
        [0, 1, 2, 3].map(|word| core::ptr::read_volatile(address.cast::<u32>().add(word)))
    }
}

/// Runs for every datagram of the node that is sent on a socket that is not connected.
#[inline(always)]
fn store_address(ctx: &SockAddrContext, address: fn(&SockAddrContext) -> [u32; 4]) {
    // SAFETY: the context is this program's own; the fields are readable in these hooks.
    let (port, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    let port = u16::from_be(port as u16);
    if !dns_packet::is_dns(port) || protocol != UDP {
        return;
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let (server, port) = (address(ctx), port as u64);
    let task = task::current();
    if let Some(sender) = DNS_SENDERS.get_ptr_mut(task) {
        // SAFETY: a map value, and this task's own; a removal recycles the slot, it does not unmap it.
        unsafe { ((*sender).cookie, (*sender).server, (*sender).port) = (cookie, server, port) };
        return;
    }
    let cgroup_id = task::memory_cgroup(task, &CONFIG.load().layout);
    insert(task, &DnsSender { cgroup_id, cookie, server, port });
}

/// Inserts a task that has not sent before.
#[inline(always)]
fn insert(task: u64, given: &DnsSender) {
    const BPF_NOEXIST: u64 = 1;
    // SAFETY: the helper has no preconditions.
    let counters = dns_counts::find_or_insert(given.cgroup_id, unsafe { bpf_ktime_get_boot_ns() });
    let has_share = dns_share::has_share(counters, given.cgroup_id, TABLE_SENDERS);
    if has_share && DNS_SENDERS.insert(task, given, BPF_NOEXIST).is_ok() {
        dns_share::count_inserted(counters, TABLE_SENDERS);
        return;
    }
    count(Loss::DnsNamed);
    if let Some(counters) = counters {
        // SAFETY: a word of a map value.
        dns_counts::add(unsafe { &raw mut (*counters).unnamed });
    }
}

/// A task ends: `sched_process_exit`, for each thread of the node, in its own context.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn dns_sender_exit(_: RawTracePointContext) -> i32 {
    let task = task::current();
    let Some(sender) = DNS_SENDERS.get_ptr(task) else { return 0 };
    // SAFETY: a word of a map value.
    let cgroup_id = unsafe { (*sender).cgroup_id };
    if DNS_SENDERS.remove(task).is_ok() {
        dns_share::count_removed(dns_counts::find(cgroup_id), TABLE_SENDERS);
    }
    0
}

/// Replaces the server of a query's packet by the address that the application gave. Returns the folded address that the
/// packet goes to; 0: it is not another one.
#[inline(always)]
pub fn replace_server(packet: &mut Packet, cookie: u64) -> u32 {
    let Some(given) = DNS_SENDERS.get_ptr(task::current()) else { return 0 };
    // SAFETY: a map value of plain integers.
    let given = unsafe { *given };
    // The address 0 means this machine.
    if given.cookie != cookie || given.server[3] == 0 {
        return 0;
    }
    let (server, port) = (packet.server, packet.port);
    (packet.server, packet.port) = (given.server, given.port as u16);
    if server == packet.server && port == packet.port {
        return 0;
    }
    fold_address(&server, port)
}

/// The key of a query whose address is rewritten: the one that it has already, or else one that is free.
#[inline(always)]
pub fn rewritten_key(key: &DnsKey) -> DnsKey {
    let mut free = NUMBERS;
    for n in 0..NUMBERS {
        let numbered = numbered(key, n);
        match DNS_IN_FLIGHT.get_ptr(numbered) {
            Some(pending) if is_given(pending, key) => return numbered,
            Some(_) => {}
            None => free = free.min(n),
        }
    }
    numbered(key, free)
}

/// The key of the query that is answered from an address, if the query's own address is rewritten.
#[inline(always)]
pub fn find_rewritten(from: &DnsKey) -> Option<DnsKey> {
    for n in 0..NUMBERS {
        let key = numbered(from, n);
        let Some(pending) = DNS_IN_FLIGHT.get_ptr(key) else { continue };
        // SAFETY: a word of a map value.
        let went_to = unsafe { (*pending).went_to };
        if is_given(pending, from) || went_to == fold_address(&from.server, from.port) {
            return Some(key);
        }
    }
    None
}

/// The `n`th key to try. Threads that ask several servers at the same moment begin with different numbers.
#[inline(always)]
fn numbered(key: &DnsKey, n: u32) -> DnsKey {
    let number = (u32::from_be(key.server[3]) + n) % NUMBERS;
    DnsKey { server: DnsKey::rewritten_server(number), port: 0, ..*key }
}

/// Whether the application gave this address for a query.
#[inline(always)]
fn is_given(pending: *const DnsPending, key: &DnsKey) -> bool {
    // SAFETY: words of a map value.
    let (server, port) = unsafe { ((*pending).server, (*pending).port) };
    server == key.server && port == key.port
}
