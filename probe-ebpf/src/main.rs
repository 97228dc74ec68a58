//! podopsy's kernel side: one probe a file, each named like its room in the agent.
//!
//! Nothing here decides what an event means. Probes filter, take what will be gone in a moment
//! (identity, stacks, clocks), and hand it over; what cannot be handed over is counted.
#![no_std]
#![no_main]
// `dns_counts::add`, `packet::word`.
#![feature(asm_experimental_arch)]

mod arch;
mod dns;
mod dns_counts;
mod dns_named;
mod dns_socket;
mod exec;
mod kernel_name;
mod mapping;
mod maps;
mod message;
mod oncpu;
mod oom;
mod packet;
mod python;
mod repeat;
mod signal;
mod stream;
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
