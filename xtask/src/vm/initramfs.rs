//! A lab machine's first file system: the guest program, its job, and the modules that its real root needs.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::kernels::LocalKernel;
use crate::sh;

/// The modules that mount the shared root; the others are loaded from there.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Writes the initramfs into `folder` and returns its path.
pub fn write(folder: &Path, kernel: &LocalKernel, guest: &Path, job: &str) -> Result<PathBuf> {
    let stage = folder.join("initramfs");
    let _ = fs::remove_dir_all(&stage);
    for name in ["proc", "sys", "dev", "modules"] {
        fs::create_dir_all(stage.join(name)).with_context(|| format!("make {}", stage.display()))?;
    }
    fs::copy(guest, stage.join("init")).with_context(|| format!("copy {}", guest.display()))?;
    fs::write(stage.join("job"), job)?;
    for (number, module) in modules(kernel)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let to = stage.join("modules").join(format!("{number:02}-{}", name.trim_end_matches(".xz")));
        if name.ends_with(".xz") {
            let plain = Command::new("xz").arg("-dc").arg(module).output().context("start xz")?;
            ensure!(plain.status.success(), "xz -dc {}: {}", module.display(), plain.status);
            fs::write(&to, plain.stdout)?;
        } else {
            fs::copy(module, &to)?;
        }
    }
    let archive = folder.join("initramfs.cpio");
    pack(&stage, &archive)?;
    fs::remove_dir_all(&stage)?;
    Ok(archive)
}

/// The files of [`MODULES`] and of their dependencies, in the order to load them.
fn modules(kernel: &LocalKernel) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for module in MODULES {
        let listing = sh::capture(
            Command::new("/sbin/modprobe")
                .args(["--show-depends", "-S", &kernel.release, "-d"])
                .arg(&kernel.base)
                .arg(module),
        )?;
        for line in listing.lines() {
            // "insmod FILE OPTIONS", or "builtin NAME".
            let file = line.strip_prefix("insmod ").map(|rest| PathBuf::from(rest.trim()));
            files.extend(file.filter(|file| !files.contains(file)));
        }
    }
    Ok(files)
}

fn pack(stage: &Path, archive: &Path) -> Result<()> {
    let mut names = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(stage.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                todo.push(path.clone());
            }
            names.push(path);
        }
    }
    // A folder has to come before its contents.
    names.sort();
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(stage)
        .stdin(Stdio::piped())
        .stdout(File::create(archive).with_context(|| format!("write {}", archive.display()))?)
        .spawn()
        .context("start cpio")?;
    if let Some(mut to) = cpio.stdin.take() {
        for name in names {
            writeln!(to, "{}", name.display())?;
        }
    }
    let status = cpio.wait()?;
    ensure!(status.success(), "cpio: {status}");
    Ok(())
}
