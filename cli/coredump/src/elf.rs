//! The file: header, program headers, notes, then the pages. All lengths are known before the first byte, so that it is written
//! as a stream.
//!
//! ```text
//! ELF header │ section header (only with 65,535 segments or more) │ program headers │ notes │ padding │ pages …
//! ```

use std::io::Write;
use std::ops::Range;

use podopsy_system::page_size;

use crate::CoreError;
use crate::image::{Image, Segment};
use crate::memory::PageSource;
use crate::notes::Notes;

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u64 = 64;
/// `PN_XNUM`: the real number of program headers is in the first section header.
const MANY: u64 = 0xffff;
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// Where the parts of the file are.
#[derive(Clone, Copy, Debug)]
struct Positions {
    program_headers: u64,
    /// The notes' own is among them.
    count: u64,
    notes: u64,
    pages: u64,
}

impl Positions {
    fn new(segments: usize, notes: usize) -> Positions {
        let count = segments as u64 + 1;
        let program_headers = HEADER + if count >= MANY { SECTION_HEADER } else { 0 };
        let at = program_headers + count * PROGRAM_HEADER;
        Positions {
            program_headers,
            count,
            notes: at,
            pages: (at + notes as u64).next_multiple_of(page_size()),
        }
    }
}

/// The length of the file.
pub fn length(image: &Image, notes: &Notes) -> u64 {
    let pages: u64 = image.segments.iter().map(content_length).sum();
    Positions::new(image.segments.len(), notes.bytes.len()).pages + pages
}

fn content_length(segment: &Segment) -> u64 {
    if segment.has_content { segment.end - segment.start } else { 0 }
}

pub fn write(
    image: &Image,
    notes: &Notes,
    pages: &mut dyn PageSource,
    out: &mut dyn Write,
) -> Result<(), CoreError> {
    let positions = Positions::new(image.segments.len(), notes.bytes.len());
    let mut head = header(&positions);
    head.extend(program_headers(image, notes, &positions));
    head.extend(&notes.bytes);
    head.resize(positions.pages as usize, 0);
    out.write_all(&head).map_err(CoreError::Write)?;
    for segment in image.segments.iter().filter(|segment| segment.has_content) {
        write_segment(segment, &image.runs[segment.runs.clone()], pages, out)?;
    }
    Ok(())
}

fn write_segment(
    segment: &Segment,
    runs: &[Range<u64>],
    pages: &mut dyn PageSource,
    out: &mut dyn Write,
) -> Result<(), CoreError> {
    let zeros = vec![0; page_size() as usize];
    let mut at = segment.start;
    for run in runs {
        while at < run.start {
            out.write_all(&zeros).map_err(CoreError::Write)?;
            at += page_size();
        }
        pages.write_run(run.clone(), &mut |bytes| out.write_all(bytes).map_err(CoreError::Write))?;
        at = run.end;
    }
    Ok(())
}

/// The ELF header, and the section header behind it if there is one.
fn header(positions: &Positions) -> Vec<u8> {
    const CORE: u16 = 4;
    let has_section = positions.program_headers != HEADER;
    let mut bytes = b"\x7fELF".to_vec();
    // 64 bits, the machine's own order of bytes, version 1, System V.
    bytes.extend([2, if cfg!(target_endian = "little") { 1 } else { 2 }, 1, 0]);
    bytes.resize(16, 0);
    bytes.extend(CORE.to_ne_bytes());
    bytes.extend(MACHINE.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    let sections = if has_section { HEADER } else { 0 };
    for number in [0, positions.program_headers, sections] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes.extend(0_u32.to_ne_bytes());
    let section_size = if has_section { SECTION_HEADER } else { 0 };
    let count = positions.count.min(MANY);
    for number in [HEADER, PROGRAM_HEADER, count, section_size, u64::from(has_section), 0] {
        bytes.extend((number as u16).to_ne_bytes());
    }
    if has_section {
        // A null section, whose sh_info is the number of program headers.
        let mut section = vec![0; SECTION_HEADER as usize];
        section[44..48].copy_from_slice(&(positions.count as u32).to_ne_bytes());
        bytes.extend(section);
    }
    bytes
}

fn program_headers(image: &Image, notes: &Notes, positions: &Positions) -> Vec<u8> {
    const PT_LOAD: u32 = 1;
    const PT_NOTE: u32 = 4;
    let mut bytes = Vec::new();
    let mut push = |kind: u32, flags: u32, numbers: [u64; 6]| {
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
    };
    push(PT_NOTE, 0, [positions.notes, 0, 0, notes.bytes.len() as u64, 0, 4]);
    let mut offset = positions.pages;
    for segment in &image.segments {
        let mapping = &image.mappings[segment.mapping];
        let flags = u32::from(mapping.is_executable)
            | (u32::from(mapping.is_writable) << 1)
            | (u32::from(mapping.is_readable) << 2);
        let length = content_length(segment);
        push(PT_LOAD, flags, [offset, segment.start, 0, length, segment.end - segment.start, page_size()]);
        offset += length;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use object::read::elf::{FileHeader as _, ProgramHeader as _};
    use object::{Endianness, elf};

    use super::*;
    use crate::image::Mapping;
    use crate::memory::Copied;

    fn image(segments: u64) -> Image {
        let mapping = Mapping {
            start: 0x10000,
            end: u64::MAX,
            is_readable: true,
            is_writable: true,
            is_executable: false,
            offset: 0,
            path: Vec::new(),
        };
        let segment = |index: u64| Segment {
            mapping: 0,
            start: 0x10000 + index * page_size(),
            end: 0x10000 + (index + 1) * page_size(),
            has_content: false,
            runs: 0..0,
        };
        Image { mappings: vec![mapping], segments: (0..segments).map(segment).collect(), ..Image::default() }
    }

    #[test]
    fn a_reader_of_elf_finds_all_segments_also_more_than_the_header_can_count() {
        let cancelled = AtomicBool::new(false);
        for count in [3, 65_533, 65_534, 70_000] {
            let (image, notes) = (image(count), Notes { bytes: vec![0; 20], threads: 1 });
            let mut file = Vec::new();
            write(&image, &notes, &mut Copied::new(&[], &cancelled), &mut file).unwrap();
            assert_eq!(file.len() as u64, length(&image, &notes));
            let header = elf::FileHeader64::<Endianness>::parse(&*file).unwrap();
            let endian = header.endian().unwrap();
            let all = header.program_headers(endian, &*file).unwrap();
            assert_eq!(all.len() as u64, count + 1, "{count}");
            assert_eq!(all[1].p_vaddr(endian), 0x10000);
            assert_eq!(all[0].p_filesz(endian), 20);
        }
    }
}
