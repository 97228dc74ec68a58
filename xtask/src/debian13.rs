//! Programs that tests need and Debian 12 does not have, from Debian 13: unpacked into a root of their own, not installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::archive::{self, Apt};
use crate::{apt, sh};

const SOURCES: [&str; 1] = ["http://deb.debian.org/debian trixie main"];
/// A VictoriaMetrics that accepts OTLP, which needs only a libc and zstd; and CPython 3.13, the parts of its library that the
/// test imports, and what these need: it runs in this root as in a container's.
const PACKAGES: [&str; 12] = [
    "victoria-metrics",
    "python3.13-minimal",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    "gcc-14-base",
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
/// The file that lists the packages of the root, so that a root of another list is replaced.
const RECORD: &str = ".packages";

/// Makes the root below `cache`, unless it is there.
pub fn install(cache: &Path) -> Result<()> {
    let root = cache.join(NAME);
    let wanted = PACKAGES.join("\n");
    if fs::read_to_string(root.join(RECORD)).is_ok_and(|recorded| recorded == wanted) {
        return Ok(());
    }
    let here = root.display();
    sh::progress(format_args!(
        "unpacking CPython 3.13 and a VictoriaMetrics that accepts OTLP, both of Debian 13, into {here}"
    ));
    let staging = cache.join(format!(".{NAME}.new"));
    let _ = fs::remove_dir_all(&staging);
    fs::create_dir_all(&staging).with_context(|| format!("make {}", staging.display()))?;
    download(cache, &staging)?;
    unpack(&staging)?;
    fs::write(staging.join(RECORD), wanted).context("record the packages of Debian 13")?;
    let _ = fs::remove_dir_all(&root);
    fs::rename(&staging, &root).with_context(|| format!("make {}", root.display()))
}

fn download(cache: &Path, folder: &Path) -> Result<()> {
    let apt = Apt::new(&cache.join(format!(".{NAME}.apt")), &SOURCES)?;
    let downloaded = apt.download(&PACKAGES, folder);
    apt.remove();
    downloaded
}

fn unpack(folder: &Path) -> Result<()> {
    let packages = archive::packages_in(folder)?;
    archive::check_exact_dependencies(&packages)?;
    for package in packages {
        apt::extract(&package, folder)?;
        fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    }
    // The packages expect these links, which the installer makes.
    for name in ["bin", "lib", "lib64"] {
        symlink(Path::new("usr").join(name), folder.join(name)).with_context(|| format!("link {name}"))?;
    }
    for program in ["python3.13", "victoria-metrics"] {
        let program = folder.join("usr/bin").join(program);
        ensure!(program.is_file(), "the packages have no {}", program.display());
    }
    Ok(())
}
