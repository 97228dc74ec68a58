//! `podopsy-demo`: an outage on real pods, recorded by podopsy. Run by `cargo xtask demo`.
//!
//! `finance/checkout-api` leaks a buffer on every failed DNS lookup; its resolver stops answering;
//! `finance/pricing` burns CPU beside it. podopsy records both. This program draws no
//! conclusions of its own: it prints what podopsy wrote.

mod dashboard;
mod outage;
mod pictures;
mod recorder;
mod report;

use std::io::{self, BufRead as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use outage::Outage;

#[derive(Parser)]
struct Args {
    /// The folder for what podopsy writes
    #[arg(long, default_value = "demo-out")]
    out: PathBuf,
    /// Leave the pods and the agent running until Enter is pressed
    #[arg(long)]
    keep: bool,
    /// Write what the README's commands print into this folder
    #[arg(long)]
    pictures: Option<PathBuf>,
    /// Run a longer story with more pods, while the agent serves its metrics at this address
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["keep", "pictures"])]
    metrics: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podopsy-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(address) = args.metrics {
        return dashboard::run(address, &args.out);
    }
    let mut outage = Outage::start(&args.out)?;
    let recorded = outage.record()?;
    report::print(&recorded, &args.out);
    if let Some(folder) = &args.pictures {
        pictures::write(&outage.recorder, &recorded, folder)?;
    }
    report::commands(&outage.recorder, &recorded, args.keep);
    if args.keep {
        wait_for_enter();
    }
    report::step("stop the agent and the pods");
    outage.recorder.end()
}

/// Without a terminal, a signal ends the demo: the harness then removes what it started.
fn wait_for_enter() {
    let mut line = String::new();
    if !matches!(io::stdin().lock().read_line(&mut line), Ok(read) if read > 0) {
        loop {
            std::thread::park();
        }
    }
}
