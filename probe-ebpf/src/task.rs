//! Reads `task_struct` and other kernel structures by the offsets that user space found in BTF.

use core::ffi::c_void;
use core::hint::black_box;

use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel as bpf_probe_read_kernel_raw, bpf_probe_read_user as bpf_probe_read_user_raw,
};
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user};
use podopsy_wire::{ABSENT, Config, Layout, Task};

/// `MAX_PID_NS_LEVEL` (`<linux/pid_namespace.h>`).
const PID_LEVELS_MAX: u32 = 32;
/// How many pid namespaces around a task are searched for podopsy's own. A pod's is the second on most nodes, and the third
/// on a node that is itself a container.
const PID_LEVELS: u32 = 8;
/// Size of a `struct upid`, which begins with the number, and where its pointer to the namespace is.
const UPID_BYTES: u64 = 16;
const UPID_NAMESPACE: u64 = 8;

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
pub fn identify(task: u64, config: &Config) -> Task {
    let at = &config.layout;
    let leader = number(task, at.task_group_leader);
    Task { comm: comm(leader, at), ..identify_thread(task, leader, config) }
}

/// The identity of `task`, with the thread's own name and its leader's start time.
#[inline(always)]
pub fn identify_sampled(task: u64, config: &Config) -> Task {
    let at = &config.layout;
    let leader = number(task, at.task_group_leader);
    Task { comm: comm(task, at), ..identify_thread(task, leader, config) }
}

#[inline(always)]
fn identify_thread(task: u64, leader: u64, config: &Config) -> Task {
    let at = &config.layout;
    Task {
        cgroup_id: memory_cgroup(task, at),
        start_ns: number(leader, at.task_start_boottime),
        pid: process_id(task, config),
        tid: thread_id(task, config),
        comm: [0; 16],
    }
}

/// The id of the task's process as user space has it; 0: the idle task, or one outside of user space's pid namespace.
#[inline(always)]
pub fn process_id(task: u64, config: &Config) -> u32 {
    let at = &config.layout;
    match config.pid_namespace {
        0 => number(task, at.task_tgid),
        namespace => id_in(namespace, number(task, at.task_group_leader), at),
    }
}

#[inline(always)]
fn thread_id(task: u64, config: &Config) -> u32 {
    match config.pid_namespace {
        0 => number(task, config.layout.task_pid),
        namespace => id_in(namespace, task, &config.layout),
    }
}

/// The thread's id in a pid namespace, given by its inode number; 0: it is not in it. A thread has a number in its own
/// namespace and in each one above (`struct pid`, `<linux/pid.h>`), the initial one first. There is no branch, for the reason
/// that [`number`] has.
#[inline(always)]
fn id_in(namespace: u32, task: u64, at: &Layout) -> u32 {
    let pid: u64 = number(task, at.task_thread_pid);
    let innermost: u32 = number(pid, at.pid_level);
    let mut id = 0;
    for level in 0..PID_LEVELS {
        let upid = pid.wrapping_add(level as u64 * UPID_BYTES);
        let its_namespace: u64 = number(upid.wrapping_add(UPID_NAMESPACE), at.pid_numbers);
        let inum: u32 = number(its_namespace, at.namespace_inum);
        let matches = (level <= innermost) & (inum == namespace);
        id |= number::<u32>(upid, at.pid_numbers) * black_box(matches as u32);
    }
    id
}

/// The process's id in its own pid namespace, so that PID 1 is 1; 0: not known.
#[inline(always)]
pub fn innermost_id(task: u64, at: &Layout) -> u32 {
    let leader: u64 = number(task, at.task_group_leader);
    let pid: u64 = number(leader, at.task_thread_pid);
    let level = read::<u32>(pid, at.pid_level).unwrap_or(u32::MAX);
    if pid == 0 || level > PID_LEVELS_MAX {
        return 0;
    }
    number(pid + level as u64 * UPID_BYTES, at.pid_numbers)
}

#[inline(always)]
fn comm(task: u64, at: &Layout) -> [u8; 16] {
    // As words: LLVM calls memset for bytes, and before 6.0 a program with a call may not be a tail call's on arm64.
    let [low, high]: [u64; 2] = number(task, at.task_comm);
    // SAFETY: the same sixteen bytes.
    unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>([low, high]) }
}
