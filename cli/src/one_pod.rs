//! The one process that a command about a pod's processes works on.

use std::fs;
use std::path::PathBuf;
use std::slice;
use std::sync::Arc;

use podopsy_model::{PodRef, Target};
use podopsy_net::PodProcess;
use podopsy_pods::{ContainerDetails, PodDetails, Pods, Resolved};

use crate::args::{OneTargetArgs, PodFilterArgs};
use crate::exit::{NotFound, Refusal};
use crate::selection::Selection;

/// What TARGET has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A pod is enough: its containers share what the command is about.
    Pod,
    Container,
}

/// A process, and the pod that it belongs to.
#[derive(Clone, Debug)]
pub struct ChosenProcess {
    pub pid: u32,
    pub pod: Option<PodRef>,
    /// As the runtime lists the pod.
    pub details: Option<PodDetails>,
}

impl ChosenProcess {
    pub async fn find(
        pods: &Arc<Pods>,
        args: &OneTargetArgs,
        wanted: Wanted,
    ) -> anyhow::Result<ChosenProcess> {
        if let Target::Pid(pid) = args.target {
            return ChosenProcess::of_process(pods, pid).await;
        }
        let filter = PodFilterArgs { namespace: args.namespace.clone(), ..PodFilterArgs::default() };
        let selection = Selection::new(slice::from_ref(&args.target), &filter)?;
        let mut found = selection.resolve(pods).await?;
        let (Some(one), true) = (found.pop(), found.is_empty()) else {
            return Err(Refusal(format!("{} has several pods: name one", selection.describe())).into());
        };
        match one {
            Resolved::Containers(pod, containers) => {
                let listed = pods.list().await.unwrap_or_default();
                let details = listed.into_iter().find(|listed| listed.pod.uid == pod.uid);
                let pid = pid_of(&pod, &containers, details.as_ref(), wanted)?;
                Ok(ChosenProcess { pid, pod: Some(pod), details })
            }
            Resolved::Process(pid) => ChosenProcess::of_process(pods, pid).await,
            Resolved::Cgroups(ids) => match ids.iter().find_map(|id| pods.pids(*id).first().copied()) {
                Some(pid) => ChosenProcess::of_process(pods, pid).await,
                None => Err(NotFound(format!("{} has no process", selection.describe())).into()),
            },
            Resolved::Node => Err(Refusal(
                "name a process, pid:N: this is the whole node, or the pod that podopsy is in".into(),
            )
            .into()),
        }
    }

    async fn of_process(pods: &Arc<Pods>, pid: u32) -> anyhow::Result<ChosenProcess> {
        if !fs::exists(format!("/proc/{pid}/ns")).unwrap_or(false) {
            return Err(NotFound(format!("no process {pid} here")).into());
        }
        let pod = pods.owner_of_pid(pid).await.ok().and_then(|owner| owner.pod);
        let listed = if pod.is_some() { pods.list().await.unwrap_or_default() } else { Vec::new() };
        let is_same = |listed: &PodDetails| pod.as_ref().is_some_and(|pod| pod.uid == listed.pod.uid);
        let details = listed.into_iter().find(is_same);
        Ok(ChosenProcess { pid, pod, details })
    }

    /// `shop/cart`, or `process 42`.
    pub fn describe(&self) -> String {
        match &self.pod {
            Some(pod) => format!("{}/{}", pod.namespace, pod.name),
            None => format!("process {}", self.pid),
        }
    }

    pub fn network_namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }

    /// By the runtime's word, or because it is the network of process 1: on a node in a container, they are not the same.
    pub fn is_in_host_network(&self) -> bool {
        let is_declared = self.details.as_ref().is_some_and(|pod| pod.netns.is_none());
        is_declared || network_of(self.pid).is_some_and(|own| network_of(1) == Some(own))
    }

    /// The processes whose sockets are shown: the pod's, or those in the namespace of a process that is in no pod.
    pub fn members(&self) -> Vec<PodProcess> {
        if let Some(details) = &self.details {
            return members_of(details, self.pid);
        }
        let own = PodProcess { pid: self.pid, container: None };
        if self.is_in_host_network() {
            return vec![own];
        }
        let network = network_of(self.pid);
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let others = pids.filter(|&pid| pid != self.pid && network_of(pid) == network);
        let others = others.map(|pid| PodProcess { pid, container: None });
        std::iter::once(own).chain(others).collect()
    }
}

fn network_of(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

fn members_of(details: &PodDetails, pid: u32) -> Vec<PodProcess> {
    let of_container = |container: &ContainerDetails| {
        let name = container.container.name.clone();
        let pids = container.pids.clone().into_iter();
        pids.map(move |pid| PodProcess { pid, container: Some(name.clone()) }).collect::<Vec<_>>()
    };
    let mut members: Vec<PodProcess> = details.containers.iter().flat_map(of_container).collect();
    for pid in [Some(pid), sandbox_pid(details)].into_iter().flatten() {
        if members.iter().all(|member| member.pid != pid) {
            members.push(PodProcess { pid, container: None });
        }
    }
    members
}

/// The process that holds the pod's network namespace.
fn sandbox_pid(details: &PodDetails) -> Option<u32> {
    details.netns.as_deref()?.strip_prefix("/proc/")?.strip_suffix("/ns/net")?.parse().ok()
}

fn pid_of(
    pod: &PodRef,
    containers: &[ContainerDetails],
    details: Option<&PodDetails>,
    wanted: Wanted,
) -> anyhow::Result<u32> {
    let name = |container: &&ContainerDetails| {
        format!("{}/{}/{}", pod.namespace, pod.name, container.container.name)
    };
    let running: Vec<&ContainerDetails> =
        containers.iter().filter(|container| container.pid.is_some()).collect();
    let gone = || NotFound(format!("{}/{} has no running process", pod.namespace, pod.name));
    if wanted == Wanted::Container && running.len() > 1 {
        let names: Vec<String> = running.iter().map(name).collect();
        let why = format!(
            "{}/{} has several running containers: name one of {}",
            pod.namespace,
            pod.name,
            names.join(", ")
        );
        return Err(Refusal(why).into());
    }
    let first = running.first().and_then(|container| container.pid);
    let sandbox = details.filter(|_| wanted == Wanted::Pod).and_then(sandbox_pid);
    Ok(first.or(sandbox).ok_or_else(gone)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::pods::tests::{container, pod};

    #[test]
    fn several_running_containers_are_one_pod_and_not_one_container() {
        let mut both = [container("api", 0, "running"), container("proxy", 0, "running")];
        both[1].pid = Some(5000);
        let details = pod("cart", both.to_vec());
        let pid = |containers: &[ContainerDetails], wanted| {
            pid_of(&details.pod, containers, Some(&details), wanted)
        };
        assert_eq!(pid(&both, Wanted::Pod).unwrap(), 4242);
        let error = pid(&both, Wanted::Container).unwrap_err();
        assert!(error.is::<Refusal>() && error.to_string().contains("finance/cart/proxy"), "{error}");
        assert_eq!(pid(&both[1..], Wanted::Container).unwrap(), 5000);
    }

    #[test]
    fn a_pod_that_the_runtime_gives_no_network_has_the_hosts() {
        let mut details = pod("cart", vec![]);
        let chosen =
            |details: &PodDetails| ChosenProcess { pid: u32::MAX, pod: None, details: Some(details.clone()) };
        assert!(!chosen(&details).is_in_host_network());
        details.netns = None;
        assert!(chosen(&details).is_in_host_network());
    }

    #[test]
    fn a_pod_without_a_running_container_still_has_its_network() {
        let dead = [container("api", 0, "exited")];
        let details = pod("cart", dead.to_vec());
        let pid = |wanted| pid_of(&details.pod, &dead, Some(&details), wanted);
        assert_eq!(pid(Wanted::Pod).unwrap(), 4200);
        assert!(pid(Wanted::Container).unwrap_err().is::<NotFound>());
        let members: Vec<u32> = members_of(&details, 4200).iter().map(|member| member.pid).collect();
        assert_eq!(members, [4200]);
    }
}
