//! Parses a frame down to a DNS datagram or segment, as `probe-ebpf/src/dns_packet.rs` does, with all bytes at hand.
//! Pure.

use super::PacketLosses;
use super::stream::Segment;

pub const UDP: u32 = 17;
pub const TCP: u32 = 6;
/// Extension headers that are followed (RFC 8200 §4). No DNS packet in practice has more.
const EXTENSIONS_MAX: usize = 4;

/// A packet from its network header on.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub bytes: &'a [u8],
    /// Length of the packet: more than that of `bytes` if it was cut.
    pub len: usize,
    pub is_outgoing: bool,
    /// False: it was addressed to another host.
    pub is_ours: bool,
    /// CLOCK_BOOTTIME.
    pub time_ns: u64,
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// In network order; IPv4 as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
    pub port: u16,
}

/// Client and server, in whichever direction a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub client: Endpoint,
    pub server: Endpoint,
    /// [`UDP`] or [`TCP`].
    pub protocol: u32,
}

/// The part of a frame that is DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A message, or its beginning; `size` is its length by the UDP header.
    Datagram {
        flow: Flow,
        message: &'a [u8],
        size: u32,
    },
    Segment(Segment<'a>),
    /// The network reports that a datagram did not reach the server.
    Unreachable {
        flow: Flow,
    },
}

/// An IP packet, as far as it was captured.
struct IpPacket<'a> {
    protocol: u32,
    from: [u8; 16],
    to: [u8; 16],
    /// The captured bytes from the transport's header on.
    rest: &'a [u8],
    /// Length of the packet from the transport's header on.
    len: usize,
    is_fragment: bool,
}

/// Why a frame is skipped.
enum SkipReason {
    NotDns,
    /// Its headers are inconsistent, which is counted.
    Inconsistent,
}

/// Parses a frame. None: it is not DNS, or it is inconsistent and was counted.
pub fn parse<'a>(frame: &Frame<'a>, ports: &[u16], losses: &mut PacketLosses) -> Option<Packet<'a>> {
    if !frame.is_ours {
        return None;
    }
    match parse_frame(frame, ports, losses) {
        Ok(packet) => Some(packet),
        Err(SkipReason::NotDns) => None,
        Err(SkipReason::Inconsistent) => {
            losses.unparsed += 1;
            None
        }
    }
}

fn parse_frame<'a>(
    frame: &Frame<'a>,
    ports: &[u16],
    losses: &mut PacketLosses,
) -> Result<Packet<'a>, SkipReason> {
    let ip = ip(frame.bytes, frame.len)?;
    match ip.protocol {
        UDP | TCP => {}
        1 if !frame.is_outgoing => return unreachable(&ip, 3, 8, ports),
        58 if !frame.is_outgoing => return unreachable(&ip, 1, 8, ports),
        _ => return Err(SkipReason::NotDns),
    }
    let (source, destination) = (half(ip.rest, 0)?, half(ip.rest, 2)?);
    let from = Endpoint { address: ip.from, port: source };
    let to = Endpoint { address: ip.to, port: destination };
    // For a server on this side of the network, the peer's port is a client's and so not a DNS port.
    let (client, server) = if frame.is_outgoing { (from, to) } else { (to, from) };
    if !is_dns(server.port, ports) {
        return Err(SkipReason::NotDns);
    }
    let flow = Flow { client, server, protocol: ip.protocol };
    if ip.protocol == UDP {
        let size = usize::from(half(ip.rest, 4)?).checked_sub(8).ok_or(SkipReason::Inconsistent)?;
        let captured = ip.rest.get(8..).ok_or(SkipReason::Inconsistent)?;
        let payload = ip.len.saturating_sub(8);
        if ip.is_fragment {
            losses.fragments += 1;
        } else if payload < size {
            return Err(SkipReason::Inconsistent);
        }
        let message = &captured[..size.min(captured.len())];
        return Ok(Packet::Datagram { flow, message, size: size as u32 });
    }
    let head: &[u8; 20] = ip.rest.first_chunk().ok_or(SkipReason::Inconsistent)?;
    let offset = usize::from(head[12] >> 4) * 4;
    if offset < 20 || offset > ip.len {
        return Err(SkipReason::Inconsistent);
    }
    Ok(Packet::Segment(Segment {
        flow,
        is_outgoing: frame.is_outgoing,
        sequence: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
        is_first: head[13] & 2 != 0,
        bytes: ip.rest.get(offset..).unwrap_or_default(),
        len: (ip.len - offset) as u32,
    }))
}

fn ip(bytes: &[u8], len: usize) -> Result<IpPacket<'_>, SkipReason> {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => ipv4(bytes, len),
        Some(6) => ipv6(bytes, len),
        _ => Err(SkipReason::Inconsistent),
    }
}

/// RFC 791 §3.1.
fn ipv4(bytes: &[u8], len: usize) -> Result<IpPacket<'_>, SkipReason> {
    let head: &[u8; 20] = bytes.first_chunk().ok_or(SkipReason::Inconsistent)?;
    let offset = usize::from(head[0] & 0x0f) * 4;
    // Short frames are padded. 0: a sender's offload has made a packet whose length does not fit into the field.
    let total = match usize::from(u16::from_be_bytes([head[2], head[3]])) {
        0 => len,
        total if total <= len => total,
        _ => return Err(SkipReason::Inconsistent),
    };
    let fragment = u16::from_be_bytes([head[6], head[7]]);
    if fragment & 0x1fff != 0 {
        return Err(SkipReason::NotDns);
    }
    if offset < 20 || offset > total {
        return Err(SkipReason::Inconsistent);
    }
    let mapped = |at: usize| {
        let mut address = [0; 16];
        address[10..12].fill(0xff);
        address[12..].copy_from_slice(&head[at..at + 4]);
        address
    };
    Ok(IpPacket {
        protocol: head[9].into(),
        from: mapped(12),
        to: mapped(16),
        rest: bytes.get(offset..total.min(bytes.len())).ok_or(SkipReason::Inconsistent)?,
        len: total - offset,
        is_fragment: fragment & 0x2000 != 0,
    })
}

/// RFC 8200 §3.
fn ipv6(bytes: &[u8], len: usize) -> Result<IpPacket<'_>, SkipReason> {
    let head: &[u8; 40] = bytes.first_chunk().ok_or(SkipReason::Inconsistent)?;
    let total = match usize::from(u16::from_be_bytes([head[4], head[5]])) {
        0 => len,
        payload if payload + 40 <= len => payload + 40,
        _ => return Err(SkipReason::Inconsistent),
    };
    let address = |at: usize| {
        let mut address = [0; 16];
        address.copy_from_slice(&head[at..at + 16]);
        address
    };
    let (mut next, mut offset, mut is_fragment) = (head[6], 40, false);
    for _ in 0..=EXTENSIONS_MAX {
        let extension = bytes.get(offset..total.min(bytes.len())).ok_or(SkipReason::Inconsistent)?;
        match next {
            // Hop-by-hop, routing, destination options: length in 8-byte units, the first not counted.
            0 | 43 | 60 => {
                let head: &[u8; 2] = extension.first_chunk().ok_or(SkipReason::Inconsistent)?;
                (next, offset) = (head[0], offset + (usize::from(head[1]) + 1) * 8);
            }
            44 => {
                let head: &[u8; 8] = extension.first_chunk().ok_or(SkipReason::Inconsistent)?;
                let place = u16::from_be_bytes([head[2], head[3]]);
                if place & 0xfff8 != 0 {
                    return Err(SkipReason::NotDns);
                }
                is_fragment = place & 1 != 0;
                (next, offset) = (head[0], offset + 8);
            }
            protocol => {
                let (from, to) = (address(8), address(24));
                let len = total.saturating_sub(offset);
                return Ok(IpPacket {
                    protocol: protocol.into(),
                    from,
                    to,
                    rest: extension,
                    len,
                    is_fragment,
                });
            }
        }
    }
    Err(SkipReason::Inconsistent)
}

/// Parses an ICMP error, which quotes the packet that it is about from its network header on (RFC 792, RFC 4443 §3.1).
/// The quoted packet was a query from here, so its destination is the server.
fn unreachable<'a>(
    ip: &IpPacket<'a>,
    kind: u8,
    quote: usize,
    ports: &[u16],
) -> Result<Packet<'a>, SkipReason> {
    // Code 4 of IPv4 asks for smaller packets. The socket reacts to that, and the server is not unreachable.
    let is_too_big = kind == 3 && ip.rest.get(1) == Some(&4);
    if ip.rest.first() != Some(&kind) || is_too_big {
        return Err(SkipReason::NotDns);
    }
    let quoted = ip.rest.get(quote..).ok_or(SkipReason::NotDns)?;
    // The quotation is cut short on purpose, so the lengths in it exceed its bytes.
    let Ok(inner) = self::ip(quoted, usize::MAX) else { return Err(SkipReason::NotDns) };
    if inner.protocol != UDP {
        return Err(SkipReason::NotDns);
    }
    let (source, destination) = (half(inner.rest, 0)?, half(inner.rest, 2)?);
    if !is_dns(destination, ports) {
        return Err(SkipReason::NotDns);
    }
    let client = Endpoint { address: inner.from, port: source };
    let server = Endpoint { address: inner.to, port: destination };
    Ok(Packet::Unreachable { flow: Flow { client, server, protocol: UDP } })
}

fn is_dns(port: u16, ports: &[u16]) -> bool {
    port != 0 && ports.contains(&port)
}

fn half(bytes: &[u8], at: usize) -> Result<u16, SkipReason> {
    let bytes = bytes.get(at..at + 2).ok_or(SkipReason::Inconsistent)?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}
