//! Chooses the capabilities that the agent still needs once it records. Pure, except for [`drop_bounding_and_ambient`].
//!
//! The list follows from what each part does later. Tests run the agent with exactly these on the lab's kernels. Where
//! unprivileged BPF is off, older kernels reject every bpf(2) call without CAP_BPF, even the lookup in a map.

use std::fmt;

use anyhow::Context;

use podopsy_doctor::capability::{Capabilities, Capability};

/// What the agent will do later that needs an additional capability.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// Opens and closes perf events: for growth candidates, or for the always-on profile.
    pub samples: bool,
}

/// A capability that is kept, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptCapability {
    pub capability: Capability,
    pub why: &'static str,
}

impl fmt::Display for KeptCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.capability, self.why)
    }
}

/// The kept capabilities as the kernel's bit mask.
pub fn bits(kept: &[KeptCapability]) -> u64 {
    kept.iter().fold(0, |all, kept| all | 1 << kept.capability as u32)
}

/// Chooses the capabilities to keep out of those that are held.
pub fn keep(held: Capabilities, needs: &Needs) -> Vec<KeptCapability> {
    use Capability::*;
    let table = [
        (Bpf, true, "reads and writes the probes' maps"),
        (
            Perfmon,
            needs.samples,
            "samples page faults while there is a growth candidate, and CPU time if that is on",
        ),
        (
            SysPtrace,
            true,
            "finds the namespaces of other users' processes, and all of /proc where it is mounted with hidepid",
        ),
        // The owner of a delegated cgroup may take others' right to look into it.
        (DacReadSearch, true, "reads cgroups that their owners have closed to others"),
        (Syslog, true, "names the kernel's functions"),
    ];
    let mut kept = Vec::new();
    for (capability, needed, why) in table {
        // If CAP_SYS_ADMIN stands in for a missing capability, CAP_SYS_ADMIN has to be kept.
        let (capability, why) = match (held.has(capability), held.allows(capability)) {
            (true, _) => (capability, why),
            (false, true) => (SysAdmin, "stands in for CAP_BPF or CAP_PERFMON"),
            (false, false) => continue,
        };
        if needed && kept.iter().all(|kept: &KeptCapability| kept.capability != capability) {
            kept.push(KeptCapability { capability, why });
        }
    }
    kept
}

/// Empties both sets of this thread, and so of the threads that it will start.
pub fn drop_bounding_and_ambient() -> anyhow::Result<()> {
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, caps::CapSet::Ambient).context("the ambient set")?;
    }
    for capability in caps::runtime::thread_all_supported() {
        caps::drop(None, caps::CapSet::Bounding, capability)
            .with_context(|| format!("{capability} of the bounding set (that needs CAP_SETPCAP)"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(held: &str, needs: Needs) -> Vec<&'static str> {
        let held = Capabilities::from_hex(held).unwrap();
        keep(held, &needs).iter().map(|kept| kept.capability.name()).collect()
    }

    #[test]
    fn five_of_all_capabilities_are_kept_and_none_that_is_not_held() {
        let everything = "000001ffffffffff";
        let five = ["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH", "SYSLOG"];
        assert_eq!(names(everything, Needs { samples: true }), five);
        let without: Vec<_> = five.into_iter().filter(|name| *name != "PERFMON").collect();
        assert_eq!(names(everything, Needs::default()), without);
        assert_eq!(names("80000", Needs { samples: true }), ["SYS_PTRACE"]);
        assert_eq!(names("0", Needs::default()), [""; 0]);
    }

    #[test]
    fn sys_admin_is_kept_only_where_it_stands_in_for_another() {
        assert_eq!(names("280000", Needs { samples: true }), ["SYS_ADMIN", "SYS_PTRACE"]);
        // It is dropped if CAP_BPF and CAP_PERFMON are held too.
        assert!(!names("c000200000", Needs { samples: true }).contains(&"SYS_ADMIN"));
    }
}
