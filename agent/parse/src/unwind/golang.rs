//! Adds rows for Go's functions, read from Go's own tables, to those from call frame information.
//!
//! Must not depend on: the layout of Go's tables, which [`crate::symbolize::go`] reads.

use std::fs::File;
use std::hash::{Hash, Hasher};

use podopsy_wire::{KIND_REGISTER, RULE_NONE, RULE_STOP, Rule};

use super::arch::NATIVE;
use super::rows::{DescribedFunction, MAX_ROWS, RowCollector, UnwindRow};
use crate::StackLossReason;
use crate::elf::{Section, layout, read_at};
use crate::names::go::{self, GoStack};

/// Bytes of the tables that are read at a time when they are hashed.
const CHUNK: u64 = 64 << 10;

/// The tables of a stripped Go program, from which its `.debug_frame` was made.
#[derive(Debug)]
pub(super) struct GoTables {
    file: File,
    offset: u64,
    size: u64,
}

/// Hashes the bytes of the tables, up to the first that cannot be read: no row can come from the bytes after it either.
impl Hash for GoTables {
    fn hash<H: Hasher>(&self, state: &mut H) {
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
    pub fn new(file: &File, section: &Section, max_bytes: u64) -> Result<GoTables, StackLossReason> {
        if section.size > max_bytes {
            return Err(StackLossReason::SectionTooLarge);
        }
        section.offset.checked_add(section.size).ok_or(StackLossReason::SectionUnreadable)?;
        let file = file.try_clone().map_err(|_| StackLossReason::SectionUnreadable)?;
        Ok(GoTables { file, offset: section.offset, size: section.size })
    }
}

impl<F: Fn(u64) -> Option<u64>> RowCollector<'_, F> {
    /// Adds the functions that are not in `described`, which is in the order of addresses.
    pub fn add_go_functions(&mut self, tables: &GoTables, described: &[DescribedFunction]) {
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
        if stack.is_outermost {
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
