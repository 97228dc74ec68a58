//! What a process in a pod can find out about its own pod without access to the node; used in an ephemeral container.
//!
//! The host name is the pod's name, the first search domain contains its namespace, and the paths of cgroups and of the
//! kubelet's mounts contain its uid and its containers. Any process of the pod can change these, so they are reported as
//! `inside` and prove nothing.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use super::paths;
use crate::hierarchy::Hierarchy;
use podopsy_model::{CgroupRef, ContainerRef, KnownBy, Owner, PodRef, text};
use podopsy_system::pid_namespace;

/// How much of a file in /proc or /etc is read.
const BYTES_MAX: u64 = 1 << 20;

/// The pod that this process runs in.
#[derive(Debug)]
pub struct OwnPod {
    proc_root: PathBuf,
    pod: Option<PodRef>,
    hasher: RandomState,
}

impl OwnPod {
    /// Detects the pod. None: this is the host, or a pod with the host's pid namespace, where the runtime is asked instead.
    pub fn detect() -> Option<OwnPod> {
        pid_namespace::nested()?;
        let name = nix::unistd::gethostname().ok()?.to_string_lossy().into_owned();
        Some(OwnPod::new(Path::new("/proc"), &name, &read(Path::new("/etc/resolv.conf"))))
    }

    fn new(proc_root: &Path, host: &str, resolv_conf: &str) -> OwnPod {
        let of_own = |file: &str| read(&proc_root.join("self").join(file));
        let uid = uid(&of_own("cgroup"), &of_own("mountinfo")).unwrap_or_default();
        let namespace = namespace(resolv_conf).unwrap_or_default();
        // Without a uid and a namespace this is some other pid namespace, for example a developer's container.
        let is_pod = !uid.is_empty() || !namespace.is_empty();
        let pod = is_pod.then(|| PodRef {
            namespace: text::escape(&namespace),
            name: text::escape(host),
            uid: text::escape(&uid),
            labels: BTreeMap::new(),
        });
        OwnPod { proc_root: proc_root.to_owned(), pod, hasher: RandomState::new() }
    }

    /// The id of the memory cgroup of podopsy's own container. None: no memory hierarchy is mounted.
    pub fn own_cgroup(&self) -> Option<u64> {
        let (hierarchy, path) = Hierarchy::own()?;
        hierarchy.id(&path)
    }

    /// What the node's runtime would say of a task, as far as it can be seen from inside.
    pub fn owner_in(&self, cgroup_id: u64, pid: u32) -> Owner {
        let mut owner = if pid == 0 { self.unknown_process() } else { self.owner(pid).1 };
        owner.cgroup.id = cgroup_id;
        owner
    }

    pub fn pod(&self) -> Option<&PodRef> {
        self.pod.as_ref()
    }

    /// The owner of a process, and a number other than 0 that identifies its container as long as this value lives.
    pub fn owner(&self, pid: u32) -> (u64, Owner) {
        let dir = self.proc_root.join(pid.to_string());
        let path = memory_path(&read(&dir.join("cgroup")));
        let number = self.hasher.hash_one(&path).max(1);
        let id = path.as_deref().and_then(|path| {
            paths::parse(path.as_bytes()).container().map(|container| container.container_id.clone())
        });
        let name = container_name(&read(&dir.join("mountinfo")));
        let container = (id.is_some() || name.is_some()).then(|| ContainerRef {
            name: text::escape(&name.unwrap_or_default()),
            id: id.unwrap_or_default(),
            image: String::new(),
            attempt: 0,
        });
        // The cgroup's id is not known, because its directory is not mounted here.
        let cgroup = CgroupRef { id: 0, path: path.as_deref().map(text::escape) };
        (number, Owner { pod: self.pod.clone(), container, cgroup, known_by: KnownBy::Inside })
    }

    /// The owner of a lookup whose process is not known.
    pub fn unknown_process(&self) -> Owner {
        Owner { pod: self.pod.clone(), known_by: KnownBy::Inside, ..Owner::default() }
    }
}

fn read(file: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes));
    opened.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
}

/// The path in `/proc/PID/cgroup` for the memory controller's hierarchy, else for the v2 hierarchy.
fn memory_path(cgroup: &str) -> Option<String> {
    let lines = || cgroup.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let memory = lines().find(|(controllers, _)| controllers.split(',').any(|one| one == "memory"));
    memory
        .or_else(|| lines().find(|(controllers, _)| controllers.is_empty()))
        .map(|(_, path)| path.to_owned())
}

fn uid(cgroup: &str, mountinfo: &str) -> Option<String> {
    let by_path = memory_path(cgroup).and_then(|path| paths::parse(path.as_bytes()).pod_uid);
    by_path.or_else(|| {
        kubelet_mounts(mountinfo)
            .find_map(|(root, _)| after(root, "pods").filter(|uid| is_uid(uid)).map(str::to_owned))
    })
}

/// The kubelet mounts `…/pods/<uid>/containers/<name>/<hex>` as the termination log.
fn container_name(mountinfo: &str) -> Option<String> {
    let mut mounts = kubelet_mounts(mountinfo);
    mounts.find_map(|(root, _)| {
        after(root, "pods").filter(|uid| is_uid(uid))?;
        after(root, "containers").map(str::to_owned)
    })
}

/// The mounts that the kubelet adds to every container, as (folder within its file system, mount point).
fn kubelet_mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str)> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        Some((fields.next()?, fields.next()?))
    });
    mounts.filter(|(_, point)| ["/etc/hosts", "/dev/termination-log"].contains(point))
}

/// The component that follows the given one.
fn after<'a>(path: &'a str, component: &str) -> Option<&'a str> {
    let mut components = path.split('/');
    components.find(|one| *one == component)?;
    components.next()
}

fn is_uid(word: &str) -> bool {
    (32..=64).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// `search <namespace>.svc.<cluster's domain> …`, which `dnsPolicy: ClusterFirst` gives.
fn namespace(resolv_conf: &str) -> Option<String> {
    let search = resolv_conf.lines().rev().find_map(|line| line.trim().strip_prefix("search"))?;
    let first = search.split_ascii_whitespace().next()?;
    let (namespace, rest) = first.split_once('.')?;
    rest.starts_with("svc.").then(|| namespace.to_owned())
}

#[cfg(feature = "fuzzing")]
pub(crate) fn fuzzing(cgroup: &str, mountinfo: &str, resolv_conf: &str) -> [Option<String>; 3] {
    [uid(cgroup, mountinfo), container_name(mountinfo), namespace(resolv_conf)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b7d2c34-8a53-4f0e-9d4e-0f4a6f1c2b3d";
    const RESOLV: &str =
        "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local\noptions ndots:5\n";

    fn proc(files: &[(&str, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn with_a_private_cgroup_namespace_the_kubelets_mounts_name_the_pod() {
        let id = "4e".repeat(32);
        let mounts = format!(
            "9 8 8:1 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts rw - ext4 /dev/x rw\n\
             9 8 8:1 /var/lib/kubelet/pods/{UID}/containers/api/5f3a /dev/termination-log rw - ext4 /dev/x rw\n"
        );
        let dir = proc(&[
            ("self/cgroup", "0::/\n".into()),
            ("self/mountinfo", mounts.replace("/api/", "/debugger-x/")),
            ("7/cgroup", format!("0::/../cri-containerd-{id}.scope\n")),
            ("7/mountinfo", mounts),
        ]);
        let inside = OwnPod::new(dir.path(), "cart-7c9f", RESOLV);
        let pod = inside.pod().unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("shop", "cart-7c9f", UID));
        let (number, owner) = inside.owner(7);
        let container = owner.container.unwrap();
        assert_eq!((container.name.as_str(), container.id), ("api", id));
        assert_eq!((owner.known_by, owner.cgroup.id), (KnownBy::Inside, 0));
        assert!(number != 0 && number == inside.owner(7).0);
    }

    #[test]
    fn a_cgroup_path_gives_uid_and_container_and_hostile_names_are_escaped() {
        let id = "a1".repeat(32);
        let dir = proc(&[
            ("self/cgroup", format!("12:memory:/kubepods/burstable/pod{UID}/{id}\n0::/\n")),
            ("self/mountinfo", String::new()),
        ]);
        let inside = OwnPod::new(dir.path(), "x\u{1b}[31m", "search none.such\n");
        let pod = inside.pod().unwrap();
        assert_eq!((pod.namespace.as_str(), pod.uid.as_str()), ("", UID));
        assert!(!pod.name.contains('\u{1b}'));
        assert_eq!(inside.owner(99).1.container, None, "a process that is gone");
        let dir = proc(&[("self/cgroup", "0::/\n".into())]);
        assert_eq!(OwnPod::new(dir.path(), "laptop", "nameserver 1.1.1.1\n").pod(), None);
    }
}
