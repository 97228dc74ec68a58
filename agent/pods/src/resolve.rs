//! Resolves a TARGET to what it refers to on this node. The error names what exists instead.
//!
//! This module must not depend on the syntax of targets (see `model::target`) or on how pods are listed.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;

use super::state::PodsState;
use super::{ContainerDetails, PodDetails, Resolved, list, proc};
use crate::inside::OwnPod;
use podopsy_model::{PodRef, Target, text};

/// The largest number of suggestions in one error.
const SUGGESTIONS: usize = 5;
/// The least number of hex digits for a container id prefix.
const PREFIX_MIN: usize = 4;

pub(super) async fn resolve(state: &Arc<PodsState>, target: &Target) -> anyhow::Result<Resolved> {
    match target {
        Target::All => Ok(Resolved::Node),
        Target::Pid(pid) => of_pid(state, *pid).await,
        Target::Cgroup(path) => of_cgroup(state, path).await,
        Target::Pod { namespace, pod, container } => {
            let pods = pods(state).await?;
            let same = |p: &&PodDetails| p.pod.namespace == *namespace && p.pod.name == *pod;
            match newest(pods.iter().filter(same)) {
                Some(found) => in_pod(found.clone(), container.as_deref()),
                None => {
                    let wanted = format!("{namespace}/{pod}");
                    bail!("no pod {wanted} on this node{}", hint(state, &wanted, pods.iter().map(full_name)))
                }
            }
        }
        Target::Name(name) => of_name(state, name).await,
    }
}

/// The same in a pod, where only its own processes are visible: its name stands for all of them.
pub(super) fn from_inside(own: &OwnPod, target: &Target) -> anyhow::Result<Resolved> {
    let is_own = |namespace: Option<&str>, name: &str| {
        own.pod().is_some_and(|own| own.name == name && namespace.is_none_or(|given| given == own.namespace))
    };
    match target {
        Target::All => Ok(Resolved::Node),
        Target::Pid(pid) => Ok(Resolved::Process(*pid)),
        Target::Name(name) if is_own(None, name) => Ok(Resolved::Node),
        Target::Pod { namespace, pod, container: None } if is_own(Some(namespace), pod) => Ok(Resolved::Node),
        other => bail!(
            "{} is not to be seen from inside a pod: --all is what its processes do, pid:N is one of them; other pods need \
             podopsy on the node (kubectl debug node/NODE --profile=sysadmin)",
            text::escape(&other.to_string())
        ),
    }
}

async fn pods(state: &Arc<PodsState>) -> anyhow::Result<Vec<PodDetails>> {
    list::list(state).await
}

/// Chooses among pods of one name (a pod that was created again leaves an old one): a ready one first, then the newest.
fn newest<'a>(pods: impl Iterator<Item = &'a PodDetails>) -> Option<&'a PodDetails> {
    pods.max_by_key(|pod| (pod.state == "ready", pod.created_at))
}

fn in_pod(pod: PodDetails, container: Option<&str>) -> anyhow::Result<Resolved> {
    let Some(name) = container else { return Ok(Resolved::Containers(pod.pod, pod.containers)) };
    // Of several attempts take the latest, which list() puts first.
    match pod.containers.iter().position(|c| c.container.name == name) {
        Some(at) => {
            let mut containers = pod.containers;
            Ok(Resolved::Containers(pod.pod, vec![containers.swap_remove(at)]))
        }
        None => {
            let mut names: Vec<_> = pod.containers.iter().map(|c| c.container.name.as_str()).collect();
            names.dedup();
            bail!(
                "pod {}/{} has no container {name}; it has: {}",
                pod.pod.namespace,
                pod.pod.name,
                if names.is_empty() { "none".into() } else { names.join(", ") }
            )
        }
    }
}

async fn of_name(state: &Arc<PodsState>, name: &str) -> anyhow::Result<Resolved> {
    let pods = pods(state).await?;
    let prefix = name.to_ascii_lowercase();
    if prefix.len() >= PREFIX_MIN && prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        let all = pods.iter().flat_map(|pod| pod.containers.iter().map(move |c| (pod, c)));
        let found: Vec<_> = all.filter(|(_, c)| c.container.id.starts_with(&prefix)).collect();
        match found[..] {
            [] => {}
            [(pod, container)] => {
                return Ok(Resolved::Containers(pod.pod.clone(), vec![container.clone()]));
            }
            _ => {
                let shown: Vec<_> = found.iter().take(SUGGESTIONS).map(|(pod, c)| describe(pod, c)).collect();
                let more = found.len() - shown.len();
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                bail!("container id prefix {name} is ambiguous: {}{more}", shown.join(", "))
            }
        }
    }
    let same: Vec<_> = pods.iter().filter(|pod| pod.pod.name == name).collect();
    let mut namespaces: Vec<_> = same.iter().map(|pod| full_name(pod)).collect();
    namespaces.dedup();
    if namespaces.len() > 1 {
        bail!("pod name {name} is ambiguous: {}", namespaces.join(", "));
    }
    match newest(same.into_iter()) {
        Some(pod) => in_pod(pod.clone(), None),
        None => {
            let names = pods.iter().map(|pod| pod.pod.name.clone());
            bail!("no container id begins with {name}, and no pod has that name{}", hint(state, name, names))
        }
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
        bail!("no process {pid} (pids are those of the host's pid namespace)");
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
        bail!("no memory cgroup {shown} below {}", state.hierarchy.dir.display())
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

/// Suggestions for the error: similar names, and the error of the runtime if it did not answer.
fn hint(state: &PodsState, wanted: &str, names: impl Iterator<Item = String>) -> String {
    let mut close: Vec<(usize, String)> = names
        .map(|name| {
            let related = name.contains(wanted) || wanted.contains(name.as_str());
            (if related { 0 } else { distance(wanted, &name) }, name)
        })
        .filter(|(far, _)| *far <= 2 + wanted.chars().count() / 4)
        .collect();
    close.sort();
    close.dedup();
    let close: Vec<_> = close.into_iter().take(SUGGESTIONS).map(|(_, name)| name).collect();
    let mut text = String::new();
    if !close.is_empty() {
        text = format!("; did you mean {}?", close.join(", "));
    }
    if let (_, _, Some(error)) = state.runtime.about() {
        text += &format!("; the container runtime did not answer ({error}): --cri-socket names its socket");
    }
    text
}

/// The Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_levenshteins() {
        for (a, b, far) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("pricing", "pircing", 2)] {
            assert_eq!(distance(a, b), far, "{a} {b}");
        }
    }
}
