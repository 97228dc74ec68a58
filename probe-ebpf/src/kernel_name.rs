//! The kernel's symbol for one of its addresses.
//!
//! No event triggers this program: user space runs it (`BPF_PROG_TEST_RUN`), once for each address. Reading
//! /proc/kallsyms for a few hundred names would make the kernel print all of its 120,000.

use aya_ebpf::{
    helpers::generated::bpf_snprintf,
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use podopsy_wire::KERNEL_NAME_BYTES;

/// The symbol, NUL-terminated.
#[map]
static KERNEL_NAME: Array<[u8; KERNEL_NAME_BYTES]> = Array::with_max_entries(1, 0);

/// Prints `name`, or `name [module]`, or the address if there is no symbol (Documentation/core-api/printk-formats.rst).
/// The helper requires that the format is in a read-only map.
#[unsafe(no_mangle)]
static KERNEL_NAME_FORMAT: [u8; 4] = *b"%ps\0";

/// Returns the length of the symbol with its NUL; a longer one than the map's value was cut. The helper is there since
/// 5.13; before, the program cannot be loaded.
#[raw_tracepoint]
pub fn kernel_name(ctx: RawTracePointContext) -> i32 {
    let address: u64 = ctx.arg(0);
    let Some(name) = KERNEL_NAME.get_ptr_mut(0) else { return 0 };
    // SAFETY: the helper writes at most the size of the value, and reads one number.
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
