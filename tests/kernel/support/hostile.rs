//! Programs with debug information that takes long to read, as a container's owner could ship them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Units of debug information that take turns with two tables of abbreviations, so that a reader with a cache of one
/// table parses a table for each unit.
const UNITS: usize = 4000;
const ABBREVIATIONS: u64 = 40_000;

/// Writes a copy of a program with debug information that takes a minute to read. It runs as the original does.
pub fn slow_debug_information(program: &Path, copy: &Path) {
    let mut file = fs::read(program).expect("read the program");
    let abbreviations = table();
    let unit = |table: usize| {
        // DWARF 4: length, version, offset of the abbreviations, address size, and one entry with the first abbreviation.
        let mut unit = 8u32.to_le_bytes().to_vec();
        unit.extend(4u16.to_le_bytes());
        unit.extend(u32::try_from(table).expect("a small table").to_le_bytes());
        unit.extend([8, 1]);
        unit
    };
    let pair = [unit(0), unit(abbreviations.len())].concat();
    let sections = [
        (".debug_info", pair.repeat(UNITS / 2)),
        (".debug_abbrev", [abbreviations.clone(), abbreviations].concat()),
    ];
    add_sections(&mut file, &sections);
    fs::write(copy, file).expect("write the copy");
    fs::set_permissions(copy, fs::Permissions::from_mode(0o755)).expect("make it executable");
}

/// DW_TAG_compile_unit without children and attributes, under each number.
fn table() -> Vec<u8> {
    let mut out = Vec::new();
    for number in 1..=ABBREVIATIONS {
        write_uleb(&mut out, number);
        out.extend([0x11, 0, 0, 0]);
    }
    out.push(0);
    out
}

fn write_uleb(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        out.push(if value > 0 { byte | 0x80 } else { byte });
        if value == 0 {
            return;
        }
    }
}

/// Adds sections to a 64-bit little-endian ELF file, and takes the names of its debug sections away.
fn add_sections(file: &mut Vec<u8>, sections: &[(&str, Vec<u8>)]) {
    const HEADER: usize = 64;
    let u16_at = |file: &[u8], at: usize| u16::from_le_bytes([file[at], file[at + 1]]);
    let u64_at =
        |file: &[u8], at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    let begin = u64_at(file, 0x28) as usize;
    let (count, names_index) = (u16_at(file, 0x3c) as usize, u16_at(file, 0x3e) as usize);
    let mut headers = file[begin..begin + count * HEADER].to_vec();
    let names_at = u64_at(&headers, names_index * HEADER + 24) as usize;
    let names_size = u64_at(&headers, names_index * HEADER + 32) as usize;
    let mut names = file[names_at..names_at + names_size].to_vec();
    for header in headers.chunks_exact_mut(HEADER) {
        let name = u32::from_le_bytes(header[..4].try_into().expect("four bytes")) as usize;
        if names[name..].starts_with(b".debug_") {
            header[..4].fill(0);
        }
    }
    for (name, bytes) in sections {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&(names.len() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&1u32.to_le_bytes());
        header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        header[48..56].copy_from_slice(&1u64.to_le_bytes());
        headers.extend(header);
        names.extend(name.bytes().chain([0]));
        file.extend(bytes);
    }
    let names_header = &mut headers[names_index * HEADER..][..HEADER];
    names_header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
    names_header[32..40].copy_from_slice(&(names.len() as u64).to_le_bytes());
    file.extend(names);
    let begin = file.len() as u64;
    file.extend(headers);
    file[0x28..0x30].copy_from_slice(&begin.to_le_bytes());
    file[0x3c..0x3e].copy_from_slice(&((count + sections.len()) as u16).to_le_bytes());
}
