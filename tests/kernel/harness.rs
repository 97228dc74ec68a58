//! The harness itself: its pods are real, CRI reports their ends, and nothing of them is left.
//!
//! Needs root and containerd; fails with the command that installs what is missing.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podopsy_harness::process::{Process, with_argument};
use podopsy_harness::teardown::mounts_below;
use podopsy_harness::{ContainerSpec, ContainerState, Node, PodSpec, cgroup};

const IMAGE: &str = "registry.podopsy.test/finance/checkout-api:1.4.2";
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the process runs. An orphan that has ended but is not yet reaped by the machine's PID 1 does not.
fn is_running(pid: i32) -> bool {
    Process::now(pid).is_some_and(Process::is_alive)
}

#[test]
fn a_running_pod_has_the_requested_identity_in_cri() -> anyhow::Result<()> {
    let node = Node::up()?;
    let image = node.victims_image(IMAGE)?;
    let pod = node.run_pod(
        PodSpec::new("finance", "checkout-api")
            .label("app", "checkout-api")
            .container(ContainerSpec::new("app", &image).command(["pause"]).cpu_limit(500)),
    )?;
    let status = pod.status("app")?;
    assert_eq!(status.state, ContainerState::Running);
    assert_eq!(status.labels["io.kubernetes.pod.name"], "checkout-api");
    assert_eq!(status.labels["io.kubernetes.pod.namespace"], "finance");
    assert_eq!(status.labels["io.kubernetes.pod.uid"], pod.uid);
    assert_eq!(status.labels["io.kubernetes.container.name"], "app");
    assert_eq!(status.annotations["io.kubernetes.container.restartCount"], "0");
    assert_eq!(status.image, IMAGE);

    let pid = pod.pid("app")?;
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = format!("/kubepods/burstable/pod{}/{}", pod.uid, status.id);
    assert!(cgroups.lines().any(|line| line.ends_with(&path)), "{path} is not in\n{cgroups}");
    assert!(pod.memory_cgroup("app")?.is_dir());

    // An ephemeral container sees the processes of its target.
    pod.add_container(ContainerSpec::new("debugger", &image).command(["pause"]).target("app"))?;
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
    assert_eq!(namespace(pod.pid("debugger")?)?, namespace(pid)?);
    Ok(())
}

#[test]
fn a_privileged_host_pod_has_the_namespaces_of_a_daemonsets_pod() -> anyhow::Result<()> {
    let node = Node::up()?;
    let image = node.victims_image(IMAGE)?;
    let agent = ContainerSpec::new("agent", &image)
        .command(["burner", "--busy", "1"])
        .privileged()
        .mount_read_only(node.directory(), "/host/node")
        .mount("/sys", "/host/sys");
    let pod = node.run_pod(PodSpec::new("podopsy", "agent").host_network().host_pid().container(agent))?;
    let pid = pod.pid("agent")?;
    let namespace = |pid: i32, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    let own = std::process::id() as i32;
    assert_eq!(namespace(pid, "pid")?, namespace(own, "pid")?);
    assert_eq!(namespace(pid, "net")?, namespace(node.containerd_pid(), "net")?);
    assert_ne!(namespace(pid, "net")?, namespace(own, "net")?);
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    assert!(root.join("host/node/config.toml").exists());
    assert!(root.join("host/sys/fs/cgroup").exists());
    assert_eq!(pod.ip, "");
    Ok(())
}

#[test]
fn a_leak_ends_as_oom_killed_and_a_restart_is_the_next_attempt() -> anyhow::Result<()> {
    let node = Node::up()?;
    let image = node.victims_image(IMAGE)?;
    let leak = ["leak", "--step", "1MiB", "--every", "5ms"];
    let pod = node.run_pod(
        PodSpec::new("finance", "ledger")
            .container(ContainerSpec::new("app", &image).command(leak).memory_limit(32 << 20)),
    )?;
    let dead = pod.wait_exited("app", PATIENCE)?;
    assert_eq!((dead.reason.as_str(), dead.exit_code), ("OOMKilled", 137), "{dead:?}");

    let again = pod.restart("app")?;
    assert_eq!(again.attempt, 1);
    assert_eq!(again.annotations["io.kubernetes.container.restartCount"], "1");
    assert_eq!(pod.previous_status("app")?.id, dead.id);

    let _keeper = node.keep_running(&pod);
    pod.wait("app", PATIENCE, |status| status.attempt >= 2)?;
    Ok(())
}

#[test]
fn a_child_is_killed_while_its_container_keeps_running() -> anyhow::Result<()> {
    let node = Node::up()?;
    let image = node.victims_image(IMAGE)?;
    let spec =
        ContainerSpec::new("app", &image).command(["leak", "--child", "--fast"]).memory_limit(32 << 20);
    let pod =
        node.run_pod(PodSpec::new("finance", "worker").container(spec.clone().single_process_oom_kill()))?;
    let start = std::time::Instant::now();
    while !pod.log("app")?.contains("ended by signal 9") {
        assert!(start.elapsed() < PATIENCE, "no kill in the log:\n{}", pod.log("app")?);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(pod.status("app")?.state, ContainerState::Running);

    // On v2 the kubelet's default, memory.oom.group, ends the whole container.
    if cgroup::memory_hierarchy()?.1 {
        let pod = node.run_pod(PodSpec::new("finance", "group").container(spec))?;
        assert_eq!(pod.wait_exited("app", PATIENCE)?.exit_code, 137);
    }
    Ok(())
}

#[test]
fn a_pods_lookups_reach_the_resolver_and_get_the_answer_of_its_mode() -> anyhow::Result<()> {
    let node = Node::up()?;
    let resolver = node.resolver("answer")?;
    let image = node.victims_image(IMAGE)?;
    let pod = node.run_pod(
        PodSpec::new("finance", "checkout-api")
            .container(ContainerSpec::new("app", &image).command(["pause"])),
    )?;
    let look_up = |name: &str| pod.exec("app", ["lookup", "--times", "1", name]);

    let (code, out, err) = look_up("payments.finance.svc.cluster.local")?;
    assert_eq!(code, 0, "{out}{err}{:?}", resolver.queries());
    assert!(out.contains("10.96."), "{out}");
    let asked = format!("udp {}:", pod.ip);
    let queries = resolver.queries();
    // ndots:5 makes the search domains come first.
    let searched = "payments.finance.svc.cluster.local.finance.svc.cluster.local";
    assert!(queries.iter().any(|line| line.starts_with(&asked) && line.contains(searched)), "{queries:?}");

    let (code, out, _) = look_up("truncated.podopsy.test")?;
    assert_eq!(code, 0, "{out}");
    assert!(resolver.queries().iter().any(|line| line.starts_with("tcp ")), "no retry over TCP");

    for mode in ["nxdomain", "servfail", "refused", "nodata", "malformed-loop"] {
        resolver.set_mode(mode)?;
        let (code, out, _) = look_up("payments.finance.svc.cluster.local")?;
        assert_eq!(code, 1, "{mode}: {out}");
    }
    resolver.set_mode("answer")?;
    assert_eq!(look_up("payments.finance.svc.cluster.local")?.0, 0);
    Ok(())
}

#[test]
fn nothing_is_left_of_a_node() -> anyhow::Result<()> {
    let interfaces = || std::fs::read_to_string("/proc/net/dev").map(|text| text.lines().count());
    let interfaces_before = interfaces()?;
    let node = Node::up()?;
    let resolver = node.resolver("answer")?;
    let image = node.victims_image(IMAGE)?;
    let pod = node.run_pod(
        PodSpec::new("finance", "burner").container(ContainerSpec::new("app", &image).command(["burner"])),
    )?;
    assert_eq!(interfaces()?, interfaces_before, "the pods' network shows in the machine's");
    let directory = node.directory().to_owned();
    let socket = node.cri_socket().to_string_lossy().into_owned();
    let pids = [pod.pid("app")?, resolver.pid(), node.containerd_pid()];
    assert!(!with_argument(&socket).is_empty(), "a shim serves this socket");
    let cgroup = pod.cgroup.clone();
    assert!(!mounts_below(&directory).is_empty());

    drop(resolver);
    drop(node);
    for pid in pids {
        assert!(!is_running(pid), "process {pid} still runs after its node");
    }
    assert!(with_argument(&socket).is_empty(), "a shim still runs after its node");
    assert_eq!(cgroup::below(&cgroup), Vec::<PathBuf>::new());
    assert_eq!(mounts_below(&directory), Vec::<PathBuf>::new());
    assert!(!directory.exists());
    Ok(())
}

/// Not a test: the two below run it in a child process and kill it.
#[test]
#[ignore = "run by the tests that kill it"]
fn a_node_that_waits_to_be_killed() -> anyhow::Result<()> {
    let node = Node::up()?;
    let image = node.victims_image(IMAGE)?;
    let _resolver = node.resolver("answer")?;
    let spec = PodSpec::new("finance", "orphan");
    let pod = node.run_pod(spec.container(ContainerSpec::new("app", &image).command(["pause"])))?;
    println!("ready {} {} {}", node.directory().display(), pod.cgroup, pod.pid("app")?);
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

/// Brings a node up in a child, ends that with a signal, and returns its directory, pod cgroup and pod's pid.
fn killed_by(signal: Signal) -> anyhow::Result<(PathBuf, String, i32)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", full_name!("a_node_that_waits_to_be_killed"), "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines().map_while(Result::ok);
    // The test runner may write to the same line before it.
    let ready = lines.find_map(|line| line.split_once("ready ").map(|(_, rest)| rest.to_owned()));
    let ready = ready.context("the child's node did not come up")?;
    kill(Pid::from_raw(child.id() as i32), signal)?;
    child.wait()?;
    let mut fields = ready.split(' ').map(str::to_owned);
    let mut next = || fields.next().context("expected three fields");
    Ok((PathBuf::from(next()?), next()?, next()?.parse()?))
}

#[test]
fn sigterm_tears_the_node_down() -> anyhow::Result<()> {
    let (directory, cgroup, pid) = killed_by(Signal::SIGTERM)?;
    assert!(!directory.exists());
    assert_eq!(cgroup::below(&cgroup), Vec::<PathBuf>::new());
    assert!(!is_running(pid), "the pod still runs after its node");
    Ok(())
}

#[test]
fn the_remains_of_kill_9_are_swept() -> anyhow::Result<()> {
    let (directory, cgroup, pid) = killed_by(Signal::SIGKILL)?;
    // Another test's `Node::up` may have swept already, which has the same result.
    podopsy_harness::sweep()?;
    assert_eq!(mounts_below(&directory), Vec::<PathBuf>::new());
    assert!(!directory.exists());
    assert_eq!(cgroup::below(&cgroup), Vec::<PathBuf>::new());
    assert!(!is_running(pid), "the pod still runs after its node");
    Ok(())
}
