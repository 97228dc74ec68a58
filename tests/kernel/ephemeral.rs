//! podopsy in an ephemeral container: it shares the memory limit of the pod that it examines, and must not cost it its life.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::inside::debugger as debugger_with_probes;
use crate::support;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use podopsy_harness::{ContainerSpec, Dns, Node, PodHandle, PodSpec};
use support::{is_emulated, node};

const SOON: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// The pod's limit.
const LIMIT: u64 = 24 * MIB;
/// What `podopsy dns` may have charged to the pod, with the page cache of its program.
const DNS_FOOTPRINT: u64 = 5 * MIB;
/// The same of `podopsy profile`, while it samples: a fifth more than the 10 MiB that it takes.
const PROFILE_FOOTPRINT: u64 = 12 * MIB;

/// A pod with [`LIMIT`] whose application holds so much memory, and podopsy's image.
fn pod_that_holds(node: &Node, victims: &str, name: &str, bytes: u64) -> (PodHandle, String) {
    let image = node.podopsy_image("registry.podopsy.test/podopsy:test").expect("load podopsy's image");
    let hold = bytes.to_string();
    let command = ["leak", "--step", "1MiB", "--every", "1", "--up-to", &hold];
    let app = ContainerSpec::new("app", victims).command(command).memory_limit(LIMIT as i64);
    let pod =
        PodSpec::new("shop", name).dns(Dns::cluster(node.dns_address(), "shop")).memory_limit(LIMIT as i64);
    let pod = node.run_pod(pod.container(app)).expect("run the pod");
    let began = Instant::now();
    while used(&pod).0 < bytes {
        assert!(began.elapsed() < SOON, "the application holds {} of {bytes} bytes", used(&pod).0);
        std::thread::sleep(Duration::from_millis(50));
    }
    (pod, image)
}

fn debugger(image: &str, name: &str) -> ContainerSpec {
    let command = ["/podopsy", "dns", "-o", "json"];
    ContainerSpec::new(name, image).command(command).target("app").capability("SYS_PTRACE")
}

/// The pod's own cgroup, with the containers in it.
fn pod_cgroup(pod: &PodHandle) -> PathBuf {
    let app = pod.memory_cgroup("app").expect("its cgroup");
    app.parent().expect("the pod's cgroup").to_owned()
}

/// The bytes that are charged to the pod, and how many of them are page cache.
fn used(pod: &PodHandle) -> (u64, u64) {
    let read = |file: &str| fs::read_to_string(pod_cgroup(pod).join(file)).ok();
    let text = read("memory.current").or_else(|| read("memory.usage_in_bytes")).expect("the pod's usage");
    let statistics = read("memory.stat").expect("its statistics");
    let of = |name: &str| statistics.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
    let cache = of("file ").or_else(|| of("total_cache ")).expect("the page cache");
    (text.trim().parse().expect("a number"), cache)
}

/// Drops what the page cache has of the programs in podopsy's image, which unpacking charged to the runtime.
fn forget_image(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            forget_image(&path);
        } else if entry.file_name() == "podopsy" && entry.metadata().is_ok_and(|meta| meta.len() > MIB) {
            let file = File::open(&path).expect("open the program");
            file.sync_all().expect("write it");
            posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .expect("drop its pages");
        }
    }
}

fn until_log_has(pod: &PodHandle, container: &str, line: &str) {
    let log = || pod.log(container).unwrap_or_default();
    let began = Instant::now();
    while !log().contains(line) {
        assert!(began.elapsed() < SOON, "{container} does not say {line}: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The bytes that were charged to the pod since `before`.
fn taken_since(before: (u64, u64), pod: &PodHandle, command: &str) -> u64 {
    let after = used(pod);
    let taken = after.0.saturating_sub(before.0);
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    eprintln!(
        "{command} has {:.1} MiB of the pod's memory, {:.1} of it page cache",
        mib(taken),
        mib(after.1.saturating_sub(before.1))
    );
    taken
}

#[test]
fn dns_takes_little_of_its_pods_memory_and_is_the_first_to_be_killed() {
    let (node, victims) = node();
    let (pod, image) = pod_that_holds(&node, &victims, "roomy", 8 * MIB);
    forget_image(node.directory());
    let before = used(&pod);
    pod.add_container(debugger(&image, "dns")).expect("start an ephemeral container");
    until_log_has(&pod, "dns", "recording DNS lookups");
    std::thread::sleep(Duration::from_secs(if is_emulated() { 10 } else { 3 }));
    let taken = taken_since(before, &pod, "podopsy dns");
    assert!(taken <= DNS_FOOTPRINT, "{taken} bytes are charged to the pod");
    let pid = pod.pid("dns").expect("it runs");
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("its score");
    assert_eq!(score.trim(), "1000");
    let app = pod.status("app").expect("its status");
    assert!(app.state == podopsy_harness::ContainerState::Running && app.attempt == 0, "{app:?}");
}

/// Waits until podopsy says that it takes the risk. Where even its start is too much, the kernel has ended it before.
fn until_it_goes_on_or_is_killed(pod: &PodHandle, container: &str) {
    let log = || pod.log(container).unwrap_or_default();
    let began = Instant::now();
    while !log().contains("because of --ignore-memory-limit") {
        let status = pod.status(container).expect("its status");
        if status.state == podopsy_harness::ContainerState::Exited {
            return assert_eq!(status.exit_code, 137, "{}", log());
        }
        assert!(began.elapsed() < SOON, "{status:?}: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn dns_is_refused_where_the_rest_of_the_pods_limit_is_too_small() {
    let (node, victims) = node();
    let (pod, image) = pod_that_holds(&node, &victims, "tight", 18 * MIB);
    pod.add_container(debugger(&image, "dns")).expect("start an ephemeral container");
    let refused = pod.wait_exited("dns", SOON).expect("it ends");
    let log = pod.log("dns").unwrap_or_default();
    assert_eq!(refused.exit_code, 3, "{log}");
    for part in
        ["memory limit", "(24 MiB) are left", "up to 8 MiB", "kubectl debug node/", "--ignore-memory-limit"]
    {
        assert!(log.contains(part), "{part} is not in {log}");
    }
    // Who insists is the one who pays.
    let insisting = debugger(&image, "insisting").args(["--ignore-memory-limit"]);
    pod.add_container(insisting).expect("start an ephemeral container");
    until_it_goes_on_or_is_killed(&pod, "insisting");
    std::thread::sleep(Duration::from_secs(2));
    let app = pod.status("app").expect("its status");
    assert!(app.state == podopsy_harness::ContainerState::Running && app.attempt == 0, "{app:?}");
}

#[test]
fn a_profile_takes_little_of_its_pods_memory() {
    let (node, victims) = node();
    let app = ContainerSpec::new("app", &victims).command(["burner"]);
    let spec = PodSpec::new("shop", "profiled").dns(Dns::cluster(node.dns_address(), "shop"));
    let pod = node.run_pod(spec.container(app)).expect("run the pod");
    let seconds = if is_emulated() { "60s" } else { "10s" };
    let profile = debugger_with_probes(&node, "profile", ["/podopsy", "profile", "--all", "-d", seconds]);
    std::thread::sleep(Duration::from_secs(1));
    forget_image(node.directory());
    let before = used(&pod);
    pod.add_container(profile).expect("start an ephemeral container");
    until_log_has(&pod, "profile", "profiling");
    std::thread::sleep(Duration::from_secs(if is_emulated() { 40 } else { 6 }));
    let taken = taken_since(before, &pod, "podopsy profile");
    let app = pod.status("app").expect("its status");
    let ended = pod.wait_exited("profile", SOON).expect("it ends");
    assert_eq!(ended.exit_code, 0, "{}", pod.log("profile").unwrap_or_default());
    assert!(taken <= PROFILE_FOOTPRINT, "{taken} bytes are charged to the pod");
    assert_eq!(app.state, podopsy_harness::ContainerState::Running, "{app:?}");
}
