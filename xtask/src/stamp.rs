//! probe-ebpf/prebuilt/STAMP: which sources and which tools the committed object came from.
//!
//! Text, one `key value` a line. `source` is the SHA-256 over the kernel side's files in the order of their
//! paths: for each, the length of the relative path (u64, little endian), the path, the length of the
//! contents, the contents. `lock` and `object` are plain SHA-256 sums of Cargo.lock and the object.

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

/// Where the object lies below probe-ebpf/.
pub const OBJECT: &str = "prebuilt/podopsy-probe.o";
/// Where the stamp lies below probe-ebpf/.
pub const STAMP: &str = "prebuilt/STAMP";

/// How to fix a stamp that does not match the sources.
pub const REMEDY: &str = "run `cargo xtask build-ebpf` and commit probe-ebpf/prebuilt/";

/// The tools' versions, as the tools print them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tools {
    pub rustc: String,
    pub cargo: String,
    pub bpf_linker: String,
    pub llvm: String,
}

/// The contents of a STAMP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// SHA-256, hex.
    pub source: String,
    /// SHA-256, hex.
    pub lock: String,
    /// SHA-256, hex.
    pub object: String,
    pub tools: Tools,
}

impl Stamp {
    /// Hashes the sources and the object as they are now.
    pub fn of(probe: &Path, object: &[u8], tools: Tools) -> Result<Self> {
        Ok(Self { source: source_hash(probe)?, lock: lock_hash(probe)?, object: sha256(object), tools })
    }

    /// Reads the committed stamp.
    pub fn read(probe: &Path) -> Result<Self> {
        let path = probe.join(STAMP);
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}: {REMEDY}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}: {REMEDY}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let get = |key: &str| {
            let mut values = text.lines().filter_map(|line| line.split_once(' ')).filter(|(k, _)| *k == key);
            values
                .next()
                .map(|(_, value)| value.trim().to_owned())
                .ok_or_else(|| anyhow!("no line `{key} …`"))
        };
        Ok(Self {
            source: get("source")?,
            lock: get("lock")?,
            object: get("object")?,
            tools: Tools {
                rustc: get("rustc")?,
                cargo: get("cargo")?,
                bpf_linker: get("bpf-linker")?,
                llvm: get("llvm")?,
            },
        })
    }
}

impl Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "source {}\nlock {}\nobject {}", self.source, self.lock, self.object)?;
        write!(f, "{}", self.tools)
    }
}

impl Display for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rustc {}\ncargo {}", self.rustc, self.cargo)?;
        writeln!(f, "bpf-linker {}\nllvm {}", self.bpf_linker, self.llvm)
    }
}

/// The differences between the stamp, the sources and the object of `probe`; empty if all agree.
pub fn complaints(probe: &Path) -> Result<Vec<String>> {
    let stamp = Stamp::read(probe)?;
    let object = std::fs::read(probe.join(OBJECT)).with_context(|| format!("{OBJECT}: {REMEDY}"))?;
    let mut out = Vec::new();
    let mut compare = |what: &str, stamped: &str, now: String| {
        if stamped != now {
            out.push(format!("{what} changed since the object was built: {REMEDY}"));
        }
    };
    compare(
        "probe-ebpf's sources (src/, wire/, Cargo.toml or Cargo.lock)",
        &stamp.source,
        source_hash(probe)?,
    );
    compare("probe-ebpf/Cargo.lock", &stamp.lock, lock_hash(probe)?);
    compare("probe-ebpf/prebuilt/podopsy-probe.o", &stamp.object, sha256(&object));
    Ok(out)
}

/// The hash over everything that determines the object, except the tools.
pub fn source_hash(probe: &Path) -> Result<String> {
    let mut paths: Vec<PathBuf> = ["Cargo.toml", "Cargo.lock", "wire/Cargo.toml"].map(PathBuf::from).into();
    for optional in ["build.rs", "wire/build.rs"] {
        if probe.join(optional).exists() {
            paths.push(optional.into());
        }
    }
    for dir in ["src", "wire/src"] {
        files_below(probe, Path::new(dir), &mut paths)?;
    }
    paths.sort();
    let mut hash = Sha256::new();
    for path in paths {
        let contents =
            std::fs::read(probe.join(&path)).with_context(|| format!("probe-ebpf/{}", path.display()))?;
        for part in [path.as_os_str().as_encoded_bytes(), &contents] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(hex(&hash.finalize()))
}

fn lock_hash(probe: &Path) -> Result<String> {
    Ok(sha256(&std::fs::read(probe.join("Cargo.lock")).context("probe-ebpf/Cargo.lock")?))
}

/// Adds the files below `dir`, as paths relative to `base`. Files that editors leave behind are skipped.
fn files_below(base: &Path, dir: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(base.join(dir)).with_context(|| format!("{}", base.join(dir).display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") || name.as_encoded_bytes().ends_with(b"~") {
            continue;
        }
        let path = dir.join(&name);
        if entry.file_type()?.is_dir() {
            files_below(base, &path, out)?;
        } else {
            out.push(path);
        }
    }
    Ok(())
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("Cargo.toml", "[package]"),
            ("Cargo.lock", "version = 4"),
            ("src/main.rs", "fn main() {}"),
            ("src/.main.rs.swp", "noise"),
            ("wire/Cargo.toml", "[package]"),
            ("wire/src/lib.rs", "struct A;"),
            (OBJECT, "\u{7f}ELF"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let tools = Tools {
            rustc: "1.96.0 (ac68faa20 2026-05-25)".into(),
            cargo: "1.95.0".into(),
            bpf_linker: "0.13.0".into(),
            llvm: "22.1.8".into(),
        };
        let stamp = Stamp::of(dir.path(), "\u{7f}ELF".as_bytes(), tools).unwrap();
        std::fs::write(dir.path().join(STAMP), stamp.to_string()).unwrap();
        assert_eq!(Stamp::read(dir.path()).unwrap(), stamp);
        dir
    }

    #[test]
    fn a_fresh_stamp_has_no_complaints() {
        let found = complaints(probe().path()).unwrap();
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn a_change_of_any_input_is_reported_with_the_remedy() {
        for (path, expect) in [
            ("src/main.rs", "sources"),
            ("wire/src/lib.rs", "sources"),
            ("wire/src/dns.rs", "sources"),
            ("wire/Cargo.toml", "sources"),
            ("Cargo.toml", "sources"),
            ("Cargo.lock", "Cargo.lock"),
            (OBJECT, "podopsy-probe.o"),
        ] {
            let dir = probe();
            std::fs::write(dir.path().join(path), "changed").unwrap();
            let found = complaints(dir.path()).unwrap();
            assert!(
                found.iter().any(|c| c.contains(expect) && c.contains("cargo xtask build-ebpf")),
                "{path}: {found:?}"
            );
        }
    }

    #[test]
    fn files_that_an_editor_leaves_behind_change_nothing() {
        let dir = probe();
        std::fs::write(dir.path().join("src/.main.rs.swp"), "other noise").unwrap();
        std::fs::write(dir.path().join("src/main.rs~"), "old").unwrap();
        assert!(complaints(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn moving_a_byte_from_one_file_to_the_next_changes_the_hash() {
        let dir = probe();
        let before = source_hash(dir.path()).unwrap();
        std::fs::write(dir.path().join("src/main.rs"), "fn main() {").unwrap();
        std::fs::write(dir.path().join("wire/Cargo.toml"), "}[package]").unwrap();
        assert_ne!(source_hash(dir.path()).unwrap(), before);
    }

    #[test]
    fn the_error_about_a_missing_or_garbled_stamp_has_the_remedy() {
        let dir = probe();
        std::fs::write(dir.path().join(STAMP), "source\n").unwrap();
        assert!(format!("{:#}", complaints(dir.path()).unwrap_err()).contains("cargo xtask build-ebpf"));
        std::fs::remove_file(dir.path().join(STAMP)).unwrap();
        assert!(format!("{:#}", complaints(dir.path()).unwrap_err()).contains("cargo xtask build-ebpf"));
    }
}
