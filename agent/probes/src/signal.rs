//! The `sigkill` probe: raw tracepoint `signal_generate`, and `mark_victim`, which tells the OOM killer's from the others.

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use podopsy_wire::{ABSENT, SignalLayout, SignalRecord};

use super::btf::Btf;
use super::oom::raw_tracepoint;

/// What is not there costs its fact only.
pub fn layout(btf: &Btf) -> SignalLayout {
    let wish = |structure: &str, path: &str| btf.offset(structure, path).unwrap_or(ABSENT);
    SignalLayout {
        siginfo_code: wish("kernel_siginfo", "si_code"),
        task_flags: wish("task_struct", "flags"),
        task_thread_pid: wish("task_struct", "thread_pid"),
        signal_live: wish("signal_struct", "live"),
        pid_level: wish("pid", "level"),
        pid_numbers: wish("pid", "numbers"),
    }
}

/// Attaches; returns the hooks, in words.
pub fn attach(ebpf: &mut Ebpf) -> anyhow::Result<String> {
    // First who takes the OOM killer's signals out, then who puts them in.
    raw_tracepoint(ebpf, "sigkill_by_oom", "mark_victim")?;
    raw_tracepoint(ebpf, "sigkill_sent", "signal_generate")?;
    Ok("raw tracepoint signal_generate; mark_victim tells the OOM killer's SIGKILLs from others".to_owned())
}

/// The map `SIGKILL_BY_KERNEL`, seen from user space.
pub struct KernelKills {
    map: HashMap<MapData, u64, Pod>,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Pod(SignalRecord);
// SAFETY: `#[repr(C)]`, integers only, no padding (asserted in the wire crate).
unsafe impl aya::Pod for Pod {}

/// The OOM killer marks its victim in the moment in which it has sent the signal: what is older is not its own.
const OLD_NS: u64 = 1_000_000_000;

impl KernelKills {
    pub(super) fn new(map: Map) -> anyhow::Result<KernelKills> {
        Ok(KernelKills { map: HashMap::try_from(map).context("SIGKILL_BY_KERNEL is no hash map")? })
    }

    /// Takes out what the kernel sent and no OOM killer has claimed; `now_ns` on the boot clock.
    pub fn take(&mut self, now_ns: u64) -> Vec<SignalRecord> {
        let old = |record: &SignalRecord| now_ns.saturating_sub(record.time_ns) >= OLD_NS;
        let all = self.map.iter().filter_map(Result::ok).map(|(tid, Pod(record))| (tid, record));
        let mut found: Vec<_> = all.filter(|(_, record)| old(record)).collect();
        // Not ours to take if it is gone meanwhile.
        found.retain(|(tid, _)| self.map.remove(tid).is_ok());
        found.into_iter().map(|(_, record)| record).collect()
    }
}
