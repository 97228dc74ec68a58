//! `cargo xtask demo [--out DIR]`: installs, builds, and hands over to the demo program of tests/.

use std::path::Path;

use anyhow::{Context, Result};

use crate::setup::{self, Group};
use crate::{image, sh};

/// The command.
pub fn run(out: &Path) -> Result<()> {
    sh::need_root(&format!("demo --out {}", out.display()), "loads kernel probes and starts containers")?;
    // Relative to where the user stands, not to the workspace.
    let out = std::path::absolute(out).with_context(|| out.display().to_string())?;
    sh::say("1/3 what the demo needs");
    setup::install(&[Group::Demo])?;
    sh::say("2/3 static binaries, as they ship (the first build takes minutes, later ones seconds)");
    image::build_static()?;
    sh::say("3/3 two pods, recorded");
    let mut command = sh::cargo();
    command.args(["run", "--package", "podopsy-tests", "--bin", "podopsy-demo", "--", "--out"]).arg(&out);
    sh::run(&mut command)
}
