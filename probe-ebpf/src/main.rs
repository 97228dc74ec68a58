//! podopsy's kernel side: one probe a file, named by its subject.
//!
//! Programs filter, record what is gone a moment later (identity, stacks, clocks), and pass it to user space; what
//! cannot be passed on is counted by its reason ([`podopsy_wire::Loss`]). What an event means is decided in user space.
#![no_std]
#![no_main]
// For `dns_counts::add` and `dns_packet::word`.
#![feature(asm_experimental_arch)]

mod arch;
mod bpf_loop;
mod cpu;
mod dns;
mod dns_close;
mod dns_connection;
mod dns_counts;
mod dns_message;
mod dns_packet;
mod dns_records;
mod dns_sendmsg;
mod dns_share;
mod dns_slots;
mod dns_socket;
mod dns_stray;
mod dns_stream;
mod exec;
mod kernel_name;
mod mapping;
mod maps;
mod oom;
mod python;
mod sigkill;
mod task;
mod unwind;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
