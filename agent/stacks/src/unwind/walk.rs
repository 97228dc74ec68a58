//! A stack walked in user space by our rows and rules, as `probe-ebpf/src/unwind.rs` does it in the kernel.
//!
//! For tests: what the kernel side would say of a stopped thread. It must follow that file step by step.

use podopsy_wire::{
    End, FP_AT_CFA, FP_AT_FP, FP_SAME, FRAMES_MAX, KIND_DEREF, KIND_INDEXED, KIND_NONE, KIND_PLT,
    KIND_REGISTER, KIND_SIGNAL, KIND_STOP, RA_AT_CFA, Rule,
};

use super::arch::HERE;

/// `mov $15, %rax; syscall`: what a signal handler returns to.
const SIGRETURN: u64 = 0x0f00_0000_0fc0_c748;
/// In `struct ucontext`, from the stack pointer behind the handler (`probe-ebpf/src/arch.rs`).
const SIGNAL_FP: u64 = 120;
const SIGNAL_SP: u64 = 160;
const SIGNAL_IP: u64 = 168;

/// What is behind an address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// A file with a table: the rule there.
    Rule(Rule),
    /// A file without.
    NoTable,
    Anonymous,
    Nowhere,
}

/// A stopped thread: its registers by DWARF number, and its memory.
pub(super) struct Thread<'a> {
    pub ip: u64,
    pub registers: [u64; 16],
    pub in_syscall: bool,
    pub word: &'a dyn Fn(u64) -> Option<u64>,
    pub place: &'a dyn Fn(u64) -> Place,
}

struct State<'a> {
    thread: &'a Thread<'a>,
    ip: u64,
    sp: u64,
    fp: u64,
    exact: bool,
    innermost: bool,
    frames: Vec<u64>,
    guessed: Option<End>,
}

/// Addresses, innermost first, and why it ends; with the rule that each frame was left by.
pub(super) fn walk(thread: &Thread<'_>) -> (Vec<u64>, End) {
    let mut state = State {
        thread,
        ip: thread.ip,
        sp: thread.registers[usize::from(HERE.stack)],
        fp: thread.registers[usize::from(HERE.frame)],
        exact: !thread.in_syscall,
        innermost: true,
        frames: Vec::new(),
        guessed: None,
    };
    loop {
        if let Err(end) = state.frame() {
            let end = state.guessed.filter(|_| end != End::Complete).unwrap_or(end);
            return (state.frames, end);
        }
    }
}

impl State<'_> {
    fn frame(&mut self) -> Result<(), End> {
        if self.frames.len() >= FRAMES_MAX {
            return Err(End::Truncated);
        }
        self.frames.push(self.ip);
        let address = if self.exact { self.ip } else { self.ip.wrapping_sub(1) };
        match (self.thread.place)(address) {
            Place::Rule(rule) => self.follow(&rule),
            Place::NoTable => self.without_rule(End::TableNone),
            Place::Anonymous => self.without_rule(End::Anonymous),
            Place::Nowhere => Err(End::NoMapping),
        }
    }

    fn follow(&mut self, rule: &Rule) -> Result<(), End> {
        match rule.kind {
            KIND_STOP => return Err(End::Complete),
            KIND_NONE => return self.without_rule(End::NoRule),
            KIND_SIGNAL => return self.signal(),
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
        self.caller(ra, cfa)
    }

    fn caller(&mut self, ip: u64, sp: u64) -> Result<(), End> {
        if sp < self.sp || (sp == self.sp && !self.innermost) {
            return Err(End::NoProgress);
        }
        if ip == 0 {
            return Err(End::Complete);
        }
        (self.ip, self.sp) = (ip, sp);
        (self.exact, self.innermost) = (false, false);
        Ok(())
    }

    fn without_rule(&mut self, why: End) -> Result<(), End> {
        if (self.thread.word)(self.ip) == Some(SIGRETURN) {
            return self.signal();
        }
        if self.thread.in_syscall && self.innermost {
            let ra = self.word(self.sp)?;
            return self.caller(ra, self.sp.wrapping_add(8));
        }
        if self.fp == 0 {
            return Err(if self.innermost { why } else { End::Complete });
        }
        self.guessed.get_or_insert(why);
        if self.fp < self.sp || self.fp & 7 != 0 {
            return Err(why);
        }
        let (fp, sp) = (self.fp, self.fp.wrapping_add(16));
        let ra = self.word(fp.wrapping_add(8)).map_err(|_| why)?;
        self.fp = self.word(fp).map_err(|_| why)?;
        self.caller(ra, sp)
    }

    fn signal(&mut self) -> Result<(), End> {
        let at = self.sp;
        self.ip = self.word(at.wrapping_add(SIGNAL_IP))?;
        self.fp = self.word(at.wrapping_add(SIGNAL_FP))?;
        self.sp = self.word(at.wrapping_add(SIGNAL_SP))?;
        (self.exact, self.innermost) = (true, false);
        Ok(())
    }

    fn register(&self, number: u8) -> Result<u64, End> {
        match u16::from(number) {
            stack if stack == HERE.stack => Ok(self.sp),
            frame if frame == HERE.frame => Ok(self.fp),
            _ if self.innermost => Ok(self.thread.registers[usize::from(number & 15)]),
            _ => Err(End::Unsupported),
        }
    }

    fn word(&self, address: u64) -> Result<u64, End> {
        (self.thread.word)(address).ok_or(End::Unreadable)
    }
}
