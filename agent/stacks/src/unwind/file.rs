//! An ELF file → [`Rows`]: where its call frame information is, read in pieces of bounded size.
//!
//! Must not know: processes, tables.

use std::fs::File;
use std::io::Read;

use flate2::read::ZlibDecoder;
use object::{LittleEndian as LE, elf};

use super::arch::HERE;
use super::code::Code;
use super::golang;
use super::rows::{self, Frames, Functions, Rows, Section};
use crate::symbolize::elf::{Layout, Segment, header, layout, offset_in, read_at, sections};

/// Of one section: libLLVM's `.eh_frame` has 5 MB, Chromium's 30.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// What a file says about unwinding, as it stands there. Two files with the same hash have the same rows, whatever
/// else is in them: a build id would say so, too, but it is the container's to choose.
#[derive(Debug, Hash)]
pub(super) struct Source {
    frames: Frames,
    functions: Functions,
    go: Option<golang::Tables>,
    code: Option<Code>,
    segments: Vec<Segment>,
    entry: u64,
}

impl Source {
    /// Reads it, or gives the reason, a counter's name, why it says nothing.
    pub fn rows(&self) -> Result<Rows, &'static str> {
        let to_offset = |address| offset_in(&self.segments, address);
        let (go, code) = (self.go.as_ref(), self.code.as_ref());
        let rows = rows::read(&self.frames, &self.functions, go, code, self.entry, to_offset);
        if rows.rows.is_empty() { Err("unwind_no_information") } else { Ok(rows) }
    }
}

/// A whole file's rows.
#[cfg(test)]
pub(super) fn rows(file: &File) -> Result<Rows, &'static str> {
    source(file, MAX_BYTES)?.rows()
}

/// Finds what `file` says about unwinding, if that has at most `max` bytes, or gives the reason, a counter's name.
pub(super) fn source(file: &File, max: u64) -> Result<Source, &'static str> {
    let head = header(file).ok_or("unwind_not_elf")?;
    if head.e_machine.get(LE) != HERE.elf {
        return Err("unwind_other_machine");
    }
    let layout = layout(file).ok_or("unwind_not_elf")?;
    let table = sections(file);
    let find = |name: &[u8]| {
        table
            .iter()
            .find(|section| section.name == name && section.kind != elf::SHT_NOBITS && section.size > 0)
    };
    let text = find(b".text").map_or(0, |section| section.address);
    let eh_frame = match find(b".eh_frame") {
        Some(section) => Some(load(file, section, max)?),
        // A file without a section table still tells the program's own unwinder.
        None => by_program_header(file, &layout, max)?,
    };
    let debug_frame = find(b".debug_frame").map(|section| load(file, section, max)).transpose()?;
    // Stripped of `.debug_frame`, Go programs still have what that is made of.
    let tables = table.iter().find(|section| debug_frame.is_none() && section.name.ends_with(b".gopclntab"));
    let go = tables.map(|section| golang::Tables::new(file, section, max)).transpose()?;
    let frames = Frames { eh_frame, debug_frame, text };
    let functions = frames.functions(|address| offset_in(&layout.segments, address));
    let entry = head.e_entry.get(LE);
    // Go's own tables hold whatever of its code they describe.
    let code = match go {
        Some(_) => None,
        None => Code::new(file, &layout, &table, &functions.all, entry),
    };
    if frames.eh_frame.is_none() && frames.debug_frame.is_none() && go.is_none() && code.is_none() {
        return Err("unwind_no_information");
    }
    Ok(Source { frames, functions, go, code, segments: layout.segments, entry })
}

pub(super) fn load(
    file: &File,
    section: &crate::symbolize::elf::Section,
    max: u64,
) -> Result<Section, &'static str> {
    if section.size > max {
        return Err("unwind_too_large");
    }
    let size = usize::try_from(section.size).map_err(|_| "unwind_too_large")?;
    let bytes = read_at(file, section.offset, size).map_err(|_| "unwind_unreadable")?;
    let bytes = if section.flags & elf::SHF_COMPRESSED.0 == 0 { bytes } else { unpack(&bytes)? };
    Ok(Section { bytes, address: section.address })
}

/// An `SHF_COMPRESSED` section: Go compresses its `.debug_frame`.
fn unpack(packed: &[u8]) -> Result<Vec<u8>, &'static str> {
    // Elf64_Chdr: type, reserved (u32), size, alignment (u64).
    let data = match packed.split_at_checked(24) {
        Some((head, data)) if head.starts_with(&elf::ELFCOMPRESS_ZLIB.0.to_le_bytes()) => data,
        _ => return Err("unwind_packed"),
    };
    let mut bytes = Vec::new();
    let read = ZlibDecoder::new(data).take(MAX_BYTES + 1).read_to_end(&mut bytes);
    match read {
        Ok(_) if bytes.len() as u64 <= MAX_BYTES => Ok(bytes),
        Ok(_) => Err("unwind_too_large"),
        Err(_) => Err("unwind_packed"),
    }
}

/// `.eh_frame_hdr` (LSB, "Exception Frame Header") points to `.eh_frame`, which ends in a terminator: how long it is at most
/// the segment says.
fn by_program_header(file: &File, layout: &Layout, max: u64) -> Result<Option<Section>, &'static str> {
    let Some((offset, size, address)) = beyond_header(file, layout) else { return Ok(None) };
    if size > max {
        return Err("unwind_too_large");
    }
    let size = usize::try_from(size).map_err(|_| "unwind_too_large")?;
    let bytes = read_at(file, offset, size).ok();
    Ok(bytes.map(|bytes| Section { bytes, address }))
}

/// Where in the file what the header points to begins, how far its segment goes on, and its address.
fn beyond_header(file: &File, layout: &Layout) -> Option<(u64, u64, u64)> {
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
    use podopsy_wire::{KIND_NONE, KIND_STOP};

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
    fn whatever_is_written_over_a_library_costs_no_panic() {
        let whole = std::fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
        let write = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
            file
        };
        let table = sections(&write(&whole));
        let eh_frame = table.iter().find(|section| section.name == b".eh_frame").unwrap();
        let (from, len) = (eh_frame.offset as usize, eh_frame.size as usize);
        // The same each time: a failure can be had again.
        let mut numbers = fastrand::Rng::with_seed(1);
        let mut random = |below: usize| numbers.usize(..below);
        for round in 0..150 {
            let mut bytes = whole.clone();
            for _ in 0..1 + round {
                // Mostly in the section itself, and now and then in the headers.
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
    fn other_files_say_why_they_have_none() {
        assert_eq!(rows(&File::open("/etc/passwd").unwrap()).err(), Some("unwind_not_elf"));
    }

    fn go(folder: &std::path::Path, name: &str, flags: &[&str]) -> File {
        File::open(crate::symbolize::go::tests::build(folder, "inlines.go", name, flags)).unwrap()
    }

    #[test]
    #[ignore = "needs go: apt-get install golang-go"]
    fn a_stripped_go_program_has_the_rows_that_its_debug_frame_had() {
        let folder = tempfile::tempdir().unwrap();
        for flags in [&[][..], &["-buildmode=pie"]] {
            let whole = go(folder.path(), "whole", flags);
            let stripped = go(folder.path(), "stripped", &[flags, &["-ldflags=-s -w"]].concat());
            let text = |file: &File| {
                let text = sections(file).into_iter().find(|section| section.name == b".text").unwrap();
                (text.offset, read_at(file, text.offset, text.size as usize).unwrap())
            };
            let (offset, code) = text(&whole);
            assert_eq!((offset, code.len()), (text(&stripped).0, text(&stripped).1.len()), "another layout");
            let (by_debug_frame, by_go) = (rows(&whole).unwrap(), rows(&stripped).unwrap());
            assert!(by_go.problems.is_empty(), "{:?}", by_go.problems);
            let (mut same, mut different, mut outermost) = (0, 0, 0);
            for at in (offset..offset + code.len() as u64).map(|at| u32::try_from(at).unwrap()) {
                let (expected, found) = (by_debug_frame.at(at), by_go.at(at));
                // Between two functions there is padding, of which `.debug_frame` says nothing.
                if expected.kind == KIND_NONE {
                    continue;
                }
                if expected == found {
                    same += 1;
                } else if found.kind == KIND_STOP {
                    // Go 1.19's `.debug_frame` does not say who has no caller.
                    outermost += 1;
                } else {
                    if different % 40 == 0 {
                        eprintln!("{at:#x}: {found:?} but .debug_frame {expected:?}");
                    }
                    different += 1;
                }
            }
            eprintln!("{flags:?}: {same} bytes of code have the same rule, {different} another");
            assert!(same > 100_000 && different == 0, "{same} and {different}");
            assert!((1..500).contains(&outermost), "{outermost}");
        }
    }
}
