//! An OOM incident: one visit of the OOM killer, with all its victims and everything that is known about it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::charged::ChargedMemory;
use super::event::{OomTask, Rss};
use super::growth::GrowthProfile;
use super::heap::RuntimeHeap;
use super::memory::Curve;
use super::owner::{CgroupRef, ContainerRef};

/// How a statement is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// The kernel or the runtime reported it, for this very event.
    Observed,
    /// It follows from what was observed, provided that nothing else happened at the same moment.
    Inferred,
}

/// A level of the memory hierarchy, from the innermost to the outermost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// A cgroup that the container created inside of its own.
    InsideContainer,
    Container,
    Pod,
    /// A cgroup above pods, or a cgroup of the host.
    Slice,
    /// The machine's memory.
    Node,
    /// The memory nodes that a cpuset allows.
    Cpuset,
    /// The memory nodes that a policy (mbind, set_mempolicy) allows.
    MemoryPolicy,
    #[default]
    Unknown,
}

impl Level {
    /// The value in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::InsideContainer => "inside-container",
            Level::Container => "container",
            Level::Pod => "pod",
            Level::Slice => "slice",
            Level::Node => "node",
            Level::Cpuset => "cpuset",
            Level::MemoryPolicy => "memory-policy",
            Level::Unknown => "unknown",
        }
    }
}

/// The limit that was met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LimitHit {
    pub of: Level,
    pub how: Evidence,
    /// The source: `kernel log`, `memory.events.local`, `memory.failcnt`, `headroom`, …
    pub by: String,
    /// The path of the cgroup, if the level is a cgroup.
    pub path: Option<String>,
    pub limit_bytes: Option<u64>,
    /// At the time of the kill.
    pub usage_bytes: Option<u64>,
}

/// A cgroup on the path from the victim's up to the root, read just after the kill; if it was gone by then, from the last
/// sample before. The root represents the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LevelState {
    pub of: Level,
    pub path: String,
    pub usage_bytes: Option<u64>,
    /// Null: the cgroup has no limit of its own.
    pub limit_bytes: Option<u64>,
    pub swap_bytes: Option<u64>,
    /// Limit less usage; null: no limit.
    pub headroom_bytes: Option<u64>,
    /// Charges that met this limit, and below it kills in this cgroup, since the last reading before the kill (if there was
    /// none, since the cgroup was created); null: not known.
    pub limit_hits: Option<u64>,
    pub oom_kills: Option<u64>,
}

/// A process that the OOM killer chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Victim {
    #[serde(flatten)]
    pub task: OomTask,
    pub rss: Option<Rss>,
    pub oom_score_adj: Option<i16>,
    /// It was dying already: the kernel only gave it access to memory reserves, and counted no kill.
    pub already_dying: bool,
    pub container: Option<ContainerRef>,
    pub cgroup: CgroupRef,
}

/// A process of the limited cgroup at the moment of the choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessRow {
    pub pid: u32,
    pub comm: String,
    pub rss_bytes: u64,
    pub swap_bytes: u64,
    pub oom_score_adj: i32,
    /// Its share of the memory charged to the limited cgroup, 0..=1; null: not known. Shared pages count for each process.
    pub share: Option<f64>,
    pub victim: bool,
}

/// The processes of the limited cgroup, the largest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessTable {
    /// `kernel log`: the processes that the OOM killer considered; `/proc`: those that remained a moment later.
    pub source: String,
    pub rows: Vec<ProcessRow>,
    /// The number of smaller processes that are left out, and their total RSS.
    pub others: u32,
    pub others_rss_bytes: u64,
}

/// The state of a container as the runtime reports it, and with it Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RuntimeView {
    /// CRI's ContainerState: `created`, `running`, `exited`, `unknown`.
    pub state: String,
    /// `OOMKilled`, `Error`, `Completed`, …; empty while it runs.
    pub reason: String,
    pub exit_code: Option<i32>,
    pub restarts: u32,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// The container's PID 1 in the host's pid namespace, while it runs.
    pub pid: Option<u32>,
    /// When the runtime was asked.
    pub asked_at: Timestamp,
}

/// The result of comparing the kernel's facts with the runtime's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// PID 1 lives on and the pod is Running, so Kubernetes shows nothing.
    SilentChildKill,
    /// The container ended, and the runtime reports a reason other than OOMKilled.
    RuntimeDisagrees,
    /// The machine ran out of memory, not a container.
    NodeOom,
    /// The runtime and the kernel agree.
    Agrees,
}

impl Verdict {
    /// The value in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::SilentChildKill => "silent-child-kill",
            Verdict::RuntimeDisagrees => "runtime-disagrees",
            Verdict::NodeOom => "node-oom",
            Verdict::Agrees => "agrees",
        }
    }
}

/// A container instance that ended by an OOM kill, and how long it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Attempt {
    pub attempt: u32,
    pub seconds: f64,
}

/// One visit of the OOM killer. It is the field `incident` of an event whose pod, container, process and `oom` (with the
/// trigger's stacks) are those of the first victim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OomIncident {
    /// `<boot>-<number>`: the first 4 digits of the boot id, and the kernel log's number of the first kill; or
    /// `<boot>-t<thread>-<ms since boot>` if the log has no line for it.
    pub id: String,
    pub victims: Vec<Victim>,
    /// The task whose allocation met the limit; null: not known, because the kill was read from the log.
    pub trigger: Option<OomTask>,
    pub trigger_cgroup: CgroupRef,
    /// Whether all processes of a cgroup were killed together (`memory.oom.group`).
    pub group: bool,
    /// The number of kills that the kernel counts for it (`/proc/vmstat` oom_kill): none for a victim that was dying already,
    /// and two for the first victim of a group kill, which the kernel kills once more as a member of the group.
    pub kernel_kills: u64,
    /// The kernel's CONSTRAINT_*, in lower case; null: not in the log.
    pub constraint: Option<String>,
    pub limit: LimitHit,
    /// The levels from the victim's cgroup upwards.
    pub levels: Vec<LevelState>,
    pub processes: Option<ProcessTable>,
    /// What was charged to the limited cgroup, by kind; null: the limit is no cgroup's, or it is not known.
    #[serde(default)]
    pub charged: Option<ChargedMemory>,
    pub curve: Option<Curve>,
    /// The heap of the container's language runtime before the kill; null: no process has a runtime that podopsy knows.
    #[serde(default)]
    pub heap: Option<RuntimeHeap>,
    /// The code that made the memory grow; null: it was not sampled (`podopsy-agent --growth`).
    pub growth: Option<GrowthProfile>,
    /// Kubernetes' QoS class, from the cgroup's path.
    pub qos: Option<String>,
    /// The runtime's report of the first victim's container; null: it was in no container, or no runtime answered.
    pub runtime: Option<RuntimeView>,
    pub verdicts: Vec<Verdict>,
    /// The recorded instances of this container that ended by an OOM kill of PID 1, this one last.
    #[serde(rename = "lives")]
    pub attempts: Vec<Attempt>,
    /// One line of advice that the numbers support, phrased as an observation.
    pub advice: Option<String>,
    /// Read from the kernel's log because no recorder was running.
    pub recovered: bool,
}
