//! The agent's settings, as flags; the library's `config` has them from the environment and the file, too.

#[cfg(test)]
mod docs_tests;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use podopsy_agent::budget;
use podopsy_agent::config::{Origin, Setting};
use podopsy_agent::service::ExportArgs;
use podopsy_model::{bytes, duration};
use podopsy_recorder::GrowthMode;
use podopsy_recorder::options::{dns_ports, https_resolvers};
use podopsy_store::Limits;

/// Records OOM kills, other SIGKILLs and failed DNS lookups of every pod on this node, and writes them to stdout as
/// JSON lines.
///
/// Needs root, the host's pid namespace and its /sys/fs/cgroup (see manifests/). Its own log goes to stderr
/// (RUST_LOG=debug for more; PODOPSY_PROBE_LOG=debug for the kernel probes' own). SIGTERM and SIGINT end it
/// after what is under way has been written; SIGHUP reads the configuration again.
///
/// Each flag is a setting: --dns-timeout 3s is PODOPSY_DNS_TIMEOUT=3s in the environment, and dns-timeout = "3s" in the
/// file. A flag wins over the environment, and the environment over the file.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Settings as TOML; /etc/podopsy/agent.toml is read if it is there
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print every setting, as a file that says the same, with where its value comes from, and end
    #[arg(long)]
    pub print_config: bool,
    /// The node's name in events; the host's name otherwise
    #[arg(long, env = "NODE_NAME")]
    pub node: Option<String>,
    /// The container runtime's CRI v1 socket; the usual paths are tried otherwise
    #[arg(long, env = "PODOPSY_CRI_SOCKET", value_name = "PATH")]
    pub cri_socket: Option<PathBuf>,
    /// A DNS query without an answer for this long is a timeout
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse_dns_timeout)]
    pub dns_timeout: Duration,
    /// Write answered DNS queries that took longer than this (200ms), too
    #[arg(long, value_name = "TIME", value_parser = duration::parse_dns_slow)]
    pub dns_slow_over: Option<Duration>,
    /// Write one answered DNS query in so many, too
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub dns_sample: u32,
    /// A server port that carries DNS, instead of 53; up to four times (mDNS has 5353)
    #[arg(long = "dns-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub dns_ports: Vec<u16>,
    /// A resolver that answers by HTTPS, too: lookups there cannot be seen, and connections to it are counted as such
    #[arg(long = "doh-resolver", value_name = "ADDRESS")]
    pub doh_resolvers: Vec<IpAddr>,
    /// Write answered DNS queries too, not only failures
    #[arg(long)]
    pub dns_answers: bool,
    /// Tell SIGKILLs of host processes, too, not only of containers'
    #[arg(long)]
    pub sigkill_host: bool,
    /// A folder that outlives the agent: OOM kills that happen while it is down are told by the next start, and
    /// `podopsy oom` finds its incidents there (it looks in /var/lib/podopsy)
    #[arg(long, env = "PODOPSY_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// How much of the disk the history may take; the oldest leaves first (needs --state-dir; SIGHUP changes it)
    #[arg(long, value_name = "BYTES", default_value = "512MiB", value_parser = bytes::parse_store)]
    pub store_bytes: u64,
    /// How far back the history goes, but for kills, which stay as long as there is room (SIGHUP changes it)
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse)]
    pub store_age: Duration,
    /// Where the API listens, for root and the agent's own user; agent.sock in the --state-dir, or in /run/podopsy
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Where to answer /metrics, /healthz and /readyz by TCP (127.0.0.1:9464); nowhere unless told to
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Sample every CPU so many times a second, always, and keep a profile a minute of each container in the history; 0
    /// does not. Where there is neither --state-dir, where podopsy profile --since reads them, nor --pyroscope-url nor
    /// --otlp-profiles, nobody takes them, and nothing is sampled
    ///
    /// It is the first that is left out when the agent is over its budgets.
    #[arg(long, value_name = "HZ", default_value_t = 19, value_parser = clap::value_parser!(u64).range(0..=199))]
    pub profile_hz: u64,
    /// How often what is sampled is put into the store: memory and profiles
    #[arg(long, value_name = "TIME", default_value = "60s", hide = true, value_parser = duration::parse)]
    pub keep_every: Duration,
    /// Whose page faults to sample, so that the report of an OOM kill tells which code the memory grew by
    ///
    /// While there is no suspect, nothing is sampled, and it costs nothing. While there is one, every page fault of the
    /// node costs some 90 ns more (5 %): 0.45 % of one CPU at 50,000 faults a second. A CPU takes 470 samples a second at
    /// most.
    #[arg(long, env = "PODOPSY_GROWTH", value_enum, value_name = "WHO", default_value_t = Growth::Auto)]
    pub growth: Growth,
    #[command(flatten)]
    pub exports: ExportArgs,
    /// How much of one CPU the agent may take, over ten seconds (0.5: half of one; 0: as much as it takes). Over it, and
    /// over the two below, it leaves out profiles, growth samples, then DNS events, step by step, and counts them: never OOM
    /// kills. SIGHUP changes all three
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    pub cpu_budget: f64,
    /// How much memory it may hold (0: as much as it takes)
    #[arg(long, value_name = "BYTES", default_value = "200MiB", value_parser = bytes::parse)]
    pub memory_budget: u64,
    /// How many events of DNS may be due in a second (0: as many as there are)
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub events_budget: u64,
    /// Give up what recording does not need, once it records: capabilities, new privileges, and system calls that start
    /// programs, mount, or load BPF programs; the log says what is kept, and why. Off is for debugging
    #[arg(long, value_enum, value_name = "WHETHER", default_value_t = SelfRestraint::On)]
    pub self_restraint: SelfRestraint,
    /// How the log on stderr is written: as lines of text, or as one JSON object a line, for a collector
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Args {
    /// Ends with what is wrong about settings that do not go together; samples nothing that nobody takes.
    pub fn check(&mut self, settings: &[Setting]) {
        let wrong = dns_ports(&self.dns_ports).err().or_else(|| https_resolvers(&self.doh_resolvers).err());
        if let Some(error) = wrong {
            Args::command().error(ErrorKind::TooManyValues, error).exit();
        }
        let (samples, sends) = (self.profile_hz > 0, self.exports.takes_profiles());
        if sends && !samples {
            let error = "pyroscope-url or otlp-profiles is set, and profile-hz is 0: there would be no profiles; set profile-hz to 19, or neither";
            Args::command().error(ErrorKind::ValueValidation, error).exit();
        }
        if samples && !sends && self.state_dir.is_none() {
            // A file may be one that --print-config wrote, and has every setting.
            let is_wish = |one: &Setting| {
                one.name == "profile-hz" && matches!(one.origin, Origin::Flag | Origin::Environment(_))
            };
            if settings.iter().any(is_wish) {
                let error = "profile-hz is set, and nothing takes the profiles: set state-dir, pyroscope-url or otlp-profiles";
                Args::command().error(ErrorKind::ValueValidation, error).exit();
            }
            self.profile_hz = 0;
        }
    }

    /// 0 is none.
    pub fn budgets(&self) -> budget::Limits {
        budget::Limits {
            cpu: Some(self.cpu_budget).filter(|share| *share > 0.0),
            memory: Some(self.memory_budget).filter(|bytes| *bytes > 0),
            events: Some(self.events_budget).filter(|events| *events > 0),
        }
    }

    pub fn store_limits(&self) -> Limits {
        Limits { bytes: self.store_bytes, age: self.store_age }
    }
}

/// A share of one CPU.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1024.0).contains(share));
    share.ok_or_else(|| "use a share of one CPU, like 0.5 (0: as much as it takes)".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Whether to give up rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SelfRestraint {
    On,
    Off,
}

/// Whose page faults to sample.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Growth {
    /// Containers that were OOM-killed before, or whose memory grows towards their limit: 16 at most
    Auto,
    /// Nobody's
    Off,
}

impl From<Growth> for GrowthMode {
    fn from(growth: Growth) -> GrowthMode {
        match growth {
            Growth::Auto => GrowthMode::Auto,
            Growth::Off => GrowthMode::Off,
        }
    }
}
