//! The kernel's log (`/dev/kmsg`): what it alone says of OOM kills, and those that nobody was there to see.
//!
//! It enriches and never counts: its headers are rate limited, and its ring is short. Must not know: aya,
//! pods, events. Needs root or CAP_SYSLOG where `kernel.dmesg_restrict` is 1.

pub mod line;
pub mod record;
pub mod visit;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::unix::AsyncFd;

use podopsy_model::Losses;
use visit::{LoggedKill, Visit, Visits};

/// A record is at most so long (`PRINTKRB_RECORD_MAX`, and room).
const RECORD_MAX: usize = 16 << 10;
const PATH: &str = "/dev/kmsg";

/// What the ring held when it was asked.
#[derive(Debug, Default)]
pub struct KernelLogBacklog {
    pub visits: Vec<Visit>,
    /// Sequence numbers of the first and the last record that were there.
    pub first: Option<u64>,
    pub last: Option<u64>,
}

/// Reads the log from `after` (None: from the oldest record on) to its end.
pub fn backlog(after: Option<u64>) -> anyhow::Result<KernelLogBacklog> {
    let mut file = open(Path::new(PATH))?;
    // SEEK_SET: the first record that is still there.
    file.seek(SeekFrom::Start(0)).context("rewind /dev/kmsg")?;
    let (mut visits, mut first, mut last) = (Visits::default(), None, None);
    let mut buffer = vec![0; RECORD_MAX];
    while let Some(bytes) = next(&mut file, &mut buffer, &mut 0)? {
        let Some(record) = record::parse(bytes) else { continue };
        first = first.or(Some(record.sequence));
        last = Some(record.sequence);
        if after.is_none_or(|after| record.sequence > after) {
            visits.push(record);
        }
    }
    Ok(KernelLogBacklog { visits: visits.into_visits(), first, last })
}

/// The log from now on. Its task ends when it is dropped.
pub struct KernelLogFollower {
    state: Arc<Mutex<FollowerState>>,
    grown: tokio::sync::watch::Receiver<u64>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct FollowerState {
    visits: Visits,
    overruns: u64,
    failed: bool,
}

impl KernelLogFollower {
    /// From the record after `after` on (a [`KernelLogBacklog::last`]), so that nothing falls between the two. An error
    /// says why the log cannot be read.
    pub fn start(after: Option<u64>) -> anyhow::Result<KernelLogFollower> {
        let mut file = open(Path::new(PATH))?;
        file.seek(SeekFrom::Start(0)).context("rewind /dev/kmsg")?;
        // SAFETY: the file owns its descriptor and keeps it open as long as it lives.
        let fd = unsafe { AsyncFd::register(file) }.context("poll /dev/kmsg")?;
        let state = Arc::<Mutex<FollowerState>>::default();
        let (grow, grown) = tokio::sync::watch::channel(0);
        let task = tokio::spawn(follow(fd, after, state.clone(), grow));
        Ok(KernelLogFollower { state, grown, task })
    }

    /// What the log says of the kill of this thread; waits for it until `patience` is over.
    pub async fn kill_of(&self, tid: u32, patience: Duration) -> Option<(Visit, LoggedKill)> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut grown = self.grown.clone();
        loop {
            grown.mark_unchanged();
            if let Some(found) = lock(&self.state).visits.take(tid) {
                return Some(found);
            }
            match tokio::time::timeout_at(deadline, grown.changed()).await {
                Ok(Ok(())) => {}
                // It may have come while nobody was awake to be told.
                _ => return lock(&self.state).visits.take(tid),
            }
        }
    }

    /// What a visit has come to, by the number of its first kill: whether it killed a group, and how many kills
    /// the kernel counts of it.
    pub fn visit_outcome(&self, sequence: u64) -> Option<(bool, u64)> {
        lock(&self.state).visits.of(sequence).map(|visit| (visit.group.is_some(), visit.counted()))
    }

    /// Kills that the kernel counted twice: see [`Visit::repeats`].
    pub fn repeats(&self) -> u64 {
        lock(&self.state).visits.repeats
    }

    /// The last record read.
    pub fn last_sequence(&self) -> Option<u64> {
        lock(&self.state).visits.last_sequence
    }

    /// `kmsg_overrun`: times that the ring was faster than we were; `kmsg_ambiguous`: lines whose names could
    /// be read in two ways; `kmsg_failed`: the log cannot be read any more.
    pub fn losses(&self) -> Losses {
        let state = lock(&self.state);
        let all = [
            ("kmsg_overrun", state.overruns),
            ("kmsg_ambiguous", state.visits.ambiguous),
            ("kmsg_failed", u64::from(state.failed)),
        ];
        all.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect()
    }
}

impl Drop for KernelLogFollower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<FollowerState>) -> MutexGuard<'_, FollowerState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(
    mut fd: AsyncFd<File>,
    after: Option<u64>,
    state: Arc<Mutex<FollowerState>>,
    grow: tokio::sync::watch::Sender<u64>,
) {
    let mut buffer = vec![0; RECORD_MAX];
    loop {
        let Ok(mut ready) = fd.readable_mut().await else { break };
        let mut overruns = 0;
        loop {
            match next(ready.get_inner_mut(), &mut buffer, &mut overruns) {
                Ok(Some(bytes)) => {
                    let record = record::parse(bytes);
                    if let Some(record) = record.filter(|r| after.is_none_or(|after| r.sequence > after)) {
                        lock(&state).visits.push(record);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!("the kernel's log cannot be read any more: {error:#}");
                    lock(&state).failed = true;
                    return;
                }
            }
        }
        lock(&state).overruns += overruns;
        ready.clear_ready();
        grow.send_modify(|n| *n += 1);
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    open.with_context(|| {
        format!("open {} (in a container: privileged, or mount the host's; needs CAP_SYSLOG)", path.display())
    })
}

/// The next record; None: there is none yet. What the ring has overwritten is counted and passed over.
fn next<'a>(file: &mut File, buffer: &'a mut [u8], overruns: &mut u64) -> anyhow::Result<Option<&'a [u8]>> {
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => return Ok(Some(&buffer[..count])),
            Err(error) => match (error.kind(), error.raw_os_error()) {
                (ErrorKind::WouldBlock, _) => return Ok(None),
                (ErrorKind::Interrupted, _) => {}
                (ErrorKind::BrokenPipe, _) => *overruns += 1,
                // Longer than any the kernel writes today: it is skipped, as a lost one.
                (_, Some(libc::EINVAL)) => *overruns += 1,
                _ => return Err(error).context("read /dev/kmsg"),
            },
        }
    }
}
