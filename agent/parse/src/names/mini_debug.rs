//! MiniDebugInfo: the symbol table of a stripped program, as an ELF file of its own that is packed by xz into
//! `.gnu_debugdata` (gdb's manual, "MiniDebugInfo"). Fedora's and RHEL's programs have it.

use std::io::{self, Read};

use lzma_rust2::XzReader;
use object::elf;

use super::NameBounds;
use super::sections::{DebugUnits, NameSections};
use crate::StackLossReason;
use crate::elf::{ReadAt, read_at, sections};

/// Bytes of the packed section. That of a program with 50,000 functions has half a megabyte.
const MAX_PACKED: u64 = 16 << 20;

/// The symbols of the packed file. None: `file` has none. An error is the reason why they were left out.
pub(super) fn read(
    file: &(impl ReadAt + ?Sized),
    bounds: &NameBounds,
) -> Option<Result<NameSections, StackLossReason>> {
    let table = sections(file);
    let section = table.iter().find(|section| {
        section.name == b".gnu_debugdata" && section.kind != elf::SHT_NOBITS && section.size > 0
    })?;
    if section.size > MAX_PACKED {
        return Some(Err(StackLossReason::SymbolsTooLarge));
    }
    let size = usize::try_from(section.size).ok()?;
    let unpacked = read_at(file, section.offset, size).and_then(|packed| unpack(&packed, bounds.symbols));
    let symbols = unpacked.and_then(|bytes| NameSections::read(&bytes[..], DebugUnits::None, bounds));
    Some(symbols.map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => StackLossReason::SymbolsTooLarge,
        _ => StackLossReason::MiniDebugInfoDamaged,
    }))
}

/// Unpacks at most `limit` bytes, with as much memory for the dictionary.
fn unpack(packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let memory = u32::try_from(limit >> 10).unwrap_or(u32::MAX);
    let mut unpacked = Vec::new();
    XzReader::new_mem_limit(packed, false, memory).take(limit + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(unpacked) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lzma_rust2::{XzOptions, XzWriter};

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut writer = XzWriter::new(Vec::new(), XzOptions::with_preset(1)).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_packed_unpacks_within_the_bound() {
        let bytes: Vec<u8> = (0..2_u32 << 20).map(|at| (at % 251) as u8).collect();
        assert_eq!(unpack(&packed(&bytes), 8 << 20).unwrap(), bytes);
        assert!(
            unpack(&packed(&bytes), 1 << 20).is_err(),
            "more bytes, or a larger dictionary, than the bound"
        );
    }

    #[test]
    fn damaged_bytes_are_an_error_and_no_panic() {
        let good = packed(&[7; 5000]);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            let _ = unpack(&bad, 1 << 20);
            let _ = unpack(&good[..at], 1 << 20);
        }
        assert!(unpack(b"not packed", 1 << 20).is_err());
    }
}
