//! Reads a file by virtual address, in small pieces, and never outside of its loaded segments.
//!
//! Must not depend on: the formats of Go.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::elf::{Layout, read_at};

/// Bytes that a stream reads at a time. The tables of most functions are shorter.
const PIECE: usize = 256;

#[derive(Clone, Copy)]
pub(super) enum FileImage<'a> {
    File(&'a File, &'a Layout),
    /// The address of a part that was read into memory, and its bytes: for a caller that needs all of it.
    Memory(u64, &'a [u8]),
}

impl<'a> FileImage<'a> {
    pub fn new(file: &'a File, layout: &'a Layout) -> Self {
        Self::File(file, layout)
    }

    /// `len` bytes at an address; the caller bounds `len`.
    pub fn bytes(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        match self {
            FileImage::File(file, layout) => {
                let (offset, left) = offset_and_rest(layout, address)?;
                (len as u64 <= left).then(|| read_at(*file, offset, len).ok())?
            }
            FileImage::Memory(start, bytes) => {
                let from = usize::try_from(address.checked_sub(*start)?).ok()?;
                Some(bytes.get(from..from.checked_add(len)?)?.to_vec())
            }
        }
    }

    /// `len` bytes at an address, if all of them lie in `range`.
    pub fn within(&self, range: Range<u64>, address: u64, len: usize) -> Option<Vec<u8>> {
        let end = address.checked_add(len as u64)?;
        (range.start <= address && end <= range.end).then(|| self.bytes(address, len))?
    }

    /// The 32-bit number at an address.
    pub fn u32_at(&self, address: u64) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(address, 4)?.try_into().ok()?))
    }

    /// Reads byte by byte from an address to the end of `range`.
    pub fn stream(&self, range: Range<u64>, address: u64) -> ByteStream<'a> {
        ByteStream { image: *self, address, end: range.end, piece: Vec::new(), at: 0 }
    }

    /// Reads into `piece` from an address on. Returns the number of bytes, which is smaller at the end of the segment.
    fn fill(&self, address: u64, piece: &mut [u8]) -> Option<usize> {
        match self {
            FileImage::File(file, layout) => {
                let (offset, left) = offset_and_rest(layout, address)?;
                let len = usize::try_from(left).unwrap_or(piece.len()).min(piece.len());
                file.read_at(&mut piece[..len], offset).ok()
            }
            FileImage::Memory(start, bytes) => {
                let rest = bytes.get(usize::try_from(address.checked_sub(*start)?).ok()?..)?;
                let len = rest.len().min(piece.len());
                piece[..len].copy_from_slice(&rest[..len]);
                Some(len)
            }
        }
    }
}

/// The file offset of an address, and the number of bytes of its segment from there on.
fn offset_and_rest(layout: &Layout, address: u64) -> Option<(u64, u64)> {
    let segment =
        layout.segments.iter().find(|s| address.checked_sub(s.address).is_some_and(|into| into < s.size))?;
    let into = address - segment.address;
    Some((segment.offset.checked_add(into)?, segment.size - into))
}

pub(super) struct ByteStream<'a> {
    image: FileImage<'a>,
    address: u64,
    end: u64,
    piece: Vec<u8>,
    at: usize,
}

impl ByteStream<'_> {
    pub fn byte(&mut self) -> Option<u8> {
        if self.at >= self.piece.len() {
            self.fill()?;
        }
        let byte = *self.piece.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// A number with seven bits per byte, the lowest first.
    pub fn varint(&mut self) -> Option<u32> {
        let mut number = 0_u32;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            number |= u32::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn fill(&mut self) -> Option<()> {
        let left = self.end.checked_sub(self.address)?;
        self.piece.resize(usize::try_from(left).unwrap_or(PIECE).min(PIECE), 0);
        let got = self.image.fill(self.address, &mut self.piece)?;
        self.piece.truncate(got);
        self.address = self.address.checked_add(got as u64)?;
        self.at = 0;
        (got > 0).then_some(())
    }
}
