//! `cargo xtask image` and `cargo xtask release`: static binaries of `podopsy` and `podopsy-agent`, and what is made of them
//! by `podopsy-release`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};

use crate::statics::{self, Statics};
use crate::{chart, sh};

/// The image that manifests/base/ uses.
pub const DEFAULT_TAG: &str = concat!("podopsy:", env!("CARGO_PKG_VERSION"));

/// The image in the folder that `podopsy-release` writes.
const ARCHIVE: &str = concat!("podopsy-", env!("CARGO_PKG_VERSION"), ".oci.tar");
const BINARIES: [&str; 2] = ["podopsy", "podopsy-agent"];

/// What `podopsy-release` is asked to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Image,
    Release,
}

/// The commands `image` and `release`: the static binaries, and the files around them.
pub fn run(what: What, tag: &str, platforms: &[String]) -> Result<()> {
    let programs = build_static()?;
    if what == What::Release {
        chart::run()?;
    }
    let (word, out) = match what {
        What::Image => ("image", "target/oci"),
        What::Release => ("all", "target/release-files"),
    };
    let out = sh::root().join(out);
    let target = statics::target()?;
    let mut command = sh::cargo();
    command.args([
        "run",
        "--quiet",
        "--package",
        "podopsy-release",
        "--",
        word,
        "--target",
        &target,
        "--tag",
        tag,
    ]);
    command.arg("--programs").arg(&programs).arg("--out").arg(&out);
    command.args(platforms.iter().flat_map(|platform| ["--platform", platform]));
    sh::run(&mut command)?;
    sh::progress(format_args!("{} has the image {tag} in an OCI archive; load it with one of", show(&out)));
    let archive = show(&out.join(ARCHIVE));
    for way in ["ctr -n k8s.io images import", "docker load -i", "podman load -i", "kind load image-archive"]
    {
        sh::progress(format_args!("  {way} {archive}"));
    }
    sh::progress(format_args!(
        "or copy it to a registry: skopeo copy oci-archive:{archive} docker://REGISTRY/{tag}"
    ));
    Ok(())
}

/// Builds the image here and, from nothing, in a checkout of the same commit in another folder, and compares the archives.
pub fn check(tag: &str) -> Result<()> {
    let dirty = sh::capture(sh::git().args(["status", "--porcelain", "--untracked-files=no"]))?;
    ensure!(dirty.is_empty(), "the checkout has the last commit, and these files differ from it:\n{dirty}");
    run(What::Image, tag, &[])?;
    let checkout = sh::root().join("target/image-check");
    remove_checkout(&checkout)?;
    sh::run(sh::git().args(["worktree", "add", "--quiet", "--detach"]).arg(&checkout).arg("HEAD"))?;
    let compared = build_in(&checkout, tag).and_then(|()| compare(&sh::root(), &checkout));
    remove_checkout(&checkout)?;
    compared
}

/// This program again, for the sources in another folder: [`sh::root`] is where the variable says.
fn build_in(checkout: &Path, tag: &str) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["image", "--tag", tag]).current_dir(checkout);
    sh::run(command.env("CARGO_MANIFEST_DIR", checkout.join("xtask")).env_remove("CARGO_TARGET_DIR"))
}

fn remove_checkout(folder: &Path) -> Result<()> {
    if folder.exists() {
        sh::run(sh::git().args(["worktree", "remove", "--force"]).arg(folder))?;
    }
    Ok(())
}

/// Fails and names the files that differ, unless the two archives are equal.
fn compare(one: &Path, other: &Path) -> Result<()> {
    let read = |root: &Path, file: &str| {
        let path = root.join("target").join(file);
        std::fs::read(&path).with_context(|| path.display().to_string())
    };
    let archive = format!("oci/{ARCHIVE}");
    let mut differing = Vec::new();
    for file in BINARIES.map(|name| format!("image/{name}")).into_iter().chain([archive]) {
        let bytes = read(one, &file)?;
        if bytes == read(other, &file)? {
            sh::progress(format_args!("{file}: {} bytes, the same in both folders", bytes.len()));
        } else {
            differing.push(file);
        }
    }
    ensure!(differing.is_empty(), "not the same in {} and {}: {differing:?}", one.display(), other.display());
    Ok(())
}

/// Builds both binaries and copies them to target/image, which is the Dockerfile's context, too. Returns that folder.
pub fn build_static() -> Result<PathBuf> {
    let folder = statics::build(Statics::Podopsy)?;
    let stage = sh::root().join("target/image");
    std::fs::create_dir_all(&stage)?;
    for name in BINARIES {
        let built = folder.join(name);
        let staged = stage.join(name);
        let bytes = std::fs::read(&built).with_context(|| built.display().to_string())?;
        ensure!(
            is_static(&bytes)?,
            "{} needs a dynamic loader, and would not start FROM scratch",
            built.display()
        );
        sh::capture(Command::new(&built).arg("--version")).context("the program does not start")?;
        // A new file: a running agent keeps the old one open ("text file busy").
        let fresh = stage.join(format!(".{name}.new"));
        std::fs::copy(&built, &fresh)
            .and_then(|_| std::fs::rename(&fresh, &staged))
            .with_context(|| staged.display().to_string())?;
        sh::progress(format_args!("{} ({:.1} MB, static)", show(&staged), bytes.len() as f64 / 1e6));
    }
    Ok(stage)
}

/// The path, relative to the working directory if it lies below.
fn show(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

fn is_static(elf: &[u8]) -> Result<bool> {
    let file = object::File::parse(elf)?;
    Ok(!file.sections().any(|s| s.name() == Ok(".interp")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_binary_is_recognised() {
        // A test is a dynamic program.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own).unwrap());
        assert!(is_static(b"#!/bin/sh").is_err());
    }

    #[test]
    fn archives_that_differ_are_named() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let write = |folder: &Path, file: &str, text: &str| {
            let path = folder.join("target").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let archive = format!("oci/{ARCHIVE}");
        for folder in &folders {
            for file in ["image/podopsy", "image/podopsy-agent", &archive] {
                write(folder.path(), file, "same");
            }
        }
        let compare = || compare(folders[0].path(), folders[1].path());
        compare().unwrap();
        write(folders[1].path(), &archive, "other");
        let error = compare().unwrap_err().to_string();
        assert!(error.contains(&archive) && !error.contains("image/podopsy"), "{error}");
    }

    #[test]
    fn the_dockerfile_copies_what_is_built() {
        let text = std::fs::read_to_string(sh::root().join("manifests/Dockerfile")).unwrap();
        assert!(text.contains("FROM scratch"));
        let copy = text.lines().find(|line| line.starts_with("COPY ")).expect("a COPY line");
        assert_eq!(copy, format!("COPY {} /", BINARIES.join(" ")));
    }
}
