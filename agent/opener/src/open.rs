//! Opens a file safely. The container chooses the file: it can be a symlink, a FIFO, a device, or a huge sparse file.
//!
//! A path is first resolved to a reference (`O_PATH`), which does not open the file and has no side effects on devices
//! and FIFOs. Then the reference is checked, and only a regular file is opened, for reading.
//!
//! Each of these calls may wait for ever, if the file system does not answer. This code runs in an opener.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::request::{MappedArea, OpenError};

/// The largest file that is opened. The biggest shared libraries with debug information are near 2 GB.
const MAX_FILE: u64 = 4 << 30;

/// Opens the very inode behind a mapping.
pub(crate) fn mapped_file(pid: u32, area: &MappedArea) -> Result<File, OpenError> {
    let reference = match by_map_files(pid, area) {
        Ok(file) => file,
        // Without CAP_SYS_ADMIN and CAP_CHECKPOINT_RESTORE, or when the mapping has changed.
        Err(_) => by_path(pid, area)?,
    };
    regular_file(&reference, MAX_FILE)
}

/// Opens a file below the root of a process.
pub(crate) fn file_in_root(pid: u32, path: &[u8]) -> Result<File, OpenError> {
    let root = reference(Path::new(&format!("/proc/{pid}/root")))?;
    regular_file(&reference_inside(&root, path)?, MAX_FILE)
}

/// The content of a file below the root of a process.
pub(crate) fn content_in_root(pid: u32, path: &[u8], max_bytes: u64) -> Result<Vec<u8>, OpenError> {
    let root = reference(Path::new(&format!("/proc/{pid}/root")))?;
    content_inside(&root, path, max_bytes)
}

fn content_inside(root: &File, path: &[u8], max_bytes: u64) -> Result<Vec<u8>, OpenError> {
    let file = regular_file(&reference_inside(root, path)?, max_bytes)?;
    // One more: the file may have grown, and those of /proc have no size.
    let mut bytes = vec![0; usize::try_from(max_bytes + 1).map_err(|_| OpenError::TooLarge)?];
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(out_of_reach(error)),
        }
    }
    bytes.truncate(read);
    if read as u64 > max_bytes { Err(OpenError::TooLarge) } else { Ok(bytes) }
}

/// /proc/PID/map_files/START-END is a magic link to the mapped inode itself. It is right for deleted files, in other
/// mount namespaces, and when another file has been put at the path.
fn by_map_files(pid: u32, area: &MappedArea) -> Result<File, OpenError> {
    reference(Path::new(&format!("/proc/{pid}/map_files/{:x}-{:x}", area.start, area.end)))
}

/// Resolves the path inside the process's root, and checks that it is still the mapped file.
fn by_path(pid: u32, area: &MappedArea) -> Result<File, OpenError> {
    let root = reference(Path::new(&format!("/proc/{pid}/root")))?;
    let file = reference_inside(&root, &area.path)?;
    let meta = file.metadata().map_err(out_of_reach)?;
    let device = (libc::major(meta.dev()), libc::minor(meta.dev()));
    if (device, meta.ino()) != (area.device, area.inode) {
        return Err(OpenError::Replaced);
    }
    Ok(file)
}

/// Resolves `path` as a process with this root does, without opening the file. No symlink leads out of the root, and no
/// magic link is followed.
fn reference_inside(root: &File, path: &[u8]) -> Result<File, OpenError> {
    // openat2 fails with any other flag besides O_PATH; openat would ignore it.
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let opened = openat2(root.as_fd(), Path::new(OsStr::from_bytes(path)), how);
    opened.map(File::from).map_err(|error| out_of_reach(error.into()))
}

/// Resolves `path` without opening the file.
fn reference(path: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path).map_err(out_of_reach)
}

/// Opens the file of a reference for reading, if it is a regular file within the size limit.
fn regular_file(reference: &File, max_bytes: u64) -> Result<File, OpenError> {
    let meta = reference.metadata().map_err(out_of_reach)?;
    if !meta.is_file() {
        return Err(OpenError::NotRegular);
    }
    if meta.len() > max_bytes {
        return Err(OpenError::TooLarge);
    }
    // O_NONBLOCK: a write lease (F_SETLEASE) held by the container would block the open for lease-break-time (45 s).
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY);
    options.open(format!("/proc/self/fd/{}", reference.as_raw_fd())).map_err(out_of_reach)
}

/// Opens `/proc/PID/mem`, which shows the address space that is current now, also after an exec.
pub(crate) fn memory(pid: u32) -> Result<File, OpenError> {
    File::open(format!("/proc/{pid}/mem")).map_err(out_of_reach)
}

/// Opens `/proc/PID/maps`.
pub(crate) fn maps(pid: u32) -> Result<File, OpenError> {
    File::open(format!("/proc/{pid}/maps")).map_err(out_of_reach)
}

pub(crate) fn out_of_reach(error: io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => OpenError::NotPermitted,
        _ => OpenError::OutOfReach,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(root: &Path, path: &[u8]) -> Result<File, OpenError> {
        regular_file(&reference_inside(&reference(root)?, path)?, MAX_FILE)
    }

    /// The first executable mapping of this program.
    fn own_area() -> MappedArea {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains(" r-xp ") && line.contains('/')).unwrap();
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let ((start, end), (major, minor)) =
            (fields[0].split_once('-').unwrap(), fields[3].split_once(':').unwrap());
        MappedArea {
            start: hex(start),
            end: hex(end),
            device: (hex(major) as u32, hex(minor) as u32),
            inode: fields[4].parse().unwrap(),
            path: fields[5].as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_fifo_or_a_device_is_never_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("libtrap.so");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Opening it would block forever.
        for path in [&fifo, Path::new("/dev/zero")] {
            assert_eq!(regular_file(&reference(path).unwrap(), MAX_FILE).unwrap_err(), OpenError::NotRegular);
        }
    }

    #[test]
    fn without_map_files_the_path_must_still_be_the_mapped_file() {
        let (pid, own) = (std::process::id(), own_area());
        assert!(by_map_files(pid, &own).is_ok() || !nix::unistd::geteuid().is_root());
        assert!(by_path(pid, &own).is_ok());
        let swapped = MappedArea { inode: own.inode ^ 1, ..own };
        assert_eq!(by_path(pid, &swapped).unwrap_err(), OpenError::Replaced);
        let gone = MappedArea { path: b"/no/such/file".to_vec(), ..swapped };
        assert_eq!(by_path(pid, &gone).unwrap_err(), OpenError::OutOfReach);
    }

    #[test]
    fn a_symlink_cannot_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("lib.so")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd", dir.path().join("up.so")).unwrap();
        std::os::unix::fs::symlink("/proc/self/fd/0", dir.path().join("magic.so")).unwrap();
        for path in [&b"/lib.so"[..], b"/up.so", b"/magic.so"] {
            assert_eq!(inside(dir.path(), path).unwrap_err(), OpenError::OutOfReach, "{path:?}");
        }
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        for path in [&b"/lib.so"[..], b"/up.so", b"etc/passwd"] {
            let file = inside(dir.path(), path).unwrap();
            assert_eq!(io::read_to_string(file).unwrap(), "inside", "{path:?}");
        }
    }

    #[test]
    fn a_sparse_file_of_a_terabyte_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 40).unwrap();
        let opened = regular_file(&reference(file.path()).unwrap(), MAX_FILE);
        assert_eq!(opened.unwrap_err(), OpenError::TooLarge);
    }

    fn container(make: impl FnOnce(&Path)) -> Result<Vec<u8>, OpenError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        make(&dir.path().join("etc/resolv.conf"));
        content_inside(&reference(dir.path())?, b"/etc/resolv.conf", 64 << 10)
    }

    #[test]
    fn hostile_files_are_refused_or_read_within_bounds() {
        let refused = |make: &dyn Fn(&Path)| container(make).unwrap_err();
        assert_eq!(refused(&|_| {}), OpenError::OutOfReach);
        for target in ["/etc/hostname", "../../../../etc/hostname", "/proc/self/fd/0"] {
            let link = |path: &Path| std::os::unix::fs::symlink(target, path).unwrap();
            assert_eq!(refused(&link), OpenError::OutOfReach);
        }
        // Opening a FIFO would block forever.
        let fifo = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(refused(&fifo), OpenError::NotRegular);
        assert_eq!(refused(&|path| std::fs::create_dir(path).unwrap()), OpenError::NotRegular);
        let large = "search x\n".repeat(100_000);
        assert_eq!(refused(&|path| std::fs::write(path, &large).unwrap()), OpenError::TooLarge);
        let sparse = |path: &Path| File::create(path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(refused(&sparse), OpenError::TooLarge);
        let garbage: Vec<u8> = (0..60_000u32).map(|i| (i.wrapping_mul(7919) >> 3) as u8).collect();
        assert_eq!(container(|path| std::fs::write(path, &garbage).unwrap()), Ok(garbage.clone()));
    }

    #[test]
    fn a_symlink_is_resolved_inside_the_root() {
        let content = container(|path| {
            std::os::unix::fs::symlink("/run/resolv.conf", path).unwrap();
            let run = path.parent().unwrap().parent().unwrap().join("run");
            std::fs::create_dir(&run).unwrap();
            std::fs::write(run.join("resolv.conf"), "search inside.test\n").unwrap();
        });
        assert_eq!(content.as_deref(), Ok(&b"search inside.test\n"[..]));
    }

    #[test]
    fn a_content_beyond_its_bound_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let read =
            |max_bytes| content_in_root(std::process::id(), path.as_os_str().as_encoded_bytes(), max_bytes);
        assert_eq!(read(9), Err(OpenError::OutOfReach));
        std::fs::write(&path, "search x\n").unwrap();
        assert_eq!(read(9).as_deref(), Ok(&b"search x\n"[..]));
        assert_eq!(read(8), Err(OpenError::TooLarge));
        std::fs::write(&path, "").unwrap();
        assert_eq!(read(8).as_deref(), Ok(&b""[..]));
        // It has no size, and more than eight bytes.
        let status = format!("/proc/{}/status", std::process::id());
        assert_eq!(content_in_root(std::process::id(), status.as_bytes(), 8), Err(OpenError::TooLarge));
    }
}
