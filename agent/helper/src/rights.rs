//! What supervisors and helpers give up. Each step that this machine does not permit is reported, and the others hold.

use std::fs;
use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

/// Collects the steps that failed.
#[derive(Debug, Default)]
pub struct Steps(Vec<String>);

impl Steps {
    pub fn take(&mut self, what: &str, result: nix::Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{what}: {error}"));
        }
    }

    /// The failed ones, in words.
    pub fn failed(self) -> Vec<String> {
        self.0
    }
}

/// Closes everything but standard streams, and takes the steps that every helper takes.
pub fn enter(steps: &mut Steps) {
    // SAFETY: standard streams stay open, and a process that was just started uses no other descriptor.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    // Of the processes in a container, the kernel ends helpers first.
    steps.take("first to be OOM-killed", fs::write("/proc/self/oom_score_adj", "1000").map_err(to_errno));
    steps.take("no core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0));
    steps.take("no new privileges", prctl::set_no_new_privs());
}

/// Takes a user and a group of its own, without other groups.
pub fn own_user(id: u32) -> nix::Result<()> {
    if !geteuid().is_root() {
        return Err(nix::Error::EPERM);
    }
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

/// Gives up all capabilities but these, in every set. Of these, those that the process does not hold are left out.
pub fn keep_capabilities(kept: &[Capability]) -> nix::Result<()> {
    let refused = |_| nix::Error::EPERM;
    caps::clear(None, CapSet::Ambient).map_err(refused)?;
    caps::clear(None, CapSet::Inheritable).map_err(refused)?;
    let held = caps::read(None, CapSet::Permitted).map_err(refused)?;
    let kept: CapsHashSet = kept.iter().copied().filter(|one| held.contains(one)).collect();
    // The effective set must be within the permitted one at each moment.
    caps::clear(None, CapSet::Effective).map_err(refused)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(refused)?;
    caps::set(None, CapSet::Effective, &kept).map_err(refused)
}

/// The kernel's number of an error of std.
pub fn to_errno(error: io::Error) -> nix::Error {
    error.raw_os_error().map_or(nix::Error::EIO, nix::Error::from_raw)
}
