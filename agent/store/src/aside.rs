//! A file that cannot be used is put aside, never deleted at once: it may be evidence. One is kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// SQLite's files beside the file itself.
const WITH: [&str; 3] = ["", "-wal", "-shm"];
const MARK: &str = ".aside-";

/// Renames the file and its log, and deletes those that were put aside before; the new name.
pub(super) fn put(path: &Path) -> io::Result<PathBuf> {
    remove_older(path);
    let now = jiff::Timestamp::now().as_millisecond();
    let to = sibling(path, &format!("{MARK}{now}"));
    for with in WITH {
        match fs::rename(sibling(path, with), sibling(&to, with)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !with.is_empty() => {}
            result => result?,
        }
    }
    // Its log's index is of no use to whoever looks at it.
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

fn sibling(path: &Path, with: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(with);
    name.into()
}
