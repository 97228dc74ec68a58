//! Capabilities: which ones this process holds, and what each is for (capabilities(7)).

use std::fmt;

use super::machine::Machine;
use super::{Check, Group, Status};

/// A capability that podopsy has a use for; the number is its bit (`<linux/capability.h>`).
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
    /// As manifests write it (`securityContext.capabilities.add`); with `CAP_` before it, as the kernel does.
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
    /// This process's effective set; empty if /proc does not say.
    pub fn effective() -> Self {
        Machine::host().capabilities()
    }

    /// From the hex digits of a `Cap…:` line in `/proc/PID/status`.
    pub fn from_hex(digits: &str) -> Option<Self> {
        u64::from_str_radix(digits, 16).ok().map(Capabilities)
    }

    pub fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u32) != 0
    }

    /// Held, or implied: the kernel lets CAP_SYS_ADMIN stand in for CAP_BPF, CAP_PERFMON,
    /// CAP_CHECKPOINT_RESTORE and, where bpf(2) is concerned, CAP_NET_ADMIN.
    pub fn allows(self, capability: Capability) -> bool {
        use Capability::*;
        let implied = matches!(capability, Bpf | Perfmon | CheckpointRestore | NetAdmin);
        self.has(capability) || (implied && self.has(SysAdmin))
    }
}

/// True if this process is in the first user namespace: in any other, capabilities do not reach the kernel.
pub fn in_initial_user_namespace() -> bool {
    // Where /proc cannot tell, the kernel's own refusal will: no second guess here.
    Machine::host().namespace("user").is_none_or(|inode| inode == super::mount::INITIAL_USER_NAMESPACE)
}

/// What is lost without each, and how much that matters.
const USES: [(Capability, Status, &str); 10] = [
    (Capability::Bpf, Status::Missing, "no probe can be loaded"),
    (Capability::Perfmon, Status::Missing, "no tracepoint, no sampling"),
    (Capability::NetAdmin, Status::Missing, "the DNS probe cannot be attached"),
    (Capability::NetRaw, Status::Degraded, "no packet socket: DNS is seen by the dns probe or not at all"),
    (Capability::SysAdmin, Status::Ok, "not needed beside the three above"),
    (Capability::SysPtrace, Status::Degraded, "no namespaces or mappings of other users' processes"),
    (
        Capability::CheckpointRestore,
        Status::Degraded,
        "no /proc/PID/map_files: deleted or replaced executables stay without names",
    ),
    (Capability::Syslog, Status::Degraded, "kernel functions may stay without names"),
    (Capability::SysResource, Status::Degraded, "RLIMIT_MEMLOCK cannot be raised for the probes' maps"),
    (Capability::DacReadSearch, Status::Degraded, "root's files (other users' executables) are closed"),
];

pub(super) fn checks(machine: &Machine, held: Capabilities) -> Vec<Check> {
    USES.iter().map(|&(capability, without, lost)| check(machine, held, capability, without, lost)).collect()
}

fn check(
    machine: &Machine,
    held: Capabilities,
    capability: Capability,
    without: Status,
    lost: &str,
) -> Check {
    let name = capability.to_string();
    if held.has(capability) {
        return Check::ok(Group::Capability, &name, "held");
    }
    if held.allows(capability) {
        return Check::ok(Group::Capability, &name, "implied by CAP_SYS_ADMIN");
    }
    // Since 5.11 BPF memory is charged to the memory cgroup, not to RLIMIT_MEMLOCK.
    if capability == Capability::SysResource && machine.kernel_version() >= Some((5, 11)) {
        return Check::ok(Group::Capability, &name, "not held, and not needed since kernel 5.11");
    }
    if capability == Capability::DacReadSearch
        && (held.has(Capability::DacOverride) || machine.euid() == Some(0))
    {
        return Check::ok(Group::Capability, &name, "not held, and not needed by root");
    }
    if without == Status::Ok {
        return Check::ok(Group::Capability, &name, format!("not held: {lost}"));
    }
    Check {
        name,
        group: Group::Capability,
        status: without,
        found: format!("not held: {lost}"),
        mend: Some(format!(
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
    fn bits_are_the_kernels() {
        // The reference machine: everything but CAP_SYS_RESOURCE.
        let held = Capabilities::from_hex("000001fffeffffff").unwrap();
        assert!(held.has(Capability::Bpf) && held.has(Capability::CheckpointRestore));
        assert!(!held.has(Capability::SysResource));
    }

    #[test]
    fn sys_admin_stands_in_for_bpf_but_not_for_ptrace() {
        let held = Capabilities::from_hex("200000").unwrap();
        assert!(held.allows(Capability::Bpf) && held.allows(Capability::NetAdmin));
        assert!(!held.allows(Capability::SysPtrace));
    }

    #[test]
    fn nobody_is_told_what_to_add() {
        let (_dir, machine) = with(&[("/proc/sys/kernel/osrelease", "6.1.0")]);
        let checks = checks(&machine, Capabilities::default());
        let bpf = &checks[0];
        assert_eq!((bpf.name.as_str(), bpf.status), ("CAP_BPF", Status::Missing));
        assert!(bpf.mend.as_deref().unwrap().contains(r#"add: ["BPF"]"#));
        let resource = checks.iter().find(|check| check.name == "CAP_SYS_RESOURCE").unwrap();
        assert_eq!(resource.status, Status::Ok);
    }

    #[test]
    fn before_5_11_memlock_matters() {
        let (_dir, machine) = with(&[("/proc/sys/kernel/osrelease", "5.10.0-30-amd64")]);
        let checks = checks(&machine, Capabilities::default());
        let resource = checks.iter().find(|check| check.name == "CAP_SYS_RESOURCE").unwrap();
        assert_eq!(resource.status, Status::Degraded);
    }
}
