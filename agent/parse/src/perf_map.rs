//! Names of code made at run time, from the perf map that the language runtime writes: `/tmp/perf-PID.map`
//! (`tools/perf/Documentation/jit-interface.txt` in the kernel's tree).
//!
//! A map of a large program has hundreds of megabytes, and it is the container's to write. So it is read as a stream, and
//! only the entries of the addresses that are looked up are kept. A later line wins over an earlier one: it is newer code at
//! the same address. Must not depend on: processes, paths.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use podopsy_model::text::escape_bytes;
use serde::{Deserialize, Serialize};

use crate::StackLossReason;

/// The most that is read of one map. Of a longer one, the end is read: its entries are the newest.
pub const MAX_BYTES: u64 = 1 << 30;
const MAX_NAME: usize = 512;
/// A longer line is skipped.
const MAX_LINE: u64 = 64 << 10;

/// The names that a map has for addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerfMapNames {
    /// Escaped, in the order of the addresses.
    pub names: Vec<Option<String>>,
    /// The map has more than [`MAX_BYTES`]; its beginning was not read.
    pub truncated: bool,
}

/// Looks up `addresses`, in any order. An error means that the map could not be read.
pub fn look_up(map: &File, addresses: &[u64]) -> Result<PerfMapNames, StackLossReason> {
    let len = map.metadata().map_err(|_| StackLossReason::PerfMapUnreadable)?.len();
    let start = len.saturating_sub(MAX_BYTES);
    let names =
        search(BufReader::with_capacity(256 << 10, Tail { map, at: start, end: len }), start > 0, addresses);
    let names = names.map_err(|_| StackLossReason::PerfMapUnreadable)?;
    Ok(PerfMapNames { names, truncated: start > 0 })
}

/// Reads a file from an offset to the length that it had, however fast it grows meanwhile.
struct Tail<'a> {
    map: &'a File,
    at: u64,
    end: u64,
}

impl Read for Tail<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = left.min(buffer.len());
        let read = self.map.read_at(&mut buffer[..len], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

fn search(
    mut lines: impl BufRead,
    starts_inside: bool,
    addresses: &[u64],
) -> io::Result<Vec<Option<String>>> {
    let mut order: Vec<usize> = (0..addresses.len()).collect();
    order.sort_unstable_by_key(|&index| addresses[index]);
    let sorted: Vec<u64> = order.iter().map(|&index| addresses[index]).collect();
    let mut found: Vec<Option<Box<[u8]>>> = vec![None; addresses.len()];
    let mut line = Vec::new();
    let mut skip = starts_inside;
    loop {
        line.clear();
        if (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let is_whole = line.ends_with(b"\n");
        if !skip && let Some(entry) = PerfMapEntry::parse(line.strip_suffix(b"\n").unwrap_or(&line)) {
            let first = sorted.partition_point(|&address| address < entry.start);
            for at in first..sorted.len() {
                if sorted[at] >= entry.end {
                    break;
                }
                found[order[at]] = Some(entry.name.into());
            }
        }
        // What follows a line that is too long is its rest.
        skip = !is_whole;
    }
    Ok(found.into_iter().map(|name| Some(escape_bytes(&name?))).collect())
}

#[derive(Debug, PartialEq, Eq)]
struct PerfMapEntry<'a> {
    start: u64,
    end: u64,
    name: &'a [u8],
}

impl PerfMapEntry<'_> {
    /// Parses `START SIZE name with spaces`; the numbers are hex, with or without `0x`.
    fn parse(line: &[u8]) -> Option<PerfMapEntry<'_>> {
        let mut fields = line.splitn(3, |&b| b == b' ');
        let mut hex = || {
            let digits = std::str::from_utf8(fields.next()?).ok()?;
            u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
        };
        let (start, size) = (hex()?, hex()?);
        let name = fields.next()?;
        Some(PerfMapEntry { start, end: start.checked_add(size)?, name: &name[..name.len().min(MAX_NAME)] })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(map: &[u8], addresses: &[u64]) -> Vec<Option<String>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(map).unwrap();
        look_up(&file, addresses).unwrap().names
    }

    fn one(map: &[u8], address: u64) -> Option<String> {
        names(map, &[address]).remove(0)
    }

    #[test]
    fn entries_have_hex_numbers_and_any_name_and_other_lines_are_skipped() {
        let map = b"7f00 10 LazyCompile:~handler /app/index.js:3\ngarbage\n0x7f20 0x8 a\x1bb\nffffffffffffffff 2 x\n";
        assert_eq!(one(map, 0x7f08).as_deref(), Some("LazyCompile:~handler /app/index.js:3"));
        assert_eq!(one(map, 0x7f20).as_deref(), Some("a\\x1bb"));
        assert_eq!((one(map, 0x7f10), one(map, u64::MAX)), (None, None));
    }

    #[test]
    fn the_entry_written_last_wins_also_if_it_is_larger() {
        let map = b"7f20 8 old\n7f00 100 new\n7e00 10 other\n";
        assert_eq!(one(map, 0x7f24).as_deref(), Some("new"));
    }

    #[test]
    fn many_addresses_in_any_order_are_found_in_one_pass() {
        let map: String = (0..20_000).map(|i| format!("{:x} 10 function_{i}\n", 0x1000 + i * 16)).collect();
        let addresses: Vec<u64> = (0..3000).rev().map(|i| 0x1000 + i * 97).collect();
        for (address, name) in addresses.iter().zip(names(map.as_bytes(), &addresses)) {
            assert_eq!(name, Some(format!("function_{}", (address - 0x1000) / 16)));
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_with_its_rest() {
        let mut map = b"7f00 10 first\n7f40 10 ".to_vec();
        map.extend(std::iter::repeat_n(b'x', 200_000));
        map.extend(b"\n7f80 10 last");
        assert_eq!(names(&map, &[0x7f00, 0x7f80]), [Some("first".to_owned()), Some("last".to_owned())]);
    }
}
