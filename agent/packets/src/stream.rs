//! Assembles DNS messages from TCP segments (RFC 1035 §4.2.2), as `probe-ebpf/src/dns_stream.rs` does, with the same
//! bounds. Pure.

use std::collections::{HashMap, VecDeque};

use podopsy_wire::{DNS_HEADER_BYTES, DNS_MESSAGE_MAX, DnsHeader};

use super::PacketLosses;
use super::parse::Flow;

/// Bytes of a message that are kept: as many as a record carries.
const KEPT: usize = DNS_MESSAGE_MAX;
const STREAMS_MAX: usize = 2048;
/// Size of the length before a message.
const PREFIX: usize = 2;

/// One direction of a connection: whether it goes out, to the server.
type StreamKey = (Flow, bool);

/// A piece of a TCP stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub flow: Flow,
    pub is_outgoing: bool,
    /// Sequence number of the first byte, or of the SYN.
    pub sequence: u32,
    /// It has a SYN.
    pub is_first: bool,
    /// The captured part, which begins with the segment's first byte.
    pub bytes: &'a [u8],
    pub len: u32,
}

#[derive(Debug, Default)]
struct Stream {
    /// Sequence number of the next byte.
    next: u32,
    /// Bytes of the current message that are still to come and are not needed.
    skip: u32,
    /// The prefix and the beginning of a message.
    held: Vec<u8>,
    /// The position is a guess (the stream was first seen in its middle), so that a message must be plausible.
    is_unsure: bool,
}

/// A message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamMessage {
    /// Its length, by its prefix.
    pub size: u32,
    /// Its beginning.
    pub bytes: Vec<u8>,
}

/// All connections that are followed.
#[derive(Debug, Default)]
pub struct Streams {
    streams: HashMap<StreamKey, Stream>,
    /// Oldest first.
    order: VecDeque<StreamKey>,
}

impl Streams {
    /// Adds a segment; returns the messages that are complete with it (or of which enough is known).
    pub fn add(&mut self, segment: &Segment<'_>, losses: &mut PacketLosses) -> Vec<StreamMessage> {
        let Segment { flow, is_outgoing, is_first, bytes, len, .. } = *segment;
        if len == 0 && !is_first {
            return Vec::new();
        }
        let key = (flow, is_outgoing);
        let is_new = is_first || !self.streams.contains_key(&key);
        if !self.streams.contains_key(&key) {
            self.evict_oldest(losses);
            self.order.push_back(key);
        }
        let stream = self.streams.entry(key).or_default();
        let sequence = segment.sequence.wrapping_add(u32::from(is_first));
        let mut from = 0;
        if is_new {
            *stream = Stream { is_unsure: !is_first, ..Stream::default() };
        } else {
            // Segments may be retransmitted and may come in any order.
            let seen = stream.next.wrapping_sub(sequence);
            if seen < 1 << 31 {
                if seen >= len {
                    return Vec::new();
                }
                from = seen;
            } else {
                stream.skip_gap(seen.wrapping_neg(), losses);
            }
        }
        stream.next = sequence.wrapping_add(len);
        let captured = bytes.get(from as usize..).unwrap_or_default();
        let mut found = Vec::new();
        stream.read(captured, is_outgoing, &mut found, losses);
        // The end of the frame may have been cut off.
        let missing = (len - from).saturating_sub(captured.len() as u32);
        if missing > 0 {
            stream.skip_gap(missing, losses);
        }
        found
    }

    /// Evicts streams until a new one fits.
    fn evict_oldest(&mut self, losses: &mut PacketLosses) {
        while self.streams.len() >= STREAMS_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            self.streams.remove(&oldest);
            losses.streams += 1;
        }
    }
}

impl Stream {
    /// Moves past bytes that were not seen: harmless if they are not needed.
    fn skip_gap(&mut self, gap: u32, losses: &mut PacketLosses) {
        if gap <= self.skip {
            self.skip -= gap;
        } else {
            self.lose_position(losses);
        }
    }

    /// Counts that the beginning of the next message is not known, and starts over with the next segment.
    fn lose_position(&mut self, losses: &mut PacketLosses) {
        losses.tcp_unparsed += 1;
        self.held.clear();
        (self.skip, self.is_unsure) = (0, true);
    }

    /// Reads messages; what is not complete stays in `held`.
    fn read(
        &mut self,
        mut bytes: &[u8],
        is_query: bool,
        found: &mut Vec<StreamMessage>,
        losses: &mut PacketLosses,
    ) {
        while !bytes.is_empty() {
            let skipped = (self.skip as usize).min(bytes.len());
            self.skip -= skipped as u32;
            bytes = &bytes[skipped..];
            if self.held.len() < PREFIX {
                self.take(&mut bytes, PREFIX);
                if self.held.len() < PREFIX {
                    return;
                }
            }
            let size = usize::from(u16::from_be_bytes([self.held[0], self.held[1]]));
            if size < DNS_HEADER_BYTES {
                return self.lose_position(losses);
            }
            let needed = size.min(KEPT);
            self.take(&mut bytes, PREFIX + needed);
            if self.held.len() < PREFIX + needed {
                return;
            }
            let message = self.held.split_off(PREFIX);
            self.held.clear();
            self.skip = (size - needed) as u32;
            let header = DnsHeader::from_message(&message);
            if self.is_unsure && !header.is_some_and(|header| header.is_plausible(!is_query)) {
                return self.lose_position(losses);
            }
            self.is_unsure = false;
            found.push(StreamMessage { size: size as u32, bytes: message });
        }
    }

    /// Moves bytes to `held` until it has `wanted` bytes, or there are no more.
    fn take(&mut self, bytes: &mut &[u8], wanted: usize) {
        let count = wanted.saturating_sub(self.held.len()).min(bytes.len());
        self.held.extend_from_slice(&bytes[..count]);
        *bytes = &bytes[count..];
    }
}
