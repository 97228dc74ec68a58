//! `cargo xtask build-static <victims|guest|podopsy>`: the static binaries that go into images, and the folder they are
//! in.
//!
//! The flags are defined here alone: the image, the demo, the tests' harness and the lab all call this module.

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
    /// The program that runs tests in a lab machine
    Guest,
    /// `podopsy` and `podopsy-agent`, as they ship
    Podopsy,
}

/// Relocations in their short form (`DT_RELR`, since glibc 2.36) take 8 KiB instead of 750, which each start reads.
#[cfg(not(target_arch = "x86_64"))]
const SHIPPED: &str = "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs";
/// The same, and functions of the same code are linked once: a quarter of them is the same generic function again. Rust compares
/// no functions by address. This is an option of lld, which Rust links with for this processor alone.
#[cfg(target_arch = "x86_64")]
const SHIPPED: &str =
    "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--icf=all";

impl Statics {
    /// The cargo profile. It also names the target folder: with other flags in the same folder, cargo would compile
    /// everything again.
    fn profile(self) -> &'static str {
        match self {
            Statics::Victims | Statics::Guest => "victims",
            Statics::Podopsy => "dist",
        }
    }

    fn packages(self) -> &'static [&'static str] {
        match self {
            Statics::Victims => &["podopsy-victims"],
            Statics::Guest => &["podopsy-guest"],
            Statics::Podopsy => &["podopsy", "podopsy-agent"],
        }
    }

    /// Separated by spaces.
    fn flags(self) -> &'static str {
        match self {
            // The stack of an OOM kill's trigger is read by frame pointers. The debug information is compressed because
            // the standard library's is three quarters of a binary, and each test puts all binaries into an image.
            Statics::Victims | Statics::Guest => {
                "-C target-feature=+crt-static -C force-frame-pointers=yes -C link-arg=-Wl,--compress-debug-sections=zlib"
            }
            Statics::Podopsy => SHIPPED,
        }
    }

    /// The flags for rustc. What ships has no path of this machine in it, so that a build elsewhere gives the same bytes.
    fn rustflags(self) -> String {
        let mut flags: Vec<String> = self.flags().split(' ').map(str::to_owned).collect();
        if self == Statics::Podopsy {
            let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
            let cargo_home = cargo_home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
            let remap = |from: PathBuf, to| format!("--remap-path-prefix={}={to}", from.display());
            flags.extend(cargo_home.map(|home| remap(home, "/cargo")));
            flags.push(remap(sh::root(), "/podopsy"));
        }
        // A path may have spaces in it, so that RUSTFLAGS does not do.
        flags.join("\x1f")
    }

    /// The environment variable by which the harness gets the folder, so that it need not build.
    pub fn variable(self) -> &'static str {
        match self {
            Statics::Victims => "PODOPSY_VICTIMS_DIR",
            Statics::Guest => "PODOPSY_GUEST_DIR",
            Statics::Podopsy => "PODOPSY_DIST_DIR",
        }
    }
}

/// The command: prints the folder to stdout, everything else to stderr.
pub fn run(what: Statics) -> Result<()> {
    println!("{}", build(what)?.display());
    Ok(())
}

/// Builds, and returns the folder.
pub fn build(what: Statics) -> Result<PathBuf> {
    let target = target()?;
    let folder = sh::root().join("target").join(what.profile());
    let mut command = sh::cargo();
    // The explicit target, although it is the host's own, keeps the flags away from build scripts and macros, which
    // cannot be static.
    command.args(["build", "--profile", what.profile(), "--target", &target, "--bins", "--target-dir"]);
    command.arg(&folder).args(what.packages().iter().flat_map(|name| ["-p", name]));
    command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", what.rustflags());
    sh::progress(format_args!("$ {}", sh::show(&command)));
    // Our stdout is for the folder.
    let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status().context("start cargo")?;
    if !status.success() {
        bail!("{status}: {}", sh::show(&command));
    }
    Ok(folder.join(target).join(what.profile()))
}

/// The host's triple, for which everything static is built.
pub fn target() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let verbose = sh::capture(Command::new(rustc).arg("-vV").current_dir(sh::root()))?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}
