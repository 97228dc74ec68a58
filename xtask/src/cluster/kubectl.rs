//! kubectl: the cluster's own, and Debian 13's, which reads kustomize components. Both are called by scripts that enter the
//! cluster's network namespace, since the API server is reachable only there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::layout::Layout;
use super::process::Process;
use crate::archive::{self, Apt};
use crate::{apt, sh};

const SOURCES: [&str; 1] = ["http://deb.debian.org/debian trixie main"];
/// With the release, because this machine may have a package of the same name from elsewhere.
const PACKAGE: &str = "kubectl/trixie";
/// The folder below the cluster's cache folder.
const FOLDER: &str = "kubectl-debian-13";

/// Downloads the newer kubectl, unless it is in the cache.
pub fn ensure(layout: &Layout) -> Result<()> {
    let folder = layout.cache.join(FOLDER);
    if newer(layout).is_file() {
        return Ok(());
    }
    sh::progress(format_args!("unpacking Debian 13's kubectl into {}", folder.display()));
    let staging = layout.cache.join(format!(".{FOLDER}.new"));
    let _ = fs::remove_dir_all(&staging);
    fs::create_dir_all(&staging).with_context(|| format!("make {}", staging.display()))?;
    let apt = Apt::new(&layout.cache.join(format!(".{FOLDER}.apt")), &SOURCES)?;
    let downloaded = apt.download(&[PACKAGE], &staging);
    apt.remove();
    downloaded?;
    for package in archive::packages_in(&staging)? {
        apt::extract(&package, &staging)?;
        fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    }
    ensure!(staging.join("usr/bin/kubectl").is_file(), "Debian 13's package {PACKAGE} has no kubectl");
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&staging, &folder).with_context(|| format!("make {}", folder.display()))
}

/// The newer kubectl itself, which reaches no cluster.
pub fn newer(layout: &Layout) -> PathBuf {
    layout.cache.join(FOLDER).join("usr/bin/kubectl")
}

/// Writes the scripts, which name the process that holds the namespaces.
pub fn write_scripts(layout: &Layout, holder: Process) -> Result<()> {
    write_script(layout, holder, &layout.kubectl(), &newer(layout))?;
    write_script(layout, holder, &layout.kubectl_old(), &layout.program("kubectl"))
}

fn write_script(layout: &Layout, holder: Process, script: &Path, program: &Path) -> Result<()> {
    let (kubeconfig, home) = (layout.kubeconfig("admin"), layout.run.join("home"));
    // Only the network: the caller's files and working directory stay as they are. HOME holds kubectl's cache.
    let text = format!(
        "#!/bin/sh\nexport KUBECONFIG='{}' HOME='{}'\nexec nsenter --target={} --net -- '{}' \"$@\"\n",
        kubeconfig.display(),
        home.display(),
        holder.pid,
        program.display()
    );
    fs::write(script, text)
        .and_then(|()| fs::set_permissions(script, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("write {}", script.display()))
}

/// Calls the newer kubectl quietly, and returns what it prints.
pub fn call(layout: &Layout, arguments: &[&str]) -> Result<String> {
    sh::capture(Command::new(layout.kubectl()).args(arguments))
}
