//! Whom a socket that is not connected sends its query to, as the application named it.
//!
//! The packet may say otherwise. What a process of the node's own network sends to a Service is rewritten (kube-proxy's
//! DNAT) before cgroup_skb sees it, and the answer is rewritten back before it is seen: it comes from whom was named.
//! Other load balancers (Cilium's) put another address in the name's place, in the same hook as we: then the answer comes
//! from whom the packet went to. So a query is known by the name, and its packet's address is noted as another name of it.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_get_socket_cookie,
    macros::{cgroup_sock_addr, map},
    maps::LruHashMap,
    programs::SockAddrContext,
};
use podopsy_wire::{DnsKey, Loss};

use crate::{
    maps::count,
    packet::{self, Packet, UDP},
    task,
};

/// Let it pass.
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
pub struct Named {
    cookie: u64,
    address: Address,
}

/// What a task's last send named: its packet is seen before the task can send another. LRU: tasks end.
#[map]
static DNS_NAMED: LruHashMap<u64, Named> = LruHashMap::with_max_entries(4096, 0);

/// Where a socket's packets went → what the application had named. LRU: sockets are closed.
#[map]
static DNS_ALIASES: LruHashMap<Named, Address> = LruHashMap::with_max_entries(1024, 0);

#[cgroup_sock_addr(sendmsg4)]
pub fn dns_sendmsg4(ctx: SockAddrContext) -> i32 {
    note(&ctx, ipv4);
    PASS
}

#[cgroup_sock_addr(sendmsg6)]
pub fn dns_sendmsg6(ctx: SockAddrContext) -> i32 {
    note(&ctx, ipv6);
    PASS
}

/// The address that an application names in a connect or sendmsg hook of IPv4.
#[inline(always)]
pub fn ipv4(ctx: &SockAddrContext) -> [u32; 4] {
    // SAFETY: the context is this program's own; the field is readable in these hooks.
    packet::mapped(unsafe { (*ctx.sock_addr).user_ip4 })
}

/// The same of IPv6.
#[inline(always)]
pub fn ipv6(ctx: &SockAddrContext) -> [u32; 4] {
    // Word by word: the verifier allows no wider reads before 5.12.
    // SAFETY: as above.
    unsafe {
        let address = &raw const (*ctx.sock_addr).user_ip6;
        [0, 1, 2, 3].map(|word| core::ptr::read_volatile(address.cast::<u32>().add(word)))
    }
}

/// Runs for every datagram of the node that a socket sends without being connected.
#[inline(always)]
fn note(ctx: &SockAddrContext, address: fn(&SockAddrContext) -> [u32; 4]) {
    // SAFETY: the context is this program's own; the fields are readable in these hooks.
    let (port, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    let port = u16::from_be(port as u16);
    if !packet::is_dns(port) || protocol != UDP {
        return;
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let named = Named { cookie, address: Address { server: address(ctx), port: port as u64 } };
    let task = task::current();
    if let Some(before) = DNS_NAMED.get_ptr_mut(task) {
        // SAFETY: a map value, and this task's own; an eviction recycles the slot, it does not unmap it.
        unsafe { *before = named };
    } else if DNS_NAMED.insert(task, named, 0).is_err() {
        count(Loss::DnsNamed);
    }
}

/// Puts what the application named in the place of where its query goes.
#[inline(always)]
pub fn of_query(packet: &mut Packet, cookie: u64) {
    let Some(named) = DNS_NAMED.get_ptr(task::current()) else { return };
    // SAFETY: a map value of plain integers.
    let named = unsafe { *named };
    // The address 0 means this machine.
    if named.cookie != cookie || named.address.server[3] == 0 {
        return;
    }
    let went_to = Address { server: packet.server, port: packet.port as u64 };
    (packet.server, packet.port) = (named.address.server, named.address.port as u16);
    if went_to.server == packet.server && went_to.port == named.address.port {
        return;
    }
    let alias = Named { cookie, address: went_to };
    if DNS_ALIASES.get_ptr(alias).is_none() && DNS_ALIASES.insert(alias, named.address, 0).is_err() {
        count(Loss::DnsNamed);
    }
}

/// The key of the query that is answered from an address that nobody named.
#[inline(always)]
pub fn of_answer(key: &DnsKey) -> Option<DnsKey> {
    let alias = Named { cookie: key.cookie, address: Address { server: key.server, port: key.port as u64 } };
    let named = DNS_ALIASES.get_ptr(alias)?;
    // SAFETY: a map value of plain integers.
    let Address { server, port } = unsafe { *named };
    Some(DnsKey { server, port: port as u16, ..*key })
}
