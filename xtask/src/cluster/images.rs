//! The images of the cluster: written as OCI archives, and imported into its containerd.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::config;
use super::layout::Layout;
use super::process::{self, Process};
use crate::sh;
use crate::statics::{self, Statics};

/// The image of every pod's sandbox.
pub const PAUSE: &str = "registry.podopsy.test/pause:1";
const VICTIMS: &str = "registry.podopsy.test/victims:1";
/// The second one has the same programs, so that tests can update the agent to another image.
const PODOPSY: [&str; 2] = ["registry.podopsy.test/podopsy:1", "registry.podopsy.test/podopsy:2"];

/// The program that writes archives.
const WRITER: &str = "podopsy-archives";

/// An image in a file.
#[derive(Debug)]
pub struct Archive {
    name: String,
    path: PathBuf,
}

/// Builds the static programs and writes the archives, by a program of tests/harness: xtask builds without podopsy's crates.
pub fn build(layout: &Layout) -> Result<Vec<Archive>> {
    sh::progress("== images");
    let (victims, podopsy) = (programs(Statics::Victims)?, programs(Statics::Podopsy)?);
    let folder = layout.cache.join("images");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    // The resolver runs beside the pods, and target/ may be rebuilt meanwhile.
    fs::copy(victims.join("resolver"), resolver_program(layout)).context("copy the resolver")?;
    let images = [("pause", PAUSE), ("victims", VICTIMS), ("podopsy", PODOPSY[0]), ("podopsy", PODOPSY[1])];
    let archive = |name: &str| folder.join(format!("{}.tar", name.replace(['/', ':'], "-")));
    let mut command = sh::cargo();
    // With the features of the whole workspace, as the tests are built.
    command.args(["build", "--quiet", "--workspace", "--bin", WRITER]);
    sh::run(&mut command)?;
    let mut writer = Command::new(own_folder()?.join(WRITER));
    writer.args(images.map(|(kind, name)| format!("{kind}={name}={}", archive(name).display())));
    writer.env(Statics::Victims.variable(), victims).env(Statics::Podopsy.variable(), podopsy);
    sh::run(&mut writer)?;
    Ok(images.map(|(_, name)| Archive { name: name.to_owned(), path: archive(name) }).into())
}

/// The folder of xtask's own program: cargo puts those of the same profile there.
fn own_folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find xtask's own program")?;
    Ok(own.parent().context("xtask's program is in no folder")?.to_owned())
}

/// The folder that the harness's variable names, or of a build.
fn programs(what: Statics) -> Result<PathBuf> {
    std::env::var_os(what.variable()).map_or_else(|| statics::build(what), |folder| Ok(folder.into()))
}

/// The DNS server of the pods.
pub fn resolver_program(layout: &Layout) -> PathBuf {
    layout.cache.join("images/resolver")
}

/// Imports the archives into the namespace that CRI reads.
pub fn import(layout: &Layout, holder: Process, archives: &[Archive]) -> Result<()> {
    for archive in archives {
        sh::progress(format_args!("loading image {}", archive.name));
        let path = archive.path.display().to_string();
        let snapshotter = config::snapshotter(&layout.node)?;
        let arguments = ["images", "import", "--snapshotter", snapshotter, &path];
        let output = sh::capture(&mut ctr(layout, holder, &arguments)?)
            .with_context(|| format!("import {}", archive.name))?;
        ensure!(output.contains(&archive.name), "the import of {} has brought: {output}", archive.name);
    }
    Ok(())
}

/// A call of containerd's client.
pub fn ctr(layout: &Layout, holder: Process, arguments: &[&str]) -> Result<Command> {
    let socket = layout.socket().display().to_string();
    let line =
        ["ctr", "--address", &socket, "--namespace", "k8s.io"].into_iter().chain(arguments.iter().copied());
    process::command(&process::inside(holder, line.map(str::to_owned)))
}
