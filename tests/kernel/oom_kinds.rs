//! OOM kills whose reason is not in the victim: memory that no process holds, a limit inside the container, and a container
//! that ends as if nothing had happened.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support;
use podopsy_harness::{ContainerSpec, Node, PodSpec};
use podopsy_model::charged::ChargedMemory;
use podopsy_model::incident::{Evidence, Level, OomIncident};
use podopsy_model::{Event, verdict};
use podopsy_recorder::RecorderOptions;
use support::{MemoryCgroup, Recording, no_runtime, node, options, pods_of};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const GLUTTON: &str = "/usr/bin/tail /dev/zero";

fn oom_only() -> RecorderOptions {
    RecorderOptions { dns: None, ..options() }
}

fn incident_of(events: &[Event], pid: u32) -> Option<&OomIncident> {
    let incidents = events.iter().filter_map(|event| event.incident.as_deref());
    incidents.into_iter().find(|one| one.victims.iter().any(|victim| victim.task.pid == pid))
}

/// The incident of a process that runs in a cgroup until it is killed.
fn killed(recording: &mut Recording, mut command: Command) -> OomIncident {
    let mut child = command.spawn().expect("start it");
    let pid = child.id();
    let _ = child.wait();
    recording.until("incident", SOON, |seen| incident_of(seen, pid).is_some());
    incident_of(&recording.seen, pid).expect("just found").clone()
}

/// The statistics, from the kernel's log if it has a header for the kill: the kernel prints few in a short time.
fn charged(incident: &OomIncident) -> &ChargedMemory {
    let charged = incident.charged.as_ref().unwrap_or_else(|| panic!("no statistics: {incident:#?}"));
    let expected = if incident.constraint.is_some() { "kernel log" } else { "memory.stat" };
    assert_eq!(charged.source, expected);
    charged
}

/// `podopsy ARGS`, by the binary that ships: what it prints, and on stderr for who reads the test's output.
fn podopsy(args: &[&str]) -> String {
    let binaries = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let output = Command::new(&binaries[0]).args(args).output().expect("run podopsy");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("podopsy {args:?}:\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A file that is removed when this is dropped.
struct Left(PathBuf);

impl Drop for Left {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn shared_memory_that_an_ended_process_left_is_explained() {
    let cgroup = MemoryCgroup::new("kinds-shmem", 64 * MIB);
    let file = Left(format!("/dev/shm/podopsy-test-{}", std::process::id()).into());
    let write = format!("/bin/dd if=/dev/zero of={} bs=1M count=48", file.0.display());
    let written = cgroup.command(&write).output().expect("run dd");
    assert!(written.status.success(), "{written:?}");
    let mut recording = Recording::start(oom_only(), no_runtime());
    let incident = killed(&mut recording, cgroup.command(GLUTTON));
    let charged = charged(&incident);
    let unheld = charged.unheld_shmem_bytes.expect("the kernel counts what is mapped");
    assert!((44 * MIB..=48 * MIB).contains(&unheld), "{charged:#?}");
    // Before 5.13 each CPU may hold some pages back from the cgroup's statistics.
    assert!(charged.shmem_bytes >= 47 * MIB, "{charged:#?}");
    let advice = incident.advice.as_deref().unwrap_or_default();
    assert!(advice.contains("MiB is shmem that no process holds: tmpfs"), "{incident:#?}");
    if charged.source == "kernel log" {
        let known = charged.anon_bytes + charged.file_bytes + charged.shmem_bytes;
        let all = known + charged.kernel.as_ref().map_or(0, |kernel| kernel.bytes);
        assert!(all.abs_diff(charged.usage_bytes) < 4 * MIB, "the kinds make up the usage: {charged:#?}");
        let text = podopsy(&["oom", "show", &incident.id]);
        assert!(text.contains("MiB of it is shmem that no process holds: tmpfs"), "{text}");
    }
}

#[test]
fn kernel_memory_of_pipes_is_explained() {
    const PIPES: &str = "import os, resource\n\
                         resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))\n\
                         kept = []\n\
                         while True:\n\
                         \x20   kept.append(os.pipe2(os.O_NONBLOCK))\n\
                         \x20   try: os.write(kept[-1][1], bytes(65536))\n\
                         \x20   except BlockingIOError: pass\n";
    let cgroup = MemoryCgroup::new("kinds-pipes", 48 * MIB);
    let mut recording = Recording::start(oom_only(), no_runtime());
    let incident = killed(&mut recording, cgroup.command(&format!("/usr/bin/python3 -c '{PIPES}'")));
    let charged = charged(&incident);
    // A moment after the kill, the pipes are gone with their process.
    if charged.source == "kernel log" {
        let kernel = charged.kernel.as_ref().expect("the kernel counts it");
        assert!(kernel.bytes > 30 * MIB, "{charged:#?}");
        let rss = incident.victims[0].rss.expect("this kernel reports it");
        assert!(rss.anon_bytes < 16 * MIB, "the victim held little: {rss:?}");
        if let Some(rest) = kernel.rest_bytes() {
            assert!(rest > 25 * MIB, "no part of it has the pipes: {kernel:?}");
        }
        let advice = incident.advice.as_deref().unwrap_or_default();
        assert!(advice.contains("is kernel memory"), "{incident:#?}");
        let text = podopsy(&["oom", "show", &incident.id]);
        assert!(text.contains("kernel memory: ") && text.contains("pipes"), "{text}");
    }
}

/// Makes a limited cgroup below a container's, as a container runtime in the container would.
fn nest(container: &Path, limit: u64) -> PathBuf {
    let (_, v2) = podopsy_harness::cgroup::memory_hierarchy().expect("a memory hierarchy");
    if v2 {
        // A cgroup with processes of its own can limit none below it.
        let init = container.join("init");
        fs::create_dir(&init).expect("make a cgroup");
        let procs = fs::read_to_string(container.join("cgroup.procs")).expect("its processes");
        procs.lines().for_each(|pid| fs::write(init.join("cgroup.procs"), pid).expect("move a process"));
        fs::write(container.join("cgroup.subtree_control"), "+memory").expect("limit memory below it");
    }
    let docker = container.join("docker");
    fs::create_dir(&docker).expect("make a cgroup");
    if v2 {
        fs::write(docker.join("cgroup.subtree_control"), "+memory").expect("limit memory below it");
    }
    // Named as docker names its containers.
    let inner = docker.join("b".repeat(64));
    fs::create_dir(&inner).expect("make a cgroup");
    let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
    fs::write(inner.join(file), limit.to_string()).expect("set the limit");
    inner
}

#[test]
fn a_limit_inside_of_the_container_is_not_called_the_containers() {
    let (node, image) = node();
    let mut recording = Recording::start(oom_only(), pods_of(&node));
    let idle = ContainerSpec::new("ci", &image)
        .command(["leak", "--up-to", "1KiB"])
        .memory_limit(64 * MIB as i64)
        .single_process_oom_kill();
    let pod = node.run_pod(PodSpec::new("shop", "builder").container(idle)).expect("run the pod");
    let inner = nest(&pod.memory_cgroup("ci").expect("its cgroup"), 20 * MIB);
    let join = format!("echo $$ > {}/cgroup.procs && exec {GLUTTON}", inner.display());
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &join]);
    let incident = killed(&mut recording, command);
    let container = pod.container_id("ci").expect("its id");
    let path = incident.limit.path.clone().expect("a cgroup's");
    assert!(path.ends_with(&format!("/{container}/docker/{}", "b".repeat(64))), "{path}");
    assert_eq!(
        (incident.limit.of, incident.limit.limit_bytes),
        (Level::InsideContainer, Some(20 * MIB)),
        "{incident:#?}"
    );
    let levels: Vec<Level> = incident.levels.iter().map(|level| level.of).collect();
    use Level::{Container, InsideContainer, Node, Pod, Slice};
    assert_eq!(levels, [InsideContainer, InsideContainer, Container, Pod, Slice, Slice, Node]);
    assert_eq!(incident.levels[2].limit_bytes, Some(64 * MIB));
    let event = recording.seen.iter().find(|event| event.incident.as_deref() == Some(&incident));
    let event = event.expect("just found");
    assert_eq!(event.container.as_ref().map(|one| (&*one.name, &*one.id)), Some(("ci", &*container)));
    let text = autopsy(&node, &incident);
    if incident.limit.how == Evidence::Observed {
        assert!(text.contains("a cgroup inside the container, …/bbb") && text.contains("20.0 MiB"), "{text}");
        assert!(text.contains("own limit is 64.0 MiB"), "{text}");
    }
    let _ = fs::remove_dir(&inner);
}

/// The autopsy, as a user without an agent sees it.
fn autopsy(node: &Node, incident: &OomIncident) -> String {
    let socket = node.cri_socket().to_str().expect("text");
    if incident.constraint.is_none() {
        return String::new();
    }
    podopsy(&["--cri-socket", socket, "oom", "show", &incident.id])
}

#[test]
fn a_container_that_ends_with_0_after_a_kill_of_its_child_is_silent() {
    let (node, image) = node();
    let mut recording = Recording::start(oom_only(), pods_of(&node));
    let setup = ContainerSpec::new("setup", &image)
        .command(["leak", "--fast", "--child", "--times", "1", "--wait", "500"])
        .memory_limit(24 * MIB as i64)
        .single_process_oom_kill();
    let pod = node.run_pod(PodSpec::new("shop", "init").container(setup)).expect("run the pod");
    let ended = pod.wait_exited("setup", SOON).expect("it ends by itself");
    assert_eq!(ended.exit_code, 0, "{ended:?}");
    let of_pod = |event: &&Event| event.pod.as_ref().is_some_and(|found| found.uid == pod.uid);
    let is_incident = |seen: &[Event]| seen.iter().filter(of_pod).any(|event| event.incident.is_some());
    recording.until("incident", SOON, is_incident);
    let found = recording.seen.iter().filter(of_pod).find_map(|event| event.incident.as_deref());
    let incident = found.expect("just found");
    assert!(verdict::counts_as_success(incident), "{incident:#?}");
    let [found] = incident.verdicts[..] else { panic!("{incident:#?}") };
    if ended.reason == "OOMKilled" {
        let expected = "OOMKilled, exit code 0: Kubernetes counts it as succeeded";
        assert!(verdict::explain(found, incident).starts_with(expected), "{incident:#?}");
    }
    autopsy(&node, incident);
    if incident.constraint.is_some() {
        let socket = node.cri_socket().to_str().expect("text");
        let silent = podopsy(&["--cri-socket", socket, "oom", "--silent", "--since", "10m"]);
        let listed = silent.lines().find(|line| line.contains(&incident.id) || line.contains("shop/init"));
        assert!(listed.is_some_and(|line| line.contains("(0)")), "{silent}");
    }
}
