//! What a restart must know: how far the recorder had come. One small file, replaced atomically.

use std::fs;
use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::memory::files::machine_oom_kills;
use podopsy_system::small_file;

const FILE: &str = "state.json";

/// How far the recorder had come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryCheckpoint {
    /// `/proc/sys/kernel/random/boot_id`: counters and the log begin anew with each boot.
    pub boot_id: String,
    /// The last record of the kernel's log that was read; null: it cannot be read.
    pub log_sequence: Option<u64>,
    /// `/proc/vmstat` oom_kill.
    pub oom_kills: Option<u64>,
    pub saved_at: Timestamp,
}

impl RecoveryCheckpoint {
    /// As it is now.
    pub fn now(log_sequence: Option<u64>) -> RecoveryCheckpoint {
        RecoveryCheckpoint {
            boot_id: boot_id(),
            log_sequence,
            oom_kills: machine_oom_kills(Path::new("/proc")),
            saved_at: Timestamp::now(),
        }
    }

    /// None: there is none yet. An error: there is one that cannot be read.
    pub fn load(dir: &Path) -> anyhow::Result<Option<RecoveryCheckpoint>> {
        let file = dir.join(FILE);
        let read = small_file::read(dir, FILE).with_context(|| format!("read {}", file.display()))?;
        let Some(bytes) = read else { return Ok(None) };
        let state = serde_json::from_slice(&bytes);
        state.map(Some).with_context(|| format!("{} is no state of podopsy's: remove it", file.display()))
    }

    /// Replaces the one before.
    pub fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let written = small_file::replace(dir, FILE, &serde_json::to_vec(self)?);
        let file = dir.join(FILE);
        written.with_context(|| format!("write {} (--state-dir names another folder)", file.display()))
    }
}

/// This boot's id; empty where /proc does not say.
pub fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_nothing_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        assert_eq!(RecoveryCheckpoint::load(&deep).unwrap(), None);
        for sequence in [Some(7), None] {
            let state = RecoveryCheckpoint::now(sequence);
            state.save(&deep).unwrap();
            assert_eq!(RecoveryCheckpoint::load(&deep).unwrap(), Some(state));
        }
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 1);
    }

    #[test]
    fn a_broken_file_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        let error = RecoveryCheckpoint::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("remove it"), "{error}");
    }
}
