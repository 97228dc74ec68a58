//! Places where runtimes put containers, and places where others imitate them.

use podopsy_model::incident::Level;

use super::*;

const A: &str = "3f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e884";
const B: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const UID: &str = "8c1ee0a4-5f3b-4c1e-9f0a-0a1b2c3d4e5f";
const UNDERSCORED: &str = "8c1ee0a4_5f3b_4c1e_9f0a_0a1b2c3d4e5f";

/// `{A}`, `{B}`, `{U}`, `{_}` stand for the ids above.
fn fill(text: &str) -> String {
    text.replace("{A}", A).replace("{B}", B).replace("{U}", UID).replace("{_}", UNDERSCORED)
}

fn believed(roots: &KubeletRoots, path: &str) -> CgroupName {
    roots.believed(fill(path).as_bytes())
}

#[test]
fn pods_are_believed_below_the_kubelets_root() {
    let roots = KubeletRoots::default();
    for (path, level) in [
        ("/kubepods/burstable/pod{U}/{A}", Level::Container),
        ("/kubepods/pod{U}/{A}/nested", Level::InsideContainer),
        ("/kubepods/besteffort/pod{U}", Level::Pod),
        ("/kubepods/burstable", Level::Slice),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_}.slice/cri-containerd-{A}.scope",
            Level::Container,
        ),
        ("/kubepods.slice/kubepods-pod{_}.slice/crio-{A}.scope/container", Level::InsideContainer),
    ] {
        let name = believed(&roots, path);
        assert_eq!(name.level(), level, "{path}");
        assert_eq!(name.pod_uid.is_some(), level != Level::Slice, "{path}");
        let raw = paths::parse(fill(path).as_bytes());
        assert_eq!((name.containers, name.qos, name.depth), (raw.containers, raw.qos, raw.depth), "{path}");
    }
    assert_eq!(believed(&roots, "/").level(), Level::Node);
}

#[test]
fn a_path_elsewhere_names_no_pod_however_it_looks() {
    let roots = KubeletRoots::default();
    for path in [
        "/user.slice/kubepods/burstable/pod{U}/{A}",
        "/user.slice/user-1000.slice/user@1000.service/kubepods/pod{U}/{A}/x",
        "/user.slice/user-1000.slice/kubepods.slice/kubepods-pod{_}.slice/cri-containerd-{A}.scope",
        "/user.slice/kubepods-pod{_}.slice:cri-containerd:{A}",
        "/user.slice/kubepods/burstable/pod{U}",
        "/kubepods-burstable-pod{_}.slice/cri-containerd-{A}.scope",
        "/x/kubepods/pod{U}/{A}",
    ] {
        let name = believed(&roots, path);
        assert_eq!((name.level(), name.qos, name.pod_uid), (Level::Slice, None, None), "{path}");
        assert!(name.containers.is_empty(), "{path}");
    }
}

#[test]
fn containers_outside_of_kubernetes_keep_their_ids() {
    let roots = KubeletRoots::default();
    for (path, level) in [
        ("/docker/{A}", Level::Container),
        ("/system.slice/docker-{A}.scope", Level::Container),
        ("/machine.slice/libpod-{A}.scope/container", Level::InsideContainer),
        // The pods of a kind node, if its runtime is not asked.
        ("/docker/{A}/kubelet/kubepods/pod{U}/{B}", Level::InsideContainer),
    ] {
        let name = believed(&roots, path);
        assert_eq!((name.level(), name.pod_uid.as_ref()), (level, None), "{path}");
        assert_eq!(name.container().map(|container| container.container_id.as_str()), Some(A), "{path}");
    }
}

#[test]
fn a_container_cannot_name_another_below_itself() {
    let name = believed(&KubeletRoots::default(), "/kubepods/pod{U}/{A}/kubepods/podvictim/{B}");
    assert_eq!((name.level(), name.pod_uid.as_deref()), (Level::InsideContainer, Some(UID)));
    assert_eq!(
        name.container().map(|container| (container.container_id.as_str(), container.depth)),
        Some((A, 3))
    );
}

#[test]
fn the_roots_of_a_runtime_in_a_container_are_below_that_container() {
    let mut roots = KubeletRoots::new(fill("/docker/{B}").into(), None);
    let path = "/docker/{B}/kubelet/kubepods/pod{U}/{A}";
    assert_eq!(believed(&roots, path).container().unwrap().container_id, B);
    let dir = PathBuf::from(fill(path));
    assert!(roots.is_at(&dir, &fill("/kubelet/kubepods/pod{U}/{A}")));
    roots.learn(&dir);
    let name = believed(&roots, path);
    assert_eq!((name.level(), name.pod_uid.as_deref()), (Level::Container, Some(UID)));
    assert_eq!(
        name.container().map(|container| (container.container_id.as_str(), container.depth)),
        Some((A, 6))
    );
    // The same below another container, or at the top, is not the kubelet's.
    for other in ["/docker/{A}/kubelet/kubepods/pod{U}/{B}", "/kubepods/pod{U}/{B}"] {
        assert_eq!(believed(&roots, other).pod_uid, None, "{other}");
    }
}

#[test]
fn a_custom_cgroup_root_is_learned_from_a_confirmed_container() {
    let mut roots = KubeletRoots::default();
    let other = "/custom/kubepods/burstable/pod{U}/{B}";
    assert_eq!(believed(&roots, other).pod_uid, None);
    roots.learn(Path::new(&fill("/custom/kubepods/pod{U}/{A}")));
    assert_eq!(believed(&roots, other).pod_uid.as_deref(), Some(UID));
    // Relative paths in systemd's notation lie in the runtime's own cgroup.
    roots
        .learn(Path::new(&fill("/system.slice/containerd.service/kubepods-pod{_}.slice:cri-containerd:{A}")));
    let other = "/system.slice/containerd.service/kubepods-pod{_}.slice:cri-containerd:{B}";
    assert_eq!(believed(&roots, other).level(), Level::Container);
}

#[test]
fn what_is_learned_never_makes_the_whole_hierarchy_credible() {
    let mut roots = KubeletRoots::default();
    roots.learn(Path::new(&fill("/kubepods-pod{_}.slice:cri-containerd:{A}")));
    roots.learn(Path::new(&fill("/k8s.io/{A}")));
    roots.learn(Path::new("/"));
    for n in 0..100 {
        roots.learn(Path::new(&fill(&format!("/root{n}/kubepods/pod{{U}}/{{A}}"))));
    }
    assert!(roots.roots.len() <= ROOTS_MAX);
    assert_eq!(believed(&roots, "/user.slice/kubepods/pod{U}/{A}").pod_uid, None);
}

#[test]
fn the_runtimes_path_is_matched_exactly() {
    let own = "/system.slice/containerd.service";
    let roots = KubeletRoots::new("/".into(), Some(own.into()));
    let is_at = |dir: &str, reported: &str| roots.is_at(Path::new(&fill(dir)), &fill(reported));
    let systemd =
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_}.slice/cri-containerd-{A}.scope";
    for (dir, reported) in [
        ("/kubepods/burstable/pod{U}/{A}", "/kubepods/burstable/pod{U}/{A}"),
        ("/k8s.io/{A}", "/k8s.io/{A}"),
        (systemd, "kubepods-burstable-pod{_}.slice:cri-containerd:{A}"),
        ("/kubepods.slice/kubepods-pod{_}.slice/crio-{A}.scope", "kubepods-pod{_}.slice:crio:{A}"),
        ("/system.slice/cri-containerd-{A}.scope", ":cri-containerd:{A}"),
        ("/crio-{A}.scope", "-.slice:crio:{A}"),
        // runc with the cgroupfs driver.
        (
            "/system.slice/containerd.service/kubepods-pod{_}.slice:cri-containerd:{A}",
            "kubepods-pod{_}.slice:cri-containerd:{A}",
        ),
        ("/system.slice/containerd.service/pods/{A}", "pods/{A}"),
    ] {
        assert!(is_at(dir, reported), "{dir} {reported}");
    }
    for (dir, reported) in [
        ("/user.slice/kubepods/burstable/pod{U}/{A}", "/kubepods/burstable/pod{U}/{A}"),
        ("/user.slice/kubepods-pod{_}.slice:cri-containerd:{A}", "kubepods-pod{_}.slice:cri-containerd:{A}"),
        ("/user.slice/cri-containerd-{A}.scope", "kubepods-pod{_}.slice:cri-containerd:{A}"),
        ("/kubepods/burstable/pod{U}/{A}/x", "/kubepods/burstable/pod{U}/{A}"),
        ("/x", "/y/../x"),
        ("/x", ""),
        ("/x", "a:b"),
        ("/x", "a.slice:b:c:d"),
    ] {
        assert!(!is_at(dir, reported), "{dir} {reported}");
    }
}
