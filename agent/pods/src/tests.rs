//! The whole crate on a folder of cgroups and with a fake runtime, broken runtimes included.

mod fake;
#[path = "../../runtime/tests/support/fake_runtime.rs"]
mod fake_runtime;

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use self::fake::*;
use super::*;
use podopsy_model::{KnownBy, TargetMatchError};

fn app_path() -> String {
    format!("kubepods/burstable/pod{UID}/{APP}")
}

/// Waits up to two seconds until the condition holds.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within two seconds: {what}");
}

fn is_pricing(owner: &Owner) {
    let (pod, container) = (owner.pod.as_ref().unwrap(), owner.container.as_ref().unwrap());
    assert_eq!(owner.known_by, KnownBy::Cri);
    assert_eq!(
        (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()),
        ("finance", "pricing-7f9c", UID)
    );
    let labels: Vec<_> = pod.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(labels, [("app", "pricing"), ("evil", "\\x1b[2J")]);
    assert_eq!((container.name.as_str(), container.id.as_str(), container.attempt), ("app", APP, 1));
    assert_eq!(container.image, "registry/pricing:1.2");
}

#[tokio::test]
async fn a_container_is_known_before_and_after_its_death() {
    let node = FakeNode::new();
    let fake = serve(&node.at("cri.sock"));
    let early = node.mkdir(&app_path());
    let host = node.mkdir("system.slice/sshd.service");
    let pods = Pods::start(node.options()).await.unwrap();
    is_pricing(&pods.owner_of_cgroup(early).await);
    assert_eq!(pods.owner_of_cgroup(host).await.known_by, KnownBy::Host);

    // A cgroup created later inside the container is noticed by inotify, without a request.
    let inner = node.mkdir(&format!("{}/a/b", app_path()));
    eventually("inner noticed", || pods.state.cache().entry(inner).is_some_and(|e| e.watched)).await;
    let calls = fake.calls.load(Relaxed);
    node.rmdir(&format!("{}/a/b", app_path()));
    eventually("inner dead", || pods.state.cache().entry(inner).is_some_and(|e| e.dead.is_some())).await;
    let owner = pods.owner_of_cgroup(inner).await;
    is_pricing(&owner);
    assert_eq!(owner.cgroup.path, Some(format!("/{}/a/b", app_path())));
    assert_eq!(fake.calls.load(Relaxed), calls, "no call for a cgroup below a known container");

    node.rmdir(&format!("{}/a", app_path()));
    node.rmdir(&app_path());
    eventually("dead", || pods.status().containers_remembered_dead == 1).await;
    is_pricing(&pods.owner_of_cgroup(early).await);
    assert_eq!(pods.status().runtime.as_deref(), Some("fake 1.0"));
    assert_eq!(pods.status().losses, BTreeMap::new());
}

#[tokio::test]
async fn a_sandbox_that_the_runtime_does_not_know_yet_is_asked_for_again() {
    let node = FakeNode::new();
    let fake = serve(&node.at("cri.sock"));
    fake.hidden.lock().unwrap().push(PAUSE);
    let pods = Pods::start(node.options()).await.unwrap();
    let id = node.mkdir(&format!("kubepods/burstable/pod{UID}/{PAUSE}"));
    eventually("asked", || fake.calls.load(Relaxed) > 2).await;
    fake.hidden.lock().unwrap().clear();
    let owner = pods.owner_of_cgroup(id).await;
    assert_eq!((owner.known_by, owner.container), (KnownBy::Cri, None));
    assert_eq!(owner.pod.unwrap().name, "pricing-7f9c");
    // The names of the pod's own cgroup are searched on demand.
    let level = node.mkdir(&format!("kubepods/burstable/pod{UID}"));
    let owner = pods.owner_of_cgroup(level).await;
    assert_eq!((owner.known_by, owner.pod.unwrap().name.as_str()), (KnownBy::Cri, "pricing-7f9c"));
}

#[tokio::test]
async fn a_container_cannot_impersonate_another_by_creating_cgroups() {
    let node = FakeNode::new();
    let _fake = serve(&node.at("cri.sock"));
    let pods = Pods::start(node.options()).await.unwrap();
    let id = node.mkdir(&format!("{}/kubepods/podvictim/{FAKE}", app_path()));
    is_pricing(&pods.owner_of_cgroup(id).await);
}

/// Waits until the runtime has named the owner.
async fn named_by_cri(pods: &Pods, id: u64) -> Owner {
    let mut owner = pods.owner_of_cgroup(id).await;
    for _ in 0..100 {
        if owner.known_by == KnownBy::Cri {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        owner = pods.owner_of_cgroup(id).await;
    }
    owner
}

#[tokio::test]
async fn in_kind_the_pods_lie_in_a_container_that_the_runtime_does_not_know() {
    let node = FakeNode::new();
    // The runtime is this process.
    let proc = node.at(&format!("proc/{}", std::process::id()));
    std::fs::create_dir_all(&proc).unwrap();
    let mount = format!("31 23 0:28 /docker/{FAKE} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    std::fs::write(proc.join("mountinfo"), mount).unwrap();
    let fake = serve(&node.at("cri.sock"));
    *fake.cgroup_parent.lock().unwrap() = Some("/kubelet/kubepods/burstable".into());
    let pods = Pods::start(node.options()).await.unwrap();
    let real = node.mkdir(&format!("docker/{FAKE}/kubelet/{}", app_path()));
    is_pricing(&named_by_cri(&pods, real).await);
    // At the top of the hierarchy is not where this runtime creates cgroups.
    let top = node.mkdir(&app_path());
    assert_eq!(pods.owner_of_cgroup(top).await.known_by, KnownBy::Host);
}

#[tokio::test]
async fn a_cgroup_elsewhere_that_looks_like_a_pods_is_none() {
    for parent in [Some("/kubepods/burstable".to_owned()), None] {
        let node = FakeNode::new();
        let fake = serve(&node.at("cri.sock"));
        *fake.cgroup_parent.lock().unwrap() = parent.clone();
        let imitations = [
            format!("user.slice/{}", app_path()),
            format!("user.slice/{}/below", app_path()),
            format!("user.slice/{APP}"),
            format!("user.slice/docker-{APP}.scope"),
            format!("user.slice/kubepods/pod{UID}"),
            format!("user.slice/kubepods/pod{UID}/{PAUSE}"),
        ];
        let ids = imitations.each_ref().map(|path| node.mkdir(path));
        let pods = Pods::start(node.options()).await.unwrap();
        let real = node.mkdir(&app_path());
        for (id, path) in ids.into_iter().zip(&imitations) {
            let owner = pods.owner_of_cgroup(id).await;
            assert_eq!(owner.known_by, KnownBy::Host, "{path} {parent:?}");
            assert_eq!((owner.pod, owner.container), (None, None), "{path} {parent:?}");
            let lineage = pods.lineage(id).unwrap();
            assert_eq!(lineage.qos, None, "{path}");
            let by_path = pods.owner_of_path(format!("/{path}/gone").as_bytes()).await;
            assert_eq!((by_path.known_by, by_path.pod), (KnownBy::Host, None), "{path}");
        }
        is_pricing(&named_by_cri(&pods, real).await);
        // The imitations add nothing to the real container.
        let list = pods.list().await.unwrap();
        let app = list[0].containers.iter().find(|container| container.container.id == APP).unwrap();
        assert_eq!((&app.cgroup_ids[..], &app.cgroup_path), (&[real][..], &Some(format!("/{}", app_path()))));
        let own: Vec<u64> =
            pods.memory_cgroups().iter().filter(|one| one.container).map(|one| one.id).collect();
        assert_eq!(own, [real]);
    }
}

#[tokio::test]
async fn an_imitation_is_asked_about_once_whatever_lies_below_it() {
    let node = FakeNode::new();
    let fake = serve(&node.at("cri.sock"));
    *fake.cgroup_parent.lock().unwrap() = Some("/kubepods/burstable".into());
    let pods = Pods::start(node.options()).await.unwrap();
    let imitation = format!("user.slice/{}", app_path());
    assert_eq!(pods.owner_of_cgroup(node.mkdir(&imitation)).await.known_by, KnownBy::Host);
    let calls = fake.calls.load(Relaxed);
    for below in 0..20 {
        let id = node.mkdir(&format!("{imitation}/below-{below}"));
        assert_eq!(pods.owner_of_cgroup(id).await.known_by, KnownBy::Host, "{below}");
    }
    assert_eq!(fake.calls.load(Relaxed), calls);
}

#[tokio::test]
async fn without_a_runtime_a_pods_name_is_believed_below_the_kubelets_root_only() {
    let node = FakeNode::new();
    std::fs::create_dir_all(node.at(&format!("logs/finance_pricing-7f9c_{UID}/app"))).unwrap();
    let real = node.mkdir(&app_path());
    let imitation = node.mkdir(&format!("user.slice/{}", app_path()));
    let bare = node.mkdir(&format!("user.slice/{APP}"));
    let docker = node.mkdir(&format!("docker/{FAKE}"));
    let pods = Pods::start(node.options()).await.unwrap();
    assert_eq!(pods.owner_of_cgroup(real).await.known_by, KnownBy::LogDirectory);
    for id in [imitation, bare] {
        let owner = pods.owner_of_cgroup(id).await;
        assert_eq!((owner.known_by, owner.pod, owner.container), (KnownBy::Host, None, None));
    }
    let owner = pods.owner_of_cgroup(docker).await;
    assert_eq!((owner.known_by, owner.container.unwrap().id.as_str()), (KnownBy::CgroupPath, FAKE));
    let list = pods.list().await.unwrap();
    assert_eq!((list.len(), &list[0].containers[0].cgroup_ids[..]), (1, &[real][..]));
}

#[tokio::test]
async fn a_root_that_the_runtime_has_confirmed_is_believed_when_it_is_gone() {
    let node = FakeNode::new();
    let fake = serve(&node.at("cri.sock"));
    *fake.cgroup_parent.lock().unwrap() = Some("/custom/kubepods/burstable".into());
    let pods = Pods::start(node.options()).await.unwrap();
    let real = node.mkdir(&format!("custom/{}", app_path()));
    is_pricing(&named_by_cri(&pods, real).await);
    let levels = pods.lineage(real).unwrap();
    assert_eq!(levels.qos, Some("Burstable"));
    // The runtime does not know this one.
    let other = format!("/custom/kubepods/burstable/pod{UID}/{FAKE}");
    let owner = pods.owner_of_path(other.as_bytes()).await;
    assert_eq!((owner.known_by, owner.pod.unwrap().uid.as_str()), (KnownBy::CgroupPath, UID));
}

#[tokio::test]
async fn a_broken_runtime_causes_a_bounded_wait_and_is_counted() {
    for kind in ["absent", "hang", "garbage", "closed"] {
        let node = FakeNode::new();
        std::fs::create_dir_all(node.at(&format!("logs/finance_pricing-7f9c_{UID}/app"))).unwrap();
        std::fs::write(node.at(&format!("logs/finance_pricing-7f9c_{UID}/app/2.log")), "").unwrap();
        if kind != "absent" {
            let listener = UnixListener::bind(node.at("cri.sock")).unwrap();
            tokio::spawn(async move {
                let mut held = Vec::new();
                while let Ok((mut stream, _)) = listener.accept().await {
                    match kind {
                        "hang" => held.push(stream),
                        "garbage" => drop(stream.write_all(&[0xff; 4096]).await),
                        _ => drop(stream),
                    }
                }
            });
        }
        let began = Instant::now();
        let ids: Vec<u64> = (0..50).map(|n| node.mkdir(&format!("{}/{n}", app_path()))).collect();
        let pods = Pods::start(node.options()).await.unwrap();
        for id in ids {
            let owner = pods.owner_of_cgroup(id).await;
            assert_eq!(owner.known_by, KnownBy::LogDirectory, "{kind}");
            assert_eq!(owner.pod.unwrap().name, "pricing-7f9c", "{kind}");
            let container = owner.container.unwrap();
            assert_eq!((container.name.as_str(), container.attempt), ("app", 2), "{kind}");
        }
        let listed = pods.list().await.unwrap();
        assert_eq!((listed.len(), listed[0].containers[0].cgroup_ids.len()), (1, 51), "{kind}");
        assert!(began.elapsed() < Duration::from_secs(4), "{kind}: {:?}", began.elapsed());
        let status = pods.status();
        let errors = status.losses.get("cri_errors").copied().unwrap_or(0);
        assert!((1..20).contains(&errors), "{kind}: {errors}");
        assert!(status.cri_error.is_some(), "{kind}");
        let error = pods.resolve(&"finance/pricing-7f9d".parse().unwrap()).await.unwrap_err();
        // Without the runtime's answer nothing proves that there is no such pod.
        assert!(!error.is::<TargetMatchError>(), "{kind}: {error}");
        let error = error.to_string();
        assert!(error.contains("did you mean finance/pricing-7f9c"), "{kind}: {error}");
        assert!(error.contains("--cri-socket"), "{kind}: {error}");
    }
}

#[tokio::test]
async fn a_runtime_that_starts_later_is_found() {
    let node = FakeNode::new();
    let id = node.mkdir(&app_path());
    let pods = Pods::start(node.options()).await.unwrap();
    assert_eq!(pods.owner_of_cgroup(id).await.known_by, KnownBy::CgroupPath);
    let _fake = serve(&node.at("cri.sock"));
    for _ in 0..400 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if pods.owner_of_cgroup(id).await.known_by == KnownBy::Cri {
            break;
        }
    }
    is_pricing(&pods.owner_of_cgroup(id).await);
    assert_eq!(pods.status().cri_error, None);
}

#[tokio::test]
async fn refused_watches_are_counted_and_replaced_by_scans() {
    let node = FakeNode::new();
    let limits = cache::CacheLimits::new(Duration::from_secs(600));
    let pods = Pods::start_within(node.options(), limits, Some(1)).await.unwrap();
    let deep = node.mkdir("a/b/c");
    eventually("scan", || pods.state.cache().entry(deep).is_some()).await;
    assert!(pods.status().losses["watches_refused"] >= 1);
    node.rmdir("a/b/c");
    eventually("gone", || pods.state.cache().entry(deep).is_some_and(|e| e.dead.is_some())).await;
}

#[tokio::test]
async fn unknown_ids_are_reported_and_counted_without_a_scan_for_each() {
    let node = FakeNode::new();
    let pods = Pods::start(node.options()).await.unwrap();
    let began = Instant::now();
    for _ in 0..1000 {
        let owner = pods.owner_of_cgroup(987_654_321).await;
        assert_eq!((owner.known_by, owner.cgroup.id), (KnownBy::Unknown, 987_654_321));
    }
    assert_eq!(pods.owner_of_cgroup(0).await.known_by, KnownBy::Unknown);
    assert_eq!(pods.status().losses["cgroups_unknown"], 1001);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn pods_are_listed_and_targets_resolved() {
    let node = FakeNode::new();
    let _fake = serve(&node.at("cri.sock"));
    let id = node.mkdir(&app_path());
    let below = node.mkdir(&format!("{}/x", app_path()));
    let slice = node.mkdir("system.slice");
    let own = node.at("cg").join(app_path());
    for (file, text) in [
        ("cgroup.procs", "17\n"),
        ("memory.max", "67108864\n"),
        ("memory.current", "1\n"),
        ("cpu.max", "5 10\n"),
    ] {
        std::fs::write(own.join(file), text).unwrap();
    }
    std::fs::create_dir_all(node.at("proc/17")).unwrap();
    std::fs::write(node.at("proc/17/cgroup"), format!("0::/{}\n", app_path())).unwrap();
    std::fs::create_dir_all(node.at("proc/18")).unwrap();
    std::fs::write(node.at("proc/18/cgroup"), "0::/system.slice\n").unwrap();
    let pods = Pods::start(node.options()).await.unwrap();
    is_pricing(&pods.owner_of_pid(17).await.unwrap());
    assert!(pods.owner_of_pid(19).await.is_err());

    let list = pods.list().await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(
        (list[0].state.as_str(), &list[0].ips[..]),
        ("ready", &["10.0.0.7".into(), "fd00::7".into()][..])
    );
    // The sandbox's process does not exist here, so a container's process is used instead.
    assert_eq!(list[0].netns, Some(node.at("proc/17/ns/net").display().to_string()));
    let [app, old] = &list[0].containers[..] else { panic!("{list:?}") };
    assert_eq!(
        (app.state.as_str(), app.restarts, app.pid, &app.pids[..]),
        ("running", 3, Some(17), &[17][..])
    );
    assert_eq!((app.memory_limit_bytes, app.cpu_limit_millis), (Some(67_108_864), Some(500)));
    assert_eq!(app.cgroup_ids, [id, below]);
    assert_eq!((old.reason.as_str(), old.exit_code, old.pid), ("OOMKilled", Some(137), None));

    let resolve = async |text: &str| {
        let mut found = pods.resolve(&text.parse().unwrap()).await?;
        assert_eq!(found.len(), 1, "{text}");
        anyhow::Ok(found.remove(0))
    };
    for text in ["finance/pricing-7f9c/app", "3f2a9c", "pid:17", &format!("cgroup:/{}", app_path())] {
        let Ok(Resolved::Containers(pod, found)) = resolve(text).await else { panic!("{text}") };
        assert_eq!((pod.name.as_str(), found.len()), ("pricing-7f9c", 1), "{text}");
        assert_eq!(found[0].container.id, APP, "{text}");
    }
    for text in ["finance/pricing-7f9c", "pricing-7f9c", "pricing", "finance/pric"] {
        assert!(matches!(resolve(text).await, Ok(Resolved::Containers(_, all)) if all.len() == 2), "{text}");
    }
    assert!(matches!(resolve("pid:18").await, Ok(Resolved::Process(18))));
    assert!(matches!(resolve("cgroup:/system.slice").await, Ok(Resolved::Cgroups(ids)) if ids == [slice]));
    let part = format!("cgroup:/{}/x", app_path());
    assert!(matches!(resolve(&part).await, Ok(Resolved::Cgroups(ids)) if ids == [below]));
    for (text, expected) in [
        ("3f2a", "ambiguous"),
        ("3f2a", "finance/pricing-7f9c/app"),
        ("pricong-7f9c", "did you mean pricing-7f9c"),
        ("finance/pricong-7f9c", "did you mean finance/pricing-7f9c"),
        ("finance/pricing-7f9c/db", "it has: app"),
        ("pid:19", "no process 19"),
        ("cgroup:/nowhere", "no memory cgroup /nowhere"),
    ] {
        let error = resolve(text).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[tokio::test]
async fn pods_below_another_root_are_listed_with_their_processes_by_a_list_that_comes_first() {
    let node = FakeNode::new();
    let fake = serve(&node.at("cri.sock"));
    *fake.cgroup_parent.lock().unwrap() = Some("/custom/kubepods/burstable".into());
    let real = node.mkdir(&format!("custom/{}", app_path()));
    let imitation = node.mkdir(&format!("user.slice/{}", app_path()));
    let pods = Pods::start(node.options()).await.unwrap();
    let list = pods.list().await.unwrap();
    assert_eq!(list[0].containers[0].cgroup_ids, [real], "not {imitation}");
}

#[tokio::test]
async fn a_root_is_learned_from_the_path_that_the_runtime_reports_for_a_container() {
    let node = FakeNode::new();
    let real = node.mkdir(&format!("custom/{}", app_path()));
    let imitation = node.mkdir(&format!("user.slice/{}", app_path()));
    let pods = Pods::start(node.options()).await.unwrap();
    let qos = |id| pods.lineage(id).unwrap().qos;
    assert_eq!((qos(real), qos(imitation)), (None, None));
    let reported = format!("/custom/kubepods/burstable/pod{UID}/{APP}");
    pods.state.learn_roots(&[(FAKE, reported.as_str())].into());
    assert_eq!((qos(real), qos(imitation)), (None, None), "it is another container's");
    pods.state.learn_roots(&[(APP, reported.as_str())].into());
    assert_eq!((qos(real), qos(imitation)), (Some("Burstable"), None));
}

#[tokio::test]
async fn a_pod_whose_sandbox_died_is_one_pod_with_the_containers_of_both() {
    let node = FakeNode::new();
    let fake = serve(&node.at("cri.sock"));
    fake.has_former_sandbox.store(true, Relaxed);
    let pods = Pods::start(node.options()).await.unwrap();
    let list = pods.list().await.unwrap();
    let [pod] = &list[..] else { panic!("{list:?}") };
    assert_eq!((pod.state.as_str(), pod.sandbox_id.as_str()), ("ready", PAUSE));
    let ids: Vec<&str> = pod.containers.iter().map(|container| container.container.id.as_str()).collect();
    assert_eq!((&ids[..], pod.containers[1].reason.as_str()), (&[APP, OLD][..], "OOMKilled"));
    let resolved = pods.resolve(&"finance/pricing-7f9c".parse().unwrap()).await.unwrap();
    assert!(matches!(&resolved[..], [Resolved::Containers(_, all)] if all.len() == 2));
}

#[tokio::test]
async fn without_a_runtime_and_pods_the_error_names_the_next_step() {
    let node = FakeNode::new();
    let pods = Pods::start(node.options()).await.unwrap();
    let error = pods.list().await.unwrap_err().to_string();
    assert!(error.starts_with("no pods: ") && error.contains("--cri-socket"), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

/// Run it with `cargo test -p podopsy-pods -- --ignored` as root, on a machine with a writable memory hierarchy.
#[tokio::test]
#[ignore = "creates a cgroup in the real kernel: needs root"]
async fn the_kernels_own_cgroups_are_noticed() {
    let pods = Pods::start(PodsOptions::default()).await.unwrap();
    let name = format!("podopsy-test-{}", std::process::id());
    let dir = pods.hierarchy().dir.join(&name);
    std::fs::create_dir(&dir).unwrap();
    let id = pods.hierarchy().id(Path::new(&name)).unwrap();
    let mut seen = false;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        seen |= pods.state.cache().entry(id).is_some_and(|e| e.watched);
    }
    std::fs::remove_dir(&dir).unwrap();
    assert!(seen, "mkdir was not noticed");
    eventually("rmdir", || pods.state.cache().entry(id).is_some_and(|e| e.dead.is_some())).await;
    let owner = pods.owner_of_cgroup(id).await;
    assert_eq!((owner.known_by, owner.cgroup.path), (KnownBy::Host, Some(format!("/{name}"))));
    assert_eq!(pods.owner_of_pid(std::process::id()).await.unwrap().known_by, KnownBy::Host);
    assert!(pods.start_time(std::process::id()).is_some());
}

#[tokio::test]
async fn what_is_known_now_needs_no_runtime_and_no_wait() {
    let node = FakeNode::new();
    // It accepts and never responds.
    let _listener = UnixListener::bind(node.at("cri.sock")).unwrap();
    let host = node.mkdir("system.slice");
    let pods = Pods::start(node.options()).await.unwrap();
    let began = Instant::now();
    let (owner, is_incomplete) = pods.owner_now(host, 1);
    assert_eq!((owner.known_by, is_incomplete), (KnownBy::Host, false));
    // No scan has looked for this id yet.
    let (owner, is_incomplete) = pods.owner_now(u64::MAX, 1);
    assert_eq!((owner.cgroup.id, owner.known_by, is_incomplete), (u64::MAX, KnownBy::Unknown, true));
    let owner = pods.owner_of_path_now(format!("/{}", app_path()).as_bytes());
    assert_eq!((owner.known_by, owner.pod.unwrap().uid.as_str()), (KnownBy::CgroupPath, UID));
    assert_eq!(owner.container.unwrap().id, APP);
    assert!(began.elapsed() < node.options().cri_timeout, "{:?}", began.elapsed());

    pods.owner_of_cgroup(u64::MAX).await;
    assert!(!pods.owner_now(u64::MAX, 1).1, "a scan did not find it");
    // All cgroups that a container creates are the container's.
    let inner = node.mkdir(&format!("{}/a/b", app_path()));
    eventually("inner noticed", || pods.container_key(inner).is_some()).await;
    assert_eq!((pods.container_key(inner).as_deref(), pods.container_key(host)), (Some(APP), None));
}
