//! Frames over a stream socket: a length, then bytes. Descriptors travel with the first byte of a frame.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest frame: the rows of the largest file.
pub const MAX_FRAME: usize = 32 << 20;
/// Bytes of memory that a length may claim before its frame has arrived.
const MAX_CLAIMED: usize = 4 << 10;
/// Descriptors that a frame can carry.
const MAX_FILES: usize = 2;

/// Sends a value with some files.
pub fn send(socket: &mut UnixStream, value: &impl Serialize, files: &[RawFd]) -> io::Result<()> {
    let body = postcard::to_stdvec(value).map_err(io::Error::other)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len as usize <= MAX_FRAME);
    let head = len.ok_or_else(|| io::Error::other("a frame that is too large"))?.to_le_bytes();
    let rights = [ControlMessage::ScmRights(files)];
    let rights = if files.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(&head), IoSlice::new(&body)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None)?;
    // The socket is empty, so that the length always fits at once; a long body does not.
    let of_body = sent.checked_sub(head.len()).ok_or(io::ErrorKind::WriteZero)?;
    socket.write_all(&body[of_body..])
}

/// Receives a value and its files. An end of the stream is [`io::ErrorKind::UnexpectedEof`].
pub fn receive<T: DeserializeOwned>(socket: &mut UnixStream) -> io::Result<(T, Vec<File>)> {
    let mut head = [0; 4];
    let (read, files) = receive_files(socket, &mut head)?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    socket.read_exact(&mut head[read..])?;
    let len = u32::from_le_bytes(head) as usize;
    if len > MAX_FRAME {
        return Err(io::Error::other("a frame that is too large"));
    }
    // Grows with what arrives: the length is a claim of the other side.
    let mut body = Vec::with_capacity(len.min(MAX_CLAIMED));
    socket.take(len as u64).read_to_end(&mut body)?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let value = postcard::from_bytes(&body).map_err(io::Error::other)?;
    Ok((value, files))
}

fn receive_files(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<File>)> {
    let mut buffer = nix::cmsg_space!([RawFd; MAX_FILES]);
    let mut parts = [IoSliceMut::new(bytes)];
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut buffer), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(nix::Error::EINTR) => {}
            received => break received?,
        }
    };
    Ok((message.bytes, files_of(&message)?))
}

/// The files that came with a message that was just received. To be called once.
pub(crate) fn files_of(message: &RecvMsg<'_, '_, ()>) -> nix::Result<Vec<File>> {
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just installed these descriptors in this process, and nothing else has seen them.
            files.extend(descriptors.into_iter().map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) })));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_files_arrive_together() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        let file = File::open("/proc/self/stat").unwrap();
        send(&mut one, &("hello", 7u32), &[file.as_raw_fd()]).unwrap();
        send(&mut one, &("again", 8u32), &[]).unwrap();
        let ((text, number), files): ((String, u32), _) = receive(&mut other).unwrap();
        assert_eq!((text.as_str(), number, files.len()), ("hello", 7, 1));
        assert!(io::read_to_string(&files[0]).unwrap().starts_with(&std::process::id().to_string()));
        let (next, files): ((String, u32), _) = receive(&mut other).unwrap();
        assert_eq!((next, files.len()), (("again".to_owned(), 8), 0));
        drop(one);
        let end = receive::<(String, u32)>(&mut other).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_false_length_costs_no_memory_and_a_false_body_is_an_error() {
        for frame in [&u32::MAX.to_le_bytes()[..], &[0, 0, 0, 1, 9], &[2, 0, 0, 0, 0xff, 0xff]] {
            let (mut one, mut other) = UnixStream::pair().unwrap();
            one.write_all(frame).unwrap();
            drop(one);
            assert!(receive::<(String, u32)>(&mut other).is_err(), "{frame:?}");
        }
    }
}
