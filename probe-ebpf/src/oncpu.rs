//! On-CPU stacks: a software cpu-clock perf event per CPU.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_F_USER_STACK,
    helpers::bpf_get_stack,
    macros::{map, perf_event},
    maps::PerCpuArray,
    programs::PerfEventContext,
};
use podopsy_wire::{FRAMES_MAX, Loss, SCOPE_CGROUPS, SCOPE_NODE, Sample};

use crate::{
    maps::{CONFIG, SAMPLES, TARGETS, count},
    task,
};

const STACK_BYTES: usize = FRAMES_MAX * 8;

/// A sample while it is put together: too big for the BPF stack. One event a CPU, and its handler
/// does not interrupt itself, so the CPU's slot is free.
#[repr(C)]
pub struct Scratch {
    head: Sample,
    /// Room for both stacks, and for the helper's view past a full kernel stack.
    stacks: [u8; 2 * STACK_BYTES],
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[perf_event]
pub fn oncpu_sample(ctx: PerfEventContext) -> i32 {
    let config = CONFIG.load();
    let at = &config.layout;
    let current = task::current();
    // Whose sample it is comes before any work on it: profiling one pod costs the others a lookup.
    match config.scope {
        SCOPE_NODE => {}
        SCOPE_CGROUPS => {
            if TARGETS.get_ptr(task::memory_cgroup(current, at)).is_none() {
                return 0;
            }
        }
        _ => {
            let pid = task::read::<u32>(current, at.task_tgid).unwrap_or(0);
            if TARGETS.get_ptr(pid as u64).is_none() {
                return 0;
            }
        }
    }
    let identity = task::identify_sampled(current, at);
    // Pid 0 is the idle task: a CPU at rest is no work of anyone's.
    if identity.pid == 0 {
        return 0;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: `scratch` is this CPU's own slot; the offsets below stay inside it: the kernel part
    // is at most STACK_BYTES, and the user part starts there at the latest.
    unsafe {
        let stacks = (&raw mut (*scratch).stacks).cast::<u8>();
        let kernel = bpf_get_stack(ctx.as_ptr(), stacks.cast(), STACK_BYTES as u32, 0);
        let kernel_bytes = if kernel < 0 { 0 } else { kernel as usize };
        if kernel_bytes > STACK_BYTES {
            return 0;
        }
        let user = bpf_get_stack(
            ctx.as_ptr(),
            stacks.add(kernel_bytes).cast(),
            STACK_BYTES as u32,
            BPF_F_USER_STACK as u64,
        );
        let user_bytes = if user < 0 { 0 } else { user as usize };
        if user_bytes > STACK_BYTES {
            return 0;
        }
        // A kernel thread has no user stack to lose: its mm is null.
        if user < 0 && task::read::<u64>(current, at.task_mm).unwrap_or(0) != 0 {
            count(Loss::OncpuUserStack);
        }
        if kernel_bytes == STACK_BYTES || user_bytes == STACK_BYTES {
            count(Loss::OncpuTruncated);
        }
        (*scratch).head = Sample { task: identity, kernel_len: kernel as i32, user_len: user as i32 };
        let len = size_of::<Sample>() + kernel_bytes + user_bytes;
        if len > size_of::<Scratch>() {
            return 0;
        }
        let bytes = core::slice::from_raw_parts(scratch.cast::<u8>(), len);
        if SAMPLES.output::<[u8]>(bytes, 0).is_err() {
            count(Loss::OncpuRing);
        }
    }
    0
}
