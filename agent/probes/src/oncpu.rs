//! The `oncpu` probe: a software perf event on every CPU, cpu-clock or page-faults.

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::perf_event::{
    PerfEvent, PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};
use aya::util::online_cpus;
use podopsy_wire::{SCOPE_CGROUPS, SCOPE_NODE, SCOPE_PROCESS};

use super::OncpuWanted;
use podopsy_model::profile::Sampling;

/// Whose stacks to take: decided in the kernel, before any work on the sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Node,
    /// Memory cgroup ids.
    Cgroups(Vec<u64>),
    /// A process id in the initial pid namespace.
    Process(u32),
}

impl Scope {
    pub(super) fn code(&self) -> u32 {
        match self {
            Scope::Node => SCOPE_NODE,
            Scope::Cgroups(_) => SCOPE_CGROUPS,
            Scope::Process(_) => SCOPE_PROCESS,
        }
    }

    fn keys(&self) -> Vec<u64> {
        match self {
            Scope::Node => Vec::new(),
            Scope::Cgroups(ids) => ids.clone(),
            Scope::Process(pid) => vec![u64::from(*pid)],
        }
    }
}

/// Loads the sampler, and returns its hook in words; nothing is sampled yet.
pub fn load(ebpf: &mut Ebpf, wanted: &OncpuWanted) -> anyhow::Result<String> {
    let map: &mut Map = ebpf.map_mut("TARGETS").context("the probes have no map TARGETS")?;
    let mut targets: HashMap<_, u64, u8> = HashMap::try_from(map)?;
    for key in wanted.scope.keys() {
        targets.insert(key, 1, 0).context("put a target into the map TARGETS (at most 1,024 fit)")?;
    }
    program(ebpf)?.load().context("load oncpu_sample")?;
    Ok(format!("cpu-clock perf event on {} CPUs", cpus()?.len()))
}

/// The cgroups that are sampled, to be changed while samples come.
pub struct Targets(HashMap<MapData, u64, u8>);

impl Targets {
    pub(super) fn new(ebpf: &mut Ebpf) -> anyhow::Result<Targets> {
        let map = ebpf.take_map("TARGETS").context("the probes have no map TARGETS")?;
        Ok(Targets(HashMap::try_from(map)?))
    }

    pub fn add(&mut self, id: u64) -> anyhow::Result<()> {
        self.0.insert(id, 1, 0).context("put a target into the map TARGETS")
    }

    pub fn remove(&mut self, id: u64) {
        // It may have gone already.
        let _ = self.0.remove(&id);
    }
}

/// Samples every CPU from now on, until [`detach`].
pub fn attach(ebpf: &mut Ebpf, sampling: Sampling) -> anyhow::Result<Vec<PerfEventLinkId>> {
    let (event, policy, name) = match sampling {
        Sampling::Cpu { frequency_hz } => {
            (SoftwareEvent::CpuClock, SamplePolicy::Frequency(frequency_hz), "cpu-clock")
        }
        Sampling::Growth { every } => (SoftwareEvent::PageFaults, SamplePolicy::Period(every), "page-faults"),
    };
    let program = program(ebpf)?;
    let mut links = Vec::new();
    for cpu in cpus()? {
        let link = program
            .attach(
                PerfEventConfig::Software(event),
                PerfEventScope::AllProcessesOneCpu { cpu },
                policy,
                false,
            )
            .with_context(|| format!("open a {name} perf event on CPU {cpu}"))?;
        links.push(link);
    }
    Ok(links)
}

/// Samples no more.
pub fn detach(ebpf: &mut Ebpf, links: Vec<PerfEventLinkId>) -> anyhow::Result<()> {
    let program = program(ebpf)?;
    links.into_iter().try_for_each(|link| Ok(program.detach(link)?))
}

fn program(ebpf: &mut Ebpf) -> anyhow::Result<&mut PerfEvent> {
    Ok(ebpf.program_mut("oncpu_sample").context("no program oncpu_sample")?.try_into()?)
}

fn cpus() -> anyhow::Result<Vec<u32>> {
    online_cpus().map_err(|(path, error)| anyhow::anyhow!("read {path}: {error}"))
}
