//! A process's executable mappings, from /proc/PID/maps (`fs/proc/task_mmu.c`).
//!
//! Must not know: ELF, symbols, or what is in the files; it opens nothing but /proc.
//!
//! Parsed here and not by the procfs crate: paths are bytes of the container's choosing, and that crate wants UTF-8,
//! gives up on the whole file at the first odd line, and panics on a file named `/SYSV`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;

/// Far above `vm.max_map_count`'s default (65,530 lines of about 100 bytes).
const MAX_BYTES: u64 = 16 << 20;
/// A process with more executable mappings than this keeps the first ones, and the loss is counted.
const MAX_AREAS: usize = 8192;

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
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
pub struct Areas {
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
pub fn read(pid: u32) -> io::Result<Areas> {
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
pub struct Stat {
    /// Clock ticks since boot (field 22). With the pid it names a process for good; a pid alone is reused.
    pub start_time: u64,
    /// `PF_KTHREAD` in the flags (field 9): it has no user-space memory, and lacks none.
    pub is_kernel_thread: bool,
    /// Its first thread is on a CPU, or waits for one (field 3).
    is_running: bool,
    /// Clock ticks that all its threads have run, in user mode and in the kernel (fields 14 and 15).
    ran: u64,
}

impl Stat {
    /// Whether one of so many samples of a CPU would meet it, if it goes on as it did since it started. `uptime`: see
    /// [`uptime`].
    pub fn is_met_by(self, samples: u64, uptime: u64) -> bool {
        let age = uptime.saturating_sub(self.start_time).max(1);
        // Ticks are rounded down: it may have run for nearly one more.
        self.is_running || samples.saturating_mul(self.ran + 1) >= age
    }
}

pub fn stat(pid: u32) -> io::Result<Stat> {
    let mut stat = Vec::new();
    File::open(format!("/proc/{pid}/stat"))?.take(4096).read_to_end(&mut stat)?;
    parse_stat(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not as in proc(5)")))
}

fn parse_stat(stat: &[u8]) -> Option<Stat> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    // The comm may hold spaces and parentheses: count from the last one.
    let after = stat.iter().rposition(|&b| b == b')')? + 1;
    let fields = stat[after..].split(|&b| b.is_ascii_whitespace()).filter(|field| !field.is_empty());
    let fields: Vec<&[u8]> = fields.take(20).collect();
    // Numbered as in proc(5), where the state is the third.
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |number| std::str::from_utf8(field(number)?).ok()?.parse::<u64>().ok();
    Some(Stat {
        start_time: number(22)?,
        is_kernel_thread: number(9)? & PF_KTHREAD != 0,
        is_running: field(3)? == b"R",
        ran: number(14)?.saturating_add(number(15)?),
    })
}

/// Clock ticks since the machine started; 0: it does not say.
pub fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    // USER_HZ is 100 on every Linux that has BPF.
    (seconds * 100.0) as u64
}

/// What a file's file system means for whoever wants to open the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Reading asks a daemon of the container's choosing, which may never answer.
    Fuse,
    /// Layers that the node's root has put together: what lies below is the node's own.
    Overlay,
    Other,
}

/// The file systems that a process sees, by device (major, minor); the mount table says it without asking them.
#[derive(Debug, Default)]
pub struct Mounts {
    fuse: Vec<(u32, u32)>,
    overlays: Vec<(u32, u32)>,
}

impl Mounts {
    pub fn of(pid: u32) -> Mounts {
        let mut table = Vec::new();
        let read = File::open(format!("/proc/{pid}/mountinfo"))
            .and_then(|file| file.take(4 << 20).read_to_end(&mut table));
        if read.is_err() {
            return Mounts::default();
        }
        let mut mounts = Mounts::parse(&table);
        // In a user namespace of its own a container mounts overlays itself, of whatever it likes.
        if !in_our_user_namespace(pid) {
            mounts.overlays.clear();
        }
        mounts
    }

    /// As far as it matters for these of its mappings. Device numbers with major 0 are virtual filesystems, FUSE and overlays
    /// among them (but fuseblk, which only the node's root can mount); the mount table is worth reading only then.
    pub fn below(pid: u32, areas: &[Area]) -> Mounts {
        let is_virtual = |area: &Area| area.is_file() && area.device.0 == 0;
        if areas.iter().any(is_virtual) { Mounts::of(pid) } else { Mounts::default() }
    }

    fn parse(table: &[u8]) -> Mounts {
        let mut mounts = Mounts::default();
        for (device, kind) in table.split(|&b| b == b'\n').filter_map(mount) {
            // fuse, fuse.sshfs, fuseblk.ntfs; not fusectl, which is the kernel's own and on most nodes.
            if kind.split('.').next().is_some_and(|kind| matches!(kind, "fuse" | "fuseblk")) {
                mounts.fuse.push(device);
            } else if kind == "overlay" {
                mounts.overlays.push(device);
            }
        }
        mounts
    }

    pub fn ground(&self, device: (u32, u32)) -> Ground {
        match device {
            _ if self.fuse.contains(&device) => Ground::Fuse,
            _ if self.overlays.contains(&device) => Ground::Overlay,
            _ => Ground::Other,
        }
    }

    pub fn has_fuse(&self) -> bool {
        !self.fuse.is_empty()
    }
}

fn in_our_user_namespace(pid: u32) -> bool {
    let inode = |process: &str| Some(std::fs::metadata(format!("/proc/{process}/ns/user")).ok()?.ino());
    let own = inode("self");
    own.is_some() && own == inode(&pid.to_string())
}

/// Device and kind of a line of the mount table.
fn mount(line: &[u8]) -> Option<((u32, u32), String)> {
    let line = String::from_utf8_lossy(line);
    // The first: before it the kernel escapes every space that is not its own (`mangle` in fs/proc_namespace.c).
    let (head, tail) = line.split_once(" - ")?;
    let (major, minor) = head.split(' ').nth(2)?.split_once(':')?;
    let kind = tail.split(' ').next()?.to_owned();
    Some(((major.parse().ok()?, minor.parse().ok()?), kind))
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
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat, Stat { start_time: 4711, is_kernel_thread: true, is_running: false, ran: 11 + 12 });
        assert_eq!(parse_stat(b"7 (a) S 1 2 3"), None);
        let own = super::stat(std::process::id()).unwrap();
        assert!(own.start_time > 0 && own.start_time <= uptime() && !own.is_kernel_thread);
    }

    #[test]
    fn who_worked_is_expected_to_be_met_again() {
        let stat = Stat { start_time: 1000, is_kernel_thread: false, is_running: false, ran: 9 };
        // A hundredth of a CPU: a hundred samples meet it once.
        assert!(stat.is_met_by(100, 2000) && !stat.is_met_by(99, 2000) && !stat.is_met_by(0, 2000));
        assert!(Stat { is_running: true, ..stat }.is_met_by(0, 2000));
        // Started when uptime was read already.
        assert!(stat.is_met_by(1, 900));
    }

    #[test]
    fn mounts_are_known_by_their_device() {
        let table = b"36 35 0:52 / /mnt/x rw,noatime shared:1 - fuse.sshfs host:/ rw\n\
            36 35 98:0 / /mnt rw - ext4 /dev/root rw\n\
            40 35 0:60 / / rw - overlay overlay rw,lowerdir=/a:/b - fuse x y\n\
            41 35 0:61 / /\\040-\\040overlay rw - tmpfs none rw\ngarbage\n\
            42 35 0:62 / /sys/fs/fuse/connections rw - fusectl fusectl rw\n";
        let mounts = Mounts::parse(table);
        assert_eq!(mounts.ground((0, 52)), Ground::Fuse);
        assert!(mounts.has_fuse());
        for device in [(98, 0), (0, 61), (1, 1), (0, 62)] {
            assert_eq!(mounts.ground(device), Ground::Other, "{device:?}");
        }
        // What an option says is no field.
        assert_eq!(mounts.ground((0, 60)), Ground::Overlay);
        assert!(in_our_user_namespace(std::process::id()));
    }
}
