//! Settings that user space writes into the probes' read-only globals before the load. They are constant from then on,
//! so that the verifier removes the branches that this kernel does not need.

use bytemuck::{Pod, Zeroable};

use crate::dns::{DNS_PORTS_MAX, TABLES};

/// The offset of a member that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// `Config::scope`: sample every process.
pub const SCOPE_NODE: u32 = 0;
/// Sample the memory cgroups in the map `TARGETS`.
pub const SCOPE_CGROUPS: u32 = 1;
/// Sample the process ids in the map `TARGETS`.
pub const SCOPE_PROCESS: u32 = 2;
/// Sample every process but those of the memory cgroups in the map `TARGETS`.
pub const SCOPE_OTHERS: u32 = 3;

/// `Config::sample_budget` is per 2^this ns: 134 ms.
pub const BUDGET_SHIFT: u32 = 27;

/// Byte offsets in kernel structures, from BTF; [`ABSENT`] where this kernel has no such member.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Layout {
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_comm: u32,
    pub task_group_leader: u32,
    pub task_start_boottime: u32,
    pub task_cgroups: u32,
    pub task_mm: u32,
    pub task_signal: u32,
    /// `css_set.subsys[memory_cgrp_id]`: the index is part of the offset.
    pub css_set_memory: u32,
    pub css_cgroup: u32,
    pub cgroup_kn: u32,
    pub kernfs_node_id: u32,
    pub signal_oom_score_adj: u32,
    /// The counters MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES in `mm_struct`.
    pub mm_rss: [u32; 4],
    /// `sock.sk_err`, `sock.__sk_common.skc_cookie`, `.skc_dport`.
    pub sock_err: u32,
    pub sock_cookie: u32,
    pub sock_dport: u32,
    /// `sock.sk_lock.owned`.
    pub sock_owned: u32,
    /// From `struct linux_binprm` to the device and inode number of its file.
    pub binprm_file: u32,
    pub file_inode: u32,
    pub inode_ino: u32,
    pub inode_sb: u32,
    pub super_block_dev: u32,
    pub kernfs_node_name: u32,
    pub kernfs_node_parent: u32,
    /// Where the stack of a process's first thread begins.
    pub mm_start_stack: u32,
    /// `task_struct.thread_pid`, and what of a `struct pid` says which number the thread has in which namespace.
    pub task_thread_pid: u32,
    pub pid_level: u32,
    pub pid_numbers: u32,
    /// `pid_namespace.ns.inum`, which is the inode number of `/proc/PID/ns/pid`.
    pub namespace_inum: u32,
}

impl Layout {
    /// No member is known: every read by offset is skipped.
    pub const EMPTY: Layout = bytemuck::must_cast([ABSENT; size_of::<Layout>() / 4]);
}

/// The probes' read-only global `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    pub layout: Layout,
    /// 1: `mark_victim` passes the task (6.9, and stable kernels with the backport); 0: only its thread id.
    pub victim_is_task: u32,
    /// `SCOPE_*`.
    pub scope: u32,
    /// Samples that a CPU may take in each period of 2^[`BUDGET_SHIFT`] ns; 0: no limit.
    pub sample_budget: u32,
    /// Inode number of the pid namespace in which user space runs: a pod's, or that of a node in a container. Records have
    /// its pids, and tasks that it does not contain are left out. 0: the initial one, which contains every task.
    pub pid_namespace: u32,
}

/// The probes' read-only global `DNS`. It is separate from `CONFIG` because the ports are read for every packet of the
/// node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DnsConfig {
    /// Server ports that carry DNS, host byte order; 0: unused slot.
    pub ports: [u16; DNS_PORTS_MAX],
    /// 1: ship answered queries too.
    pub answers: u32,
    /// Ship answers that took this long (µs) even if they are successes; 0: do not.
    pub slow_us: u32,
    /// Ship one success in this many; 0: none.
    pub sample: u32,
    /// Token bucket of each container: µs after which one more record is allowed (0: no limit), at most 1,000,000.
    pub interval_us: u32,
    /// Token bucket of each container: records that may be shipped at once.
    pub burst: u32,
    /// How many entries each table has, by `TABLE_*`.
    pub tables_max: [u32; TABLES as usize],
}

const _: () = assert!(size_of::<Config>() == 33 * 4 + 4 * 4);
const _: () = assert!(size_of::<DnsConfig>() == 2 * DNS_PORTS_MAX + 5 * 4 + 4 * TABLES as usize);
