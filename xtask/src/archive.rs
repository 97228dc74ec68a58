//! Packages of Debian releases that this machine does not run: apt with lists, sources and a cache of its own, which neither
//! reads nor changes the machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::sh;

/// Debian's name of the architecture.
pub const ARCH: &str = "amd64";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt, its lists read.
pub struct Apt {
    root: PathBuf,
    config: PathBuf,
}

impl Apt {
    /// `sources`: `URL SUITE COMPONENT` each; `root` is a folder that is made.
    pub fn new(root: &Path, sources: &[&str]) -> Result<Apt> {
        for folder in ["state/lists/partial", "cache/archives/partial", "etc"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let write = |name: &str, text: String| {
            let path = root.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display())).map(|()| path)
        };
        let line = |source: &&str| format!("deb [arch={ARCH} signed-by={KEYRING}] {source}\n");
        write("etc/sources.list", sources.iter().map(line).collect())?;
        let dir = root.display();
        // A mirror that lags is good enough, and signatures are checked all the same.
        let config = write(
            "apt.conf",
            format!(
                "Dir::Etc \"{dir}/etc\";\nDir::Etc::sourcelist \"sources.list\";\nDir::Etc::sourceparts \"-\";\n\
                 Dir::Etc::preferencesparts \"-\";\nDir::State \"{dir}/state\";\nDir::Cache \"{dir}/cache\";\n\
                 Dir::State::status \"/var/lib/dpkg/status\";\nAPT::Architectures {{ \"{ARCH}\"; }};\n\
                 APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
                 Acquire::Check-Valid-Until \"false\";\n"
            ),
        )?;
        let apt = Apt { root: root.to_owned(), config };
        sh::say(format_args!("reading the lists of Debian's archive: {}", sources.join(", ")));
        sh::capture(apt.command("apt-get").args(["-q", "update"])).context(
            "cannot read Debian's archive; is deb.debian.org within reach, and debian-archive-keyring installed?",
        )?;
        Ok(apt)
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config);
        command
    }

    /// Package files, each `NAME` or `NAME=VERSION`, into the folder.
    pub fn download(&self, packages: &[&str], folder: &Path) -> Result<()> {
        let mut download = self.command("apt-get");
        sh::capture(download.args(["-q", "download"]).args(packages).current_dir(folder)).map(drop)
    }

    /// Lists are ten times the size of what they lead to, and old tomorrow.
    pub fn forget(self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The package files of a folder.
pub fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let files = files.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(files.filter(|path| path.extension().is_some_and(|ext| ext == "deb")).collect())
}
