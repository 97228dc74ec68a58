//! Filesystems and namespaces: what can be seen from where this process stands.

use super::capability::Capability;
use super::machine::{Machine, Mount};
use super::{Check, Group};

/// Inode numbers of the namespaces that the kernel boots with (`<linux/proc_ns.h>`, PROC_*_INIT_INO):
/// fixed, and so a sounder sign than PID 1's name or a comparison with /proc/1/ns, which may be closed.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
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

/// Raw tracepoints and BTF make it dispensable: said, because other tools cannot do without and people look for it.
fn tracefs(machine: &Machine) -> Check {
    let is_there = machine.read("/sys/kernel/tracing/events/oom/mark_victim/format").is_ok();
    let found = if is_there { "/sys/kernel/tracing" } else { "not mounted, or closed to this user" };
    Check::ok(Group::Mount, "tracefs", format!("{found}; no probe needs it"))
}

fn cgroup2(machine: &Machine, mounts: &[Mount]) -> Check {
    let Some(mount) = mounts.iter().find(|mount| mount.fs_type == "cgroup2") else {
        return Check::missing(
            Group::Mount,
            "cgroup2",
            "no v2 hierarchy is mounted: the DNS probe has nowhere to attach",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified; in a pod: mount hostPath: /sys/fs/cgroup",
        );
    };
    if reaches_root(machine, mount) {
        return Check::ok(Group::Mount, "cgroup2", mount.point.as_str());
    }
    Check::degraded(
        Group::Mount,
        "cgroup2",
        format!("{} shows this container's cgroup alone: no other pod's lookups", mount.point),
        "in a pod: mount hostPath: /sys/fs/cgroup; kubectl debug --profile=sysadmin",
    )
}

/// What keeps a program at the root cgroup from seeing other processes, or us from knowing whose they are.
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
        return Some(
            "in a pid namespace of its own the kernel's process ids mean other processes".to_owned(),
        );
    }
    let mounts = machine.mounts();
    match mounts.iter().find(|mount| mount.fs_type == "cgroup2") {
        None => Some("no v2 cgroup hierarchy is mounted".to_owned()),
        Some(mount) if !reaches_root(machine, mount) => {
            Some(format!("{} shows this container's cgroup alone", mount.point))
        }
        Some(_) => None,
    }
}

/// In a cgroup namespace of one's own the true root shows as `/..`, `/../..` and so on.
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
        return Check::ok(Group::Mount, "memory-controller", format!("v1 at {}", mount.point));
    }
    let v2 = mounts.iter().filter(|mount| mount.fs_type == "cgroup2").find(|mount| {
        let controllers = machine.read(&format!("{}/cgroup.controllers", mount.point)).unwrap_or_default();
        controllers.split(' ').any(|controller| controller == "memory")
    });
    if let Some(mount) = v2 {
        return Check::ok(Group::Mount, "memory-controller", format!("v2 at {}", mount.point));
    }
    Check::missing(
        Group::Mount,
        "memory-controller",
        "not found in any mounted hierarchy: a kill cannot be traced to its container",
        "boot with cgroup_enable=memory; in a pod: mount hostPath: /sys/fs/cgroup",
    )
}

fn host_pids(machine: &Machine) -> Check {
    match machine.namespace("pid") {
        Some(INITIAL_PID_NAMESPACE) => Check::ok(Group::Mount, "host-pids", "the host's pid namespace"),
        Some(inode) => Check::missing(
            Group::Mount,
            "host-pids",
            format!("a pid namespace of its own ({inode}): the kernel's pids mean other processes here"),
            "in the pod's spec: hostPID: true",
        ),
        None => Check::missing(
            Group::Mount,
            "host-pids",
            "/proc/self/ns/pid cannot be read",
            "mount -t proc proc /proc",
        ),
    }
}

fn user_namespace(machine: &Machine) -> Check {
    match machine.namespace("user") {
        Some(INITIAL_USER_NAMESPACE) | None => {
            Check::ok(Group::Mount, "user-namespace", "the host's: capabilities count")
        }
        Some(inode) => Check::missing(
            Group::Mount,
            "user-namespace",
            format!("one of its own ({inode}): capabilities do not reach the kernel"),
            "in the pod's spec: hostUsers: true; on the node: run as the real root",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::machine::tests::with;
    use super::*;

    const HYBRID: &str = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn a_hybrid_host_is_whole() {
        let (_dir, machine) = with(&[
            ("/proc/self/mountinfo", HYBRID),
            ("/proc/self/ns/cgroup", "-> cgroup:[4026531835]"),
            ("/proc/self/ns/pid", "-> pid:[4026531836]"),
            ("/proc/self/ns/user", "-> user:[4026531837]"),
            ("/sys/kernel/tracing/events/oom/mark_victim/format", "name: mark_victim"),
        ]);
        for check in checks(&machine) {
            assert_eq!(check.status, Status::Ok, "{check:?}");
        }
    }

    #[test]
    fn v2_has_its_controllers_in_a_file() {
        let info = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let (_dir, machine) = with(&[
            ("/proc/self/mountinfo", info),
            ("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
        ]);
        let check = memory_controller(&machine, &machine.mounts());
        assert_eq!((check.status, check.found.as_str()), (Status::Ok, "v2 at /sys/fs/cgroup"));
    }

    #[test]
    fn a_containers_own_cgroup_is_not_the_root() {
        for (fs_root, status) in [("/", Status::Degraded), ("/../../../..", Status::Ok)] {
            let info = format!("9 8 0:26 {fs_root} /sys/fs/cgroup ro - cgroup2 cgroup rw");
            let (_dir, machine) =
                with(&[("/proc/self/mountinfo", &info), ("/proc/self/ns/cgroup", "-> cgroup:[4026532766]")]);
            assert_eq!(cgroup2(&machine, &machine.mounts()).status, status, "{fs_root}");
        }
    }

    #[test]
    fn an_ephemeral_container_is_told_what_keeps_the_root_cgroup_out_of_reach() {
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
        assert!(own(ALL, INITIAL_PID_NAMESPACE, "/").unwrap().contains("alone"));
        assert!(own(ALL, 4026532201, "/../..").unwrap().contains("pid namespace of its own"));
        let default = own("00000000a80425fb", 4026532201, "/").unwrap();
        assert!(default.ends_with("without CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"), "{default}");
    }

    #[test]
    fn a_pod_without_host_pid_is_told_the_manifest_line() {
        let (_dir, machine) = with(&[("/proc/self/ns/pid", "-> pid:[4026532201]")]);
        let check = host_pids(&machine);
        assert_eq!(check.status, Status::Missing);
        assert!(check.mend.unwrap().contains("hostPID: true"));
    }
}
