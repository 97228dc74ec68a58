//! What the parsing worker reads: ELF files, their debug information and unwind information, names, perf maps.

use std::fs::File;

use podopsy_fuzz::{Bounds, ElfFile, ElfSection, memory_file};
use podopsy_parse::elf::{self, Layout};
use podopsy_parse::names::{DebugLink, NameBounds, NameQuery, look_up};
use podopsy_parse::unwind::{self, FileRows};
use podopsy_parse::{fuzzing, perf_map, python};

use crate::{assert_printable, parts, targets};

targets! {
    elf_layout,
    elf_names,
    debug_info,
    symbol_table,
    go_tables,
    unwind_file,
    eh_frame,
    debug_frame,
    code_follower,
    packed_rows,
    python_interpreter,
    python_offsets,
    demangle,
    perf_map_names,
}

const SHF_COMPRESSED: u64 = 0x800;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_DYNSYM: u32 = 11;
/// Where the first section of an [`ElfFile`] is.
const FIRST: u64 = 128;

fn elf_layout(input: &[u8]) {
    let file = memory_file(input);
    assert!(elf::sections(&file).iter().all(|section| section.name.len() <= 64));
    if let Some(link) = DebugLink::read(&file) {
        assert!(!link.name.is_empty() && !link.name.contains('/') && link.name != "..");
    }
    let Some(layout) = elf::layout(&file) else { return };
    assert!(layout.build_id.len() <= 64);
    for segment in &layout.segments {
        for into in [0, 1, segment.size.saturating_sub(1), segment.size] {
            layout.address_of(segment.offset.wrapping_add(into));
            layout.offset_of(segment.address.wrapping_add(into));
        }
    }
}

/// Looks up names at some offsets, with and without debug information.
fn look_up_names(file: &File, offsets: &[u64]) {
    let Some(layout) = elf::layout(file) else { return };
    for debug_info in [true, false] {
        let (offsets, layout) = (offsets.to_vec(), layout.clone());
        let query = NameQuery { offsets, layout, debug_info, bounds: NameBounds::SMALL };
        let Ok(found) = look_up(file, None, &query) else { continue };
        assert_eq!(found.symbols.len(), query.offsets.len());
        for symbol in found.symbols.iter().flatten() {
            assert!(!symbol.functions.is_empty() && symbol.functions.len() <= 129);
            for function in &symbol.functions {
                assert_name(&function.name);
                function.source.iter().for_each(|source| assert_name(&source.file));
            }
        }
    }
}

fn assert_name(name: &str) {
    assert_printable(name);
    assert!(name.len() <= fuzzing::MAX_NAME, "a name of {} bytes", name.len());
}

fn elf_names(input: &[u8]) {
    let file = memory_file(input);
    let segments = elf::layout(&file).map(|layout| layout.segments).unwrap_or_default();
    let mut offsets = vec![0, u64::MAX];
    for segment in segments.iter().take(4) {
        offsets.extend([0, 16, segment.size / 2].map(|into| segment.offset.wrapping_add(into)));
    }
    look_up_names(&file, &offsets);
}

/// Offsets in the first bytes of an [`ElfFile`], and an address outside.
fn first_offsets() -> Vec<u64> {
    (0..64).map(|into| FIRST + into).chain([u64::MAX]).collect()
}

fn debug_info(input: &[u8]) {
    look_up_names(&debug_file(input), &first_offsets());
}

fn debug_file(input: &[u8]) -> File {
    let names = [
        ".debug_abbrev",
        ".debug_info",
        ".debug_line",
        ".debug_str",
        ".debug_line_str",
        ".debug_ranges",
        ".debug_rnglists",
        ".debug_aranges",
    ];
    let sections = names.iter().zip(parts::<8>(input)).map(|(name, bytes)| ElfSection::new(name, bytes));
    let text = ElfSection::new(".text", vec![0x90; 64]);
    ElfFile::new([text].into_iter().chain(sections)).open()
}

fn symbol_table(input: &[u8]) {
    let [symtab, strtab, dynsym, dynstr] = parts(input);
    let file = ElfFile::new([
        ElfSection::new(".text", vec![0x90; 64]),
        ElfSection::new(".symtab", symtab).kind(SHT_SYMTAB),
        ElfSection::new(".strtab", strtab).kind(SHT_STRTAB),
        ElfSection::new(".dynsym", dynsym).kind(SHT_DYNSYM),
        ElfSection::new(".dynstr", dynstr).kind(SHT_STRTAB),
    ]);
    look_up_names(&file.open(), &first_offsets());
}

fn go_tables(input: &[u8]) {
    let [table, data, relocations] = parts(input);
    let file = go_file(table, data, relocations);
    look_up_names(&file, &first_offsets());
    read_rows(&file);
}

fn go_file(table: &[u8], data: &[u8], relocations: &[u8]) -> File {
    let file = ElfFile::new([
        ElfSection::new(".text", vec![0x90; 256]),
        ElfSection::new(".gopclntab", table),
        ElfSection::new(".noptrdata", data),
        ElfSection::new(".rela.dyn", relocations),
    ]);
    file.open()
}

/// Reads rows in the two steps of a worker's jobs.
fn read_rows(file: &File) {
    let Ok(source) = unwind::find_source(file, unwind::MAX_BYTES) else { return };
    assert_eq!(source.digest([1, 2]), source.digest([1, 2]));
    let Ok(rows) = source.read_rows() else { return };
    assert_rows(&rows);
    let bytes = postcard::to_stdvec(&rows).unwrap();
    let received: FileRows = postcard::from_bytes(&bytes).unwrap();
    assert!(received.rows == rows.rows && received.rules == rows.rules);
}

fn assert_rows(rows: &FileRows) {
    assert!(rows.rows.windows(2).all(|two| two[0].offset < two[1].offset), "rows out of order");
    assert!(rows.rows.iter().all(|row| usize::from(row.rule) < rows.rules.len()), "a row without a rule");
    for row in rows.rows.iter().take(100) {
        rows.at(row.offset);
        rows.at(row.offset.wrapping_sub(1));
    }
}

fn unwind_file(input: &[u8]) {
    read_rows(&memory_file(input));
}

fn eh_frame(input: &[u8]) {
    read_rows(&frames_file(input));
}

fn frames_file(input: &[u8]) -> File {
    let text = ElfSection::new(".text", vec![0x90; 256]);
    ElfFile::new([text, ElfSection::new(".eh_frame", input)]).open()
}

/// The first byte says whether the section is marked as compressed.
fn debug_frame(input: &[u8]) {
    let Some((flags, bytes)) = input.split_first() else { return };
    let flags = if flags & 1 == 0 { 0 } else { SHF_COMPRESSED };
    let text = ElfSection::new(".text", vec![0x90; 256]);
    read_rows(&ElfFile::new([text, ElfSection::new(".debug_frame", bytes).flags(flags)]).open());
}

/// Code, pointers to code, and symbols.
fn code_follower(input: &[u8]) {
    let [symtab, strtab, data, text] = parts(input);
    let (write, code) = (1, 4);
    let file = ElfFile::new([
        ElfSection::new(".text", text).flags(code),
        ElfSection::new(".data", data).flags(write),
        ElfSection::new(".symtab", symtab).kind(SHT_SYMTAB),
        ElfSection::new(".strtab", strtab).kind(SHT_STRTAB),
    ]);
    read_rows(&file.open());
}

/// What a worker that was taken over could answer.
fn packed_rows(input: &[u8]) {
    if let Ok(rows) = postcard::from_bytes::<FileRows>(input) {
        assert_rows(&rows);
    }
}

fn python_interpreter(input: &[u8]) {
    let [dynsym, dynstr, data] = parts(input);
    if let Ok(Some(interpreter)) = python::detect_interpreter(&interpreter_file(dynsym, dynstr, data)) {
        let bytes = postcard::to_stdvec(&interpreter).unwrap();
        assert_eq!(postcard::from_bytes::<python::Interpreter>(&bytes).unwrap(), interpreter);
    }
}

fn interpreter_file(dynsym: &[u8], dynstr: &[u8], data: &[u8]) -> File {
    let file = ElfFile::new([
        ElfSection::new(".data", data),
        ElfSection::new(".dynsym", dynsym).kind(SHT_DYNSYM),
        ElfSection::new(".dynstr", dynstr).kind(SHT_STRTAB),
    ]);
    file.open()
}

/// The first byte is the minor version; the start of `_PyRuntime` follows.
fn python_offsets(input: &[u8]) {
    let Some((&minor, runtime)) = input.split_first() else { return };
    let _ = python::layouts_for_version((3, minor), runtime);
}

fn demangle(input: &[u8]) {
    assert_name(&fuzzing::demangle(input));
}

fn perf_map_names(input: &[u8]) {
    let addresses = [0x7f08, 0, 0x7f00, 0x7f10, 0x7fff_0000_0000, u64::MAX, 0x7f08];
    let found = perf_map::look_up(&memory_file(input), &addresses).unwrap();
    assert_eq!(found.names.len(), addresses.len());
    // The same address has the same name.
    assert_eq!(found.names[0], found.names[6]);
    for name in found.names.iter().flatten() {
        assert_printable(name);
        // A byte is escaped by four.
        assert!(name.len() <= 4 * 512, "a name of {} bytes", name.len());
    }
}

/// The corpus has files of two kilobytes with sections of 60 MiB.
#[test]
fn a_section_that_the_file_does_not_have_costs_no_memory() {
    let bounds = Bounds { memory: 2 << 20, ..Bounds::SMALL };
    for section in ["text", "eh-frame", "symtab", "strtab", "debuglink"] {
        let file = std::fs::read(crate::corpus_of("elf_names").join(format!("huge-{section}"))).unwrap();
        for target in [elf_layout, elf_names, unwind_file] {
            bounds.run(target, &file);
        }
    }
}

/// In a table of names without an end, each symbol's name is as long as the table.
#[test]
fn an_interpreter_with_long_names_costs_little() {
    let names = [b"\0_PyRuntime\0".to_vec(), vec![1; 2 << 20]].concat();
    let symbols: Vec<u8> = (0..50_000_u32)
        .flat_map(|at| [&(at + 100).to_le_bytes()[..], &[0x12, 0, 1, 0], &[0; 16]].concat())
        .collect();
    let file = ElfFile::new([
        ElfSection::new(".dynsym", symbols).kind(SHT_DYNSYM),
        ElfSection::new(".dynstr", names).kind(SHT_STRTAB),
    ]);
    Bounds::SMALL.run(|input| drop(python::detect_interpreter(&memory_file(input))), &file.bytes());
}

/// The layout of a file that [`ElfFile`] made is as it was meant, so that the targets reach the parsers.
#[test]
fn valid_inputs_get_through_to_the_parsers() {
    let corpus = |target: &str, name: &str| std::fs::read(crate::corpus_of(target).join(name)).unwrap();
    let names = |file: &File, offset: u64| {
        let layout = elf::layout(file).unwrap();
        let query = NameQuery { offsets: vec![offset], layout, debug_info: true, bounds: NameBounds::SMALL };
        let symbol = look_up(file, None, &query).expect("names").symbols.remove(0).expect("a name");
        symbol.functions.into_iter().map(|function| function.name).collect::<Vec<_>>()
    };
    let [table, data, relocations] = parts(&corpus("go_tables", "go-1.20")).map(<[u8]>::to_vec);
    let go = go_file(&table, &data, &relocations);
    assert!(names(&go, FIRST).iter().all(|name| name == "main.main"));
    let rows = |file: &File| unwind::find_source(file, unwind::MAX_BYTES).unwrap().read_rows().unwrap();
    assert!(rows(&go).losses.is_empty());
    assert_eq!(
        names(&debug_file(&corpus("debug_info", "inlined")), FIRST + 5),
        ["work::run()", "work::run()"]
    );
    assert_eq!(names(&memory_file(&corpus("elf_names", "whole")), FIRST), ["main"]);
    let frames = frames_file(&corpus("eh_frame", "plain"));
    assert!(rows(&frames).losses.is_empty() && rows(&frames).rows.len() > 4);
    for version in ["3.10", "3.11", "3.12"] {
        let [dynsym, dynstr, data] = parts(&corpus("python_interpreter", version)).map(<[u8]>::to_vec);
        let found = python::detect_interpreter(&interpreter_file(&dynsym, &dynstr, &data));
        assert!(matches!(found, Ok(Some(_))), "{version}: {found:?}");
    }
    assert!(postcard::from_bytes::<FileRows>(&corpus("packed_rows", "rows")).is_ok());
}

#[test]
fn files_around_inputs_are_what_the_parsers_expect() {
    let file =
        ElfFile::new([ElfSection::new(".text", vec![0x90; 64]), ElfSection::new(".data", *b"x")]).open();
    let layout: Layout = elf::layout(&file).unwrap();
    let names: Vec<_> = elf::sections(&file).into_iter().map(|section| section.name).collect();
    assert_eq!(names, [&b""[..], b".text", b".data", b".shstrtab"]);
    assert_eq!(elf::sections(&file)[1].offset, FIRST);
    assert!(layout.segments[0].is_code && layout.address_of(FIRST) == Some(elf::sections(&file)[1].address));
}
