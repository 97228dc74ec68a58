//! From an skb at the network layer to the DNS message in it: IPv4, IPv6, UDP, TCP.
//!
//! Runs for every packet of the node, so everything that is not DNS leaves after two loads.

use aya_ebpf::programs::SkBuffContext;
use podopsy_wire::{Config, Loss};

use crate::maps::count;

pub const UDP: u32 = 17;
pub const TCP: u32 = 6;

/// A datagram or segment to or from a DNS server.
pub struct Packet {
    /// The server, words in network order; IPv4 as `::ffff:a.b.c.d`.
    pub server: [u32; 4],
    /// Host byte order.
    pub port: u16,
    pub protocol: u32,
    /// Offset of the DNS header in the skb.
    pub message: u32,
    /// Length of the DNS message: of the datagram's payload, or as the TCP prefix says.
    pub message_size: u32,
    /// Bytes of it that are in this skb.
    pub available: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Egress: the server is the destination.
    Query,
    /// Ingress: the server is the source.
    Answer,
}

/// None: not DNS.
#[inline(always)]
pub fn parse(ctx: &SkBuffContext, config: &Config, direction: Direction) -> Option<Packet> {
    let version: u8 = ctx.load(0).ok()?;
    let (protocol, transport) = match version >> 4 {
        4 => ipv4_transport(ctx, version)?,
        6 => {
            let next: u8 = ctx.load(6).ok()?;
            ipv6_transport(ctx, next)?
        }
        _ => return None,
    };
    let ports: [u8; 4] = ctx.load(transport as usize).ok()?;
    let port = match direction {
        Direction::Query => u16::from_be_bytes([ports[2], ports[3]]),
        Direction::Answer => u16::from_be_bytes([ports[0], ports[1]]),
    };
    if !is_dns(config, port) {
        return None;
    }
    // Addresses: RFC 791 §3.1, RFC 8200 §3.
    let server = match (version >> 4, direction) {
        (4, Direction::Query) => [0, 0, MAPPED, ctx.load(16).ok()?],
        (4, Direction::Answer) => [0, 0, MAPPED, ctx.load(12).ok()?],
        (_, Direction::Query) => ctx.load(24).ok()?,
        (_, Direction::Answer) => ctx.load(8).ok()?,
    };
    message(ctx, transport, protocol, server, port)
}

/// The third word of `::ffff:a.b.c.d`, in network order.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

#[inline(always)]
fn ipv4_transport(ctx: &SkBuffContext, first: u8) -> Option<(u32, u32)> {
    let protocol: u8 = ctx.load(9).ok()?;
    let protocol = protocol as u32;
    if protocol != UDP && protocol != TCP {
        return None;
    }
    // A later fragment has no ports. (A first one has; `message` counts it.)
    let fragment: [u8; 2] = ctx.load(6).ok()?;
    if u16::from_be_bytes(fragment) & 0x1fff != 0 {
        return None;
    }
    Some((protocol, (first & 0x0f) as u32 * 4))
}

#[inline(always)]
pub fn is_dns(config: &Config, port: u16) -> bool {
    let watched = &config.dns_ports;
    port != 0 && (port == watched[0] || port == watched[1] || port == watched[2] || port == watched[3])
}

/// Skips up to two extension headers (RFC 8200 §4); more than that, on a DNS packet, nobody sends.
#[inline(always)]
fn ipv6_transport(ctx: &SkBuffContext, first: u8) -> Option<(u32, u32)> {
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
    (protocol == UDP || protocol == TCP).then_some((protocol, offset))
}

#[inline(always)]
fn message(
    ctx: &SkBuffContext,
    transport: u32,
    protocol: u32,
    server: [u32; 4],
    port: u16,
) -> Option<Packet> {
    let total = ctx.len();
    if protocol == UDP {
        let length: [u8; 2] = ctx.load(transport as usize + 4).ok()?;
        let size = (u16::from_be_bytes(length) as u32).saturating_sub(8);
        let message = transport + 8;
        let available = total.saturating_sub(message).min(size);
        if available < size {
            count(Loss::DnsFragment);
        }
        return Some(Packet { server, port, protocol, message, message_size: size, available });
    }
    let offset: u8 = ctx.load(transport as usize + 12).ok()?;
    let payload = transport + ((offset >> 4) as u32) * 4;
    let carried = total.saturating_sub(payload);
    // Handshakes and bare acknowledgements carry nothing.
    if carried == 0 {
        return None;
    }
    if carried < 2 {
        count(Loss::DnsTcpSegment);
        return None;
    }
    let prefix: [u8; 2] = ctx.load(payload as usize).ok()?;
    let size = u16::from_be_bytes(prefix) as u32;
    let available = (carried - 2).min(size);
    if available < 12 {
        count(Loss::DnsTcpSegment);
        return None;
    }
    Some(Packet { server, port, protocol, message: payload + 2, message_size: size, available })
}
