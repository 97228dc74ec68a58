//! What tests want and Debian 12 does not have, from Debian 13: in a root of its own, unpacked and not installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::apt;
use crate::archive::{self, Apt};
use crate::sh;

const SOURCES: [&str; 1] = ["http://deb.debian.org/debian trixie main"];
/// A VictoriaMetrics that takes OTLP, which needs nothing but a libc and zstd; CPython 3.13, what of its library the test
/// imports, and what these need: it runs in this root as in a container's.
const PACKAGES: [&str; 11] = [
    "victoria-metrics",
    "python3.13-minimal",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    "libc6",
    "libcrypt1",
    "libexpat1",
    "libgcc-s1",
    "libssl3t64",
    "libzstd1",
    "zlib1g",
];

/// The folder below `cache`.
const NAME: &str = "debian-13";

pub fn install(cache: &Path) -> Result<()> {
    let root = cache.join(NAME);
    if root.is_dir() {
        return Ok(());
    }
    let here = root.display();
    sh::say(format_args!(
        "unpacking CPython 3.13 and a VictoriaMetrics that takes OTLP – Debian 13's – into {here}"
    ));
    let staging = cache.join(format!(".{NAME}.new"));
    let _ = fs::remove_dir_all(&staging);
    fs::create_dir_all(&staging).with_context(|| format!("make {}", staging.display()))?;
    let apt = Apt::new(&cache.join(format!(".{NAME}.apt")), &SOURCES)?;
    let downloaded = apt.download(&PACKAGES, &staging);
    apt.forget();
    downloaded?;
    for package in archive::packages_in(&staging)? {
        apt::extract(&package, &staging)?;
        fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    }
    // As the packages expect it of whoever installs them.
    for name in ["bin", "lib", "lib64"] {
        symlink(Path::new("usr").join(name), staging.join(name)).with_context(|| format!("link {name}"))?;
    }
    for program in ["python3.13", "victoria-metrics"] {
        let program = staging.join("usr/bin").join(program);
        ensure!(program.is_file(), "the packages hold no {}", program.display());
    }
    fs::rename(&staging, &root).with_context(|| format!("make {}", root.display()))
}
