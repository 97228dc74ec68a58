//! `podopsy`: what happened to this pod, and where in the code?
//!
//! | module | does |
//! |---|---|
//! | [`args`] | parses the command line with clap |
//! | [`cmd`] | one file per command: calls the libraries and passes the result to a renderer |
//! | [`render`] | formats results as text; writes only to the writer that it gets |
//! | [`exit`] | decides the exit code |
//!
//! The others are helpers: [`context`] (global options), [`headroom`] (the memory limit of a pod), [`history`] (the agent's
//! history), [`log`], [`privilege`], [`signals`],
//! [`output`] (files), [`process`] (/proc), [`selector`], [`terminal`].
//!
//! Must not depend on: aya, the wire format of kernel records, CRI, the naming of cgroups.
#![forbid(unsafe_code)]

mod args;
mod cmd;
mod context;
mod exit;
mod headroom;
mod history;
mod log;
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
use exit::CommandOutcome;
use podopsy_system::heap;

fn main() -> ExitCode {
    if let Some(code) = podopsy_stacks::run_if_asked() {
        return code;
    }
    heap::keep_small();
    headroom::settle();
    exit::panics_in_one_line();
    exit::code(|| {
        let cli = args::parse()?;
        // The doctor's report has everything that warnings would repeat.
        log::to_stderr(cli.global.verbose, matches!(cli.command, Command::Doctor(_)));
        let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
        let verdict = runtime.block_on(run(cli));
        // A call to the container runtime that hangs must not delay the exit.
        runtime.shutdown_background();
        verdict
    })
}

async fn run(cli: Cli) -> anyhow::Result<CommandOutcome> {
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
        Command::Completion(args) => cmd::manual::completion(args),
        Command::ManPages(args) => cmd::manual::man_pages(&args),
    }
}
