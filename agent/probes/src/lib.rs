//! Load and attach, one probe a file; says what could not attach, why, and what would mend it.
//!
//! With [`crate::ring`] the only room that knows aya. Must not know: pods, events, output.

mod batch;
mod btf;
mod dns;
mod kernel_name;
mod layout;
mod loader;
mod oncpu;
mod oom;
pub mod ring;
mod signal;
mod sizes;
mod unwind;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use aya::Ebpf;
use aya::programs::perf_event::PerfEventLinkId;
use podopsy_wire::{Config, Layout, SCOPE_NODE, UnwindLayout};

pub use dns::{
    DNS_PORTS, DNS_TIMEOUT, DnsWanted, HTTPS_RESOLVERS, InFlight, KernelCounts, Rate, dns_ports,
    https_resolvers,
};
pub use oncpu::{Scope, Targets};
pub use signal::KernelKills;
pub use unwind::KernelTables;

use crate::ring::{Losses, Ring};
use podopsy_model::probe::ProbeCheck;
use podopsy_model::profile::Sampling;
use podopsy_model::text;

/// The kernel side, compiled; how it is made: `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../probe-ebpf/prebuilt/podopsy-probe.o");

/// A sample of a process that is not young may wait so long.
const SAMPLES_WAIT: Duration = Duration::from_millis(100);

/// What to load.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub oom: bool,
    pub sigkill: bool,
    pub dns: Option<DnsWanted>,
    pub oncpu: Option<OncpuWanted>,
}

#[derive(Clone, Debug)]
pub struct OncpuWanted {
    pub scope: Scope,
    pub sampling: Sampling,
    /// Unwind by tables; without, user stacks are what frame pointers give.
    pub unwind: bool,
    /// Samples that a CPU may take in 134 ms; 0: as many as come.
    pub budget: u32,
}

/// Attached probes. They detach when this is dropped.
pub struct Probes {
    ebpf: Ebpf,
    sampling: Option<Sampling>,
    samplers: Vec<PerfEventLinkId>,
    /// User stacks are unwound by tables; false: not wanted, or this kernel cannot.
    pub by_tables: bool,
    /// What they hang on, in words: kernels differ.
    pub hooks: Vec<String>,
    /// What had to be left out, and why: the rest runs.
    pub degraded: Vec<String>,
    /// The event probes that were wanted, by name, and whether they are attached.
    pub attached: Vec<(&'static str, bool)>,
}

impl Probes {
    /// Loads what is wanted and nothing else; an error names the probe and what would mend it.
    pub fn load(wanted: &Wanted) -> anyhow::Result<Probes> {
        raise_memlock();
        let btf = btf::Btf::from_kernel()?;
        let shape = layout::read(&btf)?;
        let (mut hooks, mut degraded) = (Vec::new(), Vec::new());
        let unwind = match &wanted.oncpu {
            Some(OncpuWanted { unwind: true, .. }) => unwind::layout(&btf).unwrap_or_else(|error| {
                degraded.push(format!("stacks by tables: {error:#}; they are what frame pointers give"));
                UnwindLayout::OFF
            }),
            _ => UnwindLayout::OFF,
        };
        let (unwind_words, has_loop) = (unwind.words(), unwind::has_loop(&btf));
        let config = Config {
            layout: shape.layout,
            victim_is_task: shape.victim_is_task.into(),
            scope: wanted.oncpu.as_ref().map_or(SCOPE_NODE, |oncpu| oncpu.scope.code()),
            sample_budget: wanted.oncpu.as_ref().map_or(0, |oncpu| oncpu.budget),
        };
        let words = config_words(&config);
        let signal_words = signal::layout(&btf).words();
        let dns_words = dns::config_words(wanted.dns.as_ref());
        let log_level = log_level();
        drop(btf);
        let mut loader = loader::new();
        dns::size_maps(&mut loader);
        sizes::shrink(wanted, &mut loader);
        let mut ebpf = loader
            .override_global("CONFIG", words.as_slice(), true)
            .override_global("SIGNAL_LAYOUT", signal_words.as_slice(), true)
            .override_global("DNS", dns_words.as_slice(), true)
            .override_global("UNWIND_LAYOUT", unwind_words.as_slice(), true)
            .override_global(aya_log::LEVEL, &log_level, true)
            .load(OBJECT)
            .map_err(|error| explain(anyhow!(error), "load the probes"))?;
        // An event probe that cannot attach costs its own events, as long as another one can.
        let (mut failed, mut attached) = (None, Vec::new());
        if wanted.oom {
            let tried = oom::attach(&mut ebpf, shape.victim_is_task);
            attached.push(("oom", tried.is_ok()));
            match tried {
                Ok(hook) => hooks.push(hook),
                Err(error) => {
                    degraded.push(format!("no OOM kill is seen: {error:#}"));
                    failed = Some(explain(error, "attach the oom probe"));
                }
            }
        }
        if wanted.sigkill {
            let tried = signal::attach(&mut ebpf);
            attached.push(("sigkill", tried.is_ok()));
            match tried {
                Ok(hook) => hooks.push(hook),
                // Beside others it is not what they stand or fall by.
                Err(error) if wanted.oom || wanted.dns.is_some() => {
                    degraded.push(format!("nobody sees who sends SIGKILL: {error:#}"));
                }
                Err(error) => return Err(explain(error, "attach the sigkill probe")),
            }
        }
        if let Some(dns) = &wanted.dns {
            let tried = dns::attach(&mut ebpf, dns);
            attached.push(("dns", tried.is_ok()));
            match tried {
                Ok((hook, left_out)) => {
                    hooks.push(hook);
                    degraded.extend(left_out);
                }
                Err(error) => {
                    degraded.push(format!("no DNS query is seen: {error:#}"));
                    failed = failed.or(Some(explain(error, "attach the dns probe")));
                }
            }
        }
        if let Some(error) = failed.filter(|_| hooks.is_empty()) {
            return Err(error);
        }
        let mut by_tables = false;
        if let Some(oncpu) = &wanted.oncpu {
            let mut stacks = vec!["frame pointers"];
            // A kernel that refuses it keeps the sampler, which falls back by itself.
            if unwind.on != 0 {
                match unwind::attach(&mut ebpf, has_loop) {
                    Ok(program) => stacks = vec!["tables", program],
                    Err(error) => {
                        let error = explain(error, "load the unwinder");
                        degraded
                            .push(format!("stacks by tables: {error:#}; they are what frame pointers give"));
                    }
                }
            }
            by_tables = stacks.len() > 1;
            if by_tables {
                match unwind::attach_python(&mut ebpf, &unwind, has_loop) {
                    Ok(program) => stacks.push(program),
                    Err(error) => {
                        let error = explain(error, "load what walks Python's frames");
                        degraded.push(format!(
                            "Python's functions: {error:#}; stacks show the interpreter's alone"
                        ));
                    }
                }
            }
            let loaded = oncpu::load(&mut ebpf, oncpu);
            let hook = loaded.map_err(|error| explain(error, "load the oncpu probe"))?;
            hooks.push(format!("{hook}; user stacks by {}", stacks.join(", ")));
        }
        for what in &degraded {
            tracing::warn!("{what}");
        }
        let sampling = wanted.oncpu.as_ref().map(|oncpu| oncpu.sampling);
        Ok(Probes { ebpf, hooks, sampling, samplers: Vec::new(), by_tables, degraded, attached })
    }

    /// Starts sampling, if that was wanted: later than the load, so that unwind tables can be there first.
    pub fn sample(&mut self) -> anyhow::Result<()> {
        if let Some(sampling) = self.sampling {
            self.samplers = oncpu::attach(&mut self.ebpf, sampling)
                .map_err(|error| explain(error, "attach the oncpu probe"))?;
        }
        Ok(())
    }

    /// Ends sampling: before the maps go that it unwinds by, which would make the last stacks poor ones.
    pub fn stop_sampling(&mut self) -> anyhow::Result<()> {
        oncpu::detach(&mut self.ebpf, std::mem::take(&mut self.samplers))
    }

    /// A ring by the name of its map; each can be taken once.
    pub fn ring(&mut self, name: &'static str) -> anyhow::Result<Ring> {
        let map = self.ebpf.take_map(name).with_context(|| format!("the probes have no map {name}"))?;
        Ring::new(name, map)
    }

    /// The ring of samples; can be taken once.
    pub fn samples(&mut self) -> anyhow::Result<Ring> {
        Ok(self.ring("SAMPLES")?.in_rounds(SAMPLES_WAIT))
    }

    /// What the kernel calls these addresses of its own, as it writes it; nothing where it does not say (before 5.13).
    /// Once.
    pub fn kernel_names(&mut self, addresses: &BTreeSet<u64>) -> Vec<(u64, Vec<u8>)> {
        kernel_name::of(&mut self.ebpf, addresses).unwrap_or_else(|error| {
            tracing::debug!("{:#}", explain(error, "ask the kernel for names"));
            Vec::new()
        })
    }

    /// The loss counters.
    pub fn losses(&mut self) -> anyhow::Result<Losses> {
        Losses::new(self.ebpf.take_map("LOSSES").context("the probes have no map LOSSES")?)
    }

    /// The queries that wait for their answer.
    pub fn in_flight(&mut self) -> anyhow::Result<InFlight> {
        InFlight::new(self.ebpf.take_map("DNS_IN_FLIGHT").context("the probes have no map DNS_IN_FLIGHT")?)
    }

    /// SIGKILLs of the kernel's that the OOM killer may still claim.
    pub fn kernel_kills(&mut self) -> anyhow::Result<KernelKills> {
        let map = self.ebpf.take_map("SIGKILL_BY_KERNEL");
        KernelKills::new(map.context("the probes have no map SIGKILL_BY_KERNEL")?)
    }

    /// What the kernel side counts of each container's lookups.
    pub fn dns_counts(&mut self) -> anyhow::Result<KernelCounts> {
        KernelCounts::new(self.ebpf.take_map("DNS_COUNTERS").context("the probes have no map DNS_COUNTERS")?)
    }

    /// The maps that unwind tables go to; each can be taken once.
    pub fn unwind_tables(&mut self) -> anyhow::Result<KernelTables> {
        KernelTables::new(&mut self.ebpf)
    }

    /// The cgroups to sample, where the scope is cgroups; can be taken once.
    pub fn targets(&mut self) -> anyhow::Result<Targets> {
        Targets::new(&mut self.ebpf)
    }

    /// The probes' own debug log, through aya-log to `tracing`, when `PODOPSY_PROBE_LOG` asked for it.
    pub fn log(&mut self) -> anyhow::Result<Option<crate::ring::ProbeLog>> {
        if log_level() == 0 {
            return Ok(None);
        }
        crate::ring::ProbeLog::new(&mut self.ebpf).map(Some)
    }
}

/// The probes' log level, as `aya-log` counts: 0 off … 5 trace. Off unless `PODOPSY_PROBE_LOG` says so:
/// with 0 the verifier removes the log calls.
fn log_level() -> u8 {
    match std::env::var("PODOPSY_PROBE_LOG").as_deref() {
        Ok("error") => 1,
        Ok("warn") => 2,
        Ok("info") => 3,
        Ok("debug") => 4,
        Ok("trace") => 5,
        _ => 0,
    }
}

/// `Config` as the words that it is made of, in memory order.
fn config_words(config: &Config) -> [u32; size_of::<Config>() / 4] {
    let Config { layout: at, victim_is_task, scope, sample_budget } = *config;
    let Layout { mm_rss, .. } = at;
    [
        at.task_pid,
        at.task_tgid,
        at.task_comm,
        at.task_group_leader,
        at.task_start_boottime,
        at.task_cgroups,
        at.task_mm,
        at.task_signal,
        at.css_set_memory,
        at.css_cgroup,
        at.cgroup_kn,
        at.kernfs_node_id,
        at.signal_oom_score_adj,
        mm_rss[0],
        mm_rss[1],
        mm_rss[2],
        mm_rss[3],
        at.sock_err,
        at.sock_cookie,
        at.sock_dport,
        at.binprm_file,
        at.file_inode,
        at.inode_ino,
        at.inode_sb,
        at.super_block_dev,
        at.kernfs_node_name,
        at.kernfs_node_parent,
        victim_is_task,
        scope,
        sample_budget,
    ]
}

/// Before 5.11 maps are charged to RLIMIT_MEMLOCK. Without CAP_SYS_RESOURCE this fails, and on
/// newer kernels nobody minds: so a failure is not reported here, the map's creation would be.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// Adds what would mend it, where the kernel's error tells; a verifier's log goes to the debug log
/// but for its verdict: it is a book.
fn explain(error: anyhow::Error, what: &'static str) -> anyhow::Error {
    let chain = format!("{error:#}");
    if let Some((before, log)) = chain.split_once("Verifier output: ") {
        tracing::debug!("{chain}");
        let verdict = log
            .lines()
            .rev()
            .find(|line| !STATISTICS.iter().any(|start| line.starts_with(start)) && !line.trim().is_empty())
            .unwrap_or("no verdict");
        return anyhow!(
            "{what}: {}the kernel's verifier refused it: {verdict} (all of its log: podopsy -vv, RUST_LOG=debug for the agent)",
            text::escape(before)
        );
    }
    let error = error.context(what);
    if chain.contains("Operation not permitted") || chain.contains("Permission denied") {
        return error.context(
            "not permitted: run as root, or give the container `privileged: true` \
             (capabilities BPF, PERFMON, NET_ADMIN, SYS_PTRACE, SYS_ADMIN)",
        );
    }
    error
}

/// How the lines behind a verifier's verdict start.
const STATISTICS: [&str; 4] = ["verification time", "stack depth", "processed", ":"];

/// Tries every probe for real (loads, attaches, detaches), for `podopsy doctor`.
pub async fn check() -> Vec<ProbeCheck> {
    let nothing = Wanted { oom: false, sigkill: false, dns: None, oncpu: None };
    let dns = DnsWanted::default();
    let oncpu = OncpuWanted {
        scope: Scope::Node,
        sampling: Sampling::Cpu { frequency_hz: 1 },
        unwind: true,
        budget: 0,
    };
    let tries = [
        ("oom", Wanted { oom: true, ..nothing.clone() }),
        ("sigkill", Wanted { sigkill: true, ..nothing.clone() }),
        ("dns", Wanted { dns: Some(dns), ..nothing.clone() }),
        ("oncpu", Wanted { oncpu: Some(oncpu), ..nothing }),
    ];
    let check = |(name, wanted): (&str, Wanted)| {
        let (outcome, mend) =
            match Probes::load(&wanted).and_then(|mut probes| probes.sample().map(|()| probes)) {
                Ok(probes) if probes.degraded.is_empty() => (Ok(probes.hooks.join("; ")), None),
                Ok(probes) => {
                    let (hooks, left_out) = (probes.hooks.join("; "), probes.degraded.join("; "));
                    (Ok(format!("{hooks}; left out: {left_out}")), None)
                }
                Err(error) => {
                    let mend = "run as root on the node, or in a container with `privileged: true`";
                    (Err(format!("{error:#}")), Some(mend.to_owned()))
                }
            };
        ProbeCheck { name: name.to_owned(), outcome, mend }
    };
    tries.into_iter().map(check).collect()
}

/// The root of the v2 hierarchy, where programs see every process: its own mount on hybrid hosts.
fn cgroup2_root() -> anyhow::Result<PathBuf> {
    let mounts = procfs::process::Process::myself()
        .and_then(|me| me.mountinfo())
        .context("read /proc/self/mountinfo")?;
    mounts
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2")
        .map(|mount| mount.mount_point)
        .context("no cgroup2 file system is mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`, or mount the host's /sys/fs/cgroup into the container")
}
