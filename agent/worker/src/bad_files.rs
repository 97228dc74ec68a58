//! Files that a worker was lost on. They are not given to a worker again, also after a restart of the agent.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use podopsy_helper::{FileHandle, FileStat};
use podopsy_system::small_file;
use serde::{Deserialize, Serialize};

use crate::job::JobKind;
use crate::parser::FailureReason;

/// Files that are remembered; beyond it, the oldest is forgotten.
const MAX_FILES: usize = 2048;
/// Then a file is tried again: the node may have been too busy.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Bytes of the list on the disk.
const MAX_LIST: u64 = 1 << 20;
const LIST: &str = "unreadable-files.json";

/// Identifies a file with its content: the kernel sets the change time whenever content or size change, and a container
/// cannot choose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileIdentity {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Seconds and nanoseconds of the change time (ctime).
    pub changed: (i64, i64),
}

impl FileIdentity {
    /// The identity of a file that was opened.
    pub fn of(file: &FileHandle) -> FileIdentity {
        let FileStat { device, inode, size, changed, .. } = file.stat;
        FileIdentity { device, inode, size, changed }
    }
}

/// An entry of the list.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct BadFile {
    file: FileIdentity,
    kind: JobKind,
    reason: FailureReason,
    /// Seconds since 1970.
    since: u64,
}

#[derive(Debug, Default)]
pub(crate) struct BadFiles {
    bad: HashMap<(FileIdentity, JobKind), BadFile>,
    /// Where the list is kept.
    folder: Option<PathBuf>,
}

impl BadFiles {
    /// Reads the list in a folder. A list that cannot be read is an empty one.
    pub fn load(folder: Option<&Path>) -> BadFiles {
        let list = folder.map(|folder| folder.join(LIST));
        let read = |path: &PathBuf| -> Option<Vec<BadFile>> {
            (fs::metadata(path).ok()?.len() <= MAX_LIST).then_some(())?;
            serde_json::from_slice(&fs::read(path).ok()?).ok()
        };
        let now = now();
        let known = list.as_ref().and_then(read).unwrap_or_default().into_iter().take(MAX_FILES);
        let fresh = known.filter(|entry| entry.since <= now && now - entry.since < FORGET_AFTER.as_secs());
        BadFiles {
            bad: fresh.map(|entry| ((entry.file, entry.kind), entry)).collect(),
            folder: folder.map(Path::to_owned),
        }
    }

    /// Why a file is not given to a worker for a kind of job.
    pub fn reason(&self, file: FileIdentity, kind: JobKind) -> Option<FailureReason> {
        let entry = self.bad.get(&(file, kind))?;
        (now().saturating_sub(entry.since) < FORGET_AFTER.as_secs()).then_some(entry.reason)
    }

    /// Remembers a file. An error means that the list on the disk could not be written.
    pub fn add(&mut self, file: FileIdentity, kind: JobKind, reason: FailureReason) -> io::Result<()> {
        if self.bad.len() >= MAX_FILES {
            let oldest = self.bad.iter().min_by_key(|(_, entry)| entry.since).map(|(key, _)| *key);
            oldest.map(|key| self.bad.remove(&key));
        }
        self.bad.insert((file, kind), BadFile { file, kind, reason, since: now() });
        let Some(folder) = &self.folder else { return Ok(()) };
        small_file::replace(folder, LIST, &serde_json::to_vec(&self.bad.values().collect::<Vec<_>>())?)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_bad_file_stays_bad_over_a_restart_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile().unwrap();
        let identity_of =
            |file: &File| FileIdentity::of(&FileHandle::from_file(file.try_clone().unwrap()).unwrap());
        let identity = identity_of(&file);
        let mut bad = BadFiles::load(Some(folder.path()));
        assert_eq!(bad.reason(identity, JobKind::Unwind), None);
        bad.add(identity, JobKind::Unwind, FailureReason::TooSlow).unwrap();
        let again = BadFiles::load(Some(folder.path()));
        assert_eq!(again.reason(identity, JobKind::Unwind), Some(FailureReason::TooSlow));
        assert_eq!(again.reason(identity, JobKind::Symbols), None);
        file.set_len(7).unwrap();
        assert_eq!(again.reason(identity_of(&file), JobKind::Unwind), None);
    }

    #[test]
    fn a_damaged_list_is_an_empty_one_and_the_number_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LIST), "[{\"file\":").unwrap();
        let mut bad = BadFiles::load(Some(folder.path()));
        bad.folder = None;
        for inode in 0..MAX_FILES as u64 + 10 {
            let file = FileIdentity { device: 1, inode, size: 0, changed: (0, 0) };
            bad.add(file, JobKind::Describe, FailureReason::Died).unwrap();
        }
        assert_eq!(bad.bad.len(), MAX_FILES);
    }
}
