//! TCP segments to DNS messages (RFC 1035 §4.2.2): as `probe-ebpf/src/stream.rs`, with the same bounds.

use std::collections::{HashMap, VecDeque};

use super::Lost;
use super::parse::Ends;

/// What of a message is kept: as much as a record carries.
pub const KEPT: usize = podopsy_wire::DNS_MESSAGE_MAX;
const STREAMS_MAX: usize = 2048;
const PREFIX: usize = 2;
const HEADER: usize = 12;

/// One direction of a connection.
type Key = (Ends, bool);

#[derive(Debug, Default)]
struct Stream {
    /// Sequence number of the next byte.
    next: u32,
    /// Bytes of a message still to come that nobody needs.
    skip: u32,
    /// The prefix and the beginning of a message.
    held: Vec<u8>,
    /// Seen from its middle: a message has to look like one to be believed.
    is_unsure: bool,
}

/// A message; `size` is what its prefix says, of which `bytes` is the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub size: u32,
    pub bytes: Vec<u8>,
}

/// All connections that are followed.
#[derive(Debug, Default)]
pub struct Streams {
    streams: HashMap<Key, Stream>,
    /// In the order in which they came.
    order: VecDeque<Key>,
}

impl Streams {
    /// The messages that a segment ends (or shows enough of). `len` is its length, of which `bytes` is the beginning.
    pub fn segment(
        &mut self,
        ends: Ends,
        is_outgoing: bool,
        (sequence, is_first): (u32, bool),
        bytes: &[u8],
        len: u32,
        lost: &mut Lost,
    ) -> Vec<Message> {
        if len == 0 && !is_first {
            return Vec::new();
        }
        let key = (ends, is_outgoing);
        let is_new = is_first || !self.streams.contains_key(&key);
        if !self.streams.contains_key(&key) {
            self.make_room(lost);
            self.order.push_back(key);
        }
        let stream = self.streams.entry(key).or_default();
        let sequence = sequence.wrapping_add(u32::from(is_first));
        let mut from = 0;
        if is_new {
            *stream = Stream { is_unsure: !is_first, ..Stream::default() };
        } else {
            // Segments are sent again, and come in any order.
            let seen = stream.next.wrapping_sub(sequence);
            if seen < 1 << 31 {
                if seen >= len {
                    return Vec::new();
                }
                from = seen;
            } else {
                stream.jump(seen.wrapping_neg(), lost);
            }
        }
        stream.next = sequence.wrapping_add(len);
        let there = bytes.get(from as usize..).unwrap_or_default();
        let mut found = Vec::new();
        stream.read(there, is_outgoing, &mut found, lost);
        // What was cut off the frame's end.
        let missing = (len - from).saturating_sub(there.len() as u32);
        if missing > 0 {
            stream.jump(missing, lost);
        }
        found
    }

    fn make_room(&mut self, lost: &mut Lost) {
        while self.streams.len() >= STREAMS_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            self.streams.remove(&oldest);
            lost.streams += 1;
        }
    }
}

impl Stream {
    /// Bytes that nobody saw.
    fn jump(&mut self, gap: u32, lost: &mut Lost) {
        match gap <= self.skip {
            true => self.skip -= gap,
            false => self.lose(lost),
        }
    }

    /// Where the next message begins is not known.
    fn lose(&mut self, lost: &mut Lost) {
        lost.tcp_unparsed += 1;
        self.held.clear();
        (self.skip, self.is_unsure) = (0, true);
    }

    fn read(&mut self, mut bytes: &[u8], is_query: bool, found: &mut Vec<Message>, lost: &mut Lost) {
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
            if size < HEADER {
                return self.lose(lost);
            }
            let needed = size.min(KEPT);
            self.take(&mut bytes, PREFIX + needed);
            if self.held.len() < PREFIX + needed {
                return;
            }
            let message = self.held.split_off(PREFIX);
            self.held.clear();
            self.skip = (size - needed) as u32;
            if self.is_unsure && !looks_like_one(&message, is_query) {
                return self.lose(lost);
            }
            self.is_unsure = false;
            found.push(Message { size: size as u32, bytes: message });
        }
    }

    /// Until `wanted` bytes are held, or there are no more.
    fn take(&mut self, bytes: &mut &[u8], wanted: usize) {
        let count = wanted.saturating_sub(self.held.len()).min(bytes.len());
        self.held.extend_from_slice(&bytes[..count]);
        *bytes = &bytes[count..];
    }
}

/// Right way, a known opcode (query to update, RFC 2136), one question at most.
fn looks_like_one(message: &[u8], is_query: bool) -> bool {
    let Some(header) = message.first_chunk::<HEADER>() else { return false };
    let is_response = header[2] & 0x80 != 0;
    let questions = u16::from_be_bytes([header[4], header[5]]);
    is_response != is_query && (header[2] >> 3) & 0x0f <= 5 && questions <= 1
}
