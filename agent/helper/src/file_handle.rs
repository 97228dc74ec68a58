//! A file of a container that the agent holds open without having it among its descriptors.
//!
//! The file system may be served by the container (FUSE), or by a server that does not answer (NFS). Then any call on the file
//! may wait for ever, in a wait that not even SIGKILL ends: `fstat`, and `close`, too, which sends FUSE_FLUSH
//! (`fs/fuse/file.c`), also for each descriptor of a process that ends. So the agent holds a socket in whose queue the file
//! lies. Closing that socket drops the file without a flush. A helper takes the file out with `MSG_PEEK`, which leaves it in
//! the queue for the next one.
//!
//! ```text
//! opener ─ open, fstat ─▶ socket with the file ─▶ agent (FileHandle) ─▶ parsing worker ─ MSG_PEEK ─▶ pread
//! ```

use std::fs::{File, Metadata};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use crate::channel::files_of;

/// What `fstat` returned when a file was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileStat {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Seconds and nanoseconds of the modification time (mtime).
    pub modified: (i64, i64),
    /// Seconds and nanoseconds of the change time (ctime). The kernel sets it whenever content or size change, and a container
    /// cannot choose it.
    pub changed: (i64, i64),
}

impl From<&Metadata> for FileStat {
    fn from(meta: &Metadata) -> FileStat {
        FileStat {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// An open file that this process does not touch, and what it was when it was opened.
#[derive(Debug)]
pub struct FileHandle {
    /// The file itself, or a socket that it is sealed in.
    descriptor: OwnedFd,
    pub stat: FileStat,
}

impl FileHandle {
    /// A file of podopsy's own, or of the node: calls on it return.
    pub fn from_file(file: File) -> io::Result<FileHandle> {
        let stat = FileStat::from(&file.metadata()?);
        Ok(FileHandle { descriptor: file.into(), stat })
    }

    /// A file that an opener has sealed.
    pub fn from_sealed(socket: OwnedFd, stat: FileStat) -> FileHandle {
        FileHandle { descriptor: socket, stat }
    }
}

impl AsRawFd for FileHandle {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

/// Puts a file into a socket, and closes it here, which may wait for the file system.
pub fn seal(file: File) -> io::Result<OwnedFd> {
    let (socket, sender) = UnixStream::pair()?;
    let files = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&files)];
    sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    drop(file);
    Ok(socket.into())
}

/// The file of a [`FileHandle`] that was sent to this process: itself, or a copy of the descriptor in the socket.
pub fn open_sealed(sent: File) -> io::Result<File> {
    if !is_socket(&sent)? {
        return Ok(sent);
    }
    let mut buffer = nix::cmsg_space!([RawFd; 1]);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(sent.as_raw_fd(), &mut parts, Some(&mut buffer), flags)?;
    files_of(&message)?.pop().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `fstat` alone: std's `metadata` may use another call than the filter allows, and the descriptor may be any.
fn is_socket(file: &File) -> io::Result<bool> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel writes the whole structure if it returns 0.
    let result = unsafe { libc::fstat(file.as_raw_fd(), stat.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded.
    let mode = unsafe { stat.assume_init() }.st_mode;
    Ok(mode & libc::S_IFMT == libc::S_IFSOCK)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn read(file: &File) -> String {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; 64];
        let len = file.read_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_sealed_file_can_be_taken_out_again_and_again() {
        let original = file("content");
        let stat = FileStat::from(&original.metadata().unwrap());
        let handle = FileHandle::from_sealed(seal(original).unwrap(), stat);
        for _ in 0..3 {
            let sent = File::from(handle.descriptor.try_clone().unwrap());
            let opened = open_sealed(sent).unwrap();
            assert_eq!(read(&opened), "content");
            assert_eq!(FileStat::from(&opened.metadata().unwrap()), handle.stat);
        }
    }

    #[test]
    fn a_file_that_is_not_sealed_is_itself_and_an_empty_socket_is_an_error() {
        assert_eq!(read(&open_sealed(file("plain")).unwrap()), "plain");
        let (socket, other) = UnixStream::pair().unwrap();
        assert!(open_sealed(File::from(OwnedFd::from(socket))).is_err(), "nothing was sent");
        drop(other);
    }
}
