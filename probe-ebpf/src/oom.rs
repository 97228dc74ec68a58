//! OOM kills: raw tracepoint `mark_victim` (`mm/oom_kill.c`), once for each victim.
//!
//! The current task is the *trigger*, whose allocation met the limit. The victim is an argument: its task on newer
//! kernels, only its thread id on older ones. But the kernel sends SIGKILL just before it marks a victim, in the same
//! context, and the signal's tracepoint has the task on every kernel. A victim that is marked without a signal was
//! already dying; that is not a kill.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_USER_BUILD_ID, BPF_F_USER_STACK},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_stack, bpf_ktime_get_boot_ns, generated::bpf_probe_read_kernel_str,
    },
    macros::{map, raw_tracepoint},
    maps::LruHashMap,
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;
use podopsy_wire::{CGROUP_LEVELS, CGROUP_NAME_MAX, Layout, Loss, OomRecord, Task};

use crate::{
    maps::{CONFIG, OOM_EVENTS, count},
    task,
};

const SIGKILL: u64 = 9;
/// `SEND_SIG_PRIV` (`include/linux/signal.h`): the kernel itself sends.
const FROM_KERNEL: u64 = 1;
/// A signal that is older than this has nothing to do with the victim.
const TOGETHER_NS: u64 = 1_000_000_000;

/// A task that was sent SIGKILL.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Signalled {
    time_ns: u64,
    /// Address of the `task_struct`.
    task: u64,
    /// Thread id.
    tid: u64,
}

/// The last task that the kernel sent SIGKILL to in the context of a thread, by that thread's id.
#[map]
static OOM_SIGNALLED: LruHashMap<u64, Signalled> = LruHashMap::with_max_entries(1024, 0);

#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn oom_signal(ctx: RawTracePointContext) -> i32 {
    let (signal, info, victim): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if signal as u32 as u64 != SIGKILL || info != FROM_KERNEL {
        return 0;
    }
    let config = CONFIG.load();
    let tid = task::read::<u32>(victim, config.layout.task_pid).unwrap_or(0) as u64;
    // SAFETY: the helper has no preconditions.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    // An LRU map evicts the oldest entry, so this does not fail. If it did, the victim would be counted as known by its
    // id only, or reported as already dying.
    let _ = OOM_SIGNALLED.insert(current_tid(), Signalled { time_ns, task: victim, tid }, 0);
    0
}

/// Thread id of the current task.
#[inline(always)]
fn current_tid() -> u64 {
    bpf_get_current_pid_tgid() as u32 as u64
}

/// The `task_struct` of the victim (0: not known), and whether it was sent SIGKILL just now.
#[inline(always)]
fn find_victim(ctx: &RawTracePointContext, victim_is_task: bool, at: &Layout) -> (u64, bool) {
    let given: u64 = ctx.arg(0);
    let tid = if victim_is_task {
        task::read::<u32>(given, at.task_pid).unwrap_or(0) as u64
    } else {
        given as u32 as u64
    };
    let sender = current_tid();
    let mut signalled = None;
    if let Some(entry) = OOM_SIGNALLED.get_ptr(sender) {
        // SAFETY: a map value of plain integers, and a helper without preconditions.
        let (last, now) = unsafe { (*entry, bpf_ktime_get_boot_ns()) };
        if last.tid == tid && now.wrapping_sub(last.time_ns) < TOGETHER_NS {
            signalled = Some(last.task);
        }
        let _ = OOM_SIGNALLED.remove(sender);
    }
    let task = match signalled {
        _ if victim_is_task => given,
        Some(task) => task,
        // Already dying: the trigger itself, which needs memory to exit.
        None if tid == sender => task::current(),
        None => 0,
    };
    (task, signalled.is_some())
}

/// Writes the names of cgroups from `node` up to the root.
#[inline(always)]
fn write_path(out: &mut [[u8; CGROUP_NAME_MAX]; CGROUP_LEVELS], node: u64, at: &Layout) {
    let mut node = node;
    for name in out {
        name[0] = 0;
        let parent = task::read::<u64>(node, at.kernfs_node_parent).unwrap_or(0);
        let from = task::read::<u64>(node, at.kernfs_node_name).unwrap_or(0);
        // The root has an empty name and no parent: the remaining levels stay empty.
        if parent != 0 {
            // SAFETY: the helper writes at most the name's own bytes, and fails on a bad address.
            unsafe {
                bpf_probe_read_kernel_str(name.as_mut_ptr().cast(), CGROUP_NAME_MAX as u32, from as *const _)
            };
        }
        node = parent;
    }
}

#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn oom_mark_victim(ctx: RawTracePointContext) -> i32 {
    let config = CONFIG.load();
    let at = &config.layout;
    let (victim, killed) = find_victim(&ctx, config.victim_is_task != 0, at);
    let identity = task::identify(victim, &config);
    // A victim without a task is recorded: its pid namespace cannot be read.
    if config.pid_namespace != 0 && identity.pid == 0 {
        return 0;
    }
    let Some(mut entry) = OOM_EVENTS.reserve::<OomRecord>(0) else {
        count(Loss::OomRing);
        return 0;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` points to the reserved entry; every field is written before the submit, and
    // the stack helpers are given the fields' own addresses and sizes.
    unsafe {
        (*record).time_ns = bpf_ktime_get_boot_ns();
        (*record).trigger = task::identify(task::current(), &config);
        (*record).image = task::number(task::number(task::current(), at.task_mm), at.mm_start_stack);
        (*record).already_dying = !killed as u32;
        if victim != 0 {
            (*record).victim = identity;
            let mm = task::read::<u64>(victim, at.task_mm).unwrap_or(0);
            (*record).rss_pages[0] = task::read(mm, at.mm_rss[0]).unwrap_or(u64::MAX);
            (*record).rss_pages[1] = task::read(mm, at.mm_rss[1]).unwrap_or(u64::MAX);
            (*record).rss_pages[2] = task::read(mm, at.mm_rss[2]).unwrap_or(u64::MAX);
            (*record).rss_pages[3] = task::read(mm, at.mm_rss[3]).unwrap_or(u64::MAX);
            let signal = task::read::<u64>(victim, at.task_signal).unwrap_or(0);
            (*record).oom_score_adj = match task::read::<i16>(signal, at.signal_oom_score_adj) {
                Some(adj) => adj as i32,
                None => i32::MIN,
            };
        } else {
            let tid: u32 = ctx.arg(0);
            (*record).victim = Task { pid: tid, tid, ..Task::UNKNOWN };
            (*record).rss_pages = [u64::MAX; 4];
            (*record).oom_score_adj = i32::MIN;
            count(Loss::OomVictimByPid);
        }
        write_path(&mut (*record).cgroup, task::memory_kernfs_node(victim, at), at);
        (*record).kernel_len = bpf_get_stack(
            ctx.as_ptr(),
            (&raw mut (*record).kernel).cast(),
            size_of_val(&(*record).kernel) as u32,
            0,
        ) as i32;
        (*record).user_len = bpf_get_stack(
            ctx.as_ptr(),
            (&raw mut (*record).user).cast(),
            size_of_val(&(*record).user) as u32,
            (BPF_F_USER_STACK | BPF_F_USER_BUILD_ID) as u64,
        ) as i32;
        debug!(&ctx, "mark_victim: victim {} by {}", (*record).victim.pid, (*record).trigger.pid);
    }
    entry.submit(0);
    0
}
