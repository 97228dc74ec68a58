//! Sockets that are closed while their queries have no answer: an answer that comes later reaches no one.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_kernel},
    macros::cgroup_sock,
    programs::SockContext,
};
use podopsy_wire::{DnsConnection, Loss, SocketClosed};

use crate::{
    dns_counts,
    dns_packet::{TCP, UDP},
    dns_slots::{self, Unanswered},
    maps::{CONFIG, DNS_EVENTS, count},
    task,
};

/// The hook's verdict, which the kernel ignores.
const PASS: i32 = 1;

/// A socket is closed by its last owner, or by the end of its process: called for every socket of IPv4 and IPv6 of the node,
/// in the context of that process.
#[cgroup_sock(sock_release)]
pub fn dns_socket_release(ctx: SockContext) -> i32 {
    // SAFETY: the context is this program's own; the field is readable in this hook.
    if unsafe { (*ctx.sock).protocol } == UDP {
        released(address(ctx.sock));
    }
    PASS
}

/// A socket's address as a number: the verifier allows no arithmetic with the context. Read from the stack it is a number.
#[inline(always)]
fn address(sock: *mut bpf_sock) -> u64 {
    let mut address = 0u64;
    let from = (&raw const sock).cast::<c_void>();
    // SAFETY: both are local variables of eight bytes.
    unsafe { bpf_probe_read_kernel((&raw mut address).cast(), 8, from) };
    address
}

#[inline(always)]
fn released(sock: u64) {
    // Most sockets have no cookie: it is made when a program first asks for it.
    let cookie = task::read::<u64>(sock, CONFIG.load().layout.sock_cookie).unwrap_or(0);
    if cookie == 0 {
        return;
    }
    let unanswered = dns_slots::unanswered(cookie);
    if unanswered != Unanswered::No {
        ship(closed(cookie, UDP), unanswered == Unanswered::Yes);
    }
}

/// A TCP connection to a DNS server ends. `never_connected`: it was never established.
#[inline(always)]
pub fn connection(cookie: u64, connection: *const DnsConnection, errno: u32, never_connected: bool) {
    let unanswered = dns_slots::unanswered(cookie);
    if !never_connected && unanswered == Unanswered::No {
        return;
    }
    let mut closed = closed(cookie, TCP);
    closed.errno = errno;
    if never_connected {
        closed.never_connected = 1;
        // SAFETY: a map value of plain integers.
        unsafe {
            closed.asker = (*connection).asker;
            closed.opened_ns = (*connection).opened_ns;
            closed.server = (*connection).query.server;
            closed.port = (*connection).query.port;
        }
    }
    ship(closed, never_connected || unanswered == Unanswered::Yes);
}

#[inline(always)]
fn closed(cookie: u64, protocol: u32) -> SocketClosed {
    let answered = dns_slots::answered(cookie);
    // SAFETY: the helper has no preconditions.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    let (answered_ns, answered_ids, class) =
        answered.map_or((0, 0, 0), |slot| (slot.time_ns, slot.ids, slot.class));
    SocketClosed {
        cookie,
        time_ns,
        answered_ns,
        answered_ids,
        answered_class: class as u32,
        protocol,
        ..SocketClosed::EMPTY
    }
}

/// `is_certain`: it has queries without an answer.
#[inline(always)]
fn ship(closed: SocketClosed, is_certain: bool) {
    let may_ship = dns_counts::may_ship_close(closed.time_ns, is_certain);
    if (!may_ship || DNS_EVENTS.output::<SocketClosed>(closed, 0).is_err()) && is_certain {
        count(Loss::DnsClosed);
    }
}
