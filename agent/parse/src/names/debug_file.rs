//! How an executable names its separate debug file: by build id, or by a file name and a checksum in `.gnu_debuglink`.
//!
//! Which file is opened is decided by the caller, who knows the host's folder of debug files. Must not depend on: paths.

use std::fs::File;
use std::io::Read;

use flate2::Crc;
use serde::{Deserialize, Serialize};

use crate::elf::{self, Layout, read_at, sections};

/// The largest file whose checksum is computed: a checksum covers the whole file.
const MAX_CHECKED: u64 = 1 << 30;
/// Bytes of `.gnu_debuglink`: a file name, padded to four bytes, and a checksum.
const MAX_LINK: usize = 1024;

/// The content of `.gnu_debuglink` (gdb's manual, "Separate Debug Files").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugLink {
    /// A plain file name: no `/`, not empty, not `..`.
    pub name: String,
    pub checksum: u32,
}

impl DebugLink {
    /// The link in a file, if it has one.
    pub fn read(file: &File) -> Option<DebugLink> {
        let section = sections(file).into_iter().find(|section| section.name == b".gnu_debuglink")?;
        let link = read_at(file, section.offset, usize::try_from(section.size).ok()?.min(MAX_LINK)).ok()?;
        let name = std::str::from_utf8(&link[..link.iter().position(|&byte| byte == 0)?]).ok()?;
        let sum = link.get((name.len() + 1).next_multiple_of(4)..)?.get(..4)?;
        // A path could lead to another folder.
        if name.is_empty() || name.contains('/') || name == ".." {
            return None;
        }
        Some(DebugLink { name: name.to_owned(), checksum: u32::from_le_bytes(sum.try_into().ok()?) })
    }
}

/// Whether a debug file was made from `file`: it has the same build id, or the checksum of the link.
pub(super) fn belongs_to(debug_file: &File, file: &File, layout: &Layout) -> bool {
    let build_id = elf::layout(debug_file).map(|layout| layout.build_id).unwrap_or_default();
    if !build_id.is_empty() && build_id == layout.build_id {
        return true;
    }
    DebugLink::read(file).is_some_and(|link| checksum(debug_file) == Some(link.checksum))
}

fn checksum(file: &File) -> Option<u32> {
    if file.metadata().ok()?.len() > MAX_CHECKED {
        return None;
    }
    let (mut sum, mut piece, mut file) = (Crc::new(), vec![0; 1 << 20], file.take(MAX_CHECKED));
    loop {
        match file.read(&mut piece).ok()? {
            0 => return Some(sum.sum()),
            read => sum.update(&piece[..read]),
        }
    }
}
