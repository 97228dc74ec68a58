//! What an opener is asked, and what it answers.

use std::time::Duration;

use podopsy_helper::FileStat;
use serde::{Deserialize, Serialize};

/// What to open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The file behind a mapping of a process. Answer: [`Reply::Opened`], with the sealed file.
    Mapped { pid: u32, area: MappedArea },
    /// A file below the root of a process. Answer: [`Reply::Opened`], with the sealed file.
    InRoot { pid: u32, path: Vec<u8> },
    /// The content of a file below the root of a process, which may have `max_bytes`. Answer: [`Reply::Content`].
    Content { pid: u32, path: Vec<u8>, max_bytes: u64 },
    /// `/proc/PID/maps`. Answer: [`Reply::Streaming`], with a socket that the content comes through.
    Maps { pid: u32 },
    /// `/proc/PID/mem`. Answer: [`Reply::Opened`], with the sealed file.
    OpenMemory { pid: u32 },
    /// Parts of a memory: address and length. Comes with the sealed file. Answer: [`Reply::Memory`].
    ReadMemory { parts: Vec<(u64, u32)> },
    /// Does not answer.
    #[cfg(feature = "testing")]
    Hang,
    /// Answers after some waits, like a slow disk.
    #[cfg(feature = "testing")]
    Delay { waits: u32, each: Duration },
    /// Ends.
    #[cfg(feature = "testing")]
    Die,
}

impl Request {
    /// Whether it is about a file of the container, and not about what `/proc` has of a process.
    pub fn is_of_file(&self) -> bool {
        !matches!(self, Request::Maps { .. } | Request::OpenMemory { .. } | Request::ReadMemory { .. })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Opened(FileStat),
    Content(Vec<u8>),
    Streaming,
    /// Follows when the content has come to its end: the CPU time that it took.
    Streamed(Duration),
    /// As many as were asked for; a part may be shorter. None: it could not be read.
    Memory(Vec<Option<Vec<u8>>>),
    Failed(OpenError),
}

/// A mapping, as `/proc/PID/maps` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedArea {
    /// Virtual addresses, end exclusive.
    pub start: u64,
    pub end: u64,
    /// Device (major, minor) and inode.
    pub device: (u32, u32),
    pub inode: u64,
    /// The path in the process's own mount namespace, without ` (deleted)`.
    pub path: Vec<u8>,
}

/// Why a file was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenError {
    /// The process ended, or the file is not there.
    OutOfReach,
    /// A permission is missing.
    NotPermitted,
    /// It is a device, a FIFO or something else that is not a regular file.
    NotRegular,
    TooLarge,
    /// Another file stands at the path of the mapping now.
    Replaced,
    /// The file system did not answer in time, or another file of the container was on one that did not.
    NoAnswer,
    /// No opener could be started, or it was lost.
    Unavailable,
}
