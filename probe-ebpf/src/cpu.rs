//! On-CPU stacks: a software cpu-clock perf event on each CPU.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_USER_STACK, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE,
    },
    helpers::{bpf_get_stack, bpf_ktime_get_boot_ns, bpf_ktime_get_ns},
    macros::{map, perf_event},
    maps::PerCpuArray,
    programs::PerfEventContext,
};
use podopsy_wire::{
    BUDGET_SHIFT, Config, End, FRAMES_MAX, FileKey, Loss, PythonEnd, SCOPE_CGROUPS, SCOPE_NODE, SCOPE_OTHERS,
    Sample,
};

use crate::{
    maps::{CONFIG, SAMPLES, TARGETS, count},
    task, unwind,
};

const STACK_BYTES: usize = FRAMES_MAX * 8;
/// Capacity for both stacks and for Python's frames: a power of two, so that a mask keeps an index within bounds.
pub const ADDRESSES: usize = 512;

/// A sample while it is assembled; too big for the BPF stack. There is one event on each CPU, and its handler does not
/// interrupt itself, so the CPU's slot is free.
#[repr(C)]
pub struct SampleBuffer {
    pub head: Sample,
    /// Kernel addresses, then user ones, then Python's frames.
    pub addresses: [u64; ADDRESSES],
}

impl SampleBuffer {
    #[inline(always)]
    pub fn kernel_frames(&self) -> u32 {
        if self.head.kernel_len < 0 { 0 } else { self.head.kernel_len as u32 / 8 }
    }
}

#[map]
pub static RECORD: PerCpuArray<SampleBuffer> = PerCpuArray::with_max_entries(1, 0);

/// How much of its budget a CPU has used: the current period, in units of 2^[`BUDGET_SHIFT`] ns, and the samples in it.
#[repr(C)]
struct BudgetUse {
    period: u64,
    samples: u64,
}

#[map]
static SPENT: PerCpuArray<BudgetUse> = PerCpuArray::with_max_entries(1, 0);

/// A process is young for this long: it may exit in a moment, and its mappings with it.
const YOUNG_NS: u64 = 1 << 30;

/// Takes a sample from this CPU's budget; false: the budget is used up.
#[inline(always)]
fn take_from_budget(budget: u32) -> bool {
    if budget == 0 {
        return true;
    }
    let Some(spent) = SPENT.get_ptr_mut(0) else { return true };
    // SAFETY: the helper has no preconditions; the slot is this CPU's own, and the handler does not interrupt itself.
    unsafe {
        let period = bpf_ktime_get_ns() >> BUDGET_SHIFT;
        if (*spent).period != period {
            ((*spent).period, (*spent).samples) = (period, 0);
        }
        (*spent).samples += 1;
        (*spent).samples <= budget as u64
    }
}

/// Whether the task is in the scope that is sampled.
#[inline(always)]
pub fn is_wanted(task: u64, config: &Config) -> bool {
    let key = match config.scope {
        SCOPE_NODE => return is_in_namespace(task, config),
        SCOPE_CGROUPS | SCOPE_OTHERS => task::memory_cgroup(task, &config.layout),
        _ => task::process_id(task, config) as u64,
    };
    let is_target = TARGETS.get_ptr(key).is_some();
    if config.scope == SCOPE_OTHERS { !is_target && is_in_namespace(task, config) } else { is_target }
}

#[inline(always)]
fn is_in_namespace(task: u64, config: &Config) -> bool {
    config.pid_namespace == 0 || task::process_id(task, config) != 0
}

#[perf_event]
pub fn cpu_sample(ctx: PerfEventContext) -> i32 {
    let config = CONFIG.load();
    let at = &config.layout;
    let current = task::current();
    // First of all: tasks that are not in scope cost one map lookup, and use up no budget.
    if !is_wanted(current, &config) {
        return 0;
    }
    if !take_from_budget(config.sample_budget) {
        count(Loss::SampleThrottled);
        return 0;
    }
    let identity = task::identify_sampled(current, &config);
    // Pid 0 is the idle task, or one outside of user space's pid namespace.
    if identity.pid == 0 {
        return 0;
    }
    let Some(record) = RECORD.get_ptr_mut(0) else { return 0 };
    // SAFETY: `record` is this CPU's own slot, and the helpers write inside it: the kernel part is at most STACK_BYTES,
    // and the user part starts there at the latest.
    unsafe {
        let record = &mut *record;
        let addresses = record.addresses.as_mut_ptr().cast::<u8>();
        let kernel = bpf_get_stack(ctx.as_ptr(), addresses.cast(), STACK_BYTES as u32, 0) as i32;
        record.head = Sample {
            task: identity,
            kernel_len: kernel,
            user_len: 0,
            end: 0,
            end_frame: 0,
            python_len: 0,
            python_end: PythonEnd::None as u32,
            python: 0,
            unused: 0,
            python_to_offset: 0,
            file: FileKey::NONE,
            image: task::number(task::number(current, at.task_mm), at.mm_start_stack),
        };
        if kernel == STACK_BYTES as i32 {
            count(Loss::OncpuTruncated);
        }
        if unwind::start(&ctx, record, current) {
            return 0;
        }

        let kernel_bytes = if kernel < 0 { 0 } else { kernel as usize };
        if kernel_bytes > STACK_BYTES {
            return 0;
        }
        let user = bpf_get_stack(
            ctx.as_ptr(),
            addresses.add(kernel_bytes).cast(),
            STACK_BYTES as u32,
            BPF_F_USER_STACK as u64,
        );
        if user < 0 || user as usize > STACK_BYTES {
            send(record, 0, End::NoUser);
        } else {
            send(record, user as u32 / 8, End::FramePointers);
        }
    }
    0
}

/// Sends a sample whose user stack ended by `end` at the last of its `frames`.
#[inline(always)]
pub fn send(record: &mut SampleBuffer, frames: u32, end: End) {
    send_ended(record, frames, end as u32, frames.saturating_sub(1));
}

/// Sends a sample with `frames` user frames, whose stack ended by `end` at `end_frame`.
#[inline(always)]
pub fn send_ended(record: &mut SampleBuffer, frames: u32, end: u32, end_frame: u32) {
    if end == End::Truncated as u32 {
        count(Loss::OncpuTruncated);
    }
    record.head.user_len = frames as i32 * 8;
    (record.head.end, record.head.end_frame) = (end, end_frame);
    // The black box keeps the comparison on the number that the length is computed from, which the verifier requires.
    let words = core::hint::black_box(
        record.kernel_frames() as u64 + frames as u64 + record.head.python_len as u64 / 8,
    );
    if words > ADDRESSES as u64 {
        return;
    }
    let len = size_of::<Sample>() + words as usize * 8;
    // SAFETY: `len` is inside the buffer, by the check above.
    let bytes = unsafe { core::slice::from_raw_parts((&raw const *record).cast::<u8>(), len) };
    if SAMPLES.output::<[u8]>(bytes, wakeup(record.head.task.start_ns)).is_err() {
        count(Loss::OncpuRing);
    }
}

/// Whether to wake user space at once: for a process that is young, or a ring that fills up. Other samples wait for its
/// next round, because a wake-up for each of them costs more than all processing of the sample.
#[inline(always)]
fn wakeup(start_ns: u64) -> u64 {
    // SAFETY: the helper has no preconditions.
    let age = unsafe { bpf_ktime_get_boot_ns() }.wrapping_sub(start_ns);
    // User space chooses the size.
    let fills = SAMPLES.query(BPF_RB_AVAIL_DATA as u64) > SAMPLES.query(BPF_RB_RING_SIZE as u64) / 4;
    if age < YOUNG_NS || fills { BPF_RB_FORCE_WAKEUP as u64 } else { BPF_RB_NO_WAKEUP as u64 }
}
