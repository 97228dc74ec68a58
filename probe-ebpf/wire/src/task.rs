//! The identity of a task, as every record carries it.

use bytemuck::{Pod, Zeroable};

/// Identity of a task. The cgroup id gives the owner; pid and start time give the process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Task {
    /// kernfs id of its memory cgroup (`css_set.subsys[memory]->cgroup->kn->id`); 0: not known.
    pub cgroup_id: u64,
    /// `start_boottime` of the thread group leader, ns; 0: not known.
    pub start_ns: u64,
    /// Thread group id: what user space calls the process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// `comm` of the leader (in a [`crate::Sample`]: of the thread itself), NUL-padded.
    pub comm: [u8; 16],
}

impl Task {
    /// Nothing is known.
    pub const UNKNOWN: Task = bytemuck::zeroed();
}

const _: () = assert!(size_of::<Task>() == 40);
