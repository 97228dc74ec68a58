//! Compares Go's tables with the DWARF of the same program, and reads damaged tables.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::NameBounds;
use super::super::dwarf::DebugInfo;
use super::super::sections::{DebugUnits, NameSections};
use super::*;
use crate::elf::{layout, sections};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/victims/native/");

/// Builds a Go program of `tests/victims/native`.
pub(crate) fn build(folder: &Path, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let program = folder.join(name);
    let mut command = Command::new("go");
    command.arg("build").args(flags).arg("-o").arg(&program).arg(Path::new(SOURCES).join(source));
    command.env("GOCACHE", folder.join("cache")).env("GOFLAGS", "-mod=mod");
    let done = command.output().expect("run go: apt-get install golang-go");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    program
}

fn text_of(file: &File) -> (u64, u64) {
    let text = sections(file).into_iter().find(|section| section.name == b".text").unwrap();
    (text.address, text.size)
}

/// Compares the functions, the inlined functions and their lines at every 7th byte of the code. The two sources share
/// no code: Go's tables, read here, and DWARF, read by addr2line. Returns the number of addresses that agree, that
/// differ, and that agree and have inlined functions.
fn compare_with_dwarf(program: &Path) -> (u32, u32, u32) {
    let file = File::open(program).unwrap();
    let layout = layout(&file).unwrap();
    let go = GoSymbols::find(&file, &layout).expect("a Go program");
    let sections = NameSections::read(&file, DebugUnits::All, &NameBounds::LARGE).unwrap();
    assert!(sections.has_debug_info());
    let debug_info = DebugInfo::new(&sections).unwrap();
    let (start, size) = text_of(&file);
    let (mut same, mut different, mut inlined) = (0, 0, 0);
    for address in (start..start + size).step_by(7) {
        let dwarf = Symbol { functions: debug_info.functions_at(address).unwrap_or_default() };
        let Some(own) = go.symbol(&file, &layout, address).filter(|_| dwarf.has_name()) else { continue };
        let shape = |symbol: &Symbol| -> Vec<(String, Option<u32>)> {
            let line = |function: &SymbolFunction| function.source.as_ref().map(|source| source.line);
            symbol.functions.iter().map(|function| (function.name.clone(), line(function))).collect()
        };
        if shape(&own) == shape(&dwarf) {
            same += 1;
            inlined += u32::from(own.functions.len() > 1);
        } else {
            if different < 8 {
                eprintln!("{address:#x}: {:?}, but DWARF has {:?}", shape(&own), shape(&dwarf));
            }
            different += 1;
        }
    }
    eprintln!("{}: {same} agree, {inlined} of them inlined, {different} differ", program.display());
    (same, different, inlined)
}

#[test]
#[ignore = "needs go: apt-get install golang-go"]
fn go_tables_agree_with_dwarf_about_functions_inlined_calls_and_lines() {
    let folder = tempfile::tempdir().unwrap();
    for (name, flags) in [("plain", &["-ldflags=-compressdwarf=false"][..]), ("pie", &["-buildmode=pie"])] {
        let (same, different, inlined) = compare_with_dwarf(&build(folder.path(), "inlines.go", name, flags));
        assert!(same > 10_000 && inlined > 1000, "{name}: {same} and {inlined}");
        assert!(different * 50 < same, "{name}: {different} of {}", same + different);
    }
}

#[test]
#[ignore = "needs go: apt-get install golang-go"]
fn a_stripped_go_program_has_functions_files_lines_and_inlined_calls() {
    let folder = tempfile::tempdir().unwrap();
    for (name, flags) in
        [("stripped", &["-ldflags=-s -w"][..]), ("stripped-pie", &["-ldflags=-s -w", "-buildmode=pie"])]
    {
        let file = File::open(build(folder.path(), "inlines.go", name, flags)).unwrap();
        assert!(!NameSections::read(&file, DebugUnits::All, &NameBounds::LARGE).unwrap().has_debug_info());
        let layout = layout(&file).unwrap();
        let go = GoSymbols::find(&file, &layout).unwrap();
        let (start, size) = text_of(&file);
        // Go's linker puts the functions of the main package last.
        let symbols = (start..start + size).rev().filter_map(|address| go.symbol(&file, &layout, address));
        let calls = |symbol: &Symbol| -> Vec<(String, u32)> {
            let line = |function: &SymbolFunction| function.source.as_ref().map_or(0, |source| source.line);
            symbol.functions.iter().map(|function| (function.name.clone(), line(function))).collect()
        };
        let inlined = [("main.mixed".to_owned(), 10), ("main.outer".to_owned(), 18)];
        let found = symbols.filter(|symbol| calls(symbol) == inlined).take(4).count();
        assert!(found == 4, "{name}: no address in main.mixed, inlined into main.outer");
        assert!(go.symbol(&file, &layout, start - 1).is_none());
        assert!(go.symbol(&file, &layout, u64::MAX).is_none());
    }
}

#[test]
#[ignore = "needs go: apt-get install golang-go"]
fn damaged_tables_cause_no_panic_and_no_hang() {
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path(), "inlines.go", "hostile", &["-ldflags=-s -w"]);
    let whole = std::fs::read(&program).unwrap();
    let file = File::open(&program).unwrap();
    let table = sections(&file).into_iter().find(|section| section.name == b".gopclntab").unwrap();
    let (from, len) = (table.offset as usize, table.size as usize);
    let (start, size) = text_of(&file);
    let broken = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&broken, &whole, 0).unwrap();
    let layout = layout(&broken).unwrap();
    // A fixed seed makes a failure reproducible.
    let mut numbers = fastrand::Rng::with_seed(1);
    let mut random = |below: usize| numbers.usize(..below);
    let began = std::time::Instant::now();
    let mut named = 0;
    for round in 0..300 {
        // Half of the damage is in the header, which everything else depends on.
        let at = from + if round % 2 == 0 { random(72) } else { random(len) };
        let bytes = [random(256) as u8, 0xff, 0xff, random(256) as u8];
        std::os::unix::fs::FileExt::write_all_at(&broken, &bytes[..1 + random(4)], at as u64).unwrap();
        if let Some(go) = GoSymbols::find(&broken, &layout) {
            for _ in 0..20 {
                let address = start + random(size as usize) as u64;
                named += usize::from(go.symbol(&broken, &layout, address).is_some());
            }
        }
        if round % 2 == 0 {
            std::os::unix::fs::FileExt::write_all_at(&broken, &whole[from..from + 72], from as u64).unwrap();
        }
    }
    eprintln!("{named} of 6000 had a name, in {:?}", began.elapsed());
    assert!(began.elapsed() < std::time::Duration::from_secs(60));
}
