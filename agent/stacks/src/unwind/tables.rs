//! Rows → pages in the kernel's memory, shared between all files that say the same, evicted by use.
//!
//! Must not know: aya, processes, where rows come from.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use podopsy_wire::{
    DIRECTORY_FIRST_SHIFT, DIRECTORY_SLAB_SHIFT, FileKey, PAGE_BITS, PythonLayout, RULE_NONE, Rule,
    SLAB_WORDS, TABLE_NONE, TABLE_READY, TABLES_MAX, Table,
};

use super::arena::{Arena, Extent};
use super::numbers::Rules;
use super::rows::Rows;
use podopsy_model::profile::UnwindCost;

/// The kernel side's maps.
pub trait Kernel: Send + 'static {
    fn add_slab(&mut self) -> anyhow::Result<()>;
    /// Writes `words` to a slab, from its word `first` on; they fit.
    fn write(&mut self, slab: usize, first: usize, words: &[u32]) -> anyhow::Result<()>;
    fn max_slabs(&self) -> usize;
    fn set_rule(&mut self, number: u16, rule: &Rule) -> anyhow::Result<()>;
    fn set_python(&mut self, number: u32, layout: &PythonLayout) -> anyhow::Result<()>;
    fn set_table(&mut self, key: &FileKey, table: &Table) -> anyhow::Result<()>;
    fn remove_table(&mut self, key: &FileKey);
    fn table(&self, key: &FileKey) -> Option<Table>;
}

/// How long a program that still reads what was taken away could take: microseconds, in truth.
const GRACE: Duration = Duration::from_millis(5);
/// In the units of [`Table::used`]: what a stack went through as lately as that is not evicted, or tables that do not
/// all fit would be made and thrown away without end.
const IN_USE: u32 = 4;
/// In the same units: a file that there was no room for is not looked at for so long.
const REFUSED: u32 = 60;
/// A round of eviction frees this part of all room at least: each costs a look at all tables, and a wait.
const ROUND: usize = 16;

/// Names what a file says about unwinding: its hash by a key that nobody can guess.
pub(super) type Digest = u64;

#[derive(Debug)]
struct Loaded {
    extents: Vec<Extent>,
    table: Table,
    rows: usize,
    /// Numbers of the rules that it uses.
    rules: Vec<u16>,
    keys: Vec<FileKey>,
}

pub struct Tables<K> {
    kernel: K,
    arena: Arena,
    rules: Rules,
    loaded: HashMap<Digest, Loaded>,
    /// Files that the kernel side has an answer for; none: it has no table.
    known: HashMap<FileKey, Option<Digest>>,
    /// Files that there was no room for, and when.
    refused: Vec<(u32, FileKey)>,
    hasher: RandomState,
    max_slabs: usize,
    losses: BTreeMap<&'static str, u64>,
}

impl<K: Kernel> Tables<K> {
    /// At most `max_bytes` of the kernel's memory for rows and directories.
    pub fn new(mut kernel: K, max_bytes: usize) -> anyhow::Result<Self> {
        let rules = Rules::new(&mut kernel)?;
        let max_slabs = (max_bytes / (SLAB_WORDS * 4)).clamp(1, kernel.max_slabs());
        Ok(Self {
            kernel,
            arena: Arena::default(),
            rules,
            loaded: HashMap::new(),
            known: HashMap::new(),
            refused: Vec::new(),
            hasher: RandomState::new(),
            max_slabs,
            losses: BTreeMap::new(),
        })
    }

    /// True when the kernel side has an answer for this file.
    pub fn knows(&self, key: &FileKey) -> bool {
        self.known.contains_key(key)
    }

    pub(super) fn digest(&self, of: &impl Hash) -> Digest {
        self.hasher.hash_one(of)
    }

    /// Tells the kernel side of an interpreter, by the number that its file's table will have.
    pub(super) fn set_python(&mut self, number: u32, layout: &PythonLayout) -> anyhow::Result<()> {
        self.kernel.set_python(number, layout)
    }

    /// Gives the file a table, or says that it has none. `rows` are read only if no other file says the same.
    /// `python`: the interpreter that the file is; 0: none.
    pub(super) fn load(
        &mut self,
        key: &FileKey,
        python: u32,
        digest: Digest,
        rows: impl FnOnce() -> Result<Rows, &'static str>,
    ) -> anyhow::Result<()> {
        self.keep_room_for_files();
        if let Some(loaded) = self.loaded.get_mut(&digest) {
            if !loaded.keys.contains(key) {
                loaded.keys.push(*key);
            }
            let table = Table { python, ..loaded.table };
            return self.answer(key, Some(digest), &table);
        }
        match rows() {
            Ok(rows) => {
                for (reason, count) in &rows.problems {
                    *self.losses.entry(reason).or_default() += count;
                }
                match self.table(key, digest, &rows)? {
                    Some(table) => self.answer(key, Some(digest), &Table { python, ..table }),
                    None => self.refuse(key, python),
                }
            }
            Err(reason) => self.has_none(key, python, reason),
        }
    }

    /// Says for good that the file has no table.
    pub(super) fn has_none(
        &mut self,
        key: &FileKey,
        python: u32,
        reason: &'static str,
    ) -> anyhow::Result<()> {
        self.lose(reason);
        self.keep_room_for_files();
        self.answer(key, None, &Table { python, ..NONE })
    }

    fn answer(&mut self, key: &FileKey, digest: Option<Digest>, table: &Table) -> anyhow::Result<()> {
        self.known.insert(*key, digest);
        self.kernel.set_table(key, &Table { used: now(), ..*table })
    }

    /// Says that it has none until there may be room again.
    fn refuse(&mut self, key: &FileKey, python: u32) -> anyhow::Result<()> {
        self.lose("unwind_no_room");
        self.refused.push((now(), *key));
        self.answer(key, None, &Table { python, ..NONE })
    }

    /// Takes back that the file was asked for, so that it can be asked for again.
    pub(super) fn forget(&mut self, key: &FileKey, reason: &'static str) {
        self.lose(reason);
        self.take_back(key);
    }

    /// The same of one that nobody looked at.
    pub(super) fn take_back(&mut self, key: &FileKey) {
        self.known.remove(key);
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

    /// None: it does not fit, whatever is evicted.
    fn table(&mut self, key: &FileKey, digest: Digest, rows: &Rows) -> anyhow::Result<Option<Table>> {
        let Some((first, last)) = rows.rows.first().zip(rows.rows.last()) else { return Ok(None) };
        let (first_page, last_page) = (first.offset >> PAGE_BITS, last.offset >> PAGE_BITS);
        let pages = (last_page - first_page + 1) as usize;
        if pages * 2 > SLAB_WORDS {
            return Ok(None);
        }
        let Some(numbers) = self.rule_numbers(rows)? else { return Ok(None) };
        let mut made = Loaded { extents: Vec::new(), table: NONE, rows: 0, rules: numbers, keys: vec![*key] };
        let mut directory = Vec::with_capacity(pages * 2);
        let (mut page, mut next, mut holds) = (Vec::new(), 0, RULE_NONE);
        for number in first_page..=last_page {
            // Every page begins with what holds at its start.
            page.clear();
            page.push(u32::from(holds));
            while let Some(row) = rows.rows.get(next).filter(|row| row.offset >> PAGE_BITS == number) {
                let inside = row.offset & 0xffff;
                if inside == 0 {
                    page.clear();
                }
                holds = made.rules[usize::from(row.rule)];
                page.push(inside << 16 | u32::from(holds));
                next += 1;
            }
            // One row that says "none" needs no room.
            let entry = if page.iter().all(|row| row & 0xffff == u32::from(RULE_NONE)) {
                0
            } else {
                let Some(extent) = self.put(&page)? else { return Ok(self.give_up(made)) };
                made.extents.push(extent);
                made.rows += page.len();
                (extent.slab as u64) << DIRECTORY_SLAB_SHIFT
                    | (extent.first as u64) << DIRECTORY_FIRST_SHIFT
                    | page.len() as u64
            };
            directory.extend([entry as u32, (entry >> 32) as u32]);
        }
        let Some(place) = self.put(&directory)? else { return Ok(self.give_up(made)) };
        made.extents.push(place);
        made.table = Table {
            state: TABLE_READY,
            slab: u32::try_from(place.slab)?,
            first: u32::try_from(place.first / 2)?,
            first_page,
            pages: u32::try_from(pages)?,
            used: now(),
            python: 0,
        };
        let table = made.table;
        self.loaded.insert(digest, made);
        Ok(Some(table))
    }

    fn give_up(&mut self, made: Loaded) -> Option<Table> {
        made.extents.into_iter().for_each(|extent| self.arena.give_back(extent));
        self.rules.give_back(&made.rules);
        None
    }

    /// The kernel's numbers of the file's rules, those that it does not know yet being added; none: they do not fit.
    fn rule_numbers(&mut self, rows: &Rows) -> anyhow::Result<Option<Vec<u16>>> {
        loop {
            if let Some(numbers) = self.rules.take(&mut self.kernel, &rows.rules)? {
                return Ok(Some(numbers));
            }
            if !self.evict(0) {
                self.lose("unwind_rules_full");
                return Ok(None);
            }
        }
    }

    /// Room with these words in it: free, new, or somebody else's who has not been seen for longest.
    fn put(&mut self, words: &[u32]) -> anyhow::Result<Option<Extent>> {
        if words.len() > SLAB_WORDS {
            return Ok(None);
        }
        loop {
            if let Some(extent) = self.arena.take(words.len()) {
                self.kernel.write(extent.slab, extent.first, words)?;
                return Ok(Some(extent));
            }
            if self.arena.slabs() < self.max_slabs {
                self.kernel.add_slab()?;
                self.arena.grow();
            } else if !self.evict(words.len()) {
                return Ok(None);
            }
        }
    }

    /// Drops the tables that no stack went through for longest; false: there is none to drop.
    fn evict(&mut self, words: usize) -> bool {
        let now = now();
        let last_used = |loaded: &Loaded| {
            loaded
                .keys
                .iter()
                .filter_map(|key| self.kernel.table(key))
                .map(|table| table.used)
                .max()
                .unwrap_or(0)
        };
        let mut all: Vec<_> =
            self.loaded.iter().map(|(digest, loaded)| (last_used(loaded), *digest)).collect();
        all.retain(|(used, _)| now.saturating_sub(*used) >= IN_USE);
        all.sort_unstable();
        let wanted = words.max(self.max_slabs * SLAB_WORDS / ROUND);
        let (mut gone, mut freed) = (Vec::new(), 0);
        for (_, digest) in all {
            if freed >= wanted {
                break;
            }
            let Some(loaded) = self.loaded.remove(&digest) else { continue };
            loaded.keys.iter().for_each(|key| self.take_back(key));
            freed += loaded.extents.iter().map(|extent| extent.len).sum::<usize>();
            gone.push(loaded);
            self.lose("unwind_evicted");
        }
        if gone.is_empty() {
            return false;
        }
        std::thread::sleep(GRACE);
        for loaded in gone {
            loaded.extents.into_iter().for_each(|extent| self.arena.give_back(extent));
            self.rules.give_back(&loaded.rules);
        }
        // Whoever was refused may try again.
        self.readmit(u32::MAX);
        true
    }

    /// Lets files be asked for again that were refused before `until`.
    fn readmit(&mut self, until: u32) {
        let (again, still) = std::mem::take(&mut self.refused).into_iter().partition(|(at, _)| *at <= until);
        self.refused = still;
        let again: Vec<(u32, FileKey)> = again;
        again.iter().for_each(|(_, key)| self.take_back(key));
    }

    /// The map of files is bounded, too: a quarter of it is emptied when it is nearly full.
    fn keep_room_for_files(&mut self) {
        self.readmit(now().saturating_sub(REFUSED));
        if self.known.len() < TABLES_MAX / 8 * 7 {
            return;
        }
        let used = |key: &FileKey| self.kernel.table(key).map_or(0, |table| table.used);
        let mut all: Vec<(u32, FileKey)> = self.known.keys().map(|key| (used(key), *key)).collect();
        all.sort_unstable_by_key(|(used, _)| *used);
        for (_, key) in &all[..all.len() / 4] {
            if let Some(loaded) =
                self.known.get(key).copied().flatten().and_then(|digest| self.loaded.get_mut(&digest))
            {
                loaded.keys.retain(|other| other != key);
            }
            self.take_back(key);
            self.lose("unwind_files_forgotten");
        }
    }
}

const NONE: Table =
    Table { state: TABLE_NONE, slab: 0, first: 0, first_page: 0, pages: 0, used: 0, python: 0 };

/// As the kernel side writes [`Table::used`].
fn now() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| ((now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64) >> 30) as u32)
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
