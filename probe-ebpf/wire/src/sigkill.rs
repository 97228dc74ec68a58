//! A SIGKILL that was sent (kernel: `kernel/signal.c`).

use bytemuck::{Pod, Zeroable};

use crate::{ABSENT, Task};

/// `SI_USER`, `SI_KERNEL`, `SI_QUEUE`, `SI_TKILL` (`<asm-generic/siginfo.h>`).
pub const SI_USER: i32 = 0;
pub const SI_KERNEL: i32 = 0x80;
pub const SI_QUEUE: i32 = -1;
pub const SI_TKILL: i32 = -6;
/// The signal's `siginfo` could not be read.
pub const SI_UNREAD: i32 = i32::MIN;

/// The first SIGKILL of a process. Later ones have no effect.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SigkillRecord {
    pub time_ns: u64,
    /// The task that was running when the signal was sent. It is the sender if `si_code` names a process as the source.
    pub sender: Task,
    pub target: Task,
    /// `siginfo.si_code`; [`SI_UNREAD`]: not known.
    pub si_code: i32,
    /// 1: the kernel itself sent it (`SEND_SIG_PRIV`).
    pub from_kernel: u32,
    /// 1: to the process; 0: to one of its threads, which ends all of them as well.
    pub to_process: u32,
    /// The process's id in its own pid namespace, so that PID 1 is 1; 0: not known.
    pub namespace_pid: u32,
}

const _: () = assert!(size_of::<SigkillRecord>() == 8 + 2 * 40 + 4 * 4);

/// The probes' read-only global `SIGKILL_LAYOUT`: byte offsets that only the sigkill probe needs; [`ABSENT`] where this
/// kernel has no such member.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SigkillLayout {
    pub siginfo_code: u32,
    pub task_flags: u32,
    /// `signal_struct.live`: the number of threads that are alive.
    pub signal_live: u32,
}

impl SigkillLayout {
    /// No member is known.
    pub const EMPTY: SigkillLayout = bytemuck::must_cast([ABSENT; size_of::<SigkillLayout>() / 4]);
}
