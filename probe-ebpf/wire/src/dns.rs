//! A DNS query in flight, and the record of its answer (RFC 1035).

use bytemuck::{Pod, Zeroable};

use crate::{DNS_HEADER_BYTES, Task};

/// Longest question kept: a name of 255 bytes, type and class, and one byte that shows an overrun, in whole words.
pub const DNS_QUESTION_MAX: usize = 264;
/// The same in words.
pub const DNS_QUESTION_WORDS: usize = DNS_QUESTION_MAX / 8;
/// Bytes of the response that travel with the record.
pub const DNS_MESSAGE_MAX: usize = 512;
/// How many server ports can be watched.
pub const DNS_PORTS_MAX: usize = 4;

/// `DnsPending::state`: the query waits for its answer.
pub const STATE_WAITING: u32 = 0;
/// User space has reported the timeout; an answer is late from now on.
pub const STATE_TIMED_OUT: u32 = 1;

/// The maps that each cgroup has a share of: `DNS_IN_FLIGHT`, `DNS_CONNECTIONS`, `DNS_SENDERS`.
pub const TABLE_QUERIES: u32 = 0;
pub const TABLE_CONNECTIONS: u32 = 1;
pub const TABLE_SENDERS: u32 = 2;
pub const TABLES: u32 = 3;

/// What is counted of each table: entries that the kernel side inserted, entries that it removed, and entries that user
/// space removed. Only user space writes the last one.
pub const USED_INSERTED: u32 = 0;
pub const USED_REMOVED: u32 = 1;
pub const USED_SWEPT: u32 = 2;
const USED_COUNTERS: u32 = 3;
/// Entries of the map `DNS_USED`.
pub const USED_MAX: u32 = TABLES * USED_COUNTERS;

/// The index into the map `DNS_USED` of one counter (`USED_*`) of a table (`TABLE_*`).
#[inline(always)]
pub const fn used_index(table: u32, counter: u32) -> u32 {
    table * USED_COUNTERS + counter
}

/// A key of the map `DNS_SWEPT`: a memory cgroup and a table (`TABLE_*`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SweptKey {
    pub cgroup_id: u64,
    pub table: u64,
}

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
/// It was drawn, one success in `DnsConfig::sample`. With none of these bits set it is not a plain success.
pub const WHY_SAMPLE: u32 = 4;
/// No reason to ship it, but a fact: the process has just asked for the A records of the same name, too.
pub const WHY_BESIDE_A: u32 = 8;
/// The bits of `DnsRecord::why` that are reasons.
pub const WHY_REASONS: u32 = WHY_ANSWER | WHY_SLOW | WHY_SAMPLE;

/// What makes an answer belong to a query. The server is part of it: some clients send one id to
/// several servers from one socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DnsKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Server address that the application gave, words in network order; IPv4 as `::ffff:a.b.c.d`. If another address is in
    /// the packet, this is [`DnsKey::rewritten_server`], the port is 0, and both are in [`DnsPending`].
    pub server: [u32; 4],
    /// Host byte order.
    pub port: u16,
    /// DNS transaction id, host byte order.
    pub id: u16,
    /// IPPROTO_UDP or IPPROTO_TCP.
    pub protocol: u32,
}

impl DnsKey {
    /// No address of a server: multicast.
    const REWRITTEN: u32 = u32::MAX;

    /// What stands in place of the server of a query whose address is rewritten, because its answer may come from either
    /// address. The number distinguishes queries with the same id.
    #[inline(always)]
    pub const fn rewritten_server(number: u32) -> [u32; 4] {
        [DnsKey::REWRITTEN, DnsKey::REWRITTEN, DnsKey::REWRITTEN, number]
    }

    /// Whether the query's address is rewritten.
    pub const fn is_rewritten(&self) -> bool {
        self.server[0] == DnsKey::REWRITTEN
    }
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
    /// The server that the application gave: as in `DnsKey`, unless that has a number in its place.
    pub server: [u32; 4],
    /// The address that the last packet went to, by [`fold_address`], if it is another one; 0: it is the same.
    pub went_to: u32,
    /// Port of `server`.
    pub port: u16,
    /// Port of the client's socket.
    pub local_port: u16,
    /// Type of the question, and how many bytes the question has; 0: there is none.
    pub qtype: u16,
    pub question_size: u16,
    /// By [`Question::scan`](crate::Question::scan); ignores case.
    pub name_hash: u32,
    pub unused: u32,
    /// The bytes after the query's header. It is the last field, so that a copy can stop after `question_len` bytes.
    pub question: [u8; DNS_QUESTION_MAX],
}

impl DnsPending {
    /// A query that waits, with nothing filled in.
    pub const EMPTY: DnsPending = bytemuck::zeroed();
}

/// Size of the length before a message over TCP (RFC 1035 §4.2.2).
pub const DNS_PREFIX_BYTES: usize = 2;
/// What is kept of a query that comes in several segments: its header and its question.
pub const DNS_QUERY_KEPT: usize = DNS_HEADER_BYTES + DNS_QUESTION_MAX;
/// What is kept of an answer that comes in several segments: its header.
pub const DNS_ANSWER_KEPT: usize = DNS_HEADER_BYTES;
/// A buffer for as many bytes of a message, and the length before it. It is twice as large as needed, because the verifier
/// adds the largest offset to the largest length.
const fn buffer(kept: usize) -> usize {
    2 * kept + 8
}

/// How far one direction of a TCP connection was read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DnsPosition {
    /// As in `DnsKey`.
    pub server: [u32; 4],
    /// Host byte order; 0: no segment was seen yet.
    pub port: u32,
    /// Sequence number of the next byte.
    pub next: u32,
    /// Bytes of the current message that are still to come and are not needed.
    pub skip: u32,
    /// Bytes that are held: the length, then the beginning of a message.
    pub held: u32,
    /// How far the current segment was read, and where it ends: offsets in the skb.
    pub at: u32,
    pub end: u32,
    /// 1: the position is a guess (the stream was first seen in its middle), so that a message must be plausible.
    pub is_unsure: u32,
    pub unused: u32,
}

/// A TCP connection to a DNS server.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DnsConnection {
    /// The task that opened it. Segments may be sent by a softirq, whose current task is not the sender.
    pub asker: Task,
    /// When the last segment was seen; 0: the kernel side is filling this entry.
    pub used_ns: u64,
    /// When the first segment was seen, normally the SYN.
    pub opened_ns: u64,
    pub query: DnsPosition,
    pub answer: DnsPosition,
    pub query_bytes: [u8; buffer(DNS_QUERY_KEPT)],
    pub answer_bytes: [u8; buffer(DNS_ANSWER_KEPT)],
}

impl DnsConnection {
    /// Nothing was seen of it.
    pub const EMPTY: DnsConnection = bytemuck::zeroed();
}

/// The server that a task gave to its last sendmsg on a socket that is not connected.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DnsSender {
    /// The task's memory cgroup when the entry was inserted, which it counts for.
    pub cgroup_id: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// As in `DnsKey`.
    pub server: [u32; 4],
    pub port: u64,
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

/// How many sockets and names the maps `DNS_ASKED`, `DNS_ANSWERED` and `DNS_A_NAMES` have slots for: powers of two. Two
/// that share a slot overwrite each other, which costs a needless record, or a fact that is not known.
pub const SOCKET_SLOTS: u32 = 4096;
pub const NAME_SLOTS: u32 = 16_384;

/// A slot of the map `DNS_ASKED`: how many queries a socket sent since it has the slot. It is apart from [`AnsweredSlot`],
/// because queries and answers are handled on different CPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AskedSlot {
    pub cookie: u64,
    pub queries: u64,
}

/// A slot of the map `DNS_ANSWERED`: how many queries of a socket were answered, and the last ones of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AnsweredSlot {
    pub cookie: u64,
    pub queries: u64,
    /// When the last answer came.
    pub time_ns: u64,
    /// The transaction ids of the last four answers that a client accepts as the answer to its question (NOERROR, NXDOMAIN,
    /// truncated), 16 bits each, the last one lowest.
    pub ids: u64,
    /// The class (`ANSWER_*`) of the last answer.
    pub class: u64,
}

/// A socket was closed while queries that it sent had no answer, or a TCP connection to a DNS server could not be made.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketClosed {
    pub cookie: u64,
    pub time_ns: u64,
    /// As in [`AnsweredSlot`]; 0: no answer is known.
    pub answered_ns: u64,
    pub answered_ids: u64,
    pub answered_class: u32,
    /// Positive errno of the socket; 0: it has none.
    pub errno: u32,
    /// IPPROTO_UDP or IPPROTO_TCP.
    pub protocol: u32,
    /// TCP: 1 if the connection was never established. Only then the fields that follow are set.
    pub never_connected: u32,
    pub opened_ns: u64,
    /// As in `DnsKey`.
    pub server: [u32; 4],
    pub port: u32,
    pub unused: u32,
    pub asker: Task,
}

impl SocketClosed {
    /// With nothing filled in.
    pub const EMPTY: SocketClosed = bytemuck::zeroed();
}

/// A datagram that looks like an answer, and belongs to no query in flight of its socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct StrayAnswer {
    /// The socket that it came to; 0: it came to no socket.
    pub cookie: u64,
    pub time_ns: u64,
    /// Where it came from, as in `DnsKey`.
    pub server: [u32; 4],
    pub port: u16,
    /// The port that it came to; 0: see `cookie`.
    pub local_port: u16,
    pub id: u16,
    pub unused: u16,
}

const _: () = assert!(size_of::<CacheLine>() == 64);
const _: () = assert!(size_of::<DnsKey>() == 32);
const _: () = assert!(size_of::<DnsPending>() == 40 + 16 + 12 + 8 + 36 + 264);
const _: () = assert!(size_of::<DnsConnection>() == 40 + 16 + 2 * 48 + 560 + 32);
const _: () = assert!(size_of::<DnsSender>() == 40);
const _: () = assert!(size_of::<DnsRecord>() == 32 + 376 + 24 + 512);
const _: () = assert!(size_of::<SocketError>() == 24);
const _: () = assert!(size_of::<SocketClosed>() == 120);
const _: () = assert!(size_of::<StrayAnswer>() == 40);
/// The question is scanned by words.
const _: () = assert!(core::mem::offset_of!(DnsPending, question).is_multiple_of(8));
