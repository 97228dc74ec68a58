//! A file as it lies in memory: reads by virtual address, in small pieces, and never outside of what the file has.
//!
//! Must not know: Go.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::super::elf::{Layout, read_at};

/// Bytes that a stream reads at a time: most functions' tables are shorter.
const PIECE: usize = 256;

#[derive(Clone, Copy)]
pub(super) struct Image<'a> {
    file: &'a File,
    layout: &'a Layout,
}

impl<'a> Image<'a> {
    pub fn new(file: &'a File, layout: &'a Layout) -> Self {
        Self { file, layout }
    }

    /// `len` bytes at an address; the caller bounds `len`.
    pub fn bytes(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let (offset, left) = self.place(address)?;
        (len as u64 <= left).then(|| read_at(self.file, offset, len).ok())?
    }

    /// The same, if all of it lies in `range`.
    pub fn within(&self, range: Range<u64>, address: u64, len: usize) -> Option<Vec<u8>> {
        let end = address.checked_add(len as u64)?;
        (range.start <= address && end <= range.end).then(|| self.bytes(address, len))?
    }

    pub fn word(&self, address: u64) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(address, 4)?.try_into().ok()?))
    }

    /// Bytes one after the other, as far as `range` goes.
    pub fn stream(&self, range: Range<u64>, address: u64) -> Stream<'a> {
        Stream { image: *self, address, end: range.end, piece: Vec::new(), at: 0 }
    }

    /// The file offset of an address, and how many bytes of its segment follow.
    fn place(&self, address: u64) -> Option<(u64, u64)> {
        let segment = self
            .layout
            .segments
            .iter()
            .find(|s| address.checked_sub(s.address).is_some_and(|into| into < s.size))?;
        let into = address - segment.address;
        Some((segment.offset.checked_add(into)?, segment.size - into))
    }
}

pub(super) struct Stream<'a> {
    image: Image<'a>,
    address: u64,
    end: u64,
    piece: Vec<u8>,
    at: usize,
}

impl Stream<'_> {
    pub fn byte(&mut self) -> Option<u8> {
        if self.at >= self.piece.len() {
            self.fill()?;
        }
        let byte = *self.piece.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// Seven bits a byte, the lowest first.
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
        let (offset, left) = self.image.place(self.address)?;
        let left = left.min(self.end.checked_sub(self.address)?);
        let len = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        self.piece.resize(len, 0);
        let got = self.image.file.read_at(&mut self.piece, offset).ok()?;
        self.piece.truncate(got);
        self.address = self.address.checked_add(got as u64)?;
        self.at = 0;
        (got > 0).then_some(())
    }
}
