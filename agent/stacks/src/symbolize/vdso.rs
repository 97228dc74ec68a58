//! Reads the image of the vDSO, code that the kernel maps into every process.
//!
//! It must not depend on other processes: podopsy's own has the same image. A 32-bit process has another image. Its
//! frames lie outside of the segments of this one, or have only the name `[vdso]`, so they get no wrong names.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::files::{FileId, FileTable};
use super::maps;
use podopsy_worker::{FileHandle, Parser};

/// Two pages on x86-64; far less than this everywhere.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Vdso {
    /// None until it is read; `Some(None)` if it is not readable.
    file: Option<Option<FileId>>,
}

impl Vdso {
    /// The entry of the image, which is read on first use.
    pub fn file(&mut self, files: &mut FileTable, parser: &mut Parser) -> Option<FileId> {
        *self.file.get_or_insert_with(|| read_image(files, parser))
    }
}

fn read_image(files: &mut FileTable, parser: &mut Parser) -> Option<FileId> {
    let (copy, mapping) = copy_image()?;
    Some(files.add_image("[vdso]", copy, mapping, parser))
}

/// A copy of the image in memory, and the start, the end and the file offset of its mapping in this process.
pub(crate) fn copy_image() -> Option<(FileHandle, (u64, u64, u64))> {
    let areas = maps::read_own().ok()?;
    let area = areas.areas.iter().find(|area| area.is_vdso())?;
    let mut bytes = vec![0; usize::try_from((area.end - area.start).min(MAX_BYTES)).ok()?];
    File::open("/proc/self/mem").ok()?.read_exact_at(&mut bytes, area.start).ok()?;
    let mut copy = File::from(memfd_create("podopsy-vdso", MFdFlags::MFD_CLOEXEC).ok()?);
    copy.write_all(&bytes).ok()?;
    Some((FileHandle::from_file(copy).ok()?, (area.start, area.end, 0)))
}
