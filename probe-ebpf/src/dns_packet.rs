//! Parses an skb at the network layer down to a datagram or segment of DNS: IPv4, IPv6, UDP, TCP.
//!
//! It runs for every packet of the node, so a packet that is not DNS is passed after one load (IPv4) or two (IPv6).

use core::{arch::asm, mem::offset_of, ptr::read_volatile};

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};
use podopsy_wire::Loss;

use crate::{
    dns_stray,
    maps::{count, dns_setting},
};

pub const UDP: u32 = 17;
pub const TCP: u32 = 6;

/// A datagram or segment to or from a DNS server.
pub struct Packet {
    /// The server, words in network order; IPv4 as `::ffff:a.b.c.d`.
    pub server: [u32; 4],
    /// Host byte order.
    pub port: u16,
    /// The port at this end.
    pub local_port: u16,
    pub protocol: u32,
    /// Offset of the UDP or TCP header in the skb.
    pub transport: u32,
    /// The bytes where UDP has its length; 0: not read yet.
    pub length: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Egress: the server is the destination.
    Query,
    /// Ingress: the server is the source.
    Answer,
}

/// The shortest IPv4 header and a UDP header: no packet with a payload is shorter. Aligned, so that it is read by
/// words.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Head([u8; 28]);

/// Parses up to the ports; None: not DNS.
#[inline(always)]
pub fn parse(ctx: &SkBuffContext, direction: Direction) -> Option<Packet> {
    let Head(head) = ctx.load(0).ok()?;
    let version = head[0] >> 4;
    let (protocol, transport, ports) = match version {
        4 => ipv4_transport(ctx, &head, direction)?,
        6 => ipv6_transport(ctx, head[6], direction)?,
        _ => return None,
    };
    let (source, destination) =
        (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]));
    let (local_port, port) = match direction {
        Direction::Query => (source, destination),
        Direction::Answer => (destination, source),
    };
    if !is_dns(port) {
        return None;
    }
    // Addresses: RFC 791 §3.1, RFC 8200 §3.
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let server = match (version, direction) {
        (4, Direction::Query) => mapped(word(16)),
        (4, Direction::Answer) => mapped(word(12)),
        (_, Direction::Query) => ctx.load(24).ok()?,
        (_, Direction::Answer) => ctx.load(8).ok()?,
    };
    // The UDP length, if it was loaded already.
    let length = match (version, transport) {
        (4, 20) => u16::from_be_bytes([head[24], head[25]]) as u32,
        _ => 0,
    };
    Some(Packet { server, port, local_port, protocol, transport, length })
}

/// The address that the packet's socket is connected to; None: it is not connected. When a packet leaves the node's own
/// network namespace, kube-proxy's DNAT of a Service has rewritten its address already, and that of its answer has been
/// rewritten back before cgroup_skb sees it. The socket's own address is the same for both, and it is the one that the
/// application asked for.
#[inline(always)]
pub fn peer(ctx: &SkBuffContext) -> Option<[u32; 4]> {
    const IPV4: u32 = 2;
    const IPV6: u32 = 10;
    const ADDRESS: usize = offset_of!(bpf_sock, dst_ip6);
    // SAFETY: the context is this program's own.
    let sk = unsafe { read_volatile(&raw const (*ctx.skb.skb).__bindgen_anon_2.sk) };
    if sk.is_null() {
        return None;
    }
    let peer = match word::<{ offset_of!(bpf_sock, family) }>(sk) {
        IPV4 => mapped(word::<{ offset_of!(bpf_sock, dst_ip4) }>(sk)),
        IPV6 => [
            word::<ADDRESS>(sk),
            word::<{ ADDRESS + 4 }>(sk),
            word::<{ ADDRESS + 8 }>(sk),
            word::<{ ADDRESS + 12 }>(sk),
        ],
        _ => return None,
    };
    (peer[3] != 0).then_some(peer)
}

/// A word of a socket that was checked not to be null. In assembly, because the verifier accepts no pointer into the
/// middle of a socket, and LLVM tends to make one.
#[inline(always)]
fn word<const OFFSET: usize>(sk: *mut bpf_sock) -> u32 {
    let word: u64;
    // SAFETY: the kernel rewrites it into a read of the socket's own field.
    unsafe {
        asm!("{0} = *(u32 *)({1} + {2})", out(reg) word, in(reg) sk, const OFFSET, options(nostack));
    }
    word as u32
}

/// `::ffff:a.b.c.d`, words in network order.
#[inline(always)]
pub fn mapped(address: u32) -> [u32; 4] {
    [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), address]
}

#[inline(always)]
pub fn is_dns(port: u16) -> bool {
    let watched = dns_setting!(ports);
    port != 0 && (port == watched[0] || port == watched[1] || port == watched[2] || port == watched[3])
}

/// Protocol, offset and ports.
type Transport = (u32, u32, [u8; 4]);

#[inline(always)]
fn ipv4_transport(ctx: &SkBuffContext, head: &[u8; 28], direction: Direction) -> Option<Transport> {
    const ICMP: u32 = 1;
    let protocol = head[9] as u32;
    if protocol != UDP && protocol != TCP {
        if protocol == ICMP && direction == Direction::Query {
            dns_stray::refused_ipv4(ctx, (head[0] & 0x0f) as u32 * 4);
        }
        return None;
    }
    // A later fragment has no ports. (A first one has; `datagram` counts it.)
    if u16::from_be_bytes([head[6], head[7]]) & 0x1fff != 0 {
        return None;
    }
    let offset = (head[0] & 0x0f) as u32 * 4;
    let ports = match offset {
        20 => [head[20], head[21], head[22], head[23]],
        _ => ctx.load(offset as usize).ok()?,
    };
    Some((protocol, offset, ports))
}

/// Skips up to two extension headers (RFC 8200 §4). No DNS packet in practice has more.
#[inline(always)]
fn ipv6_transport(ctx: &SkBuffContext, first: u8, direction: Direction) -> Option<Transport> {
    const ICMPV6: u32 = 58;
    let mut next = first;
    let mut offset = 40u32;
    for _ in 0..2 {
        match next {
            // Hop-by-hop, routing, destination options: length in 8-byte units, the first not counted.
            0 | 43 | 60 => {
                let head: [u8; 2] = ctx.load(offset as usize).ok()?;
                next = head[0];
                offset += (head[1] as u32 + 1) * 8;
            }
            // Fragment: only the first one has ports.
            44 => {
                let head: [u8; 4] = ctx.load(offset as usize).ok()?;
                if u16::from_be_bytes([head[2], head[3]]) & 0xfff8 != 0 {
                    return None;
                }
                next = head[0];
                offset += 8;
            }
            _ => break,
        }
    }
    let protocol = next as u32;
    if protocol != UDP && protocol != TCP {
        if protocol == ICMPV6 && direction == Direction::Query {
            dns_stray::refused_ipv6(ctx, offset);
        }
        return None;
    }
    Some((protocol, offset, ctx.load(offset as usize).ok()?))
}

/// The message of a datagram: its offset in the skb, its size, and how many bytes of it are in this skb.
#[inline(always)]
pub fn datagram(ctx: &SkBuffContext, packet: &Packet) -> Option<(u32, u32, u32)> {
    let length = match packet.length {
        0 => u16::from_be_bytes(ctx.load(packet.transport as usize + 4).ok()?) as u32,
        length => length,
    };
    let size = length.saturating_sub(8);
    let at = packet.transport + 8;
    let available = ctx.len().saturating_sub(at).min(size);
    if available < size {
        count(Loss::DnsFragment);
    }
    Some((at, size, available))
}

/// A TCP segment (RFC 9293 §3.1).
pub struct Segment {
    /// Sequence number of its first byte, or of the SYN.
    pub sequence: u32,
    pub is_first: bool,
    /// Where its payload begins and ends in the skb.
    pub at: u32,
    pub end: u32,
}

#[inline(always)]
pub fn segment(ctx: &SkBuffContext, packet: &Packet) -> Option<Segment> {
    const SYN: u8 = 2;
    let head: [u8; 14] = ctx.load(packet.transport as usize).ok()?;
    let at = packet.transport + (head[12] >> 4) as u32 * 4;
    let sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    Some(Segment { sequence, is_first: head[13] & SYN != 0, at, end: ctx.len() })
}
