//! The threads that write the state folder: without capabilities, and kept inside of the folder by Landlock.
//!
//! Landlock also keeps them from the memory and the files of other processes (`/proc/PID`). For the same reason the threads
//! that record cannot be under Landlock: they live from `/proc/PID`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};
use podopsy_doctor::capability::Capability;
use podopsy_system::state_thread;

use super::filter::{self, Kind};
use super::threads;

/// The folders that the agent writes to.
#[derive(Clone, Debug, Default)]
pub struct WrittenFolders {
    /// The state folder. None: the agent keeps no state.
    pub state: Option<PathBuf>,
    /// The folder of the API's socket, which the agent removes at its end.
    pub socket: Option<PathBuf>,
}

/// Whether Landlock keeps the threads that write files inside of their folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    Landlock,
    /// Landlock came with Linux 5.13, and may be left out or switched off.
    NotInThisKernel,
    /// It failed; the reason is among the failures.
    Failed,
}

/// The capabilities of the threads that write files, once they have started.
static HELD: OnceLock<u64> = OnceLock::new();

/// The capabilities of the threads that write files. None: there are none.
pub fn held() -> Option<u64> {
    HELD.get().copied()
}

/// Starts the thread that starts those that write files. Returns what failed.
pub fn start(folders: &WrittenFolders) -> (Confinement, Vec<String>) {
    // They have to exist before Landlock can permit to write there. Those that use them report why they cannot be created.
    for folder in [&folders.state, &folders.socket].into_iter().flatten() {
        let _ = fs::create_dir_all(folder);
    }
    let folders = folders.clone();
    let keep = match folders.state.as_deref().is_some_and(|folder| !is_own(folder)) {
        true => 1 << Capability::DacOverride as u32,
        false => 0,
    };
    match state_thread::start(move || enter(&folders, keep)) {
        Ok(entered) => {
            let _ = HELD.set(entered.held);
            (entered.confinement, entered.failed)
        }
        Err(error) => (Confinement::Failed, vec![format!("writing files in most threads: {error}")]),
    }
}

struct Entered {
    confinement: Confinement,
    held: u64,
    failed: Vec<String>,
}

/// Runs in the thread that starts the others, which inherit all of it.
fn enter(folders: &WrittenFolders, keep: u64) -> Entered {
    let mut failed = Vec::new();
    let confinement = confine(folders).unwrap_or_else(|error| {
        failed.push(format!("writing outside of the state folder: {error:#}"));
        Confinement::Failed
    });
    let before = threads::own_sets().map_or(0, |[_, permitted, _]| permitted);
    let held = keep & before;
    if let Err(error) = threads::set_own(held) {
        failed.push(format!("capabilities of the threads that write files: {error}"));
    }
    // Without the count, the filter of the other threads must be installed on all threads at once: see `threads`.
    if threads::counts_filters()
        && let Err(error) = filter::install(Kind::State)
    {
        failed.push(format!("system calls of the threads that write files: {error:#}"));
    }
    Entered { confinement, held, failed }
}

/// Puts this thread under Landlock.
fn confine(folders: &WrittenFolders) -> anyhow::Result<Confinement> {
    // Everything that changes files and that the kernel can refuse. Reading is not restricted.
    let ruleset = Ruleset::default().handle_access(AccessFs::from_write(ABI::V3))?;
    let mut ruleset = ruleset.create()?;
    let rights: [(_, BitFlags<AccessFs>); 2] = [
        (&folders.state, AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Truncate),
        (&folders.socket, AccessFs::RemoveFile.into()),
    ];
    for (folder, rights) in rights {
        let Some(folder) = folder else { continue };
        // In a folder that cannot be opened, nothing can be written.
        let Ok(open) = PathFd::new(folder) else { continue };
        ruleset = ruleset.add_rule(PathBeneath::new(open, rights))?;
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Confinement::Landlock,
        RulesetStatus::NotEnforced => Confinement::NotInThisKernel,
    })
}

/// Whether a folder and the files in it can be written without CAP_DAC_OVERRIDE, judged by their owners and modes.
fn is_own(folder: &Path) -> bool {
    let user = nix::unistd::geteuid().as_raw();
    let is_own = |found: &fs::Metadata, mode| found.uid() == user && found.mode() & mode == mode;
    folder.metadata().is_ok_and(|found| is_own(&found, 0o300))
        && fs::read_dir(folder).into_iter().flatten().flatten().all(|entry| {
            // A socket is removed, which takes the rights of the folder alone.
            entry.metadata().is_ok_and(|found| !found.is_file() || is_own(&found, 0o200))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_file_that_cannot_be_written_by_its_mode_is_foreign() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.db");
        fs::write(&file, "").unwrap();
        assert!(is_own(folder.path()));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(!is_own(folder.path()));
        assert!(!is_own(&folder.path().join("missing")));
    }
}
