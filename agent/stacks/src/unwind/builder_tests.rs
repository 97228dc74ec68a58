//! A full queue of requests, requests with a false key, and requests for programs that have ended.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use podopsy_wire::{PythonLayout, Rule, SLAB_WORDS, TABLE_ASKED, Table};

use super::*;
use crate::symbolize::maps;
use crate::unwind::scan::{file_key, open_file};

/// The kernel side's map of files. Removing a file waits for the gate.
#[derive(Clone, Default)]
struct GatedMaps {
    tables: Arc<Mutex<HashMap<FileKey, Table>>>,
    gate: Arc<Mutex<()>>,
}

impl KernelMaps for GatedMaps {
    fn add_slab(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
    fn free_slabs(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
    fn write(&mut self, _: usize, _: usize, _: &[u32]) -> anyhow::Result<()> {
        Ok(())
    }
    fn max_slabs(&self) -> usize {
        1
    }
    fn max_files(&self) -> usize {
        podopsy_wire::TABLES_MAX
    }
    fn set_rule(&mut self, _: u16, _: &Rule) -> anyhow::Result<()> {
        Ok(())
    }
    fn set_python(&mut self, _: u32, _: &PythonLayout) -> anyhow::Result<()> {
        Ok(())
    }
    fn set_table(&mut self, key: &FileKey, table: &Table) -> anyhow::Result<()> {
        self.tables.lock().unwrap().insert(*key, *table);
        Ok(())
    }
    fn remove_table(&mut self, key: &FileKey) {
        drop(self.gate.lock().unwrap());
        self.tables.lock().unwrap().remove(key);
    }
    fn table(&self, key: &FileKey) -> Option<Table> {
        self.tables.lock().unwrap().get(key).copied()
    }
}

#[test]
fn a_file_whose_request_was_dropped_can_be_requested_again() {
    let kernel = GatedMaps::default();
    let builder = TableBuilder::start(
        kernel.clone(),
        SLAB_WORDS * 4,
        &PrebuildScope::Cgroups(Vec::new()),
        &Helpers::in_threads(),
    )
    .unwrap();
    let closed_gate = kernel.gate.lock().unwrap();
    let requested = Table::ASKED;
    for inode in 1..=REQUEST_QUEUE as u64 + 50 {
        let key = FileKey { inode, ..FileKey::VDSO };
        kernel.tables.lock().unwrap().insert(key, requested);
        // No process has this pid, so requests that are handled are forgotten, too.
        builder.request(TableRequest { key, address: 4096, pid: u32::MAX, unused: 0 });
    }
    drop(closed_gate);
    let begin = Instant::now();
    let left = || kernel.tables.lock().unwrap().values().filter(|table| table.state == TABLE_ASKED).count();
    while left() > 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} files wait for ever", left());
        std::thread::sleep(Duration::from_millis(10));
    }
    let losses = builder.stop().losses;
    assert!((49..=50).contains(&losses["unwind_queue"]), "{losses:?}");
    assert!(losses["unwind_process_gone"] >= REQUEST_QUEUE as u64);
}

#[test]
fn a_file_that_does_not_match_the_requested_key_gets_no_table_under_that_key() {
    let own = std::process::id();
    let areas = maps::read_in_test(own).unwrap().areas;
    let area = areas.into_iter().find(|area| area.is_file() && area.path.ends_with(b"/libc.so.6")).unwrap();
    let key = file_key(&open_file(&Helpers::in_threads().openers, own, 1, &area).unwrap().file, &area);
    let kernel = GatedMaps::default();
    let builder = TableBuilder::start(
        kernel.clone(),
        SLAB_WORDS * 4,
        &PrebuildScope::Cgroups(Vec::new()),
        &Helpers::in_threads(),
    )
    .unwrap();
    let request =
        |key: FileKey| builder.request(TableRequest { key, address: area.start, pid: own, unused: 0 });
    let false_key = FileKey { changed: key.changed ^ 1, ..key };
    request(false_key);
    request(key);
    let begin = Instant::now();
    while kernel.table(&key).is_none() {
        assert!(begin.elapsed() < Duration::from_secs(60), "no table for libc");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(kernel.table(&false_key), None);
    assert_eq!(builder.stop().losses["unwind_file_replaced"], 1);
}

#[test]
fn freed_tables_are_built_again_when_they_are_requested() {
    let own = std::process::id();
    let areas = maps::read_in_test(own).unwrap().areas;
    let area = areas.into_iter().find(|area| area.is_file() && area.path.ends_with(b"/libc.so.6")).unwrap();
    let key = file_key(&open_file(&Helpers::in_threads().openers, own, 1, &area).unwrap().file, &area);
    let kernel = GatedMaps::default();
    let scope = PrebuildScope::Cgroups(Vec::new());
    let builder =
        TableBuilder::start(kernel.clone(), SLAB_WORDS * 4, &scope, &Helpers::in_threads()).unwrap();
    let until = |has_table: bool| {
        let begin = Instant::now();
        while kernel.table(&key).is_some() != has_table {
            assert!(begin.elapsed() < Duration::from_secs(60), "libc has a table: {}", !has_table);
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    for _ in 0..2 {
        builder.request(TableRequest { key, address: area.start, pid: own, unused: 0 });
        until(true);
        builder.free();
        until(false);
    }
    builder.stop();
}

#[test]
fn the_start_of_a_program_is_handled_again_if_its_first_process_had_ended() {
    let own = std::process::id();
    let areas = maps::read_in_test(own).unwrap().areas;
    let area = areas.iter().find(|area| area.is_file()).unwrap();
    let key = file_key(&open_file(&Helpers::in_threads().openers, own, 1, area).unwrap().file, area);
    let kernel = GatedMaps::default();
    let builder = TableBuilder::start(
        kernel.clone(),
        SLAB_WORDS * 4,
        &PrebuildScope::Cgroups(Vec::new()),
        &Helpers::in_threads(),
    )
    .unwrap();
    for pid in [u32::MAX, own] {
        builder.request(TableRequest { key, address: 0, pid, unused: 0 });
    }
    let begin = Instant::now();
    while kernel.table(&key).is_none() {
        assert!(begin.elapsed() < Duration::from_secs(60), "no table for our own program");
        std::thread::sleep(Duration::from_millis(10));
    }
    builder.stop();
}
