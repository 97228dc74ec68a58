//! What is released: version, commit and time, and what is compiled in beside Rust packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use crate::packages::Packages;
use crate::sbom::LinkedSource;

/// The sources that a release is made of.
#[derive(Clone, Debug)]
pub struct Source {
    pub root: PathBuf,
    pub version: &'static str,
    /// The commit; with `-dirty` if files differ from it. None: the sources are no checkout.
    pub revision: Option<String>,
    pub time: Timestamp,
    pub compiler: String,
}

impl Source {
    /// The time is that of the commit, or `SOURCE_DATE_EPOCH`, or else 1970: never that of the build.
    pub fn find() -> Result<Source> {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the workspace")?.to_owned();
        let git = |arguments: &[&str]| output(Command::new("git").arg("-C").arg(&root).args(arguments)).ok();
        let is_dirty =
            git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|text| !text.is_empty());
        let commit = git(&["rev-parse", "HEAD"]);
        let revision = commit.map(|commit| if is_dirty { format!("{commit}-dirty") } else { commit });
        let seconds = std::env::var("SOURCE_DATE_EPOCH").ok().or_else(|| git(&["log", "-1", "--format=%ct"]));
        let seconds = seconds.as_deref().unwrap_or("0").parse().context("SOURCE_DATE_EPOCH is no number")?;
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        Ok(Source {
            revision,
            time: Timestamp::from_second(seconds)?,
            compiler: output(Command::new(rustc).arg("--version"))?,
            version: env!("CARGO_PKG_VERSION"),
            root,
        })
    }

    /// The packages in the programs, and in the kernel side's object.
    pub fn packages(&self, target: &str) -> Result<Packages> {
        let programs = Packages::of(&self.root, &["podopsy", "podopsy-agent"], target)?;
        // The object is built for bpfel-unknown-none, for which no package has other dependencies than here.
        let kernel_side = Packages::of(&self.root.join("probe-ebpf"), &["podopsy-probe"], target)?;
        Ok(programs.and(kernel_side))
    }

    /// SQLite is C code inside of a package: its version is in the header there.
    pub fn linked(&self) -> Result<Vec<LinkedSource>> {
        let inside_of = "libsqlite3-sys";
        let header = self.folder_of(inside_of)?.join("sqlite3/sqlite3.h");
        let text = std::fs::read_to_string(&header).with_context(|| header.display().to_string())?;
        Ok(vec![LinkedSource {
            name: "sqlite".to_owned(),
            version: sqlite_version(&text).context("sqlite3.h has no version")?.to_owned(),
            license: "SQLite blessing (public domain)".to_owned(),
            inside_of: inside_of.to_owned(),
        }])
    }

    /// The folder with a package's sources.
    fn folder_of(&self, package: &str) -> Result<PathBuf> {
        let mut command = cargo();
        command.current_dir(&self.root).args(["metadata", "--locked", "--format-version", "1"]);
        let metadata: Value = serde_json::from_str(&output(&mut command)?).context("cargo metadata")?;
        let mut packages = metadata["packages"].as_array().into_iter().flatten();
        let found = packages.find(|entry| entry["name"] == package);
        let manifest = found.and_then(|entry| entry["manifest_path"].as_str());
        let folder = manifest.and_then(|path| Path::new(path).parent());
        Ok(folder.with_context(|| format!("cargo metadata has no {package}"))?.to_owned())
    }
}

/// The version in a line like `#define SQLITE_VERSION "3.54.1"`.
fn sqlite_version(header: &str) -> Option<&str> {
    let mut lines = header.lines().filter_map(|line| line.strip_prefix("#define SQLITE_VERSION "));
    Some(lines.next()?.trim().trim_matches('"'))
}

/// The cargo that runs this program.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn output(command: &mut Command) -> Result<String> {
    let out =
        command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr).trim_end());
    Ok(String::from_utf8_lossy(&out.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_sqlite_is_that_of_the_header() {
        let header = "#define SQLITE_EXTERN extern\n#define SQLITE_VERSION        \"3.54.1\"\n#define SQLITE_VERSION_NUMBER 3054001\n";
        assert_eq!(sqlite_version(header), Some("3.54.1"));
        let linked = Source::find().unwrap().linked().unwrap();
        assert!(linked[0].version.starts_with("3."), "{linked:?}");
    }
}
