//! What depends on the machine: the registers of a task, and the frame that a signal leaves on the stack.
//!
//! Support for another machine is another `mod` here, and one in `agent/stacks/src/unwind/arch.rs`.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    programs::PerfEventContext,
};
use podopsy_wire::{ABSENT, UnwindLayout};

use crate::task;

/// DWARF numbers (psABI, figure 3.36).
pub const STACK: u8 = 7;
pub const FRAME: u8 = 6;

/// `<asm/segment.h>`: the code segments of user space.
const USER32_CS: u64 = 0x23;
const USER_RPL: u64 = 3;

/// `mov $15, %rax; syscall` without its last byte: the code that a signal handler of a libc returns to. Debuggers
/// recognise it by these bytes, too, where there is no `.eh_frame` for it.
pub const SIGRETURN: u64 = 0x0f00_0000_0fc0_c748;

/// Offsets from the stack pointer after a handler has returned. It then points to `struct ucontext`
/// (`<asm/ucontext.h>`), which begins 40 bytes before `struct sigcontext`.
pub const SIGNAL_FP: u64 = 120;
pub const SIGNAL_SP: u64 = 160;
pub const SIGNAL_IP: u64 = 168;

/// At a function's first instruction the return address is on top of the stack.
pub const ENTRY_CFA: i32 = 8;
pub const ENTRY_RA: i16 = -8;

/// `syscall`, little-endian.
const SYSCALL: u16 = 0x050f;

/// The registers of user code, by DWARF number.
#[repr(C)]
pub struct Registers {
    pub general: [u64; 16],
    pub ip: u64,
}

/// What the sampled task did in user mode, and whether its user registers are known.
pub enum User {
    /// It was in user mode when the sample was taken.
    Running,
    /// It was interrupted (an interrupt or a fault), and is in the kernel since.
    Interrupted,
    /// It is in a system call: its instruction pointer is behind the instruction.
    InSyscall,
    /// A 32-bit process: only its instruction pointer is used.
    Compat,
    /// There are none: a kernel thread, or a process that is exiting.
    None,
    /// It is not known where this kernel saves them.
    Unknown,
}

/// Copies the current task's user registers to `out`.
#[inline(always)]
pub fn user_registers(ctx: &PerfEventContext, task: u64, at: &UnwindLayout, out: &mut Registers) -> User {
    // SAFETY: the context's registers are readable at their fixed offsets. Volatile, so that LLVM does not merge loads
    // or do arithmetic on the context's pointer first, which the verifier refuses.
    let segment = unsafe { read_volatile(addr_of!((*ctx.ctx).regs.cs)) };
    if segment & USER_RPL == USER_RPL {
        macro_rules! take {
            ($($number:literal $name:ident),*) => {
                // SAFETY: as above.
                unsafe { $( out.general[$number] = read_volatile(addr_of!((*ctx.ctx).regs.$name)); )* }
            };
        }
        take!(0 rax, 1 rdx, 2 rcx, 3 rbx, 4 rsi, 5 rdi, 6 rbp, 7 rsp, 8 r8, 9 r9, 10 r10, 11 r11, 12 r12,
              13 r13, 14 r14, 15 r15);
        // SAFETY: as above.
        out.ip = unsafe { read_volatile(addr_of!((*ctx.ctx).regs.rip)) };
        return if segment == USER32_CS { User::Compat } else { User::Running };
    }
    if at.has_task_pt_regs == 0 && (at.thread_size == 0 || at.task_stack == ABSENT) {
        return User::Unknown;
    }
    let Some(regs) = saved_registers(task, at) else { return User::None };
    if regs.cs & USER_RPL != USER_RPL || regs.rip == 0 {
        return User::None;
    }
    out.general = [
        regs.rax, regs.rdx, regs.rcx, regs.rbx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    out.ip = regs.rip;
    if regs.cs == USER32_CS {
        return User::Compat;
    }
    match task::read_user::<u16>(regs.rip.wrapping_sub(2)) {
        Some(SYSCALL) => User::InSyscall,
        _ => User::Interrupted,
    }
}

/// The value of `pthread_self` in the current thread; 0: not known. In glibc and musl it is the FS base.
#[inline(always)]
pub fn thread_id(task: u64, at: &UnwindLayout) -> u64 {
    task::number(task, at.task_fsbase)
}

/// The registers that the kernel saved when it was entered from user mode: at the end of the task's kernel stack.
#[inline(always)]
fn saved_registers(task: u64, at: &UnwindLayout) -> Option<pt_regs> {
    let saved = if at.has_task_pt_regs != 0 {
        // SAFETY: both helpers have no preconditions; the verifier removes the branch where the kernel lacks them.
        unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as u64 }
    } else {
        let stack = task::read::<u64>(task, at.task_stack)?;
        stack + at.thread_size as u64 - size_of::<pt_regs>() as u64
    };
    // SAFETY: bpf_probe_read_kernel checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(saved as *const pt_regs).ok() }
}
