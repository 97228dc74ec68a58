//! Compares every row with `readelf --debug-dump=frames-interp`, an independent reader of the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use podopsy_wire::{
    FP_AT_CFA, FP_SAME, KIND_DEREF, KIND_INDEXED, KIND_PLT, KIND_REGISTER, KIND_SIGNAL, KIND_STOP, RA_AT_CFA,
    Rule,
};

use crate::elf::{Layout, layout};
use crate::unwind::file;
use crate::unwind::rows::FileRows;

/// The columns of readelf that a rule has an equivalent for.
#[derive(Debug, Clone)]
struct ReadelfRow {
    cfa: String,
    frame_pointer: String,
    return_address: String,
}

/// A function as readelf prints it, in file offsets.
struct ReadelfFunction {
    start: u32,
    end: u32,
    rows: Vec<(u32, ReadelfRow)>,
}

/// readelf's names of registers, by DWARF number.
const REGISTER_NAMES: [&str; 16] = [
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// True if a rule agrees with readelf, which prints any expression as `exp` (CFA) or `exp`/`vexp`.
fn agrees(rule: &Rule, row: &ReadelfRow) -> bool {
    let ra_is_offset = |offset: i16| row.return_address == format!("c{offset:+}");
    let is_undefined = row.return_address == "u";
    match rule.kind {
        KIND_STOP => is_undefined,
        KIND_SIGNAL => row.cfa == "exp",
        KIND_REGISTER | KIND_DEREF | KIND_INDEXED | KIND_PLT => {
            let cfa = if rule.kind == KIND_REGISTER {
                row.cfa == format!("{}{:+}", REGISTER_NAMES[usize::from(rule.base)], rule.cfa_offset)
            } else {
                row.cfa == "exp"
            };
            let ra = match rule.ra {
                RA_AT_CFA => ra_is_offset(rule.ra_offset),
                register => row.return_address == REGISTER_NAMES[usize::from(register - 1)],
            };
            let frame = match rule.fp {
                FP_SAME => {
                    row.frame_pointer.is_empty() || row.frame_pointer == "u" || row.frame_pointer == "s"
                }
                FP_AT_CFA => row.frame_pointer == format!("c{:+}", rule.fp_offset),
                _ => row.frame_pointer == "exp",
            };
            cfa && ra && frame
        }
        _ => false,
    }
}

/// Rows compared, and the differences by cause.
#[derive(Debug, Default)]
struct RowComparison {
    compared: u64,
    unsupported: u64,
    differences: BTreeMap<String, u64>,
    first: Option<String>,
}

fn compare(path: &Path) -> Option<RowComparison> {
    let file = File::open(path).ok()?;
    let rows = file::rows(&file).ok()?;
    let layout = layout(&file)?;
    let dump = Command::new("readelf").args(["-W", "--debug-dump=frames-interp"]).arg(path).output().ok()?;
    let functions = parse_dump(&String::from_utf8_lossy(&dump.stdout), &layout)?;
    Some(compare_rows(&rows, &functions))
}

/// The functions in readelf's output, in the order of their starts.
fn parse_dump(text: &str, layout: &Layout) -> Option<Vec<ReadelfFunction>> {
    let to_offset = |address: u64| {
        let segment = layout.segments.iter().find(|s| address.wrapping_sub(s.address) < s.size)?;
        u32::try_from(segment.offset + (address - segment.address)).ok()
    };
    let mut functions: Vec<ReadelfFunction> = Vec::new();
    let mut columns: Vec<String> = Vec::new();
    // The rows of common entries, by the entry's offset.
    let mut common: BTreeMap<String, ReadelfRow> = BTreeMap::new();
    let mut entry = String::new();
    let mut is_function = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.contains("section") && line.contains("Contents of") && !line.contains(".eh_frame") {
            break;
        }
        if words.len() > 3 && words[3] == "CIE" {
            (entry, is_function) = (words[0].to_string(), false);
        } else if words.len() > 4 && words[3] == "FDE" {
            is_function = true;
            let cie = words[4].trim_start_matches("cie=");
            let default = common.get(&cie.without_zeros());
            let (from, to) = words[5].trim_start_matches("pc=").split_once("..")?;
            let (from, to) = (from.hex()?, to.hex()?);
            match to_offset(from) {
                Some(start) if to > from => {
                    // If the entry has no rows of its own, the common entry's row holds.
                    let rows = default.into_iter().map(|row| (start, row.clone())).collect();
                    let end = start + u32::try_from(to - from).ok()?;
                    functions.push(ReadelfFunction { start, end, rows });
                }
                _ => is_function = false,
            }
        } else if words.first() == Some(&"LOC") {
            columns = words.iter().map(|word| (*word).to_string()).collect();
        } else if words.len() == columns.len() && words.len() > 1 && words[0].hex().is_some() {
            let column = |name: &str| {
                columns.iter().position(|c| c == name).map(|i| words[i].to_string()).unwrap_or_default()
            };
            let row =
                ReadelfRow { cfa: column("CFA"), frame_pointer: column("rbp"), return_address: column("ra") };
            if !is_function {
                common.insert(entry.without_zeros(), row);
            } else if let Some(ReadelfFunction { start, end, rows }) = functions.last_mut()
                && let Some(offset) = to_offset(words[0].hex()?)
                && (*start..*end).contains(&offset)
            {
                if rows.last().is_some_and(|(last, _)| *last == offset) {
                    rows.pop();
                }
                rows.push((offset, row));
            }
        }
    }
    functions.sort_by_key(|function| function.start);
    Some(functions)
}

fn compare_rows(rows: &FileRows, functions: &[ReadelfFunction]) -> RowComparison {
    let mut comparison = RowComparison::default();
    for (index, function) in functions.iter().enumerate() {
        // The later one of two functions that overlap counts from its start.
        let next = functions.get(index + 1).map_or(u32::MAX, |next| next.start);
        for (offset, row) in &function.rows {
            if *offset >= next || *offset >= function.end {
                continue;
            }
            comparison.compared += 1;
            let rule = rows.at(*offset);
            if rule.kind == podopsy_wire::KIND_UNSUPPORTED {
                comparison.unsupported += 1;
            } else if !agrees(&rule, row) {
                let difference = format!("kind {}, readelf {}", rule.kind, row.cfa);
                *comparison.differences.entry(difference).or_default() += 1;
                comparison.first.get_or_insert_with(|| format!("{offset:#x}: {rule:?} but readelf {row:?}"));
            }
        }
    }
    comparison
}

trait Hex {
    fn hex(&self) -> Option<u64>;
    fn without_zeros(&self) -> String;
}

impl Hex for str {
    fn hex(&self) -> Option<u64> {
        (self.len() >= 8).then(|| u64::from_str_radix(self, 16).ok()).flatten()
    }

    fn without_zeros(&self) -> String {
        self.trim_start_matches('0').to_string()
    }
}

/// Compares all of `paths`, prints a summary, and fails on a difference.
fn compare_all(paths: impl Iterator<Item = PathBuf>) -> (u64, u64) {
    let (mut compared, mut unsupported, mut files, mut wrong) = (0, 0, 0, Vec::new());
    for path in paths {
        let Some(comparison) = compare(&path) else { continue };
        files += 1;
        compared += comparison.compared;
        unsupported += comparison.unsupported;
        if !comparison.differences.is_empty() {
            wrong.push(format!("{}: {comparison:?}", path.display()));
        }
    }
    eprintln!(
        "{files} files, {compared} rows, {unsupported} of them not supported, {} files differ",
        wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files > 0, "no file to compare: is binutils installed?");
    (compared, unsupported)
}

#[test]
#[ignore = "needs binutils, python3 and openssl: cargo xtask setup test"]
fn rows_agree_with_readelf() {
    let names = [
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib64/ld-linux-x86-64.so.2",
        "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/lib/x86_64-linux-gnu/liblzma.so.5",
        "/usr/bin/python3",
        "/usr/bin/openssl",
        "/usr/bin/bash",
    ];
    let (compared, unsupported) = compare_all(names.iter().map(PathBuf::from));
    assert!(unsupported * 10_000 <= compared, "{unsupported} of {compared} rows are not supported");
}

#[test]
#[ignore = "takes six minutes: every library of the distribution (the oracle is readelf, from binutils)"]
fn rows_of_the_whole_distribution_agree_with_readelf_by_hand() {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/usr/lib"), PathBuf::from("/usr/bin")];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    compare_all(found.into_iter());
}
