//! The static binaries that go into images: the victims and podopsy. Built once per process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, bail};

/// The folders that this process has built, by the argument of `build-static`.
static BUILT: Mutex<Vec<(&'static str, PathBuf)>> = Mutex::new(Vec::new());

/// Every victim's program name, as a container's command calls it.
pub const VICTIMS: [&str; 7] = ["burner", "dns-leaker", "exits", "leak", "lookup", "pause", "resolver"];

/// Builds the victims and returns their folder.
pub fn victims(progress: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    build("victims", "PODOPSY_VICTIMS_DIR", progress)
}

/// Builds the static `podopsy` and `podopsy-agent` (minutes the first time) and returns their paths in that order.
pub fn podopsy(progress: &dyn Fn(&str)) -> anyhow::Result<[PathBuf; 2]> {
    let folder = build("podopsy", "PODOPSY_DIST_DIR", progress)?;
    Ok([folder.join("podopsy"), folder.join("podopsy-agent")])
}

/// Builds by xtask, which defines the flags. When xtask runs the tests, it has built already and passes the folder in
/// `variable`: a lab machine has no compiler.
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
        // The test's own cargo has set it, and xtask would take it for its own.
        .env_remove("CARGO_MANIFEST_DIR")
        .stdin(Stdio::null())
        .output()
        .context("run cargo")?;
    if !output.status.success() {
        bail!("cargo xtask build-static {what}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let printed = String::from_utf8(output.stdout).context("read the folder that build-static printed")?;
    let folder = PathBuf::from(printed.trim_end());
    built.push((what, folder.clone()));
    Ok(folder)
}
