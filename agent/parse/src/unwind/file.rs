//! Finds the unwind information of an ELF file and reads it into [`FileRows`]. Every piece that is read has a bound.
//!
//! Must not depend on: processes, tables.

use std::fs::File;
use std::hash::Hash;
use std::io::Read;

use flate2::read::ZlibDecoder;
use object::{LittleEndian as LE, elf};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::arch::NATIVE;
use super::code::UndescribedCode;
use super::golang::GoTables;
use super::rows::{self, DescribedFunctions, FileRows, FrameSections, LoadedSection};
use crate::StackLossReason;
use crate::elf::{Layout, Section, Segment, header, layout, offset_in, read_at, sections};

/// Bytes of one section. libLLVM's `.eh_frame` has 5 MB, Chromium's 30 MB.
pub const MAX_BYTES: u64 = 64 << 20;

/// The unwind information of a file, as it is stored there. Two files with the same hash have the same rows, whatever else
/// is in them. A build id is not used for this, because the container chooses it.
#[derive(Debug, Hash)]
pub struct UnwindSource {
    frames: FrameSections,
    functions: DescribedFunctions,
    go: Option<GoTables>,
    code: Option<UndescribedCode>,
    segments: Vec<Segment>,
    entry: u64,
}

/// Identifies the unwind information of a file: its hash under a key that cannot be guessed.
pub type UnwindDigest = u128;

impl UnwindSource {
    /// The hash of the unwind information. Files with the same information have the same digest under the same key.
    pub fn digest(&self, key: [u64; 2]) -> UnwindDigest {
        let mut hasher = SipHasher13::new_with_keys(key[0], key[1]);
        self.hash(&mut hasher);
        hasher.finish128().as_u128()
    }

    /// Reads the rows. An error is the reason why there are none.
    pub fn read_rows(&self) -> Result<FileRows, StackLossReason> {
        let input = rows::RowInput {
            frames: &self.frames,
            functions: &self.functions,
            go: self.go.as_ref(),
            code: self.code.as_ref(),
            entry: self.entry,
        };
        let rows = rows::read(&input, |address| offset_in(&self.segments, address));
        if rows.rows.is_empty() { Err(StackLossReason::NoInformation) } else { Ok(rows) }
    }
}

/// The rows of a file.
#[cfg(test)]
pub(super) fn rows(file: &File) -> Result<FileRows, StackLossReason> {
    find_source(file, MAX_BYTES)?.read_rows()
}

/// Finds the unwind information of a file, of which no section may have more than `max_bytes`. An error is the reason why
/// there is none.
pub fn find_source(file: &File, max_bytes: u64) -> Result<UnwindSource, StackLossReason> {
    let head = header(file).ok_or(StackLossReason::NotElf)?;
    if head.e_machine.get(LE) != NATIVE.elf_machine {
        return Err(StackLossReason::OtherMachine);
    }
    let layout = layout(file).ok_or(StackLossReason::NotElf)?;
    let table = sections(file);
    let find = |name: &[u8]| {
        table
            .iter()
            .find(|section| section.name == name && section.kind != elf::SHT_NOBITS && section.size > 0)
    };
    let text = find(b".text").map_or(0, |section| section.address);
    let eh_frame = match find(b".eh_frame") {
        Some(section) => Some(load_section(file, section, max_bytes)?),
        // In a file without a section table, the program's own unwinder finds it by the program header.
        None => eh_frame_by_program_header(file, &layout, max_bytes)?,
    };
    let debug_frame =
        find(b".debug_frame").map(|section| load_section(file, section, max_bytes)).transpose()?;
    // A Go program that was stripped of `.debug_frame` still has the tables that it was made from.
    let pclntab = table.iter().find(|section| section.name.ends_with(b".gopclntab"));
    let describes_all = debug_frame.is_none();
    let go = match pclntab.map(|section| GoTables::new(file, section, max_bytes, describes_all)) {
        Some(Err(reason)) if describes_all => return Err(reason),
        found => found.and_then(Result::ok),
    };
    let frames = FrameSections { eh_frame, debug_frame, text };
    let functions = frames.functions(|address| offset_in(&layout.segments, address));
    let entry = head.e_entry.get(LE);
    // Go's own tables describe all of its code.
    let code = match &go {
        Some(go) if go.describes_all => None,
        _ => UndescribedCode::find(file, &layout, &table, &functions.all, entry),
    };
    if frames.eh_frame.is_none() && frames.debug_frame.is_none() && go.is_none() && code.is_none() {
        return Err(StackLossReason::NoInformation);
    }
    Ok(UnwindSource { frames, functions, go, code, segments: layout.segments, entry })
}

/// Reads a section, and decompresses it if need be.
pub(super) fn load_section(
    file: &File,
    section: &Section,
    max_bytes: u64,
) -> Result<LoadedSection, StackLossReason> {
    if section.size > max_bytes {
        return Err(StackLossReason::SectionTooLarge);
    }
    let size = usize::try_from(section.size).map_err(|_| StackLossReason::SectionTooLarge)?;
    let bytes = read_at(file, section.offset, size).map_err(|_| StackLossReason::SectionUnreadable)?;
    let bytes = if section.flags & elf::SHF_COMPRESSED.0 == 0 { bytes } else { decompress(&bytes)? };
    Ok(LoadedSection { bytes, address: section.address })
}

/// Decompresses an `SHF_COMPRESSED` section. Go compresses its `.debug_frame`.
fn decompress(compressed: &[u8]) -> Result<Vec<u8>, StackLossReason> {
    // Elf64_Chdr: type, reserved (u32), size, alignment (u64).
    let data = match compressed.split_at_checked(24) {
        Some((head, data)) if head.starts_with(&elf::ELFCOMPRESS_ZLIB.0.to_le_bytes()) => data,
        _ => return Err(StackLossReason::SectionCompressed),
    };
    let mut bytes = Vec::new();
    let read = ZlibDecoder::new(data).take(MAX_BYTES + 1).read_to_end(&mut bytes);
    match read {
        Ok(_) if bytes.len() as u64 <= MAX_BYTES => Ok(bytes),
        Ok(_) => Err(StackLossReason::SectionTooLarge),
        Err(_) => Err(StackLossReason::SectionCompressed),
    }
}

/// Reads `.eh_frame` where `.eh_frame_hdr` points to it (LSB, "Exception Frame Header"). It ends in a terminator; its
/// length is at most the rest of its segment.
fn eh_frame_by_program_header(
    file: &File,
    layout: &Layout,
    max_bytes: u64,
) -> Result<Option<LoadedSection>, StackLossReason> {
    let Some((offset, size, address)) = eh_frame_location(file, layout) else { return Ok(None) };
    if size > max_bytes {
        return Err(StackLossReason::SectionTooLarge);
    }
    let size = usize::try_from(size).map_err(|_| StackLossReason::SectionTooLarge)?;
    let bytes = read_at(file, offset, size).ok();
    Ok(bytes.map(|bytes| LoadedSection { bytes, address }))
}

/// The file offset that `.eh_frame_hdr` points to, the bytes from there to the end of the segment, and the address.
fn eh_frame_location(file: &File, layout: &Layout) -> Option<(u64, u64, u64)> {
    const PCREL_SDATA4: u8 = 0x1b;
    if layout.eh_frame_hdr == 0 {
        return None;
    }
    let segment = |address: u64| {
        layout
            .segments
            .iter()
            .find(|segment| address.checked_sub(segment.address).is_some_and(|into| into < segment.size))
    };
    let holder = segment(layout.eh_frame_hdr)?;
    let head = read_at(file, holder.offset.checked_add(layout.eh_frame_hdr - holder.address)?, 8).ok()?;
    let (1, PCREL_SDATA4) = (head[0], head[1]) else { return None };
    let distance = i32::from_le_bytes(head[4..8].try_into().ok()?);
    let address = layout.eh_frame_hdr.checked_add(4)?.checked_add_signed(i64::from(distance))?;
    let holder = segment(address)?;
    let into = address - holder.address;
    Some((holder.offset.checked_add(into)?, holder.size - into, address))
}

#[cfg(test)]
mod tests {
    use podopsy_wire::{FP_AT_SP, FP_SAME, KIND_NONE, KIND_SIGNAL, KIND_STOP, KIND_SWITCH, Rule};

    use super::*;

    #[test]
    fn the_entry_point_of_the_dynamic_loader_is_outermost() {
        let file = File::open("/lib64/ld-linux-x86-64.so.2").unwrap();
        let entry = header(&file).unwrap().e_entry.get(LE);
        let offset = layout(&file).unwrap().segments.iter().find_map(|segment| {
            let into = entry.checked_sub(segment.address).filter(|into| *into < segment.size)?;
            u32::try_from(segment.offset + into).ok()
        });
        let rows = rows(&file).unwrap();
        assert_eq!(rows.at(offset.unwrap()).kind, KIND_STOP);
        assert_eq!(rows.at(0x40).kind, KIND_NONE);
        assert!(rows.rows.is_sorted_by_key(|row| row.offset));
    }

    #[test]
    fn a_library_with_random_bytes_written_over_it_causes_no_panic() {
        let whole = std::fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
        let write = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
            file
        };
        let table = sections(&write(&whole));
        let eh_frame = table.iter().find(|section| section.name == b".eh_frame").unwrap();
        let (from, len) = (eh_frame.offset as usize, eh_frame.size as usize);
        // The seed is fixed, so that a failure can be repeated.
        let mut numbers = fastrand::Rng::with_seed(1);
        let mut random = |below: usize| numbers.usize(..below);
        for round in 0..150 {
            let mut bytes = whole.clone();
            for _ in 0..1 + round {
                // Mostly in the section itself, sometimes in the headers.
                let at = if random(8) == 0 { random(1024) } else { from + random(len) };
                bytes[at] = random(256) as u8;
            }
            if random(10) == 0 {
                bytes.truncate(random(whole.len()));
            }
            if let Ok(rows) = rows(&write(&bytes)) {
                assert!(rows.rows.windows(2).all(|two| two[0].offset < two[1].offset), "round {round}");
                assert!(rows.rows.iter().all(|row| usize::from(row.rule) < rows.rules.len()));
            }
        }
    }

    #[test]
    fn a_file_that_is_not_elf_has_no_rows() {
        assert_eq!(rows(&File::open("/etc/passwd").unwrap()).err(), Some(StackLossReason::NotElf));
    }

    #[test]
    #[ignore = "needs go: apt-get install golang-go"]
    fn go_functions_that_switch_stacks_have_rules_for_it() {
        let folder = tempfile::tempdir().unwrap();
        for flags in [&[][..], &["-ldflags=-s -w"]] {
            let program = build_go(folder.path(), "switches", flags);
            let rows = rows(&program).unwrap();
            let count = |wanted: &dyn Fn(&Rule) -> bool| {
                rows.rows.iter().filter(|row| wanted(&rows.rules[usize::from(row.rule)])).count()
            };
            let to_go = count(&|rule| rule.kind == KIND_SWITCH && rule.fp == FP_AT_SP);
            let to_c = count(&|rule| rule.kind == KIND_SWITCH && rule.fp == FP_SAME);
            let scheduler = count(&|rule| rule.kind == KIND_SWITCH && rule.extra == 1);
            let outermost = count(&|rule| rule.kind == KIND_STOP);
            let signal = count(&|rule| rule.kind == KIND_SIGNAL);
            eprintln!("{flags:?}: {to_go} to Go, {to_c} to C, {scheduler}, {outermost} outermost, {signal}");
            // systemstack, mcall and morestack, or cgocallback beside it; asmcgocall and time.now among others; rt0_go, mstart
            // and goexit.
            assert_eq!((scheduler, signal), (1, 1), "{flags:?}");
            assert!((3..=4).contains(&to_go), "{flags:?}: {to_go}");
            assert!(to_c >= 3 && outermost >= 3, "{flags:?}: {to_c} {outermost}");
        }
    }

    fn build_go(folder: &std::path::Path, name: &str, flags: &[&str]) -> File {
        File::open(crate::names::go::tests::build(folder, "inlines.go", name, flags)).unwrap()
    }

    #[test]
    #[ignore = "needs go: apt-get install golang-go"]
    fn a_stripped_go_program_has_the_rows_that_its_debug_frame_had() {
        let folder = tempfile::tempdir().unwrap();
        for flags in [&[][..], &["-buildmode=pie"]] {
            let whole = build_go(folder.path(), "whole", flags);
            let stripped = build_go(folder.path(), "stripped", &[flags, &["-ldflags=-s -w"]].concat());
            let text = |file: &File| {
                let text = sections(file).into_iter().find(|section| section.name == b".text").unwrap();
                (text.offset, read_at(file, text.offset, text.size as usize).unwrap())
            };
            let (offset, code) = text(&whole);
            assert_eq!(
                (offset, code.len()),
                (text(&stripped).0, text(&stripped).1.len()),
                "the two builds have different layouts"
            );
            let (by_debug_frame, by_go) = (rows(&whole).unwrap(), rows(&stripped).unwrap());
            assert!(by_go.losses.is_empty(), "{:?}", by_go.losses);
            let (mut same, mut different) = (0, 0);
            for at in (offset..offset + code.len() as u64).map(|at| u32::try_from(at).unwrap()) {
                let (expected, found) = (by_debug_frame.at(at), by_go.at(at));
                // `.debug_frame` does not describe the padding between two functions.
                if expected.kind == KIND_NONE {
                    continue;
                }
                if expected == found {
                    same += 1;
                } else {
                    if different % 40 == 0 {
                        eprintln!("{at:#x}: {found:?} but .debug_frame {expected:?}");
                    }
                    different += 1;
                }
            }
            eprintln!("{flags:?}: {same} bytes of code have the same rule, {different} another");
            assert!(same > 100_000 && different == 0, "{same} and {different}");
        }
    }
}
