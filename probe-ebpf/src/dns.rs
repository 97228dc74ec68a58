//! DNS: cgroup_skb both ways, at the root of the v2 hierarchy.
//!
//! A query is remembered on its way out, in its asker's context; its answer finds it by socket,
//! server and transaction id. On the way in, the current task is whoever was interrupted: it is
//! never asked. User space turns what stays in `DNS_IN_FLIGHT` too long into timeouts.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_probe_read_kernel_buf, bpf_skb_load_bytes},
    macros::{cgroup_skb, cgroup_sock_addr, kprobe, raw_tracepoint},
    programs::{ProbeContext, RawTracePointContext, SkBuffContext, SockAddrContext},
};
use aya_log_ebpf::debug;
use podopsy_wire::{
    Config, DNS_MESSAGE_MAX, DNS_QUESTION_MAX, DnsKey, DnsPending, DnsRecord, Loss, STATE_WAITING,
    SocketError, Task,
};

use crate::{
    maps::{CONFIG, DNS_CONNECTED, DNS_EVENTS, DNS_IN_FLIGHT, count},
    packet::{self, Direction, Packet, TCP},
    task,
};

const HEADER: u32 = 12;
/// What a new entry of `DNS_IN_FLIGHT` starts from; too big for the BPF stack.
static EMPTY: DnsPending = DnsPending::EMPTY;
/// cgroup_skb's verdict: let it pass. podopsy never drops anyone's packet.
const PASS: i32 = 1;

#[cgroup_skb]
pub fn dns_egress(ctx: SkBuffContext) -> i32 {
    let _ = query(&ctx);
    PASS
}

#[cgroup_skb]
pub fn dns_ingress(ctx: SkBuffContext) -> i32 {
    let _ = answer(&ctx);
    PASS
}

/// The fixed header, RFC 1035 §4.1.1.
struct Header {
    id: u16,
    flags: u16,
    questions: u16,
    answers: u16,
}

impl Header {
    #[inline(always)]
    fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    #[inline(always)]
    fn rcode(&self) -> u16 {
        self.flags & 0x000f
    }

    #[inline(always)]
    fn is_truncated(&self) -> bool {
        self.flags & 0x0200 != 0
    }
}

#[inline(always)]
fn header(ctx: &SkBuffContext, packet: &Packet) -> Option<Header> {
    if packet.available < HEADER {
        count(Loss::DnsShort);
        return None;
    }
    let raw: [u8; 8] = ctx.load(packet.message as usize).ok()?;
    Some(Header {
        id: u16::from_be_bytes([raw[0], raw[1]]),
        flags: u16::from_be_bytes([raw[2], raw[3]]),
        questions: u16::from_be_bytes([raw[4], raw[5]]),
        answers: u16::from_be_bytes([raw[6], raw[7]]),
    })
}

#[inline(always)]
fn key(ctx: &SkBuffContext, packet: &Packet, id: u16) -> DnsKey {
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    DnsKey { cookie, server: packet.server, port: packet.port, id, protocol: packet.protocol }
}

/// Remembers a query.
#[inline(always)]
fn query(ctx: &SkBuffContext) -> Option<()> {
    let config = CONFIG.load();
    let packet = packet::parse(ctx, &config, Direction::Query)?;
    let header = header(ctx, &packet)?;
    if header.is_response() {
        return None;
    }
    let key = key(ctx, &packet, header.id);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if let Some(pending) = DNS_IN_FLIGHT.get_ptr_mut(key) {
        // SAFETY: a map value; a concurrent eviction recycles the slot, it does not unmap it.
        unsafe {
            if (*pending).state == STATE_WAITING {
                (*pending).sends += 1;
                (*pending).last_sent_ns = now;
                return Some(());
            }
        }
        // Its timeout has been told: this is a new try, and a new transaction.
        let _ = DNS_IN_FLIGHT.remove(key);
        count(Loss::DnsRemoved);
    }
    let asker = asker(&config, &key);
    if DNS_IN_FLIGHT.insert(key, &EMPTY, 0).is_err() {
        count(Loss::DnsInFlight);
        return None;
    }
    count(Loss::DnsInserted);
    let pending = DNS_IN_FLIGHT.get_ptr_mut(key)?;
    let room = (packet.available - HEADER).min(DNS_QUESTION_MAX as u32);
    // SAFETY: a map value, as above; `copy` writes at most the size of `question` into it.
    unsafe {
        (*pending).asker = asker;
        (*pending).first_sent_ns = now;
        (*pending).last_sent_ns = now;
        (*pending).sends = 1;
        (*pending).flags = header.flags;
        (*pending).questions = header.questions;
        let question = (&raw mut (*pending).question).cast();
        (*pending).question_len = copy::<DNS_QUESTION_MAX>(ctx, packet.message + HEADER, question, room);
    }
    debug!(ctx, "query {} from {}", header.id, asker.pid);
    Some(())
}

/// UDP is sent in its sender's context. TCP may be sent by a softirq, so that the task that
/// connected is asked for first.
#[inline(always)]
fn asker(config: &Config, key: &DnsKey) -> Task {
    if key.protocol == TCP
        && let Some(task) = DNS_CONNECTED.get_ptr(key.cookie)
    {
        // SAFETY: a map value of plain integers.
        return unsafe { *task };
    }
    let task = task::identify(task::current(), &config.layout);
    if task.pid == 0 {
        count(Loss::DnsAsker);
    }
    task
}

/// Finds the query that a response answers; ships the pair unless it is a plain success.
#[inline(always)]
fn answer(ctx: &SkBuffContext) -> Option<()> {
    let config = CONFIG.load();
    let packet = packet::parse(ctx, &config, Direction::Answer)?;
    let header = header(ctx, &packet)?;
    if !header.is_response() {
        return None;
    }
    let key = key(ctx, &packet, header.id);
    let pending = DNS_IN_FLIGHT.get_ptr(key)?;
    // SAFETY: a map value of plain integers.
    let (state, question_len) = unsafe { ((*pending).state, (*pending).question_len) };
    // A success that has room for what it must hold: header, what stood behind the query's header,
    // and an answer of at least a pointer and the fixed fields (12 bytes). Anything shorter (and the
    // rare honest one whose server left the query's EDNS out) goes to user space to be judged.
    let plain = state == STATE_WAITING
        && header.rcode() == 0
        && header.answers > 0
        && header.questions == 1
        && !header.is_truncated()
        && question_len > 0
        && packet.available >= HEADER + question_len + 12;
    if !plain || config.dns_answers != 0 {
        ship(ctx, &packet, &key, pending);
    }
    if DNS_IN_FLIGHT.remove(key).is_ok() {
        count(Loss::DnsRemoved);
    }
    Some(())
}

#[inline(always)]
fn ship(ctx: &SkBuffContext, packet: &Packet, key: &DnsKey, pending: *const DnsPending) {
    let Some(mut entry) = DNS_EVENTS.reserve::<DnsRecord>(0) else {
        count(Loss::DnsRing);
        return;
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
        (*record).time_ns = bpf_ktime_get_boot_ns();
        (*record).message_size = packet.message_size;
        let message = (&raw mut (*record).message).cast();
        let room = packet.available.min(DNS_MESSAGE_MAX as u32);
        (*record).message_len = copy::<DNS_MESSAGE_MAX>(ctx, packet.message, message, room);
    }
    entry.submit(0);
}

/// Copies `len` bytes at `offset` to `to`, which has room for `N`; the number copied.
///
/// # Safety
/// `to` points to at least `N` writable bytes of a map value or ring entry.
#[inline(always)]
unsafe fn copy<const N: usize>(ctx: &SkBuffContext, offset: u32, to: *mut c_void, len: u32) -> u32 {
    // The verifier wants to see both bounds on the register that it finds in the helper's hands, and
    // LLVM likes to check a copy of it: the black box leaves it only one value to check.
    let last = core::hint::black_box(len.wrapping_sub(1) as u64);
    if last >= N as u64 {
        return 0;
    }
    // SAFETY: by this function's contract, and `last + 1` is at most `N`.
    let failed = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, to, last as u32 + 1) };
    if failed == 0 { len } else { 0 }
}

#[cgroup_sock_addr(connect4)]
pub fn dns_connect4(ctx: SockAddrContext) -> i32 {
    remember_connect(&ctx);
    PASS
}

#[cgroup_sock_addr(connect6)]
pub fn dns_connect6(ctx: SockAddrContext) -> i32 {
    remember_connect(&ctx);
    PASS
}

#[inline(always)]
fn remember_connect(ctx: &SockAddrContext) {
    let config = CONFIG.load();
    // SAFETY: the context is this program's own; the fields are readable in connect hooks.
    let (port, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    if protocol != TCP || !packet::is_dns(&config, u16::from_be(port as u16)) {
        return;
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let task = task::identify(task::current(), &config.layout);
    if DNS_CONNECTED.insert(cookie, task, 0).is_err() {
        count(Loss::DnsConnected);
    }
}

/// The network's word that a server cannot be reached: the socket learns it, and so do we.
#[raw_tracepoint(tracepoint = "inet_sk_error_report")]
pub fn dns_socket_error(ctx: RawTracePointContext) -> i32 {
    socket_error(ctx.arg(0));
    0
}

/// The same for kernels before 5.13, which have no such tracepoint: `sock_def_error_report` (net/core/sock.c) is
/// what they call instead.
#[kprobe]
pub fn dns_socket_error_probe(ctx: ProbeContext) -> u32 {
    if let Some(sock) = ctx.arg(0) {
        socket_error(sock);
    }
    0
}

#[inline(always)]
fn socket_error(sock: u64) {
    let config = CONFIG.load();
    let at = &config.layout;
    let port = task::read::<u16>(sock, at.sock_dport).unwrap_or(0);
    if !packet::is_dns(&config, u16::from_be(port)) {
        return;
    }
    let cookie = task::read::<u64>(sock, at.sock_cookie).unwrap_or(0);
    let errno = task::read::<u32>(sock, at.sock_err).unwrap_or(0);
    if cookie == 0 || errno == 0 {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    let error = SocketError { cookie, time_ns, errno, unused: 0 };
    if DNS_EVENTS.output::<SocketError>(error, 0).is_err() {
        count(Loss::DnsRing);
    }
}
