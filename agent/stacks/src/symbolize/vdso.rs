//! The vDSO: code that the kernel maps into every process, the same image in each.
//!
//! Must not know: other processes; ours has the same image. (A 32-bit process has another one, and so gets no names
//! that are right by accident: its frames lie outside of this image's segments, or carry the name `[vdso]` only.)

use std::fs::File;
use std::io::Write;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::elf::read_at;
use super::files::{FileId, Files};
use super::maps;

/// Two pages on x86-64; far less than this everywhere.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Vdso {
    /// None: not looked yet; Some(None): not readable.
    file: Option<Option<FileId>>,
}

impl Vdso {
    pub fn file(&mut self, files: &mut Files) -> Option<FileId> {
        *self.file.get_or_insert_with(|| image(files))
    }
}

fn image(files: &mut Files) -> Option<FileId> {
    let areas = maps::read(std::process::id()).ok()?;
    let area = areas.areas.iter().find(|area| area.is_vdso())?;
    let len = usize::try_from((area.end - area.start).min(MAX_BYTES)).ok()?;
    let bytes = read_at(&File::open("/proc/self/mem").ok()?, area.start, len).ok()?;
    let mut copy = File::from(memfd_create("podopsy-vdso", MFdFlags::MFD_CLOEXEC).ok()?);
    copy.write_all(&bytes).ok()?;
    Some(files.add("[vdso]", copy, (area.start, area.end, 0)))
}
