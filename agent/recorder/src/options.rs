//! What to record.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use podopsy_probes::{DnsProbeOptions, ProbeOptions, Rate};
use podopsy_stacks::Helpers;

use crate::growth::sampling::GrowthMode;
use crate::sigkill;

pub use podopsy_probes::{DNS_PORTS, DNS_TIMEOUT, HTTPS_RESOLVERS, dns_ports, https_resolvers};

/// How DNS is observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsHook {
    /// By the root cgroup; by a packet socket where the root cgroup is out of reach.
    #[default]
    Auto,
    /// By BPF at the root of the v2 hierarchy, which sees the whole node; fails where that is out of reach.
    Cgroup,
    /// By a packet socket, which sees this network namespace.
    Socket,
}

/// What to record of DNS.
#[derive(Clone, Debug)]
pub struct DnsOptions {
    /// Record answered queries, too, not only failures.
    pub answers: bool,
    /// Record AAAA without data as a failure although the A records of the same name were asked for, too: the normal case in
    /// a cluster with IPv4 only.
    pub aaaa_nodata: bool,
    /// Assemble queries into lookups, too (`dns.lookup`): all of them with `answers`, else those that failed.
    pub lookups: bool,
    /// A query without an answer for this long is a timeout.
    pub timeout: Duration,
    /// Record answers that took longer than this, too; they are `slow`.
    pub slow_over: Option<Duration>,
    /// Record one answered query in this many, too; 0: none.
    pub sample: u32,
    /// Server ports that carry DNS, at most four; 0 is an unused slot.
    pub ports: [u16; 4],
    /// Resolvers whose port 443 is DNS over HTTPS ([`https_resolvers`]).
    pub https: Vec<IpAddr>,
    pub hook: DnsHook,
}

impl Default for DnsOptions {
    /// Failures of queries to port 53.
    fn default() -> Self {
        DnsOptions {
            answers: false,
            aaaa_nodata: false,
            lookups: false,
            timeout: DNS_TIMEOUT,
            slow_over: None,
            sample: 0,
            ports: DNS_PORTS,
            https: HTTPS_RESOLVERS.to_vec(),
            hook: DnsHook::Auto,
        }
    }
}

/// What to record.
#[derive(Clone, Debug)]
pub struct RecorderOptions {
    pub oom: bool,
    /// Which SIGKILLs that were not from the OOM killer to record.
    pub sigkill: sigkill::SigkillScope,
    /// None: DNS is not recorded.
    pub dns: Option<DnsOptions>,
    /// The node's name in events.
    pub node: String,
    /// The folder of the state that a restart reads to find what it missed; None: no state is kept.
    pub state_dir: Option<PathBuf>,
    /// Whether to sample which code makes the memory of growth candidates grow.
    pub growth: GrowthMode,
    /// Open and parse the files of containers.
    pub helpers: Helpers,
}

impl RecorderOptions {
    /// Whether a packet socket may replace the dns probe.
    pub(crate) fn may_use_socket(&self) -> bool {
        self.dns.as_ref().is_some_and(|dns| dns.hook == DnsHook::Auto)
    }

    /// Whether probes other than the dns probe are wanted.
    pub(crate) fn has_other_probes(&self) -> bool {
        self.oom || self.sigkill != sigkill::SigkillScope::None
    }

    /// What to load; `with_dns`: false where a packet socket replaces the dns probe.
    pub(crate) fn probes(&self, with_dns: bool) -> ProbeOptions {
        let dns = self.dns.as_ref().filter(|_| with_dns).map(|dns| DnsProbeOptions {
            answers: dns.answers,
            slow_over: dns.slow_over,
            sample: dns.sample,
            ports: dns.ports,
            rate: Rate::default(),
            https: dns.https.clone(),
        });
        ProbeOptions { oom: self.oom, sigkill: self.sigkill != sigkill::SigkillScope::None, dns, cpu: None }
    }
}
