//! Call frame information (`.eh_frame`, `.debug_frame`) → rows: from this file offset on, that rule.
//!
//! Must not know: pages, slabs, processes. The bytes are a container's: every size and the time are bounded, and what
//! is damaged is counted and costs its own rows only.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use gimli::{
    BaseAddresses, CieOrFde, EndianSlice, FrameDescriptionEntry, LittleEndian, UnwindContext, UnwindSection,
};
use podopsy_wire::{
    KIND_NONE, KIND_REGISTER, KIND_STOP, KIND_UNSUPPORTED, RULE_NONE, RULE_STOP, RULE_UNSUPPORTED, Rule,
};

use super::arch::HERE;
use super::rule::rule;
use crate::symbolize::go::Stack;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The largest library with them at hand (librustc_driver) has 1.04 M.
const MAX_ROWS: usize = 4 << 20;
/// Distinct rules of one file; libLLVM has some 900. A file that wants more is after our table of rules.
const MAX_RULES: usize = 2048;
/// A common entry's instructions run again for every function: a file can be made to take for ever.
const MAX_TIME: Duration = Duration::from_secs(10);

/// From `offset` on, until the next row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Row {
    /// In the file, not in memory.
    pub offset: u32,
    /// Into [`Rows::rules`].
    pub rule: u16,
}

/// What a file says about unwinding.
#[derive(Debug, Default)]
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
#[derive(Debug)]
pub(super) struct Section {
    pub bytes: Vec<u8>,
    pub address: u64,
}

/// One function's rows, as they came.
struct Function {
    start: u32,
    end: u32,
    /// Into `Collector::rows`.
    rows: std::ops::Range<usize>,
}

struct Collector<'a, F> {
    to_offset: &'a F,
    text: u64,
    until: Instant,
    rows: Vec<Row>,
    functions: Vec<Function>,
    rules: Vec<Rule>,
    ids: HashMap<Rule, u16>,
    problems: BTreeMap<&'static str, u64>,
}

/// How far the code of an entry point may reach that has no entry of its own: ld.so's is some 40 bytes.
const MAX_ENTRY: u32 = 256;

/// Reads both sections, and what `go` gives of functions of Go's; `entry` is where programs begin, and nobody has called
/// that; `to_offset` gives the file offset of a virtual address that is loaded.
pub(super) fn read(
    eh_frame: Option<&Section>,
    debug_frame: Option<&Section>,
    go: impl FnOnce(&mut dyn FnMut(&Stack) -> bool) -> Result<(), &'static str>,
    text: u64,
    entry: u64,
    to_offset: impl Fn(u64) -> Option<u64>,
) -> Rows {
    let rules = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind).to_vec();
    let ids = rules.iter().zip(0..).map(|(&rule, id)| (rule, id)).collect();
    let mut collector = Collector {
        to_offset: &to_offset,
        text,
        until: Instant::now() + MAX_TIME,
        rows: Vec::new(),
        functions: Vec::new(),
        rules,
        ids,
        problems: BTreeMap::new(),
    };
    if let Some(section) = eh_frame {
        let mut parsed = gimli::EhFrame::new(&section.bytes, LittleEndian);
        parsed.set_address_size(8);
        collector.section(&parsed, section.address);
    }
    let by_eh_frame = collector.functions.len();
    if let Some(section) = debug_frame {
        let mut parsed = gimli::DebugFrame::new(&section.bytes, LittleEndian);
        parsed.set_address_size(8);
        collector.section(&parsed, section.address);
    }
    if let Err(reason) = go(&mut |stack| collector.go(stack)) {
        collector.problem(reason);
    }
    let entry = to_offset(entry).and_then(|offset| u32::try_from(offset).ok());
    let mut rows = collector.finish(by_eh_frame);
    rows.begin_at(entry);
    rows
}

impl<F: Fn(u64) -> Option<u64>> Collector<'_, F> {
    fn problem(&mut self, reason: &'static str) {
        *self.problems.entry(reason).or_default() += 1;
    }

    fn section<'a, S: UnwindSection<Bytes<'a>>>(&mut self, section: &S, address: u64) {
        let bases = BaseAddresses::default().set_eh_frame(address).set_text(self.text);
        let mut context = UnwindContext::new();
        let mut common = None;
        let mut entries = section.entries(&bases);
        loop {
            let partial = match entries.next() {
                Ok(Some(CieOrFde::Fde(partial))) => partial,
                Ok(Some(CieOrFde::Cie(_))) => continue,
                Ok(None) => return,
                Err(_) => return self.problem("unwind_entry_damaged"),
            };
            if Instant::now() > self.until {
                return self.problem("unwind_too_slow");
            }
            // Neighbours share their common entry, mostly.
            let parsed = partial.parse(|section, bases, offset| match &common {
                Some((known, entry)) if *known == offset => Ok(Clone::clone(entry)),
                _ => {
                    let entry = section.cie_from_offset(bases, offset)?;
                    common = Some((offset, entry.clone()));
                    Ok(entry)
                }
            });
            match parsed {
                Ok(function) => self.function(&function, section, &bases, &mut context),
                Err(_) => self.problem("unwind_entry_damaged"),
            }
            if self.rows.len() >= MAX_ROWS {
                return self.problem("unwind_too_many_rows");
            }
        }
    }

    fn function<'a, S: UnwindSection<Bytes<'a>>>(
        &mut self,
        function: &FrameDescriptionEntry<Bytes<'a>>,
        section: &S,
        bases: &BaseAddresses,
        context: &mut UnwindContext<usize>,
    ) {
        // The linker leaves entries of functions that it dropped: at address 0, or empty.
        if function.len() == 0 {
            return;
        }
        let offset = |address| u32::try_from((self.to_offset)(address)?).ok();
        let Some(start) = offset(function.initial_address()) else {
            return self.problem("unwind_not_loaded");
        };
        let Some(end) = u32::try_from(function.len()).ok().and_then(|len| start.checked_add(len)) else {
            return self.problem("unwind_not_loaded");
        };
        let is_signal = function.is_signal_trampoline();
        let first = self.rows.len();
        match function.rows(section, bases, context) {
            Err(_) => {
                self.problem("unwind_entry_damaged");
                self.rows.push(Row { offset: start, rule: RULE_UNSUPPORTED });
            }
            Ok(mut table) => loop {
                let at = self.rows.len();
                match table.next_row() {
                    Ok(None) => break,
                    Ok(Some(row)) => {
                        let into = row.start_address().wrapping_sub(function.initial_address());
                        let Ok(into) = u32::try_from(into) else { break };
                        if into >= end - start || at >= MAX_ROWS {
                            break;
                        }
                        let rule = self.id(rule(row, section, is_signal));
                        self.rows.push(Row { offset: start + into, rule });
                    }
                    Err(_) => {
                        // What it said so far may hold until here, but here is not known.
                        self.problem("unwind_entry_damaged");
                        self.rows.truncate(first);
                        self.rows.push(Row { offset: start, rule: RULE_UNSUPPORTED });
                        break;
                    }
                }
            },
        }
        self.functions.push(Function { start, end, rows: first..self.rows.len() });
    }

    /// A function of Go's, whose calls leave their return address on the stack and keep no frame pointer that matters.
    /// False: no more, please.
    fn go(&mut self, stack: &Stack) -> bool {
        let offset = |address| u32::try_from((self.to_offset)(address)?).ok();
        let (Some(start), Some(last)) = (offset(stack.start), offset(stack.end - 1)) else { return true };
        let first = self.rows.len();
        if stack.is_outermost {
            self.rows.push(Row { offset: start, rule: RULE_STOP });
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
                self.rows.push(Row { offset, rule });
            }
        }
        self.functions.push(Function { start, end: last.saturating_add(1), rows: first..self.rows.len() });
        self.rows.len() < MAX_ROWS && Instant::now() < self.until
    }

    fn id(&mut self, rule: Rule) -> u16 {
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

    /// Functions in order, gaps said, and no row that only repeats the one before.
    fn finish(mut self, by_eh_frame: usize) -> Rows {
        // Where both sections describe a function, `.eh_frame` is what the program itself relies on.
        let debug = self.functions.split_off(by_eh_frame);
        self.functions.sort_by_key(|function| function.start);
        let eh = &self.functions;
        let is_new = |function: &Function| {
            let after = eh.partition_point(|other| other.start < function.end);
            after.checked_sub(1).is_none_or(|before| eh[before].end <= function.start)
        };
        let debug: Vec<Function> = debug.into_iter().filter(is_new).collect();
        self.functions.extend(debug);
        self.functions.sort_by_key(|function| function.start);

        let mut out: Vec<Row> = Vec::with_capacity(self.rows.len() + self.functions.len());
        let mut push = |row: Row| match out.last_mut() {
            Some(last) if last.offset == row.offset => last.rule = row.rule,
            Some(last) if last.rule == row.rule => {}
            _ => out.push(row),
        };
        for (index, function) in self.functions.iter().enumerate() {
            let next = self.functions.get(index + 1).map_or(u32::MAX, |next| next.start);
            // Two that overlap: the later one begins where it says.
            for row in self.rows[function.rows.clone()].iter().take_while(|row| row.offset < next) {
                push(*row);
            }
            if function.end < next {
                push(Row { offset: function.end, rule: RULE_NONE });
            }
        }
        out.shrink_to_fit();
        debug_assert_eq!(self.rules[usize::from(RULE_STOP)].kind, KIND_STOP);
        Rows { rows: out, rules: self.rules, problems: self.problems }
    }
}
