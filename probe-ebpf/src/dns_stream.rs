//! DNS over TCP (RFC 7766): messages, each behind its length, which the sender may cut into segments anywhere.
//!
//! A stream is followed by a few words for each socket and direction. Bytes that are not needed are skipped by the
//! length; only a query, and the header of an answer, are assembled when they come in pieces. One call of the program
//! reads one message and tail-calls itself for the next; the kernel allows 33 calls for a segment.

use aya_ebpf::{helpers::bpf_ktime_get_boot_ns, macros::map, maps::ProgramArray, programs::SkBuffContext};
use podopsy_wire::{DNS_PREFIX_BYTES, DnsHeader, DnsPosition, Loss};

use crate::{
    dns_connection,
    dns_message::{self, HEADER},
    dns_packet::{self, Direction, Packet},
    maps::count,
};

/// Size of the length before a message.
const PREFIX: u32 = DNS_PREFIX_BYTES as u32;

/// One direction of a connection, of whose messages `KEPT` bytes are needed.
pub struct Stream<'a, const KEPT: usize> {
    pub position: &'a mut DnsPosition,
    /// The bytes that are held, in the same map value.
    bytes: *mut u8,
}

impl<'a, const KEPT: usize> Stream<'a, KEPT> {
    #[inline(always)]
    pub fn new<const N: usize>(position: &'a mut DnsPosition, bytes: &'a mut [u8; N]) -> Self {
        const { assert!(N >= 2 * KEPT + 8) };
        Stream { position, bytes: bytes.as_mut_ptr() }
    }
}

/// The programs that read a message, by [`Direction`].
#[map]
static DNS_TCP: ProgramArray = ProgramArray::with_max_entries(2, 0);

/// Finds what is new in a segment, and tail-calls the program that reads it; returns only if there is nothing to read.
#[inline(always)]
pub fn begin(ctx: &SkBuffContext, packet: &Packet, cookie: u64, direction: Direction) -> Option<()> {
    let segment = dns_packet::segment(ctx, packet)?;
    let length = segment.end.saturating_sub(segment.at);
    if length == 0 && !segment.is_first {
        return None;
    }
    let connection = match dns_connection::find(cookie) {
        Some(connection) => connection,
        None if direction == Direction::Query => dns_connection::insert(ctx, cookie, length)?,
        None => return None,
    };
    // SAFETY: a map value; a removal recycles the slot, it does not unmap it.
    let connection = unsafe { &mut *connection };
    // SAFETY: the helper has no preconditions.
    connection.used_ns = unsafe { bpf_ktime_get_boot_ns() };
    let stream = match direction {
        Direction::Query => &mut connection.query,
        Direction::Answer => &mut connection.answer,
    };
    let sequence = segment.sequence.wrapping_add(segment.is_first as u32);
    let mut at = segment.at;
    if segment.is_first || stream.port == 0 {
        (stream.server, stream.port) = (packet.server, packet.port as u32);
        (stream.skip, stream.held, stream.is_unsure) = (0, 0, !segment.is_first as u32);
    } else {
        // Segments may be retransmitted and may come in any order.
        let seen = stream.next.wrapping_sub(sequence);
        if seen < 1 << 31 {
            if seen >= length {
                return None;
            }
            at += seen;
        } else {
            let gap = seen.wrapping_neg();
            if gap <= stream.skip {
                stream.skip -= gap;
            } else {
                lose_position(stream);
            }
        }
    }
    stream.next = sequence.wrapping_add(length);
    (stream.at, stream.end) = (at, segment.end);
    if length > 0 {
        // SAFETY: the program there is of the same type.
        unsafe { DNS_TCP.tail_call(ctx, direction as u32) };
        lose_position(stream);
    }
    None
}

/// Counts that the beginning of the next message is not known, and starts over with the next segment.
#[inline(always)]
fn lose_position(stream: &mut DnsPosition) {
    count(Loss::DnsTcpUnparsed);
    (stream.skip, stream.held, stream.is_unsure) = (0, 0, 1);
}

/// A message, or as much of it as is needed.
pub struct FoundMessage {
    pub size: u32,
    pub available: u32,
    pub bytes: MessageBytes,
}

/// Where the bytes of a message are.
pub enum MessageBytes {
    /// In the packet: an offset in the skb.
    InPacket(u32),
    /// Assembled from several segments: an address in kernel memory.
    InMemory(*const u8),
}

/// The next message of the current segment. None: the segment is at its end, or ends in the middle of a message.
#[inline(always)]
pub fn next<const KEPT: usize>(ctx: &SkBuffContext, stream: &mut Stream<KEPT>) -> Option<FoundMessage> {
    let at = &mut *stream.position;
    let skipped = at.skip.min(at.end.saturating_sub(at.at));
    at.skip -= skipped;
    at.at += skipped;
    if at.held < PREFIX {
        take_prefix(ctx, stream)?;
    }
    // SAFETY: the buffer has more bytes than the prefix.
    let size = u16::from_be_bytes(unsafe { [*stream.bytes, *stream.bytes.add(1)] }) as u32;
    let at = &mut *stream.position;
    if size < HEADER {
        lose_position(at);
        at.at = at.end;
        return None;
    }
    let left = at.end.saturating_sub(at.at);
    if left == 0 {
        return None;
    }
    let needed = size.min(KEPT as u32);
    let start = at.at;
    if at.held == PREFIX && left >= needed {
        let available = left.min(size);
        at.at += available;
        (at.skip, at.held) = (size - available, 0);
        return Some(FoundMessage { size, available, bytes: MessageBytes::InPacket(start) });
    }
    let taken = (needed + PREFIX).saturating_sub(at.held).min(left);
    hold(ctx, stream, taken)?;
    let at = &mut *stream.position;
    if at.held < needed + PREFIX {
        return None;
    }
    (at.skip, at.held) = (size - needed, 0);
    let message = stream.bytes.wrapping_add(PREFIX as usize);
    Some(FoundMessage { size, available: needed, bytes: MessageBytes::InMemory(message) })
}

/// Reads both bytes of the length, or the first one if there are no more. None: the length is not complete.
#[inline(always)]
fn take_prefix<const KEPT: usize>(ctx: &SkBuffContext, stream: &mut Stream<KEPT>) -> Option<()> {
    let at = &mut *stream.position;
    let left = at.end.saturating_sub(at.at);
    if at.held == 0 && left >= PREFIX {
        let prefix: [u8; 2] = ctx.load(at.at as usize).ok()?;
        // SAFETY: the buffer has more bytes than the prefix.
        unsafe { (*stream.bytes, *stream.bytes.add(1)) = (prefix[0], prefix[1]) };
        at.at += PREFIX;
        at.held = PREFIX;
        return Some(());
    }
    if left == 0 {
        return None;
    }
    let byte: u8 = ctx.load(at.at as usize).ok()?;
    at.at += 1;
    if at.held == 0 {
        // SAFETY: as above.
        unsafe { *stream.bytes = byte };
        at.held = 1;
        return None;
    }
    // SAFETY: as above.
    unsafe { *stream.bytes.add(1) = byte };
    at.held = PREFIX;
    Some(())
}

/// Appends `count` bytes of the packet to those that are held.
#[inline(always)]
fn hold<const KEPT: usize>(ctx: &SkBuffContext, stream: &mut Stream<KEPT>, count: u32) -> Option<()> {
    let at = &mut *stream.position;
    let offset = core::hint::black_box(at.held as u64);
    // The last offset that is ever written to.
    if offset >= (DNS_PREFIX_BYTES + KEPT) as u64 {
        return None;
    }
    let to = stream.bytes.wrapping_add(offset as usize);
    // SAFETY: `KEPT` bytes fit behind the largest offset.
    let copied = unsafe { dns_message::copy::<KEPT>(ctx, at.at, to.cast(), count) };
    if copied == 0 {
        return None;
    }
    at.at += copied;
    at.held += copied;
    Some(())
}

/// Whether bytes are accepted as a message: where the position is a guess, the header must be plausible.
#[inline(always)]
pub fn accept(stream: &mut DnsPosition, direction: Direction, header: &DnsHeader) -> bool {
    if stream.is_unsure != 0 && !header.is_plausible(direction == Direction::Answer) {
        lose_position(stream);
        stream.at = stream.end;
        return false;
    }
    stream.is_unsure = 0;
    true
}

/// Tail-calls the program again if the segment has more bytes; returns only if it has not.
#[inline(always)]
pub fn continue_segment(ctx: &SkBuffContext, stream: &mut DnsPosition, direction: Direction) {
    if stream.at < stream.end {
        // SAFETY: the program there is of the same type.
        unsafe { DNS_TCP.tail_call(ctx, direction as u32) };
        lose_position(stream);
    }
}
