//! A SIGKILL that no OOM killer sent.

use serde::{Deserialize, Serialize};

use super::event::{Detail, Event, ProcessRef};
use super::incident::RuntimeView;
use super::owner::{CgroupRef, ContainerRef, KnownBy, PodRef};

/// The sender, derived from its cgroup and, for a host process, from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Sender {
    /// A host process with the name of a container runtime (runc, crun, containerd-shim, conmon, …): a stop whose grace
    /// period was over, or that had none.
    Runtime,
    Kubelet,
    SystemdOomd,
    /// The host process `systemd`, which stops a unit or a scope.
    Systemd,
    /// Any other host process.
    HostProcess,
    /// Another container of the same pod.
    SamePod,
    /// Another pod, or a container that belongs to no pod.
    OtherPod,
    /// The kernel itself, but not its OOM killer: PID 1 of the pid namespace ended, RLIMIT_CPU, a tracer that exited, ….
    Kernel,
    /// The signal does not show it, or the sender's cgroup is not known.
    Unknown,
}

impl Sender {
    /// The value in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Sender::Runtime => "runtime",
            Sender::Kubelet => "kubelet",
            Sender::SystemdOomd => "systemd-oomd",
            Sender::Systemd => "systemd",
            Sender::HostProcess => "host-process",
            Sender::SamePod => "same-pod",
            Sender::OtherPod => "other-pod",
            Sender::Kernel => "kernel",
            Sender::Unknown => "unknown",
        }
    }
}

/// A process and its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Party {
    pub process: ProcessRef,
    pub pod: Option<PodRef>,
    pub container: Option<ContainerRef>,
    pub cgroup: CgroupRef,
    pub known_by: KnownBy,
}

/// The result of comparing the SIGKILL with the runtime's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SigkillVerdict {
    /// The container ended, by a SIGKILL that no OOM killer sent.
    SigkillNoOom,
    /// The runtime reports OOMKilled, but the OOM killer did not choose this process.
    RuntimeSaysOom,
    /// A process was killed and the container continues to run, so Kubernetes shows nothing.
    ContainerRunsOn,
}

impl SigkillVerdict {
    /// The value in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            SigkillVerdict::SigkillNoOom => "sigkill-no-oom",
            SigkillVerdict::RuntimeSaysOom => "runtime-says-oom",
            SigkillVerdict::ContainerRunsOn => "container-runs-on",
        }
    }
}

/// The first SIGKILL that a process received from outside of its own container. It is the field `sigkill` of an event
/// whose pod, container and process are the target's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sigkill {
    /// `<boot>-k<process>-<ms since boot>`.
    pub id: String,
    pub by: Sender,
    /// The process that sent it. For `kernel` and `unknown` it is the process that was running at that moment; null if that
    /// has no meaning.
    pub sender: Option<Party>,
    /// Whether the target was the container's PID 1; null: not known.
    pub first_process: Option<bool>,
    /// 0 kill, -6 tgkill, -1 sigqueue, 128 the kernel; null: not known.
    pub si_code: Option<i32>,
    /// Whether it was sent to the process as a whole. If false, to one of its threads, which also ends the process.
    pub to_process: bool,
    /// The runtime's report of the container a moment later; null: it is in no container, or no runtime answered.
    pub runtime: Option<RuntimeView>,
    /// Null: it is not known whether the container ended.
    pub verdict: Option<SigkillVerdict>,
}

impl Event {
    pub fn sigkill(&self) -> Option<&Sigkill> {
        match &self.detail {
            Detail::Sigkill(sigkill) => Some(sigkill),
            _ => None,
        }
    }

    /// The id under which the history stores it: that of an OOM incident or of a SIGKILL.
    pub fn kept_id(&self) -> Option<&str> {
        let incident = self.incident.as_ref().map(|incident| incident.id.as_str());
        incident.or_else(|| Some(self.sigkill()?.id.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_str_gives_the_values_of_the_json() {
        use Sender::*;
        for by in [Runtime, Kubelet, SystemdOomd, Systemd, HostProcess, SamePod, OtherPod, Kernel, Unknown] {
            assert_eq!(serde_json::to_string(&by).unwrap(), format!("{:?}", by.as_str()));
        }
        use SigkillVerdict::*;
        for verdict in [SigkillNoOom, RuntimeSaysOom, ContainerRunsOn] {
            assert_eq!(serde_json::to_string(&verdict).unwrap(), format!("{:?}", verdict.as_str()));
        }
    }
}
