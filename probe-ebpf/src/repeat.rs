//! The kernel's own loop, where there is one (5.17): its verifier follows one step of it, instead of every round.
//!
//! A step carries nothing: what it goes by is in a map. On arm64 before 6.0 a program with a step may make no tail calls; it
//! is refused there, and the one without is loaded.

use core::{ffi::c_void, ptr::null_mut};

use aya_ebpf::helpers::generated::bpf_loop;

/// `static long step(u32 index, void *context)`: 0, or [`LAST`].
pub type Step = extern "C" fn(u32, *mut c_void) -> i64;

pub const LAST: i64 = 1;

/// Runs `step` until it says that it was the last, and `most` times at most.
#[inline(always)]
pub fn repeat(most: u32, step: Step) {
    // SAFETY: the helper calls a function of the type that it wants, with a context that none of them looks at.
    unsafe { bpf_loop(most, step as *mut c_void, null_mut(), 0) };
}
