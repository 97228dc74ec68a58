//! A DNS query in flight, and the record of its answer (RFC 1035).

use bytemuck::{Pod, Zeroable};

use crate::Task;

/// Longest question kept: a name of 255 bytes, type and class, and one byte that shows an overrun.
pub const DNS_QUESTION_MAX: usize = 260;
/// Bytes of the response that travel with the record.
pub const DNS_MESSAGE_MAX: usize = 512;
/// How many server ports can be watched.
pub const DNS_PORTS_MAX: usize = 4;

/// `DnsPending::state`: the query waits for its answer.
pub const STATE_WAITING: u32 = 0;
/// User space has reported the timeout; an answer is late from now on.
pub const STATE_TIMED_OUT: u32 = 1;

/// Indices into the map `DNS_IN_FLIGHT_USED`: entries that the kernel side inserted into `DNS_IN_FLIGHT`, entries that it
/// removed, and entries that user space removed. Only user space writes the last one.
pub const USED_INSERTED: u32 = 0;
pub const USED_REMOVED: u32 = 1;
pub const USED_SWEPT: u32 = 2;
pub const USED_COUNTERS: u32 = 3;

/// A counter that shares its cache line with no other one: several CPUs add to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CacheLine {
    pub count: u64,
    pub unused: [u64; 7],
}

/// `DnsRecord::why`: all answers were requested (`DnsConfig::answers`).
pub const WHY_ANSWER: u32 = 1;
/// It took longer than `DnsConfig::slow_us`; also set for failures.
pub const WHY_SLOW: u32 = 2;
/// It was drawn, one success in `DnsConfig::sample`. With no bit set it is not a plain success.
pub const WHY_SAMPLE: u32 = 4;

/// What makes an answer belong to a query. The server is part of it: some clients send one id to
/// several servers from one socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DnsKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Server address as it stands in the packet, in words; IPv4 as `::ffff:a.b.c.d`.
    pub server: [u32; 4],
    /// Host byte order.
    pub port: u16,
    /// DNS transaction id, host byte order.
    pub id: u16,
    /// IPPROTO_UDP or IPPROTO_TCP.
    pub protocol: u32,
}

/// A query in flight.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DnsPending {
    pub asker: Task,
    pub first_sent_ns: u64,
    pub last_sent_ns: u64,
    pub sends: u32,
    /// `STATE_*`.
    pub state: u32,
    /// Valid bytes in `question`.
    pub question_len: u32,
    /// The query's DNS flags, host byte order.
    pub flags: u16,
    /// QDCOUNT, host byte order.
    pub questions: u16,
    /// Answers that arrived and found the socket's receive buffer full.
    pub drops: u32,
    /// The bytes after the query's header. It is the last field, so that a copy can stop after `question_len` bytes.
    pub question: [u8; DNS_QUESTION_MAX],
}

impl DnsPending {
    /// A query that waits, with nothing filled in.
    pub const EMPTY: DnsPending = bytemuck::zeroed();
}

/// A query together with its response.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DnsRecord {
    pub key: DnsKey,
    pub pending: DnsPending,
    /// When the response came in.
    pub time_ns: u64,
    /// Length of the DNS message as the network carried it (for TCP: as its length prefix gives it).
    pub message_size: u32,
    /// Valid bytes in `message`.
    pub message_len: u32,
    /// `WHY_*`.
    pub why: u32,
    pub unused: u32,
    /// The response, from its header on.
    pub message: [u8; DNS_MESSAGE_MAX],
}

/// A socket that the network reported an error to (tracepoint `sock:inet_sk_error_report`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketError {
    pub cookie: u64,
    pub time_ns: u64,
    /// Positive errno.
    pub errno: u32,
    pub unused: u32,
}

const _: () = assert!(size_of::<CacheLine>() == 64);
const _: () = assert!(size_of::<DnsKey>() == 32);
const _: () = assert!(size_of::<DnsPending>() == 40 + 16 + 12 + 4 + 264);
const _: () = assert!(size_of::<DnsRecord>() == 32 + 336 + 24 + 512);
const _: () = assert!(size_of::<SocketError>() == 24);
