//! The `oom` probe: the raw tracepoint `mark_victim`, and `signal_generate`, which has the victim's task where the first
//! passes only its thread id.

use aya::Ebpf;

use crate::program::{raw_tracepoint, take_map};
use crate::ring::Ring;

/// What the oom probe hands to user space.
pub struct OomMaps {
    /// A record for each victim.
    pub events: Ring,
    /// Pids of programs that have just started: their files are opened while they live.
    pub execs: Ring,
}

impl OomMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> anyhow::Result<OomMaps> {
        Ok(OomMaps {
            events: Ring::new("OOM_EVENTS", take_map(ebpf, "OOM_EVENTS")?)?,
            execs: Ring::new("EXECS", take_map(ebpf, "EXECS")?)?,
        })
    }
}

/// Attaches; returns a description of the hooks. `victim_is_task`: what `mark_victim` passes, by this kernel's BTF.
pub(crate) fn attach(ebpf: &mut Ebpf, victim_is_task: bool) -> anyhow::Result<String> {
    // The kernel sends the signal before it marks the victim, so this program attaches first.
    raw_tracepoint(ebpf, "oom_signal", "signal_generate")?;
    raw_tracepoint(ebpf, "oom_mark_victim", "mark_victim")?;
    // Opens the files that name the stack of a trigger which dies.
    raw_tracepoint(ebpf, "exec_new", "sched_process_exec")?;
    Ok(if victim_is_task {
        "raw tracepoint mark_victim, which passes the victim's task"
    } else {
        "raw tracepoint mark_victim, which passes only a thread id here; the task comes from signal_generate"
    }
    .to_owned())
}
