//! `cargo xtask build-static <victims|podopsy>`: the static binaries that go into images, and the folder they are in.
//!
//! The one place that knows their flags: the image, the demo, the tests' harness and the lab all come here.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::sh;

/// What to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Statics {
    /// The programs that misbehave on purpose
    Victims,
    /// `podopsy` and `podopsy-agent`, as they ship
    Podopsy,
}

impl Statics {
    /// The cargo profile, which also names the target folder: other flags there would build everything anew.
    fn profile(self) -> &'static str {
        match self {
            Statics::Victims => "victims",
            Statics::Podopsy => "dist",
        }
    }

    fn packages(self) -> &'static [&'static str] {
        match self {
            Statics::Victims => &["podopsy-victims", "podopsy-guest"],
            Statics::Podopsy => &["podopsy", "podopsy-agent"],
        }
    }

    fn flags(self) -> &'static str {
        match self {
            // The standard library's debug information is three quarters of a binary, and every test carries all of
            // them into an image.
            Statics::Victims => {
                "-C target-feature=+crt-static -C force-frame-pointers=yes -C link-arg=-Wl,--compress-debug-sections=zlib"
            }
            Statics::Podopsy => "-C target-feature=+crt-static",
        }
    }

    /// The environment variable that tells the harness the folder, so that it need not build.
    pub fn variable(self) -> &'static str {
        match self {
            Statics::Victims => "PODOPSY_VICTIMS_DIR",
            Statics::Podopsy => "PODOPSY_DIST_DIR",
        }
    }
}

/// The command: the folder on stdout, everything else on stderr.
pub fn run(what: Statics) -> Result<()> {
    println!("{}", build(what)?.display());
    Ok(())
}

/// Builds, and returns the folder.
pub fn build(what: Statics) -> Result<PathBuf> {
    let target = target()?;
    let folder = sh::root().join("target").join(what.profile());
    let mut command = sh::cargo();
    // Naming the target, even though it is the host's own, keeps the flags away from build scripts and macros,
    // which cannot be static.
    command.args(["build", "--profile", what.profile(), "--target", &target, "--bins", "--target-dir"]);
    command.arg(&folder).args(what.packages().iter().flat_map(|name| ["-p", name]));
    command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", what.flags());
    // Our stdout is for the folder.
    sh::say(format_args!("$ {}", sh::show(&command)));
    let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status().context("start cargo")?;
    if !status.success() {
        bail!("{status}: {}", sh::show(&command));
    }
    Ok(folder.join(target).join(what.profile()))
}

/// The triple that everything static is built for.
fn target() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let verbose = sh::capture(Command::new(rustc).arg("-vV").current_dir(sh::root()))?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}
