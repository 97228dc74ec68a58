//! The `oom` probe: raw tracepoints `mark_victim`, and `signal_generate`, which tells the victim's task where the first
//! has only its thread id.

use anyhow::Context;
use aya::{Ebpf, programs::RawTracePoint};

/// Attaches; returns the hooks, in words. `victim_is_task`: by this kernel's BTF.
pub fn attach(ebpf: &mut Ebpf, victim_is_task: bool) -> anyhow::Result<String> {
    // The signal comes before the mark.
    raw_tracepoint(ebpf, "oom_signal", "signal_generate")?;
    raw_tracepoint(ebpf, "oom_mark_victim", "mark_victim")?;
    // For the names in a dead trigger's stack.
    raw_tracepoint(ebpf, "exec_new", "sched_process_exec")?;
    Ok(match victim_is_task {
        true => "raw tracepoint mark_victim, which passes the victim's task".to_owned(),
        false => "raw tracepoint mark_victim, which passes only a thread id here; the task comes from signal_generate"
            .to_owned(),
    })
}

/// Loads `program` and attaches it to a raw tracepoint; needs no tracefs.
pub fn raw_tracepoint(ebpf: &mut Ebpf, program: &str, tracepoint: &str) -> anyhow::Result<()> {
    let found: &mut RawTracePoint =
        ebpf.program_mut(program).with_context(|| format!("no program {program}"))?.try_into()?;
    found.load().with_context(|| format!("load {program}"))?;
    found.attach(tracepoint).with_context(|| format!("attach {program} to {tracepoint}"))?;
    Ok(())
}
