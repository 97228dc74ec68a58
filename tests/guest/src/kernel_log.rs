//! The kernel's own log, for the console of a machine on which a test failed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;

/// A place in the log.
#[derive(Debug)]
pub struct Mark(Option<File>);

impl Mark {
    /// The log's end. Where /dev/kmsg cannot be read, there is nothing to show later.
    pub fn now() -> Mark {
        let open = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg");
        Mark(open.ok().and_then(|mut file| file.seek(SeekFrom::End(0)).ok().map(|_| file)))
    }

    /// What the kernel has said since: `priority,sequence,microseconds,flags;text` a record
    /// (Documentation/ABI/testing/dev-kmsg).
    pub fn since(self) -> Vec<String> {
        let Mark(Some(mut file)) = self else { return Vec::new() };
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        // One read, one record; an error is the end, or a gap where the log was written over.
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
