//! Code followed from where functions begin, along all paths whose jumps are known: where the caller's frame is at each
//! instruction.
//!
//! Must not know: files, machines' instructions ([`amd64`] reads them). What is met first at an address holds there.

use std::collections::BTreeSet;
use std::ops::Bound;

use podopsy_wire::{FP_AT_CFA, FP_SAME, KIND_REGISTER, KIND_SIGNAL, KIND_STOP, Rule};

use super::amd64::{self, Effect, Flow};
use super::starts::Starts;
use super::{Code, gap_at};
use crate::unwind::arch::HERE;
use crate::unwind::rows::Budget;

/// Beside a call, where the stack pointer is with nothing pushed: the return address has 8 bytes.
const CALLED: i32 = 8;
/// A frame of more is none: a step that grows it for ever is the file's to write.
const MAX_FRAME: i32 = 1 << 24;
/// Runs of one file; musl's libc has 11,000.
const MAX_RUNS: usize = 256 << 10;
/// Paths that wait to be followed: code can be made of nothing but branches.
const MAX_WAITING: usize = 128 << 10;
/// What an instruction takes of a budget, in bytes of call frame information that take as long.
const COST: u64 = 32;

/// Code with one rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// In the file, with its end.
    pub offset: u64,
    pub end: u64,
    /// None: not known there.
    pub rule: Option<Rule>,
}

/// Where things are, in relation to the canonical frame address (CFA), which is 8 above where a function's return address
/// is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// The stack pointer, so far below.
    stack: Option<i32>,
    /// The frame pointer, so far below; none: it has another value.
    frame: Option<i32>,
    /// The caller's frame pointer is kept, so far below.
    kept: Option<i32>,
    /// The caller's frame pointer is in neither place.
    is_lost: bool,
    is_outermost: bool,
}

impl State {
    const START: State =
        State { stack: Some(CALLED), frame: None, kept: None, is_lost: false, is_outermost: false };

    fn rule(&self) -> Option<Rule> {
        if self.is_outermost {
            return Some(Rule::of_kind(KIND_STOP));
        }
        if self.is_lost {
            return None;
        }
        // A frame pointer that points to its caller's is one: what is called may take its arguments off the stack itself.
        let is_kept = self.frame.is_some() && self.frame == self.kept;
        let (base, below) = match (self.stack, self.frame) {
            (Some(below), _) if !is_kept => (HERE.stack, below),
            (_, Some(below)) => (HERE.frame, below),
            _ => return None,
        };
        // Whoever has taken the return address off the stack has it elsewhere.
        if below < CALLED {
            return None;
        }
        let (fp, fp_offset) = match self.kept {
            Some(below) => (FP_AT_CFA, i16::try_from(-below).ok()?),
            None => (FP_SAME, 0),
        };
        let base = u8::try_from(base).ok()?;
        Some(Rule { base, cfa_offset: below, ra_offset: -8, fp, fp_offset, ..Rule::of_kind(KIND_REGISTER) })
    }

    /// After an instruction; none: nothing is known any more.
    fn after(mut self, effect: Effect) -> Option<State> {
        let above = |stack: Option<i32>, by: i32| stack.and_then(|below| below.checked_sub(by));
        match effect {
            Effect::Nothing => {}
            Effect::Grows(by) => self.grow(by),
            Effect::PushesFrame => {
                self.grow(8);
                self.keep(self.stack);
            }
            Effect::PopsFrame => {
                self.restore(self.stack);
                self.grow(-8);
            }
            Effect::Keeps(by) => self.keep(above(self.stack, by)),
            Effect::Restores(by) => self.restore(above(self.stack, by)),
            Effect::FramePoints(by) => {
                self.overwrite();
                self.frame = above(self.stack, by);
            }
            Effect::StackPoints(by) => self.stack = above(self.frame, by),
            Effect::Leaves => {
                self.stack = self.frame;
                self.restore(self.stack);
                self.grow(-8);
            }
            Effect::Outermost if self.kept.is_none() && self.frame.is_none() => self.is_outermost = true,
            Effect::Outermost | Effect::FrameLost => self.overwrite(),
            Effect::StackLost => self.stack = None,
        }
        let is_known = self.is_outermost || self.stack.or(self.frame).is_some_and(|below| below < MAX_FRAME);
        is_known.then_some(self)
    }

    fn grow(&mut self, by: i32) {
        self.stack = self.stack.and_then(|below| below.checked_add(by));
    }

    /// The frame pointer is written to a slot: the caller's is, once.
    fn keep(&mut self, slot: Option<i32>) {
        if self.kept.is_none() && self.frame.is_none() && !self.is_lost {
            self.kept = slot;
        }
    }

    /// The frame pointer is read from a slot.
    fn restore(&mut self, slot: Option<i32>) {
        if slot.is_some() && slot == self.kept {
            (self.kept, self.frame) = (None, None);
        } else {
            self.overwrite();
        }
    }

    fn overwrite(&mut self) {
        self.frame = None;
        self.is_lost |= self.kept.is_none();
    }
}

/// A path that is still to be followed.
#[derive(Clone, Copy)]
struct Path {
    address: u64,
    state: State,
}

struct Paths<'a> {
    code: &'a Code,
    budget: &'a mut Budget,
    reader: amd64::Reader,
    room: usize,
    /// Those that are found on the way are added.
    starts: Starts,
    /// Where functions begin, as far as that is taken for sure by now.
    begins: BTreeSet<u64>,
    /// Bytes that are part of an instruction that was met, by gap.
    met: Vec<Vec<bool>>,
    runs: Vec<Run>,
    todo: Vec<Path>,
    /// Jumps to an address that is computed.
    jumps: Vec<Path>,
    /// Behind a call and padding: a loop begins there, or the call does not come back and it is another function.
    doubtful: Vec<Path>,
}

/// What is known of the code, in the order in which it was met, and whether all of it was followed: there may be no more time
/// or no room for more, `room` rows among it.
pub(super) fn follow(code: &Code, budget: &mut Budget, room: usize) -> (Vec<Run>, bool) {
    // What is called is known when all has been followed once: a call that does not come back is followed by another
    // function, and it has to be known where that begins.
    let mut first = Paths::new(code, code.starts.clone(), budget, room);
    if !first.all_functions() {
        return (first.runs, false);
    }
    let mut starts = first.starts;
    starts.in_order();
    let mut second = Paths::new(code, starts, budget, room);
    let is_whole = second.all_functions();
    (second.runs, is_whole)
}

impl<'a> Paths<'a> {
    fn new(code: &'a Code, starts: Starts, budget: &'a mut Budget, room: usize) -> Paths<'a> {
        Paths {
            code,
            budget,
            reader: amd64::Reader::new(),
            room,
            begins: starts.sure.iter().copied().collect(),
            starts,
            met: code.gaps.iter().map(|gap| vec![false; gap.bytes.len()]).collect(),
            runs: Vec::new(),
            todo: Vec::new(),
            jumps: Vec::new(),
            doubtful: Vec::new(),
        }
    }

    fn all_functions(&mut self) -> bool {
        self.signals();
        self.functions() && self.tables() && self.rest()
    }

    /// What signal handlers return to. Nobody calls it: the address before it is looked up, and that is another function's.
    fn signals(&mut self) {
        let rule = Some(Rule::of_kind(KIND_SIGNAL));
        for (gap, met) in self.code.gaps.iter().zip(&mut self.met) {
            for at in memchr::memmem::find_iter(&gap.bytes, &amd64::SIGRETURN) {
                let (from, to) = (at.saturating_sub(1), at + amd64::SIGRETURN.len());
                met[from..to].fill(true);
                self.runs.push(Run { offset: gap.offset + from as u64, end: gap.offset + to as u64, rule });
            }
        }
    }

    /// Functions that are called, and then those that something points to. A pointer into the midst of a function is none.
    fn functions(&mut self) -> bool {
        let (sure, labels) = (self.starts.sure.clone(), self.starts.labels.clone());
        for address in sure {
            let is_outermost = address == self.code.entry;
            if !self.all(Path { address, state: State { is_outermost, ..State::START } }) {
                return false;
            }
        }
        for address in labels {
            let Some(is_within) = self.is_within(address) else { return false };
            if !is_within {
                self.begins.insert(address);
                if !self.all(Path { address, state: State::START }) {
                    return false;
                }
            }
        }
        true
    }

    /// Whether a function goes on behind an address that it was not met at; none: there is no more time.
    fn is_within(&mut self, address: u64) -> Option<bool> {
        let Some(index) = gap_at(&self.code.gaps, address) else { return Some(true) };
        let gap = &self.code.gaps[index];
        let end = self.next(address).min(gap.end());
        let (from, to) = ((address - gap.address) as usize, (end - gap.address) as usize);
        Some(self.find(index, from, to, true)? < to)
    }

    /// Where in a gap the first byte is that was met, or was not; `to`: nowhere before. None: there is no more time.
    fn find(&mut self, index: usize, from: usize, to: usize, met: bool) -> Option<usize> {
        let rest = self.met[index].get(from..to).unwrap_or_default();
        let len = rest.iter().position(|byte| *byte == met).unwrap_or(rest.len());
        // Code can be made to have many places of which each is looked for from far away.
        self.budget.spend(len as u64 / 16).then_some(from + len)
    }

    /// Where the next function begins.
    fn next(&self, address: u64) -> u64 {
        let mut behind = self.begins.range((Bound::Excluded(address), Bound::Unbounded));
        behind.next().copied().unwrap_or(u64::MAX)
    }

    /// What is left, where nothing better is known.
    fn rest(&mut self) -> bool {
        let doubtful = std::mem::take(&mut self.doubtful);
        let labels =
            self.starts.labels.clone().into_iter().map(|address| Path { address, state: State::START });
        doubtful.into_iter().chain(labels).all(|path| self.all(path))
    }

    /// Follows a path with all that branch off it; false: there is no more time or room.
    fn all(&mut self, path: Path) -> bool {
        self.todo.push(path);
        while let Some(path) = self.todo.pop() {
            if !self.path(path) {
                return false;
            }
        }
        true
    }

    fn has_room(&self) -> bool {
        let waiting = self.todo.len() + self.jumps.len() + self.doubtful.len();
        waiting < MAX_WAITING && self.runs.len() < MAX_RUNS.min(self.room / 2)
    }

    /// Follows a path to its end, or to code that was met.
    fn path(&mut self, Path { address, mut state }: Path) -> bool {
        let Some(index) = gap_at(&self.code.gaps, address) else { return true };
        let gap = &self.code.gaps[index];
        let mut at = (address - gap.address) as usize;
        let mut run = Run { offset: gap.offset + at as u64, end: gap.offset + at as u64, rule: state.rule() };
        let mut called = false;
        loop {
            let now = gap.address + at as u64;
            // A call that does not come back is followed by another function.
            let is_next = now != address && self.begins.contains(&now);
            if is_next || at >= gap.bytes.len() {
                break;
            }
            let Some(step) = self.reader.step(&gap.bytes[at..], now) else { break };
            if self.met[index][at..at + step.len].contains(&true) {
                break;
            }
            if !self.budget.spend(COST) || !self.has_room() {
                self.end(run);
                return false;
            }
            if called && step.flow == Flow::Pads {
                self.doubtful.push(Path { address: now, state });
                break;
            }
            called = matches!(step.flow, Flow::Calls(_));
            if let Some(to) = step.points {
                self.starts.point(&self.code.gaps, now, to);
            }
            self.met[index][at..at + step.len].fill(true);
            let rule = state.rule();
            if rule != run.rule {
                self.end(run);
                run = Run { offset: run.end, end: run.end, rule };
            }
            at += step.len;
            run.end += step.len as u64;
            let Some(after) = state.after(step.effect) else { break };
            state = after;
            match step.flow {
                Flow::On | Flow::Pads | Flow::Calls(None) => {}
                Flow::Calls(Some(to)) => {
                    if self.starts.call(&self.code.gaps, to) && self.begins.insert(to) {
                        self.todo.push(Path { address: to, state: State::START });
                    }
                }
                Flow::Ends => break,
                Flow::Jumps(to) => {
                    self.todo.push(Path { address: to, state });
                    break;
                }
                Flow::Branches(to) => self.todo.push(Path { address: to, state }),
                Flow::Anywhere => {
                    self.jumps.push(Path { address: now, state });
                    break;
                }
            }
        }
        self.end(run);
        true
    }

    fn end(&mut self, run: Run) {
        if run.end > run.offset {
            self.runs.push(run);
        }
    }

    /// What a `switch` jumps to by a table: code behind the jump that nothing else leads to, before the next function
    /// begins. There the stack is as it was at the jump, the nearest one. With nothing on it a jump is another function's call,
    /// more likely.
    fn tables(&mut self) -> bool {
        while !self.jumps.is_empty() {
            let mut jumps = std::mem::take(&mut self.jumps);
            jumps.sort_by_key(|jump| (jump.state == State::START, std::cmp::Reverse(jump.address)));
            if !jumps.into_iter().all(|jump| self.holes(jump)) {
                return false;
            }
        }
        true
    }

    fn holes(&mut self, Path { address, state }: Path) -> bool {
        let Some(index) = gap_at(&self.code.gaps, address) else { return true };
        let gap = &self.code.gaps[index];
        let end = self.next(address).min(gap.end());
        let (mut at, end) = ((address - gap.address) as usize, (end - gap.address) as usize);
        loop {
            let Some(hole) = self.find(index, at, end, false) else { return false };
            if hole >= end {
                return true;
            }
            if !self.all(Path { address: gap.address + hole as u64, state }) {
                return false;
            }
            // What is no code from its beginning is none from its second byte.
            let Some(next) = self.find(index, hole, end, true) else { return false };
            at = next;
        }
    }
}
