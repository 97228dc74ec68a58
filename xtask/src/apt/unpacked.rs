//! A folder of packages that are unpacked and not installed, because installing them would start a service or replace
//! another package.
//!
//! The folder is complete or absent: it is filled beside its place and renamed. [`RECORD`] lists what is in it, so that a
//! folder of older versions is replaced when apt offers newer ones.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::dependencies::{self, Record, Versions};
use super::{Package, extract, status, update_lists};
use crate::{archive, sh};

/// The file that lists the folder's packages, a line `NAME VERSION` each.
const RECORD: &str = ".packages";

/// Unpacks `packages` into `folder`, with what [`dependencies::select`] adds to them.
///
/// Programs in the folder have to be started with its library folders in `LD_LIBRARY_PATH`: tests/kernel/support/place.rs.
pub fn unpack(packages: &[Package], folder: &Path) -> Result<()> {
    let recorded = fs::read_to_string(folder.join(RECORD)).unwrap_or_default();
    let mut selected = match select(packages) {
        Ok(selected) => selected,
        Err(error) if has_all(&recorded, packages) => {
            sh::progress(format_args!("apt: keeping the unpacked packages: {error:#}"));
            return Ok(());
        }
        Err(_) => {
            update_lists();
            select(packages).context("cannot select the packages to unpack; try `apt-get update`")?
        }
    };
    if recorded == render(&selected) {
        return Ok(());
    }
    report(packages, &selected, folder);
    let staging = staging(folder)?;
    // As in `install`: the lists may be good enough.
    if download(&selected, &staging).is_err() {
        update_lists();
        selected = select(packages)?;
        download(&selected, &staging)
            .context("cannot download the packages to unpack; try `apt-get update`")?;
    }
    for file in archive::packages_in(&staging)? {
        extract(&file, &staging)?;
        fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    }
    fs::write(staging.join(RECORD), render(&selected)).context("record the unpacked packages")?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&staging, folder).with_context(|| format!("make {}", folder.display()))
}

fn select(packages: &[Package]) -> Result<Versions> {
    let names: Vec<_> = packages.iter().map(|package| package.name).collect();
    dependencies::select(&names, &status::installed()?, look_up)
}

/// Asks apt for the candidate's record of each `NAME`, and for that version's record of each `NAME=VERSION`.
fn look_up(queries: &[String]) -> Result<Vec<Record>> {
    // It fails if it knows none of them, and describes the others otherwise: what is missing the caller finds out.
    let output = Command::new("apt-cache")
        .args(["show", "--no-all-versions"])
        .args(queries)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("cannot start apt-cache")?;
    Ok(Record::parse_all(&String::from_utf8_lossy(&output.stdout)))
}

/// The text of [`RECORD`].
fn render(selected: &Versions) -> String {
    selected.iter().fold(String::new(), |mut text, (name, version)| {
        let _ = writeln!(text, "{name} {version}");
        text
    })
}

/// Whether the record has every package, in some version.
fn has_all(recorded: &str, packages: &[Package]) -> bool {
    let has = |name: &str| recorded.lines().any(|line| line.split(' ').next() == Some(name));
    packages.iter().all(|package| has(package.name))
}

fn report(packages: &[Package], selected: &Versions, folder: &Path) {
    sh::progress(format_args!("unpacking beside the system, into {}:", folder.display()));
    for (name, version) in selected {
        let why = packages.iter().find(|package| package.name == name);
        let why = why.map_or("required by the others", |package| package.why);
        sh::progress(format_args!("  {name} {version} – {why}"));
    }
}

fn staging(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().context("the folder has a name")?;
    let staging = folder.with_file_name(format!(".{}.new", name.display()));
    let _ = fs::remove_dir_all(&staging);
    fs::create_dir_all(&staging).with_context(|| format!("make {}", staging.display()))?;
    Ok(staging)
}

fn download(selected: &Versions, folder: &Path) -> Result<()> {
    let files = selected.iter().map(|(name, version)| format!("{name}={version}"));
    let mut command = Command::new("apt-get");
    sh::capture(command.args(["-q", "download"]).args(files).current_dir(folder)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_holds_versions_so_that_a_newer_candidate_is_noticed() {
        let selected = |version: &str| Versions::from([("bind9".to_owned(), version.to_owned())]);
        let recorded = render(&selected("1:9.18.33-1~deb12u2"));
        assert_eq!(recorded, "bind9 1:9.18.33-1~deb12u2\n");
        assert_ne!(recorded, render(&selected("1:9.18.47-1~deb12u1")));
    }

    #[test]
    fn a_folder_counts_without_lists_only_if_every_package_is_in_it() {
        let package = |name| Package { name, why: "" };
        let recorded = "bind9 1\nbind9-libs 1\n";
        assert!(has_all(recorded, &[package("bind9")]));
        assert!(!has_all(recorded, &[package("bind9"), package("prometheus")]));
        assert!(!has_all("", &[package("bind9")]));
    }
}
