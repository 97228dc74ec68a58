//! `cargo xtask image`: static binaries of `podopsy` and `podopsy-agent`, and the image around them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};

use crate::sh;
use crate::statics::{self, Statics};

/// The image that manifests/base/ uses.
pub const DEFAULT_TAG: &str = concat!("podopsy:", env!("CARGO_PKG_VERSION"));

const BINARIES: [&str; 2] = ["podopsy", "podopsy-agent"];

/// The command.
pub fn run(tag: &str) -> Result<()> {
    let dir = build_static()?;
    let dockerfile = sh::root().join("manifests/Dockerfile");
    // A client without a daemon is common (CI, containers): ask before building.
    let engine = ["docker", "podman"].into_iter().find(|e| sh::capture(Command::new(e).arg("info")).is_ok());
    let Some(engine) = engine else {
        sh::progress(
            "no image: neither docker nor podman works here. On a machine with one of them, build it with",
        );
        sh::progress(format_args!("  docker build -t {tag} -f {} {}", dockerfile.display(), dir.display()));
        return Ok(());
    };
    sh::run(Command::new(engine).args(["build", "-t", tag, "-f"]).arg(&dockerfile).arg(&dir))?;
    sh::progress(format_args!("image {tag}; try `{engine} run --rm {tag} --help`"));
    Ok(())
}

/// Builds both binaries and copies them to target/image, the image's only content. Returns that folder.
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
