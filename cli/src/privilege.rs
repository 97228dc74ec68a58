//! The privileges that a command needs, checked before it starts; a missing one is a one-line error.

use std::path::Path;

use nix::unistd::{AccessFlags, access, geteuid};
use podopsy_doctor::capability::{Capabilities, Capability, in_initial_user_namespace};

use crate::args::Hook;
use crate::exit::NotPermitted;

/// Needed to load the probes and to read their samples.
pub const SAMPLE: &[Capability] = &[Capability::Bpf, Capability::Perfmon];
/// Needed to load the probes and to attach to the root cgroup's packets.
pub const SAMPLE_PACKETS: &[Capability] = &[Capability::Bpf, Capability::Perfmon, Capability::NetAdmin];

/// Fails with the missing capabilities of `command`.
pub fn require(command: &str, needed: &[Capability]) -> Result<(), NotPermitted> {
    match lacking(Capabilities::effective(), in_initial_user_namespace(), needed) {
        None => Ok(()),
        Some(why) => Err(NotPermitted(format!("{command}: {why}"))),
    }
}

/// DNS needs less: a packet socket needs CAP_NET_RAW in the user namespace that owns its network namespace.
pub fn require_dns(command: &str, hook: Hook) -> Result<(), NotPermitted> {
    match refused_dns(Capabilities::effective(), in_initial_user_namespace(), hook) {
        None => Ok(()),
        Some(why) => Err(NotPermitted(format!("{command}: {why}"))),
    }
}

fn refused_dns(held: Capabilities, initial_namespace: bool, hook: Hook) -> Option<String> {
    let node = || lacking(held, initial_namespace, SAMPLE_PACKETS);
    let socket = || {
        (!held.has(Capability::NetRaw)).then(|| {
            "needs CAP_NET_RAW, for this network namespace's lookups by a packet socket: in an ephemeral container \
             kubectl debug --profile=netadmin, or securityContext.capabilities.add: [\"NET_RAW\"]"
                .to_owned()
        })
    };
    match hook {
        Hook::Cgroup => node(),
        Hook::Socket => socket(),
        Hook::Auto => {
            let (node, socket) = (node()?, socket()?);
            Some(format!("for the node's lookups {node}; or, for one pod's, {socket}"))
        }
    }
}

/// Fails unless this user can reach the runtime: as root, or by a `--cri-socket` that the user may write to.
pub fn require_runtime(command: &str, socket: Option<&Path>) -> Result<(), NotPermitted> {
    let may = geteuid().is_root()
        || Capabilities::effective().has(Capability::DacOverride)
        || socket.is_some_and(|socket| access(socket, AccessFlags::W_OK).is_ok());
    if may {
        return Ok(());
    }
    Err(NotPermitted(format!(
        "{command}: needs root (or CAP_DAC_OVERRIDE) to ask the container runtime and to read other users' /proc; \
         run it as root on the node, or give a socket that you may write to with --cri-socket"
    )))
}

/// What is missing, in one line; None: nothing.
fn lacking(held: Capabilities, initial_namespace: bool, needed: &[Capability]) -> Option<String> {
    if !initial_namespace {
        return Some(
            "this is not the initial user namespace, and its capabilities do not count for the kernel; \
             set hostUsers: true, or run it as the node's root"
                .to_owned(),
        );
    }
    let lacking: Vec<_> = needed.iter().filter(|&&capability| !held.allows(capability)).collect();
    if lacking.is_empty() {
        return None;
    }
    let names: Vec<_> = lacking.iter().map(|capability| capability.to_string()).collect();
    let adds: Vec<_> = lacking.iter().map(|capability| format!("{:?}", capability.name())).collect();
    Some(format!(
        "needs {}; run it as root on the node, or in a pod set securityContext.capabilities.add: [{}] \
         (podopsy doctor lists what else is missing)",
        names.join(", "),
        adds.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_capabilities_are_named() {
        let perfmon = Capabilities::from_hex("4000000000").unwrap();
        let why = lacking(perfmon, true, SAMPLE_PACKETS).unwrap();
        assert!(why.starts_with("needs CAP_BPF, CAP_NET_ADMIN; run it as root"), "{why}");
        assert!(why.contains(r#"add: ["BPF", "NET_ADMIN"]"#), "{why}");
        assert!(!why.contains('\n'));
    }

    #[test]
    fn lookups_of_one_pod_need_cap_net_raw_alone() {
        let raw = Capabilities::from_hex("2000").unwrap();
        let none = Capabilities::from_hex("0").unwrap();
        assert_eq!(refused_dns(raw, false, Hook::Auto), None);
        assert_eq!(refused_dns(raw, true, Hook::Socket), None);
        assert!(refused_dns(raw, true, Hook::Cgroup).unwrap().starts_with("needs CAP_BPF"));
        let why = refused_dns(none, true, Hook::Auto).unwrap();
        assert!(why.contains("CAP_BPF") && why.contains("--profile=netadmin"), "{why}");
        assert!(refused_dns(none, true, Hook::Socket).unwrap().starts_with("needs CAP_NET_RAW"));
    }

    #[test]
    fn root_lacks_nothing_and_root_of_a_user_namespace_lacks_everything() {
        let all = Capabilities::from_hex("1ffffffffff").unwrap();
        assert_eq!(lacking(all, true, SAMPLE_PACKETS), None);
        assert!(lacking(all, false, SAMPLE).unwrap().contains("hostUsers: true"));
    }
}
