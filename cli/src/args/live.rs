//! Arguments of the commands that record: watch, dns, profile.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use podopsy_model::Target;
use podopsy_model::duration;
use podopsy_model::profile::Sampling;
use podopsy_model::target::TargetError;
use podopsy_profiles::export::Format;
use podopsy_recorder::DnsHook;

use super::{HistoryArgs, ListFormat, PodFilterArgs, SelectionArgs, examples};
use crate::exit::Refusal;
use crate::output::{self, Output};
use crate::render::dns::LookupFilter;

/// Show OOM kills, other SIGKILLs and failed DNS lookups as they happen, each with its pod
///
/// A SIGKILL is shown some seconds later, with the container's state in Kubernetes. SIGKILLs between processes of one
/// container are counted and not shown.
///
/// Prints a line on stderr when it records. Ends by Ctrl-C, --count or --duration, with a summary on stderr.
/// Exits 1 if --duration ends before --count events were seen.
#[derive(Debug, Args)]
#[command(after_help = examples::WATCH)]
pub struct WatchArgs {
    /// What to watch: oom, sigkill, dns [default: all]; and of which pods, such as shop/cart or deploy/cart [default: the
    /// whole node]. A pod that is called like a kind is pod/NAME
    #[arg(value_name = "KIND or TARGET")]
    pub words: Vec<WatchWord>,

    /// Show answered lookups too
    #[arg(long)]
    pub all: bool,

    /// Show AAAA answers without data as failures, too, where A was asked for as well: normal in a cluster with IPv4 only
    #[arg(long)]
    pub aaaa_nodata: bool,

    /// Show SIGKILLs to host processes, too, not only to processes of containers
    #[arg(long)]
    pub host: bool,

    /// A query without an answer for this long is a timeout
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse_dns_timeout)]
    pub dns_timeout: Duration,

    /// Show answered lookups that took longer than this, too
    #[arg(long, value_name = "TIME", value_parser = duration::parse_dns_slow)]
    pub slow_over: Option<Duration>,

    /// Show one in N answered lookups, too
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub sample: u32,

    /// A server port that carries DNS, instead of 53; up to four times (mDNS has 5353)
    #[arg(long = "dns-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub dns_ports: Vec<u16>,
    /// A resolver that answers by HTTPS, too: lookups there cannot be seen, and connections to it are counted as such
    #[arg(long = "doh-resolver", value_name = "ADDRESS")]
    pub doh_resolvers: Vec<IpAddr>,

    /// Where to see DNS: the node's, by its root cgroup, or this pod's, by a packet socket
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = Hook::Auto)]
    pub dns_hook: Hook,

    #[command(flatten)]
    pub pods: PodFilterArgs,

    /// Stop after this many events, and after the incidents of the OOM kills among them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Stop after this time
    #[arg(short, long, value_name = "TIME", value_parser = duration::parse)]
    pub duration: Option<Duration>,

    /// wide: nothing is cut off; json: one event object a line
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ListFormat::Table)]
    pub output: ListFormat,
}

impl WatchArgs {
    pub fn wants(&self, kind: WatchKind) -> bool {
        let mut kinds = self.words.iter().filter_map(|word| match word {
            WatchWord::Kind(kind) => Some(*kind),
            WatchWord::Target(_) => None,
        });
        let first = kinds.next();
        first.is_none_or(|first| first == kind || kinds.any(|other| other == kind))
    }

    pub fn targets(&self) -> Vec<Target> {
        let target = |word: &WatchWord| match word {
            WatchWord::Target(target) => Some(target.clone()),
            WatchWord::Kind(_) => None,
        };
        self.words.iter().filter_map(target).collect()
    }
}

/// A kind of event, or a TARGET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchWord {
    Kind(WatchKind),
    Target(Target),
}

impl FromStr for WatchWord {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<WatchWord, TargetError> {
        Ok(match <WatchKind as ValueEnum>::from_str(text, false) {
            Ok(kind) => WatchWord::Kind(kind),
            Err(_) => WatchWord::Target(text.parse()?),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WatchKind {
    Oom,
    /// SIGKILLs that no OOM killer sent.
    Sigkill,
    Dns,
}

/// Where DNS is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hook {
    /// cgroup, or socket where the root cgroup is out of reach (an ephemeral container)
    Auto,
    /// All pods of the node: needs CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and the node's root cgroup
    Cgroup,
    /// Only this network namespace: needs CAP_NET_RAW, no BPF
    Socket,
}

impl From<Hook> for DnsHook {
    fn from(hook: Hook) -> DnsHook {
        match hook {
            Hook::Auto => DnsHook::Auto,
            Hook::Cgroup => DnsHook::Cgroup,
            Hook::Socket => DnsHook::Socket,
        }
    }
}

/// Show DNS lookups with their results and wait times, and a summary by pod, name and resolver at the end
///
/// A lookup is what the application asked for. Its queries include search domains, A and AAAA, retries, other servers and
/// TCP. Without --failed, --slow or --all, shows lookups that failed or took longer than --over; the summary counts all.
/// A lookup is reported one second after --dns-timeout has passed since its last query.
/// DNS over TLS and HTTPS is encrypted and cannot be seen.
///
/// In an ephemeral container (kubectl debug), --dns-hook socket shows the lookups of that pod and needs only CAP_NET_RAW.
#[derive(Debug, Args)]
#[command(after_help = examples::DNS)]
pub struct DnsArgs {
    #[command(flatten)]
    pub selection: SelectionArgs,

    /// Show lookups that failed
    #[arg(long)]
    pub failed: bool,

    /// Show lookups that took long (see --over)
    #[arg(long)]
    pub slow: bool,

    /// Show every lookup
    #[arg(long, conflicts_with_all = ["failed", "slow"])]
    pub all: bool,

    /// A lookup that takes at least this long is slow
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = duration::parse)]
    pub over: Duration,

    /// Show each lookup's queries, too
    #[arg(long)]
    pub queries: bool,

    /// A query without an answer for this long is a timeout
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse_dns_timeout)]
    pub dns_timeout: Duration,

    /// A server port that carries DNS, instead of 53; up to four times (mDNS has 5353)
    #[arg(long = "dns-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub dns_ports: Vec<u16>,
    /// A resolver that answers by HTTPS, too: lookups there cannot be seen, and connections to it are counted as such
    #[arg(long = "doh-resolver", value_name = "ADDRESS")]
    pub doh_resolvers: Vec<IpAddr>,

    /// Where to see DNS: the node's, by its root cgroup, or this pod's, by a packet socket
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = Hook::Auto)]
    pub dns_hook: Hook,

    /// Stop after this time [default: at Ctrl-C]
    #[arg(long = "for", short = 'd', value_name = "TIME", value_parser = duration::parse)]
    pub for_: Option<Duration>,

    /// How many failing names the summary lists
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,

    /// wide: without cutting lines; json: one event object per line, the summary last (kind dns.summary)
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ListFormat::Table)]
    pub output: ListFormat,
}

impl DnsArgs {
    pub fn lookup_filter(&self) -> LookupFilter {
        let is_default = !self.failed && !self.slow;
        let over = u64::try_from(self.over.as_nanos()).unwrap_or(u64::MAX);
        LookupFilter {
            all: self.all,
            failed: self.failed || is_default,
            slow_over_ns: (self.slow || is_default).then_some(over),
        }
    }
}

/// Sample where a pod, a process or the node spends its CPU time
///
/// Ctrl-C ends the sampling early; the samples until then are still written.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(group = ArgGroup::new("file").args(["files", "outputs"]).multiple(true))]
#[command(after_help = examples::PROFILE)]
pub struct ProfileArgs {
    #[command(subcommand)]
    pub diff: Option<ProfileCommand>,

    /// Pods, containers, a process or controllers, such as shop/cart, deploy/cart or pid:4242
    #[arg(
        value_name = "TARGET",
        required_unless_present_any = ["all", "namespace", "selector", "all_namespaces"],
        conflicts_with = "all"
    )]
    pub targets: Vec<Target>,

    #[command(flatten)]
    pub pods: PodFilterArgs,

    /// The whole node, with what is in no pod
    #[arg(short, long, conflicts_with_all = ["namespace", "selector", "all_namespaces"])]
    pub all: bool,

    /// Read the agent's stored profiles of the last TIME instead of sampling now (its --profile-hz must not be 0)
    #[arg(long, value_name = "TIME", value_parser = duration::parse, conflicts_with_all = ["duration", "frequency", "growth", "stacks"])]
    pub since: Option<Duration>,

    /// How long to sample
    #[arg(short, long, value_name = "TIME", default_value = "30s", value_parser = duration::parse_sampling)]
    pub duration: Duration,

    /// Samples a second on each CPU (1 to 1000)
    #[arg(short = 'F', long, value_name = "HZ", default_value_t = 99, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub frequency: u64,

    /// Sample memory instead of CPU time: the code that touches pages for the first time and so makes the resident set grow
    #[arg(long, conflicts_with = "frequency")]
    pub growth: bool,

    /// With --growth: one sample per N page faults on each CPU (a huge page is one fault)
    #[arg(long, value_name = "N", default_value_t = 16, requires = "growth", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub every: u64,

    /// How to unwind user stacks: by unwind tables, which podopsy builds from the programs' files, or by frame pointers,
    /// which most distributions' programs do not have. On a kernel that cannot unwind by tables, podopsy falls back to
    /// frame pointers with a warning
    #[arg(long, value_name = "HOW", default_value = "tables")]
    pub stacks: Stacks,

    /// The file to write; its extension selects the format: .pb.gz (pprof), .folded, .svg (flame graph),
    /// .speedscope.json, .firefox.json (profiler.firefox.com); may be repeated. - with --format writes to stdout, and the
    /// list of functions is left out
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// How to list the functions: table, wide, json, yaml. Anything else is a FILE, as with --write
    #[arg(short, long = "output", value_name = "FORMAT or FILE")]
    pub outputs: Vec<PathBuf>,

    /// The files' format, whatever their extensions: pprof, folded, svg, speedscope, firefox
    #[arg(long, value_name = "FORMAT", requires = "file", value_parser = output::format)]
    pub format: Option<Format>,

    /// How many functions to list at the end
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub top: usize,

    #[command(flatten)]
    pub history: HistoryArgs,
}

/// How the list of a profile's functions is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopFormat {
    Table,
    /// Without cutting names.
    Wide,
    Json,
    Yaml,
}

fn top_format(output: &Path) -> Option<TopFormat> {
    match output.to_str()? {
        "table" => Some(TopFormat::Table),
        "wide" => Some(TopFormat::Wide),
        "json" => Some(TopFormat::Json),
        "yaml" => Some(TopFormat::Yaml),
        _ => None,
    }
}

#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    Diff(DiffArgs),
}

/// Compare two profiles function by function: which take more than before, and which take less
///
/// Takes pprof files of any program, gzipped or not. Compares shares of each profile's total, so that profiles of
/// different durations and loads are comparable; --absolute compares the values.
/// Needs no privilege. Exits 1 if one has no samples, 3 if one cannot be read.
#[derive(Debug, Args)]
#[command(after_help = examples::DIFF)]
pub struct DiffArgs {
    /// The profile before: a pprof file (.pb.gz)
    pub before: PathBuf,

    /// The profile after
    pub after: PathBuf,

    /// Compare values instead of shares of the total
    #[arg(long)]
    pub absolute: bool,

    /// Which values to compare: cpu, samples, page_faults … [default: the files' own default]
    #[arg(long, value_name = "KIND")]
    pub value: Option<String>,

    /// How many functions to list; 0 lists all
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub top: usize,

    /// Write both profiles to one file: .folded (two counts per line) or .svg (red: more, blue: less)
    #[arg(short, long, value_name = "FILE")]
    pub write: Vec<PathBuf>,

    /// json: every function, with exact values
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = DiffFormat::Table)]
    pub output: DiffFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiffFormat {
    Table,
    /// Without cutting lines
    Wide,
    Json,
}

/// How user stacks are unwound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stacks {
    FramePointers,
    Tables,
}

impl ProfileArgs {
    pub fn sampling(&self) -> Sampling {
        if self.growth {
            Sampling::Growth { every: self.every }
        } else {
            Sampling::Cpu { frequency_hz: self.frequency }
        }
    }

    /// The files to write, each with its format.
    pub fn outputs(&self) -> Result<Vec<Output>, Refusal> {
        let named = self.outputs.iter().filter(|output| top_format(output).is_none());
        self.files.iter().chain(named).map(|path| Output::new(path.clone(), self.format)).collect()
    }

    /// How to list the functions.
    pub fn top_format(&self) -> TopFormat {
        self.outputs.iter().rev().find_map(|output| top_format(output)).unwrap_or(TopFormat::Table)
    }
}
