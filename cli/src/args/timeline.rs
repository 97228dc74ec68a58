//! Arguments of `timeline` and `restarts`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use podopsy_model::Target;
use podopsy_model::duration;

use super::{HistoryArgs, OutputArgs, PodFilterArgs, SelectionArgs, examples};

/// Show what happened to some pods in time order: starts, restarts, kills, memory near its limit, failed lookups
///
/// Needs an agent that runs with --state-dir. Each line says how it is known: observed, inferred, or correlated. A
/// correlation says that two things line up in time, and not that one caused the other. Exits 1 if there is nothing.
#[derive(Debug, Args)]
#[command(after_help = examples::TIMELINE)]
pub struct TimelineArgs {
    /// Pods, containers or controllers, such as shop/cart or deploy/cart
    #[arg(value_name = "TARGET", required_unless_present_any = ["namespace", "selector", "all_namespaces", "from"])]
    pub targets: Vec<Target>,

    #[command(flatten)]
    pub pods: PodFilterArgs,

    /// Only the last TIME, such as 10m, 24h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse)]
    pub since: Duration,

    /// Read a bundle instead of the agent's history
    #[arg(long, value_name = "FILE", conflicts_with = "since")]
    pub from: Option<PathBuf>,

    /// Go on with what happens from now on, until Ctrl-C
    #[arg(short, long, conflicts_with = "from")]
    pub follow: bool,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub history: HistoryArgs,
}

/// List containers that have restarted, with the last reason: what Kubernetes says, and beside it what the kernel says
///
/// Asks the container runtime for the pods, and the agent (or the store that it left) for the kills. Sorted by restarts,
/// the most first. Exits 1 if no container has restarted.
#[derive(Debug, Args)]
#[command(after_help = examples::RESTARTS)]
pub struct RestartsArgs {
    #[command(flatten)]
    pub selection: SelectionArgs,

    /// Also containers that have not restarted
    #[arg(long)]
    pub all: bool,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub history: HistoryArgs,
}

/// Explain a term, as the glossary defines it
///
/// Without a TOPIC, lists all terms. Exits 1 if there is no such term.
#[derive(Debug, Args)]
#[command(after_help = examples::EXPLAIN)]
pub struct ExplainArgs {
    /// A term, or a part of one
    #[arg(value_name = "TOPIC")]
    pub topic: Vec<String>,
}
