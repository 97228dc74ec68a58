//! Reads call frame information (`.eh_frame`, `.debug_frame`) into rows, each of which gives the rule from one file offset
//! on.
//!
//! Must not depend on: pages, slabs, processes. The bytes come from a container: every size and the time are bounded, and
//! a damaged entry is counted and costs only its own rows.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::ops::ControlFlow;
use std::time::Duration;

use foldhash::fast::RandomState;
use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, EndianSlice, FrameDescriptionEntry, LittleEndian,
    UnwindSection,
};
use podopsy_wire::{KIND_NONE, KIND_STOP, KIND_UNSUPPORTED, RULE_NONE, RULE_STOP, RULE_UNSUPPORTED, Rule};

use super::code::UndescribedCode;
use super::frame_state::{self, FrameState};
use super::golang::GoTables;
use super::rule::rule_for_state;
use crate::{StackLossReason, StackLosses};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Rows of one file. The largest library that was measured (librustc_driver) has 1.04 M.
pub(super) const MAX_ROWS: usize = 2 << 20;
/// Distinct rules of one file. libLLVM has some 900; a file with more than this is made to fill the kernel side's rules.
pub(super) const MAX_RULES: usize = 2048;
/// CPU time for one file. The instructions of a common entry run again for every function, so a file can be made to take
/// for ever.
const MAX_TIME: Duration = Duration::from_secs(4);
/// Bytes of instructions of one function, with those of its common entry. Real functions have some 100.
const MAX_INSTRUCTION_BYTES: usize = 1 << 20;
/// Bytes of instructions between two reads of the clock: some milliseconds at worst.
const CLOCK_INTERVAL: u64 = 64 << 10;

/// The rule from `offset` on, until the next row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnwindRow {
    /// Offset in the file.
    pub offset: u32,
    /// Index into [`FileRows::rules`].
    pub rule: u16,
}

/// The unwind information of a file.
#[derive(Clone, Debug, Default)]
pub struct FileRows {
    /// Ascending; the rules of neighbours differ. Empty if the file has no unwind information.
    pub rows: Vec<UnwindRow>,
    /// The first three are the special rules (`RULE_NONE`, `RULE_STOP`, `RULE_UNSUPPORTED`).
    pub rules: Vec<Rule>,
    /// What could not be used.
    pub losses: StackLosses,
}

impl FileRows {
    /// Makes the entry point outermost if no row describes it. ld.so and musl do not describe theirs.
    fn mark_entry_outermost(&mut self, entry: Option<u32>) {
        let Some(entry) = entry.filter(|entry| *entry > 0 && !self.rows.is_empty()) else { return };
        // No row may have the offset of another one: a function may end where the entry point is.
        let at = self.rows.partition_point(|row| row.offset < entry);
        let after = self.rows.partition_point(|row| row.offset <= entry);
        let current = after.checked_sub(1).map_or(RULE_NONE, |before| self.rows[before].rule);
        if current != RULE_NONE {
            return;
        }
        let end = entry.saturating_add(MAX_ENTRY_CODE);
        let mut rows = vec![UnwindRow { offset: entry, rule: RULE_STOP }];
        if end > entry && self.rows.get(after).is_none_or(|next| next.offset > end) {
            rows.push(UnwindRow { offset: end, rule: RULE_NONE });
        }
        self.rows.splice(at..after, rows);
    }

    /// The rule at a file offset.
    pub fn at(&self, offset: u32) -> Rule {
        let after = self.rows.partition_point(|row| row.offset <= offset);
        let index = after.checked_sub(1).map_or(RULE_NONE, |before| self.rows[before].rule);
        self.rules[usize::from(index)]
    }
}

/// The bytes and the address of a section.
#[derive(Debug, Hash)]
pub(super) struct LoadedSection {
    pub bytes: Vec<u8>,
    pub address: u64,
}

/// A function that call frame information describes.
#[derive(Clone, Copy, Debug)]
pub(super) struct DescribedFunction {
    /// Offset in the file.
    pub start: u32,
    pub end: u32,
    /// Offset of its entry in the section.
    entry: u32,
    /// The entry is in `.debug_frame`; otherwise it is in `.eh_frame`.
    is_debug: bool,
}

/// The CPU time that is left for reading a file.
pub(super) struct TimeBudget {
    /// Bytes of instructions until the next read of the clock.
    until_clock: u64,
    until: Duration,
}

impl TimeBudget {
    pub fn new() -> TimeBudget {
        TimeBudget::with_limit(MAX_TIME)
    }

    pub fn with_limit(time: Duration) -> TimeBudget {
        TimeBudget { until_clock: CLOCK_INTERVAL, until: thread_time() + time }
    }

    /// Accounts for work, in bytes of instructions. False if the budget is used up.
    pub fn spend(&mut self, bytes: u64) -> bool {
        match self.until_clock.checked_sub(bytes) {
            Some(left) => self.until_clock = left,
            // Reading the clock is a system call.
            None => {
                self.until_clock = CLOCK_INTERVAL;
                return thread_time() < self.until;
            }
        }
        true
    }
}

/// CPU time of this thread: a file is not abandoned because the machine is busy.
fn thread_time() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    now.map_or(Duration::ZERO, Duration::from)
}

/// The bytes of code at the entry point that are taken for one function if no row describes them. ld.so has some 40.
const MAX_ENTRY_CODE: u32 = 256;

/// The sections of a file that hold call frame information.
#[derive(Debug, Hash)]
pub(super) struct FrameSections {
    pub eh_frame: Option<LoadedSection>,
    pub debug_frame: Option<LoadedSection>,
    /// The address of `.text`, for pointers that are relative to it.
    pub text: u64,
}

/// The functions that call frame information describes, in the order of addresses, and what could not be read.
#[derive(Debug)]
pub(super) struct DescribedFunctions {
    pub all: Vec<DescribedFunction>,
    losses: StackLosses,
}

/// Hashes nothing: the functions follow from the sections and the segments, which are hashed.
impl Hash for DescribedFunctions {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl FrameSections {
    fn parsed<'a, S>(
        &self,
        section: &'a LoadedSection,
        new: fn(&'a [u8], LittleEndian) -> S,
    ) -> (S, BaseAddresses) {
        let bases = BaseAddresses::default().set_eh_frame(section.address).set_text(self.text);
        (new(&section.bytes, LittleEndian), bases)
    }

    fn eh_frame(&self) -> Option<(gimli::EhFrame<Bytes<'_>>, BaseAddresses)> {
        let mut parsed = self.parsed(self.eh_frame.as_ref()?, gimli::EhFrame::new);
        parsed.0.set_address_size(8);
        Some(parsed)
    }

    fn debug_frame(&self) -> Option<(gimli::DebugFrame<Bytes<'_>>, BaseAddresses)> {
        let mut parsed = self.parsed(self.debug_frame.as_ref()?, gimli::DebugFrame::new);
        parsed.0.set_address_size(8);
        Some(parsed)
    }

    /// Finds the described functions. `to_offset` maps a virtual address to its file offset, if it is loaded.
    pub fn functions(&self, to_offset: impl Fn(u64) -> Option<u64>) -> DescribedFunctions {
        let mut collector = RowCollector::new(&to_offset);
        let mut all = Vec::new();
        if let Some((section, bases)) = &self.eh_frame() {
            collector.find_functions(section, bases, false, &mut all);
        }
        // If both sections describe a function, `.eh_frame` wins, because the program itself relies on it.
        if let Some((section, bases)) = &self.debug_frame() {
            let mut debug = Vec::new();
            collector.find_functions(section, bases, true, &mut debug);
            all.sort_by_key(|function| function.start);
            debug.retain(|function| {
                let after = all.partition_point(|other| other.start < function.end);
                after.checked_sub(1).is_none_or(|before| all[before].end <= function.start)
            });
            all.append(&mut debug);
        }
        all.sort_by_key(|function| function.start);
        DescribedFunctions { all, losses: collector.losses }
    }
}

/// The parts of a file that rows are read from.
pub(super) struct RowInput<'a> {
    pub frames: &'a FrameSections,
    pub functions: &'a DescribedFunctions,
    /// Go's own tables, for functions that `functions` lacks.
    pub go: Option<&'a GoTables>,
    /// Code that `functions` lacks.
    pub code: Option<&'a UndescribedCode>,
    /// The address of the entry point, which has no caller.
    pub entry: u64,
}

/// Reads the rows of a file. `to_offset` maps a virtual address to its file offset, if it is loaded. Only the result is
/// ever completely in memory; the entries are read one by one.
pub(super) fn read(input: &RowInput<'_>, to_offset: impl Fn(u64) -> Option<u64>) -> FileRows {
    let RowInput { frames, functions, .. } = *input;
    let mut collector = RowCollector::new(&to_offset);
    collector.losses.clone_from(&functions.losses);
    let (eh_frame, debug_frame) = (frames.eh_frame(), frames.debug_frame());
    let (mut eh_common, mut debug_common) = (CommonEntries::default(), CommonEntries::default());
    for (index, function) in functions.all.iter().enumerate() {
        let next = functions.all.get(index + 1).map_or(u32::MAX, |next| next.start);
        let has_budget = match (function.is_debug, &eh_frame, &debug_frame) {
            (false, Some((section, bases)), _) => collector.add_function(
                *function,
                next,
                FrameEntries { section, bases, common: &mut eh_common },
            ),
            (true, _, Some((section, bases))) => {
                let common = &mut debug_common;
                collector.add_function(*function, next, FrameEntries { section, bases, common })
            }
            _ => true,
        };
        if !has_budget {
            break;
        }
    }
    if let Some(tables) = input.go {
        collector.add_go_functions(tables, &functions.all);
    }
    if let Some(code) = input.code {
        collector.add_undescribed_code(code);
    }
    let entry = to_offset(input.entry).and_then(|offset| u32::try_from(offset).ok());
    let mut rows = collector.finish();
    rows.mark_entry_outermost(entry);
    rows
}

/// Collects rows from several sources, with their rules numbered and the time bounded.
pub(super) struct RowCollector<'a, F> {
    pub to_offset: &'a F,
    pub budget: TimeBudget,
    pub rows: Vec<UnwindRow>,
    rules: Vec<Rule>,
    /// Looked up for each row: the default hasher took a sixth of the time. Rules made to collide cost at most
    /// [`MAX_RULES`] comparisons.
    indexes: HashMap<RuleKey, u16, RandomState>,
    losses: StackLosses,
}

/// A rule in few words, which are hashed faster than its ten fields.
#[derive(PartialEq, Eq, Hash)]
struct RuleKey(u64, u64, i16);

impl From<Rule> for RuleKey {
    fn from(rule: Rule) -> RuleKey {
        let Rule { kind, base, index, ra, fp, unused: _, ra_offset, fp_offset, cfa_offset, extra } = rule;
        let bytes = u32::from_le_bytes([kind, base, index, ra]);
        let offset = u64::from(ra_offset.cast_unsigned()) << 40;
        let offsets = u64::from(cfa_offset.cast_unsigned()) << 32 | u64::from(extra.cast_unsigned());
        RuleKey(u64::from(bytes) | u64::from(fp) << 32 | offset, offsets, fp_offset)
    }
}

/// Common entries that are kept: an object file has one for each language's personality routine, in turn.
const MAX_COMMON_ENTRIES: usize = 4;

/// A common entry that was read, with its offset, and the state that its instructions lead to.
struct CachedCommonEntry<'a, O> {
    offset: O,
    entry: CommonInformationEntry<Bytes<'a>>,
    /// None: not yet asked for.
    state: Option<gimli::Result<FrameState>>,
}

/// The common entries that were read last.
struct CommonEntries<'a, O> {
    kept: Vec<CachedCommonEntry<'a, O>>,
    /// The index of the one that was asked for last.
    current: usize,
}

impl<O> Default for CommonEntries<'_, O> {
    fn default() -> Self {
        CommonEntries { kept: Vec::new(), current: 0 }
    }
}

/// A section of entries, with what reading them reuses.
struct FrameEntries<'a, 's, S: UnwindSection<Bytes<'s>>> {
    section: &'a S,
    bases: &'a BaseAddresses,
    common: &'a mut CommonEntries<'s, S::Offset>,
}

impl<'s, S: UnwindSection<Bytes<'s>>> FrameEntries<'_, 's, S> {
    fn function(&mut self, offset: u32) -> gimli::Result<FrameDescriptionEntry<Bytes<'s>>> {
        let offset = S::Offset::from(offset as usize);
        self.section.fde_from_offset(self.bases, offset, |section, bases, at| {
            common_entry(self.common, section, bases, at)
        })
    }

    /// The state at the beginning of the function that was read last.
    fn initial_state(&mut self) -> gimli::Result<FrameState> {
        let common =
            self.common.kept.get_mut(self.common.current).ok_or(gimli::Error::NoEntryAtGivenOffset(0))?;
        let of_entry = || FrameState::of_common_entry(&common.entry, self.section, self.bases);
        common.state.get_or_insert_with(of_entry).clone()
    }
}

impl<'a, F: Fn(u64) -> Option<u64>> RowCollector<'a, F> {
    fn new(to_offset: &'a F) -> Self {
        let rules = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind).to_vec();
        let indexes = rules.iter().zip(0..).map(|(&rule, index)| (RuleKey::from(rule), index)).collect();
        let losses = StackLosses::default();
        RowCollector { to_offset, budget: TimeBudget::new(), rows: Vec::new(), rules, indexes, losses }
    }

    pub fn count_loss(&mut self, reason: StackLossReason) {
        self.losses.add(reason, 1);
    }

    /// Finds the functions that a section describes.
    fn find_functions<'s, S: UnwindSection<Bytes<'s>>>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        is_debug: bool,
        functions: &mut Vec<DescribedFunction>,
    ) {
        let mut common = CommonEntries::default();
        let mut entries = section.entries(bases);
        loop {
            let partial = match entries.next() {
                Ok(Some(CieOrFde::Fde(partial))) => partial,
                Ok(Some(CieOrFde::Cie(_))) => continue,
                Ok(None) => return,
                Err(_) => return self.count_loss(StackLossReason::EntryDamaged),
            };
            if functions.len() >= MAX_ROWS / 4 {
                return self.count_loss(StackLossReason::TooManyRows);
            }
            match partial.parse(|section, bases, at| common_entry(&mut common, section, bases, at)) {
                Ok(entry) => functions.extend(self.locate(&entry, is_debug)),
                Err(_) => self.count_loss(StackLossReason::EntryDamaged),
            }
        }
    }

    fn locate(
        &mut self,
        entry: &FrameDescriptionEntry<Bytes<'_>>,
        is_debug: bool,
    ) -> Option<DescribedFunction> {
        // The linker leaves the entries of functions that it dropped: empty, or at address 0.
        if entry.len() == 0 {
            return None;
        }
        let offset = |address| u32::try_from((self.to_offset)(address)?).ok();
        let found = offset(entry.initial_address()).and_then(|start| {
            let end = start.checked_add(u32::try_from(entry.len()).ok()?)?;
            Some(DescribedFunction { start, end, entry: u32::try_from(entry.offset()).ok()?, is_debug })
        });
        if found.is_none() {
            self.count_loss(StackLossReason::EntryNotLoaded);
        }
        found
    }

    /// Adds the rows of a function, up to `next`, where the next one begins. False if there may be no more rows, or no time
    /// is left.
    fn add_function<'s, S: UnwindSection<Bytes<'s>>>(
        &mut self,
        function: DescribedFunction,
        next: u32,
        mut entries: FrameEntries<'_, 's, S>,
    ) -> bool {
        if self.rows.len() >= MAX_ROWS {
            self.count_loss(StackLossReason::TooManyRows);
            return false;
        }
        let Ok(entry) = entries.function(function.entry) else {
            self.count_loss(StackLossReason::EntryDamaged);
            return true;
        };
        let bytes = entry.entry_len().saturating_add(entry.cie().entry_len());
        if bytes > MAX_INSTRUCTION_BYTES {
            self.count_loss(StackLossReason::EntryDamaged);
            self.push_row(function.start, RULE_UNSUPPORTED);
        } else if !self.budget.spend(bytes as u64) {
            self.count_loss(StackLossReason::TooSlow);
            return false;
        } else if self.add_rows_of_entry(function, next, &entry, &mut entries).is_err() {
            self.count_loss(StackLossReason::EntryDamaged);
            self.remove_rows_from(function.start);
            self.push_row(function.start, RULE_UNSUPPORTED);
        }
        if function.end < next {
            self.push_row(function.end, RULE_NONE);
        }
        true
    }

    /// Adds a row for each state of the function. An error: its instructions are damaged. The rows before that place may be
    /// right, but the place itself is not known.
    fn add_rows_of_entry<'s, S: UnwindSection<Bytes<'s>>>(
        &mut self,
        function: DescribedFunction,
        next: u32,
        entry: &FrameDescriptionEntry<Bytes<'s>>,
        entries: &mut FrameEntries<'_, 's, S>,
    ) -> gimli::Result<()> {
        let is_signal = entry.is_signal_trampoline();
        let initial = entries.initial_state()?;
        let section = entries.section;
        frame_state::run(entry, section, entries.bases, &initial, |address, state| {
            let into = address.wrapping_sub(entry.initial_address());
            let Ok(into) = u32::try_from(into) else { return ControlFlow::Break(()) };
            // If two functions overlap, the later one counts from its start.
            let is_outside = into >= function.end - function.start || function.start + into >= next;
            if is_outside || self.rows.len() >= MAX_ROWS {
                return ControlFlow::Break(());
            }
            let rule = self.rule_index(rule_for_state(state, section, is_signal));
            self.push_row(function.start + into, rule);
            ControlFlow::Continue(())
        })
    }

    /// Adds a row, unless it only repeats the rule of the row before.
    pub fn push_row(&mut self, offset: u32, rule: u16) {
        match self.rows.last_mut() {
            Some(last) if last.offset == offset => last.rule = rule,
            Some(last) if last.rule == rule => {}
            _ => self.rows.push(UnwindRow { offset, rule }),
        }
    }

    /// Sorts rows that were added out of order.
    pub fn sort_rows(&mut self) {
        // Another function may begin where one ends: its rule wins over the `RULE_NONE` of the end.
        self.rows.sort_by_key(|row| (row.offset, row.rule != RULE_NONE));
        let all = std::mem::take(&mut self.rows);
        for row in all {
            self.push_row(row.offset, row.rule);
        }
    }

    /// Replaces the rows of ranges (start, end, rule). What held at the end of a range before holds from there on.
    pub fn replace_rows(&mut self, mut ranges: Vec<(u32, u32, u16)>) {
        ranges.sort_unstable();
        let all = std::mem::take(&mut self.rows);
        let mut rest = all.into_iter().peekable();
        let (mut current, mut before_end) = (RULE_NONE, 0);
        for (start, end, rule) in ranges {
            if start < before_end || start >= end {
                continue;
            }
            while let Some(row) = rest.next_if(|row| row.offset < start) {
                current = row.rule;
                self.push_row(row.offset, row.rule);
            }
            while let Some(row) = rest.next_if(|row| row.offset <= end) {
                current = row.rule;
            }
            self.push_row(start, rule);
            self.push_row(end, current);
            before_end = end;
        }
        rest.for_each(|row| self.push_row(row.offset, row.rule));
    }

    /// Removes all rows from an offset on.
    fn remove_rows_from(&mut self, offset: u32) {
        while self.rows.last().is_some_and(|last| last.offset >= offset) {
            self.rows.pop();
        }
    }

    /// The index of a rule in [`FileRows::rules`], or [`RULE_UNSUPPORTED`] if there are too many.
    #[inline]
    pub fn rule_index(&mut self, rule: Rule) -> u16 {
        let key = RuleKey::from(rule);
        match self.indexes.get(&key) {
            Some(&index) => index,
            None => self.add_rule(key, rule),
        }
    }

    #[cold]
    fn add_rule(&mut self, key: RuleKey, rule: Rule) -> u16 {
        if self.rules.len() >= MAX_RULES {
            self.count_loss(StackLossReason::TooManyRules);
            return RULE_UNSUPPORTED;
        }
        let index = u16::try_from(self.rules.len()).unwrap_or(RULE_UNSUPPORTED);
        self.rules.push(rule);
        self.indexes.insert(key, index);
        index
    }

    fn finish(mut self) -> FileRows {
        self.rows.shrink_to_fit();
        debug_assert_eq!(self.rules[usize::from(RULE_STOP)].kind, KIND_STOP);
        FileRows { rows: self.rows, rules: self.rules, losses: self.losses }
    }
}

/// Reads a common entry, unless it is kept: neighbours mostly share theirs. It becomes the current one.
fn common_entry<'s, S: UnwindSection<Bytes<'s>>>(
    cached: &mut CommonEntries<'s, S::Offset>,
    section: &S,
    bases: &BaseAddresses,
    at: S::Offset,
) -> gimli::Result<CommonInformationEntry<Bytes<'s>>> {
    if let Some(found) = cached.kept.iter().position(|kept| kept.offset == at) {
        cached.current = found;
        return Ok(cached.kept[found].entry.clone());
    }
    let entry = section.cie_from_offset(bases, at)?;
    if cached.kept.len() == MAX_COMMON_ENTRIES {
        cached.kept.clear();
    }
    cached.current = cached.kept.len();
    cached.kept.push(CachedCommonEntry { offset: at, entry: entry.clone(), state: None });
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_with_entry(rows: &[(u32, u16)], entry: u32) -> Vec<(u32, u16)> {
        let rows = rows.iter().map(|&(offset, rule)| UnwindRow { offset, rule }).collect();
        let mut all = FileRows { rows, ..FileRows::default() };
        all.mark_entry_outermost(Some(entry));
        all.rows.iter().map(|row| (row.offset, row.rule)).collect()
    }

    #[test]
    fn an_entry_point_that_no_row_describes_is_outermost() {
        let (rule, none, stop) = (7, RULE_NONE, RULE_STOP);
        let function = [(16, rule), (32, none), (4096, rule)];
        let marked = [(16, rule), (32, none), (64, stop), (320, none), (4096, rule)];
        assert_eq!(rows_with_entry(&function, 64), marked);
        assert_eq!(rows_with_entry(&function, 16), function);
        // The next function begins within the code of the entry point, or where it ends.
        assert_eq!(
            rows_with_entry(&[(16, rule), (32, none), (100, rule)], 64)[2..],
            [(64, stop), (100, rule)]
        );
        assert_eq!(
            rows_with_entry(&[(16, rule), (32, none), (320, rule)], 64)[2..],
            [(64, stop), (320, rule)]
        );
    }

    #[test]
    fn a_function_that_ends_at_the_entry_point_leaves_one_row_there() {
        let (rule, none, stop) = (7, RULE_NONE, RULE_STOP);
        assert_eq!(rows_with_entry(&[(16, rule), (32, none)], 32), [(16, rule), (32, stop), (288, none)]);
        assert_eq!(
            rows_with_entry(&[(16, rule), (u32::MAX, none)], u32::MAX),
            [(16, rule), (u32::MAX, stop)]
        );
    }
}
