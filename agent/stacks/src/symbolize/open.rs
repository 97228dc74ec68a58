//! Opens the file behind a mapping safely. The container chooses the file: it can be a symlink, a FIFO, a device, or a
//! huge sparse file.
//!
//! A path is first resolved to a reference (`O_PATH`), which does not open the file and has no side effects on devices
//! and FIFOs. Then the reference is checked, and only a regular file is opened for reading.
//!
//! Must not depend on: ELF, caches. Nothing here reads the content of a file.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::maps::{Area, FilesystemKind};
use crate::StackLossReason;

/// The largest file that is opened. The biggest shared libraries with debug information are near 2 GB.
const MAX_FILE: u64 = 4 << 30;

/// The reasons that will not change for this file. For the others, the process may have ended or mapped something else.
pub const PERMANENT: [StackLossReason; 3] =
    [StackLossReason::FileOnFuse, StackLossReason::FileNotRegular, StackLossReason::FileTooLarge];

/// Opens the very inode behind `area`, which lies on `filesystem`.
pub fn mapped_file(pid: u32, area: &Area, filesystem: FilesystemKind) -> Result<File, StackLossReason> {
    if filesystem == FilesystemKind::Fuse {
        return Err(StackLossReason::FileOnFuse);
    }
    let reference = match by_map_files(pid, area) {
        Ok(file) => file,
        // Without CAP_SYS_ADMIN and CAP_CHECKPOINT_RESTORE, or when the mapping has changed.
        Err(_) => by_path(pid, area)?,
    };
    regular_file(&reference)
}

/// /proc/PID/map_files/START-END is a magic link to the mapped inode itself. It is right for deleted files, in other
/// mount namespaces, and when another file has been put at the path.
fn by_map_files(pid: u32, area: &Area) -> io::Result<File> {
    reference(Path::new(&format!("/proc/{pid}/map_files/{:x}-{:x}", area.start, area.end)))
}

/// Resolves the path inside the process's root, and checks that it is still the mapped file.
fn by_path(pid: u32, area: &Area) -> Result<File, StackLossReason> {
    let root =
        reference(Path::new(&format!("/proc/{pid}/root"))).map_err(|_| StackLossReason::FileOutOfReach)?;
    let file = reference_inside(&root, area.file_path()).map_err(|_| StackLossReason::FileOutOfReach)?;
    let meta = file.metadata().map_err(|_| StackLossReason::FileOutOfReach)?;
    let device = (libc::major(meta.dev()), libc::minor(meta.dev()));
    if (device, meta.ino()) != (area.device, area.inode) {
        return Err(StackLossReason::FileReplaced);
    }
    Ok(file)
}

/// Resolves `path` as a process with this root does, without opening the file. No symlink leads out of the root, and no
/// magic link is followed.
pub fn reference_inside(root: &File, path: &[u8]) -> io::Result<File> {
    // openat2 fails with any other flag besides O_PATH; openat would ignore it.
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(File::from(openat2(root.as_fd(), Path::new(OsStr::from_bytes(path)), how)?))
}

/// Resolves `path` without opening the file.
pub fn reference(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)
}

/// Opens the file of a reference for reading, if it is a regular file within the size limit.
pub fn regular_file(reference: &File) -> Result<File, StackLossReason> {
    let meta = reference.metadata().map_err(|_| StackLossReason::FileOutOfReach)?;
    if !meta.is_file() {
        return Err(StackLossReason::FileNotRegular);
    }
    if meta.len() > MAX_FILE {
        return Err(StackLossReason::FileTooLarge);
    }
    // O_NONBLOCK: a write lease (F_SETLEASE) held by the container would block the open for lease-break-time (45 s).
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", reference.as_raw_fd()))
        .map_err(|_| StackLossReason::FileOutOfReach)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_or_a_device_is_never_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("libtrap.so");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Opening it would block forever.
        assert_eq!(regular_file(&reference(&fifo).unwrap()).unwrap_err(), StackLossReason::FileNotRegular);
        assert_eq!(
            regular_file(&reference(Path::new("/dev/zero")).unwrap()).unwrap_err(),
            StackLossReason::FileNotRegular
        );
    }

    #[test]
    fn without_map_files_the_path_must_still_be_the_mapped_file() {
        let areas = super::super::maps::read(std::process::id()).unwrap().areas;
        let own = areas.into_iter().find(Area::is_file).unwrap();
        assert!(by_map_files(std::process::id(), &own).is_ok() || !nix::unistd::geteuid().is_root());
        assert!(by_path(std::process::id(), &own).is_ok());
        let swapped = Area { inode: own.inode ^ 1, ..own };
        assert_eq!(by_path(std::process::id(), &swapped).unwrap_err(), StackLossReason::FileReplaced);
        let gone = Area { path: b"/no/such/file".to_vec(), ..swapped };
        assert_eq!(by_path(std::process::id(), &gone).unwrap_err(), StackLossReason::FileOutOfReach);
    }

    #[test]
    fn a_symlink_cannot_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("lib.so")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd", dir.path().join("up.so")).unwrap();
        let root = reference(dir.path()).unwrap();
        for path in [&b"/lib.so"[..], b"/up.so"] {
            assert_eq!(
                reference_inside(&root, path).unwrap_err().kind(),
                io::ErrorKind::NotFound,
                "{path:?}"
            );
        }
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        for path in [&b"/lib.so"[..], b"/up.so", b"etc/passwd"] {
            let file = regular_file(&reference_inside(&root, path).unwrap()).unwrap();
            assert_eq!(io::read_to_string(file).unwrap(), "inside", "{path:?}");
        }
    }

    #[test]
    fn a_sparse_file_of_a_terabyte_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 40).unwrap();
        assert_eq!(
            regular_file(&reference(file.path()).unwrap()).unwrap_err(),
            StackLossReason::FileTooLarge
        );
    }
}
