//! Answers that belong to no query in flight. One from another address than the server's is the classic fault of a Service
//! whose address is not translated back.
//!
//! A socket that is not connected receives such an answer, and its client ignores it. A connected one does not receive it:
//! the kernel refuses the datagram by an ICMP error to its sender, which quotes it (RFC 792; RFC 4443 §3.1).

use aya_ebpf::{helpers::bpf_ktime_get_boot_ns, macros::map, maps::PerCpuArray, programs::SkBuffContext};
use podopsy_wire::{Loss, StrayAnswer};

use crate::{
    dns_packet::{self, UDP},
    dns_slots,
    maps::{DNS_EVENTS, count},
};

/// At most one record in this time on each CPU: they only explain timeouts.
const INTERVAL_NS: u64 = 10_000_000;
/// Ports, length, checksum; then the transaction id and the flags of the message.
const UDP_AND_ID: usize = 12;

/// When the last record was written.
#[map]
static DNS_STRAY_NS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// An answer came to a socket that has no such query.
#[inline(always)]
pub fn at_socket(cookie: u64, server: [u32; 4], port: u16, id: u16) {
    // One that came twice, or from two servers that were asked at once.
    if let Some(answered) = dns_slots::answered(cookie) {
        let ids = answered.ids;
        let has = |shift: u32| (ids >> shift) as u16 == id;
        if has(0) || has(16) || has(32) || has(48) {
            return;
        }
    }
    ship(StrayAnswer { cookie, time_ns: 0, server, port, local_port: 0, id, unused: 0 });
}

/// A datagram was refused by an ICMP error that leaves: the offset of its header in the skb.
#[inline(always)]
pub fn refused_ipv4(ctx: &SkBuffContext, offset: u32) -> Option<()> {
    const UNREACHABLE_PORT: [u8; 2] = [3, 3];
    const ICMP: u32 = 8;
    // The ICMP header, then the beginning of the packet that is quoted.
    let head: [u8; 28] = ctx.load(offset as usize).ok()?;
    if [head[0], head[1]] != UNREACHABLE_PORT || head[8] >> 4 != 4 || head[17] as u32 != UDP {
        return None;
    }
    let server = dns_packet::mapped(u32::from_ne_bytes([head[20], head[21], head[22], head[23]]));
    refused(ctx, offset + ICMP + (head[8] & 0x0f) as u32 * 4, server)
}

/// The same for ICMPv6.
#[inline(always)]
pub fn refused_ipv6(ctx: &SkBuffContext, offset: u32) -> Option<()> {
    const UNREACHABLE_PORT: [u8; 2] = [1, 4];
    const ICMP_AND_IPV6: u32 = 8 + 40;
    const NEXT_HEADER: usize = 6;
    let head: [u8; 16] = ctx.load(offset as usize).ok()?;
    if [head[0], head[1]] != UNREACHABLE_PORT || head[8 + NEXT_HEADER] as u32 != UDP {
        return None;
    }
    let server = ctx.load(offset as usize + 8 + 8).ok()?;
    refused(ctx, offset + ICMP_AND_IPV6, server)
}

#[inline(always)]
fn refused(ctx: &SkBuffContext, at: u32, server: [u32; 4]) -> Option<()> {
    let udp: [u8; UDP_AND_ID] = ctx.load(at as usize).ok()?;
    let port = u16::from_be_bytes([udp[0], udp[1]]);
    let is_response = udp[10] & 0x80 != 0;
    if !dns_packet::is_dns(port) || !is_response {
        return None;
    }
    let local_port = u16::from_be_bytes([udp[2], udp[3]]);
    let id = u16::from_be_bytes([udp[8], udp[9]]);
    ship(StrayAnswer { cookie: 0, time_ns: 0, server, port, local_port, id, unused: 0 });
    Some(())
}

#[inline(always)]
fn ship(mut stray: StrayAnswer) {
    // SAFETY: the helper has no preconditions.
    stray.time_ns = unsafe { bpf_ktime_get_boot_ns() };
    let Some(last) = DNS_STRAY_NS.get_ptr_mut(0) else { return };
    // SAFETY: the slot is this CPU's own.
    unsafe {
        if stray.time_ns.wrapping_sub(*last) < INTERVAL_NS {
            count(Loss::DnsStray);
            return;
        }
        *last = stray.time_ns;
    }
    if DNS_EVENTS.output::<StrayAnswer>(stray, 0).is_err() {
        count(Loss::DnsStray);
    }
}
