//! Classifies the sender of a SIGKILL, from observed facts only. Pure: no I/O.

use podopsy_decode::SentBy;
use podopsy_model::sigkill::Sender;
use podopsy_model::{KnownBy, Owner};

/// The names of the runtimes' processes, as the kernel keeps them (15 bytes). A name counts only for a host process: in
/// a container, the container's owner chooses it.
const RUNTIMES: [&str; 10] = [
    "runc",
    "crun",
    "youki",
    "runsc",
    "conmon",
    "conmonrs",
    "containerd",
    "crio",
    "dockerd",
    "containerd-shim",
];

/// `running`: the owner of the task that was running when the signal was sent; `comm`: its name.
pub fn sender(sent_by: SentBy, comm: &str, running: Option<&Owner>, target: &Owner) -> Sender {
    let owner = match (sent_by, running) {
        (SentBy::Kernel, _) => return Sender::Kernel,
        (SentBy::Unknown, _) | (_, None) => return Sender::Unknown,
        (SentBy::Task, Some(owner)) => owner,
    };
    match owner.known_by {
        KnownBy::Unknown => Sender::Unknown,
        KnownBy::Host => match comm {
            "kubelet" => Sender::Kubelet,
            "systemd-oomd" => Sender::SystemdOomd,
            "systemd" => Sender::Systemd,
            _ if RUNTIMES.contains(&comm) => Sender::Runtime,
            _ => Sender::HostProcess,
        },
        _ if same_pod(owner, target) || same_container(owner, target) => Sender::SamePod,
        _ => Sender::OtherPod,
    }
}

/// Whether a process of the target's own container sent it, also from a cgroup that the container made inside itself.
/// Such SIGKILLs are counted, not reported.
pub fn is_own_container(by: Sender, running: Option<&Owner>, target: &Owner) -> bool {
    by == Sender::SamePod && running.is_some_and(|owner| same_container(owner, target))
}

/// Whether the runtime ended a sandbox. Runtimes end every sandbox by SIGKILL, so this is no news.
pub fn is_routine(by: Sender, target: &Owner) -> bool {
    by == Sender::Runtime && target.pod.is_some() && target.container.is_none()
}

fn same_pod(one: &Owner, other: &Owner) -> bool {
    let uid = |owner: &'_ Owner| owner.pod.as_ref().map(|pod| pod.uid.clone());
    uid(one).is_some() && uid(one) == uid(other)
}

fn same_container(one: &Owner, other: &Owner) -> bool {
    let id = |owner: &'_ Owner| owner.container.as_ref().map(|container| container.id.clone());
    id(one).is_some() && id(one) == id(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_model::{ContainerRef, PodRef};

    fn pod_owner(uid: &str, container: Option<&str>) -> Owner {
        let pod =
            PodRef { namespace: "n".into(), name: "p".into(), uid: uid.into(), labels: Default::default() };
        let container = container.map(|id| ContainerRef {
            name: "c".into(),
            id: id.into(),
            image: String::new(),
            attempt: 0,
        });
        Owner { pod: Some(pod), container, known_by: KnownBy::Cri, ..Owner::default() }
    }

    fn host() -> Owner {
        Owner { known_by: KnownBy::Host, ..Owner::default() }
    }

    #[test]
    fn a_process_name_counts_only_for_host_processes() {
        let target = pod_owner("u1", Some("a"));
        let by = |comm: &str, owner: &Owner| sender(SentBy::Task, comm, Some(owner), &target);
        for (comm, expected) in [
            ("runc", Sender::Runtime),
            ("containerd-shim", Sender::Runtime),
            ("kubelet", Sender::Kubelet),
            ("systemd-oomd", Sender::SystemdOomd),
            ("systemd", Sender::Systemd),
            ("bash", Sender::HostProcess),
        ] {
            assert_eq!(by(comm, &host()), expected, "{comm}");
            assert_eq!(by(comm, &pod_owner("u2", Some("b"))), Sender::OtherPod, "{comm} of a pod");
        }
        assert_eq!(by("bash", &pod_owner("u1", Some("b"))), Sender::SamePod);
        assert_eq!(by("kubelet", &Owner::default()), Sender::Unknown);
    }

    #[test]
    fn the_running_task_is_ignored_if_the_kernel_or_an_interrupt_sent_the_signal() {
        let target = pod_owner("u1", Some("a"));
        assert_eq!(sender(SentBy::Kernel, "kubelet", Some(&host()), &target), Sender::Kernel);
        assert_eq!(sender(SentBy::Unknown, "kubelet", None, &target), Sender::Unknown);
    }

    #[test]
    fn the_containers_own_signals_and_the_end_of_a_sandbox_are_recognized() {
        let (mine, sandbox) = (pod_owner("u1", Some("a")), pod_owner("u1", None));
        assert!(is_own_container(Sender::SamePod, Some(&mine), &mine));
        assert!(!is_own_container(Sender::SamePod, Some(&pod_owner("u1", Some("b"))), &mine));
        assert!(
            !is_own_container(Sender::Kernel, Some(&mine), &mine),
            "the kernel is not a process of the container"
        );
        assert!(is_routine(Sender::Runtime, &sandbox) && !is_routine(Sender::Runtime, &mine));
        assert!(!is_routine(Sender::HostProcess, &sandbox));
    }
}
