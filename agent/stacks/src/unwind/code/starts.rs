//! Where functions begin in code that nobody describes: at the entry, at symbols, where data points, where code calls.
//!
//! Must not know: what instructions do.

use std::fs::File;

use object::{LittleEndian as LE, elf};

use super::{Gap, amd64, gap_at};
use crate::symbolize::elf::{Section, Segment, header, read_at};

/// Of symbols, relocations and data, each; a static program of musl's has some 100 KiB.
const MAX_BYTES: u64 = 4 << 20;
/// Names of symbols, looked through for a few; node's have 8 MiB.
const MAX_NAMES: u64 = 64 << 20;
/// More functions than this are after our memory.
const MAX_STARTS: usize = 64 << 10;
/// Code, or names, that are looked through at a time.
const PART: u64 = 256 << 10;
/// Described code that is looked through for calls.
const MAX_CODE: u64 = 128 << 20;

/// Where functions begin: each list ascending, and none of it in the other.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Starts {
    /// They are named or called, or another function points there.
    pub sure: Vec<u64>,
    /// Something points there that may be of the same function: to a function, or to a label.
    pub labels: Vec<u64>,
    /// Pointers in code: from where, and where to.
    made: Vec<(u64, u64)>,
}

impl Starts {
    /// A function begins there; false: not in the gaps, or there is no room.
    pub fn call(&mut self, gaps: &[Gap], to: u64) -> bool {
        let is_ours = gap_at(gaps, to).is_some() && self.sure.len() < MAX_STARTS;
        if is_ours {
            self.sure.push(to);
        }
        is_ours
    }

    /// Code points there.
    pub fn point(&mut self, gaps: &[Gap], from: u64, to: u64) {
        if gap_at(gaps, to).is_some() && self.made.len() < MAX_STARTS {
            self.made.push((from, to));
        }
    }

    /// When all are there, so far.
    pub fn in_order(&mut self) {
        sort(&mut self.sure);
        let before = |address| self.sure.partition_point(|start| *start <= address);
        let (labels, others): (Vec<_>, Vec<_>) =
            self.made.iter().partition(|(from, to)| before(*from) == before(*to));
        self.sure.extend(others.into_iter().map(|(_, to)| to));
        self.labels.extend(labels.into_iter().map(|(_, to)| to));
        sort(&mut self.sure);
        sort(&mut self.labels);
        self.labels.retain(|address| self.sure.binary_search(address).is_err());
    }
}

fn sort(list: &mut Vec<u64>) {
    list.sort_unstable();
    list.dedup();
}

/// Names of code that is jumped to with a frame of somebody else's: V8's handlers of bytecodes, GHC's closures. Where such code
/// begins says nothing of the stack, and frame pointers (V8 has them) or no word at all are better.
const JUMPED_TO: [&[u8]; 2] = [b"\0Builtins_", b"\0stg_upd_frame_info"];

/// Whether the file has such names.
pub(super) fn are_jumped_to(file: &File, table: &[Section]) -> bool {
    let names = table.iter().filter(|section| section.kind == elf::SHT_STRTAB);
    names.into_iter().any(|section| {
        (0..section.size.min(MAX_NAMES)).step_by(PART as usize).any(|at| {
            // A name may begin in one part and end in the next.
            let len = (section.size - at).min(PART + 32) as usize;
            let part = section.offset.checked_add(at).and_then(|offset| read_at(file, offset, len).ok());
            part.is_some_and(|part| JUMPED_TO.iter().any(|name| memchr::memmem::find(&part, name).is_some()))
        })
    })
}

/// By what the file says.
pub(super) fn of_file(file: &File, table: &[Section], gaps: &[Gap], starts: &mut Starts) {
    let bytes = |section: &Section| {
        let size = usize::try_from(section.size.min(MAX_BYTES)).unwrap_or(0);
        read_at(file, section.offset, size).unwrap_or_default()
    };
    // Without relocations that say where, addresses lie in the data themselves; small numbers look like those of a
    // program that can be loaded anywhere.
    let is_fixed = header(file).is_some_and(|header| header.e_type.get(LE) == elf::ET_EXEC);
    let is_packed = table.iter().any(|section| section.kind == elf::SHT_RELR);
    for section in table {
        match section.kind {
            elf::SHT_SYMTAB | elf::SHT_DYNSYM => symbols(&bytes(section), |to| {
                starts.call(gaps, to);
            }),
            elf::SHT_RELA => relocations(&bytes(section), |to| {
                starts.call(gaps, to);
            }),
            elf::SHT_PROGBITS | elf::SHT_INIT_ARRAY | elf::SHT_FINI_ARRAY
                if section.flags & elf::SHF_WRITE.0 != 0 && (is_fixed || is_packed) =>
            {
                for word in bytes(section).as_chunks::<8>().0 {
                    let to = u64::from_le_bytes(*word);
                    // A table of labels is made of such words, too.
                    starts.point(gaps, to, to);
                }
            }
            _ => {}
        }
    }
}

fn symbols(bytes: &[u8], mut add: impl FnMut(u64)) {
    // Elf64_Sym: name (u32), info (u8), other (u8), section (u16), value, size (u64).
    for symbol in bytes.as_chunks::<24>().0 {
        let kind = symbol[4] & 15;
        if kind == elf::STT_FUNC.0 || kind == elf::STT_GNU_IFUNC.0 || kind == elf::STT_NOTYPE.0 {
            add(word(symbol, 8));
        }
    }
}

fn relocations(bytes: &[u8], mut add: impl FnMut(u64)) {
    // Elf64_Rela: offset, info (its lower half the type), addend.
    for relocation in bytes.as_chunks::<24>().0 {
        if amd64::IS_ADDRESS.contains(&(word(relocation, 8) as u32)) {
            add(word(relocation, 16));
        }
    }
}

fn word(bytes: &[u8; 24], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

/// By what described code calls, jumps to and points to, as it seems.
pub(super) fn of_code(file: &File, segments: &[Segment], gaps: &[Gap], starts: &mut Starts) {
    let mut left = MAX_CODE;
    for segment in segments.iter().filter(|segment| segment.is_code) {
        let size = segment.size.min(left);
        left -= size;
        for at in (0..size).step_by(PART as usize) {
            // An instruction may begin in one part and end in the next.
            let len = (size - at).min(PART + amd64::LONGEST as u64 - 1) as usize;
            let bytes = segment.offset.checked_add(at).and_then(|offset| read_at(file, offset, len).ok());
            let Some(bytes) = bytes else { break };
            amd64::references(&bytes, segment.address.wrapping_add(at), |from, to, is_pointer| {
                // Undescribed code is followed, and what it calls is known for sure then.
                let is_new = gap_at(gaps, from).is_none();
                if is_new && is_pointer {
                    starts.point(gaps, from, to);
                } else if is_new {
                    starts.call(gaps, to);
                }
            });
        }
    }
}
