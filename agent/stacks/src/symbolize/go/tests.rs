//! Go's tables against what the same program's DWARF says, and under attack.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::elf::{layout, sections};
use super::super::resolver::Resolver;
use super::super::snapshot;
use super::*;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/victims/native/");

/// A Go program of `tests/victims/native`.
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

/// Every 7th byte of all code: the function, the functions inlined there, and their lines, by two ways that share no
/// code: Go's tables here, DWARF by blazesym.
fn agreement(program: &Path) -> (u32, u32, u32) {
    let file = File::open(program).unwrap();
    let layout = layout(&file).unwrap();
    let go = Go::find(&file, &layout).expect("a Go program");
    let copy = snapshot::take(&file, snapshot::Author::Container).unwrap().unwrap();
    assert!(copy.has_debug_info);
    let mut resolver = Resolver::default();
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy.memory)));
    let (start, size) = text_of(&file);
    let (mut same, mut different, mut inlined) = (0, 0, 0);
    for address in (start..start + size).step_by(7) {
        let (Some(own), Ok(Some(dwarf))) =
            (go.symbol(&file, &layout, address), resolver.elf(&path, true, address))
        else {
            continue;
        };
        let shape = |symbol: &Symbol| -> Vec<(String, Option<u32>)> {
            let line = |named: &Named| named.source.as_ref().map(|(_, line)| *line);
            symbol.functions.iter().map(|named| (named.function.clone(), line(named))).collect()
        };
        // Without lines from DWARF (assembly's padding) only the function can be compared.
        if shape(&own) == shape(&dwarf) {
            same += 1;
            inlined += u32::from(own.functions.len() > 1);
        } else {
            if different < 8 {
                eprintln!("{address:#x}: {:?} but DWARF {:?}", shape(&own), shape(&dwarf));
            }
            different += 1;
        }
    }
    eprintln!("{}: {same} the same, {inlined} of them inlined, {different} different", program.display());
    (same, different, inlined)
}

#[test]
#[ignore = "needs go: apt-get install golang-go"]
fn go_tables_say_what_dwarf_says_with_inlined_functions_and_lines() {
    let folder = tempfile::tempdir().unwrap();
    for (name, flags) in [("plain", &["-ldflags=-compressdwarf=false"][..]), ("pie", &["-buildmode=pie"])] {
        let (same, different, inlined) = agreement(&build(folder.path(), "inlines.go", name, flags));
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
        assert!(
            snapshot::take(&file, snapshot::Author::Container)
                .unwrap()
                .is_none_or(|copy| !copy.has_debug_info)
        );
        let layout = layout(&file).unwrap();
        let go = Go::find(&file, &layout).unwrap();
        let (start, size) = text_of(&file);
        // Go's linker puts the program's own functions last.
        let symbols = (start..start + size).rev().filter_map(|address| go.symbol(&file, &layout, address));
        let calls = |symbol: &Symbol| -> Vec<(String, u32)> {
            let line = |named: &Named| named.source.as_ref().map_or(0, |(_, line)| *line);
            symbol.functions.iter().map(|named| (named.function.clone(), line(named))).collect()
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
fn whatever_is_written_over_the_tables_costs_no_panic_and_no_time() {
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
    // The same each time: a failure can be had again.
    let mut numbers = fastrand::Rng::with_seed(1);
    let mut random = |below: usize| numbers.usize(..below);
    let began = std::time::Instant::now();
    let mut named = 0;
    for round in 0..300 {
        // Mostly the header and the first functions, where everything else hangs on.
        let at = from + if round % 2 == 0 { random(72) } else { random(len) };
        let bytes = [random(256) as u8, 0xff, 0xff, random(256) as u8];
        std::os::unix::fs::FileExt::write_all_at(&broken, &bytes[..1 + random(4)], at as u64).unwrap();
        if let Some(go) = Go::find(&broken, &layout) {
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
