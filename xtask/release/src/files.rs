//! Archives and checksums whose bytes depend on their content alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};

/// A file of an archive: its content, and whether it is a program.
#[derive(Clone, Debug)]
pub struct Entry {
    pub bytes: Vec<u8>,
    pub is_program: bool,
}

/// Paths in an archive, and what is there.
pub type Entries = BTreeMap<String, Entry>;

/// Adds a file of this machine.
pub fn add_file(entries: &mut Entries, path: impl Into<String>, file: &Path, is_program: bool) -> Result<()> {
    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
    entries.insert(path.into(), Entry { bytes, is_program });
    Ok(())
}

/// Adds the files below a folder of this machine.
pub fn add_folder(entries: &mut Entries, prefix: &str, folder: &Path) -> Result<()> {
    for file in files_below(folder)? {
        let path = file.strip_prefix(folder).context("a file of the folder")?;
        add_file(entries, format!("{prefix}/{}", path.display()), &file, false)?;
    }
    Ok(())
}

/// The files below a folder, sorted.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Writes a `.tar.gz`: files of root, in order, with the time of the release.
pub fn write_tar(file: &Path, entries: &Entries, seconds: u64) -> Result<()> {
    let mut tar = tar::Builder::new(GzBuilder::new().mtime(0).write(Vec::new(), Compression::best()));
    for (path, entry) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(entry.bytes.len() as u64);
        header.set_mode(if entry.is_program { 0o755 } else { 0o644 });
        header.set_mtime(seconds);
        tar.append_data(&mut header, path, &entry.bytes[..]).with_context(|| format!("add {path}"))?;
    }
    let bytes = tar.into_inner()?.finish()?;
    fs::write(file, bytes).with_context(|| format!("write {}", file.display()))
}

/// Writes `SHA256SUMS` for every file below a folder, as `sha256sum --check` reads it.
pub fn write_checksums(folder: &Path) -> Result<()> {
    let target = folder.join("SHA256SUMS");
    let mut lines = Vec::new();
    for file in files_below(folder)?.into_iter().filter(|file| *file != target) {
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(lines, "{digest}  {}", file.strip_prefix(folder)?.display())?;
    }
    fs::write(&target, lines).with_context(|| format!("write {}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_archive() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/b"), "two").unwrap();
        fs::write(folder.path().join("a"), "one").unwrap();
        let out = tempfile::tempdir().unwrap();
        let archive = |name: &str| {
            let mut entries = Entries::new();
            add_folder(&mut entries, "top", folder.path()).unwrap();
            write_tar(&out.path().join(name), &entries, 1_000_000_000).unwrap();
            assert_eq!(entries.keys().collect::<Vec<_>>(), ["top/a", "top/sub/b"]);
            fs::read(out.path().join(name)).unwrap()
        };
        assert!(archive("one.tar.gz") == archive("two.tar.gz"));
        write_checksums(out.path()).unwrap();
        let check = std::process::Command::new("sha256sum")
            .args(["--check", "--strict", "SHA256SUMS"])
            .current_dir(out.path())
            .output()
            .unwrap();
        assert!(check.status.success(), "{check:?}");
        assert_eq!(String::from_utf8_lossy(&check.stdout).lines().count(), 2);
    }
}
