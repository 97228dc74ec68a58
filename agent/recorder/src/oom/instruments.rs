//! Prepares what an autopsy reads beside the probe: the kernel's log, the memory sampler, and what the last run missed.
//!
//! None of them is needed to see a kill. What this machine does not allow is reported once, and only its facts are missing.

use std::path::Path;
use std::sync::Arc;

use crate::heaps::HeapSampler;
use crate::kernel_log::{self, KernelLogBacklog, KernelLogFollower};
use crate::memory::MemorySampler;
use crate::memory::files::machine_oom_kills;
use crate::oom::OomExaminer;
use crate::oom::checkpoint::RecoveryCheckpoint;
use crate::oom::recover::{self, MissedKills};
use crate::options::RecorderOptions;
use podopsy_pods::Pods;

pub(crate) struct OomInstruments {
    pub examiner: Arc<OomExaminer>,
    /// The kernel's count of kills right after the probes attached.
    pub kills_at_start: Option<u64>,
    pub missed: Option<MissedKills>,
    /// What autopsies will lack.
    pub degraded: Option<String>,
}

impl OomInstruments {
    /// Call with the probes attached: kills from then on are theirs.
    pub fn prepare(options: &RecorderOptions, pods: &Arc<Pods>) -> anyhow::Result<OomInstruments> {
        if !options.oom {
            let examiner = Arc::new(OomExaminer::new(pods.clone(), None, None));
            return Ok(OomInstruments { examiner, kills_at_start: None, missed: None, degraded: None });
        }
        let kills_at_start = machine_oom_kills(Path::new("/proc"));
        // The backlog is read before the log is followed: lines written in between arrive by the follower.
        let (backlog, log) = match kernel_log::read_backlog(None) {
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
                    "OOM kills lack what only the kernel's log has (the limit, the process table): {error:#}"
                );
                tracing::warn!("{lacks}");
                (None, Some(lacks))
            }
        };
        let last = backlog.last;
        let missed = options.state_dir.as_deref().and_then(|dir| missed(dir, last, backlog));
        let sampler = MemorySampler::start(pods.clone())?;
        let heaps = HeapSampler::start(pods.clone(), options.helpers.clone())?;
        let examiner = Arc::new(OomExaminer::new(pods.clone(), Some(sampler), log).with_heaps(heaps));
        Ok(OomInstruments { examiner, kills_at_start, missed, degraded })
    }
}

fn missed(dir: &Path, last: Option<u64>, backlog: KernelLogBacklog) -> Option<MissedKills> {
    let before = RecoveryCheckpoint::load(dir).inspect_err(|error| tracing::warn!("{error:#}")).ok()??;
    let missed = recover::find_missed(&before, &RecoveryCheckpoint::now(last), backlog);
    if let Some(kills) = missed.kills.filter(|&kills| kills > 0) {
        tracing::warn!(
            since = %before.saved_at,
            rebooted = missed.rebooted,
            "missed while down: {kills} OOM kills, {} of them are in the kernel's log",
            missed.known(),
        );
    }
    Some(missed)
}
