//! The kernel side, loaded and attached: one file a probe.
//!
//! | module | probe | what it hands to user space |
//! |---|---|---|
//! | [`oom`] | raw tracepoint `mark_victim` | [`OomMaps`] |
//! | [`sigkill`] | raw tracepoint `signal_generate` | [`SigkillMaps`] |
//! | [`dns`] | cgroup hooks at the v2 root | [`DnsMaps`] |
//! | [`cpu`] | software perf events, and the unwinder (`unwind`) | [`CpuMaps`] |
//!
//! `load` reads this kernel's types (`btf`, `layout`), loads the object and attaches; `refusal` explains what a kernel
//! refuses. With [`ring`] this is the only crate that knows aya. Must not know: pods, events, rendering.

mod batch;
mod btf;
pub mod cpu;
pub mod dns;
mod kernel_name;
mod layout;
mod load;
mod loader;
pub mod oom;
mod pod;
mod program;
mod refusal;
pub mod ring;
pub mod sigkill;
mod sizes;
mod trial;
mod unwind;

use std::collections::BTreeSet;

use aya::Ebpf;
use aya::programs::perf_event::PerfEventLinkId;
use podopsy_model::profile::Sampling;

use crate::program::take_map;
use crate::refusal::explain;
use crate::ring::{LossCounters, ProbeLog};

pub use cpu::{CpuMaps, CpuProbeOptions, Scope, Targets};
pub use dns::{
    ANames, DNS_PORTS, DNS_TIMEOUT, DnsMaps, DnsProbeOptions, HTTPS_RESOLVERS, InFlight, KernelCounts,
    OwnedEntries, OwnedEntry, Rate, TableShares, dns_ports, https_resolvers,
};
pub use oom::OomMaps;
pub use sigkill::{KernelKills, SigkillMaps};
pub use trial::check;
pub use unwind::KernelTables;

/// Which probes to load; none by default.
#[derive(Clone, Debug, Default)]
pub struct ProbeOptions {
    pub oom: bool,
    pub sigkill: bool,
    pub dns: Option<DnsProbeOptions>,
    pub cpu: Option<CpuProbeOptions>,
}

/// Attached probes. They detach when this is dropped.
pub struct Probes {
    ebpf: Ebpf,
    sampling: Option<Sampling>,
    samplers: Vec<PerfEventLinkId>,
    /// User stacks are unwound by tables; false: not wanted, or this kernel cannot.
    pub by_tables: bool,
    /// A description of each hook: kernels differ.
    pub hooks: Vec<String>,
    /// What this kernel does not allow, and why: the rest runs.
    pub degraded: Vec<String>,
    /// The event probes that were wanted, by name, and whether they are attached.
    pub attached: Vec<(&'static str, bool)>,
}

impl Probes {
    /// Starts sampling, if that was wanted. Call after the unwind tables were made, so that the first samples find them.
    pub fn start_sampling(&mut self) -> anyhow::Result<()> {
        if let Some(sampling) = self.sampling {
            self.samplers = cpu::attach(&mut self.ebpf, sampling)
                .map_err(|error| explain(error, "attach the oncpu probe"))?;
        }
        Ok(())
    }

    /// Stops sampling. Call before the unwind tables are dropped: the last stacks need them.
    pub fn stop_sampling(&mut self) -> anyhow::Result<()> {
        cpu::detach(&mut self.ebpf, std::mem::take(&mut self.samplers))
    }

    /// The maps of the oom probe; can be taken once, like those of each probe.
    pub fn oom_maps(&mut self) -> anyhow::Result<OomMaps> {
        OomMaps::take(&mut self.ebpf)
    }

    pub fn sigkill_maps(&mut self) -> anyhow::Result<SigkillMaps> {
        SigkillMaps::take(&mut self.ebpf)
    }

    pub fn dns_maps(&mut self) -> anyhow::Result<DnsMaps> {
        DnsMaps::take(&mut self.ebpf)
    }

    pub fn cpu_maps(&mut self) -> anyhow::Result<CpuMaps> {
        CpuMaps::take(&mut self.ebpf)
    }

    /// The loss counters of all probes; can be taken once.
    pub fn losses(&mut self) -> anyhow::Result<LossCounters> {
        LossCounters::new(take_map(&mut self.ebpf, "LOSSES")?)
    }

    /// The kernel's own names of these addresses, as it prints them (`%ps`); empty before 5.13. Can be called once.
    pub fn kernel_names(&mut self, addresses: &BTreeSet<u64>) -> Vec<(u64, Vec<u8>)> {
        kernel_name::names(&mut self.ebpf, addresses).unwrap_or_else(|error| {
            tracing::debug!("{:#}", explain(error, "ask the kernel for names"));
            Vec::new()
        })
    }

    /// The probes' own debug log, if `PODOPSY_PROBE_LOG` asks for it.
    pub fn log(&mut self) -> anyhow::Result<Option<ProbeLog>> {
        if log_level() == 0 {
            return Ok(None);
        }
        ProbeLog::new(&mut self.ebpf).map(Some)
    }
}

/// The probes' log level as `aya-log` counts: 0 off … 5 trace. At 0, the default, the verifier removes the log calls.
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
