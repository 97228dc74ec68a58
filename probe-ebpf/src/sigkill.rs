//! SIGKILLs and their senders: raw tracepoint `signal_generate` (`kernel/signal.c`), once for each process.
//!
//! - Only a signal that takes effect counts: one to a process that is dying already, or that its pid namespace
//!   protects, has another `result`. exit_group, execve and a core dump end threads without this tracepoint.
//! - `info` is a pointer, or 0 (`SEND_SIG_NOINFO`: a process sends, through the kernel: cgroup.kill, PDEATHSIG), or 1
//!   (`SEND_SIG_PRIV`: the kernel sends). `si_pid` is not used: with sigqueue the sender chooses it.
//! - The OOM killer's SIGKILLs are `SEND_SIG_PRIV`, and `mark_victim` follows in the same context. So the kernel's
//!   SIGKILLs wait in a map, from which `mark_victim` removes those of the OOM killer; user space reads the rest a
//!   second later.
//! - A SIGKILL to a process of the sender's own memory cgroup is counted and not shipped.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns},
    macros::{map, raw_tracepoint},
    maps::{HashMap, LruHashMap, RingBuf},
    programs::RawTracePointContext,
};
use podopsy_wire::{
    Layout, Loss, SI_KERNEL, SI_QUEUE, SI_TKILL, SI_UNREAD, SI_USER, SigkillLayout, SigkillRecord,
};

use crate::{
    maps::{CONFIG, count},
    task,
};

/// Set by user space before the load.
#[unsafe(no_mangle)]
pub static SIGKILL_LAYOUT: Global<SigkillLayout> = Global::new(SigkillLayout::EMPTY);

/// [`SigkillRecord`]s. 585 of them fit before user space has to read.
#[map]
static SIGKILL_EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// SIGKILLs that the kernel sent, by the thread id of the target. User space removes those that are a second old.
#[map]
static SIGKILL_BY_KERNEL: HashMap<u64, SigkillRecord> = HashMap::with_max_entries(1024, 0);

/// When a thread last marked a victim of the OOM killer, by thread id. Processes that share the victim's memory are
/// killed after it and are not marked.
#[map]
static OOM_AT_WORK: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1024, 0);

const SIGKILL: u32 = 9;
/// `TRACE_SIGNAL_DELIVERED` (`<trace/events/signal.h>`).
const DELIVERED: u32 = 0;
/// `SEND_SIG_NOINFO`, `SEND_SIG_PRIV`.
const NO_INFO: u64 = 0;
const FROM_KERNEL: u64 = 1;
/// A mark that is older than this has nothing to do with the signal.
const TOGETHER_NS: u64 = 1_000_000_000;
/// The task is in do_exit (`<linux/sched.h>`).
const PF_EXITING: u32 = 4;

#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn sigkill_sent(ctx: RawTracePointContext) -> i32 {
    let (signal, result): (u64, u64) = (ctx.arg(0), ctx.arg(4));
    if signal as u32 != SIGKILL || result as u32 != DELIVERED {
        return 0;
    }
    let (info, target, group): (u64, u64, u64) = (ctx.arg(1), ctx.arg(2), ctx.arg(3));
    let config = CONFIG.load();
    let more = SIGKILL_LAYOUT.load();
    let (at, more) = (&config.layout, &more);
    if is_dead(target, at, more) {
        return 0;
    }
    let sender = task::current();
    let si_code = match info {
        NO_INFO => SI_USER,
        FROM_KERNEL => SI_KERNEL,
        _ => task::read(info, more.siginfo_code).unwrap_or(SI_UNREAD),
    };
    if is_within_cgroup(sender, target, info, si_code, at, more) {
        count(Loss::SigkillOwn);
        return 0;
    }
    let victim = task::identify(target, &config);
    if victim.pid == 0 {
        return 0;
    }
    let record = SigkillRecord {
        // SAFETY: the helper has no preconditions.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        sender: task::identify(sender, &config),
        target: victim,
        si_code,
        from_kernel: (info == FROM_KERNEL) as u32,
        to_process: (group as u32 != 0) as u32,
        namespace_pid: task::innermost_id(target, at),
    };
    if info == FROM_KERNEL {
        if is_oom_killer(record.time_ns) {
            return 0;
        }
        let tid: u32 = task::number(target, at.task_pid);
        if SIGKILL_BY_KERNEL.insert(tid as u64, record, 0).is_err() {
            count(Loss::SigkillByKernel);
        }
        return 0;
    }
    if SIGKILL_EVENTS.output::<SigkillRecord>(record, 0).is_err() {
        count(Loss::SigkillRing);
    }
    0
}

/// The SIGKILL that a victim got just before it was marked is the OOM killer's: it is removed.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn sigkill_by_oom(ctx: RawTracePointContext) -> i32 {
    let config = CONFIG.load();
    let given: u64 = ctx.arg(0);
    let victim = if config.victim_is_task != 0 {
        task::read::<u32>(given, config.layout.task_pid).unwrap_or(0)
    } else {
        given as u32
    };
    let _ = SIGKILL_BY_KERNEL.remove(victim as u64);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // An LRU map evicts the oldest entry, so this does not fail.
    let _ = OOM_AT_WORK.insert(current_tid(), now, 0);
    0
}

#[inline(always)]
fn current_tid() -> u64 {
    bpf_get_current_pid_tgid() as u32 as u64
}

/// Whether all threads of the target's process have ended. Older kernels report a signal to a zombie as delivered, too;
/// a thread group leader may be a zombie while its threads live.
#[inline(always)]
fn is_dead(target: u64, at: &Layout, more: &SigkillLayout) -> bool {
    let signal: u64 = task::number(target, at.task_signal);
    task::read::<u32>(signal, more.signal_live) == Some(0)
}

/// Whether a process ends another one of its own memory cgroup.
#[inline(always)]
fn is_within_cgroup(
    sender: u64,
    target: u64,
    info: u64,
    si_code: i32,
    at: &Layout,
    more: &SigkillLayout,
) -> bool {
    let cgroup = task::memory_cgroup(target, at);
    if cgroup == 0 || cgroup != task::memory_cgroup(sender, at) {
        return false;
    }
    // When PID 1 of a pid namespace exits, the kernel kills the others, and when a tracer exits, its tracees. What the
    // kernel sends for other reasons is reported, and so is what was sent in an interrupt: there the current task has
    // nothing to do with it.
    let at_exit = info == FROM_KERNEL
        && task::number::<u32>(sender, more.task_flags) & PF_EXITING != 0
        && task::number::<u32>(sender, at.task_tgid) != task::number(target, at.task_tgid);
    at_exit || si_code == SI_USER || si_code == SI_QUEUE || si_code == SI_TKILL
}

/// Whether this thread has just marked a victim, so that it is the OOM killer.
#[inline(always)]
fn is_oom_killer(now: u64) -> bool {
    match OOM_AT_WORK.get_ptr(current_tid()) {
        // SAFETY: a map value that is an integer.
        Some(marked) => now.wrapping_sub(unsafe { *marked }) < TOGETHER_NS,
        None => false,
    }
}
