//! What a cluster consists of, in a file that is written before each step, so that `down` works after a `kill -9`.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use super::layout::{HOST_FOLDERS, Layout};
use super::process::Process;
use crate::sh;

const FILE: &str = "state.json";

/// The cluster's processes in the order of starting, and what it made on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    file: PathBuf,
    logs: PathBuf,
    pub processes: Vec<(String, Process)>,
    /// Those of [`HOST_FOLDERS`], and their parents, that did not exist.
    pub made: Vec<PathBuf>,
    /// Whether the node was Ready once.
    is_finished: bool,
}

impl State {
    pub fn new(layout: &Layout) -> State {
        State {
            file: layout.run.join(FILE),
            logs: layout.logs(),
            processes: Vec::new(),
            made: Vec::new(),
            is_finished: false,
        }
    }

    /// The state of the cluster that runs, or of one that was not taken down.
    pub fn load(layout: &Layout) -> Option<State> {
        let text = fs::read_to_string(layout.run.join(FILE)).ok()?;
        State::from_json(layout, &serde_json::from_str(&text).ok()?)
    }

    fn from_json(layout: &Layout, value: &Value) -> Option<State> {
        let process = |one: &Value| {
            let pid = i32::try_from(one["pid"].as_i64()?).ok()?;
            Some((one["name"].as_str()?.to_owned(), Process { pid, start: one["start"].as_u64()? }))
        };
        let made = value["made"].as_array()?.iter().filter_map(|path| Some(PathBuf::from(path.as_str()?)));
        Some(State {
            processes: value["processes"].as_array()?.iter().filter_map(process).collect(),
            made: made.collect(),
            is_finished: value["finished"].as_bool()?,
            ..State::new(layout)
        })
    }

    fn save(&self) -> Result<()> {
        let process =
            |(name, one): &(String, Process)| json!({"name": name, "pid": one.pid, "start": one.start});
        let text = json!({
            "processes": self.processes.iter().map(process).collect::<Vec<_>>(),
            "made": self.made,
            "finished": self.is_finished,
        });
        let new = self.file.with_extension("new");
        fs::write(&new, text.to_string())
            .and_then(|()| fs::rename(&new, &self.file))
            .with_context(|| format!("write {}", self.file.display()))
    }

    pub fn add(&mut self, name: &str, process: Process) -> Result<()> {
        self.processes.push((name.to_owned(), process));
        self.save()
    }

    /// The node is Ready.
    pub fn finish(&mut self) -> Result<()> {
        self.is_finished = true;
        self.save()
    }

    /// The process that holds the namespaces.
    pub fn holder(&self) -> Result<Process> {
        let (_, process) = self.processes.first().context("no process holds the cluster's namespaces")?;
        Ok(*process)
    }

    /// Whether the node became Ready and every process still runs.
    pub fn is_whole(&self) -> bool {
        self.is_finished && self.first_ended().is_none()
    }

    pub fn first_ended(&self) -> Option<&str> {
        self.processes.iter().find(|(_, process)| !process.is_alive()).map(|(name, _)| name.as_str())
    }

    /// The last lines of a component's log.
    pub fn log_tail(&self, name: &str) -> String {
        let text = fs::read_to_string(self.logs.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Makes the mount points of [`HOST_FOLDERS`] that the host lacks; `down` removes them.
    pub fn make_mount_points(&mut self) -> Result<()> {
        let missing = HOST_FOLDERS.iter().flat_map(|folder| Path::new(folder).ancestors());
        self.made = missing.filter(|path| !path.exists()).map(Path::to_owned).collect();
        self.save()?;
        for folder in HOST_FOLDERS {
            fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
        }
        Ok(())
    }
}

/// Held while a cluster is started, tested or taken down.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Waits until no other xtask changes the cluster.
    pub fn take(layout: &Layout) -> Result<Lock> {
        // Beside the folder, which `down` removes.
        let path = layout.run.with_extension("lock");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Lock { _file: lock }),
            Err((file, _)) => file,
        };
        sh::progress("waiting for another `cargo xtask cluster` on this machine to end");
        let lock = Flock::lock(file, FlockArg::LockExclusive);
        Ok(Lock { _file: lock.map_err(|(_, error)| anyhow!("lock {}: {error}", path.display()))? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_read_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let layout =
            Layout { cache: folder.path().into(), node: folder.path().into(), run: folder.path().into() };
        assert_eq!(State::load(&layout), None);
        let mut state = State::new(&layout);
        state.made = vec![PathBuf::from("/var/lib/kubelet")];
        let own = Process::now(std::process::id() as i32).unwrap();
        state.add("namespaces", own).unwrap();
        assert_eq!(State::load(&layout), Some(state.clone()));
        assert!(!state.is_whole(), "the node was not Ready yet");
        state.finish().unwrap();
        assert!(State::load(&layout).unwrap().is_whole());
        state.add("kubelet", Process { start: own.start - 1, ..own }).unwrap();
        assert_eq!(State::load(&layout).unwrap().first_ended(), Some("kubelet"));
    }
}
