//! Rows of Go's functions, by Go's own tables, beside those that call frame information gives.
//!
//! Must not know: how Go's tables are laid out ([`crate::symbolize::go`] does).

use std::fs::File;
use std::hash::{Hash, Hasher};

use podopsy_wire::{KIND_REGISTER, RULE_NONE, RULE_STOP, Rule};

use super::arch::HERE;
use super::rows::{Collector, Function, MAX_ROWS, Row};
use crate::symbolize::elf::{Section, layout, read_at};
use crate::symbolize::go::{self, Stack};

/// A part of the tables, when they are hashed.
const PART: u64 = 64 << 10;

/// A stripped Go program: what its `.debug_frame` was made of is still there.
#[derive(Debug)]
pub(super) struct Tables {
    file: File,
    offset: u64,
    size: u64,
}

/// By what the tables say, as far as they can be read: nobody reads what cannot be.
impl Hash for Tables {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.size.hash(state);
        for at in (0..self.size).step_by(PART as usize) {
            let len = PART.min(self.size - at) as usize;
            let Ok(bytes) = read_at(&self.file, self.offset + at, len) else { return };
            state.write(&bytes);
        }
    }
}

impl Tables {
    /// None: the file cannot be held, or its tables lie outside of it.
    pub fn new(file: &File, section: &Section, max: u64) -> Result<Tables, &'static str> {
        if section.size > max {
            return Err("unwind_too_large");
        }
        section.offset.checked_add(section.size).ok_or("unwind_unreadable")?;
        let file = file.try_clone().map_err(|_| "unwind_unreadable")?;
        Ok(Tables { file, offset: section.offset, size: section.size })
    }
}

impl<F: Fn(u64) -> Option<u64>> Collector<'_, F> {
    /// Adds the functions that `described` has not; those are in the order of addresses.
    pub fn golang(&mut self, tables: &Tables, described: &[Function]) {
        let by_frames = std::mem::take(&mut self.rows);
        let read = match layout(&tables.file) {
            Some(layout) => go::stacks(&tables.file, &layout, |stack| self.stack(stack, described)),
            None => Err("unwind_unreadable"),
        };
        if let Err(reason) = read {
            self.problem(reason);
        }
        let by_go = std::mem::replace(&mut self.rows, by_frames);
        self.rows.extend(by_go);
        self.in_order();
    }

    /// A function whose calls leave their return address on the stack and keep no frame pointer that matters. False: no
    /// more, please.
    fn stack(&mut self, stack: &Stack, described: &[Function]) -> bool {
        let offset = |address| u32::try_from((self.to_offset)(address)?).ok();
        let (Some(start), Some(last)) = (offset(stack.start), offset(stack.end - 1)) else { return true };
        let end = last.saturating_add(1);
        let before = described.partition_point(|other| other.start < end);
        if before.checked_sub(1).is_some_and(|before| described[before].end > start) {
            return true;
        }
        if self.rows.len() >= MAX_ROWS {
            self.problem("unwind_too_many_rows");
            return false;
        }
        if !self.budget.spend(16 + 8 * stack.steps.len() as u64) {
            self.problem("unwind_too_slow");
            return false;
        }
        if stack.is_outermost {
            self.push(start, RULE_STOP);
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
                    base: HERE.stack as u8,
                    cfa_offset,
                    ra_offset: -8,
                    ..Rule::of_kind(KIND_REGISTER)
                };
                let rule = self.id(rule);
                self.push(offset, rule);
            }
        }
        self.rows.push(Row { offset: end, rule: RULE_NONE });
        true
    }
}
