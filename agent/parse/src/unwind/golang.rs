//! Adds rows for Go's functions, read from Go's own tables, to those from call frame information, and replaces those of
//! functions that neither describes: where a function has switched to another stack, its caller is not where the tables of
//! stack sizes say.
//!
//! Must not depend on: the layout of Go's tables, which [`crate::symbolize::go`] reads.

use std::fs::File;
use std::hash::{Hash, Hasher};

use podopsy_wire::{
    FP_AT_SP, FP_SAME, KIND_REGISTER, KIND_SIGNAL, KIND_STOP, KIND_SWITCH, RULE_NONE, RULE_STOP, Rule,
};

use super::arch::NATIVE;
use super::code;
use super::rows::{DescribedFunction, MAX_ROWS, RowCollector, UnwindRow};
use crate::StackLossReason;
use crate::elf::{Layout, Section, layout, read_at};
use crate::names::go::{self, GoFunctionKind, GoStack};

/// Bytes of the tables that are read at a time when they are hashed.
const CHUNK: u64 = 64 << 10;

/// Special functions of a program. A real one has some thirty.
const MAX_SPECIAL: usize = 256;
/// Bytes of code of a special function.
const MAX_CODE: u64 = 4 << 10;

/// The tables of a Go program.
#[derive(Debug)]
pub(super) struct GoTables {
    file: File,
    offset: u64,
    size: u64,
    /// The program was stripped of its `.debug_frame`, which was made from these tables.
    pub describes_all: bool,
    special: Vec<SpecialCode>,
}

/// Code whose rule does not follow from the size of its stack. Addresses are virtual addresses of the file.
#[derive(Debug, Hash)]
struct SpecialCode {
    start: u64,
    end: u64,
    kind: GoFunctionKind,
}

/// Hashes the bytes of the tables, up to the first that cannot be read: no row can come from the bytes after it either.
impl Hash for GoTables {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.special.hash(state);
        if !self.describes_all {
            return;
        }
        self.size.hash(state);
        for at in (0..self.size).step_by(CHUNK as usize) {
            let len = CHUNK.min(self.size - at) as usize;
            let Ok(bytes) = read_at(&self.file, self.offset + at, len) else { return };
            state.write(&bytes);
        }
    }
}

impl GoTables {
    /// Keeps a descriptor of the file. An error means that the tables are too large or cannot be read.
    pub fn new(
        file: &File,
        section: &Section,
        max_bytes: u64,
        describes_all: bool,
    ) -> Result<GoTables, StackLossReason> {
        if section.size > max_bytes {
            return Err(StackLossReason::SectionTooLarge);
        }
        section.offset.checked_add(section.size).ok_or(StackLossReason::SectionUnreadable)?;
        let file = file.try_clone().map_err(|_| StackLossReason::SectionUnreadable)?;
        let special = find_special(&file);
        Ok(GoTables { file, offset: section.offset, size: section.size, describes_all, special })
    }
}

/// The special code of a program; none if its tables cannot be read.
fn find_special(file: &File) -> Vec<SpecialCode> {
    let mut special = Vec::new();
    let Some(layout) = layout(file) else { return special };
    let _ = go::read_stacks(file, &layout, |stack| {
        special.extend(special_code(file, &layout, stack));
        special.len() < MAX_SPECIAL
    });
    special
}

fn special_code(file: &File, layout: &Layout, stack: &GoStack) -> Option<SpecialCode> {
    let GoStack { start, end, kind, .. } = *stack;
    let from = match kind {
        GoFunctionKind::Plain => return None,
        GoFunctionKind::Outermost | GoFunctionKind::SignalReturn => start,
        GoFunctionKind::Switches { .. } => {
            let len = usize::try_from((end - start).min(MAX_CODE)).ok()?;
            let code = read_at(file, layout.offset_of(start)?, len).ok()?;
            start + code::stack_switch(&code, start)? as u64
        }
    };
    (from < end).then_some(SpecialCode { start: from, end, kind })
}

/// The rule of special code.
fn special_rule(kind: GoFunctionKind) -> Option<Rule> {
    Some(match kind {
        GoFunctionKind::Plain => return None,
        GoFunctionKind::Outermost => Rule::of_kind(KIND_STOP),
        GoFunctionKind::SignalReturn => Rule::of_kind(KIND_SIGNAL),
        GoFunctionKind::Switches { calls_go, is_scheduler } => Rule {
            fp: if calls_go { FP_AT_SP } else { FP_SAME },
            extra: i32::from(is_scheduler),
            ..Rule::of_kind(KIND_SWITCH)
        },
    })
}

impl<F: Fn(u64) -> Option<u64>> RowCollector<'_, F> {
    /// Adds the functions that are not in `described`, which is in the order of addresses, and replaces the rows of special
    /// code.
    pub fn add_go_functions(&mut self, tables: &GoTables, described: &[DescribedFunction]) {
        if tables.describes_all {
            self.add_plain_functions(tables, described);
        }
        let mut special = Vec::with_capacity(tables.special.len());
        for code in &tables.special {
            let offset = |address| u32::try_from((self.to_offset)(address)?).ok();
            let range = offset(code.start).zip(offset(code.end - 1));
            if let Some(((from, last), rule)) = range.zip(special_rule(code.kind)) {
                special.push((from, last.saturating_add(1), self.rule_index(rule)));
            }
        }
        self.replace_rows(special);
    }

    fn add_plain_functions(&mut self, tables: &GoTables, described: &[DescribedFunction]) {
        let by_frames = std::mem::take(&mut self.rows);
        let read = match layout(&tables.file) {
            Some(layout) => {
                go::read_stacks(&tables.file, &layout, |stack| self.add_go_function(stack, described))
            }
            None => Err(StackLossReason::SectionUnreadable),
        };
        if let Err(reason) = read {
            self.count_loss(reason);
        }
        let by_go = std::mem::replace(&mut self.rows, by_frames);
        self.rows.extend(by_go);
        self.sort_rows();
    }

    /// Adds the rows of one function. Its return address is on the stack, and its rules need no frame pointer. False if the
    /// bounds are reached and no more functions are to be added.
    fn add_go_function(&mut self, stack: &GoStack, described: &[DescribedFunction]) -> bool {
        let offset = |address| u32::try_from((self.to_offset)(address)?).ok();
        let (Some(start), Some(last)) = (offset(stack.start), offset(stack.end - 1)) else { return true };
        let end = last.saturating_add(1);
        let before = described.partition_point(|other| other.start < end);
        if before.checked_sub(1).is_some_and(|before| described[before].end > start) {
            return true;
        }
        if self.rows.len() >= MAX_ROWS {
            self.count_loss(StackLossReason::TooManyRows);
            return false;
        }
        if !self.budget.spend(16 + 8 * stack.steps.len() as u64) {
            self.count_loss(StackLossReason::TooSlow);
            return false;
        }
        if stack.kind == GoFunctionKind::Outermost {
            self.push_row(start, RULE_STOP);
        } else {
            for &(address, grown) in &stack.steps {
                let into = u32::try_from(address - stack.start).unwrap_or(u32::MAX);
                let (Some(offset), Some(cfa_offset)) = (
                    start.checked_add(into),
                    i32::try_from(grown).ok().and_then(|grown| grown.checked_add(8)),
                ) else {
                    break;
                };
                let rule = Rule {
                    base: NATIVE.stack_pointer as u8,
                    cfa_offset,
                    ra_offset: -8,
                    ..Rule::of_kind(KIND_REGISTER)
                };
                let rule = self.rule_index(rule);
                self.push_row(offset, rule);
            }
        }
        self.rows.push(UnwindRow { offset: end, rule: RULE_NONE });
        true
    }
}
