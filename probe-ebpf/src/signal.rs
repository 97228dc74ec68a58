//! SIGKILL, and who sent it: raw tracepoint `signal_generate` (`kernel/signal.c`), once a process.
//!
//! - Only a signal that takes effect counts: one to a process that is dying already, or that its pid namespace
//!   protects, has another `result`. exit_group, execve and a core dump end threads without this tracepoint.
//! - `info` is a pointer, or 0 (`SEND_SIG_NOINFO`: a process sends, through the kernel: cgroup.kill, PDEATHSIG), or 1
//!   (`SEND_SIG_PRIV`: the kernel sends). `si_pid` is not asked: sigqueue lets the sender choose it.
//! - The OOM killer's SIGKILLs are `SEND_SIG_PRIV`, and `mark_victim` follows in the same context. So the kernel's
//!   SIGKILLs wait in a map, from which `mark_victim` takes its own; user space reads what is left a second later.
//! - A process that kills another of its own memory cgroup minds its own business: counted, not shipped.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns},
    macros::{map, raw_tracepoint},
    maps::{HashMap, LruHashMap, RingBuf},
    programs::RawTracePointContext,
};
use podopsy_wire::{
    Layout, Loss, SI_KERNEL, SI_QUEUE, SI_TKILL, SI_UNREAD, SI_USER, SignalLayout, SignalRecord,
};

use crate::{
    maps::{CONFIG, count},
    task,
};

/// Set by user space before the load.
#[unsafe(no_mangle)]
pub static SIGNAL_LAYOUT: Global<SignalLayout> = Global::new(SignalLayout::EMPTY);

/// [`SignalRecord`]s. 585 of them fit before anyone reads.
#[map]
static SIGNAL_EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// What the kernel sent, by the thread id that it was sent to; user space takes out what is a second old.
#[map]
static SIGKILL_BY_KERNEL: HashMap<u64, SignalRecord> = HashMap::with_max_entries(1024, 0);

/// When a thread last marked a victim of the OOM killer: processes that share the victim's memory are killed after
/// it, and are not marked.
#[map]
static OOM_AT_WORK: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1024, 0);

const SIGKILL: u32 = 9;
/// `TRACE_SIGNAL_DELIVERED` (`<trace/events/signal.h>`).
const DELIVERED: u32 = 0;
const NO_INFO: u64 = 0;
const FROM_KERNEL: u64 = 1;
/// A mark that is older has nothing to do with the signal.
const TOGETHER_NS: u64 = 1_000_000_000;
/// The task is on its way through do_exit (`<linux/sched.h>`).
const PF_EXITING: u32 = 4;
/// `MAX_PID_NS_LEVEL`, and the size of a `struct upid`, which begins with the number.
const LEVELS: u32 = 32;
const UPID: u64 = 16;

#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn sigkill_sent(ctx: RawTracePointContext) -> i32 {
    let (signal, result): (u64, u64) = (ctx.arg(0), ctx.arg(4));
    if signal as u32 != SIGKILL || result as u32 != DELIVERED {
        return 0;
    }
    let (info, target, group): (u64, u64, u64) = (ctx.arg(1), ctx.arg(2), ctx.arg(3));
    let config = CONFIG.load();
    let more = SIGNAL_LAYOUT.load();
    let (at, more) = (&config.layout, &more);
    if is_over(target, at, more) {
        return 0;
    }
    let sender = task::current();
    let si_code = match info {
        NO_INFO => SI_USER,
        FROM_KERNEL => SI_KERNEL,
        _ => task::read(info, more.siginfo_code).unwrap_or(SI_UNREAD),
    };
    if is_own_business(sender, target, info, si_code, at, more) {
        count(Loss::SigkillOwn);
        return 0;
    }
    let record = SignalRecord {
        // SAFETY: the helper has no preconditions.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        sender: task::identify(sender, at),
        target: task::identify(target, at),
        si_code,
        from_kernel: (info == FROM_KERNEL) as u32,
        to_process: (group as u32 != 0) as u32,
        namespace_pid: namespace_pid(target, at, more),
    };
    if info == FROM_KERNEL {
        if is_oom_killer(record.time_ns) {
            return 0;
        }
        if SIGKILL_BY_KERNEL.insert(record.target.tid as u64, record, 0).is_err() {
            count(Loss::SigkillByKernel);
        }
        return 0;
    }
    if SIGNAL_EVENTS.output::<SignalRecord>(record, 0).is_err() {
        count(Loss::SigkillRing);
    }
    0
}

/// A victim's SIGKILL, which came just before, is the OOM killer's.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn sigkill_by_oom(ctx: RawTracePointContext) -> i32 {
    let config = CONFIG.load();
    let given: u64 = ctx.arg(0);
    let victim = match config.victim_is_task != 0 {
        true => task::read::<u32>(given, config.layout.task_pid).unwrap_or(0),
        false => given as u32,
    };
    let _ = SIGKILL_BY_KERNEL.remove(victim as u64);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // Room is made by pushing out the oldest.
    let _ = OOM_AT_WORK.insert(current_tid(), now, 0);
    0
}

#[inline(always)]
fn current_tid() -> u64 {
    bpf_get_current_pid_tgid() as u32 as u64
}

/// Older kernels call a signal to a zombie delivered, too. A leader may be one while its threads live.
#[inline(always)]
fn is_over(target: u64, at: &Layout, more: &SignalLayout) -> bool {
    let signal: u64 = task::number(target, at.task_signal);
    task::read::<u32>(signal, more.signal_live) == Some(0)
}

#[inline(always)]
fn is_own_business(
    sender: u64,
    target: u64,
    info: u64,
    si_code: i32,
    at: &Layout,
    more: &SignalLayout,
) -> bool {
    let cgroup = task::memory_cgroup(target, at);
    if cgroup == 0 || cgroup != task::memory_cgroup(sender, at) {
        return false;
    }
    // PID 1 of a pid namespace takes the others with it, and a tracer its tracees. What the kernel sends for other
    // reasons is told, and so is what was sent in an interrupt: then the current task is anyone.
    let on_its_end = info == FROM_KERNEL
        && task::number::<u32>(sender, more.task_flags) & PF_EXITING != 0
        && task::number::<u32>(sender, at.task_tgid) != task::number(target, at.task_tgid);
    on_its_end || si_code == SI_USER || si_code == SI_QUEUE || si_code == SI_TKILL
}

/// Whether this thread has marked a victim just now.
#[inline(always)]
fn is_oom_killer(now: u64) -> bool {
    match OOM_AT_WORK.get_ptr(current_tid()) {
        // SAFETY: a map value that is an integer.
        Some(marked) => now.wrapping_sub(unsafe { *marked }) < TOGETHER_NS,
        None => false,
    }
}

#[inline(always)]
fn namespace_pid(target: u64, at: &Layout, more: &SignalLayout) -> u32 {
    let leader: u64 = task::number(target, at.task_group_leader);
    let pid: u64 = task::number(leader, more.task_thread_pid);
    let level = task::read::<u32>(pid, more.pid_level).unwrap_or(LEVELS + 1);
    if pid == 0 || level > LEVELS {
        return 0;
    }
    task::number(pid + level as u64 * UPID, more.pid_numbers)
}
