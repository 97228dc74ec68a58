//! Resolves a TARGET to what it refers to on this node. The error names what exists instead.
//!
//! This module must not depend on the syntax of targets (see `model::target`) or on how pods are listed.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{anyhow, bail};

use super::state::PodsState;
use super::{ContainerDetails, PodDetails, Resolved, list, proc};
use crate::inside::OwnPod;
use podopsy_model::target_match::find_pods;
use podopsy_model::{PodCandidate, PodRef, Target, TargetMatchError, text};

/// The largest number of suggestions in one error.
const SUGGESTIONS: usize = 5;
/// The least number of hex digits for a container id prefix.
const PREFIX_MIN: usize = 4;

pub(super) async fn resolve(state: &Arc<PodsState>, target: &Target) -> anyhow::Result<Vec<Resolved>> {
    let one = match target {
        Target::All => Resolved::Node,
        Target::Pid(pid) => of_pid(state, *pid).await?,
        Target::Cgroup(path) => of_cgroup(state, path).await?,
        Target::Name(_) | Target::Pod { .. } | Target::Workload { .. } => {
            return of_pods(state, &pods(state).await?, target);
        }
    };
    Ok(vec![one])
}

/// The same in a pod, where only its own processes are visible: its name stands for all of them.
pub(super) fn from_inside(own: &OwnPod, target: &Target) -> anyhow::Result<Resolved> {
    let own = own.pod().map(|pod| PodCandidate { pod, note: "this pod".to_owned() });
    match target {
        Target::All => return Ok(Resolved::Node),
        Target::Pid(pid) => return Ok(Resolved::Process(*pid)),
        Target::Pod { container: Some(_), .. } => {}
        other if find_pods(other, own.as_slice()).is_ok_and(|found| !found.is_empty()) => {
            return Ok(Resolved::Node);
        }
        _ => {}
    }
    bail!(TargetMatchError::NotFound(format!(
        "{} is not to be seen from inside a pod: --all is what its processes do, pid:N is one of them; other pods need podopsy \
         on the node (kubectl debug node/NODE --profile=sysadmin)",
        text::escape(&target.to_string())
    )))
}

async fn pods(state: &Arc<PodsState>) -> anyhow::Result<Vec<PodDetails>> {
    list::list(state).await
}

/// The container, the pod, or the pods of a controller that a target names.
fn of_pods(state: &PodsState, pods: &[PodDetails], target: &Target) -> anyhow::Result<Vec<Resolved>> {
    if let Target::Name(name) = target
        && let Some(container) = of_container_id(pods, name)?
    {
        return Ok(vec![container]);
    }
    let candidates: Vec<PodCandidate<'_>> = pods.iter().map(PodDetails::candidate).collect();
    let found = find_pods(target, &candidates).map_err(|error| with_runtime_error(state, error))?;
    let found = pods.iter().filter(|pod| found.iter().any(|one| std::ptr::eq(*one, &pod.pod)));
    if let Target::Workload { .. } = target {
        let all = found.map(|pod| Resolved::Containers(pod.pod.clone(), pod.containers.clone()));
        return Ok(all.collect());
    }
    let container = match target {
        Target::Pod { container, .. } => container.as_deref(),
        _ => None,
    };
    let Some(pod) = newest(found) else {
        bail!(TargetMatchError::NotFound(format!("{target} is no pod of this node")))
    };
    Ok(vec![in_pod(pod.clone(), container)?])
}

/// A node without an answer of the runtime may have more pods than are known: that is a failure, and not the answer that
/// there is no such pod.
fn with_runtime_error(state: &PodsState, error: TargetMatchError) -> anyhow::Error {
    match (error, state.runtime.about()) {
        (TargetMatchError::NotFound(text), (_, _, Some(reason))) => {
            anyhow!("{text}; the container runtime did not answer ({reason}): --cri-socket names its socket")
        }
        (error, _) => error.into(),
    }
}

/// Chooses among pods of one name (a pod that was created again leaves an old one): a ready one first, then the newest.
fn newest<'a>(pods: impl Iterator<Item = &'a PodDetails>) -> Option<&'a PodDetails> {
    pods.max_by_key(|pod| (pod.state == "ready", pod.created_at))
}

fn in_pod(pod: PodDetails, container: Option<&str>) -> anyhow::Result<Resolved> {
    let Some(name) = container else { return Ok(Resolved::Containers(pod.pod, pod.containers)) };
    // Of several attempts take the latest, which list() puts first.
    let Some(at) = pod.containers.iter().position(|c| c.container.name == name) else {
        let mut names: Vec<_> = pod.containers.iter().map(|c| c.container.name.as_str()).collect();
        names.dedup();
        bail!(TargetMatchError::NotFound(format!(
            "pod {} has no container {}; it has: {}",
            full_name(&pod),
            text::escape(name),
            if names.is_empty() { "none".into() } else { names.join(", ") }
        )));
    };
    let mut containers = pod.containers;
    Ok(Resolved::Containers(pod.pod, vec![containers.swap_remove(at)]))
}

/// The container whose id begins with `name`. None: `name` cannot be the beginning of an id, or none has it.
fn of_container_id(pods: &[PodDetails], name: &str) -> anyhow::Result<Option<Resolved>> {
    let prefix = name.to_ascii_lowercase();
    if prefix.len() < PREFIX_MIN || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let all = pods.iter().flat_map(|pod| pod.containers.iter().map(move |c| (pod, c)));
    let found: Vec<_> = all.filter(|(_, c)| c.container.id.starts_with(&prefix)).collect();
    match found[..] {
        [] => Ok(None),
        [(pod, container)] => Ok(Some(Resolved::Containers(pod.pod.clone(), vec![container.clone()]))),
        _ => {
            let shown: Vec<_> = found.iter().take(SUGGESTIONS).map(|(pod, c)| describe(pod, c)).collect();
            let more = found.len() - shown.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let shown = shown.join(", ");
            bail!(TargetMatchError::Ambiguous(format!(
                "container id prefix {name} is ambiguous: {shown}{more}"
            )))
        }
    }
}

impl PodDetails {
    /// The pod as one that a TARGET may mean.
    pub fn candidate(&self) -> PodCandidate<'_> {
        let running = self.containers.iter().filter(|container| container.state == "running").count();
        let mut note = match running {
            0 => "not running".to_owned(),
            _ => "running".to_owned(),
        };
        if let Some(created_at) = self.created_at {
            note += &created_at.strftime(", created %Y-%m-%d %H:%M:%SZ").to_string();
        }
        PodCandidate { pod: &self.pod, note }
    }
}

fn describe(pod: &PodDetails, container: &ContainerDetails) -> String {
    let id: String = container.container.id.chars().take(13).collect();
    format!("{id} ({}/{})", full_name(pod), container.container.name)
}

fn full_name(pod: &PodDetails) -> String {
    format!("{}/{}", pod.pod.namespace, pod.pod.name)
}

async fn of_pid(state: &Arc<PodsState>, pid: u32) -> anyhow::Result<Resolved> {
    let Some(path) = proc::cgroup(&state.options.proc_root, &state.hierarchy, pid) else {
        if proc::exists(&state.options.proc_root, pid) {
            bail!("process {pid}: its memory cgroup is outside of what is mounted here");
        }
        bail!(TargetMatchError::NotFound(format!(
            "no process {pid} (pids are those of the host's pid namespace)"
        )));
    };
    let Some(id) = state.id_of_path(&path) else { bail!("process {pid} is exiting") };
    let owner = state.owner_of_cgroup(id).await;
    let Some(container) = owner.container else { return Ok(Resolved::Process(pid)) };
    match owner.pod {
        Some(pod) => Ok(of_container(state, pod, container).await),
        // A container outside of Kubernetes (docker, podman): only its cgroups are known.
        None => Ok(Resolved::Cgroups(list::unlisted(state, container).cgroup_ids)),
    }
}

async fn of_container(
    state: &Arc<PodsState>,
    pod: PodRef,
    container: podopsy_model::ContainerRef,
) -> Resolved {
    let listed = pods(state).await.unwrap_or_default().into_iter().flat_map(|pod| pod.containers);
    let found = listed.into_iter().find(|c| c.container.id == container.id);
    Resolved::Containers(pod, vec![found.unwrap_or_else(|| list::unlisted(state, container))])
}

async fn of_cgroup(state: &Arc<PodsState>, shown: &str) -> anyhow::Result<Resolved> {
    state.rescan().await;
    let wanted = if shown == "/" { shown } else { shown.trim_end_matches('/') };
    let below = format!("{}/", wanted.trim_end_matches('/'));
    let mut found: Vec<(String, PathBuf, u64)> = {
        let cache = state.cache();
        let all = cache.live().map(|(id, e)| (state.hierarchy.shown(&e.path), e.path.clone(), id));
        all.filter(|(path, ..)| path == wanted || path.starts_with(&below)).collect()
    };
    found.sort();
    let Some((first, _, id)) = found.first().filter(|(path, ..)| path == wanted).cloned() else {
        bail!(TargetMatchError::NotFound(format!(
            "no memory cgroup {shown} below {}",
            state.hierarchy.dir.display()
        )))
    };
    let owner = state.owner_of_cgroup(id).await;
    if let (Some(pod), Some(container)) = (owner.pod, owner.container)
        && let Resolved::Containers(pod, containers) = of_container(state, pod, container).await
        // A path below a container's own cgroup means that part and not the whole container.
        && containers.iter().any(|c| c.cgroup_path.as_ref() == Some(&first))
    {
        return Ok(Resolved::Containers(pod, containers));
    }
    Ok(Resolved::Cgroups(found.into_iter().map(|(.., id)| id).collect()))
}
