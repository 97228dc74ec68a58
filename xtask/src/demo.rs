//! `cargo xtask demo [--out DIR] [--keep]`: installs, builds, and runs the demo program of tests/demo.
//!
//! A first run must be short. So podopsy and the demo are compiled in one go, in the profile and the target folder that
//! xtask itself was compiled in: they share their dependencies. Static binaries, as they ship, are `cargo xtask image`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::setup::{self, Group};
use crate::sh;
use crate::statics::{self, Statics};

/// Unix time in seconds at which xtask/launch was started; it announces the steps and makes the first.
const STARTED: &str = "PODOPSY_DEMO_STARTED";
const STEPS: usize = 5;
const DEMO_STEP: &str = "run two pods and record them (about 2 minutes)";
const DASHBOARD_STEP: &str = "run six pods and record them (about 5 minutes)";

/// How the demo is run.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DemoOptions {
    /// The folder for events.jsonl, profile.pb.gz, profile.svg and the agent's history
    #[arg(long, default_value = "demo-out")]
    pub out: PathBuf,
    /// Leave the pods and the agent running, for commands of your own, until Enter is pressed
    #[arg(long)]
    pub keep: bool,
    /// Write what the README's commands print into this folder
    #[arg(skip)]
    pub pictures: Option<PathBuf>,
    /// Run a longer story with more pods, and have the agent serve its metrics at this address
    #[arg(skip)]
    pub metrics: Option<SocketAddr>,
}

/// The command.
pub fn run(options: &DemoOptions) -> Result<()> {
    let out = &options.out;
    sh::need_root(&format!("demo --out {}", out.display()), "loads kernel probes and starts containers")?;
    // Relative to where the user stands, not to the workspace.
    let out = std::path::absolute(out).with_context(|| out.display().to_string())?;
    let clock = Clock::from_launcher();
    clock.step(2, "install what the demo needs (seconds, if it is here)");
    setup::install(&[Group::Demo])?;
    clock.step(3, "compile the misbehaving programs (about 10 s the first time)");
    let victims = statics::build(Statics::Victims)?;
    clock.step(4, "compile podopsy (about 5 minutes on 2 cores the first time)");
    let binaries = build()?;
    clock.step(5, if options.metrics.is_some() { DASHBOARD_STEP } else { DEMO_STEP });
    let mut demo = Command::new(binaries.join("podopsy-demo"));
    demo.arg("--out").arg(&out);
    if options.keep {
        demo.arg("--keep");
    }
    if let Some(folder) = &options.pictures {
        demo.arg("--pictures").arg(folder);
    }
    if let Some(address) = options.metrics {
        demo.arg("--metrics").arg(address.to_string());
    }
    demo.env(Statics::Victims.variable(), victims).env(Statics::Podopsy.variable(), binaries);
    sh::run(&mut demo)?;
    clock.report("the demo is over");
    Ok(())
}

/// Builds podopsy and the demo program, and returns the folder of both.
fn build() -> Result<PathBuf> {
    sh::run(sh::cargo().args([
        "build",
        "--package",
        "podopsy",
        "--package",
        "podopsy-agent",
        "--package",
        "podopsy-demo",
    ]))?;
    // The same profile and target folder as ours.
    let own = std::env::current_exe().context("find xtask's own program")?;
    Ok(own.parent().context("xtask's program is in no folder")?.to_owned())
}

/// The time since the command was typed.
struct Clock {
    started: SystemTime,
}

impl Clock {
    /// Called without the launcher, the time begins now.
    fn from_launcher() -> Clock {
        let seconds = std::env::var(STARTED).ok().and_then(|text| text.parse().ok());
        let started = seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        Clock { started: started.unwrap_or_else(SystemTime::now) }
    }

    fn step(&self, number: usize, what: &str) {
        self.report(&format!("step {number} of {STEPS}: {what}"));
    }

    fn report(&self, what: &str) {
        let elapsed = self.started.elapsed().unwrap_or_default().as_secs();
        eprintln!("\n==> [{}:{:02}] {what}", elapsed / 60, elapsed % 60);
    }
}
