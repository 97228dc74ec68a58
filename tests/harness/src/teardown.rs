//! The teardown of a node. It needs only the node's state and not containerd's help, so that it works on drop, at a
//! signal, and for what a killed run left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::cgroup;
use crate::process::with_argument;
use crate::state::{NodeLock, NodeState, SharedState};

/// The prefix of a node's directory. Others are not removed, even if a broken state file names them.
pub const PREFIX: &str = "podopsy-node-";

/// This process's node, for the signal thread.
static ACTIVE: Mutex<Option<Arc<SharedState>>> = Mutex::new(None);

/// Removes what a killed run left, once no node runs; `Node::up` does this itself.
pub fn sweep() -> anyhow::Result<()> {
    let _lock = NodeLock::take(&|line| eprintln!("{line}"))?;
    sweep_locked(&|line| eprintln!("{line}"));
    Ok(())
}

/// [`sweep`] for the holder of the lock.
pub fn sweep_locked(progress: &dyn Fn(&str)) {
    if let Some(stale) = NodeState::load() {
        progress(&format!("removing what an earlier run left in {}", stale.directory.display()));
        for problem in tear_down(&stale) {
            progress(&format!("left behind: {problem}"));
        }
    }
}

/// Ends and removes everything that the state names; returns what could not be removed.
pub fn tear_down(state: &NodeState) -> Vec<String> {
    let mut problems = Vec::new();
    let directory = &state.directory;
    let ours = directory.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if !ours {
        return vec![format!("{}: not a node's directory, left alone", directory.display())];
    }

    // containerd first, so that it does not clean up in parallel; then the shims, so that none reports an end; then the
    // containers' processes, which are in our cgroups.
    let mut processes = state.processes.clone();
    for process in &processes {
        process.kill();
    }
    let shims = with_argument(&directory.join("containerd.sock").to_string_lossy());
    for shim in &shims {
        shim.kill();
    }
    processes.extend(shims);
    for cgroup in &state.cgroups {
        cgroup::kill(cgroup);
    }
    for process in processes {
        if !process.ends_within(Duration::from_secs(5)) {
            problems.push(format!("process {} still runs", process.pid));
        }
    }
    for cgroup in &state.cgroups {
        problems.extend(cgroup::remove(cgroup).iter().map(|path| format!("cgroup {}", path.display())));
    }
    cgroup::remove_parents(&state.kept);

    remove_strays(directory);
    for mount in mounts_below(directory) {
        // Detached, because an ending process may still hold it.
        if let Err(error) = umount2(&mount, MntFlags::MNT_DETACH) {
            problems.push(format!("mount {}: {error}", mount.display()));
        }
    }
    if mounts_below(directory).is_empty() {
        if let Err(error) = std::fs::remove_dir_all(directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            problems.push(format!("{}: {error}", directory.display()));
        }
    } else {
        problems.push(format!("{} still has mounts, not removed", directory.display()));
    }
    if problems.is_empty() {
        NodeState::remove_file();
    }
    problems
}

/// Mount points below a directory, deepest first.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    // Later mounts may cover earlier ones: unmount from the last to the first.
    let mut found: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    found.reverse();
    found
}

/// Removes what containerd and libcni keep in fixed folders whatever their configuration: shims' sockets and cached
/// results.
fn remove_strays(directory: &Path) {
    let tasks = directory.join("state/io.containerd.runtime.v2.task/k8s.io");
    let sandboxes = directory.join("root/io.containerd.grpc.v1.cri/sandboxes");
    let names = |folder: &Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    for task in names(&tasks) {
        let address = std::fs::read_to_string(tasks.join(&task).join("address")).unwrap_or_default();
        if let Some(socket) = address.trim().strip_prefix("unix://")
            && socket.starts_with("/run/containerd/s/")
        {
            let _ = std::fs::remove_file(socket);
        }
    }
    // A sandbox's id is 64 hex digits: a file whose name contains one is this node's.
    let mut ids = names(&sandboxes);
    ids.extend(names(&tasks));
    ids.retain(|id| id.len() == 64);
    let results = Path::new("/var/lib/cni/results");
    for name in names(results) {
        if ids.iter().any(|id| name.contains(id.as_str())) {
            let _ = std::fs::remove_file(results.join(name));
        }
    }
    // These fail, as they must, if the folder is not empty.
    for folder in ["/var/lib/cni/results", "/var/lib/cni", "/run/containerd/s", "/run/containerd"] {
        let _ = std::fs::remove_dir(folder);
    }
}

/// From now on, SIGINT and SIGTERM tear this node down before they end the process.
pub fn guard(shared: &Arc<SharedState>) {
    *ACTIVE.lock().unwrap_or_else(PoisonError::into_inner) = Some(shared.clone());
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The thread never ends: tokio's signal handler stays installed after the node has ended.
        let spawned = std::thread::Builder::new().name("harness-signals".into()).spawn(wait_for_signal);
        if let Err(error) = spawned {
            eprintln!("no thread for signals, Ctrl-C will leave a node behind: {error}");
        }
    });
}

/// The node has ended: a signal needs no teardown any more.
pub fn unguard() {
    *ACTIVE.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn wait_for_signal() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let signal = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return Signal::SIGTERM;
        };
        tokio::select! {
            _ = interrupt.recv() => Signal::SIGINT,
            _ = terminate.recv() => Signal::SIGTERM,
        }
    });
    // Held until the process ends, so that a panic meanwhile does not start a second teardown.
    let active = ACTIVE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shared) = active.as_ref() {
        eprintln!("{}: tearing the node down", signal.as_str());
        for problem in tear_down(&shared.get()) {
            eprintln!("left behind: {problem}");
        }
    }
    std::process::exit(128 + signal as i32);
}
