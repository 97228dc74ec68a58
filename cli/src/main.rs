//! `podopsy`: what happened to this pod, and where in the code?
//!
//! | module | does |
//! |---|---|
//! | [`args`] | parses the command line with clap |
//! | [`cmd`] | one file per command: calls the libraries and passes the result to a renderer |
//! | [`render`] | formats results as text; writes only to the writer that it gets |
//! | [`exit`] | decides the exit code |
//!
//! The others are helpers: [`completion`], [`context`] (global options), [`evidence`] (of reports and bundles), [`fleet`] (the agents of a cluster), [`headroom`] (the memory limit of a pod), [`history`] (the agent's
//! history), [`jsonpath`], [`log`], [`mcp`] (the server for assistants), [`one_pod`] (the process that a command is about), [`privilege`], [`signals`],
//! [`output`] (files), [`past`] (events of the history), [`process`] (/proc), [`selection`] (TARGETs), [`selector`], [`terminal`], [`timeline`]
//! (the entries of one), [`top`] (rows of containers).
//!
//! Must not depend on: aya, the wire format of kernel records, CRI, the naming of cgroups.
#![forbid(unsafe_code)]

mod args;
mod cmd;
mod completion;
mod context;
mod evidence;
mod exit;
mod fleet;
mod headroom;
mod history;
mod jsonpath;
mod log;
mod mcp;
mod one_pod;
mod output;
mod past;
mod privilege;
mod process;
mod render;
mod selection;
mod selector;
mod signals;
mod terminal;
mod timeline;
mod top;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use args::{Called, Cli, Command, FleetCli, FleetCommand};
use context::Context;
use exit::CommandOutcome;
use fleet::ClusterAgents;
use podopsy_system::heap;

const MAX_WORKERS: usize = 4;

fn main() -> ExitCode {
    // First: the helpers' read-ahead is charged to the pod, too.
    headroom::settle();
    if let Some(code) = podopsy_stacks::run_if_asked() {
        return code;
    }
    heap::keep_small();
    exit::panics_in_one_line();
    exit::code(|| {
        let called = args::parse()?;
        match &called {
            Called::Podopsy(cli) => cli.global.color.set(),
            Called::Plugin(cli, _) => cli.options.color.set(),
        }
        match &called {
            // The doctor's report has everything that warnings would repeat, and a shell wants none.
            Called::Podopsy(cli) => log::to_stderr(
                cli.global.verbose,
                matches!(cli.command, Command::Doctor(_) | Command::Complete(_)),
            ),
            Called::Plugin(cli, _) => log::to_stderr(cli.options.verbose, false),
        }
        let runtime = runtime().context("cannot start threads")?;
        let verdict = match called {
            Called::Podopsy(cli) => runtime.block_on(run(cli)),
            Called::Plugin(cli, forwarded) => runtime.block_on(run_plugin(cli, forwarded)),
        };
        // A call to the container runtime that hangs must not delay the exit.
        runtime.shutdown_background();
        verdict
    })
}

/// A thread for each processor takes 2 MiB on a large node, and most of podopsy waits.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(processors.min(MAX_WORKERS))
        .enable_all()
        .build()
}

async fn run(cli: Cli) -> anyhow::Result<CommandOutcome> {
    let context = Context::new(cli.global);
    match cli.command {
        Command::Watch(args) => cmd::watch::run(&context, args).await,
        Command::Dns(args) => cmd::dns::run(&context, args).await,
        Command::Profile(args) => cmd::profile::run(&context, args).await,
        Command::Oom(args) => cmd::oom::run(&context, args).await,
        Command::Events(args) => cmd::events::run(&context, args).await,
        Command::Timeline(args) => cmd::timeline::run(&context, args).await,
        Command::Top(args) => cmd::top::run(&context, args).await,
        Command::Report(args) => cmd::report::run(&context, args).await,
        Command::Bundle(args) => cmd::bundle::run(&context, args).await,
        Command::Restarts(args) => cmd::restarts::run(&context, args).await,
        Command::Pods(args) => cmd::pods::run(&context, args).await,
        Command::Inspect(args) => cmd::inspect::run(&context, args).await,
        Command::Net(args) => cmd::net::run(&context, args).await,
        Command::Enter(args) => cmd::enter::run(&context, args).await,
        Command::Core(args) => cmd::core::run(&context, args).await,
        Command::Doctor(args) => cmd::doctor::run(&context, args).await,
        Command::Explain(args) => cmd::explain::run(&context, &args),
        Command::Mcp(args) => cmd::mcp::run(&context, args).await,
        Command::Completion(args) => cmd::manual::completion(args),
        Command::ManPages(args) => cmd::manual::man_pages(&args),
        Command::Complete(args) => cmd::complete::run(&context, &args),
        Command::Bridge(args) => cmd::bridge::run(&args).await,
    }
}

/// kubectl's plugin: the same commands, with the agents of a cluster as their source.
async fn run_plugin(cli: FleetCli, forwarded: Vec<OsString>) -> anyhow::Result<CommandOutcome> {
    if let FleetCommand::Complete(args) = &cli.command {
        return cmd::complete::run_plugin(args);
    }
    let fleet = Arc::new(ClusterAgents::find(cli.options).await?);
    let context = Context::of_fleet(fleet.clone());
    let outcome = match cli.command {
        FleetCommand::Oom(args) => cmd::oom::run(&context, args).await,
        FleetCommand::Events(args) => cmd::events::run(&context, args).await,
        FleetCommand::Timeline(args) => cmd::remote::timeline(&fleet, &args, forwarded).await,
        FleetCommand::Top(args) => cmd::top::run(&context, args).await,
        FleetCommand::Restarts(args) => cmd::restarts::run(&context, args).await,
        FleetCommand::Pods(args) => cmd::pods::run(&context, args).await,
        FleetCommand::Watch(args) => cmd::fleet_watch::run(&context, &fleet, &args).await,
        FleetCommand::Dns(args) => cmd::remote::dns(&fleet, &args, forwarded).await,
        FleetCommand::Profile(args) => cmd::remote::profile(&context, &fleet, &args, forwarded).await,
        FleetCommand::Inspect(args) => cmd::remote::inspect(&fleet, &args, forwarded).await,
        FleetCommand::Doctor(args) => cmd::fleet_doctor::run(&context, &fleet, &args).await,
        FleetCommand::Mcp(_) => cmd::remote::mcp(&fleet).await,
        FleetCommand::Complete(_) => Ok(CommandOutcome::Success),
    };
    outcome.map(|outcome| if fleet.is_incomplete() { CommandOutcome::Incomplete } else { outcome })
}
