//! Every row against `readelf --debug-dump=frames-interp`, which reads the same bytes by code of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use podopsy_wire::{
    FP_AT_CFA, FP_SAME, KIND_DEREF, KIND_INDEXED, KIND_PLT, KIND_REGISTER, KIND_SIGNAL, KIND_STOP, RA_AT_CFA,
    Rule,
};

use super::file;
use crate::symbolize::elf::layout;

/// What readelf's columns say of a row, as far as a rule can.
#[derive(Debug, Clone)]
struct Said {
    cfa: String,
    frame: String,
    ra: String,
}

/// By file offset.
type SaidRows = Vec<(u32, Said)>;

/// readelf's names of registers, by DWARF number.
const NAMES: [&str; 16] = [
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Whether a rule says what readelf says; readelf writes any expression as `exp` (CFA) or `exp`/`vexp`.
fn agrees(rule: &Rule, said: &Said) -> bool {
    let ra_is_offset = |offset: i16| said.ra == format!("c{offset:+}");
    let undefined = said.ra == "u";
    match rule.kind {
        KIND_STOP => undefined,
        KIND_SIGNAL => said.cfa == "exp",
        KIND_REGISTER | KIND_DEREF | KIND_INDEXED | KIND_PLT => {
            let cfa = if rule.kind == KIND_REGISTER {
                said.cfa == format!("{}{:+}", NAMES[usize::from(rule.base)], rule.cfa_offset)
            } else {
                said.cfa == "exp"
            };
            let ra = match rule.ra {
                RA_AT_CFA => ra_is_offset(rule.ra_offset),
                register => said.ra == NAMES[usize::from(register - 1)],
            };
            let frame = match rule.fp {
                FP_SAME => said.frame.is_empty() || said.frame == "u" || said.frame == "s",
                FP_AT_CFA => said.frame == format!("c{:+}", rule.fp_offset),
                _ => said.frame == "exp",
            };
            cfa && ra && frame
        }
        _ => false,
    }
}

/// Rows compared, and the differences by cause.
#[derive(Debug, Default)]
struct Verdict {
    compared: u64,
    unsupported: u64,
    differences: BTreeMap<String, u64>,
    first: Option<String>,
}

fn compare(path: &Path) -> Option<Verdict> {
    let open = File::open(path).ok()?;
    let rows = file::rows(&open).ok()?;
    let layout = layout(&open)?;
    let dump = Command::new("readelf").args(["-W", "--debug-dump=frames-interp"]).arg(path).output().ok()?;
    let text = String::from_utf8_lossy(&dump.stdout);
    let to_offset = |address: u64| {
        let segment = layout.segments.iter().find(|s| address.wrapping_sub(s.address) < s.size)?;
        u32::try_from(segment.offset + (address - segment.address)).ok()
    };
    let mut verdict = Verdict::default();
    // Functions of readelf's, each with its rows; the later one of two that overlap counts from its start.
    let mut functions: Vec<(u32, u32, SaidRows)> = Vec::new();
    let (mut columns, mut common): (Vec<String>, BTreeMap<String, Said>) = Default::default();
    let (mut entry, mut is_function) = (String::new(), false);
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
                    // Without a table of its own, the common entry's row holds.
                    let rows = default.into_iter().map(|said| (start, said.clone())).collect();
                    functions.push((start, start + u32::try_from(to - from).ok()?, rows));
                }
                _ => is_function = false,
            }
        } else if words.first() == Some(&"LOC") {
            columns = words.iter().map(|word| (*word).to_string()).collect();
        } else if words.len() == columns.len() && words.len() > 1 && words[0].hex().is_some() {
            let column = |name: &str| {
                columns.iter().position(|c| c == name).map(|i| words[i].to_string()).unwrap_or_default()
            };
            let said = Said { cfa: column("CFA"), frame: column("rbp"), ra: column("ra") };
            if !is_function {
                common.insert(entry.without_zeros(), said);
            } else if let Some((start, end, rows)) = functions.last_mut()
                && let Some(offset) = to_offset(words[0].hex()?)
                && (*start..*end).contains(&offset)
            {
                if rows.last().is_some_and(|(last, _)| *last == offset) {
                    rows.pop();
                }
                rows.push((offset, said));
            }
        }
    }
    functions.sort_by_key(|function| function.0);
    for (index, (_, end, said)) in functions.iter().enumerate() {
        let next = functions.get(index + 1).map_or(u32::MAX, |next| next.0);
        for (offset, said) in said {
            if *offset >= next || *offset >= *end {
                continue;
            }
            verdict.compared += 1;
            let rule = rows.at(*offset);
            if rule.kind == podopsy_wire::KIND_UNSUPPORTED {
                verdict.unsupported += 1;
            } else if !agrees(&rule, said) {
                *verdict
                    .differences
                    .entry(format!("kind {}, readelf {}", rule.kind, said.cfa))
                    .or_default() += 1;
                verdict.first.get_or_insert_with(|| format!("{offset:#x}: {rule:?} but readelf {said:?}"));
            }
        }
    }
    Some(verdict)
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

/// Compares all of `paths`, prints a line each, and fails on a difference.
fn compare_all(paths: impl Iterator<Item = PathBuf>) -> (u64, u64) {
    let (mut compared, mut unsupported, mut files, mut wrong) = (0, 0, 0, Vec::new());
    for path in paths {
        let Some(verdict) = compare(&path) else { continue };
        files += 1;
        compared += verdict.compared;
        unsupported += verdict.unsupported;
        if !verdict.differences.is_empty() {
            wrong.push(format!("{}: {verdict:?}", path.display()));
        }
    }
    eprintln!(
        "{files} files, {compared} rows, {unsupported} of them not followed, {} files differ",
        wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files > 0, "no file to compare: is binutils installed?");
    (compared, unsupported)
}

#[test]
#[ignore = "needs binutils, python3 and openssl: cargo xtask setup test"]
fn rows_are_those_that_readelf_reads() {
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
    assert!(unsupported * 10_000 <= compared, "{unsupported} of {compared} rows are not followed");
}

#[test]
#[ignore = "takes six minutes: every library of the distribution (the oracle is readelf, from binutils)"]
fn rows_of_the_whole_distribution_are_those_that_readelf_reads_by_hand() {
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
