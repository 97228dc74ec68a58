//! Reads the sections of an ELF file that have names and lines into memory, each group of them within a bound.
//!
//! A file is read with `pread` and never mapped: its container may truncate it meanwhile. Must not depend on: how the
//! sections are searched.

use std::io::{self, BufReader, Read};

use flate2::bufread::ZlibDecoder;
use object::elf;

use super::NameBounds;
use super::units::{ExcludedUnits, SectionReader, Units};
use crate::StackLossReason;
use crate::elf::{ReadAt, Section, read_at, sections};

/// The sections that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SectionId {
    Symtab,
    Strtab,
    Dynsym,
    Dynstr,
    Info,
    Abbrev,
    Str,
    Line,
    LineStr,
    Ranges,
    RngLists,
    Addr,
    Aranges,
    StrOffsets,
}

/// The names of the sections, in the order of [`SectionId`].
const NAMES: [&[u8]; 14] = [
    b".symtab",
    b".strtab",
    b".dynsym",
    b".dynstr",
    b".debug_info",
    b".debug_abbrev",
    b".debug_str",
    b".debug_line",
    b".debug_line_str",
    b".debug_ranges",
    b".debug_rnglists",
    b".debug_addr",
    b".debug_aranges",
    b".debug_str_offsets",
];
const FIRST_DEBUG: usize = SectionId::Info as usize;
/// Bytes of an `Elf64_Chdr`.
const CHDR: usize = 24;
/// Bytes of a packed section that are read at a time.
const PACKED_BUFFER: usize = 32 << 10;

/// Which debug information is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DebugUnits<'a> {
    None,
    /// The units that may have code at these virtual addresses, which are in order.
    At(&'a [u64]),
    All,
}

/// The content of the sections.
#[derive(Debug, Default)]
pub(super) struct NameSections {
    bytes: [Vec<u8>; NAMES.len()],
    /// Units of debug information that were left out, because no address is in them.
    pub units_left_out: usize,
    /// Why a part was left out: because of its size, or its compression.
    pub loss: Option<StackLossReason>,
}

impl NameSections {
    /// Reads what `file` has of them. An error means that the file could not be read as its section table says.
    pub fn read(
        file: &(impl ReadAt + ?Sized),
        units: DebugUnits<'_>,
        bounds: &NameBounds,
    ) -> io::Result<NameSections> {
        let table = sections(file);
        let mut selected: Vec<Option<&Section>> =
            NAMES.iter().map(|name| table.iter().find(|section| is_section(section, name))).collect();
        if units == DebugUnits::None {
            selected[FIRST_DEBUG..].fill(None);
        }
        let mut read = NameSections::default();
        for (range, limit, reason) in [
            (0..2, bounds.symbols, StackLossReason::SymbolsTooLarge),
            (2..4, bounds.symbols, StackLossReason::SymbolsTooLarge),
            (FIRST_DEBUG..NAMES.len(), bounds.debug_info, StackLossReason::DebugInfoTooLarge),
        ] {
            if total_size(&selected[range.clone()]) > limit {
                selected[range].fill(None);
                read.loss = Some(reason);
            }
        }
        let mut unpack_limit = bounds.debug_info.saturating_sub(total_size(&selected[FIRST_DEBUG..]));
        // Last, because the ranges of the units decide which of them are read.
        let info = selected[FIRST_DEBUG].take();
        for (bytes, section) in read.bytes.iter_mut().zip(selected) {
            let Some(section) = section else { continue };
            match read_section(file, section, &mut unpack_limit) {
                Ok(content) => *bytes = content,
                Err(_) if is_packed(section) => read.loss = Some(StackLossReason::DebugInfoPacked),
                Err(error) => return Err(error),
            }
        }
        let Some(info) = info else { return Ok(read) };
        let excluded = match units {
            DebugUnits::At(addresses) => ExcludedUnits::new(read.get(SectionId::Aranges), addresses),
            DebugUnits::None | DebugUnits::All => ExcludedUnits::default(),
        };
        match read_units(file, info, &mut unpack_limit, &excluded) {
            Ok(units) => {
                (read.bytes[FIRST_DEBUG], read.units_left_out) = (units.bytes, units.left_out);
            }
            Err(_) if is_packed(info) => read.loss = Some(StackLossReason::DebugInfoPacked),
            Err(error) => return Err(error),
        }
        Ok(read)
    }

    pub fn get(&self, id: SectionId) -> &[u8] {
        &self.bytes[id as usize]
    }

    pub fn has_debug_info(&self) -> bool {
        !self.get(SectionId::Info).is_empty() && !self.get(SectionId::Abbrev).is_empty()
    }

    pub fn has_symbols(&self) -> bool {
        !self.get(SectionId::Symtab).is_empty() || !self.get(SectionId::Dynsym).is_empty()
    }
}

fn total_size(sections: &[Option<&Section>]) -> u64 {
    sections.iter().flatten().fold(0_u64, |sum, section| sum.saturating_add(section.size))
}

fn is_section(section: &Section, name: &[u8]) -> bool {
    section.name == name && section.kind != elf::SHT_NOBITS && section.size > 0
}

/// Whether it is compressed (gABI, "Section Compression").
fn is_packed(section: &Section) -> bool {
    section.flags & elf::SHF_COMPRESSED.0 != 0
}

/// Reads a section. What it unpacks to is taken from `unpack_limit`.
fn read_section(
    file: &(impl ReadAt + ?Sized),
    section: &Section,
    unpack_limit: &mut u64,
) -> io::Result<Vec<u8>> {
    let mut section = SectionBytes::open(file, section, unpack_limit)?;
    let mut bytes = vec![0; section.size];
    section.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_units(
    file: &(impl ReadAt + ?Sized),
    info: &Section,
    unpack_limit: &mut u64,
    excluded: &ExcludedUnits,
) -> io::Result<Units> {
    let mut section = SectionBytes::open(file, info, unpack_limit)?;
    let size = section.size;
    Units::read(&mut section, size, excluded)
}

/// Reads a range of a file.
struct FilePart<'a, F: ?Sized> {
    file: &'a F,
    at: u64,
    end: u64,
}

impl<F: ReadAt + ?Sized> Read for FilePart<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = into.len().min(left);
        self.file.fill_at(&mut into[..len], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// The bytes of a section, unpacked.
struct SectionBytes<'a, F: ?Sized> {
    size: usize,
    source: SectionSource<'a, F>,
}

enum SectionSource<'a, F: ?Sized> {
    Plain(FilePart<'a, F>),
    Packed(Box<ZlibDecoder<BufReader<FilePart<'a, F>>>>),
}

impl<'a, F: ReadAt + ?Sized> SectionBytes<'a, F> {
    fn open(file: &'a F, section: &Section, unpack_limit: &mut u64) -> io::Result<Self> {
        let end = section.offset.saturating_add(section.size);
        if file.size()? < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let part = |at| FilePart { file, at, end };
        let size = |size| usize::try_from(size).map_err(io::Error::other);
        if !is_packed(section) {
            return Ok(SectionBytes {
                size: size(section.size)?,
                source: SectionSource::Plain(part(section.offset)),
            });
        }
        let header = read_at(file, section.offset, CHDR)?;
        // Elf64_Chdr: type, reserved (u32), size, alignment (u64).
        let number = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes);
        if header[..4] != u32::to_le_bytes(elf::ELFCOMPRESS_ZLIB.0) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let unpacked = number(8).map_err(io::Error::other)?;
        *unpack_limit = unpack_limit.checked_sub(unpacked).ok_or(io::ErrorKind::FileTooLarge)?;
        let packed = BufReader::with_capacity(PACKED_BUFFER, part(section.offset + CHDR as u64));
        let source = SectionSource::Packed(Box::new(ZlibDecoder::new(packed)));
        Ok(SectionBytes { size: size(unpacked)?, source })
    }
}

impl<F: ReadAt + ?Sized> Read for SectionBytes<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.source {
            SectionSource::Plain(part) => part.read(into),
            SectionSource::Packed(unpacked) => unpacked.read(into),
        }
    }
}

impl<F: ReadAt + ?Sized> SectionReader for SectionBytes<'_, F> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.source {
            SectionSource::Plain(part) => part.at = part.at.saturating_add(bytes),
            SectionSource::Packed(unpacked) => {
                if io::copy(&mut unpacked.take(bytes), &mut io::sink())? < bytes {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn own(debug_info: bool, bounds: NameBounds) -> NameSections {
        let units = if debug_info { DebugUnits::All } else { DebugUnits::None };
        NameSections::read(&File::open("/proc/self/exe").unwrap(), units, &bounds).unwrap()
    }

    #[test]
    fn what_is_too_large_is_left_out_and_named() {
        let all = own(true, NameBounds::LARGE);
        assert!(all.has_symbols() && all.has_debug_info(), "{:?}", all.loss);
        let few = own(true, NameBounds { debug_info: 1000, ..NameBounds::LARGE });
        assert!(few.has_symbols() && !few.has_debug_info());
        assert_eq!(few.loss, Some(StackLossReason::DebugInfoTooLarge));
        let none = own(false, NameBounds { symbols: 1000, ..NameBounds::LARGE });
        assert!(!none.has_symbols() && none.loss == Some(StackLossReason::SymbolsTooLarge));
    }

    #[test]
    fn a_file_that_is_not_elf_has_no_sections() {
        let file = File::open("/etc/passwd").unwrap();
        let read = NameSections::read(&file, DebugUnits::All, &NameBounds::LARGE).unwrap();
        assert!(!read.has_symbols() && !read.has_debug_info());
    }
}
