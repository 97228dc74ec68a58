//! End to end: real pods in a real containerd, real kills and lookups, and the pod's name on each.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support;
use podopsy_harness::{ContainerSpec, ContainerState, Dns, Node, PodHandle, PodSpec};
use podopsy_model::incident::Level;
use podopsy_model::profile::Frame;
use podopsy_model::{Detail, Event, EventKind, KnownBy, Outcome};
use podopsy_pods::Pods;
use podopsy_recorder::{GrowthMode, RecorderOptions};
use serde_json::Value;
use support::{Recording, VICTIMS_IMAGE, node, options, pods_of};

const MIB: i64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

fn watching(node: &Node) -> Recording {
    // Growth is tested elsewhere: it loses samples of short-lived processes, and counts that.
    Recording::start(RecorderOptions { growth: GrowthMode::Off, ..options() }, pods_of(node))
}

fn kills(events: &[Event]) -> Vec<&Event> {
    events.iter().filter(|event| event.kind == EventKind::OomKill).collect()
}

fn pod_name(event: &Event) -> Option<String> {
    event.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name))
}

/// `podopsy ARGS` against this node's runtime, by the binary that ships.
fn podopsy(node: &Node, args: &[&str]) -> Value {
    let binaries = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let output = Command::new(&binaries[0])
        .arg("--cri-socket")
        .arg(node.cri_socket())
        .args(args)
        .output()
        .expect("run podopsy");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "podopsy {args:?}: {stderr}");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("podopsy {args:?}: {error}; {stderr}"))
}

/// Runs `podopsy ARGS` in a root of its own, which has nothing but /proc and the cgroups, and where process 1 has the
/// node's root.
fn podopsy_in_an_empty_root(args: &[&str]) -> std::process::Output {
    const SCRIPT: &str = "set -e; root=$1; shift; mount -t tmpfs none \"$root\"; \
                          mkdir -p \"$root/proc\" \"$root/sys/fs/cgroup\"; cp \"$1\" \"$root/podopsy\"; shift; \
                          mount --rbind /proc \"$root/proc\"; mount --rbind /sys/fs/cgroup \"$root/sys/fs/cgroup\"; \
                          chroot \"$root\" /podopsy \"$@\"";
    let binaries = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let root = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", SCRIPT, "sh"]);
    command.arg(root.path()).arg(&binaries[0]).args(args).output().expect("run podopsy")
}

#[test]
fn a_container_reaches_the_runtime_by_the_root_of_process_1() {
    let (node, image) = node();
    let idle = ContainerSpec::new("app", &image).command(["burner"]);
    let _pod = node.run_pod(PodSpec::new("shop", "cart").container(idle)).expect("run the pod");
    let socket = node.cri_socket().to_str().expect("text");
    let output = podopsy_in_an_empty_root(&["pods", "--cri-socket", socket, "-o", "json"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("\"cart\""), "{out} {err}");
    let doctor = podopsy_in_an_empty_root(&["doctor", "--cri-socket", socket, "-o", "json"]);
    let report = String::from_utf8_lossy(&doctor.stdout);
    assert!(report.contains(&format!(" at /proc/1/root{socket}")), "{report}");
}

#[test]
fn a_kill_names_pod_container_image_and_labels_although_the_victim_is_dead() {
    let (node, image) = node();
    let mut recording = watching(&node);
    let pod = node
        .run_pod(
            PodSpec::new("shop", "orders").label("app", "orders").label("tier", "backend").container(
                // On a busy machine its file would not be open yet, were it to die within milliseconds.
                ContainerSpec::new("api", &image)
                    .command(["leak", "--fast", "--wait", "500"])
                    .memory_limit(32 * MIB),
            ),
        )
        .expect("run the pod");
    let dead = pod.wait_exited("api", SOON).expect("it is killed");
    assert_eq!((dead.reason.as_str(), dead.exit_code), ("OOMKilled", 137));
    recording.until("kill", SOON, |seen| !kills(seen).is_empty());
    pod.restart("api").expect("restart");
    recording.until("second kill", SOON, |seen| kills(seen).len() == 2);
    let incidents = |seen: &[Event]| seen.iter().filter(|event| event.incident.is_some()).count();
    recording.until("both incidents", SOON, |seen| incidents(seen) == 2);
    pod.remove().expect("remove the pod");

    for (attempt, event) in (0..).zip(kills(&recording.seen)) {
        let found = event.pod.as_ref().expect("the pod is named");
        assert_eq!((found.namespace.as_str(), found.name.as_str(), &found.uid), ("shop", "orders", &pod.uid));
        let labels = BTreeMap::from([("app", "orders"), ("tier", "backend")]);
        assert_eq!(
            found.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<BTreeMap<_, _>>(),
            labels
        );
        let container = event.container.as_ref().expect("the container is named");
        assert_eq!((container.name.as_str(), container.image.as_str()), ("api", VICTIMS_IMAGE));
        assert_eq!((container.attempt, event.known_by), (attempt, KnownBy::Cri));
        assert_eq!(event.process.comm, "leak");
        assert!(matches!(&event.detail, Detail::Oom(kill) if kill.user_stack.is_empty()), "{event:?}");
        // The names of the frames follow in the incident.
        let is_its_incident =
            |other: &&Event| other.kind == EventKind::OomIncident && other.process == event.process;
        let incident = recording.seen.iter().find(is_its_incident).expect("each kill has an incident");
        let Detail::Oom(kill) = &incident.detail else { panic!("{incident:?}") };
        for function in ["keep", "append_history", "handle_order", "serve_orders"] {
            let is_it = |frame: &&Frame| frame.function.as_deref() == Some(function);
            let found = kill.user_stack.iter().find(is_it);
            let found =
                found.unwrap_or_else(|| panic!("no {function} in the dead trigger's stack: {kill:?}"));
            // By debug information that is packed, as distributions ship it.
            assert!(found.source.as_ref().is_some_and(|(file, _)| file.ends_with("leak.rs")), "{found:?}");
        }
        assert!(event.cgroup.path.as_ref().is_some_and(|path| path.contains(&container.id)), "{event:?}");
    }
    let (_, losses) = recording.stop();
    assert!(losses.is_empty(), "{losses:?}");
}

/// A cgroup at the top of the hierarchy, removed with all below it when this is dropped.
struct TopCgroup(String);

impl TopCgroup {
    fn named(name: &str) -> TopCgroup {
        TopCgroup(format!("/podopsy-{name}-{}", std::process::id()))
    }
}

impl Drop for TopCgroup {
    fn drop(&mut self) {
        let left = podopsy_harness::cgroup::remove(&self.0);
        if !left.is_empty() {
            eprintln!("could not remove {left:?}");
        }
    }
}

#[test]
fn a_kill_in_a_cgroup_that_only_looks_like_a_pods_is_not_that_pods() {
    let (node, image) = node();
    let mut recording = watching(&node);
    let idle = ContainerSpec::new("api", &image).command(["leak", "--up-to", "1KiB"]);
    let doomed =
        ContainerSpec::new("hog", &image).command(["leak", "--fast", "--wait", "500"]).memory_limit(32 * MIB);
    let pod =
        node.run_pod(PodSpec::new("shop", "orders").container(idle).container(doomed)).expect("run the pod");
    let real = pod.status("api").expect("CRI answers").id;

    // The pod's uid and the container's id, at another place.
    let slice = TopCgroup::named("user.slice");
    let imitation = format!("{}/kubepods/burstable/pod{}/{real}", slice.0, pod.uid);
    podopsy_harness::cgroup::create(&imitation, Some(24 * MIB)).expect("create the imitation");
    let dir = podopsy_harness::cgroup::memory_directory(&imitation).expect("its directory");
    let id = std::fs::metadata(&dir).expect("it is there").ino();
    let join = format!("echo $$ > {}/cgroup.procs && exec /usr/bin/tail /dev/zero", dir.display());
    let ended = Command::new("/bin/sh").args(["-c", &join]).status().expect("run the glutton");
    assert!(!ended.success(), "it was to be killed");

    let in_imitation = |event: &&Event| event.cgroup.id == id;
    recording.until("both kills and their incidents", SOON, |seen| {
        let incident = |event: &&Event| event.kind == EventKind::OomIncident;
        kills(seen).len() >= 2 && seen.iter().filter(incident).count() >= 2
    });
    let imitated: Vec<&Event> = recording.seen.iter().filter(in_imitation).collect();
    assert_eq!(imitated.len(), 2, "a kill and its incident: {:#?}", recording.seen);
    for event in imitated {
        assert_eq!(
            (&event.pod, &event.container, event.known_by),
            (&None, &None, KnownBy::Host),
            "{event:#?}"
        );
        assert_eq!(event.cgroup.path.as_deref(), Some(imitation.as_str()));
        if let Some(incident) = &event.incident {
            assert_eq!((incident.limit.of, incident.qos.as_deref()), (Level::Slice, None), "{incident:#?}");
        }
    }
    let genuine: Vec<&Event> =
        kills(&recording.seen).into_iter().filter(|event| event.cgroup.id != id).collect();
    assert_eq!(genuine.len(), 1, "{genuine:#?}");
    assert_eq!((pod_name(genuine[0]).as_deref(), genuine[0].known_by), (Some("shop/orders"), KnownBy::Cri));
    assert_eq!(genuine[0].container.as_ref().map(|container| container.name.as_str()), Some("hog"));

    // The imitation adds nothing to the real container either.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listed =
        runtime.block_on(async { Pods::start(pods_of(&node)).await?.list().await }).expect("the pods");
    let containers: Vec<_> = listed.iter().flat_map(|pod| &pod.containers).collect();
    let api = containers.iter().find(|container| container.container.id == real).expect("it is listed");
    assert!(!api.cgroup_ids.is_empty() && !api.cgroup_ids.contains(&id), "{api:#?}");
}

#[test]
fn a_pod_below_a_custom_cgroup_root_is_named_because_the_runtime_put_it_there() {
    let (node, image) = node();
    let mut recording = watching(&node);
    let root = TopCgroup::named("root");
    let hog =
        ContainerSpec::new("hog", &image).command(["leak", "--fast", "--wait", "500"]).memory_limit(32 * MIB);
    let pod = node
        .run_pod(PodSpec::new("shop", "orders").cgroup_root(&root.0).container(hog))
        .expect("run the pod");
    recording.until("kill and incident", SOON, |seen| {
        seen.iter().any(|event| event.kind == EventKind::OomIncident)
    });
    for event in &recording.seen {
        assert_eq!(
            (pod_name(event).as_deref(), event.known_by),
            (Some("shop/orders"), KnownBy::Cri),
            "{event:#?}"
        );
        assert!(event.cgroup.path.as_ref().is_some_and(|path| path.starts_with(&root.0)), "{event:#?}");
        if let Some(incident) = &event.incident {
            assert_eq!(
                (incident.limit.of, incident.qos.as_deref()),
                (Level::Container, Some("Burstable")),
                "{incident:#?}"
            );
        }
    }
    assert!(!kills(&recording.seen).is_empty());
    pod.remove().expect("remove the pod");
}

#[test]
fn a_burst_of_kills_in_short_lived_pods_names_the_pod_of_each() {
    let pods = support::times(16);
    const EACH: usize = 5;
    let (node, image) = node();
    let mut recording = watching(&node);
    let mut expected = BTreeMap::new();
    for number in 0..pods {
        let name = format!("burst-{number}");
        let pod = node
            .run_pod(
                PodSpec::new("storm", &name).label("n", number.to_string()).container(
                    ContainerSpec::new("forker", &image)
                        .command(["leak", "--fast", "--child", "--times", &EACH.to_string()])
                        .single_process_oom_kill()
                        .memory_limit(16 * MIB),
                ),
            )
            .expect("run the pod");
        // PID 1 outlives its children: CRI does not report OOMKilled for it (or does so for a clean exit).
        let ended = pod.wait_exited("forker", SOON).expect("it ends by itself");
        // While the memory of one child is still being freed, the next is no larger than PID 1, which may be chosen then.
        assert!([0, 137].contains(&ended.exit_code), "{ended:?}");
        let log = pod.log("forker").expect("its log");
        let killed = log.matches("ended by signal 9").count() + usize::from(ended.exit_code == 137);
        assert!(killed == EACH || ended.exit_code == 137, "{killed} kills: {log}");
        expected.insert(Some(format!("storm/{name}")), killed);
        pod.remove().expect("remove the pod");
    }
    let all: usize = expected.values().sum();
    recording.until("all kills", SOON, |seen| kills(seen).len() >= all);
    recording.receive_for(Duration::from_secs(1));
    let mut by_pod: BTreeMap<Option<String>, usize> = BTreeMap::new();
    for event in kills(&recording.seen) {
        *by_pod.entry(pod_name(event)).or_default() += 1;
    }
    assert_eq!(by_pod, expected);
}

#[test]
fn a_failed_lookup_in_a_pod_names_the_pod_and_the_process() {
    let (node, image) = node();
    let dns = node.resolver("answer").expect("a resolver");
    let mut recording = watching(&node);
    let resolv = Dns::cluster(node.dns_address(), "shop").option("timeout:1").option("attempts:1");
    let _pod = node
        .run_pod(PodSpec::new("shop", "cart").dns(resolv).container(
            ContainerSpec::new("web", &image).command([
                "lookup",
                "nosuch.shop.svc.cluster.local.",
                "--every",
                "300",
            ]),
        ))
        .expect("run the pod");
    let of = |seen: &[Event], wanted: Outcome| {
        seen.iter().any(|event| {
            matches!(&event.detail, Detail::Dns(dns) if dns.outcome == wanted) && pod_name(event).is_some()
        })
    };
    dns.set_mode("nxdomain").expect("switch");
    recording.until("nxdomain", SOON, |seen| of(seen, Outcome::Nxdomain));
    dns.set_mode("silent").expect("switch");
    recording.until("timeout", SOON, |seen| of(seen, Outcome::Timeout));
    for event in
        recording.seen.iter().filter(|event| event.kind == EventKind::DnsFailure && event.pod.is_some())
    {
        assert_eq!(pod_name(event).as_deref(), Some("shop/cart"), "{event:?}");
        assert_eq!(event.process.comm, "lookup");
        let Detail::Dns(dns) = &event.detail else { continue };
        assert_eq!(dns.name.as_deref(), Some("nosuch.shop.svc.cluster.local"));
        assert_eq!(dns.server.to_string(), format!("{}:53", node.dns_address()));
    }
}

#[test]
fn a_profile_of_one_pod_has_its_functions_in_their_shares_and_its_name_on_every_sample() {
    let (node, image) = node();
    let burner = |name: &str| {
        let spec = ContainerSpec::new("engine", &image).command(["burner"]);
        node.run_pod(PodSpec::new("finance", name).label("app", name).container(spec)).expect("run the pod")
    };
    let (_pricing, _other) = (burner("pricing"), burner("other"));
    let out = tempfile::tempdir().expect("a folder");
    let file = out.path().join("profile.pb.gz");
    let folded = out.path().join("profile.folded");
    let binaries = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let status = Command::new(&binaries[0])
        .arg("--cri-socket")
        .arg(node.cri_socket())
        .args(["profile", "finance/pricing", "-d", "12s", "-F", "199", "-o"])
        .arg(&file)
        .arg("-o")
        .arg(&folded)
        .stdout(Stdio::null())
        .status()
        .expect("run podopsy profile");
    assert!(status.success());

    let folded = std::fs::read_to_string(&folded).expect("the folded stacks");
    let count = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("a count");
    let of = |function: &str| folded.lines().filter(|line| line.contains(function)).map(count).sum::<f64>();
    let shares = [("price_options", 60.0), ("discount_curve", 30.0), ("round_ticks", 10.0)];
    let total: f64 = shares.iter().map(|(function, _)| of(function)).sum();
    let all: f64 = folded.lines().map(count).sum();
    // The rest is the kernel's, or from before there was a table; an emulated machine takes its time for both.
    assert!(total > 0.9 * all, "{total} of {all} samples are in the burner's functions");
    for (function, share) in shares {
        let found = of(function) / total * 100.0;
        assert!((found - share).abs() <= 5.0, "{function}: {found:.1} % instead of {share} %");
    }
    assert!(folded.lines().all(|line| line.starts_with("finance/pricing/engine;")), "another pod's stacks");

    let top = go_pprof(&["-top", "-nodecount=15"], &file);
    let at = |name: &str| top.find(name).unwrap_or_else(|| panic!("no {name} in {top}"));
    assert!(at("price_options") < at("discount_curve") && at("discount_curve") < at("round_ticks"), "{top}");
    let tags = go_pprof(&["-tags"], &file);
    for label in ["pod: Total", "namespace: Total", "container: Total"] {
        assert!(tags.contains(label), "{tags}");
    }
    assert!(tags.contains("(  100%): pricing") && !tags.contains("other"), "{tags}");
    // The graph that `-web` opens: an edge's title names caller and callee. A machine that booted straight into the
    // tests has no /dev/stdout for it.
    let svg = out.path().join("graph.svg");
    go_pprof(&["-svg", &format!("-output={}", svg.display())], &file);
    let graph = std::fs::read_to_string(&svg).expect("go tool pprof drew a graph");
    for (caller, callee) in [("quote_desk", "price_options"), ("risk_desk", "discount_curve")] {
        let edge = |line: &str| line.find(caller).is_some_and(|at| line[at..].contains(callee));
        assert!(graph.contains("<svg") && graph.lines().any(edge), "no edge {caller} -> {callee}: {graph}");
    }
}

fn go_pprof(args: &[&str], file: &Path) -> String {
    let output = Command::new("go").args(["tool", "pprof"]).args(args).arg(file).output();
    let output = output.expect("`go tool pprof` reads profiles: apt-get install golang-go");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn inspect_agrees_with_cri_in_both_directions() {
    let (node, image) = node();
    let pod = node
        .run_pod(
            PodSpec::new("finance", "pricing").label("app", "pricing").container(
                ContainerSpec::new("engine", &image)
                    .command(["burner", "--busy", "5"])
                    .memory_limit(48 * MIB)
                    .cpu_limit(500),
            ),
        )
        .expect("run the pod");
    pod.stop_container("engine", Duration::from_secs(1)).expect("stop");
    pod.restart("engine").expect("restart");
    let truth = pod.status("engine").expect("CRI answers");
    assert_eq!(truth.state, ContainerState::Running);
    let pid = pod.pid("engine").expect("it runs");

    let by_name = podopsy(&node, &["inspect", "finance/pricing", "-o", "json"]);
    assert_eq!(
        (&by_name["pod"]["name"], &by_name["pod"]["uid"]),
        (&"pricing".into(), &pod.uid.clone().into())
    );
    let newest = by_name["containers"]
        .as_array()
        .and_then(|all| all.iter().find(|c| c["container"]["id"] == truth.id.as_str()))
        .unwrap_or_else(|| panic!("the running container is missing: {by_name:#}"));
    assert_eq!(newest["state"], "running");
    assert_eq!(newest["container"]["attempt"], truth.attempt);
    assert_eq!(newest["restarts"], 1);
    assert_eq!(newest["pid"], pid);
    assert_eq!(newest["memory_limit_bytes"], 48 * MIB);
    assert_eq!(newest["cpu_limit_millis"], 500);
    assert!(newest["pids"].as_array().is_some_and(|pids| pids.iter().any(|p| *p == pid)));
    let net = std::fs::metadata(format!("/proc/{pid}/ns/net")).expect("its namespace");
    assert_eq!(newest["namespaces"]["net"], std::os::unix::fs::MetadataExt::ino(&net));

    let by_pid = podopsy(&node, &["inspect", &format!("pid:{pid}"), "-o", "json"]);
    assert_eq!(by_pid["owner"]["pod"]["name"], "pricing");
    assert_eq!(by_pid["owner"]["container"]["id"], truth.id.as_str());
    assert_eq!(by_pid["owner"]["container"]["attempt"], truth.attempt);
    drop::<PodHandle>(pod);
}

/// Directories of cgroupfs, which end no watch of their own. By inode: others come and go here, too.
#[test]
fn cgroups_that_are_gone_are_not_watched_any_more() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let pods = runtime.block_on(podopsy_pods::Pods::start(Default::default())).expect("pods");
    let root = pods.hierarchy().dir.join(format!("podopsy-watched-{}", std::process::id()));
    let children: Vec<_> = (0..20).map(|n| root.join(format!("c{n}"))).collect();
    let all: Vec<_> = std::iter::once(&root).chain(&children).collect();
    all.iter().for_each(|dir| std::fs::create_dir(dir).expect("make a cgroup"));
    let inode = |dir: &&std::path::PathBuf| std::fs::metadata(dir).expect("a cgroup").ino();
    let inodes: Vec<u64> = all.iter().map(inode).collect();
    let until = |what: &str, wanted: usize| {
        let end = Instant::now() + SOON;
        while watched(&inodes) != wanted {
            assert!(Instant::now() < end, "{what}: {} watches of {}", watched(&inodes), inodes.len());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until("made", inodes.len());
    all.iter().rev().for_each(|dir| std::fs::remove_dir(dir).expect("remove a cgroup"));
    until("gone", 0);
    drop(pods);
}

/// How many of these inodes this process has an inotify watch of.
fn watched(inodes: &[u64]) -> usize {
    let files = std::fs::read_dir("/proc/self/fdinfo").expect("our descriptors").flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let all: String = texts.filter(|text| text.contains("inotify wd:")).collect();
    let is_watched = |inode: &&u64| all.contains(&format!(" ino:{inode:x} "));
    inodes.iter().filter(is_watched).count()
}
