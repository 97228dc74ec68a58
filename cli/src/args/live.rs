//! Arguments of the commands that record: watch, dns, profile.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use podopsy_model::Target;
use podopsy_model::duration;
use podopsy_model::profile::Sampling;
use podopsy_profiles::export::Format;
use podopsy_recorder::DnsHook;

use super::{HistoryDir, ListFormat};
use crate::exit::Refused;
use crate::output::{self, Output};
use crate::render::dns::Shown;
use crate::selector::Selector;

/// Show OOM kills, other SIGKILLs and failed DNS lookups as they happen, each with its pod
///
/// A SIGKILL is told some seconds later, with what Kubernetes made of it; those that a container's processes send each
/// other are counted and not shown.
///
/// Says on stderr when it is recording; ends by Ctrl-C, --count or --duration, with a summary on stderr.
/// Exits 1 if --duration ends before --count events were seen.
#[derive(Debug, Args)]
pub struct Watch {
    /// What to watch; all if left out
    #[arg(value_enum, value_name = "KIND")]
    pub kinds: Vec<WatchKind>,

    /// Show answered lookups too
    #[arg(long)]
    pub all: bool,

    /// Show SIGKILLs of host processes too, not only of containers'
    #[arg(long)]
    pub host: bool,

    /// A lookup without an answer for this long is a timeout
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse_dns_timeout)]
    pub dns_timeout: Duration,

    /// Show answered lookups that took longer, too
    #[arg(long, value_name = "TIME", value_parser = duration::parse_dns_slow)]
    pub slow_over: Option<Duration>,

    /// Show one answered lookup in so many, too
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

    /// Only events of pods in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Stop after this time
    #[arg(short, long, value_name = "TIME", value_parser = duration::parse)]
    pub duration: Option<Duration>,

    /// wide: nothing is cut off; json: one event object a line
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ListFormat::Table)]
    pub output: ListFormat,
}

impl Watch {
    pub fn wants(&self, kind: WatchKind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WatchKind {
    /// OOM kills
    Oom,
    /// SIGKILLs that no OOM killer sent
    Sigkill,
    /// DNS lookups
    Dns,
}

/// Where DNS is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hook {
    /// cgroup; where that is out of reach (an ephemeral container), socket
    Auto,
    /// Every pod of the node: needs CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and the node's root cgroup
    Cgroup,
    /// This network namespace alone: needs CAP_NET_RAW, no BPF
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

/// Show what applications look up, what they get and how long they wait; a summary by pod, name and resolver at the end
///
/// A lookup is what the application asked for: search domains, A and AAAA, retries, other servers and TCP are its queries.
/// Shows failed lookups and those over --over, unless --failed, --slow or --all says otherwise; the summary counts all.
/// Each is told when no more of it can come: the time of --dns-timeout and a second after its end, and longer while a part
/// of it may be unanswered.
/// DNS over TLS and HTTPS is encrypted, and not seen.
///
/// In an ephemeral container (kubectl debug), --dns-hook socket sees the lookups of that pod, and needs CAP_NET_RAW alone.
#[derive(Debug, Args)]
pub struct Dns {
    /// Whose: namespace/pod[/container], a pod name, a container id prefix, pid:N or cgroup:PATH; everybody's if left out
    pub target: Option<Target>,

    /// Show lookups that failed
    #[arg(long)]
    pub failed: bool,

    /// Show lookups that took long (see --over)
    #[arg(long)]
    pub slow: bool,

    /// Show every lookup
    #[arg(long, conflicts_with_all = ["failed", "slow"])]
    pub all: bool,

    /// From what time on a lookup is slow
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

    /// Only lookups of pods in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Only lookups of pods with these labels: key=value, key!=value, key or !key, with commas between
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<Selector>,

    /// How many failing names the summary lists
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,

    /// wide: nothing is cut off; json: one event object a line, the summary last (kind dns.summary)
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = ListFormat::Table)]
    pub output: ListFormat,
}

impl Dns {
    pub fn shown(&self) -> Shown {
        let usual = !self.failed && !self.slow;
        let over = u64::try_from(self.over.as_nanos()).unwrap_or(u64::MAX);
        Shown {
            all: self.all,
            failed: self.failed || usual,
            slow_over_ns: (self.slow || usual).then_some(over),
        }
    }
}

/// Sample where a pod, a process or the node spends its CPU time
///
/// Ctrl-C ends the sampling early; what was sampled until then is still written.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Profile {
    #[command(subcommand)]
    pub diff: Option<ProfileCommand>,

    /// namespace/pod[/container], a pod name, a container id prefix, pid:N or cgroup:PATH
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub target: Option<Target>,

    /// The whole node
    #[arg(short, long)]
    pub all: bool,

    /// Not from now on, but what the agent has kept since so long ago (its --profile-hz is not 0)
    #[arg(long, value_name = "TIME", value_parser = duration::parse, conflicts_with_all = ["duration", "frequency", "growth", "stacks"])]
    pub since: Option<Duration>,

    /// How long to sample
    #[arg(short, long, value_name = "TIME", default_value = "30s", value_parser = duration::parse_sampling)]
    pub duration: Duration,

    /// Samples a second on each CPU (1 to 1000)
    #[arg(short = 'F', long, value_name = "HZ", default_value_t = 99, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub frequency: u64,

    /// Not CPU time but memory: the code paths that touch pages for the first time, and so make the resident set grow
    #[arg(long, conflicts_with = "frequency")]
    pub growth: bool,

    /// With --growth: a sample every N page faults on each CPU (a huge page is one fault)
    #[arg(long, value_name = "N", default_value_t = 16, requires = "growth", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub every: u64,

    /// How to follow user stacks: by unwind tables, which are made of programs' files as they are met, or by the frame
    /// pointers that programs were compiled with (most distributions' are not). A kernel that cannot unwind by tables
    /// gets frame pointers, and podopsy says so
    #[arg(long, value_name = "HOW", default_value = "tables")]
    pub stacks: Stacks,

    /// Where to write it, by ending: .pb.gz (pprof), .folded, .svg (flame graph), .speedscope.json, .firefox.json
    /// (profiler.firefox.com); may be repeated
    #[arg(short, long = "output", value_name = "FILE")]
    pub outputs: Vec<PathBuf>,

    /// The files' format, whatever their endings: pprof, folded, svg, speedscope, firefox
    #[arg(long, value_name = "FORMAT", requires = "outputs", value_parser = output::format)]
    pub format: Option<Format>,

    /// How many functions to list at the end
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub top: usize,

    #[command(flatten)]
    pub history: HistoryDir,
}

#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    Diff(Diff),
}

/// Compare two profiles, function by function: what takes more after, and what less
///
/// Takes pprof files of any program, gzipped or not. Shares of each profile's total are compared, so that profiles of
/// different lengths and loads can be; --absolute compares the values as they are.
/// Needs no privilege. Exits 0 if they were compared, 1 if one has no samples or cannot be read, 2 for wrong usage.
#[derive(Debug, Args)]
pub struct Diff {
    /// The profile before: a pprof file (.pb.gz)
    pub before: PathBuf,

    /// The profile after
    pub after: PathBuf,

    /// Compare values as they are, and not shares of the total
    #[arg(long)]
    pub absolute: bool,

    /// Which values to compare: cpu, samples, page_faults … [default: the files' own default]
    #[arg(long, value_name = "KIND")]
    pub value: Option<String>,

    /// How many functions to list; 0 lists all
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub top: usize,

    /// Where to write both as one picture, by ending: .folded (two counts a line) or .svg (red: more, blue: less)
    #[arg(short, long, value_name = "FILE")]
    pub write: Vec<PathBuf>,

    /// json: every function, with exact values
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = DiffFormat::Table)]
    pub output: DiffFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiffFormat {
    Table,
    /// Nothing is cut off
    Wide,
    Json,
}

/// How user stacks are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stacks {
    FramePointers,
    Tables,
}

impl Profile {
    pub fn sampling(&self) -> Sampling {
        match self.growth {
            true => Sampling::Growth { every: self.every },
            false => Sampling::Cpu { frequency_hz: self.frequency },
        }
    }

    /// The files to write, each with its format.
    pub fn outputs(&self) -> Result<Vec<Output>, Refused> {
        self.outputs.iter().map(|path| Output::new(path.clone(), self.format)).collect()
    }

    pub fn target(&self) -> &Target {
        // Without a target clap insists on --all.
        self.target.as_ref().unwrap_or(&Target::All)
    }
}
