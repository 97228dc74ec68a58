//! Finds where the function at an address begins, for functions without a name: by the search table of `.eh_frame_hdr` (LSB,
//! "Exception Frame Header"), which stripped programs have.
//!
//! Must not depend on: symbols.

use std::io;

use addr2line::gimli::{
    BaseAddresses, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, ParsedEhFrameHdr, UnwindSection,
};
use object::elf;

use crate::elf::{ReadAt, Section, read_at, sections};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The two sections of a file, in memory.
pub(super) struct FunctionTable {
    header: Vec<u8>,
    frames: Vec<u8>,
    bases: BaseAddresses,
}

impl FunctionTable {
    /// None: the file has no such table, or it has more than `limit` bytes.
    pub fn read(file: &(impl ReadAt + ?Sized), limit: u64) -> Option<FunctionTable> {
        let table = sections(file);
        let find = |name: &[u8]| {
            table.iter().find(|section| section.name == name && section.kind != elf::SHT_NOBITS)
        };
        let (header, frames) = (find(b".eh_frame_hdr")?, find(b".eh_frame")?);
        if header.size.saturating_add(frames.size) > limit {
            return None;
        }
        let text = find(b".text").map_or(0, |section| section.address);
        let bases = BaseAddresses::default()
            .set_eh_frame_hdr(header.address)
            .set_eh_frame(frames.address)
            .set_text(text);
        let read = |section: &Section| -> io::Result<Vec<u8>> {
            read_at(file, section.offset, usize::try_from(section.size).map_err(io::Error::other)?)
        };
        Some(FunctionTable { header: read(header).ok()?, frames: read(frames).ok()?, bases })
    }

    /// The virtual address at which the function at an address begins.
    pub fn start_of(&self, address: u64) -> Option<u64> {
        let frames = EhFrame::new(&self.frames, LittleEndian);
        let header: ParsedEhFrameHdr<Slice<'_>> =
            EhFrameHdr::new(&self.header, LittleEndian).parse(&self.bases, 8).ok()?;
        let entry = header.table()?.fde_for_address(&frames, &self.bases, address, EhFrame::cie_from_offset);
        entry.ok().filter(|entry| entry.contains(address)).map(|entry| entry.initial_address())
    }
}
