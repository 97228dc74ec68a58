//! The recovery checkpoint: how far the recorder has come, so that a restart can find the kills that it missed. It is
//! one small file that is replaced atomically.

use std::fs;
use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::memory::files::machine_oom_kills;
use podopsy_system::small_file;

const FILE: &str = "state.json";

/// How far the recorder has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryCheckpoint {
    /// `/proc/sys/kernel/random/boot_id`: the counters and the log start again at each boot.
    pub boot_id: String,
    /// The sequence number of the last record of the kernel's log that was read; null: the log cannot be read.
    pub log_sequence: Option<u64>,
    /// `oom_kill` of `/proc/vmstat`.
    pub oom_kills: Option<u64>,
    pub saved_at: Timestamp,
}

impl RecoveryCheckpoint {
    /// The present counters, with the given position in the kernel's log.
    pub fn now(log_sequence: Option<u64>) -> RecoveryCheckpoint {
        RecoveryCheckpoint {
            boot_id: boot_id(),
            log_sequence,
            oom_kills: machine_oom_kills(Path::new("/proc")),
            saved_at: Timestamp::now(),
        }
    }

    /// Returns None if there is no file yet, and an error if there is a file that cannot be read or parsed.
    pub fn load(dir: &Path) -> anyhow::Result<Option<RecoveryCheckpoint>> {
        let file = dir.join(FILE);
        let read = small_file::read(dir, FILE).with_context(|| format!("read {}", file.display()))?;
        let Some(bytes) = read else { return Ok(None) };
        let state = serde_json::from_slice(&bytes);
        state.map(Some).with_context(|| {
            format!("parse {}: it is not podopsy's recovery checkpoint; remove it", file.display())
        })
    }

    /// Replaces the file.
    pub fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let written = small_file::replace(dir, FILE, &serde_json::to_vec(self)?);
        let file = dir.join(FILE);
        written.with_context(|| format!("write {} (--state-dir names another folder)", file.display()))
    }
}

/// The id of this boot; empty if /proc has none.
pub fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_checkpoint_is_loaded_and_no_temporary_file_is_left() {
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
    fn the_error_for_a_broken_file_says_to_remove_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        let error = RecoveryCheckpoint::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("remove it"), "{error}");
    }
}
