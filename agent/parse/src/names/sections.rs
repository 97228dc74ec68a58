//! Reads the sections of an ELF file that have names and lines into memory, each group of them within a bound.
//!
//! The file is read with `pread` and never mapped: its container may truncate it meanwhile. Must not depend on: how the
//! sections are searched.

use std::fs::File;
use std::io::{self, Read};

use flate2::read::ZlibDecoder;
use object::elf;

use super::NameBounds;
use crate::StackLossReason;
use crate::elf::{Section, read_at, sections};

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

/// The content of the sections.
#[derive(Debug, Default)]
pub(super) struct NameSections {
    bytes: [Vec<u8>; NAMES.len()],
    /// Why a part was left out: because of its size, or its compression.
    pub loss: Option<StackLossReason>,
}

impl NameSections {
    /// Reads what `file` has of them. An error means that the file could not be read as its section table says.
    pub fn read(file: &File, debug_info: bool, bounds: &NameBounds) -> io::Result<NameSections> {
        let table = sections(file);
        let mut selected: Vec<Option<&Section>> =
            NAMES.iter().map(|name| table.iter().find(|section| is_section(section, name))).collect();
        if !debug_info {
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
        for (bytes, section) in read.bytes.iter_mut().zip(selected) {
            let Some(section) = section else { continue };
            if section.flags & elf::SHF_COMPRESSED.0 == 0 {
                *bytes = read_section(file, section)?;
                continue;
            }
            match unpack(file, section, unpack_limit) {
                Ok(unpacked) => {
                    unpack_limit -= unpacked.len() as u64;
                    *bytes = unpacked;
                }
                Err(_) => read.loss = Some(StackLossReason::DebugInfoPacked),
            }
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

fn read_section(file: &File, section: &Section) -> io::Result<Vec<u8>> {
    read_at(file, section.offset, usize::try_from(section.size).map_err(io::Error::other)?)
}

/// Unpacks an `SHF_COMPRESSED` section (gABI, "Section Compression") of at most `limit` unpacked bytes.
fn unpack(file: &File, section: &Section, limit: u64) -> io::Result<Vec<u8>> {
    let packed = read_section(file, section)?;
    // Elf64_Chdr: type, reserved (u32), size, alignment (u64).
    let (Some(kind), Some(data)) = (packed.get(..4), packed.get(24..)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if kind != u32::to_le_bytes(elf::ELFCOMPRESS_ZLIB.0) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut unpacked = Vec::new();
    ZlibDecoder::new(data).take(limit + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(unpacked) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(debug_info: bool, bounds: NameBounds) -> NameSections {
        NameSections::read(&File::open("/proc/self/exe").unwrap(), debug_info, &bounds).unwrap()
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
        let read = NameSections::read(&File::open("/etc/passwd").unwrap(), true, &NameBounds::LARGE).unwrap();
        assert!(!read.has_symbols() && !read.has_debug_info());
    }
}
