//! The `sigkill` probe: raw tracepoint `signal_generate`, and `mark_victim`, which distinguishes the OOM killer's signals.

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use podopsy_wire::{ABSENT, SigkillLayout, SigkillRecord};

use crate::btf::Btf;
use crate::pod::Pod;
use crate::program::{raw_tracepoint, take_map};
use crate::ring::Ring;

/// What the sigkill probe hands to user space.
pub struct SigkillMaps {
    /// A record for each SIGKILL that a process sent.
    pub events: Ring,
    pub kernel_kills: KernelKills,
}

impl SigkillMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> anyhow::Result<SigkillMaps> {
        Ok(SigkillMaps {
            events: Ring::new("SIGKILL_EVENTS", take_map(ebpf, "SIGKILL_EVENTS")?)?,
            kernel_kills: KernelKills::new(take_map(ebpf, "SIGKILL_BY_KERNEL")?)?,
        })
    }
}

/// The offsets that the probe reads; a member that this kernel lacks is [`ABSENT`], and its fact stays unknown.
pub(crate) fn layout(btf: &Btf) -> SigkillLayout {
    let optional = |structure: &str, path: &str| btf.offset(structure, path).unwrap_or(ABSENT);
    SigkillLayout {
        siginfo_code: optional("kernel_siginfo", "si_code"),
        task_flags: optional("task_struct", "flags"),
        signal_live: optional("signal_struct", "live"),
    }
}

/// Attaches; returns a description of the hooks.
pub(crate) fn attach(ebpf: &mut Ebpf) -> anyhow::Result<String> {
    // The program that removes the OOM killer's signals attaches before the one that adds them.
    raw_tracepoint(ebpf, "sigkill_by_oom", "mark_victim")?;
    raw_tracepoint(ebpf, "sigkill_sent", "signal_generate")?;
    Ok("raw tracepoint signal_generate; mark_victim, to leave out the OOM killer's SIGKILLs".to_owned())
}

/// The map `SIGKILL_BY_KERNEL`: SIGKILLs sent by the kernel that the OOM killer may still claim.
pub struct KernelKills {
    map: HashMap<MapData, u64, Pod<SigkillRecord>>,
}

/// The OOM killer marks its victim right after the signal: a signal older than this was not its own.
const UNCLAIMED_NS: u64 = 1_000_000_000;

impl KernelKills {
    pub(crate) fn new(map: Map) -> anyhow::Result<KernelKills> {
        Ok(KernelKills { map: HashMap::try_from(map).context("SIGKILL_BY_KERNEL is no hash map")? })
    }

    /// Removes and returns the signals that no OOM killer has claimed; `now_ns` is CLOCK_BOOTTIME.
    pub fn take(&mut self, now_ns: u64) -> Vec<SigkillRecord> {
        let old = |record: &SigkillRecord| now_ns.saturating_sub(record.time_ns) >= UNCLAIMED_NS;
        let all = self.map.iter().filter_map(Result::ok).map(|(tid, Pod(record))| (tid, record));
        let mut found: Vec<_> = all.filter(|(_, record)| old(record)).collect();
        // An entry that is gone was claimed in the meantime.
        found.retain(|(tid, _)| self.map.remove(tid).is_ok());
        found.into_iter().map(|(_, record)| record).collect()
    }
}
