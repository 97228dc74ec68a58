//! Names of code made at run time, from the perf map that the language runtime writes: `/tmp/perf-PID.map`
//! (`tools/perf/Documentation/jit-interface.txt` in the kernel's tree).
//!
//! The file belongs to the container: it lies in the container's mount namespace, under the pid that the process has in
//! its own pid namespace. It is held open from first sight, like executables. It grows while the process lives, and is
//! read when an address is looked up.
//!
//! Must not depend on: ELF, mappings, frames.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{maps, open};
use podopsy_model::text::escape_bytes;

const MAX_BYTES: u64 = 16 << 20;
const MAX_NAME: usize = 512;

#[derive(Debug)]
pub(super) struct PerfMap {
    file: File,
    /// The length of the file when `entries` was read. A longer file has grown since.
    read: u64,
    /// Ascending by start. Of equal starts, the later entry was written later.
    entries: Vec<PerfMapEntry>,
}

#[derive(Debug, PartialEq, Eq)]
struct PerfMapEntry {
    start: u64,
    end: u64,
    name: Box<[u8]>,
}

impl PerfMap {
    /// Opens the map of a live process. Returns none if there is no map, or if it cannot be opened safely.
    pub fn open(pid: u32) -> Option<Self> {
        // A path lookup in a FUSE mount asks the container's daemon, which may never answer.
        if maps::Mounts::read(pid).has_fuse() {
            return None;
        }
        let root = open::reference(Path::new(&format!("/proc/{pid}/root"))).ok()?;
        let path = format!("/tmp/perf-{}.map", namespace_pid(pid)?);
        let file = open::regular_file(&open::reference_inside(&root, path.as_bytes()).ok()?).ok()?;
        Some(Self { file, read: 0, entries: Vec::new() })
    }

    /// The name at an address, escaped.
    pub fn find(&mut self, address: u64) -> Option<String> {
        if self.file.metadata().ok()?.len().min(MAX_BYTES) > self.read {
            self.load().ok()?;
        }
        let after = self.entries.partition_point(|entry| entry.start <= address);
        // The nearest entry that contains the address. An entry with a nearer start may be older code that ends before.
        let mut near = self.entries[..after].iter().rev().take(16);
        near.find(|entry| address < entry.end).map(|entry| escape_bytes(&entry.name))
    }

    /// Frees the table. The next lookup reads it again.
    pub fn trim(&mut self) {
        self.read = 0;
        self.entries = Vec::new();
    }

    fn load(&mut self) -> io::Result<()> {
        let len = self.file.metadata()?.len().min(MAX_BYTES);
        let mut text = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        let got = self.file.read_at(&mut text, 0)?;
        self.read = len;
        self.entries = text[..got].split(|&b| b == b'\n').filter_map(parse).collect();
        self.entries.sort_by_key(|entry| entry.start);
        Ok(())
    }
}

/// Parses `START SIZE name with spaces`; the numbers are hex, with or without `0x`.
fn parse(line: &[u8]) -> Option<PerfMapEntry> {
    let mut fields = line.splitn(3, |&b| b == b' ');
    let mut hex = || {
        let digits = std::str::from_utf8(fields.next()?).ok()?;
        u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
    };
    let (start, size) = (hex()?, hex()?);
    let name = fields.next()?;
    Some(PerfMapEntry { start, end: start.checked_add(size)?, name: name[..name.len().min(MAX_NAME)].into() })
}

/// The pid that the process has in its own pid namespace: the last one in NSpid.
fn namespace_pid(pid: u32) -> Option<u32> {
    // Bytes, not a string: the first line is the comm, which may be any bytes.
    let mut status = Vec::new();
    File::open(format!("/proc/{pid}/status")).ok()?.take(64 << 10).read_to_end(&mut status).ok()?;
    let line = status.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"))?;
    std::str::from_utf8(line).ok()?.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_perf_map_is_parsed_and_read_again_after_it_has_grown() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"7f00 10 LazyCompile:~handler /app/index.js:3\ngarbage\n0x7f20 0x8 a\x1bb\nffffffffffffffff 2 x\n")
            .unwrap();
        let mut map = PerfMap { file: file.try_clone().unwrap(), read: 0, entries: Vec::new() };
        assert_eq!(map.find(0x7f08).as_deref(), Some("LazyCompile:~handler /app/index.js:3"));
        assert_eq!(map.find(0x7f20).as_deref(), Some("a\\x1bb"));
        assert_eq!((map.find(0x7f10), map.find(u64::MAX)), (None, None));
        file.write_all(b"7f00 10 LazyCompile:*handler\n").unwrap();
        assert_eq!(map.find(0x7f08).as_deref(), Some("LazyCompile:*handler"));
    }

    #[test]
    fn a_process_without_a_map_has_none() {
        assert_eq!(namespace_pid(std::process::id()), Some(std::process::id()));
        assert!(PerfMap::open(std::process::id()).is_none());
    }
}
