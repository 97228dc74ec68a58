//! A process's executable mappings, from /proc/PID/maps (`fs/proc/task_mmu.c`).
//!
//! Must not know: ELF, symbols, or what is in the files; it opens nothing but /proc.
//!
//! Parsed here and not by the procfs crate: paths are bytes of the container's choosing, and that crate wants UTF-8,
//! gives up on the whole file at the first odd line, and panics on a file named `/SYSV`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

/// Far above `vm.max_map_count`'s default (65,530 lines of about 100 bytes).
const MAX_BYTES: u64 = 16 << 20;
/// A process with more executable mappings than this keeps the first ones, and the loss is counted.
const MAX_AREAS: usize = 8192;

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    /// Virtual addresses, end exclusive.
    pub start: u64,
    pub end: u64,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device (major, minor) and inode, as `maps` prints them; inode 0: no file.
    pub device: (u32, u32),
    pub inode: u64,
    /// The path as the kernel printed it, unescaped; empty for anonymous memory. In the process's own mount namespace.
    pub path: Vec<u8>,
}

impl Area {
    pub fn is_file(&self) -> bool {
        self.inode != 0
    }

    pub fn is_vdso(&self) -> bool {
        !self.is_file() && self.path == b"[vdso]"
    }

    /// The path without the ` (deleted)` that the kernel appends.
    pub fn file_path(&self) -> &[u8] {
        self.path.strip_suffix(b" (deleted)").unwrap_or(&self.path)
    }
}

/// What `maps` said.
#[derive(Debug, Default)]
pub(crate) struct Areas {
    /// Ascending, as the kernel prints them.
    pub areas: Vec<Area>,
    /// True when a bound cut the list short.
    pub truncated: bool,
}

impl Areas {
    pub fn find(&self, address: u64) -> Option<&Area> {
        let after = self.areas.partition_point(|area| area.start <= address);
        self.areas[..after].last().filter(|area| address < area.end)
    }
}

/// Reads the executable mappings. A process that dies half-way gives what was read until then.
pub(crate) fn read(pid: u32) -> io::Result<Areas> {
    parse(BufReader::new(File::open(format!("/proc/{pid}/maps"))?.take(MAX_BYTES)))
}

fn parse(mut lines: impl BufRead) -> io::Result<Areas> {
    let mut found = Areas::default();
    let (mut line, mut bytes) = (Vec::new(), 0);
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(n) => bytes += n as u64,
            // ESRCH: it died while we read. What we have is still true.
            Err(_) if !found.areas.is_empty() => break,
            Err(error) => return Err(error),
        }
        let Some(area) = parse_line(line.strip_suffix(b"\n").unwrap_or(&line)) else { continue };
        if found.areas.len() == MAX_AREAS {
            found.truncated = true;
            break;
        }
        // The binary search relies on it, and the kernel promises it.
        if found.areas.last().is_none_or(|last| last.end <= area.start) {
            found.areas.push(area);
        }
    }
    found.truncated |= bytes >= MAX_BYTES;
    Ok(found)
}

/// `start-end perms offset major:minor inode   path`; none for what is not executable or not such a line.
fn parse_line(line: &[u8]) -> Option<Area> {
    let mut fields = line.splitn(6, |&b| b == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = text()?.split_once('-')?;
    if text()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let offset = text()?;
    let (major, minor) = text()?.split_once(':')?;
    let inode = text()?;
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let area = Area {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(offset)?,
        device: (u32::try_from(hex(major)?).ok()?, u32::try_from(hex(minor)?).ok()?),
        inode: inode.parse().ok()?,
        path: unescape(fields.next().unwrap_or_default().trim_ascii_start()),
    };
    (area.start < area.end).then_some(area)
}

/// The kernel escapes a newline in a path as `\012`, and nothing else.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            out.push(b'\n');
            rest = tail;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

/// What /proc/PID/stat says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Clock ticks since boot (field 22). With the pid it names a process for good; a pid alone is reused.
    pub start_time: u64,
    /// `PF_KTHREAD` in the flags (field 9): it has no user-space memory, and lacks none.
    pub is_kernel_thread: bool,
}

pub(crate) fn stat(pid: u32) -> io::Result<Stat> {
    let mut stat = Vec::new();
    File::open(format!("/proc/{pid}/stat"))?.take(4096).read_to_end(&mut stat)?;
    parse_stat(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not as in proc(5)")))
}

/// True when the process's first thread is on a CPU, or waits for one.
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The comm may hold anything, but the last parenthesis is not its.
    let after = stat.iter().rposition(|&b| b == b')').map_or(&[][..], |at| &stat[at..]);
    after.starts_with(b") R")
}

fn parse_stat(stat: &[u8]) -> Option<Stat> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    // The comm may hold spaces and parentheses: count from the last one.
    let after = stat.iter().rposition(|&b| b == b')')? + 1;
    let mut fields = stat[after..].split(|&b| b == b' ').filter(|field| !field.is_empty());
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let flags = number(fields.nth(6)?)?;
    let start_time = number(fields.nth(12)?)?;
    Some(Stat { start_time, is_kernel_thread: flags & PF_KTHREAD != 0 })
}

/// Devices (major, minor) of the FUSE mounts that the process sees. Reading a file there asks a daemon of the
/// container's choosing, which may never answer. The mount table says so without asking it.
pub(crate) fn fuse_devices(pid: u32) -> Vec<(u32, u32)> {
    let mut table = Vec::new();
    let read = File::open(format!("/proc/{pid}/mountinfo"))
        .and_then(|file| file.take(4 << 20).read_to_end(&mut table));
    if read.is_err() {
        return Vec::new();
    }
    table.split(|&b| b == b'\n').filter_map(fuse_device).collect()
}

fn fuse_device(line: &[u8]) -> Option<(u32, u32)> {
    let line = String::from_utf8_lossy(line);
    let (head, tail) = line.rsplit_once(" - ")?;
    if !tail.starts_with("fuse") {
        return None;
    }
    let (major, minor) = head.split(' ').nth(2)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_lines_are_kept_and_hostile_ones_do_no_harm() {
        let text = b"55d0-55d1 r--p 00000000 fe:01 77   /usr/bin/sleep\n\
            55d1-55d5 r-xp 00001000 fe:01 77                         /usr/bin/sl\\012eep (deleted)\n\
            6000-6100 rwxp 00000000 00:00 0\n\
            7000-7100 r-xp 00000000 00:00 0                          [vdso]\n\
            8000-8100 r-xp 00000000 00:01 9                          /SYSV\n\
            9000-9100 r-xp 00000000 00:01 9                          /bin/\xff\xfe\n\
            garbage\n\nzz-yy r-xp x y z\nffff-1 r-xp 0 0:0 0\n";
        let areas = parse(&text[..]).unwrap();
        assert!(!areas.truncated);
        assert_eq!(areas.areas.len(), 5);
        assert_eq!(areas.find(0x55d2).unwrap().file_path(), b"/usr/bin/sl\neep");
        assert_eq!(areas.find(0x55d2).unwrap().device, (0xfe, 1));
        assert!(!areas.find(0x6050).unwrap().is_file());
        assert!(areas.find(0x7000).unwrap().is_vdso());
        assert!(areas.find(0x7100).is_none() && areas.find(0x55d0).is_none());
        assert_eq!(areas.find(0x9000).unwrap().path, b"/bin/\xff\xfe");
    }

    #[test]
    fn the_number_of_areas_is_bounded_and_said() {
        let text: String =
            (0..MAX_AREAS + 5).map(|i| format!("{:x}-{:x} r-xp 0 0:0 0\n", i * 16, i * 16 + 16)).collect();
        let areas = parse(text.as_bytes()).unwrap();
        assert!(areas.truncated);
        assert_eq!(areas.areas.len(), MAX_AREAS);
    }

    #[test]
    fn a_comm_full_of_parentheses_does_not_move_the_start_time() {
        let line = b"7 (a) b) R 1 2 3) S 1 2 3 4 5 2129984 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n";
        assert_eq!(parse_stat(line), Some(Stat { start_time: 4711, is_kernel_thread: true }));
        let own = stat(std::process::id()).unwrap();
        assert!(!is_running(2));
        assert!(own.start_time > 0 && !own.is_kernel_thread);
    }

    #[test]
    fn fuse_mounts_are_known_by_their_device() {
        let line = b"36 35 0:52 / /mnt/x rw,noatime shared:1 - fuse.sshfs host:/ rw";
        assert_eq!(fuse_device(line), Some((0, 52)));
        assert_eq!(fuse_device(b"36 35 98:0 / /mnt rw - ext4 /dev/root rw"), None);
    }
}
