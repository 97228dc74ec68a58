//! The kernel's log, which a lab machine writes to its console when a test has failed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;

/// A position in the log.
#[derive(Debug)]
pub struct Mark(Option<File>);

impl Mark {
    /// The log's end. If /dev/kmsg cannot be read, `since` returns nothing.
    pub fn now() -> Mark {
        let open = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg");
        Mark(open.ok().and_then(|mut file| file.seek(SeekFrom::End(0)).ok().map(|_| file)))
    }

    /// The lines since then. A record is `priority,sequence,microseconds,flags;text`
    /// (Documentation/ABI/testing/dev-kmsg).
    pub fn since(self) -> Vec<String> {
        let Mark(Some(mut file)) = self else { return Vec::new() };
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        // One read returns one record; an error is the end, or a gap where the log was overwritten.
        while let Ok(len @ 1..) = file.read(&mut record) {
            let text = String::from_utf8_lossy(&record[..len]);
            let (head, text) = text.split_once(';').unwrap_or_default();
            let time: u64 = head.split(',').nth(2).and_then(|us| us.parse().ok()).unwrap_or(0);
            let text = text.lines().next().unwrap_or_default();
            lines.push(format!("[{:12.6}] {text}", time as f64 / 1e6));
        }
        lines
    }
}
