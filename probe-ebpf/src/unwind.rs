//! User stacks by unwind tables: from frame to frame, by the rule at each address.
//!
//! Where the kernel has `bpf_loop`, [`unwind_loop`] is loaded. Elsewhere it is [`unwind_frames`], which unwinds a few
//! frames and then tail-calls itself for the next few; every verifier since 5.10 accepts that. Stack memory is read as
//! it is. What cannot be followed ends the stack, and the sample carries the reason.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::{self, ArrayOfMaps},
    macros::{btf_map, map, perf_event},
    maps::{Array, PerCpuArray, ProgramArray},
    programs::PerfEventContext,
};
use podopsy_wire::{
    DIRECTORY_FIRST_SHIFT, DIRECTORY_SLAB_SHIFT, End, FP_AT_CFA, FP_AT_FP, FP_SAME, FRAMES_MAX, KIND_DEREF,
    KIND_INDEXED, KIND_NONE, KIND_PLT, KIND_REGISTER, KIND_SIGNAL, KIND_STOP, KIND_SWITCH, PAGE_BITS,
    RA_AT_CFA, RULE_NONE, RULES_MAX, Rule, SLAB_WORDS, SLABS_MAX, TABLE_ASKED, TABLE_READY, UnwindLayout,
};

use crate::{
    arch::{self, Registers, User},
    bpf_loop::{LAST, repeat},
    cpu::{self, ADDRESSES, SampleBuffer},
    mapping::{self, MAPPED_ANONYMOUS, MAPPED_FILE, Mapping},
    maps::CONFIG,
    python::PythonWalk,
    task::read_user,
};

/// Set by user space before the load.
#[unsafe(no_mangle)]
pub static UNWIND_LAYOUT: Global<UnwindLayout> = Global::new(UnwindLayout::OFF);

type Slab = btf_maps::Array<[u32; SLAB_WORDS], 1, { BPF_F_MMAPABLE as usize }>;

/// Slabs. User space adds them as needed and writes them by mmap.
#[btf_map]
static SLABS: ArrayOfMaps<Slab, SLABS_MAX> = ArrayOfMaps::new();

#[map]
static RULES: Array<Rule> = Array::with_max_entries(RULES_MAX as u32, 0);

/// At 0 [`unwind_loop`], or [`unwind_frames`], which calls itself; at [`PYTHON`] the program that they call last, if it
/// could be loaded.
#[map]
static UNWINDER: ProgramArray = ProgramArray::with_max_entries(2, 0);

/// The slot of [`crate::python`]'s program.
const PYTHON: u32 = 1;

/// 32 tail calls are allowed, the sampler's included. Four frames in each are enough for [`FRAMES_MAX`]; the fewer
/// frames, the less the verifier has to check.
const FRAMES_A_CALL: u32 = 4;

const _: () = assert!(FRAMES_MAX as u32 <= 32 * FRAMES_A_CALL);

/// Most switches of the stack that are followed: C and Go that call each other need two for each call.
const SWITCHES_MAX: u32 = 16;
/// How far below its caller's stack a function saves the frame pointer, after the return address.
const SAVED_FP: u64 = 16;

/// The state of the unwinder; too big for the BPF stack, and shared between its calls.
#[repr(C)]
pub struct UnwindState {
    registers: Registers,
    ip: u64,
    sp: u64,
    fp: u64,
    mm: u64,
    pid: u32,
    pub frames: u32,
    /// 1: `ip` is the address of the current instruction; 0: it is a return address, and the call is before it.
    exact: u32,
    /// 1: the innermost frame's `ip` is behind the instruction of a system call.
    in_syscall: u32,
    /// [`End`]: why a frame pointer had to be used for the first time; 0: none was used yet.
    guessed: u32,
    /// The frame at which that happened.
    guessed_frame: u32,
    /// 1: all registers are the frame's own; 0: only stack and frame pointer.
    innermost: u32,
    /// 1: the sample was taken in the kernel, on the process's behalf.
    in_kernel: u32,
    /// 1: a 32-bit process, of which only the innermost frame is known.
    compat: u32,
    /// How often the stack has led to another one ([`KIND_SWITCH`]).
    switches: u32,
    /// Why and at which frame the stack ended, for the program that sends the sample.
    pub end: u32,
    pub end_frame: u32,
    mapping: Mapping,
    pub python: PythonWalk,
}

#[map]
pub static STATE: PerCpuArray<UnwindState> = PerCpuArray::with_max_entries(1, 0);

/// Unwinds the current task's user stack into `record` behind the kernel's stack, and sends the sample. False: it
/// cannot, and the caller has to send the sample.
#[inline(always)]
pub fn start(ctx: &PerfEventContext, record: &mut SampleBuffer, task: u64) -> bool {
    let at = UNWIND_LAYOUT.load();
    if at.on == 0 {
        return false;
    }
    let Some(state) = STATE.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own slot; the handler does not interrupt itself.
    let state = unsafe { &mut *state };
    state.mm = mapping::memory(CONFIG.load().layout.task_mm);
    let user = match state.mm {
        0 => User::None,
        _ => arch::user_registers(ctx, task, &at, &mut state.registers),
    };
    state.compat = 0;
    let (in_kernel, in_syscall) = match user {
        User::Running => (false, false),
        User::Interrupted => (true, false),
        User::InSyscall => (true, true),
        User::Compat => {
            state.compat = 1;
            (false, false)
        }
        User::None => {
            cpu::send(record, 0, End::NoUser);
            return true;
        }
        User::Unknown => return false,
    };
    state.ip = state.registers.ip;
    state.sp = state.registers.general[arch::STACK as usize];
    state.fp = state.registers.general[arch::FRAME as usize];
    state.pid = record.head.task.pid;
    state.frames = 0;
    (state.in_kernel, state.in_syscall) = (in_kernel as u32, in_syscall as u32);
    state.exact = !in_syscall as u32;
    (state.guessed, state.switches) = (0, 0);
    state.innermost = 1;
    (state.mapping.start, state.mapping.end) = (0, 0);
    // SAFETY: the program there is of the same type.
    unsafe { UNWINDER.tail_call(ctx, 0) };
    false
}

/// Unwinds the whole stack with `bpf_loop` (5.17).
#[perf_event]
pub fn unwind_loop(ctx: PerfEventContext) -> i32 {
    // One more step than frames: it ends a stack that is too deep.
    repeat(FRAMES_MAX as u32 + 1, step);
    if let Some((state, record)) = buffers() {
        finish(&ctx, state, record);
    }
    0
}

extern "C" fn step(_: u32, _: *mut c_void) -> i64 {
    let Some((state, record)) = buffers() else { return LAST };
    advance(state, record, &UNWIND_LAYOUT.load()) as i64
}

/// Unwinds a few frames, and the rest by tail-calling itself.
#[perf_event]
pub fn unwind_frames(ctx: PerfEventContext) -> i32 {
    let Some((state, record)) = buffers() else { return 0 };
    let at = UNWIND_LAYOUT.load();
    for _ in 0..FRAMES_A_CALL {
        if advance(state, record, &at) {
            finish(&ctx, state, record);
            return 0;
        }
    }
    // SAFETY: the program there is this one.
    unsafe { UNWINDER.tail_call(&ctx, 0) };
    cpu::send(record, state.frames, End::Truncated);
    0
}

/// This CPU's state of the unwinder, and the sample that it adds to.
#[inline(always)]
pub fn buffers() -> Option<(&'static mut UnwindState, &'static mut SampleBuffer)> {
    let (state, record) = (STATE.get_ptr_mut(0)?, cpu::RECORD.get_ptr_mut(0)?);
    // SAFETY: this CPU's own slots; the handler does not interrupt itself, and each program or step calls this once.
    unsafe { Some((&mut *state, &mut *record)) }
}

/// Advances by one frame; true: the stack ends there, and `state` has the reason.
#[inline(always)]
fn advance(state: &mut UnwindState, record: &mut SampleBuffer, at: &UnwindLayout) -> bool {
    let Err(end) = frame(state, record, at) else { return false };
    // The failure is where a frame pointer was used first, not where that led to.
    (state.end, state.end_frame) = if end as u32 != End::Complete as u32 && state.guessed != 0 {
        (state.guessed, state.guessed_frame)
    } else {
        (end as u32, state.frames.saturating_sub(1))
    };
    true
}

/// Sends the sample, with Python's frames if an interpreter was in the stack.
#[inline(always)]
fn finish(ctx: &PerfEventContext, state: &mut UnwindState, record: &mut SampleBuffer) {
    if record.head.python != 0 {
        // SAFETY: the program there is of the same type.
        unsafe { UNWINDER.tail_call(ctx, PYTHON) };
    }
    cpu::send_ended(record, state.frames, state.end, state.end_frame);
}

/// Records the current frame, and moves on to its caller.
#[inline(always)]
fn frame(state: &mut UnwindState, record: &mut SampleBuffer, at: &UnwindLayout) -> Result<(), End> {
    if state.frames >= FRAMES_MAX as u32 {
        return Err(End::Truncated);
    }
    // A call that does not return may be the last instruction of its function, so the return address may be in the next
    // one.
    let address = if state.exact != 0 { state.ip } else { state.ip.wrapping_sub(1) };
    if (address < state.mapping.start || address >= state.mapping.end)
        && !mapping::find(&mut state.mapping, state.mm, address, state.pid, at)
    {
        // In the middle of exec or exit the registers refer to memory that is gone: there is no stack.
        if state.innermost != 0 && state.in_kernel != 0 {
            state.frames = 0;
            return Err(End::NoUser);
        }
        // The address is no frame: nothing can run there.
        return Err(End::NoMapping);
    }
    let slot = (record.kernel_frames() + state.frames) as usize & (ADDRESSES - 1);
    record.addresses[slot] = state.mapping.frame(address);
    state.frames += 1;
    if state.mapping.mapped == MAPPED_FILE && state.mapping.table.number == 0 {
        record.head.file = state.mapping.request.key;
    }
    if state.compat != 0 {
        return Err(End::Compat);
    }
    if state.mapping.mapped == MAPPED_FILE && state.mapping.table.python != 0 {
        record.head.python = state.mapping.table.python;
        record.head.python_to_offset = state.mapping.to_offset;
    }
    if state.mapping.mapped == MAPPED_ANONYMOUS {
        return without_rule(state, End::Anonymous);
    }
    match state.mapping.table.state {
        TABLE_READY => {}
        TABLE_ASKED => return Err(End::TableAsked),
        _ => return without_rule(state, End::TableNone),
    }
    let number = rule_number(&state.mapping, address.wrapping_add(state.mapping.to_offset));
    let Some(rule) = RULES.get(number) else { return Err(End::Unsupported) };
    follow(state, rule)
}

/// The number of the rule at a file offset.
#[inline(always)]
fn rule_number(mapping: &Mapping, offset: u64) -> u32 {
    let table = &mapping.table;
    let page = (offset >> PAGE_BITS).wrapping_sub(table.first_page as u64);
    if page >= table.pages as u64 {
        return RULE_NONE as u32;
    }
    let Some(slab) = SLABS.get_value(table.slab, &0) else { return RULE_NONE as u32 };
    let index = (table.first as u64 + page) as usize & (SLAB_WORDS / 2 - 1);
    // SAFETY: the mask keeps the entry inside the slab.
    let entry = unsafe { *slab.as_ptr().cast::<u64>().add(index) };
    if entry == 0 {
        return RULE_NONE as u32;
    }
    let Some(slab) = SLABS.get_value((entry >> DIRECTORY_SLAB_SHIFT) as u32, &0) else {
        return RULE_NONE as u32;
    };
    let key = (offset as u32) << 16 | 0xffff;
    let mut first = (entry >> DIRECTORY_FIRST_SHIFT) as u32 & 0xff_ffff;
    let mut count = entry as u32 & 0xff_ffff;
    // Invariant: the wanted row is one of the `count` rows from `first` on. The page's first row is never behind the
    // key.
    for _ in 0..16 {
        if count <= 1 {
            break;
        }
        let half = count >> 1;
        // SAFETY: the mask keeps the row inside the slab.
        let row = unsafe { *slab.as_ptr().add((first + half) as usize & (SLAB_WORDS - 1)) };
        if row <= key {
            first += half;
        }
        count -= half;
    }
    // SAFETY: as above.
    unsafe { *slab.as_ptr().add(first as usize & (SLAB_WORDS - 1)) & 0xffff }
}

#[inline(always)]
fn follow(state: &mut UnwindState, rule: &Rule) -> Result<(), End> {
    match rule.kind {
        KIND_STOP => return Err(End::Complete),
        KIND_NONE => return without_rule(state, End::NoRule),
        KIND_SIGNAL => return signal(state),
        KIND_SWITCH => return switch(state, rule),
        KIND_REGISTER | KIND_DEREF | KIND_INDEXED | KIND_PLT => {}
        _ => return Err(End::Unsupported),
    }
    let mut cfa = register(state, rule.base)?.wrapping_add(rule.cfa_offset as u64);
    match rule.kind {
        KIND_DEREF => cfa = word(cfa)?.wrapping_add(rule.extra as u64),
        KIND_INDEXED => {
            let index = register(state, rule.index)?;
            cfa = word(cfa.wrapping_add(index << 3))?.wrapping_add(rule.extra as u64);
        }
        KIND_PLT if state.ip & 15 >= rule.extra as u64 => cfa = cfa.wrapping_add(8),
        _ => {}
    }
    let ra = match rule.ra {
        RA_AT_CFA => word(cfa.wrapping_add(rule.ra_offset as u64))?,
        number => register(state, number - 1)?,
    };
    let fp_at = match rule.fp {
        FP_SAME => 0,
        FP_AT_CFA => cfa,
        FP_AT_FP => state.fp,
        _ => state.sp,
    };
    if fp_at != 0 {
        state.fp = word(fp_at.wrapping_add(rule.fp_offset as u64))?;
    }
    caller(state, ra, cfa)
}

/// Moves to the caller at `ip` with the stack at `sp`.
#[inline(always)]
fn caller(state: &mut UnwindState, ip: u64, sp: u64) -> Result<(), End> {
    if sp < state.sp || (sp == state.sp && state.innermost == 0) {
        return Err(End::NoProgress);
    }
    if ip == 0 {
        // psABI, 3.4.1: the outermost frame has a frame pointer of 0. A return address of 0 alone proves nothing: it is
        // also what a rule finds that does not fit the code.
        return Err(if state.fp == 0 { End::Complete } else { End::NoCaller });
    }
    (state.ip, state.sp) = (ip, sp);
    (state.exact, state.innermost) = (0, 0);
    Ok(())
}

/// Moves to the caller of a function that has switched stacks. The other stack may be at any address, so that nothing
/// shows progress but the number of switches.
#[inline(always)]
fn switch(state: &mut UnwindState, rule: &Rule) -> Result<(), End> {
    let saved = state.sp.wrapping_sub(SAVED_FP);
    // The function that was called may have saved no frame pointer, or not yet. Then it is the innermost one, and the
    // register is as it was.
    let is_in_register = state.innermost != 0 || (state.frames <= 2 && state.fp != saved);
    let fp = if rule.fp == FP_SAME || is_in_register { state.fp } else { word(saved)? };
    if fp == 0 {
        return Err(if rule.extra != 0 { End::Complete } else { End::StackSwitch });
    }
    state.switches += 1;
    if state.switches > SWITCHES_MAX || fp & 7 != 0 {
        return Err(End::StackSwitch);
    }
    let Ok(ra) = word(fp.wrapping_add(8)) else { return Err(End::StackSwitch) };
    let Ok(outer) = word(fp) else { return Err(End::StackSwitch) };
    if ra == 0 {
        return Err(End::StackSwitch);
    }
    (state.ip, state.sp, state.fp) = (ra, fp.wrapping_add(16), outer);
    (state.exact, state.innermost) = (0, 0);
    Ok(())
}

/// Follows a frame without a rule: a signal's trampoline, a function that libc leaves without one, or else by its frame
/// pointer.
#[inline(always)]
fn without_rule(state: &mut UnwindState, why: End) -> Result<(), End> {
    if read_user::<u64>(state.ip) == Some(arch::SIGRETURN) {
        return signal(state);
    }
    // glibc's clone ends its rules at the system call, where the child's stack begins. In the parent they would still
    // hold.
    if state.in_syscall != 0 && state.innermost != 0 {
        let cfa = state.sp.wrapping_add(arch::ENTRY_CFA as u64);
        let ra = word(cfa.wrapping_add(arch::ENTRY_RA as u64))?;
        return caller(state, ra, cfa);
    }
    if state.fp == 0 {
        // psABI, 3.4.1: a frame pointer of 0 marks the outermost frame. The innermost frame may have any value there, and
        // so may code made at run time, in which no thread begins.
        let may_be_outermost = state.innermost == 0 && why as u32 != End::Anonymous as u32;
        return Err(if may_be_outermost { End::Complete } else { why });
    }
    if state.guessed == 0 {
        (state.guessed, state.guessed_frame) = (why as u32, state.frames - 1);
    }
    if state.fp < state.sp || state.fp & 7 != 0 {
        return Err(why);
    }
    let (fp, sp) = (state.fp, state.fp.wrapping_add(16));
    let Ok(ra) = word(fp.wrapping_add(8)) else { return Err(why) };
    let Ok(outer) = word(fp) else { return Err(why) };
    state.fp = outer;
    caller(state, ra, sp)
}

/// Follows a signal frame: the interrupted code's registers are on the stack.
#[inline(always)]
fn signal(state: &mut UnwindState) -> Result<(), End> {
    let at = state.sp;
    state.ip = word(at.wrapping_add(arch::SIGNAL_IP))?;
    state.fp = word(at.wrapping_add(arch::SIGNAL_FP))?;
    // The handler may have had a stack of its own, at any address.
    state.sp = word(at.wrapping_add(arch::SIGNAL_SP))?;
    (state.exact, state.innermost) = (1, 0);
    Ok(())
}

/// A register's value in this frame, if it is still known.
#[inline(always)]
fn register(state: &UnwindState, number: u8) -> Result<u64, End> {
    match number {
        arch::STACK => Ok(state.sp),
        arch::FRAME => Ok(state.fp),
        _ if state.innermost != 0 => Ok(state.registers.general[number as usize & 15]),
        _ => Err(End::Unsupported),
    }
}

#[inline(always)]
fn word(address: u64) -> Result<u64, End> {
    read_user(address).ok_or(End::Unreadable)
}
