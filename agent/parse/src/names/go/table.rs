//! Finds the tables of a Go program, and reads their entries.
//!
//! In a position-independent program, the linker leaves base addresses to the loader. They are read from the
//! relocations. Must not depend on: how functions and lines are looked up.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use super::image::FileImage;
use crate::elf::{Section, read_at, sections};

/// The largest table that is read. That of kubelet has 25 MB.
const MAX_TABLE: u64 = 1 << 30;
const MAX_FUNCTIONS: u64 = 8 << 20;
/// Bytes of each section that are searched for the runtime's description of the program, and of relocations.
const MAX_SEARCHED: u64 = 32 << 20;

/// The version of Go that introduced the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableVersion {
    Go116,
    Go118,
    Go120,
}

/// The layout of `runtime._func`: its length without the tables that follow, and the offset of the name. Its last byte
/// is the number of FUNCDATA entries.
pub(super) struct FunctionLayout {
    pub len: usize,
    pub name: usize,
}

impl TableVersion {
    fn from_magic(magic: u32) -> Option<Self> {
        Some(match magic {
            0xffff_fffa => TableVersion::Go116,
            0xffff_fff0 => TableVersion::Go118,
            0xffff_fff1 => TableVersion::Go120,
            _ => return None,
        })
    }

    pub fn function_layout(self) -> FunctionLayout {
        match self {
            TableVersion::Go116 => FunctionLayout { len: 44, name: 8 },
            TableVersion::Go118 => FunctionLayout { len: 40, name: 4 },
            TableVersion::Go120 => FunctionLayout { len: 44, name: 4 },
        }
    }
}

/// The addresses in `runtime.pcHeader`.
#[derive(Debug)]
pub(super) struct GoTable {
    pub version: TableVersion,
    start: u64,
    end: u64,
    /// Bytes of the shortest instruction of the machine.
    pub quantum: u64,
    pub functions: u64,
    /// The base address of functions; 0 before 1.18.
    text: u64,
    pub names: u64,
    units: u64,
    pub files: u64,
    pub pcs: u64,
    pub pcln: u64,
    /// The base address of trees of inlined calls. Without it, no inlined calls are found.
    data: Option<u64>,
}

impl GoTable {
    pub fn find(image: &FileImage<'_>, file: &File) -> Option<Self> {
        let sections = sections(file);
        let names = [&b".gopclntab"[..], b".data.rel.ro.gopclntab"];
        let section = sections.iter().find(|section| names.contains(&&*section.name))?;
        let (start, size) = (section.address, section.size.min(MAX_TABLE));
        let head = image.bytes(start, 72)?;
        let magic = u32::from_le_bytes(head[..4].try_into().ok()?);
        let version = TableVersion::from_magic(magic)?;
        // Two zeros, the instruction quantum, the size of a pointer (8).
        let ([0, 0, quantum @ (1 | 2 | 4), 8], words) = (<[u8; 4]>::try_from(&head[4..8]).ok()?, &head[8..])
        else {
            return None;
        };
        let word =
            |index: usize| Some(u64::from_le_bytes(words.get(index * 8..index * 8 + 8)?.try_into().ok()?));
        let offsets = if version == TableVersion::Go116 { 2 } else { 3 };
        let end = start.checked_add(size)?;
        let inside = |index: usize| start.checked_add(word(offsets + index)?).filter(|&at| at < end);
        let mut table = Self {
            version,
            start,
            end,
            quantum: u64::from(quantum),
            functions: word(0).filter(|count| (1..=MAX_FUNCTIONS).contains(count))?,
            text: if version == TableVersion::Go116 { 0 } else { word(2)? },
            names: inside(0)?,
            units: inside(1)?,
            files: inside(2)?,
            pcs: inside(3)?,
            pcln: inside(4)?,
            data: None,
        };
        table.read_module(image, file, &sections);
        if table.text == 0 && version != TableVersion::Go116 {
            table.text = sections.iter().find(|section| section.name == b".text")?.address;
        }
        Some(table)
    }

    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// The first address of a function, and the offset of its description from [`GoTable::pcln`]. The entry after the
    /// last function is the end of the text.
    pub fn entry(&self, image: &FileImage<'_>, index: u64) -> Option<(u64, u64)> {
        let last = index == self.functions;
        let size = if self.version == TableVersion::Go116 { 8 } else { 4 };
        let at = self.pcln.checked_add(index * 2 * size)?;
        let bytes = image.within(self.range(), at, if last { size } else { 2 * size } as usize)?;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let (address, place) = bytes.split_at(size as usize);
        Some((self.text.checked_add(number(address))?, number(place)))
    }

    /// Reads a text that ends in a zero; at most `max` bytes and one more, so that a longer text is recognised.
    pub fn text(&self, image: &FileImage<'_>, base: u64, offset: u32, max: usize) -> Option<Vec<u8>> {
        let mut stream = image.stream(self.range(), base.checked_add(u64::from(offset))?);
        let mut text = Vec::new();
        while text.len() <= max {
            match stream.byte()? {
                0 => break,
                byte => text.push(byte),
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// The offset in [`GoTable::files`] of the name of a file of a compilation unit.
    pub fn unit_file(&self, image: &FileImage<'_>, unit: u32, number: u32) -> Option<u32> {
        let index = u64::from(unit).checked_add(u64::from(number))?;
        let bytes = image.within(self.range(), self.units.checked_add(index.checked_mul(4)?)?, 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?)).filter(|&offset| offset != u32::MAX)
    }

    /// The address of a function's FUNCDATA of one kind; `tables` is the address where the PCDATA offsets end.
    pub fn data(&self, image: &FileImage<'_>, tables: u64, kind: u32) -> Option<u64> {
        if self.version == TableVersion::Go116 {
            let at = tables.checked_next_multiple_of(8)?.checked_add(u64::from(kind) * 8)?;
            return quad(image, at).filter(|&address| address != 0);
        }
        let offset = image.u32_at(tables.checked_add(u64::from(kind) * 4)?)?;
        self.data?.checked_add(u64::from(offset)).filter(|_| offset != u32::MAX)
    }

    /// Reads a `runtime.inlinedCall`: the offset of the function's name, and the offset of the call in its caller.
    pub fn inlined_call(&self, image: &FileImage<'_>, tree: u64, index: u32) -> Option<(u32, u32)> {
        let (size, name, parent) =
            if self.version == TableVersion::Go120 { (16, 4, 8) } else { (20, 12, 16) };
        let at = tree.checked_add(u64::from(index) * size)?;
        Some((image.u32_at(at.checked_add(name)?)?, image.u32_at(at.checked_add(parent)?)?))
    }

    /// Finds `runtime.firstmoduledata`, which begins with the address of the table, and reads the base addresses from
    /// it.
    fn read_module(&mut self, image: &FileImage<'_>, file: &File, sections: &[Section]) -> Option<()> {
        if self.version == TableVersion::Go116 {
            return None;
        }
        let relocated = relocations(file, sections);
        let pointer = |address: u64| relocated.get(&address).copied().or_else(|| quad(image, address));
        // The next field is a slice of the names.
        let is_module = |&at: &u64| {
            pointer(at) == Some(self.start) && at.checked_add(8).and_then(pointer) == Some(self.names)
        };
        let by_relocation = relocated.iter().filter(|(_, to)| **to == self.start).map(|(&at, _)| at);
        let module = by_relocation.filter(is_module).min().or_else(|| {
            let wanted = [&b".noptrdata"[..], b".data", b".go.module", b".data.rel.ro"];
            sections.iter().filter(|section| wanted.contains(&&*section.name)).find_map(|section| {
                let size = usize::try_from(section.size.min(MAX_SEARCHED)).ok()?;
                let bytes = image.bytes(section.address, size)?;
                let words = bytes.chunks_exact(8).enumerate();
                let own = words.filter(|(_, word)| **word == self.start.to_le_bytes());
                own.filter_map(|(index, _)| section.address.checked_add(index as u64 * 8)).find(is_module)
            })
        })?;
        // moduledata.text and moduledata.gofunc; the latter stands two words further since 1.20 added coverage
        // counters.
        let data = if self.version == TableVersion::Go118 { 304 } else { 320 };
        self.text = pointer(module.checked_add(176)?)?;
        self.data = pointer(module.checked_add(data)?);
        Some(())
    }
}

fn quad(image: &FileImage<'_>, address: u64) -> Option<u64> {
    Some(u64::from_le_bytes(image.bytes(address, 8)?.try_into().ok()?))
}

/// Address → value that the loader writes there, relative to the base address of the program (`R_*_RELATIVE`).
fn relocations(file: &File, sections: &[Section]) -> HashMap<u64, u64> {
    // The number of this relocation on each machine: x86-64, aarch64, riscv64.
    const RELATIVE: [u32; 3] = [8, 1027, 3];
    let mut found = HashMap::new();
    for section in sections.iter().filter(|section| [&b".rela.dyn"[..], b".rela"].contains(&&*section.name)) {
        let size = usize::try_from(section.size.min(MAX_SEARCHED)).unwrap_or(0);
        let Ok(bytes) = read_at(file, section.offset, size) else { continue };
        for entry in bytes.chunks_exact(24) {
            let word =
                |at: usize| entry[at..at + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            if RELATIVE.contains(&((word(8) & 0xffff_ffff) as u32)) {
                found.insert(word(0), word(16));
            }
        }
    }
    found
}
