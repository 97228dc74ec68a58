//! Tables in a kernel that is made of vectors.

use podopsy_wire::{KIND_NONE, KIND_STOP, KIND_UNSUPPORTED, RULES_MAX};

use super::*;
use crate::unwind::rows::Row;

#[derive(Default)]
struct Fake {
    slabs: Vec<Vec<u32>>,
    rules: HashMap<u16, Rule>,
    tables: HashMap<FileKey, Table>,
}

impl Kernel for Fake {
    fn add_slab(&mut self) -> anyhow::Result<()> {
        self.slabs.push(vec![0; SLAB_WORDS]);
        Ok(())
    }
    fn write(&mut self, slab: usize, first: usize, words: &[u32]) -> anyhow::Result<()> {
        self.slabs[slab][first..first + words.len()].copy_from_slice(words);
        Ok(())
    }
    fn max_slabs(&self) -> usize {
        64
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

impl Fake {
    /// What `probe-ebpf/src/unwind.rs` does.
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

/// Loads a file that says nothing but its rows.
fn put(tables: &mut Tables<Fake>, inode: u64, rows: &Rows) {
    let digest = tables.digest(&(&rows.rows, &rows.rules));
    tables.load(&key(inode), 0, digest, || Ok(rows.clone())).unwrap();
}

/// A file with a rule every `step` bytes; the rules' offsets tell where they are.
fn made_up(rows: u32, step: u32, seed: i32) -> Rows {
    let mut rules: Vec<Rule> = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind).to_vec();
    rules.extend(
        (0..100).map(|n| Rule { cfa_offset: seed * 1000 + n, ..Rule::of_kind(podopsy_wire::KIND_REGISTER) }),
    );
    let rows = (0..rows).map(|n| Row { offset: 0x1234 + n * step, rule: (n % 103) as u16 }).collect();
    Rows { rows, rules, problems: BTreeMap::new() }
}

#[test]
fn every_offset_finds_the_rule_that_the_rows_say() {
    let mut tables = Tables::new(Fake::default(), 64 << 20).unwrap();
    for (inode, rows) in [made_up(50_000, 13, 1), made_up(40, 70_001, 2), made_up(1, 1, 3)].iter().enumerate()
    {
        let key = key(inode as u64);
        put(&mut tables, key.inode, rows);
        let last = rows.rows.last().unwrap().offset;
        for offset in (0..last + 0x2_0000).step_by(7).chain([0x1233, 0x1234, 0xffff, 0x1_0000, last]) {
            // Behind the last page nothing is said, where rows go on for ever: files end with a row that says none.
            let known = offset >> PAGE_BITS <= last >> PAGE_BITS;
            let expected = if known { rows.at(offset) } else { Rule::of_kind(KIND_NONE) };
            assert_eq!(tables.kernel.find(&key, offset), Some(expected), "{offset:#x}");
        }
    }
}

#[test]
fn files_that_say_the_same_share_a_table() {
    let mut tables = Tables::new(Fake::default(), 64 << 20).unwrap();
    let rows = made_up(10_000, 13, 1);
    put(&mut tables, 1, &rows);
    let one = tables.cost();
    put(&mut tables, 2, &rows);
    let two = tables.cost();
    assert_eq!((two.used_bytes, two.tables, two.files), (one.used_bytes, 1, 2));
    assert!(one.used_bytes as f64 / (one.rows as f64) < 4.05, "{one:?}");
    assert_eq!(tables.kernel.find(&key(2), 0x2000), tables.kernel.find(&key(1), 0x2000));
}

#[test]
fn over_the_cap_the_least_used_goes_and_is_counted() {
    // Two slabs: room for three of these tables at most.
    let mut tables = Tables::new(Fake::default(), SLAB_WORDS * 4 * 2).unwrap();
    for inode in 0..4 {
        put(&mut tables, inode, &made_up(40_000, 20, inode as i32));
        // Ascending, and the first one is the last used.
        for (key, table) in &mut tables.kernel.tables {
            table.used = if key.inode == 0 { 100 } else { key.inode as u32 };
        }
    }
    assert!(tables.losses()["unwind_evicted"] >= 1);
    assert!(tables.kernel.find(&key(0), 0x2000).is_some(), "in use, and evicted");
    assert!(tables.kernel.find(&key(1), 0x2000).is_none());
    assert!(tables.kernel.find(&key(3), 0x2000).is_some());
    assert_eq!(tables.cost().kernel_bytes, SLAB_WORDS * 8);
    // What can never fit is said, and takes nothing from the others for longer than it was tried.
    put(&mut tables, 9, &made_up(400_000, 20, 9));
    assert_eq!(tables.kernel.tables[&key(9)].state, TABLE_NONE);
    assert_eq!(tables.losses()["unwind_no_room"], 1);
    assert_eq!(tables.cost().used_bytes, 0);
}

#[test]
fn a_file_without_information_is_known_to_have_none() {
    let mut tables = Tables::new(Fake::default(), 1 << 20).unwrap();
    assert!(!tables.knows(&key(1)));
    tables.has_none(&key(1), 0, "unwind_no_information").unwrap();
    assert!(tables.knows(&key(1)));
    assert_eq!(tables.losses()["unwind_no_information"], 1);
}

#[test]
fn rules_of_what_was_evicted_make_room_for_others() {
    let mut tables = Tables::new(Fake::default(), SLAB_WORDS * 4).unwrap();
    // 100 rules a file that no other has: all of them together are four times as many as there is room for.
    for inode in 0..RULES_MAX as u64 / 25 {
        put(&mut tables, inode, &made_up(20_000, 20, inode as i32));
        tables.kernel.tables.values_mut().for_each(|table| table.used = 1);
        let rows = made_up(20_000, 20, inode as i32);
        let offset = rows.rows[19_000].offset;
        assert_eq!(tables.kernel.find(&key(inode), offset), Some(rows.at(offset)), "{inode}");
    }
    assert!(tables.cost().rules < 1000, "{:?}", tables.cost());
    assert_eq!(tables.losses().get("unwind_rules_full"), None);
}

#[test]
fn what_is_in_use_is_not_evicted_and_who_was_refused_may_ask_again() {
    let mut tables = Tables::new(Fake::default(), SLAB_WORDS * 4).unwrap();
    put(&mut tables, 1, &made_up(40_000, 20, 1));
    put(&mut tables, 2, &made_up(40_000, 20, 2));
    assert_eq!(tables.kernel.tables[&key(1)].state, TABLE_READY);
    assert_eq!(tables.kernel.tables[&key(2)].state, TABLE_NONE);
    assert_eq!(tables.losses()["unwind_no_room"], 1);
    // A while later nobody uses the first one any more, and somebody comes by.
    tables.kernel.tables.values_mut().for_each(|table| table.used = 1);
    tables.refused[0].0 = 1;
    put(&mut tables, 3, &made_up(10, 20, 3));
    assert!(!tables.knows(&key(2)), "it stays refused for ever");
    put(&mut tables, 2, &made_up(40_000, 20, 2));
    assert_eq!(tables.kernel.tables[&key(2)].state, TABLE_READY);
}
