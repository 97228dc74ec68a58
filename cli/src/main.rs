//! `podopsy`: what happened to this pod, and where in the code?
//!
//! | room | does |
//! |---|---|
//! | [`args`] | the command line, as clap reads it |
//! | [`cmd`] | one file a command: asks the recorder's library, hands the answer to a renderer |
//! | [`render`] | answers to text; no I/O but the writer it is given |
//! | [`exit`] | the one place that decides the exit code |
//!
//! The rest are tools of those: [`context`] (global options), [`history`] (what an agent has kept), [`privilege`], [`signals`], [`output`]
//! (files), [`process`] (/proc), [`selector`], [`terminal`].
//!
//! Must not know: aya, the wire's records, CRI, how cgroups are named.
#![forbid(unsafe_code)]

mod args;
mod cmd;
mod context;
mod exit;
mod history;
mod output;
mod privilege;
mod process;
mod render;
mod selector;
mod signals;
mod terminal;

use std::process::ExitCode;

use anyhow::Context as _;
use args::{Cli, Command};
use context::Context;
use exit::Verdict;

fn main() -> ExitCode {
    exit::panics_in_one_line();
    exit::code(|| {
        let cli = args::parse()?;
        // What the doctor tries in vain stands in its report.
        terminal::log_to_stderr(cli.global.verbose, matches!(cli.command, Command::Doctor(_)));
        let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
        let verdict = runtime.block_on(run(cli));
        // A runtime's call that hangs must not hold up the end.
        runtime.shutdown_background();
        verdict
    })
}

async fn run(cli: Cli) -> anyhow::Result<Verdict> {
    let context = Context::new(cli.global);
    match cli.command {
        Command::Watch(args) => cmd::watch::run(&context, args).await,
        Command::Dns(args) => cmd::dns::run(&context, args).await,
        Command::Profile(args) => cmd::profile::run(&context, args).await,
        Command::Oom(args) => cmd::oom::run(&context, args).await,
        Command::Events(args) => cmd::events::run(&context, args).await,
        Command::Pods(args) => cmd::pods::run(&context, args).await,
        Command::Inspect(args) => cmd::inspect::run(&context, args).await,
        Command::Doctor(args) => cmd::doctor::run(&context, args).await,
    }
}
