//! Debian packages: installs those that are missing, and says why each is wanted.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::sh;

/// A package and the reason we want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: &'static str,
    pub why: &'static str,
}

/// Installs what is missing of `packages`; touches neither network nor lists if nothing is.
pub fn install(packages: &[Package]) -> Result<()> {
    if sh::which("apt-get").is_none() {
        bail!(
            "no apt-get here: this installs packages of Debian 12 ({}); install their like by hand, or run \
             `cargo xtask test --offline-only`, which needs none",
            packages.iter().map(|p| p.name).collect::<Vec<_>>().join(" ")
        );
    }
    let missing = missing(packages)?;
    if missing.is_empty() {
        sh::say(format_args!("{} packages are there already", packages.len()));
        return Ok(());
    }
    for package in &missing {
        sh::say(format_args!("apt: {} – {}", package.name, package.why));
    }
    let names: Vec<_> = missing.iter().map(|p| p.name).collect();
    // The lists may be good enough: update only if they are not, because it is slow.
    if apt_get("install", &names).is_ok() {
        return Ok(());
    }
    sh::say("apt: not installable from the lists at hand, updating them");
    if let Err(e) = apt_get("update", &[]) {
        // A stranger's broken list must not stop us: whether ours are good shows in the next step.
        sh::say(format_args!("apt: update complained, going on: {}", last_line(&e.to_string())));
    }
    apt_get("install", &names)
        .with_context(|| format!("cannot install {}; try `apt-get install {0}` by hand", names.join(" ")))
}

/// Unpacks what is missing of `packages` into `folder`, without installing anything.
pub fn unpack(packages: &[Package], folder: &Path) -> Result<()> {
    for package in packages {
        let mark = folder.join(format!(".{}", package.name));
        if mark.is_file() {
            continue;
        }
        sh::say(format_args!("unpacking {} – {} – into {}", package.name, package.why, folder.display()));
        let download = folder.join(format!("{}.download", package.name));
        let _ = fs::remove_dir_all(&download);
        fs::create_dir_all(&download).with_context(|| format!("make {}", download.display()))?;
        // As in `install`: the lists may be good enough.
        let fetch = || {
            let mut command = Command::new("apt-get");
            sh::capture(command.args(["-q", "download", package.name]).current_dir(&download))
        };
        if fetch().is_err() {
            let _ = apt_get("update", &[]);
            fetch().with_context(|| format!("cannot download {}; try `apt-get update`", package.name))?;
        }
        let file = fs::read_dir(&download)?.next().context("apt-get download left no file")??.path();
        extract(&file, folder)?;
        fs::remove_dir_all(&download)?;
        fs::write(&mark, "")?;
    }
    Ok(())
}

/// All files of a package file.
pub fn extract(package: &Path, folder: &Path) -> Result<()> {
    let done = sh::capture(Command::new("dpkg-deb").arg("-x").arg(package).arg(folder));
    done.map(drop).with_context(|| format!("unpack {}", package.display()))
}

fn apt_get(verb: &str, names: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    // Another apt (unattended-upgrades) may hold the lock for a while.
    command.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300", verb]);
    if verb == "install" {
        command.arg("--no-install-recommends").args(names);
    }
    sh::say(format_args!("$ {}", sh::show(&command)));
    command.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_SUSPEND", "1").stderr(Stdio::piped());
    sh::capture(&mut command).map(drop)
}

fn missing(packages: &[Package]) -> Result<Vec<Package>> {
    // It exits 1 when a package is unknown, and still lists the others.
    let out = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Abbrev} ${Package}\\n"])
        .args(packages.iter().map(|p| p.name))
        .stdin(Stdio::null())
        .output()
        .context("cannot start dpkg-query")?;
    Ok(not_installed(packages, &String::from_utf8_lossy(&out.stdout)))
}

fn not_installed(packages: &[Package], listing: &str) -> Vec<Package> {
    let is_installed = |name: &str| {
        listing.lines().any(|line| {
            let mut words = line.split_whitespace();
            // "ii": wanted and installed; "hi": held and installed.
            words.next().is_some_and(|state| state.ends_with('i')) && words.next() == Some(name)
        })
    };
    packages.iter().filter(|p| !is_installed(p.name)).copied().collect()
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_and_unknown_packages_are_missing_and_held_ones_are_not() {
        let package = |name| Package { name, why: "" };
        let all = ["runc", "containerd", "iptables", "golang-go"].map(package);
        let listing = "ii  runc\nhi  containerd\nrc  iptables\n";
        assert_eq!(not_installed(&all, listing), ["iptables", "golang-go"].map(package));
    }
}
