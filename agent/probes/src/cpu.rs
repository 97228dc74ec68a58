//! The `cpu` probe (users see it as `oncpu`): a software perf event on every CPU, cpu-clock or page-faults.

use std::time::Duration;

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::perf_event::{
    PerfEvent, PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};
use aya::util::online_cpus;
use podopsy_wire::{SCOPE_CGROUPS, SCOPE_NODE, SCOPE_OTHERS, SCOPE_PROCESS};

use podopsy_model::profile::Sampling;

use crate::program::take_map;
use crate::ring::Ring;
use crate::unwind::KernelTables;

/// What to sample, and how.
#[derive(Clone, Debug)]
pub struct CpuProbeOptions {
    pub scope: Scope,
    pub sampling: Sampling,
    /// Unwind by tables; without them, user stacks are what frame pointers give.
    pub unwind: bool,
    /// Samples that a CPU may take in 134 ms; 0: no bound.
    pub budget: u32,
    /// The maps are charged to the memory limit of a pod, and have the processes of that pod alone: they are smaller.
    pub in_pod: bool,
}

/// What the cpu probe hands to user space.
pub struct CpuMaps {
    /// A record for each sample.
    pub samples: Ring,
    /// Files whose unwind table the kernel side asks for.
    pub table_requests: Ring,
    pub tables: KernelTables,
    pub targets: Targets,
}

/// A sample of a process older than a second may stay in the ring this long; each wake-up costs more than the sample.
const SAMPLE_DELAY: Duration = Duration::from_millis(100);

impl CpuMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> anyhow::Result<CpuMaps> {
        Ok(CpuMaps {
            samples: Ring::new("SAMPLES", take_map(ebpf, "SAMPLES")?)?.in_rounds(SAMPLE_DELAY),
            table_requests: Ring::new("TABLE_REQUESTS", take_map(ebpf, "TABLE_REQUESTS")?)?,
            tables: KernelTables::new(ebpf)?,
            targets: Targets::new(ebpf)?,
        })
    }
}

/// Which stacks to take. The kernel side decides before it does any work on a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Node,
    /// Memory cgroup ids.
    Cgroups(Vec<u64>),
    /// A process id in the initial pid namespace.
    Process(u32),
    /// Every process but those of this memory cgroup.
    AllBut(u64),
}

impl Scope {
    pub(crate) fn code(&self) -> u32 {
        match self {
            Scope::Node => SCOPE_NODE,
            Scope::Cgroups(_) => SCOPE_CGROUPS,
            Scope::Process(_) => SCOPE_PROCESS,
            Scope::AllBut(_) => SCOPE_OTHERS,
        }
    }

    fn keys(&self) -> Vec<u64> {
        match self {
            Scope::Node => Vec::new(),
            Scope::Cgroups(ids) => ids.clone(),
            Scope::Process(pid) => vec![u64::from(*pid)],
            Scope::AllBut(id) => vec![*id],
        }
    }
}

/// Loads the sampler and returns a description of its hook; nothing is sampled before [`attach`].
pub(crate) fn load(ebpf: &mut Ebpf, options: &CpuProbeOptions) -> anyhow::Result<String> {
    let map: &mut Map = ebpf.map_mut("TARGETS").context("the probes have no map TARGETS")?;
    let mut targets: HashMap<_, u64, u8> = HashMap::try_from(map)?;
    for key in options.scope.keys() {
        targets.insert(key, 1, 0).context("put a target into the map TARGETS (at most 1,024 fit)")?;
    }
    program(ebpf)?.load().context("load cpu_sample")?;
    Ok(format!("cpu-clock perf event on {} CPUs", cpus()?.len()))
}

/// The cgroups that are sampled; may change while samples arrive.
pub struct Targets(HashMap<MapData, u64, u8>);

impl Targets {
    pub(crate) fn new(ebpf: &mut Ebpf) -> anyhow::Result<Targets> {
        Ok(Targets(HashMap::try_from(take_map(ebpf, "TARGETS")?)?))
    }

    pub fn add(&mut self, id: u64) -> anyhow::Result<()> {
        self.0.insert(id, 1, 0).context("put a target into the map TARGETS")
    }

    pub fn remove(&mut self, id: u64) {
        // The entry may be gone already.
        let _ = self.0.remove(&id);
    }
}

/// Starts to sample every CPU, until [`detach`].
pub(crate) fn attach(ebpf: &mut Ebpf, sampling: Sampling) -> anyhow::Result<Vec<PerfEventLinkId>> {
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

/// Stops sampling.
pub(crate) fn detach(ebpf: &mut Ebpf, links: Vec<PerfEventLinkId>) -> anyhow::Result<()> {
    let program = program(ebpf)?;
    links.into_iter().try_for_each(|link| Ok(program.detach(link)?))
}

fn program(ebpf: &mut Ebpf) -> anyhow::Result<&mut PerfEvent> {
    Ok(ebpf.program_mut("cpu_sample").context("no program cpu_sample")?.try_into()?)
}

fn cpus() -> anyhow::Result<Vec<u32>> {
    online_cpus().map_err(|(path, error)| anyhow::anyhow!("read {path}: {error}"))
}
