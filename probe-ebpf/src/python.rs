//! Python's frames: the interpreter's own list of them, read where it stands.
//!
//! Called last, when the native stack is whole: the interpreter is then known by its file, and where its runtime is
//! follows from where the file is mapped. The thread state is found by what `pthread_self` returns in the thread, which
//! is the same number in every pid namespace: a thread that has released the interpreter's lock gets its own frames, and
//! never those of the lock's holder. All of it is the process's memory, and may say anything: reads may fail, lists may
//! be circles, and what is handed over are numbers.

use core::hint::black_box;

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
    oncpu::{self, ADDRESSES, Record},
    task::{self, user_number},
    unwind::{STATE, State, UNWIND_LAYOUT},
};

/// By [`podopsy_wire::Table::python`].
#[map]
static PYTHONS: Array<PythonLayout> = Array::with_max_entries(PYTHONS_MAX as u32, 0);

#[perf_event]
pub fn python_frames(_: PerfEventContext) -> i32 {
    let Some(state) = STATE.get_ptr_mut(0) else { return 0 };
    let Some(record) = oncpu::RECORD.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own slots; the handler does not interrupt itself.
    let (state, record) = unsafe { (&mut *state, &mut *record) };
    if let Some(at) = PYTHONS.get(record.head.python) {
        let end = match thread(record, at) {
            Ok(thread) => walk(state, record, at, thread),
            Err(end) => end,
        };
        record.head.python_end = end as u32;
    }
    oncpu::send_ended(record, state.frames, state.end, state.end_frame);
    0
}

/// The current thread's state.
#[inline(always)]
fn thread(record: &Record, at: &PythonLayout) -> Result<u64, PythonEnd> {
    let own = arch::thread_id(task::current(), &UNWIND_LAYOUT.load());
    if own == 0 {
        return Err(PythonEnd::NoThread);
    }
    let mut failed = 0;
    let runtime = at.runtime.wrapping_sub(record.head.python_to_offset);
    let mut interpreter = user_number(runtime, at.interpreters, &mut failed);
    let mut thread = user_number(interpreter, at.interpreter_threads, &mut failed);
    for _ in 0..PYTHON_THREADS_MAX {
        // The last of an interpreter: on to the next interpreter.
        if thread == 0 {
            interpreter = user_number(interpreter, at.interpreter_next, &mut failed);
            if interpreter == 0 || failed != 0 {
                return Err(if failed != 0 { PythonEnd::Unreadable } else { PythonEnd::NoThread });
            }
            thread = user_number(interpreter, at.interpreter_threads, &mut failed);
        }
        if user_number(thread, at.thread_id, &mut failed) == own {
            return Ok(thread);
        }
        thread = user_number(thread, at.thread_next, &mut failed);
    }
    Err(if failed != 0 { PythonEnd::Unreadable } else { PythonEnd::ManyThreads })
}

/// Puts the thread's frames behind the record's addresses.
#[inline(always)]
fn walk(state: &mut State, record: &mut Record, at: &PythonLayout, thread: u64) -> PythonEnd {
    let mut failed = 0;
    let mut frame = user_number(thread, at.thread_frame, &mut failed);
    if at.indirect_frame != ABSENT {
        let holder = frame;
        frame = user_number(holder, at.indirect_frame, &mut failed);
        // A call of the interpreter that has just begun has not set it: there is what the stack held before.
        let mut unset = 0;
        user_number(frame, at.frame_code, &mut unset);
        if frame != 0 && unset != 0 {
            let before = user_number(holder, at.indirect_previous, &mut failed);
            frame = user_number(before, at.indirect_frame, &mut failed);
        }
    }
    let first = record.kernel_frames() + state.frames;
    for index in 0..PYTHON_FRAMES_MAX as u32 {
        if frame == 0 || failed != 0 {
            break;
        }
        let len = black_box(at.frame_bytes) & (PYTHON_FRAME_BYTES as u32 - 1);
        // SAFETY: the mask keeps the length inside `state.frame`; the helper checks the address.
        failed =
            unsafe { bpf_probe_read_user(state.frame.as_mut_ptr().cast(), len, frame as *const _) } as u64;
        let code = word(state, at.frame_code);
        let mut distance = word(state, at.frame_instruction).wrapping_sub(code);
        if at.instruction_is == INSTRUCTION_INDEX {
            let half = (at.frame_instruction & 4) << 3;
            distance = (word(state, at.frame_instruction) >> half) << 1;
        }
        let marker = (word(state, at.frame_marker) >> ((at.frame_marker & 7) << 3)) as u32 & 0xff;
        let entry = if marker & at.marker_mask == at.marker_value { PYTHON_ENTRY } else { 0 };
        let slot = first + 2 * index;
        record.addresses[slot as usize & (ADDRESSES - 1)] = code;
        record.addresses[(slot + 1) as usize & (ADDRESSES - 1)] = distance & 0xffff_ffff | entry;
        record.head.python_len = 16 * (index + 1);
        frame = word(state, at.frame_previous);
    }
    if failed != 0 {
        // The last is one that was not read.
        record.head.python_len = record.head.python_len.saturating_sub(16);
        return PythonEnd::Unreadable;
    }
    if frame != 0 { PythonEnd::Truncated } else { PythonEnd::Complete }
}

/// The word of the frame that was read which the byte at `offset` is in.
#[inline(always)]
fn word(state: &State, offset: u32) -> u64 {
    state.frame[(offset / 8) as usize & (PYTHON_FRAME_BYTES / 8 - 1)]
}
