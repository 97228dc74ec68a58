//! Gets the autopsy's instruments ready: the kernel's log, the sampler, and what the last run missed.
//!
//! None of them is needed to see a kill: what cannot be had is said once, and costs its facts only.

use std::path::Path;
use std::sync::Arc;

use crate::Options;
use crate::kernel_log::{self, KernelLogBacklog, KernelLogFollower};
use crate::memory::MemorySampler;
use crate::memory::files::machine_oom_kills;
use crate::oom::OomExaminer;
use crate::oom::checkpoint::RecoveryCheckpoint;
use crate::oom::recover::{self, MissedKills};
use podopsy_pods::Pods;

pub struct Room {
    pub examiner: Arc<OomExaminer>,
    /// The kernel's count of kills when the probes had just been attached.
    pub kills_at_start: Option<u64>,
    pub missed: Option<MissedKills>,
    /// What kills will lack.
    pub degraded: Option<String>,
}

/// To be called with the probes attached: what is killed from now on is theirs.
pub fn room(options: &Options, pods: &Arc<Pods>) -> anyhow::Result<Room> {
    if !options.oom {
        let examiner = Arc::new(OomExaminer::new(pods.clone(), None, None));
        return Ok(Room { examiner, kills_at_start: None, missed: None, degraded: None });
    }
    let kills_at_start = machine_oom_kills(Path::new("/proc"));
    // Read before it is followed: what was written between the two is followed, too.
    let (backlog, log) = match kernel_log::backlog(None) {
        Ok(backlog) => {
            let log = KernelLogFollower::start(backlog.last);
            (backlog, log)
        }
        Err(error) => (KernelLogBacklog::default(), Err(error)),
    };
    let (log, degraded) = match log {
        Ok(log) => (Some(log), None),
        Err(error) => {
            let lacks = format!(
                "OOM kills lack what only the kernel's log knows (whose limit, the table): {error:#}"
            );
            tracing::warn!("{lacks}");
            (None, Some(lacks))
        }
    };
    let last = backlog.last;
    let missed = options.state_dir.as_deref().and_then(|dir| missed(dir, last, backlog));
    let sampler = MemorySampler::start(pods.clone())?;
    let examiner = Arc::new(OomExaminer::new(pods.clone(), Some(sampler), log));
    Ok(Room { examiner, kills_at_start, missed, degraded })
}

fn missed(dir: &Path, last: Option<u64>, backlog: KernelLogBacklog) -> Option<MissedKills> {
    let before = RecoveryCheckpoint::load(dir).inspect_err(|error| tracing::warn!("{error:#}")).ok()??;
    let missed = recover::missed(&before, &RecoveryCheckpoint::now(last), backlog);
    if let Some(kills) = missed.kills.filter(|&kills| kills > 0) {
        tracing::warn!(
            since = %before.saved_at,
            rebooted = missed.rebooted,
            "missed while down: {kills} OOM kills, of {} the kernel's log knows more",
            missed.known(),
        );
    }
    Some(missed)
}
