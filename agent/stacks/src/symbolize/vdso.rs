//! Reads the image of the vDSO, code that the kernel maps into every process.
//!
//! It must not depend on other processes: podopsy's own has the same image. A 32-bit process has another image. Its
//! frames lie outside of the segments of this one, or have only the name `[vdso]`, so they get no wrong names.

use std::fs::File;
use std::io::Write;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::elf::read_at;
use super::files::{FileId, FileTable};
use super::maps;

/// Two pages on x86-64; far less than this everywhere.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Vdso {
    /// None until it is read; `Some(None)` if it is not readable.
    file: Option<Option<FileId>>,
}

impl Vdso {
    /// The entry of the image, which is read on first use.
    pub fn file(&mut self, files: &mut FileTable) -> Option<FileId> {
        *self.file.get_or_insert_with(|| read_image(files))
    }
}

fn read_image(files: &mut FileTable) -> Option<FileId> {
    let areas = maps::read(std::process::id()).ok()?;
    let area = areas.areas.iter().find(|area| area.is_vdso())?;
    let len = usize::try_from((area.end - area.start).min(MAX_BYTES)).ok()?;
    let bytes = read_at(&File::open("/proc/self/mem").ok()?, area.start, len).ok()?;
    let mut copy = File::from(memfd_create("podopsy-vdso", MFdFlags::MFD_CLOEXEC).ok()?);
    copy.write_all(&bytes).ok()?;
    Some(files.add_image("[vdso]", copy, (area.start, area.end, 0)))
}
