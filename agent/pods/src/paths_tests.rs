//! Paths as they stand on real nodes, and as an attacker would write them.

use super::*;

const A: &str = "3f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e884";
const B: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const UID: &str = "8c1ee0a4-5f3b-4c1e-9f0a-0a1b2c3d4e5f";
const UNDERSCORED: &str = "8c1ee0a4_5f3b_4c1e_9f0a_0a1b2c3d4e5f";
const STATIC: &str = "d0fd8e1c9d4d7a3a2b1c0f9e8d7c6b5a";

/// `{A}`, `{B}`, `{U}`, `{_}`, `{S}` stand for the ids above.
fn fill(text: &str) -> String {
    text.replace("{A}", A)
        .replace("{B}", B)
        .replace("{U}", UID)
        .replace("{_}", UNDERSCORED)
        .replace("{S}", STATIC)
}

struct Case(&'static str, Option<&'static str>, Option<&'static str>, Option<Qos>, Option<RuntimeKind>, bool);

#[test]
fn paths_of_real_nodes_are_parsed() {
    use Qos::*;
    use RuntimeKind::*;
    // path, innermost pod, innermost container, class, runtime, below the container
    let cases = [
        // systemd driver, v2 and v1 alike
        Case(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_}.slice/cri-containerd-{A}.scope",
            Some("{U}"),
            Some("{A}"),
            Some(Burstable),
            Some(Containerd),
            false,
        ),
        Case(
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{_}.slice/crio-{A}.scope",
            Some("{U}"),
            Some("{A}"),
            Some(BestEffort),
            Some(CriO),
            false,
        ),
        Case(
            "/kubepods.slice/kubepods-pod{_}.slice/docker-{A}.scope",
            Some("{U}"),
            Some("{A}"),
            Some(Guaranteed),
            Some(Docker),
            false,
        ),
        Case(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{S}.slice/cri-containerd-{A}.scope",
            Some("{S}"),
            Some("{A}"),
            Some(Burstable),
            Some(Containerd),
            false,
        ),
        // crun below CRI-O, and a container with systemd in it
        Case(
            "/kubepods.slice/kubepods-pod{_}.slice/crio-{A}.scope/container",
            Some("{U}"),
            Some("{A}"),
            Some(Guaranteed),
            Some(CriO),
            true,
        ),
        Case(
            "/kubepods.slice/kubepods-pod{_}.slice/cri-containerd-{A}.scope/init.scope",
            Some("{U}"),
            Some("{A}"),
            Some(Guaranteed),
            Some(Containerd),
            true,
        ),
        // conmon watches the container from the outside
        Case(
            "/kubepods.slice/kubepods-pod{_}.slice/crio-conmon-{A}.scope",
            Some("{U}"),
            None,
            Some(Guaranteed),
            None,
            false,
        ),
        Case("/machine.slice/libpod-conmon-{A}.scope", None, None, None, None, false),
        // cgroupfs driver
        Case("/kubepods/burstable/pod{U}/{A}", Some("{U}"), Some("{A}"), Some(Burstable), None, false),
        Case("/kubepods/besteffort/pod{U}/{A}", Some("{U}"), Some("{A}"), Some(BestEffort), None, false),
        Case("/kubepods/pod{U}/{A}", Some("{U}"), Some("{A}"), Some(Guaranteed), None, false),
        Case("/kubepods/pod{U}/crio-{A}", Some("{U}"), Some("{A}"), Some(Guaranteed), Some(CriO), false),
        Case("/kubepods/burstable/pod{S}/{A}", Some("{S}"), Some("{A}"), Some(Burstable), None, false),
        Case(
            "/kubepods/burstable/pod{U}/{A}/nested/deep",
            Some("{U}"),
            Some("{A}"),
            Some(Burstable),
            None,
            true,
        ),
        // a --cgroup-root of one's own; k3s
        Case("/custom/kubepods/burstable/pod{U}/{A}", Some("{U}"), Some("{A}"), Some(Burstable), None, false),
        Case("/k3s/kubepods/burstable/pod{U}/{A}", Some("{U}"), Some("{A}"), Some(Burstable), None, false),
        Case(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_}.slice:cri-containerd:{A}",
            Some("{U}"),
            Some("{A}"),
            Some(Burstable),
            Some(Containerd),
            false,
        ),
        Case(
            "/system.slice/containerd.service/kubepods-besteffort-pod{_}.slice:cri-containerd:{A}",
            Some("{U}"),
            Some("{A}"),
            Some(BestEffort),
            Some(Containerd),
            false,
        ),
        Case(
            "/k3s.service/kubepods-pod{_}.slice:cri-containerd:{A}/x",
            Some("{U}"),
            Some("{A}"),
            Some(Guaranteed),
            Some(Containerd),
            true,
        ),
        // kind: inside its node, from the host with either driver
        Case(
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{_}.slice/cri-containerd-{A}.scope",
            Some("{U}"),
            Some("{A}"),
            Some(Burstable),
            Some(Containerd),
            false,
        ),
        Case(
            "/docker/{B}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{_}.slice/cri-containerd-{A}.scope",
            Some("{U}"),
            Some("{A}"),
            Some(Guaranteed),
            Some(Containerd),
            false,
        ),
        Case(
            "/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{_}.slice/cri-containerd-{A}.scope",
            Some("{U}"),
            Some("{A}"),
            Some(BestEffort),
            Some(Containerd),
            false,
        ),
        Case(
            "/docker/{B}/kubelet/kubepods/besteffort/pod{U}/{A}",
            Some("{U}"),
            Some("{A}"),
            Some(BestEffort),
            None,
            false,
        ),
        // no Kubernetes
        Case("/docker/{A}", None, Some("{A}"), None, None, false),
        Case("/system.slice/docker-{A}.scope", None, Some("{A}"), None, Some(Docker), false),
        Case("/machine.slice/libpod-{A}.scope/container", None, Some("{A}"), None, Some(Podman), true),
        // levels above the containers
        Case(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_}.slice",
            Some("{U}"),
            None,
            Some(Burstable),
            None,
            false,
        ),
        Case("/kubepods/pod{U}", Some("{U}"), None, Some(Guaranteed), None, false),
        Case("/kubepods.slice", None, None, Some(Guaranteed), None, false),
        // the host
        Case("/", None, None, None, None, false),
        Case("/system.slice/kubelet.service", None, None, None, None, false),
        Case("/user.slice/user-1000.slice/session-3.scope", None, None, None, None, false),
        Case("/process_api/ce383ab0b38c1155c4830fa5518a398e", None, None, None, None, false),
    ];
    for Case(path, pod, container, qos, runtime, below) in cases {
        let name = parse(fill(path).as_bytes());
        assert_eq!(name.pod_uid, pod.map(fill), "{path}");
        let place = name.container();
        assert_eq!(place.map(|p| p.container_id.clone()), container.map(fill), "{path}");
        assert_eq!(place.and_then(|p| p.runtime), runtime, "{path}");
        assert_eq!((name.qos, name.below), (qos, below), "{path}");
    }
}

#[test]
fn containers_in_containers_are_listed_outermost_first() {
    let name = parse(fill("/docker/{B}/kubelet/kubepods/pod{U}/{A}/x").as_bytes());
    let ids: Vec<_> = name.containers.iter().map(|p| (p.container_id.as_str(), p.depth)).collect();
    assert_eq!(ids, [(B, 2), (A, 6)]);
    assert_eq!(name.containers[0].pod_uid, None);
    assert_eq!(name.containers[1].pod_uid.as_deref(), Some(UID));
}

#[test]
fn hostile_paths_name_nothing() {
    let cases: &[&[u8]] = &[
        b"",
        b"..",
        b"/../../..",
        b"/kubepods/pod../x",
        b"/kubepods/pod/x",
        b"/kubepods/burstable/pod\x1b[2J/3f2a",
        b"/kubepods/pod\xff\xfe",
        b"/pod8c1ee0a4-5f3b-4c1e-9f0a-0a1b2c3d4e5f",
        b"/notkubepods.slice/notkubepods-podx.slice",
        b"/kubepods-burstable-pod.slice",
        b"/kubepods.slice/kubepods-burstable-podx y.slice",
        b"/cri-containerd-.scope",
        b"/cri-containerd-3F2A9C0D51B7E8843F2A9C0D51B7E8843F2A9C0D51B7E8843F2A9C0D51B7E884.scope",
        b"/docker/3f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e88",
        b"/docker/3f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e88g",
        b"/:cri-containerd:",
        b"/x:cri-containerd:../../etc",
    ];
    for path in cases {
        let name = parse(path);
        let shown = String::from_utf8_lossy(path);
        assert_eq!(name.pod_uid, None, "{shown}");
        assert!(name.containers.is_empty(), "{shown}");
    }
}

#[test]
fn size_is_bounded() {
    let long = format!("/kubepods/pod{}/{}", "a".repeat(100_000), "b".repeat(100_000));
    assert_eq!(parse(long.as_bytes()).pod_uid, None);
    let deep = fill("/{A}").repeat(1000);
    let name = parse(deep.as_bytes());
    assert_eq!(name.containers.len(), NESTED_MAX);
    // Both ends survive: the outermost can be vouched for, the innermost is the default.
    assert_eq!(name.containers[0].depth, 1);
    assert_eq!(name.container().map(|p| p.depth), Some(1000));
}

#[test]
fn both_drivers_give_the_same_levels() {
    let id = "3f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e884";
    let uid = "8c1ee0a4-5f3b-4c1e-9f0a-0a1b2c3d4e5f";
    let slice = format!(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
        uid.replace('-', "_")
    );
    for (path, expected) in [
        ("/".to_owned(), Level::Node),
        ("/kubepods".to_owned(), Level::Slice),
        ("/kubepods/burstable".to_owned(), Level::Slice),
        (format!("/kubepods/burstable/pod{uid}"), Level::Pod),
        (format!("/kubepods/burstable/pod{uid}/{id}"), Level::Container),
        (format!("/kubepods/burstable/pod{uid}/{id}/jobs"), Level::InsideContainer),
        (slice.clone(), Level::Pod),
        (format!("{slice}/cri-containerd-{id}.scope"), Level::Container),
        ("/system.slice/sshd.service".to_owned(), Level::Slice),
    ] {
        assert_eq!(level(path.as_bytes()), expected, "{path}");
    }
}

#[test]
fn a_container_inside_of_a_container_is_a_cgroup_inside_of_it() {
    let pod = "/kubepods/burstable/pod8c1ee0a4-5f3b-4c1e-9f0a-0a1b2c3d4e5f";
    let (outer, inner) = ("a".repeat(64), "b".repeat(64));
    for (path, expected) in [
        (format!("{pod}/{outer}/docker/{inner}"), Level::InsideContainer),
        (format!("{pod}/{outer}/system.slice/docker-{inner}.scope"), Level::InsideContainer),
        (format!("{pod}/{outer}/{pod}/{inner}"), Level::InsideContainer),
        (format!("{pod}/{outer}"), Level::Container),
        (pod.to_owned(), Level::Pod),
        (format!("/user.slice{pod}/{outer}"), Level::Slice),
        ("/".to_owned(), Level::Node),
    ] {
        assert_eq!(level(path.as_bytes()), expected, "{path}");
    }
}
