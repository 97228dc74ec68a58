//! A CPython that Debian 12 does not have, in a root of its own, unpacked and not installed: tests run it there, as in a
//! container.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::apt;
use crate::archive::{self, Apt};
use crate::sh;

/// Debian 13's.
const VERSION: &str = "3.13";
const SOURCES: [&str; 1] = ["http://deb.debian.org/debian trixie main"];
/// It, what of its library the test imports, and what these need.
const PACKAGES: [&str; 10] = [
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

/// Below `folder`, named for its version.
pub fn install(folder: &Path) -> Result<()> {
    let root = folder.join(VERSION);
    if root.is_dir() {
        return Ok(());
    }
    sh::say(format_args!("unpacking CPython {VERSION} – Debian 12 has 3.11 alone – into {}", root.display()));
    let staging = folder.join(format!(".{VERSION}.new"));
    let _ = fs::remove_dir_all(&staging);
    fs::create_dir_all(&staging).with_context(|| format!("make {}", staging.display()))?;
    let apt = Apt::new(&folder.join("apt"), &SOURCES)?;
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
    let program = staging.join("usr/bin").join(format!("python{VERSION}"));
    ensure!(program.is_file(), "the packages hold no {}", program.display());
    fs::rename(&staging, &root).with_context(|| format!("make {}", root.display()))
}
