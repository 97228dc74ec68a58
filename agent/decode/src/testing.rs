//! Example records, for the tests of this crate and of others (feature `testing`).

use podopsy_wire::{SigkillRecord, Task};

/// A SIGKILL that task 42 sent to task 43, with this `si_code`.
pub fn sigkill(si_code: i32) -> SigkillRecord {
    let task = |pid, cgroup_id| Task {
        cgroup_id,
        start_ns: 5,
        pid,
        tid: pid,
        comm: *b"app\0\0\0\0\0\0\0\0\0\0\0\0\0",
    };
    SigkillRecord {
        time_ns: 9,
        sender: task(42, 1),
        target: task(43, 7),
        si_code,
        from_kernel: 0,
        to_process: 1,
        namespace_pid: 1,
    }
}
