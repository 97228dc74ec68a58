//! Which container a process belongs to, as far as helpers need to know: a number by which its files share one worker, one
//! budget, and the consequences of a file system that does not answer.
//!
//! Must not depend on: pods. A number that is wrong costs fairness, never a name.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;

use podopsy_worker::Tenant;

/// Levels of a cgroup's path down to the container, with either cgroup driver of the kubelet. A container that makes cgroups
/// of its own stays one tenant.
const LEVELS: usize = 4;
/// Bytes of `/proc/PID/cgroup`.
const MAX_BYTES: u64 = 16 << 10;

/// The tenant of a process; 0 if it has ended.
pub fn of_process(pid: u32) -> Tenant {
    let mut text = Vec::new();
    let read = File::open(format!("/proc/{pid}/cgroup"))
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text));
    read.ok().and_then(|_| of_text(&text)).unwrap_or(0)
}

/// From the line of the memory controller, or else of the unified hierarchy: `hierarchy:controllers:path` (cgroups(7)).
fn of_text(text: &[u8]) -> Option<Tenant> {
    let lines = || text.split(|&byte| byte == b'\n').filter_map(parse_line);
    let is_memory = |controllers: &[u8]| controllers.split(|&byte| byte == b',').any(|one| one == b"memory");
    let path = lines()
        .find(|(controllers, _)| is_memory(controllers))
        .or_else(|| lines().find(|(controllers, _)| controllers.is_empty()))?
        .1;
    let mut hasher = DefaultHasher::new();
    for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).take(LEVELS) {
        part.hash(&mut hasher);
    }
    Some(hasher.finish().max(1))
}

fn parse_line(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = line.splitn(3, |&byte| byte == b':').skip(1);
    Some((fields.next()?, fields.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_one_tenant_with_all_its_cgroups_and_its_pods_other_containers_are_not() {
        let v2 = |path: &str| of_text(format!("0::{path}\n").as_bytes()).unwrap();
        let pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice";
        let own = v2(&format!("{pod}/cri-containerd-a.scope"));
        assert_eq!(v2(&format!("{pod}/cri-containerd-a.scope/inner/x")), own);
        assert_ne!(v2(&format!("{pod}/cri-containerd-b.scope")), own);
        let v1 = of_text(b"5:cpu:/x\n4:memory:/kubepods/pod1/a\n0::/y\n").unwrap();
        assert_eq!(v1, v2("/kubepods/pod1/a"));
        assert_eq!(of_text(b"garbage"), None);
        assert_ne!(of_process(std::process::id()), 0);
        assert_eq!(of_process(u32::MAX), 0);
    }
}
