//! Replaces a small file atomically: a reader, also after a crash, finds the old or the new content.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::state_thread;

/// Writes `bytes` to `dir`/`name`; they are on the disk when it returns. Creates the folder if it does not exist. Only the
/// owner may read the file, because it can show what happens in pods. Works in a thread that may write files.
pub fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (dir, name, bytes) = (dir.to_owned(), name.to_owned(), bytes.to_owned());
    state_thread::run(move || replace_here(&dir, &name, &bytes))?
}

fn replace_here(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::create_dir_all(dir)?;
    let draft = dir.join(format!("{name}.new"));
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    out.write_all(bytes)?;
    out.sync_data()?;
    fs::rename(&draft, dir.join(name))?;
    // The rename is stored in the folder, so sync that, too.
    fs::File::open(dir)?.sync_all()
}

/// The content of the file. None: it does not exist.
pub fn read(dir: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_content_is_read_and_no_draft_remains() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        assert_eq!(read(&deep, "x.json").unwrap(), None);
        for bytes in [&b"longer"[..], b"short"] {
            replace(&deep, "x.json", bytes).unwrap();
            assert_eq!(read(&deep, "x.json").unwrap().as_deref(), Some(bytes));
        }
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 1);
    }
}
