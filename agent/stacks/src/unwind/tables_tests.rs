//! Tables in a stand-in for the kernel that keeps its maps in vectors.

use podopsy_wire::{KIND_NONE, KIND_STOP, KIND_UNSUPPORTED, RULES_MAX};

use std::hash::{DefaultHasher, Hash, Hasher};

use super::*;

#[derive(Default)]
struct FakeMaps {
    slabs: Vec<Vec<u32>>,
    rules: HashMap<u16, Rule>,
    tables: HashMap<FileKey, Table>,
}

impl KernelMaps for FakeMaps {
    fn add_slab(&mut self) -> anyhow::Result<()> {
        self.slabs.push(vec![0; SLAB_WORDS]);
        Ok(())
    }
    fn free_slabs(&mut self) -> anyhow::Result<()> {
        self.slabs.truncate(1);
        Ok(())
    }
    fn write(&mut self, slab: usize, first: usize, words: &[u32]) -> anyhow::Result<()> {
        self.slabs[slab][first..first + words.len()].copy_from_slice(words);
        Ok(())
    }
    fn max_slabs(&self) -> usize {
        64
    }
    fn max_files(&self) -> usize {
        podopsy_wire::TABLES_MAX
    }
    fn set_rule(&mut self, number: u16, rule: &Rule) -> anyhow::Result<()> {
        self.rules.insert(number, *rule);
        Ok(())
    }
    fn set_python(&mut self, _: u32, _: &PythonLayout) -> anyhow::Result<()> {
        Ok(())
    }
    fn set_table(&mut self, key: &FileKey, table: &Table) -> anyhow::Result<()> {
        self.tables.insert(*key, *table);
        Ok(())
    }
    fn remove_table(&mut self, key: &FileKey) {
        self.tables.remove(key);
    }
    fn table(&self, key: &FileKey) -> Option<Table> {
        self.tables.get(key).copied()
    }
}

impl FakeMaps {
    /// Looks up a rule as `probe-ebpf/src/unwind.rs` does.
    fn find(&self, key: &FileKey, offset: u32) -> Option<Rule> {
        let table = self.tables.get(key).filter(|table| table.state == TABLE_READY)?;
        let page = (offset >> PAGE_BITS).checked_sub(table.first_page).filter(|page| *page < table.pages);
        let Some(page) = page else { return Some(self.rules[&RULE_NONE]) };
        let at = (table.first + page) as usize * 2;
        let words = &self.slabs[table.slab as usize];
        let entry = u64::from(words[at]) | u64::from(words[at + 1]) << 32;
        if entry == 0 {
            return Some(self.rules[&RULE_NONE]);
        }
        let slab = &self.slabs[(entry >> DIRECTORY_SLAB_SHIFT) as usize];
        let first = (entry >> DIRECTORY_FIRST_SHIFT) as usize & 0xff_ffff;
        let rows = &slab[first..first + (entry & 0xff_ffff) as usize];
        let row = rows.iter().rfind(|row| **row <= offset << 16 | 0xffff)?;
        Some(self.rules[&((row & 0xffff) as u16)])
    }
}

fn key(inode: u64) -> FileKey {
    FileKey { inode, size: 1, device: 1, changed: 1 }
}

/// Loads a file with nothing but these rows.
fn load(tables: &mut UnwindTables<FakeMaps>, inode: u64, rows: &FileRows) {
    load_for(tables, 0, inode, rows);
}

fn load_for(tables: &mut UnwindTables<FakeMaps>, tenant: Tenant, inode: u64, rows: &FileRows) {
    let mut hasher = DefaultHasher::new();
    (&rows.rows, &rows.rules).hash(&mut hasher);
    tables.load(&key(inode), 0, hasher.finish().into(), tenant, || Ok(rows.clone())).unwrap();
}

/// Makes all tables look as if no stack had gone through them lately.
fn set_unused(tables: &mut UnwindTables<FakeMaps>) {
    for table in tables.kernel.tables.values_mut() {
        table.used = 1;
    }
}

/// A file with a rule every `step` bytes. The offsets in the rules tell the rules of two files apart.
fn made_up_rows(rows: u32, step: u32, seed: i32) -> FileRows {
    let mut rules: Vec<Rule> = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind).to_vec();
    rules.extend(
        (0..100).map(|n| Rule { cfa_offset: seed * 1000 + n, ..Rule::of_kind(podopsy_wire::KIND_REGISTER) }),
    );
    let rows = (0..rows).map(|n| UnwindRow { offset: 0x1234 + n * step, rule: (n % 103) as u16 }).collect();
    FileRows { rows, rules, losses: StackLosses::default() }
}

#[test]
fn every_offset_finds_the_rule_of_its_row() {
    let mut tables = UnwindTables::new(FakeMaps::default(), 64 << 20).unwrap();
    for (inode, rows) in
        [made_up_rows(50_000, 13, 1), made_up_rows(40, 70_001, 2), made_up_rows(1, 1, 3)].iter().enumerate()
    {
        let key = key(inode as u64);
        load(&mut tables, key.inode, rows);
        let last = rows.rows.last().unwrap().offset;
        for offset in (0..last + 0x2_0000).step_by(7).chain([0x1233, 0x1234, 0xffff, 0x1_0000, last]) {
            // After the last page there is no rule, although the last row has no end: real files end with `RULE_NONE`.
            let known = offset >> PAGE_BITS <= last >> PAGE_BITS;
            let expected = if known { rows.at(offset) } else { Rule::of_kind(KIND_NONE) };
            assert_eq!(tables.kernel.find(&key, offset), Some(expected), "{offset:#x}");
        }
    }
}

#[test]
fn files_with_equal_rows_share_a_table() {
    let mut tables = UnwindTables::new(FakeMaps::default(), 64 << 20).unwrap();
    let rows = made_up_rows(10_000, 13, 1);
    load(&mut tables, 1, &rows);
    let one = tables.cost();
    load(&mut tables, 2, &rows);
    let two = tables.cost();
    assert_eq!((two.used_bytes, two.tables, two.files), (one.used_bytes, 1, 2));
    assert!(one.used_bytes as f64 / (one.rows as f64) < 4.05, "{one:?}");
    assert_eq!(tables.kernel.find(&key(2), 0x2000), tables.kernel.find(&key(1), 0x2000));
}

#[test]
fn over_the_bound_the_least_used_tables_are_evicted_and_counted() {
    // Two slabs hold at most three of these tables.
    let mut tables = UnwindTables::new(FakeMaps::default(), SLAB_WORDS * 4 * 2).unwrap();
    for inode in 0..4 {
        load(&mut tables, inode, &made_up_rows(40_000, 20, inode as i32));
        // In the order of inodes, except that the first one was used last.
        for (key, table) in &mut tables.kernel.tables {
            table.used = if key.inode == 0 { 100 } else { key.inode as u32 };
        }
    }
    assert!(tables.losses()["unwind_evicted"] >= 1);
    assert!(tables.kernel.find(&key(0), 0x2000).is_some(), "evicted although it is in use");
    assert!(tables.kernel.find(&key(1), 0x2000).is_none());
    assert!(tables.kernel.find(&key(3), 0x2000).is_some());
    assert_eq!(tables.cost().kernel_bytes, SLAB_WORDS * 8);
    // A table that can never fit is counted, and keeps no memory after the attempt.
    load(&mut tables, 9, &made_up_rows(400_000, 20, 9));
    assert_eq!(tables.kernel.tables[&key(9)].state, TABLE_NONE);
    assert_eq!(tables.losses()["unwind_no_room"], 1);
    assert_eq!(tables.cost().used_bytes, 0);
}

#[test]
fn a_file_without_unwind_information_has_an_answer() {
    let mut tables = UnwindTables::new(FakeMaps::default(), 1 << 20).unwrap();
    assert!(!tables.has_answer(&key(1)));
    tables.set_no_table(&key(1), 0, StackLossReason::NoInformation).unwrap();
    assert!(tables.has_answer(&key(1)));
    assert_eq!(tables.losses()["unwind_no_information"], 1);
}

#[test]
fn rules_of_evicted_tables_are_released() {
    let mut tables = UnwindTables::new(FakeMaps::default(), SLAB_WORDS * 4).unwrap();
    // Each file has 100 rules of its own. Together they are four times as many as fit.
    for inode in 0..RULES_MAX as u64 / 25 {
        load(&mut tables, inode, &made_up_rows(20_000, 20, inode as i32));
        set_unused(&mut tables);
        let rows = made_up_rows(20_000, 20, inode as i32);
        let offset = rows.rows[19_000].offset;
        assert_eq!(tables.kernel.find(&key(inode), offset), Some(rows.at(offset)), "{inode}");
    }
    assert!(tables.cost().rules < 1000, "{:?}", tables.cost());
    assert_eq!(tables.losses().get("unwind_rules_full"), None);
}

#[test]
fn tables_in_use_are_not_evicted_and_refused_files_may_be_requested_again() {
    let mut tables = UnwindTables::new(FakeMaps::default(), SLAB_WORDS * 4).unwrap();
    load(&mut tables, 1, &made_up_rows(40_000, 20, 1));
    load(&mut tables, 2, &made_up_rows(40_000, 20, 2));
    assert_eq!(tables.kernel.tables[&key(1)].state, TABLE_READY);
    assert_eq!(tables.kernel.tables[&key(2)].state, TABLE_NONE);
    assert_eq!(tables.losses()["unwind_no_room"], 1);
    // Later the first table is not in use any more, and another file is loaded.
    set_unused(&mut tables);
    tables.refused[0].0 = 1;
    load(&mut tables, 3, &made_up_rows(10, 20, 3));
    assert!(!tables.has_answer(&key(2)), "it stays refused for ever");
    load(&mut tables, 2, &made_up_rows(40_000, 20, 2));
    assert_eq!(tables.kernel.tables[&key(2)].state, TABLE_READY);
}

#[test]
fn a_container_that_fills_the_memory_loses_its_own_tables_also_those_in_use() {
    let mut tables = UnwindTables::new(FakeMaps::default(), 2 * SLAB_WORDS * 4).unwrap();
    load_for(&mut tables, 1, 100, &made_up_rows(5_000, 20, 100));
    for inode in 0..20 {
        load_for(&mut tables, 2, inode, &made_up_rows(40_000, 20, inode as i32));
    }
    load_for(&mut tables, 1, 101, &made_up_rows(5_000, 20, 101));
    for inode in [100, 101] {
        assert_eq!(tables.kernel.tables[&key(inode)].state, TABLE_READY, "{inode}");
    }
    assert!(tables.losses()["unwind_evicted"] >= 15, "{:?}", tables.losses());
}

#[test]
fn freed_tables_leave_one_slab_and_their_files_can_be_loaded_again() {
    let mut tables = UnwindTables::new(FakeMaps::default(), 16 * SLAB_WORDS * 4).unwrap();
    for inode in 0..20 {
        load_for(&mut tables, inode, inode, &made_up_rows(40_000, 20, inode as i32));
    }
    assert!(tables.cost().kernel_bytes > 2 * SLAB_WORDS * 4);
    tables.free().unwrap();
    let cost = tables.cost();
    assert_eq!((cost.tables, cost.used_bytes, cost.kernel_bytes), (0, 0, SLAB_WORDS * 4));
    assert_eq!((tables.kernel.slabs.len(), tables.kernel.tables.len()), (1, 0));
    assert!(!tables.has_answer(&key(3)));
    let rows = made_up_rows(40_000, 20, 3);
    load_for(&mut tables, 3, 3, &rows);
    assert_eq!(tables.kernel.tables[&key(3)].state, TABLE_READY);
    let row = rows.rows[100];
    assert_eq!(tables.kernel.find(&key(3), row.offset), Some(rows.rules[usize::from(row.rule)]));
}

#[test]
fn a_container_that_fills_the_rules_loses_its_own_tables() {
    let mut tables = UnwindTables::new(FakeMaps::default(), 16 * SLAB_WORDS * 4).unwrap();
    load_for(&mut tables, 1, 10_000, &made_up_rows(200, 20, 10_000));
    for inode in 0..RULES_MAX as u64 / 50 {
        load_for(&mut tables, 2, inode, &made_up_rows(200, 20, inode as i32));
    }
    load_for(&mut tables, 3, 10_001, &made_up_rows(200, 20, 10_001));
    for inode in [10_000, 10_001] {
        assert_eq!(tables.kernel.tables[&key(inode)].state, TABLE_READY, "{inode}");
    }
}
