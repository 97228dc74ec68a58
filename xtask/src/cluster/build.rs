//! Kubernetes 1.20 from Debian 12's source package, which is upstream's whole tree with `vendor/`. Later releases of
//! Debian package kubectl alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::layout::Layout;
use crate::archive::Apt;
use crate::sh;

/// The version that the source package holds.
pub const VERSION: &str = "1.20.2";
const PACKAGE: &str = "kubernetes";
const SOURCES: [&str; 2] = [
    "http://deb.debian.org/debian bookworm main",
    "http://deb.debian.org/debian-security bookworm-security main",
];

pub const PROGRAMS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"];

/// The folder of the programs, below the cluster's cache folder.
pub fn folder_name() -> String {
    format!("kubernetes-{VERSION}")
}

/// Builds the programs, unless they are in the cache.
///
/// They are built beside their folder, which is renamed when all are there: a build that was cut off leaves nothing that
/// looks complete, and the next one starts again.
pub fn ensure(layout: &Layout) -> Result<()> {
    let folder = layout.cache.join(folder_name());
    if PROGRAMS.iter().all(|name| folder.join(name).is_file()) {
        sh::progress(format_args!("Kubernetes {VERSION} is in {}", folder.display()));
        return Ok(());
    }
    sh::progress(format_args!(
        "building Kubernetes {VERSION} into {} (about 11 CPU-minutes, once)",
        folder.display()
    ));
    let staging = layout.cache.join(format!(".{}.new", folder_name()));
    remove(&staging)?;
    fs::create_dir_all(&staging).with_context(|| format!("make {}", staging.display()))?;
    let source = unpack_source(&staging)?;
    let programs = compile(&staging, &source)?;
    remove(&folder)?;
    fs::rename(&programs, &folder).with_context(|| format!("make {}", folder.display()))?;
    // The source and the compiler's cache, 4 GB.
    remove(&staging)
}

/// Removes a folder. The children of a make that was killed write into it for some seconds more.
fn remove(folder: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while folder.exists() {
        let removed = fs::remove_dir_all(folder);
        if removed.is_err() && Instant::now() > end {
            return removed.with_context(|| format!("remove {}", folder.display()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Downloads the source package, and returns upstream's tree, unpacked where GOPATH mode expects it.
fn unpack_source(staging: &Path) -> Result<PathBuf> {
    let download = staging.join("download");
    let parent = staging.join("gopath/src/k8s.io");
    for folder in [&download, &parent] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let apt = Apt::new_source(&staging.join("apt"), &SOURCES)?;
    let mut command = apt.command("apt-get");
    // apt verifies what it downloads.
    command.args(["-q", "source", "--download-only", PACKAGE]).current_dir(&download);
    sh::run(&mut command).context("download the source of Kubernetes")?;
    apt.remove();
    let files = fs::read_dir(&download).with_context(|| format!("read {}", download.display()))?;
    let mut archives = files.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = archives
        .find(|path| path.to_string_lossy().contains(".orig.tar"))
        .context("the source package has no .orig.tar")?;
    sh::run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&parent))?;
    let unpacked = parent.join(format!("kubernetes-{VERSION}"));
    ensure!(
        unpacked.is_dir(),
        "{} is not Kubernetes {VERSION}: change VERSION in xtask/src/cluster/build.rs",
        archive.display()
    );
    let source = parent.join("kubernetes");
    fs::rename(&unpacked, &source).with_context(|| format!("make {}", source.display()))?;
    Ok(source)
}

/// Compiles the programs, and returns their folder.
fn compile(staging: &Path, source: &Path) -> Result<PathBuf> {
    let programs = staging.join("programs");
    let go = |program: &str| {
        // At low priority, since the machine has other work, too; and not longer than xtask lives, so that a build that
        // was cut off does not write into the next one's folder.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nice", "-n", "10", program]).current_dir(source);
        command.env("GOPATH", staging.join("gopath")).env("GOCACHE", staging.join("gocache"));
        command.env_remove("GOFLAGS");
        command
    };
    // pkg/generated/openapi is not in the tree.
    sh::run(go("make").arg("gen_openapi")).context("generate the API's description")?;
    let mut build = go("go");
    // Module mode refuses Debian's vendor tree.
    build.env("GO111MODULE", "off").args(["build", "-o"]).arg(format!("{}/", programs.display()));
    // Upstream's scripts take the version from git; without it, clients see v0.0.0.
    let version = "k8s.io/kubernetes/vendor/k8s.io/component-base/version";
    let (major, minor) = VERSION.split_once('.').context("VERSION has a minor version")?;
    let minor = minor.split('.').next().unwrap_or_default();
    build.arg("-ldflags").arg(format!(
        "-X {version}.gitVersion=v{VERSION} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    ));
    build.args(PROGRAMS.map(|name| format!("./cmd/{name}")));
    sh::run(&mut build).context("compile Kubernetes")?;
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|name| !programs.join(name).is_file()).collect();
    ensure!(missing.is_empty(), "go build has made no {}", missing.join(", "));
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_every_program_is_not_taken_for_a_build() {
        let folder = tempfile::tempdir().unwrap();
        let programs = folder.path().join(folder_name());
        fs::create_dir_all(&programs).unwrap();
        let is_built = || PROGRAMS.iter().all(|name| programs.join(name).is_file());
        for name in PROGRAMS {
            assert!(!is_built(), "before {name}");
            fs::write(programs.join(name), "").unwrap();
        }
        assert!(is_built());
    }
}
