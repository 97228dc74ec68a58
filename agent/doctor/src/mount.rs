//! Checks the filesystems and namespaces that this process can see.

use super::capability::Capability;
use super::machine::{Machine, Mount};
use super::{Check, CheckGroup};

/// Inode numbers of the namespaces that the kernel boots with (`<linux/proc_ns.h>`, PROC_*_INIT_INO):
/// They are fixed, and so more reliable than PID 1's name or a comparison with /proc/1/ns, which may not be readable.
const INITIAL_PID_NAMESPACE: u64 = podopsy_system::pid_namespace::INITIAL as u64;
const INITIAL_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;
pub(super) const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    let mounts = machine.mounts();
    vec![
        tracefs(machine),
        cgroup2(machine, &mounts),
        memory_controller(machine, &mounts),
        host_pids(machine),
        user_namespace(machine),
    ]
}

/// podopsy does not need tracefs, because it uses raw tracepoints and BTF. It is listed because other tools need it and
/// users look for it.
fn tracefs(machine: &Machine) -> Check {
    let is_there = machine.read("/sys/kernel/tracing/events/oom/mark_victim/format").is_ok();
    let found = if is_there { "/sys/kernel/tracing" } else { "not mounted, or not readable by this user" };
    Check::ok(CheckGroup::Mount, "tracefs", format!("{found}; no probe needs it"))
}

fn cgroup2(machine: &Machine, mounts: &[Mount]) -> Check {
    let Some(mount) = mounts.iter().find(|mount| mount.fs_type == "cgroup2") else {
        return Check::missing(
            CheckGroup::Mount,
            "cgroup2",
            "no v2 hierarchy is mounted: the DNS probe has nowhere to attach",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified; in a pod: mount hostPath: /sys/fs/cgroup",
        );
    };
    if reaches_root(machine, mount) {
        return Check::ok(CheckGroup::Mount, "cgroup2", mount.point.as_str());
    }
    Check::degraded(
        CheckGroup::Mount,
        "cgroup2",
        format!("{} shows only this container's cgroup: lookups of other pods are not seen", mount.point),
        "in a pod: mount hostPath: /sys/fs/cgroup; kubectl debug --profile=sysadmin",
    )
}

/// Why a BPF program at the root cgroup cannot be attached, or the processes that it sees cannot be attributed.
pub(super) fn dns_out_of_reach(machine: &Machine) -> Option<String> {
    let held = machine.capabilities();
    let lacking: Vec<String> = [Capability::Bpf, Capability::Perfmon, Capability::NetAdmin]
        .into_iter()
        .filter(|capability| !held.allows(*capability))
        .map(|capability| capability.to_string())
        .collect();
    if !lacking.is_empty() {
        return Some(format!("the root cgroup is out of reach without {}", lacking.join(", ")));
    }
    if machine.namespace("user").is_some_and(|inode| inode != INITIAL_USER_NAMESPACE) {
        return Some("in a user namespace of its own no probe can be loaded".to_owned());
    }
    if machine.namespace("pid").is_some_and(|inode| inode != INITIAL_PID_NAMESPACE) {
        return Some("in a pid namespace of its own most of the node's askers are not to be seen".to_owned());
    }
    let mounts = machine.mounts();
    match mounts.iter().find(|mount| mount.fs_type == "cgroup2") {
        None => Some("no v2 cgroup hierarchy is mounted".to_owned()),
        Some(mount) if !reaches_root(machine, mount) => {
            Some(format!("{} shows only this container's cgroup", mount.point))
        }
        Some(_) => None,
    }
}

/// Whether the mount shows the root cgroup. In another cgroup namespace the root appears as `/..`, `/../..` and so on.
fn reaches_root(machine: &Machine, mount: &Mount) -> bool {
    match machine.namespace("cgroup") {
        Some(INITIAL_CGROUP_NAMESPACE) | None => mount.fs_root == "/",
        Some(_) => mount.fs_root.starts_with("/.."),
    }
}

fn memory_controller(machine: &Machine, mounts: &[Mount]) -> Check {
    let v1 = mounts.iter().find(|mount| {
        mount.fs_type == "cgroup" && mount.super_options.split(',').any(|option| option == "memory")
    });
    if let Some(mount) = v1 {
        return Check::ok(CheckGroup::Mount, "memory-controller", format!("v1 at {}", mount.point));
    }
    let v2 = mounts.iter().filter(|mount| mount.fs_type == "cgroup2").find(|mount| {
        let controllers = machine.read(&format!("{}/cgroup.controllers", mount.point)).unwrap_or_default();
        controllers.split(' ').any(|controller| controller == "memory")
    });
    if let Some(mount) = v2 {
        return Check::ok(CheckGroup::Mount, "memory-controller", format!("v2 at {}", mount.point));
    }
    Check::missing(
        CheckGroup::Mount,
        "memory-controller",
        "not found in any mounted hierarchy: a kill cannot be traced to its container",
        "boot with cgroup_enable=memory; in a pod: mount hostPath: /sys/fs/cgroup",
    )
}

fn host_pids(machine: &Machine) -> Check {
    match machine.namespace("pid") {
        Some(INITIAL_PID_NAMESPACE) => Check::ok(CheckGroup::Mount, "host-pids", "the host's pid namespace"),
        Some(inode) => Check::degraded(
            CheckGroup::Mount,
            "host-pids",
            format!("a pid namespace of its own ({inode}): only what its processes do is recorded"),
            "for the whole node, in the pod's spec: hostPID: true",
        ),
        None => Check::missing(
            CheckGroup::Mount,
            "host-pids",
            "/proc/self/ns/pid cannot be read",
            "mount -t proc proc /proc",
        ),
    }
}

fn user_namespace(machine: &Machine) -> Check {
    match machine.namespace("user") {
        Some(INITIAL_USER_NAMESPACE) | None => {
            Check::ok(CheckGroup::Mount, "user-namespace", "the host's: capabilities count")
        }
        Some(inode) => Check::missing(
            CheckGroup::Mount,
            "user-namespace",
            format!("one of its own ({inode}): capabilities do not reach the kernel"),
            "in the pod's spec: hostUsers: true; on the node: run as the real root",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CheckStatus;
    use super::super::machine::tests::with;
    use super::*;

    const HYBRID: &str = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn a_hybrid_host_passes_all_checks() {
        let (_dir, machine) = with(&[
            ("/proc/self/mountinfo", HYBRID),
            ("/proc/self/ns/cgroup", "-> cgroup:[4026531835]"),
            ("/proc/self/ns/pid", "-> pid:[4026531836]"),
            ("/proc/self/ns/user", "-> user:[4026531837]"),
            ("/sys/kernel/tracing/events/oom/mark_victim/format", "name: mark_victim"),
        ]);
        for check in checks(&machine) {
            assert_eq!(check.status, CheckStatus::Ok, "{check:?}");
        }
    }

    #[test]
    fn v2_controllers_are_read_from_their_file() {
        let info = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let (_dir, machine) = with(&[
            ("/proc/self/mountinfo", info),
            ("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
        ]);
        let check = memory_controller(&machine, &machine.mounts());
        assert_eq!((check.status, check.found.as_str()), (CheckStatus::Ok, "v2 at /sys/fs/cgroup"));
    }

    #[test]
    fn a_mount_of_a_containers_own_cgroup_is_not_the_root() {
        for (fs_root, status) in [("/", CheckStatus::Degraded), ("/../../../..", CheckStatus::Ok)] {
            let info = format!("9 8 0:26 {fs_root} /sys/fs/cgroup ro - cgroup2 cgroup rw");
            let (_dir, machine) =
                with(&[("/proc/self/mountinfo", &info), ("/proc/self/ns/cgroup", "-> cgroup:[4026532766]")]);
            assert_eq!(cgroup2(&machine, &machine.mounts()).status, status, "{fs_root}");
        }
    }

    #[test]
    fn an_ephemeral_container_gets_the_reason_why_the_root_cgroup_is_out_of_reach() {
        let info = |root: &str| format!("9 8 0:26 {root} /sys/fs/cgroup ro - cgroup2 cgroup rw");
        let own = |caps: &str, pid: u64, root: &str| {
            let (_dir, machine) = with(&[
                ("/proc/self/status", &format!("CapEff:\t{caps}\n")),
                ("/proc/self/ns/pid", &format!("-> pid:[{pid}]")),
                ("/proc/self/ns/cgroup", "-> cgroup:[4026532766]"),
                ("/proc/self/mountinfo", &info(root)),
            ]);
            dns_out_of_reach(&machine)
        };
        const ALL: &str = "000001ffffffffff";
        assert_eq!(own(ALL, INITIAL_PID_NAMESPACE, "/../.."), None);
        assert!(own(ALL, INITIAL_PID_NAMESPACE, "/").unwrap().contains("only"));
        assert!(own(ALL, 4026532201, "/../..").unwrap().contains("pid namespace of its own"));
        let default = own("00000000a80425fb", 4026532201, "/").unwrap();
        assert!(default.ends_with("without CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"), "{default}");
    }

    #[test]
    fn without_host_pid_the_remedy_is_the_manifest_line() {
        let (_dir, machine) = with(&[("/proc/self/ns/pid", "-> pid:[4026532201]")]);
        let check = host_pids(&machine);
        assert_eq!(check.status, CheckStatus::Degraded);
        assert!(check.remedy.unwrap().contains("hostPID: true"));
    }
}
