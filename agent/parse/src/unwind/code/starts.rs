//! Finds the starts of functions in undescribed code: the entry, symbols, and what data and other code point to or call.
//!
//! Must not depend on: the effects of instructions.

use std::fs::File;

use object::{LittleEndian as LE, elf};

use super::amd64::Reference;
use super::{CodeGap, amd64, gap_at};
use crate::elf::{Section, Segment, header, read_at};

/// Smaller gaps are padding, or what is left of it.
const MIN_FIRST: u64 = 16;
/// Bytes of each section of symbols, relocations or data. A program that is linked statically with musl has some 100 KiB.
const MAX_BYTES: u64 = 4 << 20;
/// Bytes of symbol names that are searched. node has 8 MiB.
const MAX_NAMES: u64 = 64 << 20;
/// Starts of one file. A file with more is made to use up memory.
const MAX_STARTS: usize = 64 << 10;
/// Bytes of code or names that are searched at a time.
const CHUNK: u64 = 256 << 10;
/// Bytes of described code that are searched for calls.
const MAX_CODE: u64 = 128 << 20;

/// Addresses where functions begin. Each list is ascending, and no address is in both.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct FunctionStarts {
    /// Addresses that are named or called, or that another function points to.
    pub sure: Vec<u64>,
    /// Addresses that may be a function or a label, because the pointer to them may lie in the same function.
    pub labels: Vec<u64>,
    /// Pointers in code that are not sorted into the two lists yet: their place, and their target.
    pointers: Vec<(u64, u64)>,
    /// The file is loaded at a fixed address (`ET_EXEC`), so that numbers in its code and data may be addresses.
    is_fixed: bool,
}

impl FunctionStarts {
    pub fn new(file: &File) -> FunctionStarts {
        let is_fixed = header(file).is_some_and(|header| header.e_type.get(LE) == elf::ET_EXEC);
        FunctionStarts { is_fixed, ..FunctionStarts::default() }
    }

    /// Adds an address where a function surely begins. False if it lies in no gap, or if there are too many.
    pub fn add_sure(&mut self, gaps: &[CodeGap], to: u64) -> bool {
        let is_added = gap_at(gaps, to).is_some() && self.sure.len() < MAX_STARTS;
        if is_added {
            self.sure.push(to);
        }
        is_added
    }

    /// Adds the target of a pointer at `from`.
    pub fn add_pointer(&mut self, gaps: &[CodeGap], from: u64, to: u64) {
        if gap_at(gaps, to).is_some() && self.pointers.len() < MAX_STARTS {
            self.pointers.push((from, to));
        }
    }

    /// Adds a number at `from` that may be an address: only in a file that is loaded at a fixed one, and only where a function
    /// may begin.
    pub fn add_number(&mut self, gaps: &[CodeGap], from: u64, to: u64) {
        if self.is_fixed
            && let Some(gap) = gap_at(gaps, to).map(|index| &gaps[index])
            && amd64::may_begin_at(&gap.bytes, (to - gap.address) as usize)
        {
            self.add_pointer(gaps, from, to);
        }
    }

    /// Adds the first code of each gap: behind a described function and padding, another function begins, if it is no data.
    pub fn add_first_of_gaps(&mut self, gaps: &[CodeGap]) {
        for gap in gaps.iter().filter(|gap| gap.bytes.len() as u64 >= MIN_FIRST) {
            let first = amd64::after_padding(&gap.bytes) as u64;
            if self.labels.len() < MAX_STARTS && first < gap.bytes.len() as u64 {
                self.labels.push(gap.address + first);
            }
        }
    }

    /// Sorts the lists, and the pointers into them: a pointer from within the same function leads to a label.
    pub fn sort(&mut self) {
        sort_unique(&mut self.sure);
        let before = |address| self.sure.partition_point(|start| *start <= address);
        let (labels, others): (Vec<_>, Vec<_>) =
            self.pointers.iter().partition(|(from, to)| before(*from) == before(*to));
        self.sure.extend(others.into_iter().map(|(_, to)| to));
        self.labels.extend(labels.into_iter().map(|(_, to)| to));
        sort_unique(&mut self.sure);
        sort_unique(&mut self.labels);
        self.labels.retain(|address| self.sure.binary_search(address).is_err());
    }
}

fn sort_unique(list: &mut Vec<u64>) {
    list.sort_unstable();
    list.dedup();
}

/// Names that mark code which is jumped to with the frame of other code on the stack: V8's bytecode handlers, GHC's
/// closures. At the start of such code the stack is not known. Frame pointers (V8 has them) or no rule are better.
const JUMPED_TO: [&[u8]; 2] = [b"\0Builtins_", b"\0stg_upd_frame_info"];

/// True if the file has names of [`JUMPED_TO`].
pub(super) fn has_jumped_to_code(file: &File, table: &[Section]) -> bool {
    let names = table.iter().filter(|section| section.kind == elf::SHT_STRTAB);
    names.into_iter().any(|section| {
        (0..section.size.min(MAX_NAMES)).step_by(CHUNK as usize).any(|at| {
            // A name may begin in one chunk and end in the next.
            let len = (section.size - at).min(CHUNK + 32) as usize;
            let chunk = section.offset.checked_add(at).and_then(|offset| read_at(file, offset, len).ok());
            chunk.is_some_and(|chunk| {
                JUMPED_TO.iter().any(|name| memchr::memmem::find(&chunk, name).is_some())
            })
        })
    })
}

/// Adds the starts that relocations and data name.
pub(super) fn add_from_file(file: &File, table: &[Section], gaps: &[CodeGap], starts: &mut FunctionStarts) {
    let bytes = |section: &Section| {
        let size = usize::try_from(section.size.min(MAX_BYTES)).unwrap_or(0);
        read_at(file, section.offset, size).unwrap_or_default()
    };
    // In these files the data itself holds addresses, and no relocation gives their places. In other programs that can be
    // loaded anywhere, small numbers would look like addresses.
    let is_fixed = starts.is_fixed;
    let is_packed = table.iter().any(|section| section.kind == elf::SHT_RELR);
    for section in table {
        match section.kind {
            elf::SHT_RELA => relocations(&bytes(section), |to| {
                starts.add_sure(gaps, to);
            }),
            elf::SHT_PROGBITS | elf::SHT_INIT_ARRAY | elf::SHT_FINI_ARRAY
                if section.flags & elf::SHF_WRITE.0 != 0 && (is_fixed || is_packed) =>
            {
                for word in bytes(section).as_chunks::<8>().0 {
                    let to = u64::from_le_bytes(*word);
                    // The word may also belong to a table of labels.
                    starts.add_pointer(gaps, to, to);
                }
            }
            // Read-only tables: of functions, and the labels of `switch` statements.
            elf::SHT_PROGBITS
                if is_fixed
                    && section.flags & elf::SHF_ALLOC.0 != 0
                    && section.flags & elf::SHF_EXECINSTR.0 == 0 =>
            {
                for word in bytes(section).as_chunks::<8>().0 {
                    let to = u64::from_le_bytes(*word);
                    starts.add_number(gaps, to, to);
                }
            }
            _ => {}
        }
    }
}

/// Adds the starts that symbols name.
pub(super) fn add_from_symbols(
    file: &File,
    table: &[Section],
    gaps: &[CodeGap],
    starts: &mut FunctionStarts,
) {
    let is_symbols = |section: &&Section| [elf::SHT_SYMTAB, elf::SHT_DYNSYM].contains(&section.kind);
    for section in table.iter().filter(is_symbols) {
        let size = usize::try_from(section.size.min(MAX_BYTES)).unwrap_or(0);
        symbols(&read_at(file, section.offset, size).unwrap_or_default(), |to| {
            starts.add_sure(gaps, to);
        });
    }
}

fn symbols(bytes: &[u8], mut add: impl FnMut(u64)) {
    // Elf64_Sym: name (u32), info (u8), other (u8), section (u16), value, size (u64).
    for symbol in bytes.as_chunks::<24>().0 {
        let kind = symbol[4] & 15;
        if kind == elf::STT_FUNC.0 || kind == elf::STT_GNU_IFUNC.0 || kind == elf::STT_NOTYPE.0 {
            add(u64_at(symbol, 8));
        }
    }
}

fn relocations(bytes: &[u8], mut add: impl FnMut(u64)) {
    // Elf64_Rela: offset, info (the type is its lower half), addend.
    for relocation in bytes.as_chunks::<24>().0 {
        if amd64::ADDRESS_RELOCATIONS.contains(&(u64_at(relocation, 8) as u32)) {
            add(u64_at(relocation, 16));
        }
    }
}

fn u64_at(bytes: &[u8; 24], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

/// Adds the starts that described code seems to call, jump to or point to.
pub(super) fn add_from_code(
    file: &File,
    segments: &[Segment],
    gaps: &[CodeGap],
    starts: &mut FunctionStarts,
) {
    let mut left = MAX_CODE;
    for segment in segments.iter().filter(|segment| segment.is_code) {
        let size = segment.size.min(left);
        left -= size;
        for at in (0..size).step_by(CHUNK as usize) {
            // An instruction may begin in one chunk and end in the next.
            let len = (size - at).min(CHUNK + amd64::LONGEST_REFERENCE as u64 - 1) as usize;
            let bytes = segment.offset.checked_add(at).and_then(|offset| read_at(file, offset, len).ok());
            let Some(bytes) = bytes else { break };
            let begin = segment.address.wrapping_add(at);
            let is_fixed = starts.is_fixed;
            let found = |from, to, reference| add_reference(gaps, starts, (from, to), reference);
            match is_fixed {
                true => amd64::find_references::<true>(&bytes, begin, found),
                false => amd64::find_references::<false>(&bytes, begin, found),
            }
        }
    }
}

/// Adds what described code refers to. Undescribed code is followed later, which finds its calls for sure.
fn add_reference(
    gaps: &[CodeGap],
    starts: &mut FunctionStarts,
    (from, to): (u64, u64),
    reference: Reference,
) {
    if gap_at(gaps, to).is_none() || gap_at(gaps, from).is_some() {
        return;
    }
    match reference {
        Reference::Leads => _ = starts.add_sure(gaps, to),
        Reference::Points => starts.add_pointer(gaps, from, to),
        Reference::Number => starts.add_number(gaps, from, to),
    }
}
