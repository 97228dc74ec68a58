//! What the kernel calls an address of its own.
//!
//! Nothing triggers this program: user space runs it itself (`BPF_PROG_TEST_RUN`), once for each address. To read
//! /proc/kallsyms for a few hundred names is to have the kernel print all of its 120,000.

use aya_ebpf::{
    helpers::generated::bpf_snprintf,
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use podopsy_wire::KERNEL_NAME_BYTES;

/// The answer, and a zero.
#[map]
static KERNEL_NAME: Array<[u8; KERNEL_NAME_BYTES]> = Array::with_max_entries(1, 0);

/// `name`, or `name [module]`, or the address where there is none (Documentation/core-api/printk-formats.rst). In a
/// read-only map, as the helper wants it.
#[unsafe(no_mangle)]
static KERNEL_NAME_FORMAT: [u8; 4] = *b"%ps\0";

/// Its length with the zero; what is longer was cut. Since 5.13; elsewhere it cannot be loaded.
#[raw_tracepoint]
pub fn kernel_name(ctx: RawTracePointContext) -> i32 {
    let address: u64 = ctx.arg(0);
    let Some(name) = KERNEL_NAME.get_ptr_mut(0) else { return 0 };
    // SAFETY: the helper writes no more than the element has, and reads one number.
    unsafe {
        bpf_snprintf(
            name.cast(),
            KERNEL_NAME_BYTES as u32,
            KERNEL_NAME_FORMAT.as_ptr().cast(),
            (&raw const address).cast_mut().cast(),
            size_of::<u64>() as u32,
        ) as i32
    }
}
