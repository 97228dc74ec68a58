//! What is known of the mappings before the process is stopped, because reading it takes long: `/proc/PID/smaps`.

use std::collections::HashMap;
use std::fs;

use crate::{CoreError, read_error};

/// An untouched mapping of this size or more is not looked through while the process is stopped: runtimes reserve terabytes.
const LARGE: u64 = 64 << 20;

#[derive(Debug, Default)]
pub struct Layout(HashMap<(u64, u64), Facts>);

#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    resident: u64,
    is_excluded: bool,
}

impl Layout {
    pub fn read(pid: u32) -> Result<Layout, CoreError> {
        let smaps = fs::read(format!("/proc/{pid}/smaps")).map_err(read_error(pid, "the mappings"))?;
        Ok(Layout::parse(&smaps))
    }

    fn parse(smaps: &[u8]) -> Layout {
        let mut layout = HashMap::new();
        let mut current = None;
        for line in smaps.split(|byte| *byte == b'\n').map(String::from_utf8_lossy) {
            if let Some(range) = range(line.split(' ').next().unwrap_or_default()) {
                current = Some(range);
            }
            let Some(range) = current else { continue };
            let facts: &mut Facts = layout.entry(range).or_default();
            if let Some(size) = line.strip_prefix("Rss:") {
                let kib = size.trim().trim_end_matches("kB").trim_end().parse::<u64>();
                facts.resident = kib.unwrap_or(u64::MAX >> 10) << 10;
            } else if let Some(flags) = line.strip_prefix("VmFlags:") {
                // Not to be dumped; memory of a device, of which a read can have effects.
                facts.is_excluded = flags.split(' ').any(|flag| ["dd", "io", "pf"].contains(&flag));
            }
        }
        Layout(layout)
    }

    /// Whether the program excludes the mapping from cores, or it is a device's.
    pub fn is_excluded(&self, range: (u64, u64)) -> bool {
        self.0.get(&range).is_some_and(|facts| facts.is_excluded)
    }

    /// Whether the mapping is large, and was untouched.
    pub fn is_reserve(&self, range: (u64, u64)) -> bool {
        range.1 - range.0 >= LARGE && self.0.get(&range).is_some_and(|facts| facts.resident == 0)
    }
}

/// `7f00-8000` in hexadecimal digits.
pub fn range(text: &str) -> Option<(u64, u64)> {
    let (start, end) = text.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excluded_and_untouched_mappings_are_known() {
        let smaps = b"1000-2000 rw-p 00000000 00:00 0 \nRss:                   4 kB\nVmFlags: rd wr mr mw me dd sd \n\
            10000000-20000000 rw-p 00000000 00:00 0    a\xff-b\nRss: 0 kB\nVmFlags: rd wr\n";
        let layout = Layout::parse(smaps);
        assert!(layout.is_excluded((0x1000, 0x2000)) && !layout.is_reserve((0x1000, 0x2000)));
        assert!(layout.is_reserve((0x1000_0000, 0x2000_0000)));
        assert!(!layout.is_excluded((0x1000_0000, 0x2000_0000)));
    }
}
