//! `cargo xtask image` and `cargo xtask release`: static binaries of `podopsy` and `podopsy-agent`, and what is made of them
//! by `podopsy-release`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};

use crate::statics::{self, Statics};
use crate::{chart, sh};

/// The image that manifests/base/ uses.
pub const DEFAULT_TAG: &str = concat!("podopsy:", env!("CARGO_PKG_VERSION"));

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
    let archive = show(&out.join(concat!("podopsy-", env!("CARGO_PKG_VERSION"), ".oci.tar")));
    for way in ["ctr -n k8s.io images import", "docker load -i", "podman load -i", "kind load image-archive"]
    {
        sh::progress(format_args!("  {way} {archive}"));
    }
    sh::progress(format_args!(
        "or copy it to a registry: skopeo copy oci-archive:{archive} docker://REGISTRY/{tag}"
    ));
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
    fn the_dockerfile_copies_what_is_built() {
        let text = std::fs::read_to_string(sh::root().join("manifests/Dockerfile")).unwrap();
        assert!(text.contains("FROM scratch"));
        let copy = text.lines().find(|line| line.starts_with("COPY ")).expect("a COPY line");
        assert_eq!(copy, format!("COPY {} /", BINARIES.join(" ")));
    }
}
