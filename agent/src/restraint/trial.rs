//! Whether the kernel opens perf events for what would be kept: tried, because no version tells.
//!
//! Upstream, CAP_PERFMON is enough. Debian's and Ubuntu's kernels carry a patch by which `kernel.perf_event_paranoid`
//! above 2, their default, asks for CAP_SYS_ADMIN in its place.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::thread;

use caps::{CapSet, CapsHashSet};
use nix::errno::Errno;

use super::{Kept, capabilities};

/// False: refused for want of a right. Any other error is not about rights.
pub fn opens_perf_events(kept: &[Kept]) -> bool {
    let keep = capabilities::bits(kept);
    let refused = |error| matches!(error, Errno::EACCES | Errno::EPERM);
    // A thread's effective set is its own, and ends with it.
    let trial = thread::Builder::new().name("trial".to_owned()).spawn(move || {
        let all = caps::all().into_iter();
        let keep: CapsHashSet = all.filter(|capability| keep & 1 << capability.index() != 0).collect();
        caps::set(None, CapSet::Effective, &keep).is_err() || !open().err().is_some_and(refused)
    });
    trial.ok().and_then(|trial| trial.join().ok()).unwrap_or(true)
}

/// `struct perf_event_attr` of `PERF_ATTR_SIZE_VER0` (`<linux/perf_event.h>`), as far as it is used here.
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    unused: [u64; 3],
    flags: u64,
    more: [u64; 2],
}

/// Opens what a growth profile opens, stopped, and closes it.
fn open() -> Result<(), Errno> {
    const SOFTWARE: u32 = 1;
    const PAGE_FAULTS: u64 = 2;
    const DISABLED: u64 = 1;
    const EVERY_PROCESS: libc::pid_t = -1;
    /// `PERF_FLAG_FD_CLOEXEC`.
    const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;
    const CPU: libc::c_int = 0;
    const NO_GROUP: libc::c_int = -1;
    let attributes = Attributes {
        kind: SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config: PAGE_FAULTS,
        unused: [0; 3],
        flags: DISABLED,
        more: [0; 2],
    };
    // SAFETY: the kernel reads `size` bytes of the structure, which lives over the call; the rest are integers.
    let opened = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            EVERY_PROCESS,
            CPU,
            NO_GROUP,
            CLOSE_ON_EXEC,
        )
    })?;
    // SAFETY: the descriptor is new, and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(opened as RawFd) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_doctor::capability::{Capabilities, Capability};

    #[test]
    #[ignore = "needs root"]
    fn nothing_at_all_is_too_little_and_sys_admin_is_enough_everywhere() {
        let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
        let of = |capability| Kept { capability, why: "" };
        assert_eq!(opens_perf_events(&[]), paranoid.trim().parse::<i32>().unwrap() < 1);
        assert!(opens_perf_events(&[of(Capability::SysAdmin)]));
        // The trial's thread took what it gave up with it.
        assert!(Capabilities::effective().has(Capability::SysAdmin));
    }
}
