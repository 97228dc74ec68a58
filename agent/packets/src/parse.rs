//! A frame to what of it is DNS: as `probe-ebpf/src/packet.rs`, but that everything is at hand.

use super::Lost;

pub const UDP: u32 = 17;
pub const TCP: u32 = 6;
/// Extension headers that are followed (RFC 8200 §4); more than that, on a DNS packet, nobody sends.
const EXTENSIONS_MAX: usize = 4;

/// A packet from its network header on.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub bytes: &'a [u8],
    /// Its length; more than `bytes` has if it was cut.
    pub len: usize,
    pub is_outgoing: bool,
    /// False: it was addressed to another host, and only passed by.
    pub is_ours: bool,
    /// CLOCK_BOOTTIME.
    pub time_ns: u64,
}

/// An address in network order (IPv4 as `::ffff:a.b.c.d`), and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct End {
    pub address: [u8; 16],
    pub port: u16,
}

/// The two ends, whichever way it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    pub client: End,
    pub server: End,
    pub protocol: u32,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A message, or its beginning; `size` is what its header says.
    Datagram { ends: Ends, message: &'a [u8], size: u32 },
    /// A piece of a stream; `len` is its length, of which `bytes` may be the beginning.
    Segment { ends: Ends, sequence: u32, is_first: bool, bytes: &'a [u8], len: u32 },
    /// The network's word that a datagram to the server did not arrive.
    Unreachable { ends: Ends },
}

/// An IP packet, as far as it is here.
struct Ip<'a> {
    protocol: u32,
    from: [u8; 16],
    to: [u8; 16],
    /// From the transport's header on.
    rest: &'a [u8],
    /// How long that is.
    len: usize,
    is_fragment: bool,
}

/// Why a frame is not looked at.
enum Not {
    /// It is none of ours.
    Dns,
    /// Its headers do not add up.
    Sound,
}

/// Reads a frame; None: it is no DNS, or was counted.
pub fn packet<'a>(frame: &Frame<'a>, ports: &[u16], lost: &mut Lost) -> Option<Packet<'a>> {
    if !frame.is_ours {
        return None;
    }
    match read(frame, ports, lost) {
        Ok(packet) => Some(packet),
        Err(Not::Dns) => None,
        Err(Not::Sound) => {
            lost.unparsed += 1;
            None
        }
    }
}

fn read<'a>(frame: &Frame<'a>, ports: &[u16], lost: &mut Lost) -> Result<Packet<'a>, Not> {
    let ip = ip(frame.bytes, frame.len)?;
    match ip.protocol {
        UDP | TCP => {}
        1 if !frame.is_outgoing => return unreachable(&ip, 3, 8, ports),
        58 if !frame.is_outgoing => return unreachable(&ip, 1, 8, ports),
        _ => return Err(Not::Dns),
    }
    let (source, destination) = (half(ip.rest, 0)?, half(ip.rest, 2)?);
    let (from, to) = (End { address: ip.from, port: source }, End { address: ip.to, port: destination });
    // A server on this side of the network goes by the ports of its clients.
    let (client, server) = if frame.is_outgoing { (from, to) } else { (to, from) };
    if !is_dns(server.port, ports) {
        return Err(Not::Dns);
    }
    let ends = Ends { client, server, protocol: ip.protocol };
    if ip.protocol == UDP {
        let size = usize::from(half(ip.rest, 4)?).checked_sub(8).ok_or(Not::Sound)?;
        let here = ip.rest.get(8..).ok_or(Not::Sound)?;
        let there = ip.len.saturating_sub(8);
        if ip.is_fragment {
            lost.fragments += 1;
        } else if there < size {
            return Err(Not::Sound);
        }
        return Ok(Packet::Datagram { ends, message: &here[..size.min(here.len())], size: size as u32 });
    }
    let head: &[u8; 20] = ip.rest.first_chunk().ok_or(Not::Sound)?;
    let offset = usize::from(head[12] >> 4) * 4;
    if offset < 20 || offset > ip.len {
        return Err(Not::Sound);
    }
    Ok(Packet::Segment {
        ends,
        sequence: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
        is_first: head[13] & 2 != 0,
        bytes: ip.rest.get(offset..).unwrap_or_default(),
        len: (ip.len - offset) as u32,
    })
}

fn ip(bytes: &[u8], len: usize) -> Result<Ip<'_>, Not> {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => ipv4(bytes, len),
        Some(6) => ipv6(bytes, len),
        _ => Err(Not::Sound),
    }
}

/// RFC 791 §3.1.
fn ipv4(bytes: &[u8], len: usize) -> Result<Ip<'_>, Not> {
    let head: &[u8; 20] = bytes.first_chunk().ok_or(Not::Sound)?;
    let offset = usize::from(head[0] & 0x0f) * 4;
    // Short frames are padded; 0 is a sender's offload of more than fits into the field.
    let total = match usize::from(u16::from_be_bytes([head[2], head[3]])) {
        0 => len,
        total if total <= len => total,
        _ => return Err(Not::Sound),
    };
    let fragment = u16::from_be_bytes([head[6], head[7]]);
    if fragment & 0x1fff != 0 {
        return Err(Not::Dns);
    }
    if offset < 20 || offset > total {
        return Err(Not::Sound);
    }
    let mapped = |at: usize| {
        let mut address = [0; 16];
        address[10..12].fill(0xff);
        address[12..].copy_from_slice(&head[at..at + 4]);
        address
    };
    Ok(Ip {
        protocol: head[9].into(),
        from: mapped(12),
        to: mapped(16),
        rest: bytes.get(offset..total.min(bytes.len())).ok_or(Not::Sound)?,
        len: total - offset,
        is_fragment: fragment & 0x2000 != 0,
    })
}

/// RFC 8200 §3.
fn ipv6(bytes: &[u8], len: usize) -> Result<Ip<'_>, Not> {
    let head: &[u8; 40] = bytes.first_chunk().ok_or(Not::Sound)?;
    let total = match usize::from(u16::from_be_bytes([head[4], head[5]])) {
        0 => len,
        payload if payload + 40 <= len => payload + 40,
        _ => return Err(Not::Sound),
    };
    let address = |at: usize| {
        let mut address = [0; 16];
        address.copy_from_slice(&head[at..at + 16]);
        address
    };
    let (mut next, mut offset, mut is_fragment) = (head[6], 40, false);
    for _ in 0..=EXTENSIONS_MAX {
        let extension = bytes.get(offset..total.min(bytes.len())).ok_or(Not::Sound)?;
        match next {
            // Hop-by-hop, routing, destination options: length in 8-byte units, the first not counted.
            0 | 43 | 60 => {
                let head: &[u8; 2] = extension.first_chunk().ok_or(Not::Sound)?;
                (next, offset) = (head[0], offset + (usize::from(head[1]) + 1) * 8);
            }
            44 => {
                let head: &[u8; 8] = extension.first_chunk().ok_or(Not::Sound)?;
                let place = u16::from_be_bytes([head[2], head[3]]);
                if place & 0xfff8 != 0 {
                    return Err(Not::Dns);
                }
                is_fragment = place & 1 != 0;
                (next, offset) = (head[0], offset + 8);
            }
            protocol => {
                let (from, to) = (address(8), address(24));
                let len = total.saturating_sub(offset);
                return Ok(Ip { protocol: protocol.into(), from, to, rest: extension, len, is_fragment });
            }
        }
    }
    Err(Not::Sound)
}

/// An ICMP error quotes the packet that it is about from its network header on (RFC 792, RFC 4443 §3.1). What it quotes
/// was a query of ours, so the quoted server is the quoted destination.
fn unreachable<'a>(ip: &Ip<'a>, kind: u8, quote: usize, ports: &[u16]) -> Result<Packet<'a>, Not> {
    // Code 4 of IPv4 asks for smaller packets: the socket sees to that, and nothing was refused.
    let is_too_big = kind == 3 && ip.rest.get(1) == Some(&4);
    if ip.rest.first() != Some(&kind) || is_too_big {
        return Err(Not::Dns);
    }
    let quoted = ip.rest.get(quote..).ok_or(Not::Dns)?;
    // It is cut short on purpose: its own lengths say more than is there.
    let Ok(inner) = self::ip(quoted, usize::MAX) else { return Err(Not::Dns) };
    if inner.protocol != UDP {
        return Err(Not::Dns);
    }
    let (source, destination) = (half(inner.rest, 0)?, half(inner.rest, 2)?);
    if !is_dns(destination, ports) {
        return Err(Not::Dns);
    }
    let client = End { address: inner.from, port: source };
    let server = End { address: inner.to, port: destination };
    Ok(Packet::Unreachable { ends: Ends { client, server, protocol: UDP } })
}

fn is_dns(port: u16, ports: &[u16]) -> bool {
    port != 0 && ports.contains(&port)
}

fn half(bytes: &[u8], at: usize) -> Result<u16, Not> {
    let bytes = bytes.get(at..at + 2).ok_or(Not::Sound)?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}
