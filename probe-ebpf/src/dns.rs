//! DNS: cgroup_skb both ways, at the root of the v2 hierarchy.
//!
//! A query is remembered on its way out, in its asker's context; its answer finds it by socket,
//! server and transaction id. On the way in, the current task is whoever was interrupted: it is
//! never asked. User space turns what stays in `DNS_IN_FLIGHT` too long into timeouts.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_probe_read_kernel_buf},
    macros::{cgroup_skb, cgroup_sock_addr},
    programs::{SkBuffContext, SockAddrContext},
};
use podopsy_wire::{
    DNS_MESSAGE_MAX, DNS_QUESTION_MAX, DnsKey, DnsPending, DnsRecord, Loss, STATE_WAITING, Task, WHY_ANSWER,
    WHY_SAMPLE, WHY_SLOW,
};

use crate::{
    dns_counts, dns_named, dns_socket,
    maps::{CONFIG, DNS_CONNECTED, DNS_EVENTS, DNS_HTTPS, DNS_IN_FLIGHT, count, dns_setting},
    message::{Bytes, HEADER, Header, Held, InPacket, Message},
    packet::{self, Direction, TCP, UDP},
    stream::{self, Place},
    task,
};

/// What a new entry of `DNS_IN_FLIGHT` starts from; too big for the BPF stack.
static EMPTY: DnsPending = DnsPending::EMPTY;
/// cgroup_skb's verdict: let it pass. podopsy never drops anyone's packet.
const PASS: i32 = 1;
const BPF_NOEXIST: u64 = 1;

#[cgroup_skb]
pub fn dns_egress(ctx: SkBuffContext) -> i32 {
    let _ = packet(&ctx, Direction::Query);
    PASS
}

#[cgroup_skb]
pub fn dns_ingress(ctx: SkBuffContext) -> i32 {
    let _ = packet(&ctx, Direction::Answer);
    PASS
}

/// Called by [`stream`] for each message of a segment.
#[cgroup_skb]
pub fn dns_tcp_egress(ctx: SkBuffContext) -> i32 {
    let _ = tcp_message(&ctx, Direction::Query);
    PASS
}

/// The same for segments that come in.
#[cgroup_skb]
pub fn dns_tcp_ingress(ctx: SkBuffContext) -> i32 {
    let _ = tcp_message(&ctx, Direction::Answer);
    PASS
}

#[inline(always)]
fn packet(ctx: &SkBuffContext, direction: Direction) -> Option<()> {
    let mut packet = packet::parse(ctx, direction)?;
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if direction == Direction::Query {
        match packet::peer(ctx) {
            Some(peer) => packet.server = peer,
            None if packet.protocol == UDP => dns_named::of_query(&mut packet, cookie),
            None => {}
        }
    }
    if packet.protocol == TCP {
        return stream::begin(ctx, &packet, cookie, direction);
    }
    if direction == Direction::Answer {
        dns_socket::next_datagram();
    }
    let (at, size, available) = packet::datagram(ctx, &packet)?;
    if available < HEADER {
        count(Loss::DnsShort);
        return None;
    }
    let message = Message {
        server: packet.server,
        port: packet.port,
        protocol: UDP,
        cookie,
        size,
        available,
        bytes: InPacket { ctx, at },
    };
    let header = message.header()?;
    take(&message, &header, direction)
}

#[inline(always)]
fn tcp_message(ctx: &SkBuffContext, direction: Direction) -> Option<()> {
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let stream = stream::current(cookie, direction)?;
    // SAFETY: a map value; an eviction recycles the slot, it does not unmap it.
    let stream = unsafe { &mut *stream };
    let found = stream::next(ctx, stream, direction)?;
    let (server, port, protocol) = (stream.server, stream.port as u16, TCP);
    let (size, available) = (found.size, found.available);
    match found.place {
        Place::Packet(at) => {
            let bytes = InPacket { ctx, at };
            let message = Message { server, port, protocol, cookie, size, available, bytes };
            let header = message.header()?;
            if stream::believe(stream, direction, header.flags, header.questions) {
                let _ = take(&message, &header, direction);
            }
        }
        Place::Held(at) => {
            let message = Message { server, port, protocol, cookie, size, available, bytes: Held(at) };
            let header = message.header()?;
            if stream::believe(stream, direction, header.flags, header.questions) {
                let _ = take(&message, &header, direction);
            }
        }
    }
    stream::go_on(ctx, stream, direction);
    None
}

/// Only queries go to a server and only responses come from one; what a server on this node sends and gets is the
/// other end of the same packets, and goes by the ports of its clients.
#[inline(always)]
fn take<B: Bytes>(message: &Message<B>, header: &Header, direction: Direction) -> Option<()> {
    match direction {
        Direction::Query if !header.is_response() => query(message, header),
        Direction::Answer if header.is_response() => answer(message, header),
        _ => None,
    }
}

/// Remembers a query. Logs nothing: the log's calls must not be where tail calls are (`task::comm`).
#[inline(always)]
fn query<B: Bytes>(message: &Message<B>, header: &Header) -> Option<()> {
    let key = message.key(header.id);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // Known before there is an entry: the sweep in user space must not find one that is still to be filled for long.
    let asker = asker(&key);
    // Inserted first, and looked at if that was refused: most queries are new ones.
    let mut inserted = DNS_IN_FLIGHT.insert(key, &EMPTY, BPF_NOEXIST).is_ok();
    if !inserted && let Some(pending) = DNS_IN_FLIGHT.get_ptr_mut(key) {
        // SAFETY: a map value; a concurrent eviction recycles the slot, it does not unmap it.
        unsafe {
            if (*pending).state == STATE_WAITING {
                (*pending).sends += 1;
                (*pending).last_sent_ns = now;
                if let Some(counters) = dns_counts::of((*pending).asker.cgroup_id, now) {
                    dns_counts::add(&raw mut (*counters).resends);
                }
                return Some(());
            }
        }
        // Its timeout has been told: this is a new try, and a new transaction.
        let _ = DNS_IN_FLIGHT.remove(key);
        count(Loss::DnsRemoved);
        inserted = DNS_IN_FLIGHT.insert(key, &EMPTY, BPF_NOEXIST).is_ok();
    }
    if !inserted {
        count(Loss::DnsInFlight);
        return None;
    }
    count(Loss::DnsInserted);
    let pending = DNS_IN_FLIGHT.get_ptr_mut(key)?;
    let room = (message.available - HEADER).min(DNS_QUESTION_MAX as u32);
    // SAFETY: a map value, as above; `copy` writes at most the size of `question` into it.
    unsafe {
        (*pending).asker = asker;
        (*pending).first_sent_ns = now;
        (*pending).last_sent_ns = now;
        (*pending).sends = 1;
        (*pending).flags = header.flags;
        (*pending).questions = header.questions;
        let question = (&raw mut (*pending).question).cast();
        (*pending).question_len = message.bytes.copy::<DNS_QUESTION_MAX>(HEADER, question, room);
    }
    if asker.pid == 0 {
        count(Loss::DnsAsker);
    }
    if let Some(counters) = dns_counts::of(asker.cgroup_id, now) {
        // SAFETY: a map value.
        dns_counts::add(unsafe { &raw mut (*counters).queries });
    }
    Some(())
}

/// UDP is sent in its sender's context. TCP may be sent by a softirq, so that the task that
/// connected is asked for first.
#[inline(always)]
fn asker(key: &DnsKey) -> Task {
    if key.protocol == TCP
        && let Some(task) = DNS_CONNECTED.get_ptr(key.cookie)
    {
        // SAFETY: a map value of plain integers.
        return unsafe { *task };
    }
    task::identify(task::current(), &CONFIG.load().layout)
}

/// Finds the query that a response answers, counts it, and ships the pair unless it is a plain success.
#[inline(always)]
fn answer<B: Bytes>(message: &Message<B>, header: &Header) -> Option<()> {
    let mut key = message.key(header.id);
    let pending = match DNS_IN_FLIGHT.get_ptr(key) {
        Some(pending) => pending,
        None if message.protocol == UDP => {
            key = dns_named::of_answer(&key)?;
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
    let latency_ns = now.saturating_sub(sent_ns);
    // Of a datagram only what is here counts; a segment may end before its message does.
    let size = if message.protocol == TCP { message.size } else { message.available };
    // A success that has room for what it must hold: header, what stood behind the query's header,
    // and an answer of at least a pointer and the fixed fields (12 bytes). Anything shorter (and the
    // rare honest one whose server left the query's EDNS out) goes to user space to be judged.
    let plain = state == STATE_WAITING
        && header.rcode() == 0
        && header.answers > 0
        && header.questions == 1
        && !header.is_truncated()
        && question_len > 0
        && size >= HEADER + question_len + 12;
    let slow_ns = dns_setting!(slow_us) as u64 * 1000;
    let mut why = 0;
    if slow_ns != 0 && latency_ns >= slow_ns {
        why |= WHY_SLOW;
    }
    if plain {
        let sample = dns_setting!(sample);
        // SAFETY: the helper has no preconditions.
        if sample != 0 && unsafe { bpf_get_prandom_u32() } % sample == 0 {
            why |= WHY_SAMPLE;
        }
    }
    // Also of what is not plain: user space may find that it is a success after all.
    if dns_setting!(answers) != 0 {
        why |= WHY_ANSWER;
    }
    let is_due = !plain || why != 0;
    let class = dns_counts::class(header.rcode(), header.answers, header.is_truncated());
    match dns_counts::of(cgroup_id, now) {
        Some(counters) => {
            if state == STATE_WAITING {
                dns_counts::answered(counters, class, latency_ns, 1);
            } else {
                // SAFETY: a map value.
                dns_counts::add(unsafe { &raw mut (*counters).late });
            }
            // A bucket of their own: successes that someone wants to see must not cost a failure.
            // SAFETY: a map value.
            let paid = match plain {
                true => unsafe { &raw mut (*counters).paid_answers_ns },
                false => unsafe { &raw mut (*counters).paid_failures_ns },
            };
            if is_due && dns_counts::may_ship(counters, paid, now) && !ship(message, &key, pending, now, why)
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
    if message.protocol == UDP && state == STATE_WAITING {
        dns_socket::handed_over(&key, pending, class, now);
    }
    if DNS_IN_FLIGHT.remove(key).is_ok() {
        count(Loss::DnsRemoved);
    }
    Some(())
}

/// False: there is no room.
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
    // `message` past `message_len`, which nobody reads; `pending` is a map value.
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
        let room = message.available.min(DNS_MESSAGE_MAX as u32);
        (*record).message_len = message.bytes.copy::<DNS_MESSAGE_MAX>(0, to, room);
    }
    entry.submit(0);
    true
}

#[cgroup_sock_addr(connect4)]
pub fn dns_connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, dns_named::ipv4);
    PASS
}

#[cgroup_sock_addr(connect6)]
pub fn dns_connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, dns_named::ipv6);
    PASS
}

/// TCP to a DNS server: who connects is remembered. DNS over TLS (RFC 7858) or HTTPS: it is counted, because what
/// is asked there cannot be seen.
#[inline(always)]
fn connect(ctx: &SockAddrContext, address: fn(&SockAddrContext) -> [u32; 4]) {
    const TLS: u16 = 853;
    const HTTPS: u16 = 443;
    // SAFETY: the context is this program's own; the fields are readable in connect hooks.
    let (port, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    let port = u16::from_be(port as u16);
    if protocol != TCP {
        return;
    }
    let is_dns = packet::is_dns(port);
    if !is_dns && port != TLS && (port != HTTPS || DNS_HTTPS.get_ptr(address(ctx)).is_none()) {
        return;
    }
    let task = task::identify(task::current(), &CONFIG.load().layout);
    if is_dns {
        // SAFETY: as above.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        if DNS_CONNECTED.insert(cookie, task, 0).is_err() {
            count(Loss::DnsConnected);
        }
        return;
    }
    // SAFETY: the helper has no preconditions.
    if let Some(counters) = dns_counts::of(task.cgroup_id, unsafe { bpf_ktime_get_boot_ns() }) {
        // SAFETY: a map value.
        dns_counts::add(match port {
            TLS => unsafe { &raw mut (*counters).tls },
            _ => unsafe { &raw mut (*counters).https },
        });
    }
}
