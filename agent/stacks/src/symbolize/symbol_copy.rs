//! Makes a private copy of a file's symbols that is safe to give to blazesym.
//!
//! The file is held open, but it cannot be given to blazesym directly, for two reasons. blazesym maps what it reads,
//! and a container that truncates its file would kill podopsy with SIGBUS. blazesym also follows `.gnu_debuglink`,
//! `.gnu_debugaltlink` and `.debug_sup` to any absolute path, as root: that can be a FIFO that never answers, or
//! /dev/watchdog. So only the sections with symbols are written into an ELF file in a memfd, with names from
//! [`SECTIONS`] and not from the file.
//!
//! Must not depend on: processes, blazesym.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use flate2::read::ZlibDecoder;
use nix::sys::memfd::{MFdFlags, memfd_create};
use object::elf;

use super::elf::{HEADER, SECTION_HEADER, Section, header, read_at, sections};
use crate::StackLossReason;

/// The sections that blazesym reads for names and lines: two tables of symbols with their strings, then debug
/// information.
const SECTIONS: [&str; 14] = [
    ".symtab",
    ".strtab",
    ".dynsym",
    ".dynstr",
    ".debug_info",
    ".debug_abbrev",
    ".debug_str",
    ".debug_line",
    ".debug_line_str",
    ".debug_ranges",
    ".debug_rnglists",
    ".debug_addr",
    ".debug_aranges",
    ".debug_str_offsets",
];

/// Bytes of each symbol table with its strings, and of debug information, that are copied of one file.
const MAX_SYMBOLS: u64 = 96 << 20;
const MAX_DEBUG: u64 = 128 << 20;
/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// The symbols of a file in memory.
#[derive(Debug)]
pub(super) struct SymbolCopy {
    /// An ELF file without segments: look up by virtual address.
    pub memory: File,
    pub bytes: u64,
    pub has_debug_info: bool,
    /// Why a part was left out: because of its size, its compression or its nesting.
    pub loss: Option<StackLossReason>,
}

/// The author of a file, which decides how far it is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileAuthor {
    /// Possibly an attacker.
    Container,
    /// Root, in the host's folder of debug files. Its nesting is not checked, which would take as long as reading it.
    Host,
}

/// Copies the symbols of `file`. Returns none if it has none.
pub(super) fn copy_symbols(file: &File, author: FileAuthor) -> io::Result<Option<SymbolCopy>> {
    let Some(original) = header(file) else { return Ok(None) };
    let table = sections(file);
    let Selection { sections: selected, mut unpack_limit, mut loss } = Selection::from_table(&table);
    let mut out = ElfWriter::new()?;
    for (name, section) in SECTIONS.iter().zip(&selected) {
        let Some(section) = section else { continue };
        if section.flags & elf::SHF_COMPRESSED.0 != 0 {
            match unpack(file, section, unpack_limit) {
                Ok(data) => {
                    unpack_limit -= data.len() as u64;
                    out.add(name, |to| to.write_all(&data))?;
                }
                Err(_) => loss = Some(StackLossReason::DebugInfoPacked),
            }
        } else {
            out.add(name, |to| copy_section(file, section, to))?;
        }
    }
    let has = |name| out.sections.iter().any(|section| section.name == name);
    if !has(".symtab") && !has(".dynsym") && !has(".debug_info") {
        return Ok(None);
    }
    let mut has_debug_info = has(".debug_info") && has(".debug_abbrev");
    if has_debug_info
        && author == FileAuthor::Container
        && !super::depth::is_sane(&out.read(".debug_info")?, &out.read(".debug_abbrev")?)
    {
        has_debug_info = false;
        loss = Some(StackLossReason::DebugInfoTooDeep);
    }
    let (memory, bytes) = out.finish(&original)?;
    Ok(Some(SymbolCopy { memory, bytes, has_debug_info, loss }))
}

/// The sections to copy.
struct Selection<'a> {
    /// In the order of [`SECTIONS`]; none if the file lacks a section or it is too large.
    sections: Vec<Option<&'a Section>>,
    /// Bytes that compressed sections may take, all together. Their size is known only when they are unpacked.
    unpack_limit: u64,
    loss: Option<StackLossReason>,
}

impl<'a> Selection<'a> {
    fn from_table(table: &'a [Section]) -> Self {
        let find = |name: &&str| table.iter().find(|section| is_section(section, name));
        let mut sections: Vec<Option<&Section>> = SECTIONS.iter().map(find).collect();
        let mut loss = None;
        for (range, limit, reason) in [
            (0..2, MAX_SYMBOLS, StackLossReason::SymbolsTooLarge),
            (2..4, MAX_SYMBOLS, StackLossReason::SymbolsTooLarge),
            (4..SECTIONS.len(), MAX_DEBUG, StackLossReason::DebugInfoTooLarge),
        ] {
            let group = &mut sections[range];
            if total_size(group) > limit {
                group.fill(None);
                loss = Some(reason);
            }
        }
        let unpack_limit = MAX_DEBUG.saturating_sub(total_size(&sections[4..]));
        Self { sections, unpack_limit, loss }
    }
}

fn total_size(sections: &[Option<&Section>]) -> u64 {
    sections.iter().flatten().fold(0_u64, |sum, section| sum.saturating_add(section.size))
}

fn is_section(section: &Section, name: &str) -> bool {
    section.name == name.as_bytes() && section.kind != elf::SHT_NOBITS && section.size > 0
}

fn copy_section(file: &File, section: &Section, to: &mut impl Write) -> io::Result<()> {
    let (mut at, mut left) = (section.offset, section.size);
    while left > 0 {
        let piece = read_at(file, at, usize::try_from(left).unwrap_or(PIECE).min(PIECE))?;
        to.write_all(&piece)?;
        at += piece.len() as u64;
        left -= piece.len() as u64;
    }
    Ok(())
}

/// Unpacks an `SHF_COMPRESSED` section (gABI, "Section Compression") of at most `limit` unpacked bytes.
fn unpack(file: &File, section: &Section, limit: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(section.size).map_err(io::Error::other)?;
    let packed = read_at(file, section.offset, size)?;
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

/// A section in the copy.
struct WrittenSection {
    name: &'static str,
    offset: u64,
    size: u64,
}

/// Writes an ELF file into a memfd: header, sections, section names, section table.
struct ElfWriter {
    memory: File,
    at: u64,
    sections: Vec<WrittenSection>,
}

impl ElfWriter {
    fn new() -> io::Result<Self> {
        let memory = File::from(memfd_create("podopsy-symbols", MFdFlags::MFD_CLOEXEC)?);
        let mut out = Self { memory, at: 0, sections: Vec::new() };
        out.write_all(&[0; HEADER])?;
        Ok(out)
    }

    fn add(
        &mut self,
        name: &'static str,
        content: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        // blazesym reads arrays of structures in place, which must be aligned.
        self.align()?;
        let offset = self.at;
        content(self)?;
        self.sections.push(WrittenSection { name, offset, size: self.at - offset });
        Ok(())
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = (16 - self.at % 16) % 16;
        self.write_all(&[0; 16][..usize::try_from(padding).unwrap_or(0)])
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let Some(section) = self.sections.iter().find(|section| section.name == name) else {
            return Ok(Vec::new());
        };
        read_at(&self.memory, section.offset, usize::try_from(section.size).map_err(io::Error::other)?)
    }

    fn finish(mut self, original: &elf::FileHeader64<object::LittleEndian>) -> io::Result<(File, u64)> {
        let mut names = vec![0_u8];
        let mut table = vec![0_u8; SECTION_HEADER];
        let mut entry = |name: &str, offset: u64, size: u64, table: &mut Vec<u8>| {
            let (kind, entry_size) = match name {
                ".symtab" => (elf::SHT_SYMTAB, 24_u64),
                ".dynsym" => (elf::SHT_DYNSYM, 24),
                ".strtab" | ".dynstr" | ".shstrtab" => (elf::SHT_STRTAB, 0),
                _ => (elf::SHT_PROGBITS, 0),
            };
            // Elf64_Shdr: name, type, flags, addr, offset, size, link, info, addralign, entsize.
            table.extend(u32::try_from(names.len()).unwrap_or(0).to_le_bytes());
            table.extend(kind.0.to_le_bytes());
            for word in [0, 0, offset, size, 0, 1, entry_size] {
                table.extend(word.to_le_bytes());
            }
            names.extend(name.as_bytes());
            names.push(0);
        };
        for section in &self.sections {
            entry(section.name, section.offset, section.size, &mut table);
        }
        let names_at = self.at;
        entry(".shstrtab", names_at, 0, &mut table);
        // The size of .shstrtab is known only now, with its own name in it. sh_size is at offset 32 of the last entry.
        let size_at = table.len() - SECTION_HEADER + 32;
        table[size_at..size_at + 8].copy_from_slice(&(names.len() as u64).to_le_bytes());
        self.write_all(&names)?;
        self.align()?;
        let table_at = self.at;
        self.write_all(&table)?;

        let count = u16::try_from(table.len() / SECTION_HEADER).unwrap_or(0);
        let mut head = object::pod::bytes_of(original).to_vec();
        // Elf64_Ehdr: phoff at 32, shoff at 40, then from 54: phentsize, phnum, shentsize, shnum, shstrndx.
        head[32..40].fill(0);
        head[40..48].copy_from_slice(&table_at.to_le_bytes());
        head[54..58].fill(0);
        head[58..60].copy_from_slice(&(SECTION_HEADER as u16).to_le_bytes());
        head[60..62].copy_from_slice(&count.to_le_bytes());
        head[62..64].copy_from_slice(&(count - 1).to_le_bytes());
        self.memory.write_all_at(&head, 0)?;
        Ok((self.memory, self.at))
    }
}

impl Write for ElfWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.memory.write(bytes)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_has_only_listed_sections() {
        let copy =
            copy_symbols(&File::open("/proc/self/exe").unwrap(), FileAuthor::Container).unwrap().unwrap();
        assert!(copy.has_debug_info, "{:?}", copy.loss);
        let names: Vec<_> = sections(&copy.memory).into_iter().skip(1).map(|section| section.name).collect();
        assert!(names.contains(&b".symtab".to_vec()) && names.contains(&b".debug_line".to_vec()));
        assert!(
            names
                .iter()
                .all(|name| name == b".shstrtab" || SECTIONS.iter().any(|ours| ours.as_bytes() == name))
        );
    }

    #[test]
    fn a_file_that_is_not_elf_has_no_symbols() {
        assert!(copy_symbols(&File::open("/etc/passwd").unwrap(), FileAuthor::Container).unwrap().is_none());
    }
}
