//! Runs a function in a namespace, on a thread that ends with it.

use std::fs::File;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::NetworkError;

/// Runs `work` in a network namespace. The namespace of a thread is its own, so that no other thread notices.
pub fn run_in<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| NetworkError::Enter(error.into()))?;
            Ok(work())
        });
        thread.join().unwrap_or(Err(NetworkError::Thread))
    })
}
