//! Rows of code that nobody describes, from its instructions: musl's libc has no call frame information (Alpine's images
//! stand on it), hand-written assembly often has none.
//!
//! Must not know: sections of call frame information, tables, processes. The bytes are a container's: their number and the
//! time are bounded, and where the code cannot be followed there is no row.
//!
//! ```text
//! file − described functions = gaps ─┐
//! entry, symbols, calls; pointers = starts ┴ paths (what each instruction does to the stack) ─→ runs ─→ rows
//! ```

mod amd64;
mod paths;
mod starts;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::Range;

use podopsy_wire::RULE_NONE;
use starts::Starts;

use super::rows::{Collector, Function, MAX_ROWS, Row};
use crate::symbolize::elf::{Layout, Section, Segment, read_at};

/// Undescribed code of one file; musl's libc has 0.4 MiB.
const MAX_GAPS: u64 = 4 << 20;
/// Between two functions there is padding of less, if they are aligned to a line of the cache; it is never run.
const MIN_GAP: u64 = 64;
/// Of one file; libcrypto has thirty.
const MAX_COUNT: usize = 16 << 10;
/// What programs and libraries of glibc's have: their start files', and some padding. It is not worth a look at symbols and at
/// all the other code; the entry is followed.
const FEW: u64 = 1 << 10;

/// Code without a description.
#[derive(Debug, Hash)]
struct Gap {
    offset: u64,
    address: u64,
    bytes: Vec<u8>,
}

impl Gap {
    fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes.len() as u64)
    }
}

/// A file's undescribed code, and where in it functions begin.
#[derive(Debug, Hash)]
pub(super) struct Code {
    /// In the order of addresses; they do not overlap.
    gaps: Vec<Gap>,
    starts: Starts,
    /// Nobody has called that.
    entry: u64,
    /// Some of it was left out: there is too much.
    is_cut: bool,
}

impl Code {
    /// What of the file's code none of `described` holds, in the order of addresses. None: nothing, or nobody knows where
    /// in it a function begins.
    pub fn new(
        file: &File,
        layout: &Layout,
        table: &[Section],
        described: &[Function],
        entry: u64,
    ) -> Option<Code> {
        let (gaps, is_cut) = gaps(file, &layout.segments, described);
        let size: u64 = gaps.iter().map(|gap| gap.bytes.len() as u64).sum();
        let mut starts = Starts::default();
        starts.call(&gaps, entry);
        if size >= FEW {
            if starts::are_jumped_to(file, table) {
                return None;
            }
            starts::of_file(file, table, &gaps, &mut starts);
            starts::of_code(file, &layout.segments, &gaps, &mut starts);
        }
        starts.in_order();
        (!starts.sure.is_empty() || !starts.labels.is_empty()).then_some(Code { gaps, starts, entry, is_cut })
    }
}

/// The gap that holds an address.
fn gap_at(gaps: &[Gap], address: u64) -> Option<usize> {
    let index = gaps.partition_point(|gap| gap.address <= address).checked_sub(1)?;
    (address < gaps[index].end()).then_some(index)
}

/// Where no function is described; true: not all of it.
fn gaps(file: &File, segments: &[Segment], described: &[Function]) -> (Vec<Gap>, bool) {
    let mut ranges: Vec<(Range<u64>, u64)> = Vec::new();
    let mut add = |range: Range<u64>, segment: &Segment| {
        if range.end.saturating_sub(range.start) >= MIN_GAP && ranges.len() <= MAX_COUNT {
            ranges.push((range, segment.address.wrapping_sub(segment.offset)));
        }
    };
    for segment in segments.iter().filter(|segment| segment.is_code) {
        let end = segment.offset.saturating_add(segment.size);
        let mut from = segment.offset;
        let first = described.partition_point(|function| u64::from(function.end) <= segment.offset);
        for function in &described[first..] {
            if u64::from(function.start) >= end {
                break;
            }
            add(from..u64::from(function.start), segment);
            from = from.max(u64::from(function.end));
        }
        add(from..end, segment);
    }
    let (mut gaps, mut room): (Vec<Gap>, _) = (Vec::new(), MAX_GAPS);
    let mut is_cut = ranges.len() > MAX_COUNT;
    ranges.truncate(MAX_COUNT);
    for (range, distance) in ranges {
        let len = (range.end - range.start).min(room);
        is_cut |= len < range.end - range.start;
        room -= len;
        // A file that ends before its segment does has no such code.
        let Some(bytes) = usize::try_from(len).ok().and_then(|len| read_at(file, range.start, len).ok())
        else {
            continue;
        };
        let address = range.start.wrapping_add(distance);
        if !bytes.is_empty() && address.checked_add(len).is_some() {
            gaps.push(Gap { offset: range.start, address, bytes });
        }
    }
    gaps.sort_by_key(|gap| gap.address);
    // Segments may say the same bytes twice, or two things of one address.
    let mut end = 0;
    gaps.retain(|gap| {
        let is_behind = gap.address >= end;
        end = end.max(gap.end());
        is_behind
    });
    (gaps, is_cut)
}

impl<F: Fn(u64) -> Option<u64>> Collector<'_, F> {
    /// Adds the rows of undescribed code to those that are there.
    pub fn code(&mut self, code: &Code) {
        if code.is_cut {
            self.problem("unwind_undescribed_too_large");
        }
        let (runs, is_whole) =
            paths::follow(code, &mut self.budget, MAX_ROWS.saturating_sub(self.rows.len()));
        if !is_whole {
            self.problem("unwind_too_slow");
        }
        for run in runs {
            let Some(rule) = run.rule else { continue };
            let (Ok(offset), Ok(end)) = (u32::try_from(run.offset), u32::try_from(run.end)) else { continue };
            let rule = self.id(rule);
            self.rows.push(Row { offset, rule });
            self.rows.push(Row { offset: end, rule: RULE_NONE });
        }
        self.in_order();
    }
}
