//! Derives rows from instructions, for code without call frame information. musl's libc has none (Alpine's images are
//! built on it), and handwritten assembly often has none.
//!
//! Must not depend on: sections of call frame information, tables, processes. The bytes come from a container: their number
//! and the time are bounded, and code that cannot be followed gets no row.
//!
//! ```text
//! file − described functions = gaps ──────────┐
//! entry, symbols, calls, pointers  = starts ──┴─→ paths (the effect of each instruction) ─→ runs ─→ rows
//! ```

mod amd64;
mod paths;
mod starts;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::Range;

use podopsy_wire::RULE_NONE;
use starts::FunctionStarts;

use super::rows::{DescribedFunction, MAX_ROWS, RowCollector, UnwindRow};
use crate::StackLossReason;
use crate::elf::{Layout, Section, Segment, read_at};

/// Bytes of undescribed code of one file. musl's libc has 0.4 MiB.
const MAX_GAP_BYTES: u64 = 4 << 20;
/// Smaller gaps are padding between two functions that are aligned to a cache line. Padding is never run.
const MIN_GAP: u64 = 64;
/// Gaps of one file. libcrypto has thirty.
const MAX_GAPS: usize = 16 << 10;
/// Nine of ten programs and libraries of Debian have less undescribed code than this: that of their start files, and
/// padding. Then only the entry and the first code of each gap are followed.
const FEW_BYTES: u64 = 256;
/// Bytes of undescribed code that are worth to search data and the other code for starts, however much of it there is.
const MANY_BYTES: u64 = 1 << 10;
/// Bytes of code that are searched for the sake of fewer. A megabyte takes a millisecond.
const LITTLE_CODE: u64 = 2 << 20;

/// A range of code without call frame information.
#[derive(Debug, Hash)]
struct CodeGap {
    offset: u64,
    address: u64,
    bytes: Vec<u8>,
}

impl CodeGap {
    fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes.len() as u64)
    }
}

/// The code of a file that call frame information does not describe, and the places in it where functions begin.
#[derive(Debug, Hash)]
pub(super) struct UndescribedCode {
    /// In the order of addresses; they do not overlap.
    gaps: Vec<CodeGap>,
    starts: FunctionStarts,
    /// The entry point, which has no caller.
    entry: u64,
    /// Some code was left out because there is too much.
    is_cut: bool,
}

impl UndescribedCode {
    /// Finds the code that is in none of the functions in `described`, which is in the order of addresses. None if there is
    /// no such code, or if no start of a function is known in it.
    pub fn find(
        file: &File,
        layout: &Layout,
        table: &[Section],
        described: &[DescribedFunction],
        entry: u64,
    ) -> Option<UndescribedCode> {
        let (gaps, is_cut) = find_gaps(file, &layout.segments, described);
        let size: u64 = gaps.iter().map(|gap| gap.bytes.len() as u64).sum();
        let code = layout.segments.iter().filter(|segment| segment.is_code);
        let code = code.fold(0_u64, |sum, segment| sum.saturating_add(segment.size));
        let mut starts = FunctionStarts::new(file);
        starts.add_sure(&gaps, entry);
        if size >= FEW_BYTES {
            starts::add_from_symbols(file, table, &gaps, &mut starts);
        }
        if size >= MANY_BYTES || size >= FEW_BYTES && code <= LITTLE_CODE {
            if starts::has_jumped_to_code(file, table) {
                return None;
            }
            starts::add_from_file(file, table, &gaps, &mut starts);
            starts::add_from_code(file, &layout.segments, &gaps, &mut starts);
        }
        starts.add_first_of_gaps(&gaps);
        starts.sort();
        (!starts.sure.is_empty() || !starts.labels.is_empty()).then_some(UndescribedCode {
            gaps,
            starts,
            entry,
            is_cut,
        })
    }
}

/// The bytes of a function up to and with the first instruction after which the stack pointer has an unknown value; none if
/// there is no such instruction.
pub(super) fn stack_switch(code: &[u8], address: u64) -> Option<usize> {
    let mut decoder = amd64::InstructionDecoder::new();
    let mut at = 0;
    loop {
        let instruction = decoder.decode(&code[at..], address.wrapping_add(at as u64))?;
        at += instruction.len;
        if instruction.effect == amd64::StackEffect::StackLost {
            return Some(at);
        }
    }
}

/// The gap that holds an address.
fn gap_at(gaps: &[CodeGap], address: u64) -> Option<usize> {
    let index = gaps.partition_point(|gap| gap.address <= address).checked_sub(1)?;
    (address < gaps[index].end()).then_some(index)
}

/// Reads the gaps between the described functions. True if some are left out, because there are too many.
fn find_gaps(file: &File, segments: &[Segment], described: &[DescribedFunction]) -> (Vec<CodeGap>, bool) {
    // With the distance from an offset to its address.
    let mut ranges: Vec<(Range<u64>, u64)> = Vec::new();
    let mut add = |range: Range<u64>, segment: &Segment| {
        if range.end.saturating_sub(range.start) >= MIN_GAP && ranges.len() <= MAX_GAPS {
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
    let (mut gaps, mut bytes_left): (Vec<CodeGap>, _) = (Vec::new(), MAX_GAP_BYTES);
    let mut is_cut = ranges.len() > MAX_GAPS;
    ranges.truncate(MAX_GAPS);
    for (range, distance) in ranges {
        let len = (range.end - range.start).min(bytes_left);
        is_cut |= len < range.end - range.start;
        bytes_left -= len;
        // The file may end before its segment does.
        let Some(bytes) = usize::try_from(len).ok().and_then(|len| read_at(file, range.start, len).ok())
        else {
            continue;
        };
        let address = range.start.wrapping_add(distance);
        if !bytes.is_empty() && address.checked_add(len).is_some() {
            gaps.push(CodeGap { offset: range.start, address, bytes });
        }
    }
    gaps.sort_by_key(|gap| gap.address);
    // Segments may contain the same bytes twice, or different bytes for one address.
    let mut end = 0;
    gaps.retain(|gap| {
        let is_after = gap.address >= end;
        end = end.max(gap.end());
        is_after
    });
    (gaps, is_cut)
}

impl<F: Fn(u64) -> Option<u64>> RowCollector<'_, F> {
    /// Adds the rows of undescribed code to the rows that were collected before.
    pub fn add_undescribed_code(&mut self, code: &UndescribedCode) {
        if code.is_cut {
            self.count_loss(StackLossReason::UndescribedTooLarge);
        }
        let (runs, is_whole) =
            paths::follow(code, &mut self.budget, MAX_ROWS.saturating_sub(self.rows.len()));
        if !is_whole {
            self.count_loss(StackLossReason::TooSlow);
        }
        for run in runs {
            let Some(rule) = run.rule else { continue };
            let (Ok(offset), Ok(end)) = (u32::try_from(run.offset), u32::try_from(run.end)) else { continue };
            let rule = self.rule_index(rule);
            self.rows.push(UnwindRow { offset, rule });
            self.rows.push(UnwindRow { offset: end, rule: RULE_NONE });
        }
        self.sort_rows();
    }
}
