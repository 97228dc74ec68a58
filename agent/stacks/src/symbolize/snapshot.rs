//! A private copy of a file's symbols, that the symbolizing library can be trusted with.
//!
//! Must not know: processes, blazesym.
//!
//! Why a copy, when the file is held open? blazesym maps what it reads, and the file belongs to a container: truncating
//! it would kill us with SIGBUS. It also follows `.gnu_debuglink`, `.gnu_debugaltlink` and `.debug_sup` to whatever
//! absolute path they name, as root: a FIFO that never answers, or /dev/watchdog. So the sections that hold symbols,
//! and no others, are laid out anew in a memfd, under names from [`SECTIONS`] and not from the file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use flate2::read::ZlibDecoder;
use nix::sys::memfd::{MFdFlags, memfd_create};
use object::elf;

use super::elf::{HEADER, SECTION_HEADER, Section, header, read_at, sections};

/// Everything that blazesym reads for names and lines, symbols first.
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

/// Bytes of symbol tables, and of debug information, that one file may cost us in memory.
const MAX_SYMBOLS: u64 = 96 << 20;
const MAX_DEBUG: u64 = 128 << 20;
const PIECE: usize = 1 << 20;

/// A file's symbols in memory.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// An ELF file without segments: look up by virtual address.
    pub memory: File,
    pub bytes: u64,
    pub has_debug_info: bool,
    /// What was left out because of its size or its nesting.
    pub lost: Option<&'static str>,
}

/// Who wrote a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Author {
    /// Perhaps an attacker.
    Container,
    /// Root, below the host's folder of debug files: how deep it nests is not asked, which takes as long as to read it.
    Host,
}

/// Copies the symbols of `file`; none when it has none.
pub(super) fn take(file: &File, author: Author) -> io::Result<Option<Snapshot>> {
    let Some(original) = header(file) else { return Ok(None) };
    let table = sections(file);
    let mut lost = None;
    let mut kept: Vec<Option<&Section>> =
        SECTIONS.iter().map(|name| table.iter().find(|section| wanted(section, name))).collect();
    let size = |kept: &[Option<&Section>]| {
        kept.iter().flatten().fold(0_u64, |sum, section| sum.saturating_add(section.size))
    };
    if size(&kept[..2]) > MAX_SYMBOLS {
        kept[..2].fill(None);
        lost = Some("symbols_too_large");
    }
    if size(&kept[2..4]) > MAX_SYMBOLS {
        kept[2..4].fill(None);
        lost = Some("symbols_too_large");
    }
    if size(&kept[4..]) > MAX_DEBUG {
        kept[4..].fill(None);
        lost = Some("debug_info_too_large");
    }
    // Compressed sections tell their size only when unpacked: they get what is left.
    let mut room = MAX_DEBUG.saturating_sub(size(&kept[4..]));

    let mut out = Layouter::new()?;
    for (name, section) in SECTIONS.iter().zip(&kept) {
        let Some(section) = section else { continue };
        if section.flags & elf::SHF_COMPRESSED.0 != 0 {
            match unpack(file, section, room) {
                Ok(data) => {
                    room -= data.len() as u64;
                    out.add(name, |to| to.write_all(&data))?;
                }
                Err(_) => lost = Some("debug_info_packed"),
            }
        } else {
            out.add(name, |to| copy(file, section, to))?;
        }
    }
    let has = |name| out.sections.iter().any(|section| section.name == name);
    if !has(".symtab") && !has(".dynsym") && !has(".debug_info") {
        return Ok(None);
    }
    let mut has_debug_info = has(".debug_info") && has(".debug_abbrev");
    if has_debug_info
        && author == Author::Container
        && !super::depth::is_sane(&out.read(".debug_info")?, &out.read(".debug_abbrev")?)
    {
        has_debug_info = false;
        lost = Some("debug_info_too_deep");
    }
    let (memory, bytes) = out.finish(&original)?;
    Ok(Some(Snapshot { memory, bytes, has_debug_info, lost }))
}

fn wanted(section: &Section, name: &str) -> bool {
    section.name == name.as_bytes() && section.kind != elf::SHT_NOBITS && section.size > 0
}

fn copy(file: &File, section: &Section, to: &mut impl Write) -> io::Result<()> {
    let (mut at, mut left) = (section.offset, section.size);
    while left > 0 {
        let piece = read_at(file, at, usize::try_from(left).unwrap_or(PIECE).min(PIECE))?;
        to.write_all(&piece)?;
        at += piece.len() as u64;
        left -= piece.len() as u64;
    }
    Ok(())
}

/// An `SHF_COMPRESSED` section (gABI, "Section Compression") of at most `room` bytes when unpacked.
fn unpack(file: &File, section: &Section, room: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(section.size).map_err(io::Error::other)?;
    let packed = read_at(file, section.offset, size)?;
    // Elf64_Chdr: type, reserved (u32), size, alignment (u64).
    let (Some(kind), Some(data)) = (packed.get(..4), packed.get(24..)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if kind != u32::to_le_bytes(elf::ELFCOMPRESS_ZLIB.0) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut data_out = Vec::new();
    ZlibDecoder::new(data).take(room + 1).read_to_end(&mut data_out)?;
    if data_out.len() as u64 > room { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(data_out) }
}

struct Placed {
    name: &'static str,
    offset: u64,
    size: u64,
}

/// Writes an ELF file: header, sections, their names, their table.
struct Layouter {
    memory: File,
    at: u64,
    sections: Vec<Placed>,
}

impl Layouter {
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
        // blazesym reads arrays of structures in place.
        self.align()?;
        let offset = self.at;
        content(self)?;
        self.sections.push(Placed { name, offset, size: self.at - offset });
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
        // Its size is known only now that its own name is in it: sh_size is at 32 in the last entry.
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

impl Write for Layouter {
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
    fn only_sections_of_ours_are_in_the_copy() {
        let snapshot = take(&File::open("/proc/self/exe").unwrap(), Author::Container).unwrap().unwrap();
        assert!(snapshot.has_debug_info, "{:?}", snapshot.lost);
        let names: Vec<_> =
            sections(&snapshot.memory).into_iter().skip(1).map(|section| section.name).collect();
        assert!(names.contains(&b".symtab".to_vec()) && names.contains(&b".debug_line".to_vec()));
        assert!(
            names
                .iter()
                .all(|name| name == b".shstrtab" || SECTIONS.iter().any(|ours| ours.as_bytes() == name))
        );
    }

    #[test]
    fn what_is_no_elf_file_has_no_symbols() {
        assert!(take(&File::open("/etc/passwd").unwrap(), Author::Container).unwrap().is_none());
    }
}
