//! Packages of Debian releases that this machine does not run: an apt with its own lists, sources and cache, which neither
//! reads nor changes those of the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt::dependencies::Record;
use crate::sh;

/// Debian's name of the architecture.
pub const ARCH: &str = "amd64";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt that has read its lists.
pub struct Apt {
    root: PathBuf,
    config: PathBuf,
}

impl Apt {
    /// Reads the lists of `sources`, `URL SUITE COMPONENT` each, into the folder `root`, which is created.
    pub fn new(root: &Path, sources: &[&str]) -> Result<Apt> {
        Apt::read_lists(root, sources, "deb")
    }

    /// As [`Apt::new`], for source packages.
    pub fn new_source(root: &Path, sources: &[&str]) -> Result<Apt> {
        Apt::read_lists(root, sources, "deb-src")
    }

    fn read_lists(root: &Path, sources: &[&str], kind: &str) -> Result<Apt> {
        for folder in ["state/lists/partial", "cache/archives/partial", "etc"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let write = |name: &str, text: String| {
            let path = root.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display())).map(|()| path)
        };
        let line = |source: &&str| format!("{kind} [arch={ARCH} signed-by={KEYRING}] {source}\n");
        write("etc/sources.list", sources.iter().map(line).collect())?;
        let config = write("apt.conf", configuration(root))?;
        let apt = Apt { root: root.to_owned(), config };
        sh::progress(format_args!("reading the lists of Debian's archive: {}", sources.join(", ")));
        sh::capture(apt.command("apt-get").args(["-q", "update"])).context(
            "cannot read Debian's archive; is deb.debian.org reachable, and debian-archive-keyring installed?",
        )?;
        Ok(apt)
    }

    /// A command of apt that uses this configuration.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config);
        command
    }

    /// Downloads package files, each `NAME` or `NAME=VERSION`, into the folder.
    pub fn download(&self, packages: &[&str], folder: &Path) -> Result<()> {
        let mut download = self.command("apt-get");
        sh::capture(download.args(["-q", "download"]).args(packages).current_dir(folder)).map(drop)
    }

    /// Removes the lists: they are ten times as large as the packages, and outdated tomorrow.
    pub fn remove(self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn configuration(root: &Path) -> String {
    let root = root.display();
    // A mirror that lags is good enough, and signatures are checked all the same.
    format!(
        "Dir::Etc \"{root}/etc\";\nDir::Etc::sourcelist \"sources.list\";\nDir::Etc::sourceparts \"-\";\n\
         Dir::Etc::preferencesparts \"-\";\nDir::State \"{root}/state\";\nDir::Cache \"{root}/cache\";\n\
         Dir::State::status \"/var/lib/dpkg/status\";\nAPT::Architectures {{ \"{ARCH}\"; }};\n\
         APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Acquire::Check-Valid-Until \"false\";\n"
    )
}

/// Fails if one of the package files requires an exact version of another package that is not among them.
pub fn check_exact_dependencies(packages: &[PathBuf]) -> Result<()> {
    let mut records = Vec::new();
    for package in packages {
        let stanza = sh::capture(Command::new("dpkg-deb").arg("-f").arg(package))?;
        records.extend(Record::parse_all(&stanza));
    }
    let missing = missing_exact_dependencies(&records);
    ensure!(missing.is_empty(), "packages that are unpacked together do not fit: {}", missing.join("; "));
    Ok(())
}

fn missing_exact_dependencies(records: &[Record]) -> Vec<String> {
    let has = |name: &str, version: &str| records.iter().any(|r| r.package == name && r.version == version);
    let missing_of = |record: &Record| -> Vec<String> {
        let missing = record.exact_dependencies().filter(|(name, version)| !has(name, version));
        missing.map(|(name, version)| format!("{} requires {name} = {version}", record.package)).collect()
    };
    records.iter().flat_map(missing_of).collect()
}

/// The package files of a folder.
pub fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let files = files.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(files.filter(|path| path.extension().is_some_and(|ext| ext == "deb")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_without_an_exactly_required_package_is_rejected() {
        let python = "Package: python3.13-minimal\nVersion: 3.13.5-2\nPre-Depends: libc6 (>= 2.38)\n\
                      Depends: libpython3.13-minimal (= 3.13.5-2), libexpat1 (>= 2.6.0)\n";
        let library = "Package: libpython3.13-minimal\nVersion: 3.13.5-2\nDepends: libc6 (>= 2.14)\n";
        let records = |texts: &[&str]| Record::parse_all(&texts.join("\n"));
        assert!(missing_exact_dependencies(&records(&[python, library])).is_empty());
        let expected = ["python3.13-minimal requires libpython3.13-minimal = 3.13.5-2"];
        assert_eq!(missing_exact_dependencies(&records(&[python])), expected);
        let older = library.replace("3.13.5-2", "3.13.5-1");
        assert_eq!(missing_exact_dependencies(&records(&[python, &older])), expected);
    }
}
