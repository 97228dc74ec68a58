//! Tests whether the kernel opens perf events with the capabilities that would be kept. The kernel's version does not show
//! it.
//!
//! Upstream, CAP_PERFMON is enough. Debian's and Ubuntu's kernels carry a patch by which `kernel.perf_event_paranoid`
//! above 2, their default, requires CAP_SYS_ADMIN instead.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::thread;

use caps::{CapSet, CapsHashSet};
use nix::errno::Errno;

use super::{KeptCapability, capabilities};

/// False: the kernel rejected it for lack of a capability. Any other error is not about capabilities and counts as true.
pub fn opens_perf_events(kept: &[KeptCapability]) -> bool {
    let keep = capabilities::bits(kept);
    let refused = |error| matches!(error, Errno::EACCES | Errno::EPERM);
    // Only this thread's effective set changes, and the thread ends after the trial.
    let trial = thread::Builder::new().name("trial".to_owned()).spawn(move || {
        let all = caps::all().into_iter();
        let keep: CapsHashSet = all.filter(|capability| keep & 1 << capability.index() != 0).collect();
        caps::set(None, CapSet::Effective, &keep).is_err() || !open().err().is_some_and(refused)
    });
    trial.ok().and_then(|trial| trial.join().ok()).unwrap_or(true)
}

/// `struct perf_event_attr` of `PERF_ATTR_SIZE_VER0` (`<linux/perf_event.h>`), with only the fields used here named.
#[repr(C)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    unused: [u64; 3],
    flags: u64,
    more: [u64; 2],
}

/// Opens a perf event like that of a growth profile, disabled, and closes it.
fn open() -> Result<(), Errno> {
    const SOFTWARE: u32 = 1;
    const PAGE_FAULTS: u64 = 2;
    const DISABLED: u64 = 1;
    const EVERY_PROCESS: libc::pid_t = -1;
    /// `PERF_FLAG_FD_CLOEXEC`.
    const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;
    const CPU: libc::c_int = 0;
    const NO_GROUP: libc::c_int = -1;
    let attributes = PerfEventAttr {
        kind: SOFTWARE,
        size: size_of::<PerfEventAttr>() as u32,
        config: PAGE_FAULTS,
        unused: [0; 3],
        flags: DISABLED,
        more: [0; 2],
    };
    // SAFETY: the kernel reads `size` bytes of the structure, which lives until the call returns; the rest are integers.
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
    // SAFETY: the descriptor is new and has no other owner.
    drop(unsafe { OwnedFd::from_raw_fd(opened as RawFd) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_doctor::capability::{Capabilities, Capability};

    #[test]
    #[ignore = "needs root"]
    fn no_capability_is_too_little_and_sys_admin_is_always_enough() {
        let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
        let kept = |capability| KeptCapability { capability, why: "" };
        assert_eq!(opens_perf_events(&[]), paranoid.trim().parse::<i32>().unwrap() < 1);
        assert!(opens_perf_events(&[kept(Capability::SysAdmin)]));
        // The trial changed only its own thread.
        assert!(Capabilities::effective().has(Capability::SysAdmin));
    }
}
