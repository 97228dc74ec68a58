//! Arguments of `report` and `bundle`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use podopsy_model::Target;
use podopsy_model::duration;
use serde::{Deserialize, Serialize};

use super::{HistoryArgs, PodFilterArgs, examples};

/// Write one HTML file about some pods: verdict, timeline, memory, flame graphs, failed lookups, autopsies
///
/// Needs an agent that runs with --state-dir, or a bundle (--from). The file opens in any browser and loads nothing from a
/// network. Each statement says how it is known: observed, inferred, or correlated. It has names of pods, processes and
/// functions: `podopsy bundle --redact`, and then `podopsy report --from`, leaves names out. Exits 1 if there is nothing.
#[derive(Debug, Args)]
#[command(after_help = examples::REPORT)]
pub struct ReportArgs {
    #[command(flatten)]
    pub evidence: EvidenceArgs,

    /// The file to write, or - for stdout
    #[arg(short, long, value_name = "FILE")]
    pub write: PathBuf,
}

/// Write the evidence about some pods to one file that other commands read: events, memory, profile, autopsies, losses
///
/// Needs an agent that runs with --state-dir. `oom show`, `timeline` and `report` read the file with --from, on any machine
/// and without an agent. It is a gzipped tar archive of text files and a pprof profile. It holds names of pods, hosts and
/// processes, and no content of memory, of files or of packets. Exits 1 if there is nothing.
#[derive(Debug, Args)]
#[command(after_help = examples::BUNDLE)]
pub struct BundleArgs {
    #[command(flatten)]
    pub evidence: EvidenceArgs,

    /// The file to write, or - for stdout; by convention it ends in .podopsy
    #[arg(short, long, value_name = "FILE")]
    pub write: PathBuf,

    /// Replace names by numbers: `names` are those of pods, containers, images, nodes and cgroups, labels, DNS names and
    /// addresses; `args` are the names of processes and program files. Names of functions stay
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    pub redact: Vec<Redaction>,
}

/// What a bundle leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Redaction {
    Names,
    Args,
}

/// What a report or a bundle is about.
#[derive(Debug, Args)]
pub struct EvidenceArgs {
    /// Pods, containers or controllers, such as shop/cart or deploy/cart
    #[arg(value_name = "TARGET", required_unless_present_any = ["namespace", "selector", "all_namespaces", "incident", "from"])]
    pub targets: Vec<Target>,

    #[command(flatten)]
    pub pods: PodFilterArgs,

    /// The pod of this incident, around its time; the id is from `podopsy oom`, or the beginning of one
    #[arg(long, value_name = "ID", conflicts_with_all = ["targets", "namespace", "selector", "all_namespaces"])]
    pub incident: Option<String>,

    /// Only the last TIME, such as 10m, 24h or 7d; with --incident, the TIME before it
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse, conflicts_with = "from")]
    pub since: Duration,

    /// Read a bundle instead of the agent's history
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    #[command(flatten)]
    pub history: HistoryArgs,
}
