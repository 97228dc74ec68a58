//! One node at a time, and what it made, on disk: a lock, and a state file that lets the next run clean up
//! after one that was killed.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use crate::process::Process;

/// Fixed, unlike the node's own directory: the next run has to find it.
const HOME: &str = "/run/podopsy-harness";
/// Another one, for a node that may be up beside others: a soak's, which would hold the lock for an hour.
const ELSEWHERE: &str = "PODOPSY_HARNESS_HOME";

/// Where the lock and the state file are.
fn home() -> PathBuf {
    std::env::var_os(ELSEWHERE).map_or_else(|| HOME.into(), PathBuf::from)
}

/// What a node made and has to unmake.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// containerd's root, state, socket, configuration; everything that is mounted is mounted below.
    pub directory: PathBuf,
    /// containerd and the resolvers. Shims and containers are found by the directory and the cgroups.
    pub processes: Vec<Process>,
    /// Pods' cgroups, such as `/kubepods/burstable/pod<uid>`.
    pub cgroups: Vec<String>,
    /// Parents of pods' cgroups that were there before.
    pub kept: Vec<PathBuf>,
}

impl State {
    /// Written with every change, before the change is made where that is possible.
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

    /// What an earlier run left, if it left anything.
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

    /// Nothing is left to clean.
    pub fn forget() {
        let _ = std::fs::remove_file(home().join("node.json"));
    }
}

/// The state of the node that is up in this process, shared by everything that adds to it and by the signal
/// handler's thread, which tears it down.
#[derive(Debug, Default)]
pub struct Shared(Mutex<State>);

impl Shared {
    pub fn new(state: State) -> Self {
        Self(Mutex::new(state))
    }

    /// Changes the state and writes it down.
    pub fn change(&self, change: impl FnOnce(&mut State)) -> anyhow::Result<()> {
        let mut state = self.get();
        change(&mut state);
        state.save()
    }

    /// The state; a panic elsewhere must not keep it from being torn down.
    pub fn get(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held while a node is up.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Waits for other nodes of this machine, in this process and in others.
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
        progress("another podopsy node is up on this machine: waiting for it to end");
        let mut file = file;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(Self { _file: lock }),
                // A signal to this thread is no reason to stop waiting.
                Err((file, Errno::EINTR)) => file,
                Err((_, error)) => return Err(anyhow!("lock {}: {error}", path.display())),
            };
        }
    }
}
