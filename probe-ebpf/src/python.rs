//! Python's frames: the interpreter's own list of them, read in the process's memory.
//!
//! The program is called last, when the native stack is complete. The interpreter is then known by its file, and the
//! address of its runtime follows from the file's mapping. The thread state is found by the value of `pthread_self` in
//! the thread, which is the same in every pid namespace: a thread that has released the interpreter's lock gets its own
//! frames, and never those of the lock's holder. All of this is the process's memory and may hold anything: reads may
//! fail and lists may be circular; only numbers are passed on.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    helpers::generated::bpf_probe_read_user,
    macros::{map, perf_event},
    maps::Array,
    programs::PerfEventContext,
};
use podopsy_wire::{
    ABSENT, INSTRUCTION_INDEX, PYTHON_ENTRY, PYTHON_FRAME_BYTES, PYTHON_FRAMES_MAX, PYTHON_THREADS_MAX,
    PYTHONS_MAX, PythonEnd, PythonLayout,
};

use crate::{
    arch,
    bpf_loop::{LAST, repeat},
    cpu::{self, ADDRESSES, SampleBuffer},
    task::{self, user_number},
    unwind::{UNWIND_LAYOUT, UnwindState, buffers},
};

/// By [`podopsy_wire::Table::python`].
#[map]
static PYTHONS: Array<PythonLayout> = Array::with_max_entries(PYTHONS_MAX as u32, 0);

/// The state of the walk over Python's frames.
#[repr(C)]
pub struct PythonWalk {
    /// The value of `pthread_self` in the sampled thread.
    own: u64,
    interpreter: u64,
    /// The thread state that is checked next, and finally the sampled thread's.
    thread: u64,
    /// 1: `thread` is the sampled thread's.
    found: u64,
    /// Address of the next frame.
    next: u64,
    /// Not 0: a read failed.
    failed: u64,
    /// The frame that was read last.
    frame: [u64; PYTHON_FRAME_BYTES / 8],
}

/// Walks with `bpf_loop` (5.17). Each part gets the buffers again, because the steps write to them, too.
#[perf_event]
pub fn python_loop(_: PerfEventContext) -> i32 {
    if begin() {
        repeat(PYTHON_THREADS_MAX as u32, check_thread_step);
        if innermost() {
            repeat(PYTHON_FRAMES_MAX as u32, add_frame_step);
        }
    }
    finish()
}

extern "C" fn check_thread_step(_: u32, _: *mut c_void) -> i64 {
    let Some((state, _, at)) = all() else { return LAST };
    check_thread(&mut state.python, at) as i64
}

extern "C" fn add_frame_step(_: u32, _: *mut c_void) -> i64 {
    let Some((state, record, at)) = all() else { return LAST };
    add_frame(state, record, at) as i64
}

/// Walks with loops of which the verifier follows every iteration.
#[perf_event]
pub fn python_frames(_: PerfEventContext) -> i32 {
    if begin() {
        if let Some((state, _, at)) = all() {
            for _ in 0..PYTHON_THREADS_MAX {
                if check_thread(&mut state.python, at) {
                    break;
                }
            }
        }
        if innermost()
            && let Some((state, record, at)) = all()
        {
            for _ in 0..PYTHON_FRAMES_MAX {
                if add_frame(state, record, at) {
                    break;
                }
            }
        }
    }
    finish()
}

#[inline(always)]
fn all() -> Option<(&'static mut UnwindState, &'static mut SampleBuffer, &'static PythonLayout)> {
    let (state, record) = buffers()?;
    let at = PYTHONS.get(record.head.python)?;
    Some((state, record, at))
}

/// Moves to the first thread of the first interpreter; false: there is nothing to walk.
#[inline(always)]
fn begin() -> bool {
    let Some((state, record)) = buffers() else { return false };
    let walk = &mut state.python;
    (walk.found, walk.failed) = (0, 0);
    let Some(at) = PYTHONS.get(record.head.python) else { return false };
    walk.own = arch::thread_id(task::current(), &UNWIND_LAYOUT.load());
    if walk.own == 0 {
        record.head.python_end = PythonEnd::NoThread as u32;
        return false;
    }
    let runtime = at.runtime.wrapping_sub(record.head.python_to_offset);
    walk.interpreter = user_number(runtime, at.interpreters, &mut walk.failed);
    walk.thread = user_number(walk.interpreter, at.interpreter_threads, &mut walk.failed);
    true
}

/// Checks whether this thread state is the sampled thread's, and moves to the next one. True: it is, or there are no
/// more.
#[inline(always)]
fn check_thread(walk: &mut PythonWalk, at: &PythonLayout) -> bool {
    // After the last thread of an interpreter comes the next interpreter.
    if walk.thread == 0 {
        walk.interpreter = user_number(walk.interpreter, at.interpreter_next, &mut walk.failed);
        if walk.interpreter == 0 || walk.failed != 0 {
            return true;
        }
        walk.thread = user_number(walk.interpreter, at.interpreter_threads, &mut walk.failed);
    }
    if user_number(walk.thread, at.thread_id, &mut walk.failed) == walk.own {
        walk.found = 1;
        return true;
    }
    walk.thread = user_number(walk.thread, at.thread_next, &mut walk.failed);
    false
}

/// Moves to the thread's innermost frame; false: the thread was not found, and the sample has the reason.
#[inline(always)]
fn innermost() -> bool {
    let Some((state, record, at)) = all() else { return false };
    let walk = &mut state.python;
    if walk.found == 0 {
        let end = match (walk.failed, walk.interpreter) {
            (0, 0) => PythonEnd::NoThread,
            (0, _) => PythonEnd::ManyThreads,
            _ => PythonEnd::Unreadable,
        };
        record.head.python_end = end as u32;
        return false;
    }
    // Failed reads on the way to the thread do not matter any more.
    walk.failed = 0;
    walk.next = user_number(walk.thread, at.thread_frame, &mut walk.failed);
    if at.indirect_frame != ABSENT {
        let holder = walk.next;
        walk.next = user_number(holder, at.indirect_frame, &mut walk.failed);
        // A call of the interpreter that has just begun has not set it yet: it holds what was on the stack before.
        let mut unset = 0;
        user_number(walk.next, at.frame_code, &mut unset);
        if walk.next != 0 && unset != 0 {
            let before = user_number(holder, at.indirect_previous, &mut walk.failed);
            walk.next = user_number(before, at.indirect_frame, &mut walk.failed);
        }
    }
    // Preliminary: `finish` replaces it if the walk fails.
    record.head.python_end = PythonEnd::Complete as u32;
    true
}

/// Appends the next frame to the sample's addresses; true: there is none.
#[inline(always)]
fn add_frame(state: &mut UnwindState, record: &mut SampleBuffer, at: &PythonLayout) -> bool {
    let first = record.kernel_frames() + state.frames;
    let walk = &mut state.python;
    if walk.next == 0 || walk.failed != 0 {
        return true;
    }
    let len = black_box(at.frame_bytes) & (PYTHON_FRAME_BYTES as u32 - 1);
    // SAFETY: the mask keeps the length inside `frame`; the helper checks the address.
    walk.failed =
        unsafe { bpf_probe_read_user(walk.frame.as_mut_ptr().cast(), len, walk.next as *const _) } as u64;
    let code = word(walk, at.frame_code);
    let mut distance = word(walk, at.frame_instruction).wrapping_sub(code);
    if at.instruction_is == INSTRUCTION_INDEX {
        let half = (at.frame_instruction & 4) << 3;
        distance = (word(walk, at.frame_instruction) >> half) << 1;
    }
    let marker = (word(walk, at.frame_marker) >> ((at.frame_marker & 7) << 3)) as u32 & 0xff;
    let entry = if marker & at.marker_mask == at.marker_value { PYTHON_ENTRY } else { 0 };
    let slot = first + record.head.python_len / 8;
    record.addresses[slot as usize & (ADDRESSES - 1)] = code;
    record.addresses[(slot + 1) as usize & (ADDRESSES - 1)] = distance & 0xffff_ffff | entry;
    record.head.python_len += 16;
    walk.next = word(walk, at.frame_previous);
    false
}

/// Records how the walk ended, and sends the sample.
#[inline(always)]
fn finish() -> i32 {
    let Some((state, record)) = buffers() else { return 0 };
    if state.python.found != 0 {
        if state.python.failed != 0 {
            // The last frame is the one that could not be read.
            record.head.python_len = record.head.python_len.saturating_sub(16);
            record.head.python_end = PythonEnd::Unreadable as u32;
        } else if state.python.next != 0 {
            record.head.python_end = PythonEnd::Truncated as u32;
        }
    }
    cpu::send_ended(record, state.frames, state.end, state.end_frame);
    0
}

/// The word of the last frame that contains the byte at `offset`.
#[inline(always)]
fn word(walk: &PythonWalk, offset: u32) -> u64 {
    walk.frame[(offset / 8) as usize & (PYTHON_FRAME_BYTES / 8 - 1)]
}
