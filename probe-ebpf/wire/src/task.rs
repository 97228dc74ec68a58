//! A task, as every record names one.

/// Identity of a task. The cgroup says whose it is; pid and start time say which process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Nothing known.
    pub const UNKNOWN: Task = Task { cgroup_id: 0, start_ns: 0, pid: 0, tid: 0, comm: [0; 16] };
}

const _: () = assert!(size_of::<Task>() == 40);
