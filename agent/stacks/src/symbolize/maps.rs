//! Reads a process's executable mappings from /proc/PID/maps (`fs/proc/task_mmu.c`), its stat, and its mounts.
//!
//! It does not use the procfs crate: a container can put any bytes into a path, and that crate requires UTF-8, fails on
//! the whole file at the first unexpected line, and panics on a file named `/SYSV`.
//!
//! Must not depend on: ELF, symbols, the content of files. It opens only /proc.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use podopsy_opener::{OpenError, Openers, Target};
use podopsy_worker::{Failure, Parser, Tenant};

use crate::{Helpers, StackLossReason};

/// Far above `vm.max_map_count`'s default (65,530 lines of about 100 bytes).
const MAX_BYTES: u64 = 16 << 20;
/// Executable mappings that are kept of a process. Of more, the first ones are kept and the loss is counted.
const MAX_AREAS: usize = 8192;
/// Bytes of a path that are kept. A longer one is only shown, and its file is opened by `map_files`.
const MAX_PATH: usize = 1024;

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Virtual addresses, end exclusive.
    pub start: u64,
    pub end: u64,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device (major, minor) and inode, as `maps` prints them. Inode 0 means that there is no file.
    pub device: (u32, u32),
    pub inode: u64,
    /// The path in the process's own mount namespace, as the kernel printed it, unescaped; empty for anonymous memory.
    pub path: Vec<u8>,
    /// The addresses of the same file's mapping before this one, if this is anonymous memory in place of the file's code: a
    /// program may copy its code to huge pages. Device, inode, path and offset are those of the file then.
    pub in_place_of: Option<(u64, u64)>,
}

impl Area {
    pub fn is_file(&self) -> bool {
        self.inode != 0
    }

    /// Whether it has neither a file nor a name that is not one that the process gave it (`PR_SET_VMA_ANON_NAME`).
    fn is_anonymous(&self) -> bool {
        !self.is_file() && (self.path.is_empty() || self.path.starts_with(b"[anon:"))
    }

    pub fn is_vdso(&self) -> bool {
        !self.is_file() && self.path == b"[vdso]"
    }

    /// Takes anonymous memory for a file's code if it lies between two mappings of the file: the dynamic loader mapped the file
    /// around it. If both assign the same offset to it, it is in place of that part of the file. If they do not, but one of the
    /// two is code, it was a part of that. The kernel side has the same rule (`replaced_file` in `probe-ebpf/src/mapping.rs`).
    fn take_place_of(&mut self, before: Option<Neighbour>, after: Option<Neighbour>) {
        let (Some(before), Some(after)) = (before, after) else { return };
        let is_same_file = before.area.is_file()
            && (before.area.device, before.area.inode) == (after.area.device, after.area.inode);
        if !is_same_file || before.area.end != self.start || self.end != after.area.start {
            return;
        }
        let below = before.area.offset.checked_add(before.area.end - before.area.start);
        let above = after.area.offset.checked_sub(self.end - self.start);
        let offset = match (before.is_code, after.is_code) {
            (true, false) => below,
            (false, true) => above,
            _ => below.filter(|_| below == above),
        };
        if let Some(offset) = offset {
            let in_place_of = Some((before.area.start, before.area.end));
            *self = Area { start: self.start, end: self.end, offset, in_place_of, ..before.area };
        }
    }

    /// The path without the ` (deleted)` that the kernel appends.
    pub fn file_path(&self) -> &[u8] {
        self.path.strip_suffix(b" (deleted)").unwrap_or(&self.path)
    }
}

/// A mapping beside anonymous memory.
struct Neighbour {
    area: Area,
    /// It is executable.
    is_code: bool,
}

impl Neighbour {
    fn parse(line: &[u8]) -> Option<Neighbour> {
        Some(Neighbour { area: parse_mapping(line)?, is_code: is_executable(line) })
    }
}

/// The executable mappings of a process.
#[derive(Debug, Default)]
pub struct Areas {
    /// Ascending, as the kernel prints them.
    pub areas: Vec<Area>,
    /// True if the list was cut at a bound.
    pub truncated: bool,
}

impl Areas {
    /// The mapping that contains an address.
    pub fn find(&self, address: u64) -> Option<&Area> {
        let after = self.areas.partition_point(|area| area.start <= address);
        self.areas[..after].last().filter(|area| address < area.end)
    }
}

/// Has `consume` read the mappings' lines. Returns its result with the CPU time that the opener took.
///
/// An opener reads them: a process that holds the lock of its address space, while it waits for a file system, would have this
/// process wait, too.
fn stream<T>(
    openers: &Openers,
    tenant: Tenant,
    pid: u32,
    consume: impl FnOnce(&mut dyn BufRead) -> io::Result<T>,
) -> Result<(T, Duration), StackLossReason> {
    let reader = openers.maps(Target { tenant, pid, may_hang: false }).map_err(|error| match error {
        OpenError::NoAnswer | OpenError::Unavailable => super::open::loss(error),
        _ => StackLossReason::MappingsProcessGone,
    })?;
    let mut lines = BufReader::with_capacity(16 << 10, reader.take(MAX_BYTES));
    let consumed = consume(&mut lines).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => StackLossReason::FileSystemNoAnswer,
        _ => StackLossReason::MappingsProcessGone,
    })?;
    Ok((consumed, lines.into_inner().into_inner().cpu_time()))
}

/// As [`stream`], in the CPU time of the process's container: it may have made mappings by the thousand, with long paths.
fn stream_in_budget<T>(
    openers: &Openers,
    parser: &Parser,
    tenant: Tenant,
    pid: u32,
    consume: impl FnOnce(&mut dyn BufRead) -> io::Result<T>,
) -> Result<T, StackLossReason> {
    let spent = parser.spend(tenant, || stream(openers, tenant, pid, consume));
    let (consumed, used) = spent.map_err(Failure::loss)??;
    parser.charge_used(tenant, used);
    Ok(consumed)
}

/// Reads the executable mappings of a process. If it ends meanwhile, those read so far are returned.
pub(crate) fn read_in_budget(
    openers: &Openers,
    parser: &Parser,
    tenant: Tenant,
    pid: u32,
) -> Result<Areas, StackLossReason> {
    stream_in_budget(openers, parser, tenant, pid, |lines| parse(lines))
}

/// Calls `visit` with each mapping of a process, of whatever kind.
pub fn visit_all(
    helpers: &Helpers,
    tenant: Tenant,
    pid: u32,
    mut visit: impl FnMut(&Area),
) -> Result<(), StackLossReason> {
    let parser = helpers.parsers.parser();
    stream_in_budget(&helpers.openers, &parser, tenant, pid, |lines| {
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            parse_mapping(&line).iter().for_each(&mut visit);
            line.clear();
        }
        Ok(())
    })
}

/// Reads the executable mappings of this process.
pub fn read_own() -> io::Result<Areas> {
    parse(BufReader::new(File::open("/proc/self/maps")?))
}

#[cfg(test)]
pub(crate) fn read_in_test(pid: u32) -> Result<Areas, StackLossReason> {
    stream(&Openers::in_threads(), 1, pid, |lines| parse(lines)).map(|(areas, _)| areas)
}

fn parse(mut lines: impl BufRead) -> io::Result<Areas> {
    let mut found = Areas::default();
    let (mut line, mut before, mut bytes) = (Vec::new(), Vec::new(), 0);
    // The line before an anonymous area, until the line after it is read.
    let mut neighbour: Option<Vec<u8>> = None;
    loop {
        std::mem::swap(&mut line, &mut before);
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(n) => bytes += n as u64,
            // ESRCH: the process ended meanwhile. The mappings read so far are still true.
            Err(_) if !found.areas.is_empty() => break,
            Err(error) => return Err(error),
        }
        if let Some(neighbour) = neighbour.take()
            && let Some(area) = found.areas.last_mut()
        {
            area.take_place_of(Neighbour::parse(&neighbour), Neighbour::parse(&line));
        }
        let Some(area) = parse_line(&line) else { continue };
        if found.areas.len() == MAX_AREAS {
            found.truncated = true;
            break;
        }
        // The binary search relies on ascending order, which the kernel guarantees.
        if found.areas.last().is_none_or(|last| last.end <= area.start) {
            neighbour = area.is_anonymous().then(|| before.clone());
            found.areas.push(area);
        }
    }
    found.truncated |= bytes >= MAX_BYTES;
    Ok(found)
}

/// The mapping of a line, if it is executable.
fn parse_line(line: &[u8]) -> Option<Area> {
    is_executable(line).then(|| parse_mapping(line))?
}

fn is_executable(line: &[u8]) -> bool {
    line.split(|&b| b == b' ').nth(1).is_some_and(|permissions| permissions.get(2) == Some(&b'x'))
}

/// Parses `start-end perms offset major:minor inode   path`. Returns none for any other line.
fn parse_mapping(line: &[u8]) -> Option<Area> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = line.splitn(6, |&b| b == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = text()?.split_once('-')?;
    text()?;
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
        path: shortened(unescape(fields.next().unwrap_or_default().trim_ascii_start())),
        in_place_of: None,
    };
    (area.start < area.end).then_some(area)
}

fn shortened(mut path: Vec<u8>) -> Vec<u8> {
    path.truncate(MAX_PATH);
    path.shrink_to_fit();
    path
}

/// Unescapes a path. The kernel escapes only the newline, as `\012`.
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

/// The fields of /proc/PID/stat that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// Clock ticks since boot (field 22). Together with the pid it identifies a process; a pid alone is reused.
    pub start_time: u64,
    /// Where the stack of its first thread begins (field 28). The address is random for each program that the process starts
    /// (exec). 0: not shown to this process.
    pub start_stack: u64,
    /// `PF_KTHREAD` in the flags (field 9). A kernel thread has no user-space memory.
    pub is_kernel_thread: bool,
    /// The state of its first thread is R: on a CPU or waiting for one (field 3).
    is_running: bool,
    /// Clock ticks of CPU time of all its threads, in user mode and in the kernel (fields 14 and 15).
    cpu_ticks: u64,
}

impl ProcessStat {
    /// True if at least one of `samples` samples of a CPU is expected to hit the process, by its share of CPU time
    /// since it started. `uptime` comes from [`uptime`].
    pub fn is_expected_in(self, samples: u64, uptime: u64) -> bool {
        let age = uptime.saturating_sub(self.start_time).max(1);
        // Ticks are rounded down: the process may have run for nearly one more.
        self.is_running || samples.saturating_mul(self.cpu_ticks.saturating_add(1)) >= age
    }
}

/// Reads /proc/PID/stat.
pub fn stat(pid: u32) -> io::Result<ProcessStat> {
    let mut stat = Vec::new();
    File::open(format!("/proc/{pid}/stat"))?.take(4096).read_to_end(&mut stat)?;
    parse_stat(&stat)
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat does not have the format of proc(5)")))
}

/// The fields of a `/proc/PID/stat` behind the last parenthesis: the comm may contain spaces and parentheses.
pub fn fields_after_comm(stat: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let after = stat.iter().rposition(|&b| b == b')')? + 1;
    Some(stat[after..].split(|&b| b.is_ascii_whitespace()).filter(|field| !field.is_empty()))
}

fn parse_stat(stat: &[u8]) -> Option<ProcessStat> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let fields: Vec<&[u8]> = fields_after_comm(stat)?.take(26).collect();
    // Numbered as in proc(5). The state, field 3, is the first after the comm.
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |number| std::str::from_utf8(field(number)?).ok()?.parse::<u64>().ok();
    Some(ProcessStat {
        start_time: number(22)?,
        // The kernel writes 1 into such fields where it may not show them.
        start_stack: number(28).filter(|&address| address > 1).unwrap_or(0),
        is_kernel_thread: number(9)? & PF_KTHREAD != 0,
        is_running: field(3)? == b"R",
        cpu_ticks: number(14)?.saturating_add(number(15)?),
    })
}

/// Clock ticks since the machine started; 0 if /proc/uptime cannot be read.
pub fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    // USER_HZ is 100 on every Linux that has BPF.
    (seconds * 100.0) as u64
}

/// The kind of a file's file system, as far as it matters for opening the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilesystemKind {
    /// Another process or another machine answers, or never does. The container may choose it (FUSE).
    Remote,
    /// Layers that the node's root has mounted: the lower files belong to the node.
    Overlay,
    Other,
}

/// The mounts that a process sees, by device (major, minor). They are read from the mount table, without any access to the
/// file systems.
#[derive(Debug, Default)]
pub struct Mounts {
    by_device: HashMap<(u32, u32), FilesystemKind>,
}

/// File systems that another process or another machine serves, without what follows a dot: `fuse.sshfs`, `fuseblk.ntfs`.
/// `fusectl` is not among them, which the kernel itself provides.
const REMOTE: &[&str] = &[
    "fuse", "fuseblk", "virtiofs", "9p", "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "afs", "coda",
    "lustre", "beegfs", "gfs2", "ocfs2", "orangefs", "pvfs2", "vboxsf", "autofs",
];

impl Mounts {
    /// Reads the mount table of a process; empty if it cannot be read.
    pub fn read(pid: u32) -> Mounts {
        let mut table = Vec::new();
        let read = File::open(format!("/proc/{pid}/mountinfo"))
            .and_then(|file| file.take(4 << 20).read_to_end(&mut table));
        if read.is_err() {
            return Mounts::default();
        }
        let mut mounts = Mounts::parse(&table);
        // In a user namespace of its own, a container can mount overlays itself, over any lower directory.
        if !is_in_own_user_namespace(pid) {
            let overlay = |kind: &&mut FilesystemKind| **kind == FilesystemKind::Overlay;
            mounts.by_device.values_mut().filter(overlay).for_each(|kind| *kind = FilesystemKind::Remote);
        }
        mounts
    }

    /// Reads the mount table only if one of these mappings needs it. Devices with major 0 are virtual file systems,
    /// such as FUSE, network file systems and overlays. The exception is fuseblk, which only the node's root can mount.
    pub fn for_areas(pid: u32, areas: &[Area]) -> Mounts {
        let is_virtual = |area: &Area| area.is_file() && area.device.0 == 0;
        if areas.iter().any(is_virtual) { Mounts::read(pid) } else { Mounts::default() }
    }

    fn parse(table: &[u8]) -> Mounts {
        let mut mounts = Mounts::default();
        for (device, kind) in table.split(|&b| b == b'\n').filter_map(parse_mount) {
            let kind = match kind.split('.').next().unwrap_or_default() {
                kind if REMOTE.contains(&kind) => FilesystemKind::Remote,
                "overlay" => FilesystemKind::Overlay,
                _ => FilesystemKind::Other,
            };
            mounts.by_device.insert(device, kind);
        }
        mounts
    }

    pub fn filesystem(&self, device: (u32, u32)) -> FilesystemKind {
        // A virtual one that the process does not see, for example a detached mount, may be of any kind.
        let unseen = if device.0 == 0 { FilesystemKind::Remote } else { FilesystemKind::Other };
        self.by_device.get(&device).copied().unwrap_or(unseen)
    }

    /// Whether the path of a file may lead through a file system that does not answer.
    pub fn has_remote(&self) -> bool {
        self.by_device.values().any(|kind| *kind == FilesystemKind::Remote)
    }
}

/// True if the process is in podopsy's own user namespace.
fn is_in_own_user_namespace(pid: u32) -> bool {
    let inode = |process: &str| Some(std::fs::metadata(format!("/proc/{process}/ns/user")).ok()?.ino());
    let own = inode("self");
    own.is_some() && own == inode(&pid.to_string())
}

/// The device and the kind in a line of the mount table.
fn parse_mount(line: &[u8]) -> Option<((u32, u32), String)> {
    let line = String::from_utf8_lossy(line);
    // The first ` - ` is the separator: the kernel escapes spaces in the fields before it (`mangle` in
    // fs/proc_namespace.c).
    let (head, tail) = line.split_once(" - ")?;
    let (major, minor) = head.split(' ').nth(2)?.split_once(':')?;
    let kind = tail.split(' ').next()?.to_owned();
    Some(((major.parse().ok()?, minor.parse().ok()?), kind))
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    use super::*;

    /// The mappings in the content of a `/proc/PID/maps`.
    pub fn maps(bytes: &[u8]) -> Areas {
        parse(bytes).unwrap_or_default()
    }

    /// The mounts in the content of a `/proc/PID/mountinfo`.
    pub fn mounts(bytes: &[u8]) -> Mounts {
        Mounts::parse(bytes)
    }

    /// The fields in the content of a `/proc/PID/stat`.
    pub fn stat(bytes: &[u8]) -> Option<ProcessStat> {
        parse_stat(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_mappings_are_kept_and_malformed_lines_are_skipped() {
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
    fn anonymous_memory_in_place_of_a_files_code_is_that_code() {
        let maps = |after: &str, anonymous: &str| {
            format!(
                "1000-2000 r--p 00000000 fe:01 77 /bin/a\n2000-5000 rwxp 00000000 00:00 0{anonymous}\n{after}\n"
            )
        };
        let second = |text: String| parse(text.as_bytes()).unwrap().areas.remove(0);
        let in_place = second(maps("5000-6000 r--p 00004000 fe:01 77 /bin/a", ""));
        assert_eq!((in_place.offset, in_place.inode, in_place.path.as_slice()), (0x1000, 77, &b"/bin/a"[..]));
        assert_eq!(
            (in_place.start, in_place.end, in_place.in_place_of),
            (0x2000, 0x5000, Some((0x1000, 0x2000)))
        );
        let named = second(maps("5000-6000 r--p 00004000 fe:01 77 /bin/a", "   [anon:text]"));
        assert!(named.in_place_of.is_some());
        for (after, anonymous) in [
            ("5000-6000 r--p 00003000 fe:01 77 /bin/a", ""), // the file goes on at another offset
            ("6000-7000 r--p 00004000 fe:01 77 /bin/a", ""), // not adjacent
            ("5000-6000 r--p 00004000 fe:01 78 /bin/b", ""), // another file
            ("5000-6000 r--p 00004000 00:00 0", ""),
            ("garbage", ""),
            ("5000-6000 r--p 00004000 fe:01 77 /bin/a", "   [stack]"),
        ] {
            let area = second(maps(after, anonymous));
            assert!(!area.is_file() && area.in_place_of.is_none(), "{after} {anonymous}");
        }
    }

    #[test]
    fn a_copy_of_a_part_of_a_files_code_continues_the_code_beside_it() {
        // As lld lays out a file: each segment's offset in the file differs from its address by another page.
        let maps = |before: &str, after: &str| {
            format!(
                "2000-3000 {before} fe:01 77 /bin/a\n3000-5000 r-xp 00000000 00:00 0\n5000-6000 {after} fe:01 77 /bin/a\n"
            )
        };
        let copied = |before, after| {
            let areas = parse(maps(before, after).as_bytes()).unwrap();
            let area = areas.find(0x3000).unwrap();
            area.in_place_of.map(|_| area.offset)
        };
        assert_eq!(copied("r-xp 00001000", "r--p 00003000"), Some(0x2000));
        assert_eq!(copied("r--p 00002000", "r-xp 00004000"), Some(0x2000));
        assert_eq!(copied("r-xp 00001000", "r-xp 00004000"), Some(0x2000));
        // The copy may be of either part, or of parts of both.
        assert_eq!(copied("r-xp 00001000", "r-xp 00003000"), None);
        assert_eq!(copied("r--p 00001000", "rw-p 00003000"), None);
        // More was copied than the file has before its next part.
        assert_eq!(copied("r--p 00000000", "r-xp 00001000"), None);
    }

    #[test]
    fn the_number_of_mappings_is_bounded_and_marked_as_truncated() {
        let text: String =
            (0..MAX_AREAS + 5).map(|i| format!("{:x}-{:x} r-xp 0 0:0 0\n", i * 16, i * 16 + 16)).collect();
        let areas = parse(text.as_bytes()).unwrap();
        assert!(areas.truncated);
        assert_eq!(areas.areas.len(), MAX_AREAS);
    }

    #[test]
    fn a_comm_with_parentheses_does_not_shift_the_fields() {
        let line = b"7 (a) b) R 1 2 3) S 1 2 3 4 5 2129984 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21 22 23 24 7777\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!(
            stat,
            ProcessStat {
                start_time: 4711,
                start_stack: 7777,
                is_kernel_thread: true,
                is_running: false,
                cpu_ticks: 11 + 12
            }
        );
        assert_eq!(parse_stat(b"7 (a) S 1 2 3"), None);
        let own = super::stat(std::process::id()).unwrap();
        assert!(own.start_time > 0 && own.start_time <= uptime() && !own.is_kernel_thread);
    }

    #[test]
    fn a_process_with_enough_cpu_time_is_expected_in_samples() {
        let stat = ProcessStat {
            start_time: 1000,
            start_stack: 0,
            is_kernel_thread: false,
            is_running: false,
            cpu_ticks: 9,
        };
        // With one hundredth of a CPU, a hundred samples hit it once.
        assert!(
            stat.is_expected_in(100, 2000) && !stat.is_expected_in(99, 2000) && !stat.is_expected_in(0, 2000)
        );
        assert!(ProcessStat { is_running: true, ..stat }.is_expected_in(0, 2000));
        // It started after uptime was read.
        assert!(stat.is_expected_in(1, 900));
        assert!(ProcessStat { cpu_ticks: u64::MAX, ..stat }.is_expected_in(1, 2000));
    }

    #[test]
    fn the_kind_of_a_file_system_is_found_by_its_device() {
        let table = b"36 35 0:52 / /mnt/x rw,noatime shared:1 - fuse.sshfs host:/ rw\n\
            36 35 98:0 / /mnt rw - ext4 /dev/root rw\n\
            40 35 0:60 / / rw - overlay overlay rw,lowerdir=/a:/b - fuse x y\n\
            41 35 0:61 / /\\040-\\040overlay rw - tmpfs none rw\ngarbage\n\
            42 35 0:62 / /sys/fs/fuse/connections rw - fusectl fusectl rw\n\
            43 35 0:63 / /data rw - nfs4 server:/data rw\n";
        let mounts = Mounts::parse(table);
        assert!(mounts.has_remote());
        // The last one is in no mount.
        for device in [(0, 52), (0, 63), (0, 99)] {
            assert_eq!(mounts.filesystem(device), FilesystemKind::Remote, "{device:?}");
        }
        for device in [(98, 0), (0, 61), (1, 1), (0, 62)] {
            assert_eq!(mounts.filesystem(device), FilesystemKind::Other, "{device:?}");
        }
        // An option with ` - fuse` in it is not the separator.
        assert_eq!(mounts.filesystem((0, 60)), FilesystemKind::Overlay);
        assert!(is_in_own_user_namespace(std::process::id()));
    }
}
