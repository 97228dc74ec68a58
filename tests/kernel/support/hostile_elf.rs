//! Makes ELF files that are hostile to a reader. Each is a static x86-64 program whose code is `jmp .`: it uses a CPU.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const BASE: u64 = 0x40_0000;
const CODE_AT: u64 = 0x1000;
const BLOBS_AT: u64 = 0x2000;

/// A section: name, type, address, file offset, size, link, size of an entry.
#[derive(Clone, Default)]
struct Section {
    name: u32,
    kind: u32,
    address: u64,
    offset: u64,
    size: u64,
    link: u32,
    entry: u64,
}

impl Section {
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [self.name, self.kind] {
            out.extend(word.to_le_bytes());
        }
        for word in [0, self.address, self.offset, self.size] {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.link.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        for word in [1, self.entry] {
            out.extend(word.to_le_bytes());
        }
        out
    }
}

/// Writes a program with sections, and blobs at their places; `names` is the index of the section of names.
fn write(path: &Path, sections: &[Section], blobs: &[(u64, Vec<u8>)], names: u16) {
    write_with_code(path, b"\xeb\xfe\xcc\xcc", sections, blobs, names);
}

fn write_with_code(path: &Path, code: &[u8], sections: &[Section], blobs: &[(u64, Vec<u8>)], names: u16) {
    let end = blobs.iter().map(|(at, bytes)| at + bytes.len() as u64).max().unwrap_or(BLOBS_AT);
    let sections_end = sections.iter().map(|section| section.offset + section.size).max().unwrap_or(0);
    let table_at = end.max(if sections_end < 1 << 40 { sections_end } else { 0 }).next_multiple_of(64);
    let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2_u16, 62] {
        head.extend(half.to_le_bytes());
    }
    head.extend(1_u32.to_le_bytes());
    for word in [BASE + CODE_AT, 64, table_at] {
        head.extend(word.to_le_bytes());
    }
    head.extend(0_u32.to_le_bytes());
    for half in [64, 56, 1, 64, sections.len() as u16, names] {
        head.extend(half.to_le_bytes());
    }
    // One segment, readable and executable.
    for word in [1_u32, 5] {
        head.extend(word.to_le_bytes());
    }
    let size = CODE_AT + code.len() as u64;
    for word in [0, BASE, BASE, size, size, 0x1000] {
        head.extend(word.to_le_bytes());
    }
    let mut file = fs::File::create(path).expect("create a hostile file");
    let mut put = |at: u64, bytes: &[u8]| {
        file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes)).expect("write a hostile file");
    };
    put(0, &head);
    put(CODE_AT, code);
    blobs.iter().for_each(|(at, bytes)| put(*at, bytes));
    put(table_at, &sections.iter().flat_map(Section::bytes).collect::<Vec<u8>>());
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it executable");
}

/// `count` sections that share one name of a megabyte.
pub fn names(path: &Path, count: usize) {
    let mut name = vec![b'A'; (1 << 20) - 1];
    name.push(0);
    let strings = Section { kind: 3, offset: BLOBS_AT, size: name.len() as u64, ..Section::default() };
    let mut sections = vec![Section::default(), strings];
    sections.resize(count, Section { kind: 1, size: 16, ..Section::default() });
    write(path, &sections, &[(BLOBS_AT, name)], 1);
}

/// A file with named sections of some content.
fn with_sections(path: &Path, named: &[(&str, u32, u64, Vec<u8>)]) {
    let (mut names, mut at) = (vec![0], BLOBS_AT);
    let (mut sections, mut blobs) = (vec![Section::default()], Vec::new());
    for (index, (name, kind, address, bytes)) in named.iter().enumerate() {
        let entry = if *kind == 2 || *kind == 11 { 24 } else { 0 };
        sections.push(Section {
            name: names.len() as u32,
            kind: *kind,
            address: *address,
            offset: at,
            size: bytes.len() as u64,
            // The strings of a symbol table follow it.
            link: index as u32 + 2,
            entry,
        });
        names.extend(name.as_bytes());
        names.push(0);
        blobs.push((at, bytes.clone()));
        at = (at + bytes.len() as u64).next_multiple_of(16);
    }
    let shstrtab = names.len() as u32;
    names.extend(b".shstrtab\0");
    sections.push(Section {
        name: shstrtab,
        kind: 3,
        offset: at,
        size: names.len() as u64,
        ..Section::default()
    });
    blobs.push((at, names));
    let index = sections.len() as u16 - 1;
    write(path, &sections, &blobs, index);
}

/// Tables of exported names in which each symbol's name is tens of megabytes long.
pub fn python_bomb(path: &Path, mib: usize) {
    let mut bytes = b"\0_PyRuntime\0".to_vec();
    bytes.resize(mib << 20, 1);
    let symbols = bytes[24..bytes.len() / 24 * 24].to_vec();
    with_sections(path, &[(".dynsym", 11, 0, symbols), (".dynstr", 3, 0, bytes)]);
}

/// A file that looks like a Python 3.11 of its own: exported names, and a version. `number` makes its layout different.
pub fn python(path: &Path, number: u64) {
    let strings = b"\0_PyRuntime\0PyCode_Type\0_PyEval_EvalFrameDefault\0Py_Version\0".to_vec();
    let symbol = |name: &str, value: u64| {
        let at = strings.windows(name.len()).position(|window| window == name.as_bytes());
        let mut symbol = (at.expect("it is among the strings") as u32).to_le_bytes().to_vec();
        symbol.extend([0x12, 0, 1, 0]);
        symbol.extend(value.to_le_bytes());
        symbol.extend(8_u64.to_le_bytes());
        symbol
    };
    let code_at = BASE + CODE_AT;
    let symbols = [
        vec![0; 24],
        symbol("_PyRuntime", code_at + 0x800 + 8 * number),
        symbol("PyCode_Type", code_at + 0x400 + 8 * number),
        symbol("_PyEval_EvalFrameDefault", code_at),
        symbol("Py_Version", code_at + 0x10),
    ]
    .concat();
    let mut code = b"\xeb\xfe\xcc\xcc".to_vec();
    code.resize(0x10, 0xcc);
    code.extend(0x030b_0000_u64.to_le_bytes());
    code.resize(0x1000, 0xcc);
    let names = b"\0.dynstr\0.dynsym\0.shstrtab\0".to_vec();
    let section = |name, kind, offset, bytes: &[u8], entry| Section {
        name,
        kind,
        offset,
        size: bytes.len() as u64,
        link: 1,
        entry,
        ..Section::default()
    };
    let (symbols_at, names_at) = (BLOBS_AT + 0x100, BLOBS_AT + 0x400);
    let sections = [
        Section::default(),
        section(1, 3, BLOBS_AT, &strings, 0),
        section(9, 11, symbols_at, &symbols, 24),
        section(17, 3, names_at, &names, 0),
    ];
    write_with_code(
        path,
        &code,
        &sections,
        &[(BLOBS_AT, strings), (symbols_at, symbols), (names_at, names)],
        3,
    );
}

/// Two common entries of call frame information with `mib` of augmentation each, and functions that take turns with them.
pub fn frame_bomb(path: &Path, mib: usize, functions: u32) {
    let common = || {
        let mut body = vec![0, 0, 0, 0, 1, b'z'];
        body.resize(body.len() + (mib << 20), b'S');
        body.extend([0, 1, 0x78, 0x10, 0, 0x0c, 7, 8, 0x90, 1]);
        body.resize(body.len().next_multiple_of(4), 0);
        let mut entry = (body.len() as u32).to_le_bytes().to_vec();
        entry.extend(body);
        entry
    };
    let first = common();
    let second_at = first.len() as u32;
    let mut all = [first.clone(), first].concat();
    for number in 0..functions {
        let pointer = all.len() as u32 + 4 - if number % 2 == 0 { 0 } else { second_at };
        let mut body = pointer.to_le_bytes().to_vec();
        body.extend((BASE + CODE_AT).to_le_bytes());
        body.extend(4_u64.to_le_bytes());
        body.extend([0, 0, 0, 0]);
        all.extend((body.len() as u32).to_le_bytes());
        all.extend(body);
    }
    all.extend([0; 4]);
    with_sections(path, &[(".eh_frame", 1, BASE + 0x10_0000, all)]);
}

/// A C++ name of some hundred bytes that stands for 2^`levels` times ten bytes.
pub fn mangled(path: &Path, levels: usize) {
    let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut name = b"\0_Z1f1AIiiE".to_vec();
    for level in 0..levels {
        let number = digits[level % 36] as char;
        name.extend(format!("S_IS{number}_S{number}_E").bytes());
    }
    name.push(0);
    let mut symbol = 1_u32.to_le_bytes().to_vec();
    symbol.extend([0x12, 0, 1, 0]);
    symbol.extend((BASE + CODE_AT).to_le_bytes());
    symbol.extend(4_u64.to_le_bytes());
    with_sections(path, &[(".symtab", 2, 0, [vec![0; 24], symbol].concat()), (".strtab", 3, 0, name)]);
}

/// Units of debug information that take turns with two tables of `abbreviations`, each of which is parsed again.
pub fn unit_bomb(path: &Path, units: usize, abbreviations: u64) {
    let mut table = Vec::new();
    for mut code in 1..=abbreviations {
        while code >= 0x80 {
            table.push(code as u8 | 0x80);
            code >>= 7;
        }
        table.extend([code as u8, 0x11, 0, 0, 0]);
    }
    table.push(0);
    let unit = |offset: u32| {
        let mut unit = 8_u32.to_le_bytes().to_vec();
        unit.extend(4_u16.to_le_bytes());
        unit.extend(offset.to_le_bytes());
        unit.extend([8, 1]);
        unit
    };
    let (one, other) = (unit(0), unit(table.len() as u32));
    let info: Vec<u8> =
        (0..units).flat_map(|n| if n % 2 == 0 { one.clone() } else { other.clone() }).collect();
    let abbrev = [table.clone(), table].concat();
    with_sections(path, &[(".debug_info", 1, 0, info), (".debug_abbrev", 1, 0, abbrev)]);
}

/// A symbol table of gigabytes that takes no disk.
pub fn sparse(path: &Path) {
    let strings = b"\0.symtab\0.strtab\0.shstrtab\0".to_vec();
    let hole = 1_u64 << 30;
    let section = |name, kind, size, entry| Section {
        name,
        kind,
        offset: BLOBS_AT,
        size,
        link: 2,
        entry,
        ..Section::default()
    };
    let sections = [
        Section::default(),
        section(1, 2, hole, 24),
        section(9, 3, hole, 0),
        Section { offset: BLOBS_AT + hole, ..section(17, 3, strings.len() as u64, 0) },
    ];
    write(path, &sections, &[(BLOBS_AT + hole, strings)], 3);
}
