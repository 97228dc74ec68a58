//! The opener's loop: a request, its answer, the next request, until the socket is closed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use podopsy_helper::channel::{receive, send};
use podopsy_helper::{FileStat, open_sealed, seal};

use podopsy_system::clock;

use crate::open::{self, out_of_reach};
use crate::request::{OpenError, Reply, Request};
use crate::{jail, openers::ARGUMENT};

/// Makes this process the supervisor if it was started as one, and returns its exit code at the end. To be called first of
/// all in `main`.
pub fn run_if_asked() -> Option<ExitCode> {
    if std::env::args_os().nth(1)? != *OsStr::new(ARGUMENT) {
        return None;
    }
    let work = |socket: UnixStream| {
        jail::narrow(socket.as_raw_fd())?;
        serve(socket)
    };
    Some(podopsy_helper::run(c"podopsy-opener", jail::enter, &work))
}

/// Bytes of one part of a memory.
const MAX_PART: usize = 128 << 10;
/// Bytes that are read of a file at a time.
const CHUNK: usize = 64 << 10;

/// Serves requests until the other end is closed.
pub(crate) fn serve(mut socket: UnixStream) -> io::Result<()> {
    loop {
        let (request, mut sent): (Request, Vec<File>) = match receive(&mut socket) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            received => received?,
        };
        if let Request::Maps { pid } = request {
            stream(&mut socket, open::maps(pid))?;
            continue;
        }
        let answered = handle(request, sent.pop());
        let (reply, sealed) = answered.unwrap_or_else(|error| (Reply::Failed(error), None));
        let files: Vec<_> = sealed.iter().map(|file| file.as_raw_fd()).collect();
        send(&mut socket, &reply, &files)?;
    }
}

fn handle(request: Request, sent: Option<File>) -> Result<(Reply, Option<OwnedFd>), OpenError> {
    match request {
        Request::Mapped { pid, area } => opened(open::mapped_file(pid, &area)?),
        Request::InRoot { pid, path } => opened(open::file_in_root(pid, &path)?),
        Request::Content { pid, path, max_bytes } => {
            Ok((Reply::Content(open::content_in_root(pid, &path, max_bytes)?), None))
        }
        Request::OpenMemory { pid } => opened(open::memory(pid)?),
        Request::ReadMemory { parts } => {
            let memory = open_sealed(sent.ok_or(OpenError::Unavailable)?).map_err(out_of_reach)?;
            Ok((Reply::Memory(parts.iter().map(|part| read_part(&memory, *part)).collect()), None))
        }
        // It was handled by the caller.
        Request::Maps { .. } => Err(OpenError::Unavailable),
        #[cfg(feature = "testing")]
        Request::Hang => loop {
            std::thread::sleep(std::time::Duration::from_secs(3600));
        },
        #[cfg(feature = "testing")]
        Request::Delay { waits, each } => {
            (0..waits).for_each(|_| std::thread::sleep(each));
            Ok((Reply::Content(Vec::new()), None))
        }
        #[cfg(feature = "testing")]
        Request::Die => std::process::abort(),
    }
}

/// The bytes of a part; fewer if the memory ends before.
fn read_part(memory: &File, (address, len): (u64, u32)) -> Option<Vec<u8>> {
    let mut bytes = vec![0; (len as usize).min(MAX_PART)];
    let read = memory.read_at(&mut bytes, address).ok()?;
    bytes.truncate(read);
    Some(bytes)
}

/// Answers with a socket, and copies the file into it. Each read may wait, for example for a process that holds the lock of its
/// address space; the agent waits for a bounded time.
fn stream(socket: &mut UnixStream, file: Result<File, OpenError>) -> io::Result<()> {
    let file = match file {
        Ok(file) => file,
        Err(error) => return send(socket, &Reply::Failed(error), &[]),
    };
    let begin = clock::thread_cpu();
    let (receiver, mut sender) = UnixStream::pair()?;
    send(socket, &Reply::Streaming, &[receiver.as_raw_fd()])?;
    drop(receiver);
    let (mut chunk, mut offset) = (vec![0; CHUNK], 0);
    while let Ok(read @ 1..) = file.read_at(&mut chunk, offset) {
        // The agent has read as much as it wanted, and does not wait for what follows.
        if sender.write_all(&chunk[..read]).is_err() {
            break;
        }
        offset += read as u64;
    }
    drop(sender);
    send(socket, &Reply::Streamed(clock::thread_cpu().saturating_sub(begin)), &[])
}

/// Seals a file, and closes it here before the answer: the file system may not answer to that, either.
fn opened(file: File) -> Result<(Reply, Option<OwnedFd>), OpenError> {
    let stat = FileStat::from(&file.metadata().map_err(out_of_reach)?);
    let sealed = seal(file).map_err(|_| OpenError::Unavailable)?;
    Ok((Reply::Opened(stat), Some(sealed)))
}
