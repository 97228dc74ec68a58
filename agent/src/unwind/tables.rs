//! Rows → pages in the kernel's memory, shared between all files that say the same, evicted by use.
//!
//! Must not know: aya, processes, where rows come from.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use podopsy_wire::{
    DIRECTORY_FIRST_SHIFT, DIRECTORY_SLAB_SHIFT, FileKey, KIND_NONE, KIND_STOP, KIND_UNSUPPORTED, PAGE_BITS,
    PythonLayout, RULE_NONE, RULE_UNSUPPORTED, RULES_MAX, Rule, SLAB_WORDS, TABLE_NONE, TABLE_READY,
    TABLES_MAX, Table,
};

use super::arena::{Arena, Extent};
use super::rows::Rows;
use crate::model::profile::UnwindCost;

/// The kernel side's maps.
pub trait Kernel: Send + 'static {
    fn add_slab(&mut self) -> anyhow::Result<()>;
    fn slab(&mut self, index: usize) -> &mut [u32];
    fn max_slabs(&self) -> usize;
    fn set_rule(&mut self, number: u16, rule: &Rule) -> anyhow::Result<()>;
    fn set_python(&mut self, number: u32, layout: &PythonLayout) -> anyhow::Result<()>;
    fn set_table(&mut self, key: &FileKey, table: &Table) -> anyhow::Result<()>;
    fn remove_table(&mut self, key: &FileKey);
    fn table(&self, key: &FileKey) -> Option<Table>;
    fn tables(&self) -> Vec<(FileKey, Table)>;
}

/// How long a program that still reads what was taken away could take: microseconds, in truth.
const GRACE: Duration = Duration::from_millis(5);

/// Names the content of a table: its hash by a key that nobody can guess, and its sizes.
type Digest = (u64, usize, usize);

#[derive(Debug)]
struct Loaded {
    extents: Vec<Extent>,
    table: Table,
    rows: usize,
    keys: Vec<FileKey>,
}

pub struct Tables<K> {
    kernel: K,
    arena: Arena,
    rules: HashMap<Rule, u16>,
    loaded: HashMap<Digest, Loaded>,
    hasher: RandomState,
    max_slabs: usize,
    losses: BTreeMap<&'static str, u64>,
}

impl<K: Kernel> Tables<K> {
    /// At most `max_bytes` of the kernel's memory for rows and directories.
    pub fn new(mut kernel: K, max_bytes: usize) -> anyhow::Result<Self> {
        let mut rules = HashMap::new();
        for (kind, number) in [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].into_iter().zip(0..) {
            kernel.set_rule(number, &Rule::of_kind(kind))?;
            rules.insert(Rule::of_kind(kind), number);
        }
        let max_slabs = (max_bytes / (SLAB_WORDS * 4)).clamp(1, kernel.max_slabs());
        Ok(Self {
            kernel,
            arena: Arena::default(),
            rules,
            loaded: HashMap::new(),
            hasher: RandomState::new(),
            max_slabs,
            losses: BTreeMap::new(),
        })
    }

    /// True when the kernel side has an answer for this file.
    pub fn knows(&self, key: &FileKey) -> bool {
        self.kernel.table(key).is_some_and(|table| table.state != podopsy_wire::TABLE_ASKED)
    }

    /// Tells the kernel side of an interpreter, by the number that its file's table will have.
    pub(super) fn set_python(&mut self, number: u32, layout: &PythonLayout) -> anyhow::Result<()> {
        self.kernel.set_python(number, layout)
    }

    /// Gives the file a table, or says for good that it has none. `python`: the interpreter that it is, 0: none.
    pub(super) fn load(
        &mut self,
        key: &FileKey,
        rows: Result<&Rows, &'static str>,
        python: u32,
    ) -> anyhow::Result<()> {
        self.keep_room_for_files();
        let table = match rows {
            Ok(rows) => {
                for (reason, count) in &rows.problems {
                    *self.losses.entry(reason).or_default() += count;
                }
                self.table(key, rows)?
            }
            Err(reason) => {
                self.lose(reason);
                None
            }
        };
        let none =
            Table { state: TABLE_NONE, slab: 0, first: 0, first_page: 0, pages: 0, used: now(), python: 0 };
        self.kernel.set_table(key, &Table { python, ..table.unwrap_or(none) })
    }

    /// Takes back that the file was asked for, so that it can be asked for again.
    pub(super) fn forget(&mut self, key: &FileKey, reason: &'static str) {
        self.lose(reason);
        self.take_back(key);
    }

    /// The same of one that nobody looked at.
    pub(super) fn take_back(&mut self, key: &FileKey) {
        self.kernel.remove_table(key);
    }

    /// Why rows or files have no table, by counter name.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        self.losses.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
    }

    pub fn cost(&self) -> UnwindCost {
        UnwindCost {
            tables: self.loaded.len(),
            files: self.loaded.values().map(|loaded| loaded.keys.len()).sum(),
            rows: self.loaded.values().map(|loaded| loaded.rows).sum(),
            rules: self.rules.len(),
            kernel_bytes: self.arena.slabs() * SLAB_WORDS * 4,
            used_bytes: self.arena.used() * 4,
        }
    }

    pub(super) fn lose(&mut self, reason: &'static str) {
        *self.losses.entry(reason).or_default() += 1;
    }

    fn table(&mut self, key: &FileKey, rows: &Rows) -> anyhow::Result<Option<Table>> {
        let digest = (self.hasher.hash_one((&rows.rows, &rows.rules)), rows.rows.len(), rows.rules.len());
        if let Some(loaded) = self.loaded.get_mut(&digest) {
            if !loaded.keys.contains(key) {
                loaded.keys.push(*key);
            }
            return Ok(Some(Table { used: now(), ..loaded.table }));
        }
        let numbers = self.rule_numbers(rows)?;
        let (first_page, pages) = pages(rows, &numbers);
        let mut extents = Vec::with_capacity(pages.len() + 1);
        let mut directory = Vec::with_capacity(pages.len() * 2);
        let mut count = 0;
        for page in &pages {
            // One row that says "none" needs no room.
            let entry = if page.iter().all(|row| row & 0xffff == u32::from(RULE_NONE)) {
                0
            } else {
                let Some(extent) = self.take(page.len())? else { return self.give_up(extents) };
                self.write(extent, page);
                extents.push(extent);
                count += page.len();
                (extent.slab as u64) << DIRECTORY_SLAB_SHIFT
                    | (extent.first as u64) << DIRECTORY_FIRST_SHIFT
                    | page.len() as u64
            };
            directory.extend([entry as u32, (entry >> 32) as u32]);
        }
        let Some(place) = self.take(directory.len())? else { return self.give_up(extents) };
        self.write(place, &directory);
        extents.push(place);
        let table = Table {
            state: TABLE_READY,
            slab: u32::try_from(place.slab)?,
            first: u32::try_from(place.first / 2)?,
            first_page,
            pages: u32::try_from(pages.len())?,
            used: now(),
            python: 0,
        };
        self.loaded.insert(digest, Loaded { extents, table, rows: count, keys: vec![*key] });
        Ok(Some(table))
    }

    /// It does not fit, whatever is evicted.
    fn give_up(&mut self, extents: Vec<Extent>) -> anyhow::Result<Option<Table>> {
        extents.into_iter().for_each(|extent| self.arena.give_back(extent));
        self.lose("unwind_no_room");
        Ok(None)
    }

    /// The kernel's numbers of the file's rules, those that it does not know yet being added.
    fn rule_numbers(&mut self, rows: &Rows) -> anyhow::Result<Vec<u16>> {
        let mut numbers = Vec::with_capacity(rows.rules.len());
        for rule in &rows.rules {
            let number = match self.rules.get(rule) {
                Some(&number) => number,
                None if self.rules.len() < RULES_MAX => {
                    let number = u16::try_from(self.rules.len())?;
                    self.kernel.set_rule(number, rule)?;
                    self.rules.insert(*rule, number);
                    number
                }
                None => {
                    self.lose("unwind_rules_full");
                    RULE_UNSUPPORTED
                }
            };
            numbers.push(number);
        }
        Ok(numbers)
    }

    /// Room for `len` words: free, new, or somebody else's who has not been seen for longest.
    fn take(&mut self, len: usize) -> anyhow::Result<Option<Extent>> {
        if len > SLAB_WORDS {
            return Ok(None);
        }
        loop {
            if let Some(extent) = self.arena.take(len) {
                return Ok(Some(extent));
            }
            if self.arena.slabs() < self.max_slabs {
                self.kernel.add_slab()?;
                self.arena.grow();
            } else if !self.evict() {
                return Ok(None);
            }
        }
    }

    fn write(&mut self, extent: Extent, words: &[u32]) {
        let slab = self.kernel.slab(extent.slab);
        slab[extent.first..extent.first + words.len()].copy_from_slice(words);
    }

    /// Drops the table that no stack went through for longest; false: there is none to drop.
    fn evict(&mut self) -> bool {
        let last_used = |loaded: &Loaded| {
            loaded
                .keys
                .iter()
                .filter_map(|key| self.kernel.table(key))
                .map(|table| table.used)
                .max()
                .unwrap_or(0)
        };
        let oldest =
            self.loaded.iter().min_by_key(|(_, loaded)| last_used(loaded)).map(|(digest, _)| *digest);
        let Some(loaded) = oldest.and_then(|digest| self.loaded.remove(&digest)) else { return false };
        loaded.keys.iter().for_each(|key| self.kernel.remove_table(key));
        std::thread::sleep(GRACE);
        loaded.extents.into_iter().for_each(|extent| self.arena.give_back(extent));
        self.lose("unwind_evicted");
        true
    }

    /// The map of files is bounded, too: a quarter of it is emptied when it is nearly full.
    fn keep_room_for_files(&mut self) {
        let known = self.loaded.values().map(|loaded| loaded.keys.len()).sum::<usize>();
        // Files without a table are not in `loaded`: count them only when it may matter.
        if known + 64 < TABLES_MAX / 8 && self.losses.values().sum::<u64>() < TABLES_MAX as u64 / 2 {
            return;
        }
        let mut all = self.kernel.tables();
        if all.len() < TABLES_MAX / 8 * 7 {
            return;
        }
        all.sort_by_key(|(_, table)| table.used);
        for (key, _) in &all[..all.len() / 4] {
            self.kernel.remove_table(key);
            self.loaded.values_mut().for_each(|loaded| loaded.keys.retain(|other| other != key));
            self.lose("unwind_files_forgotten");
        }
    }
}

/// As the kernel side writes [`Table::used`].
fn now() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| ((now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64) >> 30) as u32)
}

/// The first page's number, and each page's rows; every page begins with what holds at its start.
fn pages(rows: &Rows, numbers: &[u16]) -> (u32, Vec<Vec<u32>>) {
    let Some((first, last)) = rows.rows.first().zip(rows.rows.last()) else { return (0, Vec::new()) };
    let (first_page, last_page) = (first.offset >> PAGE_BITS, last.offset >> PAGE_BITS);
    let mut pages: Vec<Vec<u32>> = vec![Vec::new(); (last_page - first_page + 1) as usize];
    let mut holds = RULE_NONE;
    let mut filled = 0;
    for row in &rows.rows {
        let page = ((row.offset >> PAGE_BITS) - first_page) as usize;
        // Pages in between begin, and end, with what held before.
        while filled <= page {
            pages[filled].push(u32::from(holds));
            filled += 1;
        }
        let (inside, number) = (row.offset & 0xffff, numbers[usize::from(row.rule)]);
        if inside == 0 {
            pages[page].clear();
        }
        pages[page].push(inside << 16 | u32::from(number));
        holds = number;
    }
    (first_page, pages)
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
