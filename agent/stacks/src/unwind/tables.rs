//! Writes rows as pages into the kernel's memory. Files with equal content share a table; the least used are evicted.
//!
//! Must not depend on: aya, processes, the source of the rows.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::time::Duration;

use podopsy_wire::{
    DIRECTORY_FIRST_SHIFT, DIRECTORY_SLAB_SHIFT, FileKey, PAGE_BITS, PythonLayout, RULE_NONE, RULES_MAX,
    Rule, SLAB_WORDS, TABLE_NONE, TABLE_READY, Table,
};

use super::arena::{Extent, SlabArena};
use super::rule_numbers::RuleNumbers;
use crate::{FileNumbers, StackLossReason, StackLosses};
use podopsy_model::profile::UnwindCost;
use podopsy_worker::{FileRows, Tenant, UnwindDigest, UnwindRow};

/// The kernel side's maps that hold unwind tables.
pub trait KernelMaps: Send + 'static {
    fn add_slab(&mut self) -> anyhow::Result<()>;
    /// Frees all slabs but the first one. No table may lie in the others any more.
    fn free_slabs(&mut self) -> anyhow::Result<()>;
    /// Writes `words` to a slab, from its word `first` on. The words must fit.
    fn write(&mut self, slab: usize, first: usize, words: &[u32]) -> anyhow::Result<()>;
    fn max_slabs(&self) -> usize;
    /// How many files the map of tables has space for.
    fn max_files(&self) -> usize;
    fn set_rule(&mut self, number: u16, rule: &Rule) -> anyhow::Result<()>;
    fn set_python(&mut self, number: u32, layout: &PythonLayout) -> anyhow::Result<()>;
    fn set_table(&mut self, key: &FileKey, table: &Table) -> anyhow::Result<()>;
    fn remove_table(&mut self, key: &FileKey);
    fn table(&self, key: &FileKey) -> Option<Table>;
}

/// The time after which no BPF program can still be reading a table that was removed. They take microseconds.
const GRACE: Duration = Duration::from_millis(5);
/// In the units of [`Table::used`]. A table that a stack went through this recently is not evicted; otherwise tables that
/// do not all fit would be built and discarded without end.
const IN_USE: u32 = 4;
/// In the same units: the time until a file that did not fit may be requested again.
const RETRY_REFUSED_AFTER: u32 = 60;
/// One eviction frees at least this fraction of all memory, because each eviction looks at all tables and sleeps.
const EVICTION_FRACTION: usize = 16;

/// A container over this part of all memory for rows, or of all rules, loses its own tables first, also those in use.
const TENANT_FRACTION: usize = 4;

/// The table of one file, or of several files with the same unwind information.
#[derive(Debug)]
struct UnwindTable {
    extents: Vec<Extent>,
    table: Table,
    rows: usize,
    /// The numbers of the rules that it uses.
    rules: Vec<u16>,
    keys: Vec<FileKey>,
    /// The container that it was built for.
    tenant: Tenant,
}

/// All tables, with the kernel memory that they lie in.
pub struct UnwindTables<K> {
    kernel: K,
    arena: SlabArena,
    rules: RuleNumbers,
    tables: HashMap<UnwindDigest, UnwindTable>,
    /// Files that the kernel side has an answer for. None if the answer is that the file has no table.
    answers: HashMap<FileKey, Option<UnwindDigest>>,
    /// Files whose table did not fit, and the time of the attempt.
    refused: Vec<(u32, FileKey)>,
    max_slabs: usize,
    numbers: FileNumbers,
    losses: StackLosses,
}

impl<K: KernelMaps> UnwindTables<K> {
    /// Uses at most `max_bytes` of the kernel's memory for rows and directories.
    pub fn new(mut kernel: K, max_bytes: usize) -> anyhow::Result<Self> {
        let rules = RuleNumbers::new(&mut kernel)?;
        let max_slabs = (max_bytes / (SLAB_WORDS * 4)).clamp(1, kernel.max_slabs());
        Ok(Self {
            kernel,
            arena: SlabArena::default(),
            rules,
            tables: HashMap::new(),
            answers: HashMap::new(),
            refused: Vec::new(),
            max_slabs,
            numbers: FileNumbers::default(),
            losses: StackLosses::default(),
        })
    }

    /// Gives files their numbers from `numbers`.
    pub fn with_numbers(self, numbers: FileNumbers) -> Self {
        Self { numbers, ..self }
    }

    /// True when the kernel side has an answer for this file: a table, or that there is none.
    pub fn has_answer(&self, key: &FileKey) -> bool {
        self.answers.contains_key(key)
    }

    /// Passes an interpreter's layout to the kernel side, under the number that its file's table will carry.
    pub(super) fn set_python(&mut self, number: u32, layout: &PythonLayout) -> anyhow::Result<()> {
        self.kernel.set_python(number, layout)
    }

    /// Gives the file a table, or records that it has none. `rows` is called only if no other file has the same digest.
    /// `python` is the number of the interpreter that the file is, or 0.
    pub(super) fn load(
        &mut self,
        key: &FileKey,
        python: u32,
        digest: UnwindDigest,
        tenant: Tenant,
        rows: impl FnOnce() -> Result<FileRows, StackLossReason>,
    ) -> anyhow::Result<()> {
        self.limit_files();
        if let Some(found) = self.tables.get_mut(&digest) {
            if !found.keys.contains(key) {
                found.keys.push(*key);
            }
            let table = Table { python, ..found.table };
            return self.set_answer(key, Some(digest), &table);
        }
        match rows() {
            Ok(rows) => {
                self.losses.add_all(&rows.losses);
                match self.add_table(key, digest, tenant, &rows)? {
                    Some(table) => self.set_answer(key, Some(digest), &Table { python, ..table }),
                    None => self.refuse(key, python),
                }
            }
            Err(reason) => self.set_no_table(key, python, reason),
        }
    }

    /// Records that the file has no table and never will have one.
    pub(super) fn set_no_table(
        &mut self,
        key: &FileKey,
        python: u32,
        reason: StackLossReason,
    ) -> anyhow::Result<()> {
        self.count_loss(reason);
        self.limit_files();
        self.set_answer(key, None, &Table { python, ..NO_TABLE })
    }

    fn set_answer(
        &mut self,
        key: &FileKey,
        digest: Option<UnwindDigest>,
        table: &Table,
    ) -> anyhow::Result<()> {
        self.answers.insert(*key, digest);
        let number = self.numbers.number(key);
        self.kernel.set_table(key, &Table { used: now(), number, ..*table })
    }

    /// Records that the file has no table until there may be memory for it.
    fn refuse(&mut self, key: &FileKey, python: u32) -> anyhow::Result<()> {
        self.count_loss(StackLossReason::NoTableMemory);
        self.refused.push((now(), *key));
        self.set_answer(key, None, &Table { python, ..NO_TABLE })
    }

    /// Removes what the kernel side has for a file, so that it requests a table again.
    pub(super) fn forget(&mut self, key: &FileKey) {
        self.answers.remove(key);
        self.kernel.remove_table(key);
    }

    /// Removes all tables and frees the kernel's memory for them. Their files can be requested again.
    pub(super) fn free(&mut self) -> anyhow::Result<()> {
        let with_table = |(key, digest): (&FileKey, &Option<UnwindDigest>)| digest.map(|_| *key);
        let keys: Vec<FileKey> = self.answers.iter().filter_map(with_table).collect();
        for key in &keys {
            self.forget(key);
        }
        std::thread::sleep(GRACE);
        for table in std::mem::take(&mut self.tables).into_values() {
            self.rules.release(&table.rules);
        }
        if self.arena.slabs() > 0 {
            self.kernel.free_slabs()?;
            self.arena = SlabArena::default();
            self.arena.add_slab();
        }
        // There is free memory now.
        self.allow_retries(u32::MAX);
        Ok(())
    }

    /// Why rows or files have no table, by counter name.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        self.losses.by_name()
    }

    pub fn cost(&self) -> UnwindCost {
        UnwindCost {
            tables: self.tables.len(),
            files: self.tables.values().map(|table| table.keys.len()).sum(),
            rows: self.tables.values().map(|table| table.rows).sum(),
            rules: self.rules.len(),
            kernel_bytes: self.arena.slabs() * SLAB_WORDS * 4,
            used_bytes: self.arena.used_words() * 4,
        }
    }

    pub(super) fn count_loss(&mut self, reason: StackLossReason) {
        self.losses.add(reason, 1);
    }

    /// Writes a table. None if it does not fit, even after evictions.
    fn add_table(
        &mut self,
        key: &FileKey,
        digest: UnwindDigest,
        tenant: Tenant,
        rows: &FileRows,
    ) -> anyhow::Result<Option<Table>> {
        let Some((first, last)) = rows.rows.first().zip(rows.rows.last()) else { return Ok(None) };
        let (first_page, last_page) = (first.offset >> PAGE_BITS, last.offset >> PAGE_BITS);
        let pages = (last_page - first_page + 1) as usize;
        if pages * 2 > SLAB_WORDS {
            return Ok(None);
        }
        let Some(rules) = self.number_rules(rows)? else { return Ok(None) };
        let mut new =
            UnwindTable { extents: Vec::new(), table: NO_TABLE, rows: 0, rules, keys: vec![*key], tenant };
        let Some(directory) = self.write_pages(&mut new, &rows.rows, first_page..=last_page)? else {
            self.discard(&new);
            return Ok(None);
        };
        let Some(place) = self.write_words(&directory)? else {
            self.discard(&new);
            return Ok(None);
        };
        new.extents.push(place);
        new.table = Table {
            state: TABLE_READY,
            slab: u32::try_from(place.slab)?,
            first: u32::try_from(place.first / 2)?,
            first_page,
            pages: u32::try_from(pages)?,
            used: now(),
            python: 0,
            number: 0,
        };
        let table = new.table;
        self.tables.insert(digest, new);
        Ok(Some(table))
    }

    /// Writes the rows of all `pages`, and returns the words of the directory. None if they do not fit.
    fn write_pages(
        &mut self,
        table: &mut UnwindTable,
        rows: &[UnwindRow],
        pages: RangeInclusive<u32>,
    ) -> anyhow::Result<Option<Vec<u32>>> {
        let mut directory = Vec::with_capacity(pages.clone().count() * 2);
        let mut page: Vec<u32> = Vec::new();
        let mut next = 0;
        // The rule that holds at the current offset.
        let mut current = RULE_NONE;
        for number in pages {
            // The first row of every page is at its start.
            page.clear();
            page.push(u32::from(current));
            while let Some(row) = rows.get(next).filter(|row| row.offset >> PAGE_BITS == number) {
                let in_page = row.offset & 0xffff;
                if in_page == 0 {
                    page.clear();
                }
                current = table.rules[usize::from(row.rule)];
                page.push(in_page << 16 | u32::from(current));
                next += 1;
            }
            // A page without any rule is an empty entry of the directory and takes no memory.
            let entry = if page.iter().all(|row| row & 0xffff == u32::from(RULE_NONE)) {
                0
            } else {
                let Some(extent) = self.write_words(&page)? else { return Ok(None) };
                table.extents.push(extent);
                table.rows += page.len();
                (extent.slab as u64) << DIRECTORY_SLAB_SHIFT
                    | (extent.first as u64) << DIRECTORY_FIRST_SHIFT
                    | page.len() as u64
            };
            directory.extend([entry as u32, (entry >> 32) as u32]);
        }
        Ok(Some(directory))
    }

    /// Releases the memory and the rules of a table that the kernel side does not read.
    fn discard(&mut self, table: &UnwindTable) {
        for &extent in &table.extents {
            self.arena.release(extent);
        }
        self.rules.release(&table.rules);
    }

    /// The kernel side's numbers for the rules of a file; rules that are new are added. None if they do not fit.
    fn number_rules(&mut self, rows: &FileRows) -> anyhow::Result<Option<Vec<u16>>> {
        loop {
            if let Some(numbers) = self.rules.acquire(&mut self.kernel, &rows.rules)? {
                return Ok(Some(numbers));
            }
            if !self.evict(0) {
                self.count_loss(StackLossReason::RulesFull);
                return Ok(None);
            }
        }
    }

    /// Writes words into free memory, into a new slab, or into the memory of evicted tables. None if none of it suffices.
    fn write_words(&mut self, words: &[u32]) -> anyhow::Result<Option<Extent>> {
        if words.len() > SLAB_WORDS {
            return Ok(None);
        }
        loop {
            if let Some(extent) = self.arena.allocate(words.len()) {
                self.kernel.write(extent.slab, extent.first, words)?;
                return Ok(Some(extent));
            }
            if self.arena.slabs() < self.max_slabs {
                self.kernel.add_slab()?;
                self.arena.add_slab();
            } else if !self.evict(words.len()) {
                return Ok(None);
            }
        }
    }

    /// Evicts the tables that were used least recently. False if there is none to evict.
    fn evict(&mut self, words: usize) -> bool {
        let wanted = words.max(self.max_slabs * SLAB_WORDS / EVICTION_FRACTION);
        let (mut evicted, mut freed) = (Vec::new(), 0);
        for digest in self.least_recently_used() {
            if freed >= wanted {
                break;
            }
            let Some(table) = self.tables.remove(&digest) else { continue };
            for key in &table.keys {
                self.forget(key);
            }
            freed += table.extents.iter().map(|extent| extent.len).sum::<usize>();
            evicted.push(table);
            self.count_loss(StackLossReason::TableEvicted);
        }
        if evicted.is_empty() {
            return false;
        }
        std::thread::sleep(GRACE);
        for table in &evicted {
            self.discard(table);
        }
        // There is free memory now.
        self.allow_retries(u32::MAX);
        true
    }

    /// The tables that may be evicted, in order: those of a container that has more than its share, then the least recently
    /// used.
    fn least_recently_used(&self) -> Vec<UnwindDigest> {
        let now = now();
        let largest = self.tenant_over_share();
        let last_used = |table: &UnwindTable| {
            let entries = table.keys.iter().filter_map(|key| self.kernel.table(key));
            entries.map(|entry| entry.used).max().unwrap_or(0)
        };
        let rank = |(digest, table): (&UnwindDigest, &UnwindTable)| {
            (Some(table.tenant) != largest, last_used(table), *digest)
        };
        let mut all: Vec<_> = self.tables.iter().map(rank).collect();
        all.retain(|(is_within_share, used, _)| !is_within_share || now.saturating_sub(*used) >= IN_USE);
        all.sort_unstable();
        all.into_iter().map(|(.., digest)| digest).collect()
    }

    /// The container with the most rows or rules, if it has more than its share.
    fn tenant_over_share(&self) -> Option<Tenant> {
        let mut used: HashMap<Tenant, (usize, usize)> = HashMap::new();
        for table in self.tables.values() {
            let of_tenant = used.entry(table.tenant).or_default();
            of_tenant.0 += table.extents.iter().map(|extent| extent.len).sum::<usize>();
            of_tenant.1 += table.rules.len();
        }
        let words = self.max_slabs * SLAB_WORDS / TENANT_FRACTION;
        let rules = RULES_MAX / TENANT_FRACTION;
        // The host's own files (0) are not a container's.
        let over = used.iter().filter(|(tenant, used)| **tenant != 0 && (used.0 > words || used.1 > rules));
        over.max_by_key(|(_, used)| used.0 / words.max(1) + used.1 / rules).map(|(tenant, _)| *tenant)
    }

    /// Removes the tables that carry an interpreter's number, before the number is given to another one.
    pub(super) fn forget_python(&mut self, number: u32) {
        let carries = |key: &&FileKey| self.kernel.table(key).is_some_and(|table| table.python == number);
        let keys: Vec<FileKey> = self.answers.keys().filter(carries).copied().collect();
        for key in &keys {
            self.forget(key);
        }
        std::thread::sleep(GRACE);
    }

    /// Lets the kernel side request the files again that were refused up to `until`.
    fn allow_retries(&mut self, until: u32) {
        let due: Vec<(u32, FileKey)> = self.refused.extract_if(.., |(at, _)| *at <= until).collect();
        for (_, key) in &due {
            self.forget(key);
        }
    }

    /// Removes a quarter of the kernel side's map of files when it is nearly full.
    fn limit_files(&mut self) {
        self.allow_retries(now().saturating_sub(RETRY_REFUSED_AFTER));
        if self.answers.len() < self.kernel.max_files() / 8 * 7 {
            return;
        }
        let used = |key: &FileKey| self.kernel.table(key).map_or(0, |table| table.used);
        let mut all: Vec<(u32, FileKey)> = self.answers.keys().map(|key| (used(key), *key)).collect();
        all.sort_unstable_by_key(|(used, _)| *used);
        for (_, key) in &all[..all.len() / 4] {
            let digest = self.answers.get(key).copied().flatten();
            if let Some(table) = digest.and_then(|digest| self.tables.get_mut(&digest)) {
                table.keys.retain(|other| other != key);
            }
            self.forget(key);
            self.count_loss(StackLossReason::FilesForgotten);
        }
    }
}

const NO_TABLE: Table = Table { state: TABLE_NONE, ..Table::ASKED };

/// The current time in the units of [`Table::used`], which the kernel side writes.
fn now() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| ((now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64) >> 30) as u32)
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
