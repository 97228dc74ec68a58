//! Renames a store file that cannot be used, and keeps it as evidence. One such file is kept; an older one is deleted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The suffixes of SQLite's files: the database, its write-ahead log, and the log's index.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];
const MARK: &str = ".aside-";

/// Renames the file and its log, deletes the files that were quarantined before, and returns the new path.
pub(super) fn quarantine(path: &Path) -> io::Result<PathBuf> {
    remove_older(path);
    let now = jiff::Timestamp::now().as_millisecond();
    let to = sibling(path, &format!("{MARK}{now}"));
    for suffix in SUFFIXES {
        match fs::rename(sibling(path, suffix), sibling(&to, suffix)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !suffix.is_empty() => {}
            result => result?,
        }
    }
    // SQLite rebuilds the log's index when the file is opened.
    let _ = fs::remove_file(sibling(&to, "-shm"));
    Ok(to)
}

fn remove_older(path: &Path) {
    let Some((dir, name)) = path.parent().zip(path.file_name().and_then(|name| name.to_str())) else {
        return;
    };
    let older = format!("{name}{MARK}");
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&older)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
