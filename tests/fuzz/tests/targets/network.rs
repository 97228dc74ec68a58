//! What the network chooses: DNS messages in frames, streams and records; queries of the API.

use podopsy_decode::dns::{self, DnsMessage};
use podopsy_model::Outcome;
use podopsy_packets::PacketLosses;
use podopsy_packets::parse::{Endpoint, Flow, Frame, TCP, parse};
use podopsy_packets::stream::{Segment, Streams};
use podopsy_wire::DnsRecord;

use crate::{assert_printable, parts, targets};

targets! {
    dns_message,
    dns_frame,
    dns_stream,
    api_query,
}

/// A question and its answer, as the kernel side reports them.
fn dns_message(input: &[u8]) {
    let [question, answer] = parts(input);
    let mut record: DnsRecord = bytemuck::zeroed();
    let len = question.len().min(record.pending.question.len());
    record.pending.question[..len].copy_from_slice(&question[..len]);
    record.pending.question_len = question.len() as u32;
    record.pending.questions = 1;
    let len = answer.len().min(record.message.len());
    record.message[..len].copy_from_slice(&answer[..len]);
    record.message_len = answer.len() as u32;
    record.message_size = answer.len() as u32;
    let Ok(DnsMessage::Answered(record)) = dns::record(bytemuck::bytes_of(&record)) else {
        panic!("a record is not read as one")
    };
    let answered = dns::answered(&record);
    let unanswered = dns::unanswered(&record.key, &record.pending, Outcome::Timeout, u64::MAX);
    for transaction in [answered, unanswered] {
        let texts = [transaction.name, transaction.qtype, transaction.malformed];
        for text in texts.iter().flatten() {
            assert_printable(text);
            // A name has 255 bytes, of which each may become `\\DDD`.
            assert!(text.len() <= 2048, "a text of {} bytes", text.len());
        }
    }
}

/// The first byte has the direction; the frame follows.
fn dns_frame(input: &[u8]) {
    let Some((&flags, bytes)) = input.split_first() else { return };
    let len = bytes.len() + usize::from(flags >> 4) * 100;
    let frame = Frame { bytes, len, is_outgoing: flags & 1 == 0, is_ours: flags & 2 == 0, time_ns: 1 };
    parse(&frame, &[53, 5353], &mut PacketLosses::default());
}

/// Segments: three bytes for connection and direction, sequence number and length; then the segment's bytes.
fn dns_stream(input: &[u8]) {
    let (mut streams, mut losses) = (Streams::default(), PacketLosses::default());
    let mut rest = input;
    while let Some((&[kind, sequence, len], more)) = rest.split_first_chunk() {
        let (bytes, more) = more.split_at(more.len().min(usize::from(len)));
        let endpoint = |port| Endpoint { address: [7; 16], port };
        let flow = Flow { client: endpoint(u16::from(kind & 3)), server: endpoint(53), protocol: TCP };
        let sequence = match kind & 0x10 {
            0 => u32::from(sequence),
            _ => u32::from(sequence).wrapping_sub(128),
        };
        let cut = if kind & 0x20 == 0 { 0 } else { 1000 };
        let segment = Segment {
            flow,
            is_outgoing: kind & 4 == 0,
            sequence,
            is_first: kind & 8 != 0,
            bytes,
            len: bytes.len() as u32 + cut,
        };
        for message in streams.add(&segment, &mut losses) {
            assert!(message.bytes.len() <= 512 && message.bytes.len() <= message.size as usize);
        }
        rest = more;
    }
}

fn api_query(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(reason) = podopsy_agent::fuzzing::query(&text) {
        assert_printable(&reason);
        assert!(reason.len() <= 4096, "a reason of {} bytes", reason.len());
    }
}
