//! What user space tells the probes at load time. Constant from then on, so that the verifier
//! removes the branches that this kernel does not need.

use crate::dns::DNS_PORTS_MAX;

/// An offset that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Sample every process.
pub const SCOPE_NODE: u32 = 0;
/// Sample the memory cgroups in the map `TARGETS`.
pub const SCOPE_CGROUPS: u32 = 1;
/// Sample the process ids in the map `TARGETS`.
pub const SCOPE_PROCESS: u32 = 2;

/// `Config::sample_budget` is for 2^this ns: 134 ms.
pub const BUDGET_SHIFT: u32 = 27;

/// Byte offsets in kernel structures, from BTF; [`ABSENT`] where there is no such member.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// The counter of MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES in `mm_struct`.
    pub mm_rss: [u32; 4],
    /// `sock.sk_err`, `sock.__sk_common.skc_cookie`, `.skc_dport`.
    pub sock_err: u32,
    pub sock_cookie: u32,
    pub sock_dport: u32,
    /// Of a `struct linux_binprm` to what names its file.
    pub binprm_file: u32,
    pub file_inode: u32,
    pub inode_ino: u32,
    pub inode_sb: u32,
    pub super_block_dev: u32,
    pub kernfs_node_name: u32,
    pub kernfs_node_parent: u32,
}

impl Layout {
    /// No member known: every read by offset is left out.
    pub const EMPTY: Layout = Layout {
        task_pid: ABSENT,
        task_tgid: ABSENT,
        task_comm: ABSENT,
        task_group_leader: ABSENT,
        task_start_boottime: ABSENT,
        task_cgroups: ABSENT,
        task_mm: ABSENT,
        task_signal: ABSENT,
        css_set_memory: ABSENT,
        css_cgroup: ABSENT,
        cgroup_kn: ABSENT,
        kernfs_node_id: ABSENT,
        signal_oom_score_adj: ABSENT,
        mm_rss: [ABSENT; 4],
        sock_err: ABSENT,
        sock_cookie: ABSENT,
        sock_dport: ABSENT,
        binprm_file: ABSENT,
        file_inode: ABSENT,
        inode_ino: ABSENT,
        inode_sb: ABSENT,
        super_block_dev: ABSENT,
        kernfs_node_name: ABSENT,
        kernfs_node_parent: ABSENT,
    };
}

/// The probes' read-only global `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pub layout: Layout,
    /// 1: `mark_victim` passes the task (6.9, and stable kernels that took it); 0: only its pid.
    pub victim_is_task: u32,
    /// `SCOPE_*`.
    pub scope: u32,
    /// Samples that a CPU may take in a [`BUDGET_SHIFT`] of time; 0: as many as come.
    pub sample_budget: u32,
}

/// The probes' read-only global `DNS`: apart, because every packet of the node asks for the ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Server ports that carry DNS, host byte order; 0: unused slot.
    pub ports: [u16; DNS_PORTS_MAX],
    /// 1: ship answered queries too.
    pub answers: u32,
    /// Ship answers that took this long (µs) even if they are successes; 0: do not.
    pub slow_us: u32,
    /// Ship one success in so many; 0: none.
    pub sample: u32,
    /// Token bucket of each container: µs for one record to be paid for (0: no limit) …
    pub interval_us: u32,
    /// … and how many may come at once.
    pub burst: u32,
}

const _: () = assert!(size_of::<Config>() == 27 * 4 + 3 * 4);
const _: () = assert!(size_of::<DnsConfig>() == 2 * DNS_PORTS_MAX + 5 * 4);
