//! Call frame information (`.eh_frame`, `.debug_frame`) → rows: from this file offset on, that rule.
//!
//! Must not know: pages, slabs, processes. The bytes are a container's: every size and the time are bounded, and what
//! is damaged is counted and costs its own rows only.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use foldhash::fast::RandomState;
use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, EndianSlice, FrameDescriptionEntry, LittleEndian,
    UnwindContext, UnwindSection,
};
use podopsy_wire::{KIND_NONE, KIND_STOP, KIND_UNSUPPORTED, RULE_NONE, RULE_STOP, RULE_UNSUPPORTED, Rule};

use super::code::Code;
use super::golang;
use super::rule::rule;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The largest library with them at hand (librustc_driver) has 1.04 M.
pub(super) const MAX_ROWS: usize = 4 << 20;
/// Distinct rules of one file; libLLVM has some 900. A file that wants more is after our table of rules.
const MAX_RULES: usize = 2048;
/// A common entry's instructions run again for every function: a file can be made to take for ever.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Instructions of one function, with the common ones; a real one has some 100 bytes.
const MAX_INSTRUCTIONS: usize = 1 << 20;
/// Bytes of instructions between looks at the clock: some milliseconds at the worst.
const LOOK: u64 = 64 << 10;

/// From `offset` on, until the next row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Row {
    /// In the file, not in memory.
    pub offset: u32,
    /// Into [`Rows::rules`].
    pub rule: u16,
}

/// What a file says about unwinding.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    /// Ascending; neighbours differ. Empty: it says nothing.
    pub(super) rows: Vec<Row>,
    /// The first three are the ones with numbers of their own.
    pub(super) rules: Vec<Rule>,
    /// What could not be used, by reason.
    pub(super) problems: BTreeMap<&'static str, u64>,
}

impl Rows {
    /// Makes the entry point outermost, if nothing is said about it: ld.so and musl say nothing.
    fn begin_at(&mut self, entry: Option<u32>) {
        let Some(entry) = entry.filter(|entry| *entry > 0 && !self.rows.is_empty()) else { return };
        let after = self.rows.partition_point(|row| row.offset <= entry);
        let holds = after.checked_sub(1).map_or(RULE_NONE, |before| self.rows[before].rule);
        if holds != RULE_NONE {
            return;
        }
        let end = entry.saturating_add(MAX_ENTRY);
        if self.rows.get(after).is_none_or(|next| next.offset > end) {
            self.rows.insert(after, Row { offset: end, rule: RULE_NONE });
        }
        self.rows.insert(after, Row { offset: entry, rule: RULE_STOP });
    }

    /// The rule at a file offset.
    #[cfg(test)]
    pub(super) fn at(&self, offset: u32) -> Rule {
        let after = self.rows.partition_point(|row| row.offset <= offset);
        let index = after.checked_sub(1).map_or(RULE_NONE, |before| self.rows[before].rule);
        self.rules[usize::from(index)]
    }
}

/// A section's bytes and address.
#[derive(Debug, Hash)]
pub(super) struct Section {
    pub bytes: Vec<u8>,
    pub address: u64,
}

/// Where a function is, and where it is described.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub start: u32,
    pub end: u32,
    /// Of its entry, in its section.
    entry: u32,
    is_debug: bool,
}

/// What reading may still cost.
pub(super) struct Budget {
    /// Bytes of instructions until the next look at the clock.
    until_look: u64,
    until: Duration,
}

impl Budget {
    pub fn new() -> Budget {
        Budget::of(MAX_TIME)
    }

    pub fn of(time: Duration) -> Budget {
        Budget { until_look: LOOK, until: thread_time() + time }
    }

    /// False: it is used up.
    pub fn spend(&mut self, bytes: u64) -> bool {
        match self.until_look.checked_sub(bytes) {
            Some(left) => self.until_look = left,
            // A look is a system call.
            None => {
                self.until_look = LOOK;
                return thread_time() < self.until;
            }
        }
        true
    }
}

/// CPU time of this thread: a busy machine is no reason to give a file up.
fn thread_time() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    now.map_or(Duration::ZERO, Duration::from)
}

/// How far the code of an entry point may reach that has no entry of its own: ld.so's is some 40 bytes.
const MAX_ENTRY: u32 = 256;

/// Call frame information, as it stands in a file.
#[derive(Debug, Hash)]
pub(super) struct Frames {
    pub eh_frame: Option<Section>,
    pub debug_frame: Option<Section>,
    /// Where code begins, for pointers that are relative to that.
    pub text: u64,
}

/// The functions that are described, in the order of addresses, and what could not be read.
#[derive(Debug)]
pub(super) struct Functions {
    pub all: Vec<Function>,
    problems: BTreeMap<&'static str, u64>,
}

/// They follow from the frames and the segments, which are hashed.
impl Hash for Functions {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Frames {
    fn parsed<'a, S>(
        &self,
        section: &'a Section,
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

    /// Where functions are; `to_offset` gives the file offset of a virtual address that is loaded.
    pub fn functions(&self, to_offset: impl Fn(u64) -> Option<u64>) -> Functions {
        let mut collector = Collector::new(&to_offset);
        let mut all = Vec::new();
        if let Some((section, bases)) = &self.eh_frame() {
            collector.index(section, bases, false, &mut all);
        }
        // Where both sections describe a function, `.eh_frame` is what the program itself relies on.
        if let Some((section, bases)) = &self.debug_frame() {
            let mut debug = Vec::new();
            collector.index(section, bases, true, &mut debug);
            all.sort_by_key(|function| function.start);
            debug.retain(|function| {
                let after = all.partition_point(|other| other.start < function.end);
                after.checked_sub(1).is_none_or(|before| all[before].end <= function.start)
            });
            all.append(&mut debug);
        }
        all.sort_by_key(|function| function.start);
        Functions { all, problems: collector.problems }
    }
}

/// Reads the rows of `functions`, in the order of addresses, and what Go's own tables and the code say of functions that are
/// not among them; `entry` is where programs begin, and nobody has called that. Only the result is ever whole in memory.
pub(super) fn read(
    frames: &Frames,
    functions: &Functions,
    go: Option<&golang::Tables>,
    code: Option<&Code>,
    entry: u64,
    to_offset: impl Fn(u64) -> Option<u64>,
) -> Rows {
    let mut collector = Collector::new(&to_offset);
    collector.problems.clone_from(&functions.problems);
    let (eh_frame, debug_frame) = (frames.eh_frame(), frames.debug_frame());
    let mut context = UnwindContext::new();
    let (mut eh_common, mut debug_common) = (None, None);
    for (index, function) in functions.all.iter().enumerate() {
        let next = functions.all.get(index + 1).map_or(u32::MAX, |next| next.start);
        let goes_on = match (function.is_debug, &eh_frame, &debug_frame) {
            (false, Some((section, bases)), _) => {
                collector.function(*function, next, section, bases, &mut context, &mut eh_common)
            }
            (true, _, Some((section, bases))) => {
                collector.function(*function, next, section, bases, &mut context, &mut debug_common)
            }
            _ => true,
        };
        if !goes_on {
            break;
        }
    }
    if let Some(tables) = go {
        collector.golang(tables, &functions.all);
    }
    if let Some(code) = code {
        collector.code(code);
    }
    let entry = to_offset(entry).and_then(|offset| u32::try_from(offset).ok());
    let mut rows = collector.finish();
    rows.begin_at(entry);
    rows
}

pub(super) struct Collector<'a, F> {
    pub to_offset: &'a F,
    pub budget: Budget,
    pub rows: Vec<Row>,
    rules: Vec<Rule>,
    /// Asked for each row: the default hash took a sixth of the time. Colliding rules cost no more than [`MAX_RULES`] looks.
    ids: HashMap<Rule, u16, RandomState>,
    problems: BTreeMap<&'static str, u64>,
}

type Common<'a, O> = Option<(O, CommonInformationEntry<Bytes<'a>>)>;

impl<'a, F: Fn(u64) -> Option<u64>> Collector<'a, F> {
    fn new(to_offset: &'a F) -> Self {
        let rules = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind).to_vec();
        let ids = rules.iter().zip(0..).map(|(&rule, id)| (rule, id)).collect();
        let (rows, problems) = (Vec::new(), BTreeMap::new());
        Collector { to_offset, budget: Budget::new(), rows, rules, ids, problems }
    }

    pub fn problem(&mut self, reason: &'static str) {
        *self.problems.entry(reason).or_default() += 1;
    }

    /// Where a section's functions are.
    fn index<'s, S: UnwindSection<Bytes<'s>>>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        is_debug: bool,
        functions: &mut Vec<Function>,
    ) {
        let mut common = None;
        let mut entries = section.entries(bases);
        loop {
            let partial = match entries.next() {
                Ok(Some(CieOrFde::Fde(partial))) => partial,
                Ok(Some(CieOrFde::Cie(_))) => continue,
                Ok(None) => return,
                Err(_) => return self.problem("unwind_entry_damaged"),
            };
            if functions.len() >= MAX_ROWS / 4 {
                return self.problem("unwind_too_many_rows");
            }
            match partial.parse(|section, bases, at| remembered(&mut common, section, bases, at)) {
                Ok(entry) => functions.extend(self.place(&entry, is_debug)),
                Err(_) => self.problem("unwind_entry_damaged"),
            }
        }
    }

    fn place(&mut self, entry: &FrameDescriptionEntry<Bytes<'_>>, is_debug: bool) -> Option<Function> {
        // The linker leaves entries of functions that it dropped: at address 0, or empty.
        if entry.len() == 0 {
            return None;
        }
        let offset = |address| u32::try_from((self.to_offset)(address)?).ok();
        let found = offset(entry.initial_address()).and_then(|start| {
            let end = start.checked_add(u32::try_from(entry.len()).ok()?)?;
            Some(Function { start, end, entry: u32::try_from(entry.offset()).ok()?, is_debug })
        });
        if found.is_none() {
            self.problem("unwind_not_loaded");
        }
        found
    }

    /// Adds a function's rows, up to where the next one begins; false: there is no more room or time.
    fn function<'s, S: UnwindSection<Bytes<'s>>>(
        &mut self,
        function: Function,
        next: u32,
        section: &S,
        bases: &BaseAddresses,
        context: &mut UnwindContext<usize>,
        common: &mut Common<'s, S::Offset>,
    ) -> bool {
        if self.rows.len() >= MAX_ROWS {
            self.problem("unwind_too_many_rows");
            return false;
        }
        let parsed =
            section.fde_from_offset(bases, S::Offset::from(function.entry as usize), |section, bases, at| {
                remembered(common, section, bases, at)
            });
        let Ok(entry) = parsed else {
            self.problem("unwind_entry_damaged");
            return true;
        };
        let bytes = entry.entry_len().saturating_add(entry.cie().entry_len());
        if bytes > MAX_INSTRUCTIONS {
            self.problem("unwind_entry_damaged");
            self.push(function.start, RULE_UNSUPPORTED);
        } else if !self.budget.spend(bytes as u64) {
            self.problem("unwind_too_slow");
            return false;
        } else if self.instructions(function, next, &entry, section, bases, context).is_none() {
            self.problem("unwind_entry_damaged");
            self.forget(function.start);
            self.push(function.start, RULE_UNSUPPORTED);
        }
        if function.end < next {
            self.push(function.end, RULE_NONE);
        }
        true
    }

    /// None: they are damaged. What they said so far may hold until there, but there is not known.
    fn instructions<'s, S: UnwindSection<Bytes<'s>>>(
        &mut self,
        function: Function,
        next: u32,
        entry: &FrameDescriptionEntry<Bytes<'s>>,
        section: &S,
        bases: &BaseAddresses,
        context: &mut UnwindContext<usize>,
    ) -> Option<()> {
        let is_signal = entry.is_signal_trampoline();
        let mut table = entry.rows(section, bases, context).ok()?;
        while let Some(row) = table.next_row().ok()? {
            let into = row.start_address().wrapping_sub(entry.initial_address());
            let Ok(into) = u32::try_from(into) else { break };
            // Two that overlap: the later one begins where it says.
            if into >= function.end - function.start || function.start + into >= next {
                break;
            }
            if self.rows.len() >= MAX_ROWS {
                break;
            }
            let rule = self.id(rule(row, section, is_signal));
            self.push(function.start + into, rule);
        }
        Some(())
    }

    /// No row that only repeats the one before.
    pub fn push(&mut self, offset: u32, rule: u16) {
        match self.rows.last_mut() {
            Some(last) if last.offset == offset => last.rule = rule,
            Some(last) if last.rule == rule => {}
            _ => self.rows.push(Row { offset, rule }),
        }
    }

    /// Brings rows that were added out of order into it.
    pub fn in_order(&mut self) {
        // Where one function ends another may begin: what is said wins over that nothing is.
        self.rows.sort_by_key(|row| (row.offset, row.rule != RULE_NONE));
        let all = std::mem::take(&mut self.rows);
        all.into_iter().for_each(|row| self.push(row.offset, row.rule));
    }

    /// Takes back all rows from an offset on.
    fn forget(&mut self, offset: u32) {
        while self.rows.last().is_some_and(|last| last.offset >= offset) {
            self.rows.pop();
        }
    }

    pub fn id(&mut self, rule: Rule) -> u16 {
        if let Some(&id) = self.ids.get(&rule) {
            return id;
        }
        if self.rules.len() >= MAX_RULES {
            self.problem("unwind_too_many_rules");
            return RULE_UNSUPPORTED;
        }
        let id = u16::try_from(self.rules.len()).unwrap_or(RULE_UNSUPPORTED);
        self.rules.push(rule);
        self.ids.insert(rule, id);
        id
    }

    fn finish(mut self) -> Rows {
        self.rows.shrink_to_fit();
        debug_assert_eq!(self.rules[usize::from(RULE_STOP)].kind, KIND_STOP);
        Rows { rows: self.rows, rules: self.rules, problems: self.problems }
    }
}

/// Neighbours share their common entry, mostly.
fn remembered<'s, S: UnwindSection<Bytes<'s>>>(
    known: &mut Common<'s, S::Offset>,
    section: &S,
    bases: &BaseAddresses,
    at: S::Offset,
) -> gimli::Result<CommonInformationEntry<Bytes<'s>>> {
    if let Some((known, entry)) = known
        && *known == at
    {
        return Ok(entry.clone());
    }
    let entry = section.cie_from_offset(bases, at)?;
    *known = Some((at, entry.clone()));
    Ok(entry)
}
