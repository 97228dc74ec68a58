//! A victim of the OOM killer (kernel: `mm/oom_kill.c`).

use bytemuck::{Pod, Zeroable};

use crate::Task;

/// Deepest kernel stack of the trigger.
pub const OOM_KERNEL_FRAMES: usize = 64;
/// Deepest user stack of the trigger.
pub const OOM_USER_FRAMES: usize = 64;

/// Levels of the victim's cgroup path that are kept; kind nests a kubelet's cgroups inside a container's.
pub const CGROUP_LEVELS: usize = 8;
/// Bytes of a cgroup's name, with its NUL; `cri-containerd-<64 digits>.scope` has 86.
pub const CGROUP_NAME_MAX: usize = 96;

/// `struct bpf_stack_build_id` (`<linux/bpf.h>`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BuildIdFrame {
    /// 0: empty; 1: `build_id` and a file offset; 2: `offset` is an address.
    pub status: i32,
    pub build_id: [u8; 20],
    pub offset: u64,
}

/// A victim and the trigger, taken when the kernel marks the victim.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct OomRecord {
    pub time_ns: u64,
    /// Where the kernel passed only a thread id and no signal gave the task, `pid` holds that id and the rest is
    /// unknown.
    pub victim: Task,
    pub trigger: Task,
    /// Pages: file, anonymous, swapped, shared; `u64::MAX`: not known.
    pub rss_pages: [u64; 4],
    /// `i32::MIN`: not known.
    pub oom_score_adj: i32,
    /// Bytes in `kernel`, or a negative errno.
    pub kernel_len: i32,
    /// Bytes in `user`, or a negative errno.
    pub user_len: i32,
    /// 1: marked without a SIGKILL of its own. The kernel only gave it access to memory reserves, so that it ends
    /// sooner.
    pub already_dying: u32,
    /// [`crate::Sample::image`] of the trigger.
    pub image: u64,
    pub kernel: [u64; OOM_KERNEL_FRAMES],
    pub user: [BuildIdFrame; OOM_USER_FRAMES],
    /// Names from the victim's memory cgroup up to the root, which has an empty name. The cgroup may be removed before
    /// user space can look at it.
    pub cgroup: [[u8; CGROUP_NAME_MAX]; CGROUP_LEVELS],
}

const _: () = assert!(size_of::<BuildIdFrame>() == 32);
const _: () = assert!(size_of::<OomRecord>() == 8 + 80 + 32 + 16 + 8 + 64 * 8 + 64 * 32 + 8 * 96);
