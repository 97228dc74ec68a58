//! A SIGKILL that no OOM killer sent.

use serde::{Deserialize, Serialize};

use super::event::{Detail, Event, ProcessRef};
use super::incident::RuntimeView;
use super::owner::{CgroupRef, ContainerRef, KnownBy, PodRef};

/// What sent it, by what was seen: the sender's cgroup, and a host process's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sender {
    /// A host process called as container runtimes are (runc, crun, containerd-shim, conmon, …): a stop whose grace
    /// period was over, or that had none.
    Runtime,
    Kubelet,
    SystemdOomd,
    /// Host process `systemd`: it stops a unit or a scope.
    Systemd,
    /// Any other host process.
    HostProcess,
    /// Another container of the same pod.
    SamePod,
    /// Another pod, or a container of no pod.
    OtherPod,
    /// The kernel itself, and not its OOM killer: PID 1 of the pid namespace ended, RLIMIT_CPU, a tracer's end, ….
    Kernel,
    /// The signal does not tell, or the sender's cgroup is not known.
    Unknown,
}

impl Sender {
    /// The word that stands in the JSON.
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

/// A process and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    pub process: ProcessRef,
    pub pod: Option<PodRef>,
    pub container: Option<ContainerRef>,
    pub cgroup: CgroupRef,
    pub known_by: KnownBy,
}

/// What Kubernetes makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SigkillVerdict {
    /// The container ended, by a SIGKILL that no OOM killer sent.
    SigkillNoOom,
    /// The runtime says OOMKilled, but this process is none that the OOM killer chose.
    RuntimeSaysOom,
    /// A process was killed, and the container runs on: Kubernetes shows nothing.
    ContainerRunsOn,
}

impl SigkillVerdict {
    /// The word that stands in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            SigkillVerdict::SigkillNoOom => "sigkill-no-oom",
            SigkillVerdict::RuntimeSaysOom => "runtime-says-oom",
            SigkillVerdict::ContainerRunsOn => "container-runs-on",
        }
    }
}

/// A process was sent its first SIGKILL, from outside of its own container. It stands under `sigkill` in an event
/// whose pod, container and process are the target's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sigkill {
    /// `<boot>-k<process>-<ms since boot>`.
    pub id: String,
    pub by: Sender,
    /// The process that sent it; by `kernel` and `unknown` the one that was running then, null where that means nothing.
    pub sender: Option<Party>,
    /// Whether it was the container's PID 1; null: not known.
    pub first_process: Option<bool>,
    /// 0 kill, -6 tgkill, -1 sigqueue, 128 the kernel; null: not known.
    pub si_code: Option<i32>,
    /// To the process as a whole; false: to one of its threads, which ends them all just so.
    pub to_process: bool,
    /// What the runtime says of the container a moment later; null: it is no container's, or nobody answered.
    pub runtime: Option<RuntimeView>,
    /// Null: nothing is known of the container's end.
    pub verdict: Option<SigkillVerdict>,
}

impl Event {
    pub fn sigkill(&self) -> Option<&Sigkill> {
        match &self.detail {
            Detail::Sigkill(sigkill) => Some(sigkill),
            _ => None,
        }
    }

    /// Its id, if it is kept in the history: of an incident, or of a SIGKILL.
    pub fn kept_id(&self) -> Option<&str> {
        let incident = self.incident.as_ref().map(|incident| incident.id.as_str());
        incident.or_else(|| Some(self.sigkill()?.id.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_json() {
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
