//! The capabilities of this process, and what podopsy needs each of them for (capabilities(7)).

use std::fmt;

use super::machine::Machine;
use super::{Check, CheckGroup, CheckStatus};

/// A capability that podopsy can use. The number is its bit (`<linux/capability.h>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    DacOverride = 1,
    DacReadSearch = 2,
    NetAdmin = 12,
    NetRaw = 13,
    SysPtrace = 19,
    SysAdmin = 21,
    SysResource = 24,
    Syslog = 34,
    Perfmon = 38,
    Bpf = 39,
    CheckpointRestore = 40,
}

impl Capability {
    /// The name in a manifest (`securityContext.capabilities.add`); the kernel adds the prefix `CAP_`.
    pub fn name(self) -> &'static str {
        match self {
            Capability::DacOverride => "DAC_OVERRIDE",
            Capability::DacReadSearch => "DAC_READ_SEARCH",
            Capability::NetAdmin => "NET_ADMIN",
            Capability::NetRaw => "NET_RAW",
            Capability::SysPtrace => "SYS_PTRACE",
            Capability::SysAdmin => "SYS_ADMIN",
            Capability::SysResource => "SYS_RESOURCE",
            Capability::Syslog => "SYSLOG",
            Capability::Perfmon => "PERFMON",
            Capability::Bpf => "BPF",
            Capability::CheckpointRestore => "CHECKPOINT_RESTORE",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CAP_{}", self.name())
    }
}

/// A set of capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// The effective set of this process. Empty if it cannot be read from /proc.
    pub fn effective() -> Self {
        Machine::host().capabilities()
    }

    /// Parses the hex digits of a `Cap…:` line in `/proc/PID/status`.
    pub fn from_hex(digits: &str) -> Option<Self> {
        u64::from_str_radix(digits, 16).ok().map(Capabilities)
    }

    pub fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u32) != 0
    }

    /// Whether a capability is held or implied: the kernel accepts CAP_SYS_ADMIN in place of CAP_BPF, CAP_PERFMON,
    /// CAP_CHECKPOINT_RESTORE and, for bpf(2), CAP_NET_ADMIN.
    pub fn allows(self, capability: Capability) -> bool {
        use Capability::*;
        let implied = matches!(capability, Bpf | Perfmon | CheckpointRestore | NetAdmin);
        self.has(capability) || (implied && self.has(SysAdmin))
    }
}

/// Whether this process is in the initial user namespace. In any other, its capabilities have no effect on the kernel.
pub fn in_initial_user_namespace() -> bool {
    // If /proc does not show it, assume yes: the kernel itself will refuse otherwise.
    Machine::host().namespace("user").is_none_or(|inode| inode == super::mount::INITIAL_USER_NAMESPACE)
}

/// For each capability: the status without it, and what is then lost.
const USES: [(Capability, CheckStatus, &str); 10] = [
    (Capability::Bpf, CheckStatus::Missing, "no probe can be loaded"),
    (Capability::Perfmon, CheckStatus::Missing, "no tracepoint, no sampling"),
    (Capability::NetAdmin, CheckStatus::Missing, "the DNS probe cannot be attached"),
    (
        Capability::NetRaw,
        CheckStatus::Degraded,
        "no packet socket: DNS is seen by the dns probe or not at all",
    ),
    (Capability::SysAdmin, CheckStatus::Ok, "not needed with the three above"),
    (Capability::SysPtrace, CheckStatus::Degraded, "no namespaces or mappings of other users' processes"),
    (
        Capability::CheckpointRestore,
        CheckStatus::Degraded,
        "no /proc/PID/map_files: deleted or replaced executables stay without names",
    ),
    (Capability::Syslog, CheckStatus::Degraded, "kernel functions may stay without names"),
    (Capability::SysResource, CheckStatus::Degraded, "RLIMIT_MEMLOCK cannot be raised for the probes' maps"),
    (Capability::DacReadSearch, CheckStatus::Degraded, "root's files (other users' executables) are closed"),
];

pub(super) fn checks(machine: &Machine, held: Capabilities) -> Vec<Check> {
    USES.iter().map(|&(capability, without, lost)| check(machine, held, capability, without, lost)).collect()
}

fn check(
    machine: &Machine,
    held: Capabilities,
    capability: Capability,
    without: CheckStatus,
    lost: &str,
) -> Check {
    let name = capability.to_string();
    if held.has(capability) {
        return Check::ok(CheckGroup::Capability, &name, "held");
    }
    if held.allows(capability) {
        return Check::ok(CheckGroup::Capability, &name, "implied by CAP_SYS_ADMIN");
    }
    // Since 5.11 BPF memory is charged to the memory cgroup, not to RLIMIT_MEMLOCK.
    if capability == Capability::SysResource && machine.kernel_version() >= Some((5, 11)) {
        return Check::ok(CheckGroup::Capability, &name, "not held, and not needed since kernel 5.11");
    }
    if capability == Capability::DacReadSearch
        && (held.has(Capability::DacOverride) || machine.euid() == Some(0))
    {
        return Check::ok(CheckGroup::Capability, &name, "not held, and not needed by root");
    }
    if without == CheckStatus::Ok {
        return Check::ok(CheckGroup::Capability, &name, format!("not held: {lost}"));
    }
    Check {
        name,
        group: CheckGroup::Capability,
        status: without,
        found: format!("not held: {lost}"),
        remedy: Some(format!(
            "run as root; in a pod: securityContext.capabilities.add: [\"{}\"]; \
             kubectl debug --profile=sysadmin",
            capability.name()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::with;
    use super::*;

    #[test]
    fn bits_match_the_kernels() {
        // The reference machine: everything but CAP_SYS_RESOURCE.
        let held = Capabilities::from_hex("000001fffeffffff").unwrap();
        assert!(held.has(Capability::Bpf) && held.has(Capability::CheckpointRestore));
        assert!(!held.has(Capability::SysResource));
    }

    #[test]
    fn sys_admin_implies_bpf_but_not_ptrace() {
        let held = Capabilities::from_hex("200000").unwrap();
        assert!(held.allows(Capability::Bpf) && held.allows(Capability::NetAdmin));
        assert!(!held.allows(Capability::SysPtrace));
    }

    #[test]
    fn without_capabilities_the_remedy_names_what_to_add() {
        let (_dir, machine) = with(&[("/proc/sys/kernel/osrelease", "6.1.0")]);
        let checks = checks(&machine, Capabilities::default());
        let bpf = &checks[0];
        assert_eq!((bpf.name.as_str(), bpf.status), ("CAP_BPF", CheckStatus::Missing));
        assert!(bpf.remedy.as_deref().unwrap().contains(r#"add: ["BPF"]"#));
        let resource = checks.iter().find(|check| check.name == "CAP_SYS_RESOURCE").unwrap();
        assert_eq!(resource.status, CheckStatus::Ok);
    }

    #[test]
    fn sys_resource_is_needed_before_5_11() {
        let (_dir, machine) = with(&[("/proc/sys/kernel/osrelease", "5.10.0-30-amd64")]);
        let checks = checks(&machine, Capabilities::default());
        let resource = checks.iter().find(|check| check.name == "CAP_SYS_RESOURCE").unwrap();
        assert_eq!(resource.status, CheckStatus::Degraded);
    }
}
