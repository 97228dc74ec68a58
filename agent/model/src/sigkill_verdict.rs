//! The verdict on a SIGKILL, from the runtime's report. Pure functions.

use crate::incident::RuntimeView;
use crate::sigkill::{Sender, Sigkill, SigkillVerdict};
use crate::verdict::container_state;

/// The verdict. None: nothing is known about the container.
pub fn verdict(view: Option<&RuntimeView>) -> Option<SigkillVerdict> {
    let view = view?;
    match view.state.as_str() {
        "running" => Some(SigkillVerdict::ContainerRunsOn),
        "exited" if view.reason == "OOMKilled" => Some(SigkillVerdict::RuntimeSaysOom),
        "exited" => Some(SigkillVerdict::SigkillNoOom),
        _ => None,
    }
}

/// One line for people: `Error (137) in Kubernetes, but no OOM: SIGKILL from kubelet[812]`.
pub fn explain(sigkill: &Sigkill) -> String {
    let from = format!("SIGKILL from {}", from(sigkill));
    let state = sigkill.runtime.as_ref().map(container_state).unwrap_or_default();
    match sigkill.verdict {
        Some(SigkillVerdict::SigkillNoOom) => format!("{state} in Kubernetes, but no OOM: {from}"),
        Some(SigkillVerdict::RuntimeSaysOom) => {
            format!("{state} in Kubernetes, but the OOM killer did not choose this process: {from}")
        }
        Some(SigkillVerdict::ContainerRunsOn) => {
            format!("the container runs on, and Kubernetes shows nothing; no OOM: {from}")
        }
        None => format!("no OOM: {from}"),
    }
}

/// The sender in words: `runc[812] (runtime)`, `the kernel, on behalf of pause[7]`, ….
pub fn from(sigkill: &Sigkill) -> String {
    let name = |party: &crate::sigkill::Party| format!("{}[{}]", party.process.comm, party.process.pid);
    match (sigkill.by, &sigkill.sender) {
        (Sender::Kernel, Some(party)) => format!("the kernel, on behalf of {}", name(party)),
        (Sender::Kernel, None) => "the kernel".to_owned(),
        (_, None) => "an unknown sender".to_owned(),
        (Sender::OtherPod | Sender::SamePod, Some(party)) => {
            let owner = match (&party.pod, &party.container) {
                (Some(pod), Some(container)) => format!("{}/{}/{}", pod.namespace, pod.name, container.name),
                (Some(pod), None) => format!("{}/{}", pod.namespace, pod.name),
                (None, _) => "a container of no pod".to_owned(),
            };
            format!("{} ({} {owner})", name(party), sigkill.by.as_str())
        }
        (by, Some(party)) if by.as_str() == party.process.comm => name(party),
        (by, Some(party)) => format!("{} ({})", name(party), by.as_str()),
    }
}

#[cfg(test)]
pub mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::sigkill::Party;
    use crate::{KnownBy, ProcessRef};

    pub fn view(state: &str, reason: &str, code: Option<i32>) -> RuntimeView {
        RuntimeView {
            state: state.into(),
            reason: reason.into(),
            exit_code: code,
            restarts: 0,
            started_at: None,
            finished_at: None,
            pid: None,
            asked_at: Timestamp::UNIX_EPOCH,
        }
    }

    pub fn sigkill(by: Sender, comm: &str, view: Option<RuntimeView>) -> Sigkill {
        let process = ProcessRef { pid: 812, comm: comm.into(), start_time: None };
        Sigkill {
            id: "3f2a-k43-9".into(),
            by,
            sender: Some(Party {
                process,
                pod: None,
                container: None,
                cgroup: Default::default(),
                known_by: KnownBy::Host,
            }),
            first_process: Some(true),
            si_code: Some(0),
            to_process: true,
            verdict: verdict(view.as_ref()),
            runtime: view,
        }
    }

    #[test]
    fn the_line_names_the_state_in_kubernetes_and_the_sender() {
        let error = || Some(view("exited", "Error", Some(137)));
        for (one, line) in [
            (
                sigkill(Sender::Kubelet, "kubelet", error()),
                "Error (137) in Kubernetes, but no OOM: SIGKILL from kubelet[812]",
            ),
            (
                sigkill(Sender::Runtime, "runc", Some(view("exited", "OOMKilled", Some(137)))),
                "OOMKilled (137) in Kubernetes, but the OOM killer did not choose this process: SIGKILL from \
                 runc[812] (runtime)",
            ),
            (
                sigkill(Sender::HostProcess, "bash", Some(view("running", "", None))),
                "the container runs on, and Kubernetes shows nothing; no OOM: SIGKILL from bash[812] (host-process)",
            ),
            (
                sigkill(Sender::Kernel, "pause", None),
                "no OOM: SIGKILL from the kernel, on behalf of pause[812]",
            ),
        ] {
            assert_eq!(explain(&one), line);
        }
    }
}
