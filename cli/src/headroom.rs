//! podopsy must not cost a pod its life: in a container it shares a memory limit with what it examines.
//!
//! A recording command starts only if what is left of the limit is enough for it, and has the kernel end podopsy, and not the
//! container, if the limit is met nevertheless.

use std::fs;

use anyhow::bail;
use podopsy_pods::headroom::{self, Headroom, LimitOf, is_in_container};
use podopsy_system::footprint;

use crate::args::Hook;
use crate::terminal::note;

/// The largest value: such a process is the first one that the kernel kills in its cgroup (`OOM_SCORE_ADJ_MAX` in
/// `<uapi/linux/oom.h>`).
const FIRST_TO_BE_KILLED: &str = "1000";
const MIB: u64 = 1 << 20;

/// What a recording takes, in bytes charged to its cgroup, with a reserve. The page cache of the program is not in it: the
/// kernel takes it back before it kills for a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A packet socket, and no probes.
    Socket = 8 * MIB as isize,
    /// Probes: the kernel charges their maps to the cgroup, too.
    Probes = 24 * MIB as isize,
    /// Also unwind tables and names.
    Profile = 64 * MIB as isize,
}

impl Need {
    /// DNS is seen by a packet socket where the node's root cgroup is out of reach.
    pub fn of_dns(hook: Hook) -> Need {
        match hook {
            Hook::Socket => Need::Socket,
            Hook::Auto if podopsy_doctor::dns_out_of_reach().is_some() => Need::Socket,
            Hook::Auto | Hook::Cgroup => Need::Probes,
        }
    }
}

/// Gives back what was read of the program ahead of time. Call it first in `main`, and again when a command records: the kernel
/// may still be reading when it is called first.
pub fn settle() {
    if is_in_container() {
        footprint::read_own_program_by_pages();
    }
}

/// Fails if `command` needs more memory than is left of a limit that it is under.
pub fn require(command: &str, need: Need, ignore: bool) -> anyhow::Result<()> {
    let found = headroom::find();
    if is_in_container() || found.is_some() {
        // It can fail where /proc is mounted read-only. Then the kernel's choice is by size, and podopsy is small.
        let _ = fs::write("/proc/self/oom_score_adj", FIRST_TO_BE_KILLED);
    }
    let Some(why) = found.and_then(|headroom| lack(headroom, need as u64)) else { return Ok(()) };
    if ignore {
        note(&format!("{why}; it goes on because of --ignore-memory-limit"));
        return Ok(());
    }
    bail!(
        "{command}: {why}: the pod could be OOM-killed. Run it on the node instead \
         (kubectl debug node/NODE --profile=sysadmin), or take the risk with --ignore-memory-limit"
    )
}

/// Why the headroom does not suffice; None: it does.
fn lack(headroom: Headroom, need: u64) -> Option<String> {
    let Headroom { free, limit, of } = headroom;
    let whose = match of {
        LimitOf::Own => "this container's memory limit",
        LimitOf::Pod => "the pod's memory limit",
        LimitOf::Target => "the memory limit of a container of this pod",
    };
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    (free < need).then(|| {
        format!(
            "{:.1} MiB of {whose} ({:.0} MiB) are left, and this takes up to {:.0} MiB",
            mib(free),
            mib(limit),
            mib(need)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures() {
        let headroom = |free| Headroom { free, limit: 24 * MIB, of: LimitOf::Pod };
        let why = lack(headroom(3 * MIB), Need::Socket as u64).unwrap();
        assert_eq!(why, "3.0 MiB of the pod's memory limit (24 MiB) are left, and this takes up to 8 MiB");
        assert_eq!(lack(headroom(8 * MIB), Need::Socket as u64), None);
        assert!(lack(headroom(8 * MIB), Need::Profile as u64).is_some());
    }
}
