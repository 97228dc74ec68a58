//! The helper `bpf_loop` (5.17): the verifier follows one step of the loop instead of every iteration.
//!
//! A step has no context of its own; its state is in a map. On arm64 before 6.0 a program with a step may not make tail
//! calls. It is refused there, and the variant without this helper is loaded.

use core::{ffi::c_void, ptr::null_mut};

use aya_ebpf::helpers::generated::bpf_loop;

/// `static long step(u32 index, void *context)`: returns 0, or [`LAST`].
pub type Step = extern "C" fn(u32, *mut c_void) -> i64;

/// Ends the loop.
pub const LAST: i64 = 1;

/// Runs `step` until it returns [`LAST`], at most `most` times.
#[inline(always)]
pub fn repeat(most: u32, step: Step) {
    // SAFETY: `step` has the signature that the helper calls, and does not use its context.
    unsafe { bpf_loop(most, step as *mut c_void, null_mut(), 0) };
}
