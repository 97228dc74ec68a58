//! The kernel's log (`/dev/kmsg`): facts about OOM kills that no other source has, and kills that happened while no
//! recorder was running.
//!
//! The log only adds facts to kills; it never counts them, because its headers are rate limited and its ring is short.
//! Reading it needs root, or CAP_SYSLOG if `kernel.dmesg_restrict` is 1. This module must not depend on aya, pods or
//! events.

pub mod line;
pub mod record;
pub mod visit;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::unix::AsyncFd;

use podopsy_model::Losses;
use podopsy_system::pid_namespace;
use podopsy_system::sync::lock;
use visit::{LoggedKill, Visit, Visits};

/// The longest record that is read: more than the kernel's `PRINTKRB_RECORD_MAX`.
const RECORD_MAX: usize = 16 << 10;
const PATH: &str = "/dev/kmsg";

/// What the log's ring held when it was read.
#[derive(Debug, Default)]
pub struct KernelLogBacklog {
    pub visits: Vec<Visit>,
    /// Sequence numbers of the first and the last record in the ring; None: it was empty.
    pub first: Option<u64>,
    pub last: Option<u64>,
}

/// Reads the log from the record after `after` (None: from the oldest record) to its end.
pub fn read_backlog(after: Option<u64>) -> anyhow::Result<KernelLogBacklog> {
    if pid_namespace::nested().is_some() {
        bail!("{PATH} has the node's process ids, and this is a pid namespace of its own");
    }
    let mut file = open(Path::new(PATH))?;
    // SEEK_SET goes to the first record that is still in the ring.
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

/// Follows the log from now on. Its task ends when the follower is dropped.
pub struct KernelLogFollower {
    state: Arc<Mutex<FollowerState>>,
    /// Changes whenever records were read.
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
    /// Starts with the record after `after` ([`KernelLogBacklog::last`]), so that no record is missed between the two.
    /// Fails if the log cannot be read.
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

    /// Finds the kill of this thread, and waits for it at most `max_wait`.
    pub async fn kill_of(&self, tid: u32, max_wait: Duration) -> Option<(Visit, LoggedKill)> {
        let deadline = tokio::time::Instant::now() + max_wait;
        let mut grown = self.grown.clone();
        loop {
            grown.mark_unchanged();
            if let Some(found) = lock(&self.state).visits.take(tid) {
                return Some(found);
            }
            match tokio::time::timeout_at(deadline, grown.changed()).await {
                Ok(Ok(())) => {}
                // The time is over, but the record may have arrived at the last moment.
                _ => return lock(&self.state).visits.take(tid),
            }
        }
    }

    /// Whether a visit killed a group, and how many kills the kernel counts for it. `sequence`: the sequence number of
    /// its first kill.
    pub fn visit_outcome(&self, sequence: u64) -> Option<(bool, u64)> {
        lock(&self.state).visits.find(sequence).map(|visit| (visit.group.is_some(), visit.counted()))
    }

    /// Kills that the kernel counted twice: see [`Visit::repeats`].
    pub fn repeats(&self) -> u64 {
        lock(&self.state).visits.repeats
    }

    /// The sequence number of the last record that was read.
    pub fn last_sequence(&self) -> Option<u64> {
        lock(&self.state).visits.last_sequence
    }

    /// `kmsg_overrun`: how often records were overwritten before they were read; `kmsg_ambiguous`: lines in which a
    /// name looks like a field; `kmsg_failed`: 1 if the log can no longer be read.
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
                    tracing::warn!("stop following the kernel's log, which can no longer be read: {error:#}");
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
        format!(
            "open {} (needs CAP_SYSLOG; in a container, also the host's device: privileged, or mounted)",
            path.display()
        )
    })
}

/// Reads the next record; None: there is none yet. Overwritten records are skipped and counted in `overruns`.
fn next<'a>(file: &mut File, buffer: &'a mut [u8], overruns: &mut u64) -> anyhow::Result<Option<&'a [u8]>> {
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => return Ok(Some(&buffer[..count])),
            Err(error) => match (error.kind(), error.raw_os_error()) {
                (ErrorKind::WouldBlock, _) => return Ok(None),
                (ErrorKind::Interrupted, _) => {}
                (ErrorKind::BrokenPipe, _) => *overruns += 1,
                // The record does not fit into the buffer. No kernel writes such records today; it counts as lost.
                (_, Some(libc::EINVAL)) => *overruns += 1,
                _ => return Err(error).context("read /dev/kmsg"),
            },
        }
    }
}
