//! The agent's flags. The library's `config` also reads them from the environment and from the file.

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
use podopsy_store::StoreLimits;

/// Records OOM kills, other SIGKILLs and failed DNS lookups of every pod on this node, and writes them to stdout as
/// JSON lines.
///
/// Needs root, the host's pid namespace and its /sys/fs/cgroup (see manifests/). The agent's log goes to stderr
/// (RUST_LOG=debug for more; PODOPSY_PROBE_LOG=debug for the kernel probes' log). SIGTERM and SIGINT end the agent
/// after pending events have been written; SIGHUP reads the configuration again.
///
/// Each flag is a setting: --dns-timeout 3s is PODOPSY_DNS_TIMEOUT=3s in the environment, and dns-timeout = "3s" in the
/// file. A flag wins over the environment, and the environment over the file.
#[derive(Debug, Parser)]
#[command(version)]
pub struct AgentArgs {
    /// The settings as TOML. The default is /etc/podopsy/agent.toml, if it exists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print all settings as a settings file, with the origin of each value, and exit
    #[arg(long)]
    pub print_config: bool,
    /// The node's name in events. The default is the host name
    #[arg(long, env = "NODE_NAME")]
    pub node: Option<String>,
    /// The container runtime's CRI v1 socket. By default, the usual paths are tried
    #[arg(long, env = "PODOPSY_CRI_SOCKET", value_name = "PATH")]
    pub cri_socket: Option<PathBuf>,
    /// The time after which a DNS query without an answer is a timeout
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse_dns_timeout)]
    pub dns_timeout: Duration,
    /// Also report answered DNS queries that took longer than this (200ms)
    #[arg(long, value_name = "TIME", value_parser = duration::parse_dns_slow)]
    pub dns_slow_over: Option<Duration>,
    /// Also report one in N answered DNS queries
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub dns_sample: u32,
    /// A server port for DNS, instead of 53; up to four times (mDNS uses 5353)
    #[arg(long = "dns-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub dns_ports: Vec<u16>,
    /// A resolver that also answers by HTTPS: those lookups are not visible, but connections to it are counted
    #[arg(long = "doh-resolver", value_name = "ADDRESS")]
    pub doh_resolvers: Vec<IpAddr>,
    /// Also report all answered DNS queries, not only failures
    #[arg(long)]
    pub dns_answers: bool,
    /// Also report AAAA answers without data as failures where A was asked for, too: normal in a cluster with IPv4 only
    #[arg(long)]
    pub dns_aaaa_nodata: bool,
    /// Also report SIGKILLs to host processes, not only to those of containers
    #[arg(long)]
    pub sigkill_host: bool,
    /// A folder that outlives the agent: the next start reports OOM kills that happened while the agent was down, and
    /// `podopsy oom` finds the incidents there (it looks in /var/lib/podopsy)
    #[arg(long, env = "PODOPSY_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The disk space of the history. The oldest records are deleted first (needs --state-dir; SIGHUP applies a change)
    #[arg(long, value_name = "BYTES", default_value = "512MiB", value_parser = bytes::parse_store)]
    pub store_bytes: u64,
    /// How far back the history goes. Kills stay longer, as long as there is space (SIGHUP applies a change)
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse)]
    pub store_age: Duration,
    /// The socket of the API, for root and the agent's own user. The default is agent.sock in --state-dir, or in
    /// /run/podopsy
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The TCP address for /metrics, /healthz and /readyz (127.0.0.1:9464). By default, there is none
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// A file with the token that clients have to send for /metrics by TCP (Authorization: Bearer TOKEN). It is read at the
    /// start. By default, /metrics is open to all that reach the address
    #[arg(long, value_name = "FILE")]
    pub metrics_token_file: Option<PathBuf>,
    /// The samples per second on each CPU for the always-on profile, which is one profile per container and minute; 0: no
    /// profile. Nothing is sampled without --state-dir (for podopsy profile --since), --pyroscope-url or --otlp-profiles
    ///
    /// This is shed first when the agent is over its budgets.
    #[arg(long, value_name = "HZ", default_value_t = 19, value_parser = clap::value_parser!(u64).range(0..=199))]
    pub profile_hz: u64,
    /// The interval at which memory samples and profiles are written to the store
    #[arg(long, value_name = "TIME", default_value = "60s", hide = true, value_parser = duration::parse)]
    pub keep_every: Duration,
    /// Which containers' page faults to sample, so that the report of an OOM kill shows the code that made memory grow
    ///
    /// Without a growth candidate, nothing is sampled, and it costs nothing. With one, every page fault of the node costs
    /// some 90 ns more (5 %): 0.45 % of one CPU at 50,000 faults a second. Each CPU takes at most 470 samples a second.
    #[arg(long, env = "PODOPSY_GROWTH", value_enum, value_name = "WHO", default_value_t = GrowthSetting::Auto)]
    pub growth: GrowthSetting,
    #[command(flatten)]
    pub exports: ExportArgs,
    /// The agent's share of one CPU, averaged over ten seconds (0.5: half of one; 0: no budget). Over this budget or the two
    /// below, the agent sheds profiles, then growth samples, then DNS events, and counts them; never OOM kills. SIGHUP
    /// applies changes of all three
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    pub cpu_budget: f64,
    /// The agent's memory (0: no budget)
    #[arg(long, value_name = "BYTES", default_value = "200MiB", value_parser = bytes::parse)]
    pub memory_budget: u64,
    /// The number of DNS events per second (0: no budget)
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub events_budget: u64,
    /// Once recording, drop what it does not need: capabilities, new privileges, and system calls that start programs, mount,
    /// or load BPF programs. The log lists what is kept, and why. Off is for debugging
    #[arg(long, value_enum, value_name = "WHETHER", default_value_t = SelfRestraint::On)]
    pub self_restraint: SelfRestraint,
    /// The format of the log on stderr: lines of text, or one JSON object per line for a collector
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl AgentArgs {
    /// Exits with an error if settings contradict each other. Disables the always-on profile if nothing would receive it.
    pub fn check(&mut self, settings: &[Setting]) {
        let invalid = dns_ports(&self.dns_ports).err().or_else(|| https_resolvers(&self.doh_resolvers).err());
        if let Some(error) = invalid {
            AgentArgs::command().error(ErrorKind::TooManyValues, error).exit();
        }
        let samples = self.profile_hz > 0;
        let sends = self.exports.takes_profiles();
        if sends && !samples {
            let error = "pyroscope-url or otlp-profiles is set, and profile-hz is 0: there would be no profiles; set profile-hz to 19, or neither";
            AgentArgs::command().error(ErrorKind::ValueValidation, error).exit();
        }
        if samples && !sends && self.state_dir.is_none() {
            // A value in the file is not explicit: --print-config writes files with all settings.
            let is_explicit = |setting: &Setting| {
                setting.name == "profile-hz"
                    && matches!(setting.origin, Origin::Flag | Origin::Environment(_))
            };
            if settings.iter().any(is_explicit) {
                let error = "profile-hz is set, and nothing receives the profiles: set state-dir, pyroscope-url or otlp-profiles";
                AgentArgs::command().error(ErrorKind::ValueValidation, error).exit();
            }
            self.profile_hz = 0;
        }
    }

    /// The budgets. 0 means none.
    pub fn budgets(&self) -> budget::BudgetLimits {
        budget::BudgetLimits {
            cpu: Some(self.cpu_budget).filter(|share| *share > 0.0),
            memory: Some(self.memory_budget).filter(|bytes| *bytes > 0),
            events: Some(self.events_budget).filter(|events| *events > 0),
        }
    }

    pub fn store_limits(&self) -> StoreLimits {
        StoreLimits { bytes: self.store_bytes, age: self.store_age }
    }
}

/// A share of one CPU.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1024.0).contains(share));
    share.ok_or_else(|| "use a share of one CPU, like 0.5 (0: no budget)".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Whether to drop capabilities and system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SelfRestraint {
    On,
    Off,
}

/// Which containers' page faults to sample.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum GrowthSetting {
    /// Containers that were OOM-killed before, or whose memory grows towards their limit: 16 at most
    Auto,
    /// None
    Off,
}

impl From<GrowthSetting> for GrowthMode {
    fn from(growth: GrowthSetting) -> GrowthMode {
        match growth {
            GrowthSetting::Auto => GrowthMode::Auto,
            GrowthSetting::Off => GrowthMode::Off,
        }
    }
}
