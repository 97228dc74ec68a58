//! OOM kills: raw tracepoint `mark_victim` (`mm/oom_kill.c`), once a victim.
//!
//! The current task is the *trigger*, which asked for memory; the victim is an argument.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_USER_BUILD_ID, BPF_F_USER_STACK},
    helpers::{bpf_get_stack, bpf_ktime_get_boot_ns},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;
use podopsy_wire::{Loss, OomRecord, Task};

use crate::{
    maps::{CONFIG, OOM_EVENTS, count},
    task,
};

#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn oom_mark_victim(ctx: RawTracePointContext) -> i32 {
    let config = CONFIG.load();
    let at = &config.layout;
    let Some(mut entry) = OOM_EVENTS.reserve::<OomRecord>(0) else {
        count(Loss::OomRing);
        return 0;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` points to the reserved entry; every field is written before the submit, and
    // the stack helpers are given the fields' own addresses and sizes.
    unsafe {
        (*record).time_ns = bpf_ktime_get_boot_ns();
        (*record).trigger = task::identify(task::current(), at);
        if config.victim_is_task != 0 {
            let victim: u64 = ctx.arg(0);
            (*record).victim = task::identify(victim, at);
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
        (*record).unused = 0;
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
