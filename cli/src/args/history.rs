//! Arguments of the commands that read the agent's history.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use podopsy_model::EventKind;
use podopsy_model::duration;

use super::{OutputArgs, SelectionArgs, examples};

/// List past events from the agent's history, oldest first: kills, failed lookups
///
/// Needs an agent that runs with --state-dir. Without one, `podopsy oom` still finds kills, and `podopsy watch` shows new
/// events. Gaps in the history, when no agent ran or its store could not be written, are listed on stderr.
/// Exits 1 if there are no events.
#[derive(Debug, Args)]
#[command(after_help = examples::EVENTS)]
pub struct EventsArgs {
    #[command(flatten)]
    pub selection: SelectionArgs,

    /// Only events of the last TIME, such as 10m, 24h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse)]
    pub since: Duration,

    /// Only events of this kind; may be repeated
    #[arg(long = "kind", value_name = "KIND", value_parser = PossibleValuesParser::new(EventKind::ALL.map(EventKind::as_str)))]
    pub kinds: Vec<String>,

    /// At most the newest N events of the node
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub most: u32,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub history: HistoryArgs,
}

/// Where to find an agent's history.
#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    /// The agent's --state-dir
    #[arg(long, value_name = "DIR", env = "PODOPSY_STATE_DIR", default_value = podopsy_store::DIR)]
    pub state_dir: PathBuf,

    /// The agent's --socket [default: agent.sock in --state-dir, or in /run/podopsy]
    #[arg(long, value_name = "PATH", env = "PODOPSY_SOCKET")]
    pub socket: Option<PathBuf>,
}
