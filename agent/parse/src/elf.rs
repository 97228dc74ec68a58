//! Reads the parts of an ELF file that describe its layout: segments, build id, section table.
//!
//! It reads a file with `pread`, in pieces of bounded size, and never with mmap: the file belongs to a container, which may
//! truncate it meanwhile, and with a mapping that would cause SIGBUS. Must not depend on: processes, paths, symbols.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use object::LittleEndian as LE;
use object::elf;
use object::read::elf::NoteIterator;
use serde::{Deserialize, Serialize};

/// Sizes of the ELF64 structures (ELF specification, `<elf.h>`).
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const SECTION_HEADER: usize = 64;

/// Program headers that are looked at. Programs have some ten.
const MAX_SEGMENTS: usize = 64;
const MAX_SECTIONS: u64 = 16_384;
/// `.note.gnu.build-id` is 36 bytes; its segment holds a few notes more.
const MAX_NOTES: u64 = 64 << 10;
const MAX_NAMES: u64 = 1 << 20;
/// Bytes of a section's name that are kept. All sections of a file may share one name of a megabyte.
const MAX_SECTION_NAME: usize = 64;

/// Longer reads are compared with the length of the file first.
const UNCHECKED: usize = 64 << 10;

/// Where an ELF file is read from: a file of a container, or bytes that such a file held.
pub trait ReadAt {
    fn size(&self) -> io::Result<u64>;
    /// Fills `bytes` from an offset on.
    fn fill_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn fill_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }
}

impl ReadAt for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn fill_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Reads exactly `len` bytes, which the caller bounds.
pub fn read_at(file: &(impl ReadAt + ?Sized), offset: u64, len: usize) -> io::Result<Vec<u8>> {
    // The length is a claim of the file: a hundred bytes can claim sections of megabytes.
    if len > UNCHECKED && file.size()? < offset.saturating_add(len as u64) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bytes = vec![0; len];
    file.fill_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// A loaded segment: file bytes `offset..offset + size` are at virtual address `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Segment {
    pub offset: u64,
    pub size: u64,
    pub address: u64,
    /// Loaded as executable.
    pub is_code: bool,
}

/// The layout of a file. It is kept for every file that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub segments: Vec<Segment>,
    /// The virtual address of the binary search table of `.eh_frame` (`PT_GNU_EH_FRAME`); 0 if there is none.
    pub eh_frame_hdr: u64,
    /// The GNU build id, usually 20 bytes; empty if there is none.
    pub build_id: Vec<u8>,
}

impl Layout {
    /// The virtual address (as in the symbol table) of a file offset.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        let segment =
            self.segments.iter().find(|s| offset.checked_sub(s.offset).is_some_and(|into| into < s.size))?;
        segment.address.checked_add(offset - segment.offset)
    }

    /// The file offset of a virtual address.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        offset_in(&self.segments, address)
    }
}

/// The file offset of a virtual address, for callers that kept only the segments.
pub fn offset_in(segments: &[Segment], address: u64) -> Option<u64> {
    let segment =
        segments.iter().find(|s| address.checked_sub(s.address).is_some_and(|into| into < s.size))?;
    segment.offset.checked_add(address - segment.address)
}

/// The file header, if the file is ELF, 64-bit and little-endian. All machines that podopsy runs on are (x86-64,
/// aarch64, riscv64).
pub fn header(file: &(impl ReadAt + ?Sized)) -> Option<elf::FileHeader64<LE>> {
    let bytes = read_at(file, 0, HEADER).ok()?;
    let header = *object::pod::from_bytes::<elf::FileHeader64<LE>>(&bytes).ok()?.0;
    let ident = header.e_ident;
    (ident.magic == elf::ELFMAG && ident.class == elf::ELFCLASS64 && ident.data == elf::ELFDATA2LSB)
        .then_some(header)
}

/// Reads the layout. Returns none if [`header`] does; damaged parts are left out.
pub fn layout(file: &File) -> Option<Layout> {
    let header = header(file)?;
    let count = usize::from(header.e_phnum.get(LE)).min(MAX_SEGMENTS);
    if usize::from(header.e_phentsize.get(LE)) != PROGRAM_HEADER {
        return Some(Layout::default());
    }
    let bytes = read_at(file, header.e_phoff.get(LE), count * PROGRAM_HEADER).unwrap_or_default();
    let (headers, _) =
        object::pod::slice_from_bytes::<elf::ProgramHeader64<LE>>(&bytes, bytes.len() / PROGRAM_HEADER)
            .ok()?;
    let mut layout = Layout::default();
    for program in headers {
        match program.p_type.get(LE) {
            elf::PT_LOAD => layout.segments.push(Segment {
                offset: program.p_offset.get(LE),
                size: program.p_filesz.get(LE),
                address: program.p_vaddr.get(LE),
                is_code: program.p_flags.get(LE).0 & elf::PF_X.0 != 0,
            }),
            elf::PT_GNU_EH_FRAME => layout.eh_frame_hdr = program.p_vaddr.get(LE),
            elf::PT_NOTE if layout.build_id.is_empty() => {
                layout.build_id = build_id(file, program).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(layout)
}

fn build_id(file: &File, program: &elf::ProgramHeader64<LE>) -> Option<Vec<u8>> {
    let size = program.p_filesz.get(LE).min(MAX_NOTES);
    let bytes = read_at(file, program.p_offset.get(LE), usize::try_from(size).ok()?).ok()?;
    let notes = NoteIterator::<elf::FileHeader64<LE>>::new(LE, program.p_align.get(LE), &bytes).ok()?;
    notes
        .flatten()
        .find(|note| note.name() == elf::ELF_NOTE_GNU && note.n_type(LE) == elf::NT_GNU_BUILD_ID)
        .map(|note| note.desc())
        // No build id is longer than a SHA-512 sum.
        .filter(|id| (1..=64).contains(&id.len()))
        .map(<[u8]>::to_vec)
}

/// A section's header and name.
#[derive(Clone, Debug)]
pub struct Section {
    pub name: Vec<u8>,
    pub kind: elf::SectionType,
    pub flags: u64,
    pub offset: u64,
    pub size: u64,
    /// Virtual address; 0 if it is not loaded.
    pub address: u64,
}

/// The section table, in order; empty if there is none or if it is damaged.
pub fn sections(file: &(impl ReadAt + ?Sized)) -> Vec<Section> {
    read_sections(file).unwrap_or_default()
}

fn read_sections(file: &(impl ReadAt + ?Sized)) -> Option<Vec<Section>> {
    let header = header(file)?;
    let table = header.e_shoff.get(LE);
    if table == 0 || usize::from(header.e_shentsize.get(LE)) != SECTION_HEADER {
        return None;
    }
    let read = |count: usize| read_at(file, table, count * SECTION_HEADER).ok();
    let first = read(1)?;
    let first = object::pod::from_bytes::<elf::SectionHeader64<LE>>(&first).ok()?.0;
    // Counts that do not fit into 16 bits are in section 0 (ELF specification, "Special Sections").
    let count = match u64::from(header.e_shnum.get(LE)) {
        0 => first.sh_size.get(LE),
        count => count,
    };
    let names = match header.e_shstrndx.get(LE) {
        elf::SHN_XINDEX => first.sh_link.get(LE),
        index => u32::from(index.0),
    };
    let bytes = read(usize::try_from(count.min(MAX_SECTIONS)).ok()?)?;
    let (headers, _) =
        object::pod::slice_from_bytes::<elf::SectionHeader64<LE>>(&bytes, bytes.len() / SECTION_HEADER)
            .ok()?;
    let names = headers.get(usize::try_from(names).ok()?)?;
    let names_size = usize::try_from(names.sh_size.get(LE).min(MAX_NAMES)).ok()?;
    let names = read_at(file, names.sh_offset.get(LE), names_size).ok()?;
    let name = |at: u32| {
        let rest = names.get(usize::try_from(at).ok()?..)?;
        let len = rest.iter().take(MAX_SECTION_NAME).position(|&b| b == 0);
        Some(rest[..len.unwrap_or(rest.len().min(MAX_SECTION_NAME))].to_vec())
    };
    let section = |header: &elf::SectionHeader64<LE>| Section {
        name: name(header.sh_name.get(LE)).unwrap_or_default(),
        kind: header.sh_type.get(LE),
        flags: header.sh_flags.get(LE).0,
        offset: header.sh_offset.get(LE),
        size: header.sh_size.get(LE),
        address: header.sh_addr.get(LE),
    };
    Some(headers.iter().map(section).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_binary_has_a_layout() {
        let file = File::open("/proc/self/exe").unwrap();
        let layout = layout(&file).unwrap();
        assert!(!layout.build_id.is_empty(), "linked without --build-id");
        assert!(layout.segments.len() >= 2);
        assert!(sections(&file).iter().any(|section| section.name == b".symtab"));
        assert_eq!(layout.address_of(u64::MAX), None);
    }
}
