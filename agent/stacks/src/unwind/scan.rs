//! Finds the files that processes have mapped, and names them as the kernel side does.
//!
//! Must not depend on: tables, rows. The files belong to containers: an opener opens them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use podopsy_opener::Openers;
use podopsy_wire::FileKey;
use podopsy_worker::{FileHandle, MAX_UNWIND_BYTES, Parser, Tenant};

use crate::file_numbers::NumberedFile;
use crate::symbolize::maps::{self, Area, Areas, FilesystemKind, Mounts};
use crate::symbolize::open;
use crate::{StackLossReason, tenant};

/// The processes whose files get tables before the first sample requests them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrebuildScope {
    Process(u32),
    /// Processes that run at the moment, and those that have used so much CPU time since they started that one of `samples`
    /// samples of a CPU is expected to meet them. A node has more programs than are ever seen on a CPU; the tables of the
    /// others are built on request.
    Node {
        samples: u64,
        /// Without the processes of podopsy's own cgroup, which are not sampled.
        leave_out_own: bool,
    },
    /// Processes in these cgroups, given by paths below the root of their hierarchy.
    Cgroups(Vec<String>),
}

/// A file whose table has not been requested.
pub(super) struct PendingFile {
    /// A process that has the file mapped.
    pub pid: u32,
    pub area: Area,
    /// A table is built only if the call frame information has at most this many bytes.
    pub max_bytes: u64,
}

/// The files that the processes of a scope have mapped, each once, in the order of [`smallest_last`].
pub(super) fn files_in_scope(openers: &Openers, parser: &Parser, scope: &PrebuildScope) -> Vec<PendingFile> {
    let mut files = HashMap::new();
    for pid in pids_in_scope(scope) {
        for area in mapped_files(openers, parser, pid).unwrap_or_default() {
            let id = (area.device, area.inode);
            files.entry(id).or_insert(PendingFile { pid, area, max_bytes: MAX_UNWIND_BYTES });
        }
    }
    smallest_last(files.into_values().collect())
}

fn pids_in_scope(scope: &PrebuildScope) -> Vec<u32> {
    let mut pids = match scope {
        PrebuildScope::Process(pid) => return vec![*pid],
        PrebuildScope::Cgroups(paths) if paths.is_empty() => return Vec::new(),
        PrebuildScope::Node { .. } | PrebuildScope::Cgroups(_) => all_pids(),
    };
    let uptime = maps::uptime();
    pids.retain(|pid| match scope {
        PrebuildScope::Cgroups(paths) => is_in_cgroups(*pid, paths),
        PrebuildScope::Node { samples, leave_out_own } => {
            maps::stat(*pid).is_ok_and(|stat| stat.is_expected_in(*samples, uptime))
                && !(*leave_out_own && is_in_own_cgroup(*pid))
        }
        PrebuildScope::Process(_) => true,
    });
    pids
}

fn all_pids() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn cgroups_of(process: &str) -> String {
    std::fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default()
}

fn is_in_own_cgroup(pid: u32) -> bool {
    cgroups_of(&pid.to_string()) == cgroups_of("self")
}

fn is_in_cgroups(pid: u32, paths: &[String]) -> bool {
    let cgroups = cgroups_of(&pid.to_string());
    // Each line is `hierarchy:controllers:path`.
    let mut own_paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    own_paths.any(|own| paths.iter().any(|path| path == own))
}

/// The executable mappings of a process, read in the CPU time of its container; none if it has ended. An error is a reason for
/// which they may be read later.
pub(super) fn mappings(openers: &Openers, parser: &Parser, pid: u32) -> Result<Areas, StackLossReason> {
    match maps::read_in_budget(openers, parser, tenant::of_process(pid), pid) {
        Err(StackLossReason::MappingsProcessGone) => Ok(Areas::default()),
        read => read,
    }
}

/// The mappings of a process that belong to a file.
pub(super) fn mapped_files(
    openers: &Openers,
    parser: &Parser,
    pid: u32,
) -> Result<Vec<Area>, StackLossReason> {
    let mut areas = mappings(openers, parser, pid)?.areas;
    areas.retain(Area::is_file);
    Ok(areas)
}

/// A file that was opened by its mapping in a process.
pub(super) struct OpenedFile {
    pub pid: u32,
    pub tenant: Tenant,
    pub area: Area,
    pub filesystem: FilesystemKind,
    pub file: Arc<FileHandle>,
}

impl OpenedFile {
    /// The same, with its number in frames.
    pub fn numbered(&self, number: u32) -> NumberedFile {
        let OpenedFile { pid, tenant, ref area, filesystem, ref file } = *self;
        NumberedFile { number, file: Ok(Arc::clone(file)), pid, tenant, area: area.clone(), filesystem }
    }
}

/// Opens the file behind a mapping.
pub(super) fn open_file(
    openers: &Openers,
    pid: u32,
    tenant: Tenant,
    area: &Area,
) -> Result<OpenedFile, StackLossReason> {
    let filesystem = filesystem_of(pid, area);
    let file = Arc::new(open::mapped_file(openers, (pid, tenant), area, filesystem)?);
    Ok(OpenedFile { pid, tenant, area: area.clone(), filesystem, file })
}

/// The kind of the file system that the file behind a mapping lies on.
pub(super) fn filesystem_of(pid: u32, area: &Area) -> FilesystemKind {
    Mounts::for_areas(pid, std::slice::from_ref(area)).filesystem(area.device)
}

/// Sorts by size, descending: the last file is the smallest, and is the first one to be popped.
pub(super) fn smallest_last(mut files: Vec<PendingFile>) -> Vec<PendingFile> {
    files.sort_by_key(|file| Reverse(file.area.end - file.area.start));
    files
}

/// True if `file` has the size and the change time of `key`. The inode and the device are not compared, because an overlay
/// may show others. A process can have mapped another file since.
pub(super) fn is_file_of_key(file: &FileHandle, key: &FileKey) -> bool {
    (file.stat.size, file.stat.changed.0 as u32) == (key.size, key.changed)
}

/// True if a mapping has the inode and the device of `key`.
pub(super) fn is_area_of_key(area: &Area, key: &FileKey) -> bool {
    (area.inode, kernel_device(area.device)) == (key.inode, key.device)
}

/// A device number as the kernel stores it: 12 bits of major number, 20 of minor (`<linux/kdev_t.h>`).
fn kernel_device((major, minor): (u32, u32)) -> u32 {
    major << 20 | minor
}

/// The key that the kernel side has for a file, as far as user space can tell. The device is the mapping's, which is that
/// of the inode itself.
pub(crate) fn file_key(file: &FileHandle, area: &Area) -> FileKey {
    let changed = file.stat.changed.0 as u32;
    FileKey { inode: area.inode, size: file.stat.size, device: kernel_device(area.device), changed }
}
