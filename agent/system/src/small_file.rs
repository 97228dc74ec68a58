//! A small file that is replaced whole: a reader, or a crash, finds the old one or the new one.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Writes `bytes` as `dir`/`name`, on the disk when it returns; makes the folder, if there is none. What happens in pods is
/// not every local user's business: the file is its owner's.
pub fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::create_dir_all(dir)?;
    let draft = dir.join(format!("{name}.new"));
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    out.write_all(bytes)?;
    out.sync_data()?;
    fs::rename(&draft, dir.join(name))?;
    // The new name is the folder's.
    fs::File::open(dir)?.sync_all()
}

/// None: there is none.
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
    fn what_was_written_last_is_read_and_nothing_is_left_over() {
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
