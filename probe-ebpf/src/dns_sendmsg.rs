//! The server address that an application gives to sendmsg on a socket that is not connected.
//!
//! The packet may carry another address. kube-proxy's DNAT rewrites what a process in the node's network sends to a
//! Service before cgroup_skb sees it, and rewrites the answer back before cgroup_skb sees that: the answer comes from
//! the address that the application gave. Other load balancers (Cilium's) replace the address in the same hook as this
//! one: the answer then comes from the address that the packet went to. So a query is keyed by the address that the
//! application gave, and the address in its packet is stored as an alias of it.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_get_socket_cookie,
    macros::{cgroup_sock_addr, map},
    maps::LruHashMap,
    programs::SockAddrContext,
};
use podopsy_wire::{DnsKey, Loss};

use crate::{
    dns_packet::{self, Packet, UDP},
    maps::count,
    task,
};

/// The hook's verdict: allow the call.
const PASS: i32 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Address {
    /// As in `DnsKey`.
    server: [u32; 4],
    port: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct SocketAddress {
    cookie: u64,
    address: Address,
}

/// The address that a task's last send gave, by `task_struct`: its packet is seen before the task can send another one.
/// LRU, because tasks end.
#[map]
static DNS_NAMED: LruHashMap<u64, SocketAddress> = LruHashMap::with_max_entries(4096, 0);

/// The address that a socket's packets went to → the one that the application gave. LRU, because sockets are closed.
#[map]
static DNS_ALIASES: LruHashMap<SocketAddress, Address> = LruHashMap::with_max_entries(1024, 0);

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
    let given = SocketAddress { cookie, address: Address { server: address(ctx), port: port as u64 } };
    let task = task::current();
    if let Some(before) = DNS_NAMED.get_ptr_mut(task) {
        // SAFETY: a map value, and this task's own; an eviction recycles the slot, it does not unmap it.
        unsafe { *before = given };
    } else if DNS_NAMED.insert(task, given, 0).is_err() {
        count(Loss::DnsNamed);
    }
}

/// Replaces the server of a query's packet by the address that the application gave.
#[inline(always)]
pub fn replace_server(packet: &mut Packet, cookie: u64) {
    let Some(given) = DNS_NAMED.get_ptr(task::current()) else { return };
    // SAFETY: a map value of plain integers.
    let given = unsafe { *given };
    // The address 0 means this machine.
    if given.cookie != cookie || given.address.server[3] == 0 {
        return;
    }
    let went_to = Address { server: packet.server, port: packet.port as u64 };
    (packet.server, packet.port) = (given.address.server, given.address.port as u16);
    if went_to.server == packet.server && went_to.port == given.address.port {
        return;
    }
    let alias = SocketAddress { cookie, address: went_to };
    if DNS_ALIASES.get_ptr(alias).is_none() && DNS_ALIASES.insert(alias, given.address, 0).is_err() {
        count(Loss::DnsNamed);
    }
}

/// The key of the query whose answer comes from an alias of its server.
#[inline(always)]
pub fn original_key(key: &DnsKey) -> Option<DnsKey> {
    let address = Address { server: key.server, port: key.port as u64 };
    let given = DNS_ALIASES.get_ptr(SocketAddress { cookie: key.cookie, address })?;
    // SAFETY: a map value of plain integers.
    let Address { server, port } = unsafe { *given };
    Some(DnsKey { server, port: port as u16, ..*key })
}
