//! DNS over TCP (RFC 7766): messages, each behind its length, which the sender may cut into segments anywhere.
//!
//! A stream is followed by a few words for each socket and direction. Bytes that are not needed are skipped by the
//! length; only a query, and the header of an answer, are assembled when they come in pieces. One call of the program
//! reads one message and tail-calls itself for the next; the kernel allows 33 calls for a segment.

use aya_ebpf::{
    macros::map,
    maps::{LruHashMap, ProgramArray},
    programs::SkBuffContext,
};
use podopsy_wire::{DNS_QUESTION_MAX, DnsHeader, Loss};

use crate::{
    dns_message::{self, HEADER},
    dns_packet::{self, Direction, Packet},
    maps::count,
};

/// Size of the length before a message.
const PREFIX: u32 = 2;
/// Bytes of a query that are kept: header and question.
const QUERY: u32 = HEADER + DNS_QUESTION_MAX as u32;
/// The last offset in `bytes` that is ever written to.
const LAST: u64 = (PREFIX + QUERY - 1) as u64;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct StreamKey {
    cookie: u64,
    /// [`Direction`].
    direction: u64,
}

/// One direction of a connection.
#[repr(C)]
pub struct Stream {
    pub server: [u32; 4],
    pub port: u32,
    /// Sequence number of the next byte.
    next: u32,
    /// Bytes of the current message that are still to come and are not needed.
    skip: u32,
    /// Bytes in `bytes`: the prefix, then the beginning of a message.
    held: u32,
    /// How far the current segment was read, and where it ends: offsets in the skb.
    at: u32,
    end: u32,
    /// 1: the position is a guess (the stream was first seen in its middle), so that a message must be plausible.
    is_unsure: u32,
    unused: u32,
    /// Twice as large as needed: the verifier adds the largest offset to the largest length.
    bytes: [u8; (2 * QUERY + 8) as usize],
}

/// The initial value of an entry; too big for the BPF stack.
static EMPTY: Stream = Stream {
    server: [0; 4],
    port: 0,
    next: 0,
    skip: 0,
    held: 0,
    at: 0,
    end: 0,
    is_unsure: 0,
    unused: 0,
    bytes: [0; (2 * QUERY + 8) as usize],
};

/// LRU: the stream of an idle connection may be evicted; what follows is then treated as seen from its middle.
#[map]
static DNS_STREAMS: LruHashMap<StreamKey, Stream> = LruHashMap::with_max_entries(2048, 0);

/// The programs that read a message, by [`Direction`].
#[map]
static DNS_TCP: ProgramArray = ProgramArray::with_max_entries(2, 0);

#[inline(always)]
fn key(cookie: u64, direction: Direction) -> StreamKey {
    StreamKey { cookie, direction: direction as u64 }
}

/// Finds what is new in a segment, and tail-calls the program that reads it; returns only if there is nothing to read.
#[inline(always)]
pub fn begin(ctx: &SkBuffContext, packet: &Packet, cookie: u64, direction: Direction) -> Option<()> {
    let segment = dns_packet::segment(ctx, packet)?;
    let length = segment.end.saturating_sub(segment.at);
    if length == 0 && !segment.is_first {
        return None;
    }
    let key = key(cookie, direction);
    let mut is_new = segment.is_first;
    let stream = match DNS_STREAMS.get_ptr_mut(&key) {
        Some(stream) => stream,
        None => {
            if DNS_STREAMS.insert(&key, &EMPTY, 0).is_err() {
                count(Loss::DnsTcpUnparsed);
                return None;
            }
            is_new = true;
            DNS_STREAMS.get_ptr_mut(&key)?
        }
    };
    // SAFETY: a map value; an eviction recycles the slot, it does not unmap it.
    let stream = unsafe { &mut *stream };
    let sequence = segment.sequence.wrapping_add(segment.is_first as u32);
    let mut at = segment.at;
    if is_new {
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
fn lose_position(stream: &mut Stream) {
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

/// The stream of the current segment.
#[inline(always)]
pub fn current(cookie: u64, direction: Direction) -> Option<*mut Stream> {
    DNS_STREAMS.get_ptr_mut(key(cookie, direction))
}

/// The next message of the current segment. None: the segment is at its end, or ends in the middle of a message.
#[inline(always)]
pub fn next(ctx: &SkBuffContext, stream: &mut Stream, direction: Direction) -> Option<FoundMessage> {
    let skipped = stream.skip.min(stream.end.saturating_sub(stream.at));
    stream.skip -= skipped;
    stream.at += skipped;
    if stream.held < PREFIX {
        take_prefix(ctx, stream)?;
    }
    let size = u16::from_be_bytes([stream.bytes[0], stream.bytes[1]]) as u32;
    if size < HEADER {
        lose_position(stream);
        stream.at = stream.end;
        return None;
    }
    let left = stream.end.saturating_sub(stream.at);
    if left == 0 {
        return None;
    }
    let needed = match direction {
        Direction::Query => size.min(QUERY),
        Direction::Answer => HEADER,
    };
    let at = stream.at;
    if stream.held == PREFIX && left >= needed {
        let available = left.min(size);
        stream.at += available;
        (stream.skip, stream.held) = (size - available, 0);
        return Some(FoundMessage { size, available, bytes: MessageBytes::InPacket(at) });
    }
    let taken = (needed + PREFIX).saturating_sub(stream.held).min(left);
    hold(ctx, stream, taken)?;
    if stream.held < needed + PREFIX {
        return None;
    }
    (stream.skip, stream.held) = (size - needed, 0);
    let message = (&raw const stream.bytes).cast::<u8>().wrapping_add(PREFIX as usize);
    Some(FoundMessage { size, available: needed, bytes: MessageBytes::InMemory(message) })
}

/// Reads both bytes of the length, or the first one if there are no more. None: the length is not complete.
#[inline(always)]
fn take_prefix(ctx: &SkBuffContext, stream: &mut Stream) -> Option<()> {
    let left = stream.end.saturating_sub(stream.at);
    if stream.held == 0 && left >= PREFIX {
        let prefix: [u8; 2] = ctx.load(stream.at as usize).ok()?;
        (stream.bytes[0], stream.bytes[1]) = (prefix[0], prefix[1]);
        stream.at += PREFIX;
        stream.held = PREFIX;
        return Some(());
    }
    if left == 0 {
        return None;
    }
    let byte: u8 = ctx.load(stream.at as usize).ok()?;
    stream.at += 1;
    if stream.held == 0 {
        stream.bytes[0] = byte;
        stream.held = 1;
        return None;
    }
    stream.bytes[1] = byte;
    stream.held = PREFIX;
    Some(())
}

/// Appends `count` bytes of the packet to those that are held.
#[inline(always)]
fn hold(ctx: &SkBuffContext, stream: &mut Stream, count: u32) -> Option<()> {
    let offset = core::hint::black_box(stream.held as u64);
    if offset > LAST {
        return None;
    }
    let to = (&raw mut stream.bytes).cast::<u8>().wrapping_add(offset as usize);
    // SAFETY: `QUERY` bytes fit behind the largest offset.
    let copied = unsafe { dns_message::copy::<{ QUERY as usize }>(ctx, stream.at, to.cast(), count) };
    if copied == 0 {
        return None;
    }
    stream.at += copied;
    stream.held += copied;
    Some(())
}

/// Whether bytes are accepted as a message: where the position is a guess, the header must be plausible.
#[inline(always)]
pub fn accept(stream: &mut Stream, direction: Direction, header: &DnsHeader) -> bool {
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
pub fn continue_segment(ctx: &SkBuffContext, stream: &mut Stream, direction: Direction) {
    if stream.at < stream.end {
        // SAFETY: the program there is of the same type.
        unsafe { DNS_TCP.tail_call(ctx, direction as u32) };
        lose_position(stream);
    }
}
