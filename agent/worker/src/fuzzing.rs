//! What is private in this crate and has a fuzz target.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use podopsy_helper::channel::receive;

use crate::job::{Answer, JobOrder};

/// Receives frames of a worker in the agent, and frames of the agent in a worker. Returns how many were whole.
///
/// The bytes must fit into the buffer of a socket: 64 KiB do.
pub fn frames(bytes: &[u8]) -> usize {
    all_frames::<(Answer, Duration)>(bytes) + all_frames::<JobOrder>(bytes)
}

fn all_frames<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> usize {
    let Ok((mut sender, mut receiver)) = UnixStream::pair() else { return 0 };
    if sender.write_all(bytes).is_err() {
        return 0;
    }
    drop(sender);
    std::iter::from_fn(|| receive::<T>(&mut receiver).ok()).count()
}
