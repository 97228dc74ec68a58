//! The agent asks the container runtime through a runtime reader. Pods are named after the reader was killed, after the runtime
//! was started again, and the agent itself reaches no Unix socket.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podopsy_harness::{ContainerSpec, Node, PodSpec};
use podopsy_model::{Event, EventKind, KnownBy};
use support::agent::{Agent, descendants, get, until};
use support::{VICTIMS_IMAGE, node};

const MIB: i64 = 1 << 20;

/// A runtime's socket that can be stopped and started again: it passes bytes on to the node's runtime.
struct Relay {
    path: PathBuf,
    listener: Arc<UnixListener>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl Relay {
    fn start(path: &Path, runtime: &Path) -> Relay {
        let listener = Arc::new(UnixListener::bind(path).expect("listen"));
        let relay = Relay { path: path.to_owned(), listener: Arc::clone(&listener), streams: Arc::default() };
        let (streams, runtime) = (Arc::clone(&relay.streams), runtime.to_owned());
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let server = UnixStream::connect(&runtime).expect("the node's runtime");
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().expect("copy"), to.try_clone().expect("copy"));
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                streams.lock().expect("no panic").extend([client, server]);
            }
        });
        relay
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // Ends the wait for the next connection.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        for stream in self.streams.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The reader of an agent: among its helpers and supervisors, it alone waits by epoll.
fn reader(agent: &Agent) -> i32 {
    let has_epoll = |pid: &i32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|link| link.ends_with("anon_inode:[eventpoll]"))
    };
    until("runtime reader", || descendants(agent.pid().cast_signed()).into_iter().find(has_epoll))
}

/// Runs a pod until it is OOM-killed, and returns the kill's event.
fn kill_a_pod(node: &Node, agent: &Agent, name: &str) -> Event {
    let leaker = ContainerSpec::new("api", VICTIMS_IMAGE).command(["leak", "--fast"]).memory_limit(32 * MIB);
    let pod = node.run_pod(PodSpec::new("shop", name).label("app", name).container(leaker)).expect("run it");
    pod.wait_exited("api", support::agent::SOON).expect("it is killed");
    until("kill", || {
        let is_its = |event: &Event| event.pod.as_ref().is_some_and(|named| named.uid == pod.uid);
        let kills = agent.events().into_iter().filter(|event| event.kind == EventKind::OomKill);
        kills.into_iter().find(is_its)
    })
}

/// By the runtime: only it knows labels and images.
fn is_named_by_the_runtime(kill: &Event, name: &str) {
    assert_eq!(kill.known_by, KnownBy::Cri, "{kill:?}");
    let (pod, container) = (kill.pod.as_ref().expect("a pod"), kill.container.as_ref().expect("a container"));
    assert_eq!((&*pod.name, pod.labels.get("app").map(String::as_str)), (name, Some(name)));
    assert_eq!((&*container.name, &*container.image), ("api", VICTIMS_IMAGE));
}

fn lost_readers(agent: &Agent) -> Option<u64> {
    let (_, page) = get(&agent.address, "/metrics", "text/plain")?;
    let line = page.lines().find(|line| line.contains("runtime_readers_lost"))?;
    line.rsplit_once(' ')?.1.parse::<f64>().ok().map(|count| count as u64)
}

#[test]
fn pods_are_named_after_the_reader_was_killed_and_after_the_runtimes_restart() {
    let (node, _) = node();
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("cri.sock");
    let relay = Relay::start(&socket, node.cri_socket());
    let agent = Agent::start_in(folder.path(), &socket, &["--growth", "off"]);
    until("restraint", || agent.log().contains("holds from now on: ").then_some(()));
    is_named_by_the_runtime(&kill_a_pod(&node, &agent, "first"), "first");

    // Each reader is killed.
    for (round, name) in ["second", "third", "fourth"].into_iter().enumerate() {
        let pid = reader(&agent);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "Seccomp:\t2"] {
            assert!(status.contains(line), "{status}");
        }
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill it");
        is_named_by_the_runtime(&kill_a_pod(&node, &agent, name), name);
        until("count of the loss", || (lost_readers(&agent) == Some(round as u64 + 1)).then_some(()));
    }
    assert!(agent.log().contains("the runtime reader was lost (it ended)"), "{}", agent.log());

    // The runtime goes away, comes back with a new socket, and the reader finds it.
    drop(relay);
    let unnamed = kill_a_pod(&node, &agent, "without");
    assert_ne!(unnamed.known_by, KnownBy::Cri, "{unnamed:?}");
    let _relay = Relay::start(&socket, node.cri_socket());
    until("readiness", || get(&agent.address, "/readyz", "*/*")?.1.contains("\"ready\":true").then_some(()));
    is_named_by_the_runtime(&kill_a_pod(&node, &agent, "after"), "after");
    assert_eq!(lost_readers(&agent), Some(3));
    let log = agent.log();
    assert!(!log.contains("not permitted") && !log.contains("ermission denied"), "{log}");
}

#[test]
fn a_reader_that_hangs_delays_no_kill() {
    let (node, _) = node();
    let folder = tempfile::tempdir().expect("a folder");
    let agent = Agent::start_in(folder.path(), node.cri_socket(), &["--growth", "off"]);
    until("restraint", || agent.log().contains("holds from now on: ").then_some(()));
    is_named_by_the_runtime(&kill_a_pod(&node, &agent, "before"), "before");
    let pid = Pid::from_raw(reader(&agent));
    kill(pid, Signal::SIGSTOP).expect("stop it");
    let began = std::time::Instant::now();
    // The kill is reported in time; its names come from the log folder, or from the next reader.
    let kill_of = kill_a_pod(&node, &agent, "during");
    eprintln!("the kill was in the output {:?} after the pod was begun", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(30), "{kill_of:?}");
    until("replacement of the reader", || lost_readers(&agent).filter(|lost| *lost > 0));
    is_named_by_the_runtime(&kill_a_pod(&node, &agent, "later"), "later");
}

/// Runs the agent for some seconds in a root of its own, which has nothing but /proc, /sys and /dev, and where process 1 has
/// the node's root.
fn agent_in_an_empty_root(arguments: &[&str]) -> Output {
    const SCRIPT: &str = "set -e; root=$1; shift; mount -t tmpfs none \"$root\"; \
                          mkdir \"$root/proc\" \"$root/sys\" \"$root/dev\"; cp \"$1\" \"$root/agent\"; shift; \
                          for one in proc sys dev; do mount --rbind /$one \"$root/$one\"; done; \
                          timeout --preserve-status 10 chroot \"$root\" /agent \"$@\"";
    let [_, agent] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let root = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", SCRIPT, "sh"]);
    command.env("PODOPSY_PROFILE_HZ", "0");
    command.arg(root.path()).arg(agent).args(arguments).output().expect("run the agent")
}

#[test]
fn the_reader_reaches_the_runtime_by_the_root_of_process_1() {
    let (node, _) = node();
    let socket = node.cri_socket().to_str().expect("text");
    let output =
        agent_in_an_empty_root(&["--cri-socket", socket, "--growth", "off", "--socket", "/agent.sock"]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && log.contains("recording") && log.contains("containerd"), "{log}");
    assert!(!log.contains("name pods by their log folders") && !log.contains("reader was lost"), "{log}");
}
