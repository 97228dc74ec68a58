//! A lock that allows one node at a time, and a file with what the node made, so that the next run can clean up after
//! one that was killed.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use crate::process::Process;

/// The default folder. It is fixed, unlike the node's directory, because the next run has to find it.
const HOME: &str = "/run/podopsy-harness";
/// The variable that names another folder, for a node that may run beside others: a soak would hold the lock for an
/// hour.
const HOME_VARIABLE: &str = "PODOPSY_HARNESS_HOME";

/// The folder of the lock and of the state file.
fn home() -> PathBuf {
    std::env::var_os(HOME_VARIABLE).map_or_else(|| HOME.into(), PathBuf::from)
}

/// What a node has made and must remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeState {
    /// containerd's root, state, socket, configuration; everything that is mounted is mounted below.
    pub directory: PathBuf,
    /// containerd and the resolvers. Shims and containers are found by the directory and the cgroups.
    pub processes: Vec<Process>,
    /// Pods' cgroups, such as `/kubepods/burstable/pod<uid>`.
    pub cgroups: Vec<String>,
    /// Parents of pods' cgroups that existed before the node.
    pub kept: Vec<PathBuf>,
}

impl NodeState {
    /// Writes the state file. Called at each change, before the change is made where that is possible.
    pub fn save(&self) -> anyhow::Result<()> {
        let text = json!({
            "directory": self.directory,
            "processes": self.processes.iter().map(|process| process.to_json()).collect::<Vec<_>>(),
            "cgroups": self.cgroups,
            "kept": self.kept,
        });
        let path = home().join("node.json");
        let new = path.with_extension("new");
        std::fs::write(&new, text.to_string()).with_context(|| format!("write {}", new.display()))?;
        std::fs::rename(&new, &path).with_context(|| format!("write {}", path.display()))
    }

    /// Reads the state that a killed run left, if there is one.
    pub fn load() -> Option<Self> {
        let text = std::fs::read_to_string(home().join("node.json")).ok()?;
        let value: Value = serde_json::from_str(&text).ok()?;
        let strings = |key: &str| -> Vec<String> {
            let items = value[key].as_array().into_iter().flatten();
            items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
        };
        Some(Self {
            directory: PathBuf::from(value["directory"].as_str()?),
            processes: value["processes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Process::from_json)
                .collect(),
            cgroups: strings("cgroups"),
            kept: strings("kept").into_iter().map(PathBuf::from).collect(),
        })
    }

    /// Removes the state file: everything has been cleaned up.
    pub fn remove_file() {
        let _ = std::fs::remove_file(home().join("node.json"));
    }
}

/// The state of this process's node, shared by its pods, which add to it, and by the signal thread, which tears it
/// down.
#[derive(Debug, Default)]
pub struct SharedState(Mutex<NodeState>);

impl SharedState {
    pub fn new(state: NodeState) -> Self {
        Self(Mutex::new(state))
    }

    /// Changes the state and writes the file.
    pub fn change(&self, change: impl FnOnce(&mut NodeState)) -> anyhow::Result<()> {
        let mut state = self.get();
        change(&mut state);
        state.save()
    }

    /// The state. A panic elsewhere must not prevent the teardown, so a poisoned lock is taken as it is.
    pub fn get(&self) -> MutexGuard<'_, NodeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held while a node runs.
#[derive(Debug)]
pub struct NodeLock {
    _file: Flock<File>,
}

impl NodeLock {
    /// Waits until no other node runs on this machine, in this process or in another.
    pub fn take(progress: &dyn Fn(&str)) -> anyhow::Result<Self> {
        let home = home();
        std::fs::create_dir_all(&home)
            .with_context(|| format!("make {}: the harness runs as root", home.display()))?;
        let path = home.join("lock");
        let open = || OpenOptions::new().create(true).append(true).open(&path);
        let file = open().with_context(|| format!("open {}", path.display()))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Self { _file: lock }),
            Err((file, _)) => file,
        };
        progress("waiting for another podopsy node on this machine to end");
        let mut file = file;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(Self { _file: lock }),
                // A signal interrupts the wait but does not end it.
                Err((file, Errno::EINTR)) => file,
                Err((_, error)) => return Err(anyhow!("lock {}: {error}", path.display())),
            };
        }
    }
}
