//! Walks the stack of a stopped thread in user space, by the same rows and rules as `probe-ebpf/src/unwind.rs` in the
//! kernel. The two must stay the same, step by step.

use podopsy_wire::{
    End, FP_AT_CFA, FP_AT_FP, FP_SAME, FRAMES_MAX, KIND_DEREF, KIND_INDEXED, KIND_NONE, KIND_PLT,
    KIND_REGISTER, KIND_SIGNAL, KIND_STOP, KIND_SWITCH, RA_AT_CFA, Rule,
};

use podopsy_parse::unwind::NATIVE;

/// `mov $15, %rax; syscall`. A signal handler returns to it.
const SIGRETURN: u64 = 0x0f00_0000_0fc0_c748;
/// Offsets in `struct ucontext`, from the stack pointer after the handler has returned (`probe-ebpf/src/arch.rs`).
const SIGNAL_FP: u64 = 120;
const SIGNAL_SP: u64 = 160;
const SIGNAL_IP: u64 = 168;
const SWITCHES_MAX: u32 = 16;

/// What is mapped at an address.
#[derive(Clone, Copy, Debug)]
pub(super) enum MappedCode {
    /// A file with a table, and the rule at that offset.
    Rule(Rule),
    /// A file without a table.
    NoTable,
    Anonymous,
    Unmapped,
}

/// A stopped thread: its registers by DWARF number, and access to its memory.
pub(super) struct StoppedThread<'a> {
    pub ip: u64,
    pub registers: [u64; 16],
    pub in_syscall: bool,
    pub word: &'a dyn Fn(u64) -> Option<u64>,
    pub mapped_code: &'a dyn Fn(u64) -> MappedCode,
}

struct StackWalker<'a> {
    thread: &'a StoppedThread<'a>,
    ip: u64,
    sp: u64,
    fp: u64,
    /// `ip` is the address of an instruction; otherwise it is a return address.
    is_exact: bool,
    is_innermost: bool,
    frames: Vec<u64>,
    switches: u32,
    /// Why a frame pointer had to be used, at the first frame where that was so.
    guess_reason: Option<End>,
}

/// The addresses of the stack, innermost first, and why it ends.
pub(super) fn walk(thread: &StoppedThread<'_>) -> (Vec<u64>, End) {
    let mut walker = StackWalker {
        thread,
        ip: thread.ip,
        sp: thread.registers[usize::from(NATIVE.stack_pointer)],
        fp: thread.registers[usize::from(NATIVE.frame_pointer)],
        is_exact: !thread.in_syscall,
        is_innermost: true,
        frames: Vec::new(),
        switches: 0,
        guess_reason: None,
    };
    loop {
        if let Err(end) = walker.walk_frame() {
            let end = walker.guess_reason.filter(|_| end != End::Complete).unwrap_or(end);
            return (walker.frames, end);
        }
    }
}

impl StackWalker<'_> {
    fn walk_frame(&mut self) -> Result<(), End> {
        if self.frames.len() >= FRAMES_MAX {
            return Err(End::Truncated);
        }
        let address = if self.is_exact { self.ip } else { self.ip.wrapping_sub(1) };
        let code = (self.thread.mapped_code)(address);
        if !matches!(code, MappedCode::Unmapped) {
            self.frames.push(self.ip);
        }
        match code {
            MappedCode::Rule(rule) => self.follow_rule(&rule),
            MappedCode::NoTable => self.follow_without_rule(End::TableNone),
            MappedCode::Anonymous => self.follow_without_rule(End::Anonymous),
            MappedCode::Unmapped => Err(End::NoMapping),
        }
    }

    fn follow_rule(&mut self, rule: &Rule) -> Result<(), End> {
        match rule.kind {
            KIND_STOP => return Err(End::Complete),
            KIND_NONE => return self.follow_without_rule(End::NoRule),
            KIND_SIGNAL => return self.follow_signal(),
            KIND_SWITCH => return self.follow_switch(rule),
            KIND_REGISTER | KIND_DEREF | KIND_INDEXED | KIND_PLT => {}
            _ => return Err(End::Unsupported),
        }
        let mut cfa = self.register(rule.base)?.wrapping_add_signed(i64::from(rule.cfa_offset));
        let extra = i64::from(rule.extra);
        match rule.kind {
            KIND_DEREF => cfa = self.word(cfa)?.wrapping_add_signed(extra),
            KIND_INDEXED => {
                let index = self.register(rule.index)?;
                cfa = self.word(cfa.wrapping_add(index << 3))?.wrapping_add_signed(extra);
            }
            KIND_PLT if (self.ip & 15).cast_signed() >= extra => cfa = cfa.wrapping_add(8),
            _ => {}
        }
        let ra = match rule.ra {
            RA_AT_CFA => self.word(cfa.wrapping_add_signed(i64::from(rule.ra_offset)))?,
            number => self.register(number - 1)?,
        };
        let fp_at = match rule.fp {
            FP_SAME => None,
            FP_AT_CFA => Some(cfa),
            FP_AT_FP => Some(self.fp),
            _ => Some(self.sp),
        };
        if let Some(at) = fp_at {
            self.fp = self.word(at.wrapping_add_signed(i64::from(rule.fp_offset)))?;
        }
        self.set_caller(ra, cfa)
    }

    fn set_caller(&mut self, ip: u64, sp: u64) -> Result<(), End> {
        if sp < self.sp || (sp == self.sp && !self.is_innermost) {
            return Err(End::NoProgress);
        }
        if ip == 0 {
            return Err(if self.fp == 0 { End::Complete } else { End::NoCaller });
        }
        (self.ip, self.sp) = (ip, sp);
        (self.is_exact, self.is_innermost) = (false, false);
        Ok(())
    }

    fn follow_without_rule(&mut self, reason: End) -> Result<(), End> {
        if (self.thread.word)(self.ip) == Some(SIGRETURN) {
            return self.follow_signal();
        }
        if self.thread.in_syscall && self.is_innermost {
            let ra = self.word(self.sp)?;
            return self.set_caller(ra, self.sp.wrapping_add(8));
        }
        if self.fp == 0 {
            let may_be_outermost = !self.is_innermost && reason != End::Anonymous;
            return Err(if may_be_outermost { End::Complete } else { reason });
        }
        self.guess_reason.get_or_insert(reason);
        if self.fp < self.sp || self.fp & 7 != 0 {
            return Err(reason);
        }
        let (fp, sp) = (self.fp, self.fp.wrapping_add(16));
        let ra = self.word(fp.wrapping_add(8)).map_err(|_| reason)?;
        self.fp = self.word(fp).map_err(|_| reason)?;
        self.set_caller(ra, sp)
    }

    fn follow_switch(&mut self, rule: &Rule) -> Result<(), End> {
        let saved = self.sp.wrapping_sub(16);
        let is_in_register = self.is_innermost || (self.frames.len() <= 2 && self.fp != saved);
        let fp = if rule.fp == FP_SAME || is_in_register { self.fp } else { self.word(saved)? };
        if fp == 0 {
            return Err(if rule.extra == 0 { End::StackSwitch } else { End::Complete });
        }
        self.switches += 1;
        if self.switches > SWITCHES_MAX || fp & 7 != 0 {
            return Err(End::StackSwitch);
        }
        let ra = self.word(fp.wrapping_add(8)).map_err(|_| End::StackSwitch)?;
        let outer = self.word(fp).map_err(|_| End::StackSwitch)?;
        if ra == 0 {
            return Err(End::StackSwitch);
        }
        (self.ip, self.sp, self.fp) = (ra, fp.wrapping_add(16), outer);
        (self.is_exact, self.is_innermost) = (false, false);
        Ok(())
    }

    fn follow_signal(&mut self) -> Result<(), End> {
        let at = self.sp;
        self.ip = self.word(at.wrapping_add(SIGNAL_IP))?;
        self.fp = self.word(at.wrapping_add(SIGNAL_FP))?;
        self.sp = self.word(at.wrapping_add(SIGNAL_SP))?;
        (self.is_exact, self.is_innermost) = (true, false);
        Ok(())
    }

    fn register(&self, number: u8) -> Result<u64, End> {
        match u16::from(number) {
            stack if stack == NATIVE.stack_pointer => Ok(self.sp),
            frame if frame == NATIVE.frame_pointer => Ok(self.fp),
            _ if self.is_innermost => Ok(self.thread.registers[usize::from(number & 15)]),
            _ => Err(End::Unsupported),
        }
    }

    fn word(&self, address: u64) -> Result<u64, End> {
        (self.thread.word)(address).ok_or(End::Unreadable)
    }
}
