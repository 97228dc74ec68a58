//! Follows code from the starts of functions along all paths whose jumps are known, and finds the place of the caller's
//! frame at each instruction.
//!
//! Must not depend on: files, the instructions of an architecture ([`amd64`] decodes them). The first path that reaches an
//! instruction decides.

use std::collections::BTreeSet;
use std::ops::Bound;

use podopsy_wire::{FP_AT_CFA, FP_SAME, KIND_REGISTER, KIND_SIGNAL, KIND_STOP, Rule};

use super::amd64::{self, Flow, StackEffect};
use super::starts::FunctionStarts;
use super::{UndescribedCode, gap_at};
use crate::unwind::arch::NATIVE;
use crate::unwind::rows::TimeBudget;

/// The distance from the CFA down to the stack pointer at the start of a function: the return address has 8 bytes.
const RETURN_ADDRESS: i32 = 8;
/// Bytes of one frame. A file can contain code that grows its frame for ever.
const MAX_FRAME: i32 = 1 << 24;
/// Runs of one file. musl's libc has 11,000.
const MAX_RUNS: usize = 256 << 10;
/// Paths that wait to be followed. Code can consist of nothing but branches.
const MAX_WAITING: usize = 128 << 10;
/// The cost of an instruction, in bytes of call frame information that take the same time.
const INSTRUCTION_COST: u64 = 32;

/// A range of code with one rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct RuleRun {
    /// Offset in the file.
    pub offset: u64,
    pub end: u64,
    /// None if the rule is not known.
    pub rule: Option<Rule>,
}

/// The places of registers relative to the canonical frame address (CFA), which is 8 above the function's return address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameState {
    /// Distance from the CFA down to the stack pointer.
    stack: Option<i32>,
    /// Distance from the CFA down to the frame pointer. None if the register has another value.
    frame: Option<i32>,
    /// Distance from the CFA down to the slot where the caller's frame pointer is saved.
    saved: Option<i32>,
    /// The caller's frame pointer is neither in its register nor in a known slot.
    is_lost: bool,
    is_outermost: bool,
}

impl FrameState {
    /// The state at the first instruction of a function.
    const START: FrameState = FrameState {
        stack: Some(RETURN_ADDRESS),
        frame: None,
        saved: None,
        is_lost: false,
        is_outermost: false,
    };

    fn rule(&self) -> Option<Rule> {
        if self.is_outermost {
            return Some(Rule::of_kind(KIND_STOP));
        }
        if self.is_lost {
            return None;
        }
        // A frame pointer that points to the saved one is a real frame pointer. It is preferred to the stack pointer, because
        // a called function may remove its arguments from the stack itself.
        let has_frame = self.frame.is_some() && self.frame == self.saved;
        let (base, below) = match (self.stack, self.frame) {
            (Some(below), _) if !has_frame => (NATIVE.stack_pointer, below),
            (_, Some(below)) => (NATIVE.frame_pointer, below),
            _ => return None,
        };
        // The code has taken the return address off the stack: it is at an unknown place.
        if below < RETURN_ADDRESS {
            return None;
        }
        let (fp, fp_offset) = match self.saved {
            Some(below) => (FP_AT_CFA, i16::try_from(-below).ok()?),
            None => (FP_SAME, 0),
        };
        let base = u8::try_from(base).ok()?;
        Some(Rule { base, cfa_offset: below, ra_offset: -8, fp, fp_offset, ..Rule::of_kind(KIND_REGISTER) })
    }

    /// The state after an instruction. None if neither register has a known place any more.
    fn after(mut self, effect: StackEffect) -> Option<FrameState> {
        let above = |stack: Option<i32>, by: i32| stack.and_then(|below| below.checked_sub(by));
        match effect {
            StackEffect::Nothing => {}
            StackEffect::Grows(by) => self.grow(by),
            StackEffect::PushesFrame => {
                self.grow(8);
                self.save(self.stack);
            }
            StackEffect::PopsFrame => {
                self.restore(self.stack);
                self.grow(-8);
            }
            StackEffect::Saves(by) => self.save(above(self.stack, by)),
            StackEffect::Restores(by) => self.restore(above(self.stack, by)),
            StackEffect::FramePoints(by) => {
                self.overwrite();
                self.frame = above(self.stack, by);
            }
            StackEffect::StackPoints(by) => self.stack = above(self.frame, by),
            StackEffect::Leaves => {
                self.stack = self.frame;
                self.restore(self.stack);
                self.grow(-8);
            }
            StackEffect::Outermost if self.saved.is_none() && self.frame.is_none() => {
                self.is_outermost = true
            }
            StackEffect::Outermost | StackEffect::FrameLost => self.overwrite(),
            StackEffect::StackLost => self.stack = None,
        }
        let is_known = self.is_outermost || self.stack.or(self.frame).is_some_and(|below| below < MAX_FRAME);
        is_known.then_some(self)
    }

    fn grow(&mut self, by: i32) {
        self.stack = self.stack.and_then(|below| below.checked_add(by));
    }

    /// The frame pointer is written to a slot. Only the first write of the caller's value counts.
    fn save(&mut self, slot: Option<i32>) {
        if self.saved.is_none() && self.frame.is_none() && !self.is_lost {
            self.saved = slot;
        }
    }

    /// The frame pointer is read from a slot.
    fn restore(&mut self, slot: Option<i32>) {
        if slot.is_some() && slot == self.saved {
            (self.saved, self.frame) = (None, None);
        } else {
            self.overwrite();
        }
    }

    fn overwrite(&mut self) {
        self.frame = None;
        self.is_lost |= self.saved.is_none();
    }
}

/// A path that is still to be followed, from an address on.
#[derive(Clone, Copy)]
struct CodePath {
    address: u64,
    state: FrameState,
}

struct PathFollower<'a> {
    code: &'a UndescribedCode,
    budget: &'a mut TimeBudget,
    decoder: amd64::InstructionDecoder,
    max_rows: usize,
    /// Starts that are found on the way are added.
    starts: FunctionStarts,
    /// Starts that are taken for sure by now.
    sure_starts: BTreeSet<u64>,
    /// By gap: the bytes that are part of an instruction which was reached.
    reached: Vec<Vec<bool>>,
    runs: Vec<RuleRun>,
    todo: Vec<CodePath>,
    /// Jumps to a computed address.
    computed_jumps: Vec<CodePath>,
    /// Code after a call and padding. Either a loop begins there, or the call does not return and another function begins.
    doubtful: Vec<CodePath>,
}

/// The rules of the code, in the order in which it was reached, for at most `max_rows` rows. False if the bounds were
/// reached before all of it was followed.
pub(super) fn follow(
    code: &UndescribedCode,
    budget: &mut TimeBudget,
    max_rows: usize,
) -> (Vec<RuleRun>, bool) {
    // The code is followed twice. After a call that does not return, another function begins, and only the first pass finds
    // all functions that are called.
    let mut first = PathFollower::new(code, code.starts.clone(), budget, max_rows);
    if !first.follow_all() {
        return (first.runs, false);
    }
    let mut starts = first.starts;
    starts.sort();
    let mut second = PathFollower::new(code, starts, budget, max_rows);
    let is_complete = second.follow_all();
    (second.runs, is_complete)
}

impl<'a> PathFollower<'a> {
    fn new(
        code: &'a UndescribedCode,
        starts: FunctionStarts,
        budget: &'a mut TimeBudget,
        max_rows: usize,
    ) -> PathFollower<'a> {
        PathFollower {
            code,
            budget,
            decoder: amd64::InstructionDecoder::new(),
            max_rows,
            sure_starts: starts.sure.iter().copied().collect(),
            starts,
            reached: code.gaps.iter().map(|gap| vec![false; gap.bytes.len()]).collect(),
            runs: Vec::new(),
            todo: Vec::new(),
            computed_jumps: Vec::new(),
            doubtful: Vec::new(),
        }
    }

    /// False if the bounds are reached; so it is for all functions below that return a bool.
    fn follow_all(&mut self) -> bool {
        self.add_signal_returns();
        self.follow_functions() && self.follow_switch_cases() && self.follow_rest()
    }

    /// Adds the code that signal handlers return to. No call leads there, so the address before it is looked up, which
    /// belongs to another function: its last byte gets the rule, too.
    fn add_signal_returns(&mut self) {
        let rule = Some(Rule::of_kind(KIND_SIGNAL));
        for (gap, reached) in self.code.gaps.iter().zip(&mut self.reached) {
            for at in memchr::memmem::find_iter(&gap.bytes, &amd64::SIGRETURN) {
                let (from, to) = (at.saturating_sub(1), at + amd64::SIGRETURN.len());
                reached[from..to].fill(true);
                self.runs.push(RuleRun {
                    offset: gap.offset + from as u64,
                    end: gap.offset + to as u64,
                    rule,
                });
            }
        }
    }

    /// Follows the functions that are called, then those that a pointer leads to, unless it leads into another function.
    fn follow_functions(&mut self) -> bool {
        let (sure, labels) = (self.starts.sure.clone(), self.starts.labels.clone());
        for address in sure {
            let is_outermost = address == self.code.entry;
            if !self.follow_with_branches(CodePath {
                address,
                state: FrameState { is_outermost, ..FrameState::START },
            }) {
                return false;
            }
        }
        for address in labels {
            let Some(is_within) = self.is_within(address) else { return false };
            if !is_within {
                self.sure_starts.insert(address);
                if !self.follow_with_branches(CodePath { address, state: FrameState::START }) {
                    return false;
                }
            }
        }
        true
    }

    /// True if code of a known function was reached between the address and the next start. None if no time is left.
    fn is_within(&mut self, address: u64) -> Option<bool> {
        let Some(index) = gap_at(&self.code.gaps, address) else { return Some(true) };
        let gap = &self.code.gaps[index];
        let end = self.next_start(address).min(gap.end());
        let (from, to) = ((address - gap.address) as usize, (end - gap.address) as usize);
        Some(self.find(index, from, to, true)? < to)
    }

    /// The first byte of a gap in `from..to` that was reached, or was not reached, and `to` if there is no such byte. None if
    /// no time is left.
    fn find(&mut self, index: usize, from: usize, to: usize, is_reached: bool) -> Option<usize> {
        let rest = self.reached[index].get(from..to).unwrap_or_default();
        let len = rest.iter().position(|byte| *byte == is_reached).unwrap_or(rest.len());
        // Code can contain many such places, each far away from where its search begins.
        self.budget.spend(len as u64 / 16).then_some(from + len)
    }

    /// The start of the next function after an address.
    fn next_start(&self, address: u64) -> u64 {
        let mut after = self.sure_starts.range((Bound::Excluded(address), Bound::Unbounded));
        after.next().copied().unwrap_or(u64::MAX)
    }

    /// Follows the doubtful code that no other path has reached.
    fn follow_rest(&mut self) -> bool {
        let doubtful = std::mem::take(&mut self.doubtful);
        let labels = self
            .starts
            .labels
            .clone()
            .into_iter()
            .map(|address| CodePath { address, state: FrameState::START });
        doubtful.into_iter().chain(labels).all(|path| self.follow_with_branches(path))
    }

    /// Follows a path, and all paths that branch off it.
    fn follow_with_branches(&mut self, path: CodePath) -> bool {
        self.todo.push(path);
        while let Some(path) = self.todo.pop() {
            if !self.follow_path(path) {
                return false;
            }
        }
        true
    }

    fn has_capacity(&self) -> bool {
        let waiting = self.todo.len() + self.computed_jumps.len() + self.doubtful.len();
        waiting < MAX_WAITING && self.runs.len() < MAX_RUNS.min(self.max_rows / 2)
    }

    /// Follows a path to its end, or to code that was reached before.
    fn follow_path(&mut self, CodePath { address, mut state }: CodePath) -> bool {
        let Some(index) = gap_at(&self.code.gaps, address) else { return true };
        let gap = &self.code.gaps[index];
        let mut at = (address - gap.address) as usize;
        let mut run =
            RuleRun { offset: gap.offset + at as u64, end: gap.offset + at as u64, rule: state.rule() };
        let (mut is_after_call, mut is_after_push) = (false, false);
        loop {
            let now = gap.address + at as u64;
            // Another function begins here: the call before does not return.
            let is_other_function = now != address && self.sure_starts.contains(&now);
            if is_other_function || at >= gap.bytes.len() {
                break;
            }
            let Some(instruction) = self.decoder.decode(&gap.bytes[at..], now) else { break };
            if self.reached[index][at..at + instruction.len].contains(&true) {
                break;
            }
            if !self.budget.spend(INSTRUCTION_COST) || !self.has_capacity() {
                self.add_run(run);
                return false;
            }
            if is_after_call && instruction.flow == Flow::Pads {
                self.doubtful.push(CodePath { address: now, state });
                break;
            }
            is_after_call = matches!(instruction.flow, Flow::Calls(_));
            if let Some(to) = instruction.pointer {
                self.starts.add_pointer(&self.code.gaps, now, to);
            }
            if let Some(to) = instruction.number {
                self.starts.add_number(&self.code.gaps, now, to);
            }
            self.reached[index][at..at + instruction.len].fill(true);
            // `push %rbp; jmp *%rbx`: Boost's contexts begin so on a stack of their own. What is pushed is the address that the
            // function returns to, and there is no caller above it.
            let begins_stack = is_after_push && instruction.flow == Flow::JumpsComputed;
            is_after_push = state == FrameState::START && instruction.effect == StackEffect::PushesFrame;
            let rule = state.rule().filter(|_| !begins_stack);
            if rule != run.rule {
                self.add_run(run);
                run = RuleRun { offset: run.end, end: run.end, rule };
            }
            at += instruction.len;
            run.end += instruction.len as u64;
            let Some(after) = state.after(instruction.effect) else { break };
            state = after;
            match instruction.flow {
                Flow::Continues | Flow::Pads | Flow::Calls(None) => {}
                Flow::Calls(Some(to)) => {
                    if self.starts.add_sure(&self.code.gaps, to) && self.sure_starts.insert(to) {
                        self.todo.push(CodePath { address: to, state: FrameState::START });
                    }
                }
                Flow::Ends => break,
                Flow::Jumps(to) => {
                    self.todo.push(CodePath { address: to, state });
                    break;
                }
                Flow::Branches(to) => self.todo.push(CodePath { address: to, state }),
                Flow::JumpsComputed => {
                    self.computed_jumps.push(CodePath { address: now, state });
                    break;
                }
            }
        }
        self.add_run(run);
        true
    }

    fn add_run(&mut self, run: RuleRun) {
        if run.end > run.offset {
            self.runs.push(run);
        }
    }

    /// Follows the cases of `switch` statements, which are reached by a table of addresses: code after a computed jump that
    /// no other path reaches, up to the start of the next function. There the stack is as it was at the nearest jump. Jumps
    /// with nothing on the stack come last, because they are more likely tail calls of another function.
    fn follow_switch_cases(&mut self) -> bool {
        while !self.computed_jumps.is_empty() {
            let mut jumps = std::mem::take(&mut self.computed_jumps);
            jumps.sort_by_key(|jump| (jump.state == FrameState::START, std::cmp::Reverse(jump.address)));
            if !jumps.into_iter().all(|jump| self.follow_unreached_after(jump)) {
                return false;
            }
        }
        true
    }

    /// Follows all unreached code between a computed jump and the next start, with the jump's state.
    fn follow_unreached_after(&mut self, CodePath { address, state }: CodePath) -> bool {
        let Some(index) = gap_at(&self.code.gaps, address) else { return true };
        let gap = &self.code.gaps[index];
        let end = self.next_start(address).min(gap.end());
        let (mut at, end) = ((address - gap.address) as usize, (end - gap.address) as usize);
        loop {
            let Some(hole) = self.find(index, at, end, false) else { return false };
            if hole >= end {
                return true;
            }
            if !self.follow_with_branches(CodePath { address: gap.address + hole as u64, state }) {
                return false;
            }
            // Bytes that do not decode from the first one are not tried from the second one.
            let Some(next) = self.find(index, hole, end, true) else { return false };
            at = next;
        }
    }
}
