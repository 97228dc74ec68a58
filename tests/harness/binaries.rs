//! Builds what goes into images: the victims, and podopsy's own binaries, static, once per process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, bail};

/// Built already, by cargo profile.
static BUILT: Mutex<Vec<(&'static str, PathBuf)>> = Mutex::new(Vec::new());

/// Every victim, by the name that a container's command calls it.
pub const VICTIMS: [&str; 7] = ["burner", "dns-leaker", "exits", "leak", "lookup", "pause", "resolver"];

/// The folder of the victims, after building them.
pub fn victims(progress: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    let flags = "-C target-feature=+crt-static -C force-frame-pointers=yes";
    build("victims", &["-p", "podopsy-victims", "--bins"], flags, progress)
}

/// The static `podopsy` and `podopsy-agent`, in that order, after building them (minutes the first time).
pub fn podopsy(progress: &dyn Fn(&str)) -> anyhow::Result<[PathBuf; 2]> {
    let packages = ["-p", "podopsy", "-p", "podopsy-agent", "--bins"];
    let folder = build("dist", &packages, "-C target-feature=+crt-static", progress)?;
    Ok([folder.join("podopsy"), folder.join("podopsy-agent")])
}

/// The triple that everything static is built for: the one place that knows it. Naming it, even though it is
/// the host's own, keeps the flags away from build scripts and proc macros, which cannot be static.
pub fn target() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("run rustc: https://rustup.rs")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV does not say its host")
}

fn build(
    profile: &'static str,
    packages: &[&str],
    flags: &str,
    progress: &dyn Fn(&str),
) -> anyhow::Result<PathBuf> {
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, folder)) = built.iter().find(|(name, _)| *name == profile) {
        return Ok(folder.clone());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace is above tests/")?;
    let target = target()?;
    let target_dir = root.join("target").join(profile);
    progress(&format!("building {} for {target}", packages.join(" ")));
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["build", "--quiet", "--profile", profile, "--target", &target])
        .args(packages)
        .arg("--target-dir")
        .arg(&target_dir)
        // What the test's own cargo set for its children would change the build.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", flags)
        .output()
        .context("run cargo")?;
    if !output.status.success() {
        bail!("cargo build {}: {}", packages.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    let folder = target_dir.join(&target).join(profile);
    built.push((profile, folder.clone()));
    Ok(folder)
}
