//! SIGKILLs that the OOM killer did not send: the sender, the target, and Kubernetes' view.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support;
use podopsy_harness::{ContainerSpec, Node, PodHandle, PodSpec};
use podopsy_model::sigkill::{Sender, Sigkill, SigkillVerdict};
use podopsy_model::{Event, EventKind, KnownBy};
use podopsy_recorder::RecorderOptions;
use podopsy_recorder::sigkill::SigkillScope;
use support::{MemoryCgroup, Recording, no_runtime, node, options, pods_of};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

fn sigkills(scope: SigkillScope) -> RecorderOptions {
    RecorderOptions { oom: true, dns: None, sigkill: scope, ..options() }
}

fn everywhere() -> Recording {
    Recording::start(sigkills(SigkillScope::AllProcesses), no_runtime())
}

fn killed(events: &[Event], pid: u32) -> Option<(&Event, &Sigkill)> {
    let mut all = events.iter().filter(|event| event.process.pid == pid);
    all.find_map(|event| Some((event, event.sigkill()?)))
}

fn count(events: &[Event], pid: u32) -> usize {
    events.iter().filter(|event| event.kind == EventKind::Sigkill && event.process.pid == pid).count()
}

fn oom_incident(events: &[Event], pid: u32) -> bool {
    let incident = |event: &Event| event.incident.as_ref().map(|one| one.victims.clone()).unwrap_or_default();
    events.iter().any(|event| incident(event).iter().any(|victim| victim.task.pid == pid))
}

/// A shell of this name that does `what`, to its end.
fn shell(name: &str, what: &str) -> u32 {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("printf {name} > /proc/$$/comm; {what}")])
        .spawn()
        .expect("start a shell");
    assert!(child.wait().expect("it ends").success(), "{what}");
    child.id()
}

/// A process that the test kills; if the test fails, it is killed on drop.
struct Doomed(Child);

impl Doomed {
    fn id(&self) -> u32 {
        self.0.id()
    }

    fn reap(mut self) {
        assert!(!self.0.wait().expect("it ends").success(), "it was to be killed");
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a process and waits until it has printed `ready`.
fn ready(mut command: Command) -> Doomed {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("start it");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it speaks");
    assert_eq!(line.trim(), "ready");
    Doomed(child)
}

fn sleeper(cgroup: &MemoryCgroup) -> Doomed {
    ready(cgroup.command("/bin/sh -c 'echo ready; exec sleep 600'"))
}

/// Killed by the kernel, at its hard limit of CPU time.
fn spend_cpu_time(cgroup: &MemoryCgroup) -> u32 {
    let mut child =
        cgroup.command("/bin/sh -c 'ulimit -t 1; while :; do :; done'").spawn().expect("start it");
    let pid = child.id();
    assert!(!child.wait().expect("it ends").success(), "RLIMIT_CPU was to end it");
    pid
}

fn watching(node: &Node) -> Recording {
    Recording::start(sigkills(SigkillScope::Containers), pods_of(node))
}

#[test]
fn someones_kill_of_a_pods_first_process_is_named_and_called_no_oom() {
    let (node, image) = node();
    let mut recording = watching(&node);
    let api = ContainerSpec::new("api", &image).command(["leak", "--up-to", "1KiB"]);
    let pod = node.run_pod(PodSpec::new("shop", "orders").container(api)).expect("run the pod");
    let pid = pod.pid("api").expect("it runs") as u32;
    let sender = shell("evictor", &format!("kill -9 {pid}"));
    recording.until("SIGKILL", SOON, |seen| killed(seen, pid).is_some());

    let (event, sigkill) = killed(&recording.seen, pid).expect("just found");
    assert_eq!((event.kind, event.known_by), (EventKind::Sigkill, KnownBy::Cri));
    let named = event.pod.as_ref().expect("the pod is named");
    assert_eq!((named.namespace.as_str(), named.name.as_str()), ("shop", "orders"));
    assert_eq!(event.container.as_ref().map(|one| one.name.as_str()), Some("api"));
    assert_eq!(event.process.comm, "leak");
    let party = sigkill.sender.as_ref().expect("a process sent it");
    assert_eq!((party.process.pid, party.process.comm.as_str()), (sender, "evictor"));
    assert_eq!((sigkill.by, party.known_by, &party.pod), (Sender::HostProcess, KnownBy::Host, &None));
    assert_eq!((sigkill.first_process, sigkill.si_code, sigkill.to_process), (Some(true), Some(0), true));
    let view = sigkill.runtime.as_ref().expect("containerd answers");
    assert_eq!((view.state.as_str(), view.exit_code), ("exited", Some(137)));
    assert_eq!(sigkill.verdict, Some(SigkillVerdict::SigkillNoOom));
    assert_eq!(count(&recording.seen, pid), 1);
}

#[test]
fn a_stop_after_the_grace_period_is_the_runtimes() {
    let (node, image) = node();
    let mut recording = watching(&node);
    let api = ContainerSpec::new("api", &image).command(["leak", "--deaf", "--up-to", "1KiB"]);
    let pod = node.run_pod(PodSpec::new("shop", "deaf").container(api)).expect("run the pod");
    let pid = pod.pid("api").expect("it runs") as u32;
    pod.stop_container("api", Duration::from_secs(1)).expect("stop it");
    recording.until("SIGKILL", SOON, |seen| killed(seen, pid).is_some());
    let (event, sigkill) = killed(&recording.seen, pid).expect("just found");
    assert_eq!(event.pod.as_ref().map(|pod| pod.name.as_str()), Some("deaf"));
    assert_eq!((sigkill.by, sigkill.first_process), (Sender::Runtime, Some(true)), "{sigkill:?}");
    assert_eq!(sigkill.verdict, Some(SigkillVerdict::SigkillNoOom));
    // The end of the sandbox is not reported as a kill.
    pod.stop().expect("stop the pod");
    let (events, _) = recording.stop();
    let of_pod = events.iter().filter(|event| {
        event.kind == EventKind::Sigkill && event.pod.as_ref().is_some_and(|pod| pod.name == "deaf")
    });
    assert_eq!(of_pod.count(), 1);
}

/// A sender's owner is found by its memory cgroup: a shell that joins a container's cgroup belongs to that container.
#[test]
fn a_sender_in_a_pod_is_named_with_its_pod() {
    let (node, image) = node();
    let mut recording = watching(&node);
    let idle = |name: &str| ContainerSpec::new(name, &image).command(["leak", "--up-to", "1KiB"]);
    let orders = PodSpec::new("shop", "orders").container(idle("api")).container(idle("sidecar"));
    let orders = node.run_pod(orders).expect("run the pod");
    let intruder =
        node.run_pod(PodSpec::new("attic", "intruder").container(idle("shell"))).expect("run the pod");
    let [api, sidecar] = ["api", "sidecar"].map(|name| orders.pid(name).expect("it runs") as u32);
    let from = |pod: &PodHandle, container: &str, pid: u32| {
        let cgroup = pod.memory_cgroup(container).expect("its cgroup");
        shell("kubelet", &format!("echo $$ > {}/cgroup.procs && kill -9 {pid}", cgroup.display()));
    };
    from(&orders, "sidecar", api);
    from(&intruder, "shell", sidecar);
    recording.until("SIGKILLs", SOON, |seen| [api, sidecar].iter().all(|&pid| killed(seen, pid).is_some()));
    for (pid, by, namespace, name, container) in [
        (api, Sender::SamePod, "shop", "orders", "sidecar"),
        (sidecar, Sender::OtherPod, "attic", "intruder", "shell"),
    ] {
        let (_, sigkill) = killed(&recording.seen, pid).expect("just found");
        let party = sigkill.sender.as_ref().expect("a process sent it");
        let pod = party.pod.as_ref().expect("its pod is named");
        assert_eq!((sigkill.by, pod.namespace.as_str(), pod.name.as_str()), (by, namespace, name));
        assert_eq!(party.container.as_ref().map(|one| one.name.as_str()), Some(container));
        // A process in a pod may take this name: it is not believed.
        assert_eq!(party.process.comm, "kubelet");
    }
}

#[test]
fn a_container_that_kills_its_own_process_is_counted_and_not_reported() {
    let (node, image) = node();
    let mut recording = watching(&node);
    let own = ContainerSpec::new("own", &image).command(["exits", "--signal", "9", "--after", "500"]);
    let pod = node.run_pod(PodSpec::new("shop", "own").container(own)).expect("run the pod");
    let begin = Instant::now();
    while recording.own_kills() == 0 {
        assert!(begin.elapsed() < SOON, "the child's SIGKILL was to be counted");
        std::thread::sleep(Duration::from_millis(50));
    }
    pod.wait_exited("own", SOON).expect("it ends");
    // A later kill has been reported, so this one would have been, too.
    let api = ContainerSpec::new("api", &image).command(["leak", "--up-to", "1KiB"]);
    let later = node.run_pod(PodSpec::new("shop", "later").container(api)).expect("run the pod");
    let pid = later.pid("api").expect("it runs") as u32;
    shell("evictor", &format!("kill -9 {pid}"));
    recording.until("SIGKILL", SOON, |seen| killed(seen, pid).is_some());
    let reported = recording.seen.iter().any(|event| {
        event.kind == EventKind::Sigkill && event.pod.as_ref().is_some_and(|pod| pod.name == "own")
    });
    assert!(!reported, "{:#?}", recording.seen);
}

#[test]
fn a_process_that_kills_its_children_is_counted_to_the_last_and_not_reported() {
    let kills = support::times(40) as u64;
    let (cgroup, other) =
        (MemoryCgroup::new("signal-own", 64 * MIB), MemoryCgroup::new("signal-other", 64 * MIB));
    let mut recording = everywhere();
    let before = recording.own_kills();
    let script =
        format!("for n in $(seq {kills}); do sleep 600 & kill -9 $!; wait; done; echo ready; exec sleep 600");
    let parent = ready(cgroup.command(&format!("/bin/sh -c '{script}'")));
    let begin = Instant::now();
    while recording.own_kills() < before + kills {
        assert!(begin.elapsed() < SOON, "{} of {kills}", recording.own_kills() - before);
        std::thread::sleep(Duration::from_millis(50));
    }
    let fence = sleeper(&other);
    let pids = [parent.id(), fence.id()];
    shell("evictor", &format!("kill -9 {} {}", pids[0], pids[1]));
    recording.until("both SIGKILLs", SOON, |seen| pids.iter().all(|&pid| killed(seen, pid).is_some()));
    [parent, fence].into_iter().for_each(Doomed::reap);
    let id = cgroup.id();
    let reported =
        recording.seen.iter().filter(|event| event.kind == EventKind::Sigkill && event.cgroup.id == id);
    assert_eq!(reported.count(), 1, "only the parent's, which came from outside");
}

#[test]
fn an_oom_kill_is_never_reported_as_a_sigkill_and_the_kernels_other_kills_are() {
    let cgroup = MemoryCgroup::new("signal-oom", 16 * MIB);
    let mut recording = everywhere();
    let gluttons: Vec<u32> = (0..support::times(20))
        .map(|_| {
            let mut glutton = cgroup.command("/usr/bin/tail /dev/zero").spawn().expect("start the glutton");
            let _ = glutton.wait();
            glutton.id()
        })
        .collect();
    // A later kill by the kernel: when it has been reported, the earlier ones would have been, too.
    let spender = spend_cpu_time(&cgroup);
    recording.until("the kernel's SIGKILL", SOON, |seen| killed(seen, spender).is_some());
    recording.until("every OOM kill", SOON, |seen| gluttons.iter().all(|&pid| oom_incident(seen, pid)));
    let (_, sigkill) = killed(&recording.seen, spender).expect("just found");
    assert_eq!((sigkill.by, sigkill.si_code), (Sender::Kernel, Some(128)));
    for pid in gluttons {
        assert_eq!(count(&recording.seen, pid), 0, "an OOM kill was reported as a SIGKILL");
    }
    let (_, losses) = recording.stop();
    assert_eq!((losses.get("sigkill_ring"), losses.get("sigkill_by_kernel")), (None, None), "{losses:?}");
}

/// The kernel also kills each process that shares the victim's memory, and marks only the victim: posix_spawn's child
/// shares its parent's until it runs the program, which the opening of a FIFO without a writer holds up.
#[test]
fn a_process_that_shares_an_oom_victims_memory_is_not_reported_either() {
    let cgroup = MemoryCgroup::new("signal-shared", 64 * MIB);
    let folder = tempfile::tempdir().expect("a folder");
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
    let mut recording = everywhere();
    let hold = format!(
        "/usr/bin/python3 -c 'import os; open(\"/proc/self/oom_score_adj\", \"w\").write(\"1000\"); \
         x = bytearray(40 << 20); print(\"ready\", flush=True); \
         os.posix_spawn(\"/bin/true\", [\"true\"], {{}}, \
         file_actions=[(os.POSIX_SPAWN_OPEN, 9, \"{}\", os.O_RDONLY, 0)])'",
        fifo.display()
    );
    let parent = ready(cgroup.command(&hold));
    let pid = parent.id();
    let begin = Instant::now();
    let child = loop {
        if let Some(child) = child_of(pid) {
            break child;
        }
        assert!(begin.elapsed() < SOON, "it was to spawn a child");
        std::thread::sleep(Duration::from_millis(20));
    };
    let want = "/usr/bin/python3 -c 'x = bytearray(40 << 20)'";
    // It may be killed as well: the victim ends shortly before its memory is freed.
    cgroup.command(want).status().expect("run the trigger");
    parent.reap();
    let spender = spend_cpu_time(&cgroup);
    recording.until("OOM kill", SOON, |seen| oom_incident(seen, pid));
    recording.until("the kernel's SIGKILL", SOON, |seen| killed(seen, spender).is_some());
    assert_eq!((count(&recording.seen, pid), count(&recording.seen, child)), (0, 0), "{:#?}", recording.seen);
}

fn child_of(parent: u32) -> Option<u32> {
    let pids = std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let ppid = format!("PPid:\t{parent}");
    pids.into_iter().find(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == ppid)
    })
}

#[test]
fn many_threads_are_one_process_and_one_event() {
    let cgroup = MemoryCgroup::new("signal-threads", 64 * MIB);
    let mut recording = everywhere();
    let threads = "/usr/bin/python3 -c 'import threading, time\n\
                   [threading.Thread(target=time.sleep, args=(600,), daemon=True).start() for _ in range(6)]\n\
                   print(\"ready\", flush=True); time.sleep(600)'";
    let child = ready(cgroup.command(threads));
    let pid = child.id();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let tids: Vec<String> =
        tasks.filter_map(|task| Some(task.ok()?.file_name().to_string_lossy().into_owned())).collect();
    assert_eq!(tids.len(), 7);
    // Once it is dying, there may be no thread left to signal.
    shell("evictor", &format!("for n in 1 2 3; do kill -9 {} 2>/dev/null; done; true", tids.join(" ")));
    child.reap();
    let fence = sleeper(&cgroup);
    let last = fence.id();
    shell("evictor", &format!("kill -9 {last}"));
    fence.reap();
    recording.until("SIGKILLs", SOON, |seen| killed(seen, pid).is_some() && killed(seen, last).is_some());
    assert_eq!(count(&recording.seen, pid), 1);
    let other = tids.iter().filter_map(|tid| tid.parse().ok()).filter(|&tid: &u32| tid != pid);
    assert!(other.into_iter().all(|tid| count(&recording.seen, tid) == 0), "a thread is no process");
}

#[test]
fn a_cgroup_that_is_killed_whole_names_the_sender() {
    let cgroup = MemoryCgroup::new("signal-cgroup-kill", 64 * MIB);
    let mut recording = everywhere();
    let sleepers: Vec<Doomed> = (0..3).map(|_| sleeper(&cgroup)).collect();
    let pids: Vec<u32> = sleepers.iter().map(Doomed::id).collect();
    let sender = shell("evictor", &format!("echo 1 > {}/cgroup.kill", cgroup.path.display()));
    sleepers.into_iter().for_each(Doomed::reap);
    recording.until("SIGKILLs", SOON, |seen| pids.iter().all(|&pid| killed(seen, pid).is_some()));
    for pid in pids {
        let (_, sigkill) = killed(&recording.seen, pid).expect("just found");
        let party = sigkill.sender.as_ref().expect("a process wrote to cgroup.kill");
        assert_eq!((party.process.pid, party.process.comm.as_str()), (sender, "evictor"));
        assert_eq!((sigkill.by, count(&recording.seen, pid)), (Sender::HostProcess, 1));
    }
}
