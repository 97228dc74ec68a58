//! Reads `task_struct` and other kernel structures by the offsets that user space found in BTF.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel as bpf_probe_read_kernel_raw, bpf_probe_read_user as bpf_probe_read_user_raw,
};
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user};
use podopsy_wire::{ABSENT, Layout, Task};

/// Reads a `T` at `base + offset` in kernel memory. None: this kernel has no such member, or the address cannot be
/// read.
#[inline(always)]
pub fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
    if offset == ABSENT || base == 0 {
        return None;
    }
    // SAFETY: bpf_probe_read_kernel checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel((base + offset as u64) as *const T).ok() }
}

/// Reads a number at `base + offset` in kernel memory; 0 where it cannot be read. There is no branch: a chain of reads
/// that may each fail has a path for every combination, and the verifier of 5.10 walks all of them.
#[inline(always)]
pub fn number<T: Number>(base: u64, offset: u32) -> T {
    let mut value = T::ZERO;
    if offset != ABSENT {
        let from = base.wrapping_add(offset as u64) as *const c_void;
        // SAFETY: `value` is a local variable; the helper checks the address, and writes zeros if it fails.
        unsafe { bpf_probe_read_kernel_raw((&raw mut value).cast(), size_of::<T>() as u32, from) };
    }
    value
}

/// An integer, for which any bytes are a valid value.
pub trait Number: Copy {
    const ZERO: Self;
}

impl Number for u32 {
    const ZERO: u32 = 0;
}

impl Number for u64 {
    const ZERO: u64 = 0;
}

impl Number for [u64; 2] {
    const ZERO: [u64; 2] = [0; 2];
}

/// Reads a number at `base + offset` in the current task's user memory; if it cannot be read, sets bits in `failed`.
#[inline(always)]
pub fn user_number(base: u64, offset: u32, failed: &mut u64) -> u64 {
    let mut value = 0u64;
    let from = base.wrapping_add(offset as u64) as *const c_void;
    // SAFETY: as in `number`.
    let result = unsafe { bpf_probe_read_user_raw((&raw mut value).cast(), 8, from) };
    *failed |= result as u64;
    value
}

/// Reads a `T` in the current task's user memory; None: the address cannot be read.
#[inline(always)]
pub fn read_user<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: bpf_probe_read_user checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_user(address as *const T).ok() }
}

/// The current task's `task_struct`.
#[inline(always)]
pub fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// kernfs id of the task's memory cgroup; 0: not known.
#[inline(always)]
pub fn memory_cgroup(task: u64, at: &Layout) -> u64 {
    number(memory_kernfs_node(task, at), at.kernfs_node_id)
}

/// The `kernfs_node` of the task's memory cgroup.
#[inline(always)]
pub fn memory_kernfs_node(task: u64, at: &Layout) -> u64 {
    let css_set: u64 = number(task, at.task_cgroups);
    let css: u64 = number(css_set, at.css_set_memory);
    let cgroup: u64 = number(css, at.css_cgroup);
    number(cgroup, at.cgroup_kn)
}

/// The identity of `task`, with its leader's name and start time.
#[inline(always)]
pub fn identify(task: u64, at: &Layout) -> Task {
    let leader = number(task, at.task_group_leader);
    Task { comm: comm(leader, at), ..identify_thread(task, leader, at) }
}

/// The identity of `task`, with the thread's own name and its leader's start time.
#[inline(always)]
pub fn identify_sampled(task: u64, at: &Layout) -> Task {
    let leader = number(task, at.task_group_leader);
    Task { comm: comm(task, at), ..identify_thread(task, leader, at) }
}

#[inline(always)]
fn identify_thread(task: u64, leader: u64, at: &Layout) -> Task {
    Task {
        cgroup_id: memory_cgroup(task, at),
        start_ns: number(leader, at.task_start_boottime),
        pid: number(task, at.task_tgid),
        tid: number(task, at.task_pid),
        comm: [0; 16],
    }
}

#[inline(always)]
fn comm(task: u64, at: &Layout) -> [u8; 16] {
    // As words: LLVM calls memset for bytes, and before 6.0 a program with a call may not be a tail call's on arm64.
    let [low, high]: [u64; 2] = number(task, at.task_comm);
    // SAFETY: the same sixteen bytes.
    unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>([low, high]) }
}
