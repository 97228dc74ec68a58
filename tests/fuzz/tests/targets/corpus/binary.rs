//! Inputs that are ELF files, parts of them, or records.

use podopsy_fuzz::{ElfFile, ElfSection};

use super::{Inputs, records};
use crate::joined;

/// Where the first section of an [`ElfFile`] is loaded.
const TEXT: u64 = 0x40_0080;

pub fn inputs() -> Vec<(&'static str, Inputs)> {
    vec![
        ("elf_layout", files()),
        ("elf_names", files()),
        ("unwind_file", files()),
        ("debug_info", debug_infos()),
        ("symbol_table", symbol_tables()),
        ("go_tables", go_tables()),
        ("eh_frame", eh_frames()),
        ("debug_frame", debug_frames()),
        ("code_follower", codes()),
        ("packed_rows", packed_rows()),
        ("python_interpreter", interpreters()),
        ("python_offsets", records::python_offsets()),
        ("python_code", records::python_codes()),
        ("python_lines", records::python_lines()),
        ("worker_frames", records::worker_frames()),
        ("kernel_records", records::kernel_records()),
    ]
}

pub(super) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn halves(halves: &[u32]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

/// The same on each machine.
fn amd64(file: &ElfFile) -> Vec<u8> {
    let mut bytes = file.bytes();
    bytes[18..20].copy_from_slice(&[62, 0]);
    bytes
}

/// `Elf64_Sym` of a function in the first section.
fn symbol(name: u32, address: u64, size: u64) -> Vec<u8> {
    [&name.to_le_bytes()[..], &[0x12, 0, 1, 0], &words(&[address, size])].concat()
}

/// The first section is loaded at the end of the address space, and so is the segment.
fn at_the_end(file: &ElfFile) -> Vec<u8> {
    let mut bytes = amd64(file);
    let table = u64::from_le_bytes(bytes[40..48].try_into().unwrap_or_default()) as usize;
    bytes[80..88].copy_from_slice(&words(&[u64::MAX - 228]));
    bytes[table + 64 + 16..table + 64 + 24].copy_from_slice(&words(&[u64::MAX - 100]));
    bytes
}

fn text() -> ElfSection {
    ElfSection::new(".text", code()).flags(4)
}

/// A function with a frame pointer, one without, and padding.
fn code() -> Vec<u8> {
    let mut code = b"\x55\x48\x89\xe5\x48\x83\xec\x20\xe8\x17\x00\x00\x00\x31\xc0\xc9\xc3".to_vec();
    code.resize(0x24, 0xcc);
    code.extend(b"\x53\x48\x83\xec\x10\x85\xff\x74\x05\xff\xcf\x75\xfc\x90\x48\x83\xc4\x10\x5b\xc3");
    code.resize(0x60, 0xcc);
    code
}

fn files() -> Inputs {
    let sections = || {
        vec![
            text(),
            ElfSection::new(".eh_frame", frames()),
            ElfSection::new(
                ".symtab",
                [vec![0; 24], symbol(1, TEXT, 17), symbol(6, TEXT + 0x24, 20)].concat(),
            )
            .kind(2),
            ElfSection::new(".strtab", *b"\0main\0_ZN4work3runEv\0").kind(3),
            ElfSection::new(".gnu_debuglink", *b"app.debug\0\0\0\x01\x02\x03\x04"),
        ]
    };
    let whole = amd64(&ElfFile::new(sections()));
    let patch = |changes: &[(usize, &[u8])]| {
        let mut bytes = whole.clone();
        for (at, new) in changes {
            bytes[*at..*at + new.len()].copy_from_slice(new);
        }
        bytes
    };
    let table =
        usize::try_from(u64::from_le_bytes(whole[40..48].try_into().unwrap_or_default())).unwrap_or(0);
    let long_name = ElfSection::new("n", vec![b'A'; 1500]);
    let mut shared = ElfFile::new([long_name, text()]);
    shared.sections.extend((0..20).map(|_| ElfSection::new("", Vec::new())));
    let note = [&halves(&[4, 20, 3])[..], b"GNU\0", &[7; 20]].concat();
    // The segment becomes a note, which is the file's own header.
    let note_at =
        [(64_usize, &4_u32.to_le_bytes()[..]), (72, &128_u64.to_le_bytes()), (96, &36_u64.to_le_bytes())];
    let mut with_note = amd64(&ElfFile::new([ElfSection::new(".note", note)]));
    for (at, new) in note_at {
        with_note[at..at + new.len()].copy_from_slice(new);
    }
    let mut all = vec![
        ("whole", whole.clone()),
        ("shared-name", amd64(&shared)),
        ("build-id", with_note),
        ("segments-beyond-the-file", patch(&[(56, &[0xff, 0xff])])),
        ("sections-beyond-the-file", patch(&[(60, &[0xff, 0xff])])),
        (
            "sections-in-section-0",
            patch(&[(60, &[0, 0]), (62, &[0xff, 0xff]), (table + 32, &words(&[u64::MAX]))]),
        ),
        ("segment-of-everything", patch(&[(72, &words(&[0, 0])), (96, &words(&[u64::MAX, u64::MAX]))])),
        ("segment-at-the-end", patch(&[(80, &words(&[u64::MAX - 0x100]))])),
        ("offset-at-the-end", patch(&[(72, &words(&[u64::MAX - 0x10]))])),
        ("cut", whole[..200].to_vec()),
        ("go-at-the-end", at_the_end(&ElfFile::new([ElfSection::new(".gopclntab", go_table(&[])), text()]))),
    ];
    // Each size in the section table in turn.
    let names = ["huge-text", "huge-eh-frame", "huge-symtab", "huge-strtab", "huge-debuglink"];
    for (index, name) in names.into_iter().enumerate() {
        all.push((name, patch(&[(table + 64 * (index + 1) + 32, &words(&[60 << 20]))])));
    }
    all
}

/// A common entry: augmentation, and its initial instructions.
fn common(augmentation: &[u8], instructions: &[u8]) -> Vec<u8> {
    let mut body = [&[0; 4][..], &[1], augmentation, &[0, 1, 0x78, 16], instructions].concat();
    body.resize(body.len().next_multiple_of(4), 0);
    [(body.len() as u32).to_le_bytes().to_vec(), body].concat()
}

/// An entry at `at` in its section, whose common entry is at `common`.
fn entry(at: usize, common: usize, start: u64, len: u64, instructions: &[u8]) -> Vec<u8> {
    let mut body =
        [&((at + 4).wrapping_sub(common) as u32).to_le_bytes()[..], &words(&[start, len]), instructions]
            .concat();
    body.resize(body.len().next_multiple_of(4), 0);
    [(body.len() as u32).to_le_bytes().to_vec(), body].concat()
}

/// def_cfa r7+8, offset r16 at cfa-8.
const INITIAL: &[u8] = &[0x0c, 7, 8, 0x90, 1];
/// Pushes the frame pointer and follows it.
const FRAME_POINTER: &[u8] = &[0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6, 0x4c, 0x0c, 7, 8];

fn section(entries: &[(u64, u64, &[u8])]) -> Vec<u8> {
    let mut out = common(b"", INITIAL);
    for (start, len, instructions) in entries {
        out.extend(entry(out.len(), 0, *start, *len, instructions));
    }
    out
}

fn frames() -> Vec<u8> {
    section(&[(TEXT, 17, FRAME_POINTER), (TEXT + 0x24, 20, &[0x41, 0x0e, 16, 0x43, 0x0e, 32])])
}

fn eh_frames() -> Inputs {
    // Two common entries with long augmentations, and entries that take turns with them.
    let signal = common(&[b"S".repeat(600), Vec::new()].concat(), INITIAL);
    let mut turns = [signal.clone(), signal.clone()].concat();
    for index in 0..40 {
        let common = if index % 2 == 0 { 0 } else { signal.len() };
        turns.extend(entry(turns.len(), common, TEXT + index, 1, &[]));
    }
    // breg7+8, breg16+0, lit15, and, lit11, ge, lit3, shl, plus
    let plt = [0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
    let realigned = [0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0];
    let many_rows: Vec<u8> = (0..120_u8).flat_map(|i| [0x41, 0x0e, i]).collect();
    let overlap: Vec<(u64, u64, &[u8])> = (0..60).map(|i| (TEXT + i, 100, FRAME_POINTER)).collect();
    let mut last = frames();
    last.extend(entry(last.len(), 0xffff_fff0, TEXT, 16, &[]).iter().take(12));
    vec![
        ("plain", frames()),
        ("terminated", [frames(), vec![0; 4], frames()].concat()),
        ("plt", section(&[(TEXT, 64, &plt)])),
        ("realigned", section(&[(TEXT, 64, &realigned)])),
        ("remember", section(&[(TEXT, 64, &[0x0a; 300])])),
        ("restore", section(&[(TEXT, 64, &[&[0x0a; 8][..], &[0x0b; 20]].concat())])),
        ("many-rows", section(&[(TEXT, 200, &many_rows)])),
        ("many-registers", section(&[(TEXT, 64, &(0..64).flat_map(|i| [0x80 | i, 1]).collect::<Vec<_>>())])),
        (
            "advance-beyond",
            section(&[(TEXT, 64, &[0x04, 0xff, 0xff, 0xff, 0xff, 0x0e, 16, 0x04, 0xff, 0xff, 0xff, 0xff])]),
        ),
        (
            "numbers",
            section(&[(
                TEXT,
                64,
                &[0x0c, 0xff, 0xff, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            )]),
        ),
        ("expression-beyond", section(&[(TEXT, 64, &[0x0f, 0xff, 0xff, 3, 0x77])])),
        ("turns", turns),
        ("overlap", section(&overlap)),
        (
            "whole-space",
            section(&[(0, u64::MAX, FRAME_POINTER), (TEXT, u64::MAX, FRAME_POINTER), (u64::MAX, 1, &[])]),
        ),
        ("augmented", [common(b"zPLR", &[7, 0x1b, 0, 0, 0, 0, 0x1b, 0x1b, 0x0c, 7, 8]), vec![0; 8]].concat()),
        (
            "indirect-pointers",
            [common(b"zR", &[1, 0x9b, 0x0c, 7, 8]), entry(24, 0, TEXT, 16, &[0; 8])].concat(),
        ),
        ("long-form", [&halves(&[u32::MAX])[..], &words(&[24, 0]), &[0; 16]].concat()),
        ("long-form-of-everything", [&halves(&[u32::MAX])[..], &words(&[u64::MAX, 0])].concat()),
        ("common-beyond", last),
        ("ends-at-the-entry", section(&[(TEXT - 16, 16, FRAME_POINTER)])),
    ]
}

/// `Elf64_Chdr` and zlib data of stored blocks.
fn compressed(kind: u32, bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len() as u16;
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    let head = [halves(&[kind, 0]), words(&[bytes.len() as u64, 1]), vec![0x78, 1, 1]].concat();
    [&head[..], &len.to_le_bytes(), &(!len).to_le_bytes(), bytes, &(b << 16 | a).to_be_bytes()].concat()
}

fn debug_frames() -> Inputs {
    // In `.debug_frame`, a common entry has the id -1, and entries point to it by its offset.
    let mut plain = frames();
    plain[4..8].fill(0xff);
    let first = 4 + u32::from_le_bytes([plain[0], plain[1], plain[2], plain[3]]) as usize;
    let mut at = first;
    while at + 8 <= plain.len() {
        let len = u32::from_le_bytes([plain[at], plain[at + 1], plain[at + 2], plain[at + 3]]) as usize;
        plain[at + 4..at + 8].fill(0);
        at += 4 + len;
    }
    let with = |flags: u8, bytes: Vec<u8>| [vec![flags], bytes].concat();
    vec![
        ("plain", with(0, plain.clone())),
        ("compressed", with(1, compressed(1, &plain))),
        ("other-compression", with(1, compressed(2, &plain))),
        ("compressed-header-alone", with(1, compressed(1, &plain)[..24].to_vec())),
        ("compressed-and-cut", with(1, compressed(1, &plain)[..60].to_vec())),
        ("points-to-itself", with(0, [&halves(&[20, 0])[..], &words(&[TEXT, 16])].concat())),
    ]
}

/// Abbreviations: unit, function, inlined call, block.
const ABBREVIATIONS: &[u8] = &[
    1, 0x11, 1, 0x03, 0x08, 0x11, 0x01, 0x12, 0x06, 0x10, 0x17, 0, 0, 2, 0x2e, 1, 0x03, 0x08, 0x11, 0x01,
    0x12, 0x06, 0, 0, 3, 0x1d, 0, 0x31, 0x13, 0x11, 0x01, 0x12, 0x06, 0x58, 0x0b, 0x59, 0x0b, 0, 0, 4, 0x0b,
    1, 0, 0, 0,
];

/// A unit of DWARF 4 in the table of abbreviations at `abbreviations`.
fn unit(abbreviations: u32, entries: &[u8]) -> Vec<u8> {
    let len = (entries.len() as u32 + 7).to_le_bytes();
    [&len[..], &[4, 0], &abbreviations.to_le_bytes(), &[8], entries].concat()
}

fn unit_entry() -> Vec<u8> {
    [&[1][..], b"app.c\0", &words(&[TEXT]), &halves(&[64, 0])].concat()
}

fn function_entry(name: &[u8]) -> Vec<u8> {
    [&[2][..], name, &[0], &words(&[TEXT]), &halves(&[64])].concat()
}

/// A line program of DWARF 4.
fn lines(program: &[u8]) -> Vec<u8> {
    let tables = b"\x01\x01\x01\xfb\x0e\x0d\0\x01\x01\x01\x01\0\0\0\x01\0\0\x01/src\0\0app.c\0\x01\0\0\0";
    let head = [&(tables.len() as u32).to_le_bytes()[..], tables].concat();
    let len = (head.len() + program.len() + 2) as u32;
    [&len.to_le_bytes()[..], &[4, 0], &head, program].concat()
}

fn line_program() -> Vec<u8> {
    [&[0, 9, 2][..], &words(&[TEXT]), &[0x03, 41, 0x01, 0x02, 16, 0x03, 1, 0x01, 0x02, 48, 0, 1, 1]].concat()
}

fn debug_infos() -> Inputs {
    let whole = |abbreviations: &[u8], info: &[u8], lines: &[u8]| {
        joined([abbreviations, info, lines, b"\0name\0", b"\0file\0", &words(&[0, 0]), b"", b""])
    };
    let inlined =
        |to: u32| [&[3][..], &to.to_le_bytes(), &words(&[TEXT + 4]), &halves(&[8]), &[1, 42]].concat();
    let function = function_entry(b"_ZN4work3runEv");
    let at = 11 + unit_entry().len() as u32;
    let entries = [unit_entry(), function.clone(), inlined(at), vec![0, 0]].concat();
    let good = unit(0, &entries);
    let lines = lines(&line_program());
    // The inlined call is of itself.
    let to_itself =
        [unit_entry(), function.clone(), inlined(at + function.len() as u32), vec![0, 0]].concat();
    let deep = [unit_entry(), function_entry(b"f"), vec![4; 700]].concat();
    // Units that take turns with two tables of abbreviations.
    let table: Vec<u8> = (1..100_u8).flat_map(|code| [code, 0x11, 0, 0, 0]).chain([0]).collect();
    let two = [table.clone(), table.clone()].concat();
    let turns: Vec<u8> =
        (0..60).flat_map(|i| unit(if i % 2 == 0 { 0 } else { table.len() as u32 }, &[1])).collect();
    let long_program = [line_program(), vec![0x08; 1500]].concat();
    vec![
        ("inlined", whole(ABBREVIATIONS, &good, &lines)),
        ("two-units", whole(ABBREVIATIONS, &[good.clone(), good.clone()].concat(), &lines)),
        ("without-lines", whole(ABBREVIATIONS, &good, b"")),
        ("inlined-in-itself", whole(ABBREVIATIONS, &unit(0, &to_itself), &lines)),
        ("deep", whole(ABBREVIATIONS, &unit(0, &deep), &lines)),
        ("turns", whole(&two, &turns, b"")),
        ("long-line-program", whole(ABBREVIATIONS, &good, &self::lines(&long_program))),
        (
            "many-functions",
            whole(
                ABBREVIATIONS,
                &unit(0, &[unit_entry(), [function, vec![0]].concat().repeat(60)].concat()),
                &lines,
            ),
        ),
        (
            "length-beyond-the-end",
            whole(ABBREVIATIONS, &[&[0xf0, 0xff, 0xff, 0xff][..], &good].concat(), &lines),
        ),
        (
            "many-inlined",
            whole(
                ABBREVIATIONS,
                &unit(0, &[unit_entry(), function_entry(b"f"), inlined(at).repeat(60)].concat()),
                &lines,
            ),
        ),
    ]
}

fn symbol_tables() -> Inputs {
    let strings = b"\0main\0_ZN4work3runEv\0alias\0";
    let table = [vec![0; 24], symbol(1, TEXT, 32), symbol(6, TEXT + 8, 4), symbol(21, TEXT, 0)].concat();
    let long = [&b"\0_Z1f"[..], &b"1AI".repeat(500)].concat();
    let same: Vec<u8> = (0..100).flat_map(|_| symbol(1, TEXT, 64)).collect();
    let ends = [symbol(1, u64::MAX, u64::MAX), symbol(u32::MAX, TEXT, 8), symbol(1, 0, u64::MAX)].concat();
    vec![
        ("both", joined([&table, strings, &table, strings])),
        ("dynamic", joined([b"", b"", &table, strings])),
        ("not-whole", joined([&table[..50], strings, b"", b""])),
        ("without-strings", joined([&table, b"", b"", b""])),
        ("names-without-an-end", joined([&symbol(1, TEXT, 64), &long, b"", b""])),
        ("same-address", joined([&same, strings, b"", b""])),
        ("ends", joined([&ends, strings, &ends, strings])),
    ]
}

/// Tables of Go 1.20 for one function in the first section; `changes` are made to the header.
fn go_table(changes: &[(usize, u64)]) -> Vec<u8> {
    let (names, units, files, pcs) = (72_u64, 88_u64, 96_u64, 104_u64);
    let pcln = 128_u64;
    let mut table = [0xffff_fff1_u32.to_le_bytes().to_vec(), vec![0, 0, 1, 8]].concat();
    table.extend(words(&[1, 1, TEXT, names, units, files, pcs, pcln]));
    table.extend(b"main.main\0");
    table.resize(units as usize, 0);
    table.extend(halves(&[0, 0]));
    table.extend(b"/app.go\0");
    // The stack grows by 8 after 4 bytes; the file is 0; the line is 10.
    table.extend([0, 2, 4, 16, 60, 0, 2, 64, 0, 22, 64, 0]);
    table.resize(pcln as usize, 0);
    let function_at = 16;
    table.extend(halves(&[0, function_at, 64, 0]));
    let mut function = halves(&[0, 0, 0, 0, 1, 6, 9, 3, 0, 10]);
    function.extend([0, 0, 0, 4]);
    table.extend(function);
    // Three tables of PCDATA, four entries of FUNCDATA.
    table.extend(halves(&[0, 0, 6, u32::MAX, u32::MAX, u32::MAX, 8]));
    for (word, value) in changes {
        table[8 + word * 8..16 + word * 8].copy_from_slice(&value.to_le_bytes());
    }
    table
}

fn go_tables() -> Inputs {
    // `.gopclntab` follows the 256 bytes of `.text`.
    let start = TEXT + 256;
    let module = |names: u64| {
        let mut data = vec![0; 400];
        data[..16].copy_from_slice(&words(&[start, names]));
        data[176..184].copy_from_slice(&words(&[TEXT]));
        data[320..328].copy_from_slice(&words(&[start]));
        data
    };
    let relative = words(&[start, 8, start, u64::MAX - 4, 8, start, TEXT, 8, start + 72]);
    let mut endless = go_table(&[]);
    endless[105..128].fill(0x80);
    let zeros = [go_table(&[])[..104].to_vec(), [2, 0].repeat(300)].concat();
    let mut old = go_table(&[]);
    old[..4].copy_from_slice(&0xffff_fffa_u32.to_le_bytes());
    let mut older = go_table(&[]);
    older[..4].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
    vec![
        ("go-1.20", joined([&go_table(&[]), &module(start + 72), b""])),
        ("go-1.18", joined([&older, &module(start + 72), b""])),
        ("go-1.16", joined([&old, b"", b""])),
        ("position-independent", joined([&go_table(&[(2, 0)]), &module(start + 72), &relative])),
        ("many-functions", joined([&go_table(&[(0, 8 << 20)]), b"", b""])),
        ("text-at-the-end", joined([&go_table(&[(2, u64::MAX - 8)]), b"", b""])),
        ("places-outside", joined([&go_table(&[(7, u64::MAX - 200)]), b"", b""])),
        ("endless-numbers", joined([&endless, b"", b""])),
        ("steps-of-nothing", joined([&zeros, b"", b""])),
        ("cut", joined([&go_table(&[])[..140], b"", b""])),
    ]
}

fn codes() -> Inputs {
    let parts = |symtab: &[u8], data: &[u8], text: &[u8]| joined([symtab, b"\0main\0", data, text]);
    let table = [symbol(1, TEXT, 17), symbol(1, TEXT + 0x24, 20)].concat();
    // A call to each next instruction; a jump to each; a jump to itself; a switch.
    let calls = b"\xe8\x00\x00\x00\x00\x58".repeat(200);
    let jumps: Vec<u8> = (0..500).flat_map(|i: i16| [0x75, (i % 100) as u8]).collect();
    let back = b"\x50\x75\xfd".repeat(300);
    let pops = [b"\x58".repeat(600), b"\xc3".to_vec()].concat();
    let moves = b"\x48\x81\xec\xff\xff\xff\x7f".repeat(160);
    let aligned =
        [b"\x55\x48\x89\xe5\x48\x83\xe4\xf0".to_vec(), vec![0x90; 1100], b"\xc9\xc3".to_vec()].concat();
    let pointers = [TEXT + 0x24, TEXT, TEXT + 1, u64::MAX].map(u64::to_le_bytes).concat();
    let long = |code: &[u8]| [code, &[0x90; 1100]].concat();
    let prefixes = [vec![0x66; 1200], vec![0xf0; 20]].concat();
    vec![
        ("few-bytes", parts(&table, b"", &code())),
        ("symbols", parts(&table, b"", &long(&code()))),
        ("pointers", parts(b"", &pointers, &long(&code()))),
        ("calls", parts(&table, b"", &calls)),
        ("jumps", parts(&table, b"", &jumps)),
        ("back", parts(&table, b"", &back)),
        ("pops", parts(&table, b"", &long(&pops))),
        ("moves", parts(&table, b"", &moves)),
        ("aligned", parts(&table, b"", &aligned)),
        ("prefixes", parts(&table, b"", &prefixes)),
        ("jump-beyond", parts(&table, b"", &long(b"\xe9\xff\xff\xff\x7f\x0f\x84\x00\x00\x00\x80"))),
        (
            "indirect",
            parts(
                &table,
                &pointers,
                &long(b"\x48\x8d\x05\x10\x00\x00\x00\xff\xe0\xff\x24\xc5\x80\x00\x40\x00"),
            ),
        ),
    ]
}

/// `FileRows` as they are serialised: bytes of rows, bytes of rules, and losses.
pub(super) fn rows(rows: &[(u32, u16)], rules: usize) -> Vec<u8> {
    use podopsy_parse::unwind::{FileRows, UnwindRow};
    let special = [podopsy_wire::KIND_NONE, podopsy_wire::KIND_STOP, podopsy_wire::KIND_UNSUPPORTED];
    let rules = special.map(podopsy_wire::Rule::of_kind).into_iter().cycle().take(rules).collect();
    let rows = rows.iter().map(|&(offset, rule)| UnwindRow { offset, rule }).collect();
    postcard::to_stdvec(&FileRows { rows, rules, ..FileRows::default() }).unwrap_or_default()
}

fn packed_rows() -> Inputs {
    vec![
        ("rows", rows(&[(16, 1), (32, 2), (u32::MAX, 0)], 3)),
        ("no-rows", rows(&[], 3)),
        ("many-rules", rows(&[(1, 29)], 30)),
        ("out-of-order", rows(&[(2, 0), (1, 1)], 3)),
        ("no-rule", rows(&[(2, 3)], 3)),
        ("no-special-rules", rows(&[], 2)),
        ("length-beyond-the-end", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01".to_vec()),
    ]
}

fn interpreters() -> Inputs {
    let names = b"\0_PyRuntime\0PyCode_Type\0_PyEval_EvalFrameDefault\0Py_Version\0PyIter_Send\0";
    let at = |name: &[u8]| names.windows(name.len()).position(|window| window == name).unwrap_or(0) as u32;
    let exports = |version: &[u8]| {
        [&b"_PyRuntime"[..], b"PyCode_Type", b"_PyEval_EvalFrameDefault", version]
            .iter()
            .zip([16, 8, 0, 0])
            .flat_map(|(name, into)| symbol(at(name), TEXT + into, 8))
            .collect::<Vec<u8>>()
    };
    let data = |minor: u8| [&[0, 0, minor, 3, 0, 0, 0, 0][..], &[0; 8], &records::debug_offsets()].concat();
    let same = vec![1_u8; 2000];
    let long = [&b"\0_PyRuntime\0"[..], &same].concat();
    let many: Vec<u8> = (0..80).flat_map(|i| symbol(12 + i, TEXT, 8)).collect();
    vec![
        ("3.10", joined([&exports(b"PyIter_Send"), names, &data(10)])),
        ("3.11", joined([&exports(b"Py_Version"), names, &data(11)])),
        ("3.12", joined([&exports(b"Py_Version"), names, &data(12)])),
        ("3.13", joined([&exports(b"Py_Version"), names, &data(13)])),
        ("3.99", joined([&exports(b"Py_Version"), names, &data(99)])),
        ("one-name", joined([&symbol(1, TEXT, 8), b"\0_PyRuntime\0", b""])),
        ("long-names", joined([&many, &long, b""])),
        ("name-at-the-end", joined([&exports(b"Py_Version"), b"\0_PyRuntime", b""])),
    ]
}
