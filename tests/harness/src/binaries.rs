//! What goes into images: the victims, and podopsy's own binaries, static, built once per process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, bail};

/// Built already, by what it is.
static BUILT: Mutex<Vec<(&'static str, PathBuf)>> = Mutex::new(Vec::new());

/// Every victim, by the name that a container's command calls it.
pub const VICTIMS: [&str; 7] = ["burner", "dns-leaker", "exits", "leak", "lookup", "pause", "resolver"];

/// The folder of the victims, after building them.
pub fn victims(progress: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    build("victims", "PODOPSY_VICTIMS_DIR", progress)
}

/// The static `podopsy` and `podopsy-agent`, in that order, after building them (minutes the first time).
pub fn podopsy(progress: &dyn Fn(&str)) -> anyhow::Result<[PathBuf; 2]> {
    let folder = build("podopsy", "PODOPSY_DIST_DIR", progress)?;
    Ok([folder.join("podopsy"), folder.join("podopsy-agent")])
}

/// xtask knows the flags. Where it runs the tests, it has built already and says where: a lab machine has no
/// compiler to run.
fn build(what: &'static str, variable: &str, progress: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os(variable) {
        return Ok(folder.into());
    }
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, folder)) = built.iter().find(|(name, _)| *name == what) {
        return Ok(folder.clone());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("the workspace holds tests/harness")?;
    progress(&format!("cargo xtask build-static {what}"));
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["run", "--quiet", "--package", "xtask", "--", "build-static", what])
        // What the test's own cargo set for its children is not meant for xtask.
        .env_remove("CARGO_MANIFEST_DIR")
        .stdin(Stdio::null())
        .output()
        .context("run cargo")?;
    if !output.status.success() {
        bail!("cargo xtask build-static {what}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let said = String::from_utf8(output.stdout).context("the folder's name")?;
    let folder = PathBuf::from(said.trim_end());
    built.push((what, folder.clone()));
    Ok(folder)
}
