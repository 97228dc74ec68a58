//! Debian packages: installs those that are missing or outdated, and reports why each is needed.
//!
//! | file | does |
//! |---|---|
//! | [`status`] | compares what is installed with what apt offers |
//! | [`unpacked`] | unpacks packages beside the system, with the libraries that they need |
//! | [`dependencies`] | selects the packages that have to be unpacked together |
//! | [`version`] | orders versions as dpkg does |

pub mod dependencies;
mod status;
mod unpacked;
mod version;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::sh;
use status::Status;
pub use unpacked::unpack;

/// A package and the reason why it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: &'static str,
    pub why: &'static str,
}

/// Installs those of `packages` that are missing, and upgrades those that are older than what apt offers. If there are
/// none, it touches neither the network nor apt's lists. A package that is held stays as it is.
///
/// An outdated package does not count as installed: tests use it together with packages that are downloaded in their newest
/// version, as dig's libraries with BIND's server.
pub fn install(packages: &[Package]) -> Result<()> {
    if sh::which("apt-get").is_none() {
        bail!(
            "apt-get is missing: this command installs packages of Debian 12 ({}); install their equivalents manually, or \
             run `cargo xtask test --offline-only`, which needs none",
            packages.iter().map(|p| p.name).collect::<Vec<_>>().join(" ")
        );
    }
    let names = report_needed(packages, &status::of(packages)?);
    if names.is_empty() {
        sh::progress(format_args!("{} packages are installed already", packages.len()));
        return Ok(());
    }
    // Updating the lists is slow, and often they are good enough.
    if apt_get("install", &names).is_ok() {
        return Ok(());
    }
    sh::progress("apt: cannot install from the present lists, updating them");
    update_lists();
    apt_get("install", &names)
        .with_context(|| format!("cannot install {}; try `apt-get install {0}` manually", names.join(" ")))
}

/// Prints a line for each package that needs something, and returns the names of those to install.
fn report_needed(packages: &[Package], statuses: &[Status]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for (Package { name, why }, status) in packages.iter().zip(statuses) {
        match status {
            Status::Current => continue,
            Status::Missing => sh::progress(format_args!("apt: {name} – {why}")),
            Status::Outdated { installed, candidate } => sh::progress(format_args!(
                "apt: {name} {installed} → {candidate} – {why} (`apt-mark hold {name}` keeps the old one)"
            )),
            Status::Held { installed, candidate } => {
                sh::progress(format_args!(
                    "apt: {name} is held at {installed}, and apt offers {candidate}: it stays"
                ));
                continue;
            }
        }
        names.push(*name);
    }
    names
}

/// Extracts all files of a package file.
pub fn extract(package: &Path, folder: &Path) -> Result<()> {
    let output = sh::capture(Command::new("dpkg-deb").arg("-x").arg(package).arg(folder));
    output.map(drop).with_context(|| format!("unpack {}", package.display()))
}

/// Runs `apt-get update`. A foreign source that is broken must not stop us: the next step shows whether ours work.
fn update_lists() {
    if let Err(error) = apt_get("update", &[]) {
        let error = error.to_string();
        let last_line = error.trim_end().lines().last().unwrap_or_default();
        sh::progress(format_args!("apt: update failed in part, continuing: {last_line}"));
    }
}

fn apt_get(verb: &str, names: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    // Another apt (unattended-upgrades) may hold the lock for a while.
    command.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300", verb]);
    if verb == "install" {
        command.arg("--no-install-recommends").args(names);
    }
    sh::progress(format_args!("$ {}", sh::show(&command)));
    command.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_SUSPEND", "1").stderr(Stdio::piped());
    sh::capture(&mut command).map(drop)
}
