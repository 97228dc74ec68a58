//! Reading `task_struct` by the offsets that user space found in BTF.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user};
use podopsy_wire::{ABSENT, Layout, Task};

/// Reads a `T` at `base + offset` in kernel memory; None where this kernel has no such member.
#[inline(always)]
pub fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
    if offset == ABSENT || base == 0 {
        return None;
    }
    // SAFETY: bpf_probe_read_kernel checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel((base + offset as u64) as *const T).ok() }
}

/// Reads a `T` in the current task's memory; None where there is none.
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
    read::<u64>(memory_kernfs_node(task, at), at.kernfs_node_id).unwrap_or(0)
}

/// The `kernfs_node` of the task's memory cgroup.
#[inline(always)]
pub fn memory_kernfs_node(task: u64, at: &Layout) -> u64 {
    let css_set = read::<u64>(task, at.task_cgroups).unwrap_or(0);
    let css = read::<u64>(css_set, at.css_set_memory).unwrap_or(0);
    let cgroup = read::<u64>(css, at.css_cgroup).unwrap_or(0);
    read::<u64>(cgroup, at.cgroup_kn).unwrap_or(0)
}

/// Identity of `task`, with its leader's name and start time.
#[inline(always)]
pub fn identify(task: u64, at: &Layout) -> Task {
    let leader = read::<u64>(task, at.task_group_leader).unwrap_or(task);
    Task { comm: comm(leader, at), ..identify_thread(task, leader, at) }
}

/// Identity of `task`, with the thread's own name.
#[inline(always)]
pub fn identify_sampled(task: u64, at: &Layout) -> Task {
    let leader = read::<u64>(task, at.task_group_leader).unwrap_or(task);
    Task { comm: comm(task, at), ..identify_thread(task, leader, at) }
}

#[inline(always)]
fn identify_thread(task: u64, leader: u64, at: &Layout) -> Task {
    Task {
        cgroup_id: memory_cgroup(task, at),
        start_ns: read(leader, at.task_start_boottime).unwrap_or(0),
        pid: read(task, at.task_tgid).unwrap_or(0),
        tid: read(task, at.task_pid).unwrap_or(0),
        comm: [0; 16],
    }
}

#[inline(always)]
fn comm(task: u64, at: &Layout) -> [u8; 16] {
    // As words: LLVM calls memset for bytes, and before 6.0 a program with a call may not be a tail call's on arm64.
    let [low, high] = read::<[u64; 2]>(task, at.task_comm).unwrap_or([0; 2]);
    // SAFETY: the same sixteen bytes.
    unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>([low, high]) }
}
