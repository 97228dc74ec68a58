//! An OOM incident: one visit of the OOM killer, with all its victims and all that is known of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::{OomTask, Rss};
use super::growth::GrowthProfile;
use super::memory::Curve;
use super::owner::{CgroupRef, ContainerRef};

/// How a statement is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// The kernel or the runtime said so, of this very event.
    Observed,
    /// It follows from what was observed, if nothing else happened in the same moment.
    Inferred,
}

/// A level of the memory hierarchy, from the inside out; whose limit it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// A cgroup that the container made inside of itself.
    InsideContainer,
    Container,
    Pod,
    /// A cgroup above pods, or one of the host's own.
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
    /// The word that stands in the JSON.
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

/// Whose limit was met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub of: Level,
    pub how: How,
    /// What says so: `kernel log`, `memory.events.local`, `memory.failcnt`, `headroom`, …
    pub by: String,
    /// The cgroup's path, where it is one.
    pub path: Option<String>,
    pub limit_bytes: Option<u64>,
    /// At the time of the kill.
    pub usage_bytes: Option<u64>,
}

/// A cgroup from the victim's up to the root, as it was just after the kill (before: by the last sample,
/// where it was gone by then). The root stands for the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelState {
    pub of: Level,
    pub path: String,
    pub usage_bytes: Option<u64>,
    /// Null: no limit of its own.
    pub limit_bytes: Option<u64>,
    pub swap_bytes: Option<u64>,
    /// Limit less usage; null: no limit.
    pub headroom_bytes: Option<u64>,
    /// Charges that met this limit, kills in this cgroup, since the last look before the kill (or, where there
    /// was none, since the cgroup was made); null: not known.
    pub limit_hits: Option<u64>,
    pub oom_kills: Option<u64>,
}

/// A process that the OOM killer chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Victim {
    #[serde(flatten)]
    pub task: OomTask,
    pub rss: Option<Rss>,
    pub oom_score_adj: Option<i16>,
    /// It was dying before: the kernel only gave it access to reserves, and counted no kill.
    pub already_dying: bool,
    pub container: Option<ContainerRef>,
    pub cgroup: CgroupRef,
}

/// A process of the limited cgroup when the choice was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessRow {
    pub pid: u32,
    pub comm: String,
    pub rss_bytes: u64,
    pub swap_bytes: u64,
    pub oom_score_adj: i32,
    /// Of what was charged to the limited cgroup, 0..=1; null: that is not known. Shared pages count in each.
    pub share: Option<f64>,
    pub victim: bool,
}

/// The processes of the limited cgroup, the largest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessTable {
    /// `kernel log`: as the killer saw them; `/proc`: those that were left a moment later.
    pub source: String,
    pub rows: Vec<ProcessRow>,
    /// Smaller ones that are left out, and what they held together.
    pub others: u32,
    pub others_rss_bytes: u64,
}

/// What the container runtime says, and so Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// When it was asked.
    pub asked_at: Timestamp,
}

/// Where the kernel's facts and Kubernetes' word part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// PID 1 lives on and the pod is Running: Kubernetes shows nothing.
    SilentChildKill,
    /// The container ended, and the runtime gives another reason than OOMKilled.
    RuntimeDisagrees,
    /// The machine's memory was short, not a container's.
    NodeOom,
    /// Runtime and kernel say the same.
    Agrees,
}

impl Verdict {
    /// The word that stands in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::SilentChildKill => "silent-child-kill",
            Verdict::RuntimeDisagrees => "runtime-disagrees",
            Verdict::NodeOom => "node-oom",
            Verdict::Agrees => "agrees",
        }
    }
}

/// From a container's start to its OOM kill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub attempt: u32,
    pub seconds: f64,
}

/// One visit of the OOM killer. It stands under `incident` in an event whose pod, container, process and
/// `oom` (with the trigger's stacks) are the first victim's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// `<boot>-<number>`: the first 4 digits of the boot id, and the kernel log's number of the first kill; or
    /// `<boot>-t<thread>-<ms since boot>`, where the log says nothing of it.
    pub id: String,
    pub victims: Vec<Victim>,
    /// Who asked for memory; null: not known (a kill that only the log tells of).
    pub trigger: Option<OomTask>,
    pub trigger_cgroup: CgroupRef,
    /// All of a cgroup's processes were killed together (`memory.oom.group`).
    pub group: bool,
    /// How many kills the kernel counts of it (`/proc/vmstat` oom_kill): none for a victim that was dying
    /// already, and two for the first victim of a group, which is killed as a member once more.
    pub kernel_kills: u64,
    /// The kernel's CONSTRAINT_*, in small letters; null: the log did not say.
    pub constraint: Option<String>,
    pub limit: Limit,
    /// From the victim's cgroup up.
    pub levels: Vec<LevelState>,
    pub processes: Option<ProcessTable>,
    pub curve: Option<Curve>,
    /// Which code the memory grew by; null: it was not sampled (`podopsy-agent --growth`).
    pub growth: Option<GrowthProfile>,
    /// Kubernetes' QoS class, by the cgroup's path.
    pub qos: Option<String>,
    /// What the runtime says of the first victim's container; null: it is no container's, or nobody answered.
    pub runtime: Option<RuntimeView>,
    pub verdicts: Vec<Verdict>,
    /// This container's lives that ended by an OOM kill of PID 1, this one last, as far as they were seen.
    #[serde(rename = "lives")]
    pub attempts: Vec<Attempt>,
    /// One line that the numbers carry, phrased as what was seen.
    pub advice: Option<String>,
    /// Nobody watched: this is what the kernel's log has of it.
    pub recovered: bool,
}
