//! Debug files that belong to a program, and those that do not.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::*;

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn query_of(offsets: Vec<u64>) -> NameQuery {
    NameQuery { offsets, layout: Layout::default(), debug_info: true, bounds: NameBounds::LARGE }
}

fn query(file: &File, offsets: Vec<u64>) -> NameQuery {
    NameQuery { layout: elf::layout(file).unwrap(), ..query_of(offsets) }
}

/// A stripped program and its debug file.
#[test]
#[ignore = "needs g++ and binutils: cargo xtask setup test"]
fn a_debug_file_is_used_only_if_it_belongs_to_the_executable() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/victims/native/signals.c");
    let (program, debug) = (path("checkout"), path("checkout.debug"));
    for build_id in ["-Wl,--build-id=0xc0ffee00c0ffee00", "-Wl,--build-id=none"] {
        run("gcc", &["-g", build_id, "-o", &program, source]);
        let whole = File::open(&program).unwrap();
        let entry = entry_of_main(&whole);
        run("objcopy", &["--only-keep-debug", &program, &debug]);
        run("objcopy", &["--strip-all", &format!("--add-gnu-debuglink={debug}"), &program]);
        let file = File::open(&program).unwrap();
        let name = |debug_file: Option<&File>| {
            let found = look_up(&file, debug_file, &query(&file, vec![entry])).ok()?;
            found.symbols.into_iter().next()?.ok()?.functions.into_iter().next()
        };
        assert!(name(None).is_none_or(|function| function.name != "main"), "the program is not stripped");
        let debug_file = File::open(&debug).unwrap();
        let found = name(Some(&debug_file)).expect("the debug file is not used");
        assert_eq!(found.name, "main");
        assert!(found.source.is_some_and(|source| source.file.ends_with("signals.c")));
        let other = File::open("/bin/true").unwrap();
        assert!(name(Some(&other)).is_none_or(|function| function.name != "main"));
    }
    assert_eq!(
        DebugLink::read(&File::open(Path::new(&program)).unwrap()).map(|link| link.name).as_deref(),
        Some("checkout.debug")
    );
}

/// The file offset of `main`, found by its name in the symbol table.
fn entry_of_main(file: &File) -> u64 {
    let layout = elf::layout(file).unwrap();
    let sections = NameSections::read(file, DebugUnits::None, &NameBounds::LARGE).unwrap();
    let table =
        SymbolTable::new(sections.get(SectionId::Symtab), sections.get(SectionId::Strtab), TableKind::Linker);
    let segment = layout.segments.iter().find(|segment| segment.is_code).unwrap();
    let addresses = segment.address..segment.address + segment.size;
    let main = addresses.into_iter().find(|&address| table.name_at(address) == Some(b"main"));
    layout.offset_of(main.unwrap()).unwrap()
}

#[test]
fn own_functions_have_names_and_lines_and_offsets_outside_have_reasons() {
    let file = File::open("/proc/self/exe").unwrap();
    let outside = u64::MAX;
    let query = query(&file, vec![outside]);
    let found = look_up(&file, None, &query).unwrap();
    let reason = StackLossReason::OffsetOutsideSegments;
    assert_eq!(found.symbols, [Err(Nameless { reason, function_start: None })]);
    let changed = NameQuery { layout: Layout::default(), ..query };
    assert_eq!(look_up(&file, None, &changed), Err(StackLossReason::FileChanged));
}

/// Reads only the units that have `offsets`.
fn sections_at(file: &File, offsets: &[u64]) -> NameSections {
    let layout = elf::layout(file).unwrap();
    let addresses: Vec<u64> = offsets.iter().filter_map(|&offset| layout.address_of(offset)).collect();
    NameSections::read(file, DebugUnits::At(&addresses), &NameBounds::LARGE).unwrap()
}

#[test]
fn names_from_the_units_with_the_addresses_are_those_from_all_units() {
    let file = File::open("/proc/self/exe").unwrap();
    let code = elf::layout(&file).unwrap().segments.into_iter().find(|segment| segment.is_code).unwrap();
    let (mut left_out, mut named) = (0, 0);
    for part in 0..8 {
        let begin = code.offset + code.size / 8 * part;
        let offsets: Vec<u64> = (begin..begin + 64 * 61).step_by(61).collect();
        left_out += sections_at(&file, &offsets).units_left_out;
        let query = query(&file, offsets);
        let all = look_up_in(&file, None, &query, DebugUnits::All).unwrap().unwrap();
        assert_eq!(look_up(&file, None, &query).unwrap(), all);
        let has_source = |symbol: &Symbol| symbol.functions.iter().any(|function| function.source.is_some());
        named += all.symbols.iter().flatten().filter(|symbol| has_source(symbol)).count();
    }
    assert!(left_out > 100, "{left_out} units left out");
    assert!(named > 100, "{named} addresses with a line");
}

/// `_start` is in the first unit, which has its name from the second one.
const TWO_UNITS: &str = include_str!("two_units.s");

#[test]
#[ignore = "needs g++ and binutils: cargo xtask setup test"]
fn a_function_whose_name_is_in_another_unit_has_that_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("two_units.s"), TWO_UNITS).unwrap();
    run("gcc", &["-nostdlib", "-static", "-o", &path("program"), &path("two_units.s")]);
    let file = File::open(path("program")).unwrap();
    let code = elf::layout(&file).unwrap().segments.into_iter().find(|segment| segment.is_code).unwrap();
    assert_eq!(sections_at(&file, &[code.offset]).units_left_out, 1, "the second unit is left out at first");
    let found = look_up(&file, None, &query(&file, vec![code.offset])).unwrap();
    assert_eq!(found.symbols[0].as_ref().unwrap().functions[0].name, "from_the_other_unit");
}

/// The functions of a program, by its symbol table: name, offset and size.
pub(crate) fn functions_of(file: &File) -> Vec<(String, u64, u64)> {
    let layout = elf::layout(file).unwrap();
    let sections = NameSections::read(file, DebugUnits::None, &NameBounds::LARGE).unwrap();
    let symbols = sections.get(SectionId::Symtab).as_chunks::<24>().0;
    let name = |at: usize| {
        let rest = &sections.get(SectionId::Strtab)[at..];
        String::from_utf8_lossy(&rest[..rest.iter().position(|&byte| byte == 0).unwrap()]).into_owned()
    };
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let functions = symbols.iter().filter(|symbol| symbol[4] & 15 == 2).map(|symbol| {
        let at = u32::from_le_bytes(symbol[..4].try_into().unwrap());
        (name(at as usize), layout.offset_of(number(&symbol[8..16])).unwrap_or(0), number(&symbol[16..24]))
    });
    // Those of the start files have no size, or no unwind information.
    functions.filter(|(name, _, size)| !name.starts_with('_') && *size > 4).collect()
}

/// signals.c, and the same program stripped.
fn stripped_program(folder: &Path) -> (File, File) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/victims/native/signals.c");
    run("gcc", &["-O1", "-o", &path("whole"), source]);
    run("objcopy", &["--strip-all", &path("whole"), &path("stripped")]);
    (File::open(path("whole")).unwrap(), File::open(path("stripped")).unwrap())
}

#[test]
#[ignore = "needs g++ and binutils: cargo xtask setup test"]
fn all_addresses_of_a_function_without_a_name_have_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, stripped) = stripped_program(folder.path());
    let functions = functions_of(&whole);
    assert!(functions.len() >= 2, "{functions:?}");
    for (name, offset, size) in functions {
        let offsets = vec![offset, offset + 1, offset + size / 2, offset + size - 1];
        for symbol in look_up(&stripped, None, &query(&stripped, offsets)).unwrap().symbols {
            let nameless = symbol.unwrap_err();
            assert_eq!(nameless.function_start, Some(offset), "{name}: {nameless:?}");
        }
    }
    // The ELF header is in no function.
    let outside = look_up(&stripped, None, &query(&stripped, vec![8])).unwrap();
    let nameless = Nameless { reason: StackLossReason::SymbolNotFound, function_start: None };
    assert_eq!(outside.symbols, [Err(nameless)]);
}

#[test]
#[ignore = "needs g++ and binutils: cargo xtask setup test"]
fn a_stripped_program_has_the_names_of_its_packed_symbol_table() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, _) = stripped_program(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    run("objcopy", &["--only-keep-debug", &path("whole"), &path("mini")]);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(6)).unwrap();
    writer.write_all(&std::fs::read(path("mini")).unwrap()).unwrap();
    std::fs::write(path("mini.xz"), writer.finish().unwrap()).unwrap();
    let section = format!(".gnu_debugdata={}", path("mini.xz"));
    run("objcopy", &["--add-section", &section, &path("stripped"), &path("packed")]);
    let packed = File::open(path("packed")).unwrap();
    for (name, offset, _) in functions_of(&whole) {
        let found = look_up(&packed, None, &query(&packed, vec![offset + 1])).unwrap();
        assert_eq!(found.symbols[0].as_ref().unwrap().functions[0].name, name);
    }
    std::fs::write(path("mini.xz"), b"not packed at all").unwrap();
    run("objcopy", &["--add-section", &section, &path("stripped"), &path("damaged")]);
    let damaged = File::open(path("damaged")).unwrap();
    let found = look_up(&damaged, None, &query(&damaged, vec![entry_of_main(&whole)])).unwrap();
    assert_eq!(found.left_out, [StackLossReason::MiniDebugInfoDamaged]);
}

/// No hostile ELF file may cause a panic or a hang. The files are the same in each run, so that a failure can be
/// reproduced.
#[test]
fn hostile_elf_files_cause_no_panic_and_no_hang() {
    let valid = {
        // A small valid file to damage: the vDSO of this process, an ELF file with symbols, notes and segments.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|digits| u64::from_str_radix(digits, 16).unwrap());
        elf::read_at(&File::open("/proc/self/mem").unwrap(), start, (end - start) as usize).unwrap()
    };
    // A fixed seed makes a failure reproducible.
    let mut random = fastrand::Rng::with_seed(1);
    let mut corpus = vec![Vec::new(), b"\x7fELF".to_vec(), vec![0xff; 4096]];
    corpus.extend((0..valid.len()).step_by(97).map(|len| valid[..len].to_vec()));
    for _ in 0..400 {
        let mut broken = valid.clone();
        for _ in 0..random.u8(1..=16) {
            // Mostly the headers and the section table at the end matter.
            let region = if random.bool() { 0..512 } else { broken.len() - 1200..broken.len() };
            broken[random.usize(region)] = if random.u8(..3) == 0 { 0xff } else { random.u8(..) };
        }
        corpus.push(broken);
    }
    // A section size of 2^64 - 1, in one section after the other.
    let sections_at = usize::try_from(u64::from_le_bytes(valid[40..48].try_into().unwrap())).unwrap();
    for at in (sections_at + 32..valid.len().saturating_sub(8)).step_by(64) {
        let mut broken = valid.clone();
        broken[at..at + 8].fill(0xff);
        corpus.push(broken);
    }
    let mut reasons = BTreeMap::new();
    for bytes in corpus {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let Some(layout) = elf::layout(&file) else { continue };
        let query = NameQuery { layout, ..query_of(vec![0, 0x800, u64::MAX]) };
        match look_up(&file, None, &query) {
            Ok(found) => found.symbols.into_iter().for_each(|symbol| {
                *reasons.entry(symbol.err().map(|nameless| nameless.reason.as_str())).or_insert(0) += 1;
            }),
            Err(reason) => *reasons.entry(Some(reason.as_str())).or_insert(0) += 1,
        }
    }
    eprintln!("{reasons:?}");
    assert!(reasons.values().sum::<u32>() > 200);
}
