//! Keeps the program's own file out of the page cache, for a process that shares the memory limit of the pod that it examines.
//!
//! The page cache of a file is charged to the cgroup that reads it first. The kernel reads a program in windows of 128 KiB,
//! so that soon all of its 18 MB are charged, while 2 to 3 MB of it are needed.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

/// Drops what was read of the program ahead of time, and asks the kernel to read single pages from now on. Since 6.16 it does so
/// for data alone, and reads code ahead (`do_sync_mmap_readahead` in `mm/filemap.c`).
pub fn read_own_program_by_pages() {
    let (Ok(program), Ok(maps)) = (File::open("/proc/self/exe"), std::fs::read_to_string("/proc/self/smaps"))
    else {
        return;
    };
    let Ok(inode) = program.metadata().map(|meta| meta.ino()) else { return };
    for (start, end) in unwritten_mappings(&maps, inode) {
        let address = start as *mut libc::c_void;
        let length = (end - start) as usize;
        // SAFETY: a mapping of this program's file without pages of its own: what is dropped is read again from the file, with
        // the same content. The first call only sets how much is read ahead (madvise(2)).
        unsafe {
            libc::madvise(address, length, libc::MADV_RANDOM);
            libc::madvise(address, length, libc::MADV_DONTNEED);
        }
    }
    // SAFETY: takes a descriptor and numbers (posix_fadvise(2)).
    unsafe { libc::posix_fadvise(program.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// The mappings of a file that cannot be written to, and of which no page was: relocated data must not be dropped.
fn unwritten_mappings(smaps: &str, inode: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some((range, is_candidate)) = mapping(line, inode) {
            candidate = is_candidate.then_some(range);
        } else if let Some(anonymous) = line.strip_prefix("Anonymous:")
            && let Some(range) = candidate.take()
            && anonymous.trim() == "0 kB"
        {
            found.push(range);
        }
    }
    found
}

/// The range of a mapping's first line, and whether it is of the file and cannot be written to.
fn mapping(line: &str, inode: u64) -> Option<((u64, u64), bool)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let range = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let permissions = fields.next()?;
    let is_of_file = fields.nth(2)?.parse() == Ok(inode);
    Some((range, is_of_file && !permissions.contains('w')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mappings_of_the_file_without_own_pages_are_dropped() {
        let smaps = "1000-2000 r--p 00000000 fd:00 77 /podopsy\nRss: 4 kB\nAnonymous:             0 kB\n\
                     2000-5000 r-xp 00001000 fd:00 77 /podopsy\nAnonymous:             0 kB\nVmFlags: rd ex\n\
                     5000-6000 r--p 00004000 fd:00 77 /podopsy\nAnonymous:             4 kB\n\
                     6000-7000 rw-p 00005000 fd:00 77 /podopsy\nAnonymous:             0 kB\n\
                     7000-8000 r-xp 00000000 fd:00 78 /other\nAnonymous:             0 kB\n\
                     8000-9000 rw-p 00000000 00:00 0 [heap]\nAnonymous:             0 kB\n";
        assert_eq!(unwritten_mappings(smaps, 77), [(0x1000, 0x2000), (0x2000, 0x5000)]);
    }

    #[test]
    fn the_program_runs_on_after_its_pages_were_dropped() {
        read_own_program_by_pages();
        let sum: u64 = (0..1000u64).map(|number| number.to_string().len() as u64).sum();
        assert_eq!(sum, 2890);
    }
}
