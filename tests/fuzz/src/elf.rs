//! Small ELF files around bytes: an input becomes a section, so that the header does not have to be guessed.

use std::fs::File;
use std::io::Write;

use nix::sys::memfd::{MFdFlags, memfd_create};

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Where the first section is loaded.
const BASE: u64 = 0x40_0000;

/// A section of an [`ElfFile`].
#[derive(Clone, Debug)]
pub struct ElfSection {
    pub name: &'static str,
    /// `SHT_*`.
    pub kind: u32,
    /// `SHF_*`.
    pub flags: u64,
    pub bytes: Vec<u8>,
}

impl ElfSection {
    /// `SHT_PROGBITS` without flags.
    pub fn new(name: &'static str, bytes: impl Into<Vec<u8>>) -> ElfSection {
        ElfSection { name, kind: 1, flags: 0, bytes: bytes.into() }
    }

    pub fn kind(self, kind: u32) -> ElfSection {
        ElfSection { kind, ..self }
    }

    pub fn flags(self, flags: u64) -> ElfSection {
        ElfSection { flags, ..self }
    }
}

/// An ELF file of this machine with one segment, which is executable and holds the whole file.
#[derive(Clone, Debug, Default)]
pub struct ElfFile {
    pub sections: Vec<ElfSection>,
    /// The index of the section that the entry point is in.
    pub entry: usize,
}

impl ElfFile {
    pub fn new(sections: impl IntoIterator<Item = ElfSection>) -> ElfFile {
        ElfFile { sections: sections.into_iter().collect(), entry: 0 }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut content = vec![0; HEADER + PROGRAM_HEADER];
        let mut names = vec![0];
        let mut table = vec![0; 64];
        let mut entry = 0;
        for (index, section) in self.sections.iter().enumerate() {
            content.resize(content.len().next_multiple_of(16), 0);
            let offset = content.len() as u64;
            if index == self.entry {
                entry = BASE + offset;
            }
            let is_symbols = matches!(section.kind, 2 | 11);
            let len = section.bytes.len() as u64;
            // Symbols are followed by their strings.
            let link = if is_symbols { index as u32 + 2 } else { 0 };
            let entry_size = if is_symbols { 24 } else { 0 };
            table.extend((names.len() as u32).to_le_bytes());
            table.extend(section.kind.to_le_bytes());
            table.extend(
                [section.flags, BASE + offset, offset, len].iter().flat_map(|word| word.to_le_bytes()),
            );
            table.extend([link, 0].iter().flat_map(|word| word.to_le_bytes()));
            table.extend([16_u64, entry_size].iter().flat_map(|word| word.to_le_bytes()));
            names.extend(section.name.bytes().chain([0]));
            content.extend(&section.bytes);
        }
        let names_at = content.len() as u64;
        let names_len = names.len() as u64 + 10;
        table.extend((names.len() as u32).to_le_bytes());
        table.extend(3_u32.to_le_bytes());
        table.extend([0, 0, names_at, names_len, 0, 1, 0].iter().flat_map(|word: &u64| word.to_le_bytes()));
        content.extend(&names);
        content.extend(b".shstrtab\0");
        content.resize(content.len().next_multiple_of(8), 0);
        let table_at = content.len() as u64;
        content.extend(&table);
        let count = self.sections.len() as u16 + 2;
        let head = header(entry, table_at, count);
        content[..HEADER].copy_from_slice(&head);
        let segment = segment(content.len() as u64);
        content[HEADER..HEADER + PROGRAM_HEADER].copy_from_slice(&segment);
        content
    }

    /// The file, without a name.
    pub fn open(&self) -> File {
        memory_file(&self.bytes())
    }
}

/// `Elf64_Ehdr`.
fn header(entry: u64, table_at: u64, count: u16) -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let mut head = b"\x7fELF\x02\x01\x01".to_vec();
    head.resize(16, 0);
    head.extend([2_u16, machine].iter().flat_map(|half| half.to_le_bytes()));
    head.extend(1_u32.to_le_bytes());
    head.extend([entry, HEADER as u64, table_at].iter().flat_map(|word| word.to_le_bytes()));
    head.extend(0_u32.to_le_bytes());
    let sizes = [HEADER as u16, PROGRAM_HEADER as u16, 1, 64, count, count - 1];
    head.extend(sizes.iter().flat_map(|half| half.to_le_bytes()));
    head
}

/// `Elf64_Phdr`: `PT_LOAD`, readable and executable.
fn segment(len: u64) -> Vec<u8> {
    let mut segment = [1_u32, 5].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    segment.extend([0, BASE, BASE, len, len, 0x1000].iter().flat_map(|word| word.to_le_bytes()));
    segment
}

/// A file in memory, without a name.
pub fn memory_file(bytes: &[u8]) -> File {
    let file = memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).map(File::from).expect("a file in memory");
    let mut writer = &file;
    writer.write_all(bytes).expect("a file in memory");
    file
}
