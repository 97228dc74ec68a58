//! DNS: cgroup_skb both ways, at the root of the v2 hierarchy.
//!
//! A query is stored when it leaves, in the context of its asker. Its answer finds it by socket, server and transaction
//! id. When a packet comes in, the current task is the one that was interrupted, so it is never used for attribution.
//! User space reports what stays in `DNS_IN_FLIGHT` too long as timeouts.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_probe_read_kernel_buf},
    macros::{cgroup_skb, cgroup_sock_addr},
    programs::{SkBuffContext, SockAddrContext},
};
use podopsy_wire::{
    ANSWER_NODATA, DNS_ANSWER_KEPT, DNS_MESSAGE_MAX, DNS_QUERY_KEPT, DNS_QUESTION_MAX, DNS_QUESTION_WORDS,
    DnsHeader, DnsKey, DnsPending, DnsRecord, Loss, Question, STATE_WAITING, TABLE_QUERIES, TYPE_AAAA, Task,
    WHY_ANSWER, WHY_BESIDE_A, WHY_SAMPLE, WHY_SLOW,
};

use crate::{
    dns_connection, dns_counts,
    dns_message::{Bytes, HEADER, InMemory, InPacket, Message},
    dns_packet::{self, Direction, TCP, UDP},
    dns_records, dns_sendmsg, dns_share, dns_slots, dns_socket, dns_stray,
    dns_stream::{self, MessageBytes, Stream},
    maps::{CONFIG, DNS_EVENTS, DNS_HTTPS, DNS_IN_FLIGHT, count, dns_setting},
    task,
};

/// The initial value of an entry of `DNS_IN_FLIGHT`; too big for the BPF stack.
static EMPTY: DnsPending = DnsPending::EMPTY;
/// The verdict of cgroup_skb: let the packet pass. podopsy never drops a packet.
const PASS: i32 = 1;
const BPF_NOEXIST: u64 = 1;

#[cgroup_skb]
pub fn dns_egress(ctx: SkBuffContext) -> i32 {
    let _ = handle_packet(&ctx, Direction::Query);
    PASS
}

#[cgroup_skb]
pub fn dns_ingress(ctx: SkBuffContext) -> i32 {
    let _ = handle_packet(&ctx, Direction::Answer);
    PASS
}

/// Tail-called by [`dns_stream`] for each message of a segment that leaves.
#[cgroup_skb]
pub fn dns_tcp_egress(ctx: SkBuffContext) -> i32 {
    let _ = handle_tcp_message(&ctx, Direction::Query);
    PASS
}

/// Tail-called by [`dns_stream`] for each message of a segment that comes in.
#[cgroup_skb]
pub fn dns_tcp_ingress(ctx: SkBuffContext) -> i32 {
    let _ = handle_tcp_message(&ctx, Direction::Answer);
    PASS
}

#[inline(always)]
fn handle_packet(ctx: &SkBuffContext, direction: Direction) -> Option<()> {
    let mut packet = dns_packet::parse(ctx, direction)?;
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let mut went_to = 0;
    if direction == Direction::Query {
        match dns_packet::peer(ctx) {
            Some(peer) => packet.server = peer,
            None if packet.protocol == UDP => went_to = dns_sendmsg::replace_server(&mut packet, cookie),
            None => {}
        }
    }
    if packet.protocol == TCP {
        return dns_stream::begin(ctx, &packet, cookie, direction);
    }
    if direction == Direction::Answer {
        dns_socket::start_datagram();
    }
    let (at, size, available) = dns_packet::datagram(ctx, &packet)?;
    if available < HEADER {
        count(Loss::DnsShort);
        return None;
    }
    let message = Message {
        server: packet.server,
        port: packet.port,
        local_port: packet.local_port,
        protocol: UDP,
        cookie,
        asker: core::ptr::null(),
        went_to,
        size,
        available,
        bytes: InPacket { ctx, at },
    };
    let header = message.header()?;
    handle_message(&message, &header, direction)
}

#[inline(always)]
fn handle_tcp_message(ctx: &SkBuffContext, direction: Direction) -> Option<()> {
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let connection = dns_connection::find(cookie)?;
    // SAFETY: a map value; a removal recycles the slot, it does not unmap it.
    let connection = unsafe { &mut *connection };
    let asker = &raw const connection.asker;
    match direction {
        Direction::Query => {
            let stream = Stream::<DNS_QUERY_KEPT>::new(&mut connection.query, &mut connection.query_bytes);
            handle_stream(ctx, cookie, asker, stream, direction)
        }
        Direction::Answer => {
            let stream = Stream::<DNS_ANSWER_KEPT>::new(&mut connection.answer, &mut connection.answer_bytes);
            handle_stream(ctx, cookie, asker, stream, direction)
        }
    }
}

/// Handles the next message of a stream, and goes on with the one after it.
#[inline(always)]
fn handle_stream<const KEPT: usize>(
    ctx: &SkBuffContext,
    cookie: u64,
    asker: *const Task,
    mut stream: Stream<KEPT>,
    direction: Direction,
) -> Option<()> {
    let found = dns_stream::next(ctx, &mut stream)?;
    let position = stream.position;
    let (server, port, local_port, protocol) = (position.server, position.port as u16, 0, TCP);
    let (size, available, went_to) = (found.size, found.available, 0);
    match found.bytes {
        MessageBytes::InPacket(at) => {
            let bytes = InPacket { ctx, at };
            let message = Message {
                server,
                port,
                local_port,
                protocol,
                cookie,
                asker,
                went_to,
                size,
                available,
                bytes,
            };
            let header = message.header()?;
            if dns_stream::accept(position, direction, &header) {
                let _ = handle_message(&message, &header, direction);
            }
        }
        MessageBytes::InMemory(at) => {
            let bytes = InMemory(at);
            let message = Message {
                server,
                port,
                local_port,
                protocol,
                cookie,
                asker,
                went_to,
                size,
                available,
                bytes,
            };
            let header = message.header()?;
            if dns_stream::accept(position, direction, &header) {
                let _ = handle_message(&message, &header, direction);
            }
        }
    }
    dns_stream::continue_segment(ctx, position, direction);
    None
}

/// Only queries go to a server and only responses come from one. What a server on this node receives and sends is the
/// other end of the same packets, and has the ports of its clients.
#[inline(always)]
fn handle_message<B: Bytes>(message: &Message<B>, header: &DnsHeader, direction: Direction) -> Option<()> {
    match direction {
        Direction::Query if header.is_query() => handle_query(message, header),
        Direction::Query if !header.is_response() || !dns_packet::is_dns(message.local_port) => {
            count_not_dns(message)
        }
        Direction::Answer if header.is_response() => handle_answer(message, header),
        _ => None,
    }
}

/// Counts a message to a server's port that is not DNS, for example a packet of a tunnel.
#[inline(always)]
fn count_not_dns<B: Bytes>(message: &Message<B>) -> Option<()> {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let counters = dns_counts::find_or_insert(asker(message).cgroup_id, now)?;
    // SAFETY: a map value.
    dns_counts::add(unsafe { &raw mut (*counters).not_dns });
    Some(())
}

/// Stores a query. It must not log: a program that makes tail calls may not make the log's calls (`task::comm`).
#[inline(always)]
fn handle_query<B: Bytes>(message: &Message<B>, header: &DnsHeader) -> Option<()> {
    let mut key = message.key(header.id);
    if message.went_to != 0 {
        key = dns_sendmsg::rewritten_key(&key);
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // Identified before the entry is inserted: the sweep in user space must not find an entry that stays unfilled for
    // long.
    let asker = asker(message);
    let counters = dns_counts::find_or_insert(asker.cgroup_id, now);
    let has_share = dns_share::has_share(counters, asker.cgroup_id, TABLE_QUERIES);
    // Insert first and look up only if that is refused: most queries are new.
    let mut inserted = has_share && DNS_IN_FLIGHT.insert(key, &EMPTY, BPF_NOEXIST).is_ok();
    if !inserted && let Some(pending) = DNS_IN_FLIGHT.get_ptr_mut(key) {
        // SAFETY: a map value; a concurrent removal recycles the slot, it does not unmap it.
        unsafe {
            if (*pending).state == STATE_WAITING {
                (*pending).sends += 1;
                (*pending).last_sent_ns = now;
                (*pending).went_to = message.went_to;
                if let Some(counters) = dns_counts::find_or_insert((*pending).asker.cgroup_id, now) {
                    dns_counts::add(&raw mut (*counters).resends);
                }
                return Some(());
            }
        }
        // Its timeout has been reported: this is a new attempt, and a new transaction. It takes the place of the old
        // one, and needs no share.
        if DNS_IN_FLIGHT.remove(key).is_ok() {
            dns_share::count_removed(counters, TABLE_QUERIES);
        }
        inserted = DNS_IN_FLIGHT.insert(key, &EMPTY, BPF_NOEXIST).is_ok();
    }
    if let Some(counters) = counters {
        // SAFETY: a map value.
        dns_counts::add(unsafe { &raw mut (*counters).queries });
    }
    if !inserted {
        count(if has_share { Loss::DnsInFlight } else { Loss::DnsOverShare });
        if let Some(counters) = counters {
            // SAFETY: a map value.
            dns_counts::add(unsafe { &raw mut (*counters).untracked });
        }
        return None;
    }
    dns_share::count_inserted(counters, TABLE_QUERIES);
    let pending = DNS_IN_FLIGHT.get_ptr_mut(key)?;
    let len = (message.available - HEADER).min(DNS_QUESTION_MAX as u32);
    // SAFETY: a map value, as above; `copy` writes at most the size of `question` into it.
    unsafe {
        (*pending).asker = asker;
        (*pending).first_sent_ns = now;
        (*pending).last_sent_ns = now;
        (*pending).sends = 1;
        (*pending).flags = header.flags;
        (*pending).questions = header.questions;
        (*pending).server = message.server;
        (*pending).port = message.port;
        (*pending).went_to = message.went_to;
        (*pending).local_port = message.local_port;
        let question = (&raw mut (*pending).question).cast();
        let len = message.bytes.copy::<DNS_QUESTION_MAX>(HEADER, question, len);
        (*pending).question_len = len;
        let words = &*(&raw const (*pending).question).cast::<[u64; DNS_QUESTION_WORDS]>();
        let Question { qtype, size, name_hash } = Question::scan(words, len);
        ((*pending).qtype, (*pending).question_size, (*pending).name_hash) = (qtype, size, name_hash);
        dns_slots::note_question(name_hash, qtype, asker.pid, now);
    }
    dns_slots::count_asked(message.cookie);
    if asker.pid == 0 {
        count(Loss::DnsAsker);
    }
    Some(())
}

/// The task that sent a query. UDP is sent in its sender's context. TCP may be sent by a softirq, so the task that opened
/// the connection is taken.
#[inline(always)]
fn asker<B: Bytes>(message: &Message<B>) -> Task {
    if !message.asker.is_null() {
        // SAFETY: a map value of plain integers.
        return unsafe { *message.asker };
    }
    task::identify(task::current(), &CONFIG.load())
}

/// Finds the query of a response, counts the answer, and ships both unless it is a plain success.
#[inline(always)]
fn handle_answer<B: Bytes>(message: &Message<B>, header: &DnsHeader) -> Option<()> {
    let mut key = message.key(header.id);
    let pending = match DNS_IN_FLIGHT.get_ptr(key) {
        Some(pending) => pending,
        None if message.protocol == UDP => {
            let Some(rewritten) = dns_sendmsg::find_rewritten(&key) else {
                dns_stray::at_socket(key.cookie, key.server, key.port, key.id);
                return None;
            };
            key = rewritten;
            DNS_IN_FLIGHT.get_ptr(key)?
        }
        None => return None,
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: a map value of plain integers.
    let (state, question_len, sent_ns, cgroup_id) = unsafe {
        ((*pending).state, (*pending).question_len, (*pending).first_sent_ns, (*pending).asker.cgroup_id)
    };
    // SAFETY: as above.
    let (qtype, question_size) = unsafe { ((*pending).qtype, (*pending).question_size) };
    let class = dns_records::class(message, header, qtype, question_size);
    let latency_ns = now.saturating_sub(sent_ns);
    // Of a datagram only the bytes in this skb count; a segment may end before its message does.
    let size = if message.protocol == TCP { message.size } else { message.available };
    let is_plain = header.is_plain_success(class, state, question_len, size);
    let slow_ns = dns_setting!(slow_us) as u64 * 1000;
    let mut why = 0;
    if slow_ns != 0 && latency_ns >= slow_ns {
        why |= WHY_SLOW;
    }
    if is_plain {
        let sample = dns_setting!(sample);
        // SAFETY: the helper has no preconditions.
        if sample != 0 && unsafe { bpf_get_prandom_u32() } % sample == 0 {
            why |= WHY_SAMPLE;
        }
    }
    // Also set if it is not plain: user space may find that it is a success after all.
    if dns_setting!(answers) != 0 {
        why |= WHY_ANSWER;
    }
    let is_due = !is_plain || why != 0;
    if class == ANSWER_NODATA && qtype == TYPE_AAAA && dns_slots::is_beside_a(pending, now) {
        why |= WHY_BESIDE_A;
    }
    let counters = dns_counts::find_or_insert(cgroup_id, now);
    match counters {
        Some(counters) => {
            if state == STATE_WAITING {
                dns_counts::count_answer(counters, class, latency_ns, 1);
            } else {
                // SAFETY: a map value.
                dns_counts::add(unsafe { &raw mut (*counters).late });
            }
            // Successes have a bucket of their own, so that they cannot displace failures.
            let paid = if is_plain {
                // SAFETY: a map value.
                unsafe { &raw mut (*counters).paid_answers_ns }
            } else {
                // SAFETY: a map value.
                unsafe { &raw mut (*counters).paid_failures_ns }
            };
            if is_due
                && dns_counts::take_token(counters, paid, now)
                && !ship(message, &key, pending, now, why)
            {
                // SAFETY: a map value.
                dns_counts::add(unsafe { &raw mut (*counters).ring_full });
            }
        }
        None if is_due => {
            ship(message, &key, pending, now, why);
        }
        None => {}
    }
    dns_slots::count_answered(message.cookie, header.id, class, now);
    if message.protocol == UDP && state == STATE_WAITING {
        dns_socket::keep_answered(&key, pending, class, now);
    }
    if DNS_IN_FLIGHT.remove(key).is_ok() {
        dns_share::count_removed(counters, TABLE_QUERIES);
    }
    Some(())
}

/// Writes the record of an answered query; false: the ring is full.
#[inline(always)]
fn ship<B: Bytes>(
    message: &Message<B>,
    key: &DnsKey,
    pending: *const DnsPending,
    now: u64,
    why: u32,
) -> bool {
    let Some(mut entry) = DNS_EVENTS.reserve::<DnsRecord>(0) else {
        count(Loss::DnsRing);
        return false;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` is the reserved entry, written whole before the submit but for the bytes of
    // `message` past `message_len`, which are not read; `pending` is a map value.
    unsafe {
        (*record).key = *key;
        // One helper call instead of a loop over 336 bytes.
        let _ = bpf_probe_read_kernel_buf(
            pending.cast(),
            core::slice::from_raw_parts_mut((&raw mut (*record).pending).cast(), size_of::<DnsPending>()),
        );
        (*record).time_ns = now;
        (*record).message_size = message.size;
        (*record).why = why;
        (*record).unused = 0;
        let to = (&raw mut (*record).message).cast();
        let len = message.available.min(DNS_MESSAGE_MAX as u32);
        (*record).message_len = message.bytes.copy::<DNS_MESSAGE_MAX>(0, to, len);
    }
    entry.submit(0);
    true
}

#[cgroup_sock_addr(connect4)]
pub fn dns_connect4(ctx: SockAddrContext) -> i32 {
    handle_connect(&ctx, dns_sendmsg::ipv4);
    PASS
}

#[cgroup_sock_addr(connect6)]
pub fn dns_connect6(ctx: SockAddrContext) -> i32 {
    handle_connect(&ctx, dns_sendmsg::ipv6);
    PASS
}

/// A TCP connection for DNS over TLS (RFC 7858) or HTTPS is counted, because its queries cannot be seen.
#[inline(always)]
fn handle_connect(ctx: &SockAddrContext, address: fn(&SockAddrContext) -> [u32; 4]) {
    const TLS: u16 = 853;
    const HTTPS: u16 = 443;
    // SAFETY: the context is this program's own; the fields are readable in connect hooks.
    let (port, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    let port = u16::from_be(port as u16);
    if protocol != TCP || dns_packet::is_dns(port) {
        return;
    }
    if port != TLS && (port != HTTPS || DNS_HTTPS.get_ptr(address(ctx)).is_none()) {
        return;
    }
    let task = task::identify(task::current(), &CONFIG.load());
    // SAFETY: the helper has no preconditions.
    if let Some(counters) = dns_counts::find_or_insert(task.cgroup_id, unsafe { bpf_ktime_get_boot_ns() }) {
        // SAFETY: a map value.
        dns_counts::add(match port {
            TLS => unsafe { &raw mut (*counters).tls },
            _ => unsafe { &raw mut (*counters).https },
        });
    }
}
