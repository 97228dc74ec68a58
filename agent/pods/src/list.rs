//! Lists pods for `podopsy pods` and `podopsy inspect`: the runtime's lists, joined with cgroups and /proc. Without a
//! runtime, the list comes from cgroups and log folders.
//!
//! This module must not depend on targets or on rendering.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::task::JoinSet;

use super::state::PodsState;
use super::text::field;
use super::{ContainerDetails, PodDetails, hierarchy, names, ports, proc};
use podopsy_model::{ContainerRef, KnownBy, PodRef};
use podopsy_runtime::cri::messages::{self as cri, ContainerStatus, PodSandbox};
use podopsy_runtime::{CallError, ContainerReport, PORTS, SandboxReport};

type Cgroups = HashMap<String, Vec<(PathBuf, u64)>>;

/// All pods, sorted by namespace and name.
pub(super) async fn list(state: &Arc<PodsState>) -> anyhow::Result<Vec<PodDetails>> {
    let mut pods = match from_runtime(state).await {
        Ok(pods) => pods,
        Err(error) => {
            let pods = from_cgroups(state, &state.cgroups_by_container());
            anyhow::ensure!(
                !pods.is_empty(),
                "no pods: {error}, and no cgroup belongs to a pod; if there is a runtime, --cri-socket names its socket"
            );
            pods
        }
    };
    let key = |pod: &PodDetails| (pod.pod.namespace.clone(), pod.pod.name.clone(), pod.created_at);
    pods.sort_by_cached_key(key);
    for pod in &mut pods {
        // The latest attempt first. The attempts of two sandboxes may have one number.
        let order = |c: &ContainerDetails| {
            (c.container.name.clone(), Reverse(c.container.attempt), Reverse(c.started_at))
        };
        pod.containers.sort_by_cached_key(order);
    }
    Ok(pods)
}

async fn from_runtime(state: &Arc<PodsState>) -> Result<Vec<PodDetails>, CallError> {
    let (sandboxes, containers) = tokio::join!(state.runtime.sandboxes(None), state.runtime.containers(None));
    let (sandboxes, containers) = (sandboxes?, containers?);
    // If a status call fails, the pod is still listed, with the fields that the list itself has.
    let mut details = JoinSet::new();
    for sandbox in &sandboxes {
        let (state, id) = (state.clone(), sandbox.id.clone());
        details.spawn(async move {
            let report = state.runtime.sandbox(&id).await.ok();
            (id, report)
        });
    }
    let mut statuses = JoinSet::new();
    for container in &containers {
        let (state, id) = (state.clone(), container.id.clone());
        statuses.spawn(async move {
            let report = state.runtime.container(&id).await.ok();
            (id, report)
        });
    }
    let details: HashMap<_, _> = details.join_all().await.into_iter().collect();
    let mut statuses: HashMap<_, _> = statuses.join_all().await.into_iter().collect();
    let reports = statuses.iter().filter_map(|(id, report)| Some((id.as_str(), report.as_ref()?)));
    let paths = reports.filter_map(|(id, report)| Some((id, report.info.cgroups_path.as_deref()?)));
    state.learn_roots(&paths.collect());
    let cgroups = state.cgroups_by_container();

    let mut by_sandbox: HashMap<String, Vec<ContainerDetails>> = HashMap::new();
    for container in containers {
        let status = statuses.remove(&container.id).flatten();
        let sandbox = container.pod_sandbox_id.clone();
        by_sandbox.entry(sandbox).or_default().push(join(state, container, status, &cgroups));
    }
    let pods = sandboxes.into_iter().map(|sandbox| {
        let containers = by_sandbox.remove(&sandbox.id).unwrap_or_default();
        let detail = details.get(&sandbox.id).cloned().flatten();
        pod(state, sandbox, detail, containers)
    });
    Ok(join_sandboxes(pods))
}

/// One entry for each pod. A pod has several sandboxes after its sandbox died, or after a restart of the node: the one that
/// is ready stands for it, or else the newest, with the containers of all of them.
fn join_sandboxes(sandboxes: impl Iterator<Item = PodDetails>) -> Vec<PodDetails> {
    let mut pods: Vec<PodDetails> = Vec::new();
    for mut sandbox in sandboxes {
        let PodRef { namespace, name, uid, .. } = &sandbox.pod;
        let is_same = |pod: &&mut PodDetails| {
            (&pod.pod.uid, &pod.pod.namespace, &pod.pod.name) == (uid, namespace, name)
        };
        let Some(pod) = pods.iter_mut().find(is_same) else {
            pods.push(sandbox);
            continue;
        };
        let rank = |pod: &PodDetails| (pod.state == "ready", pod.created_at);
        if rank(&sandbox) > rank(pod) {
            std::mem::swap(pod, &mut sandbox);
        }
        pod.containers.append(&mut sandbox.containers);
    }
    pods
}

fn pod(
    state: &PodsState,
    sandbox: PodSandbox,
    detail: Option<SandboxReport>,
    containers: Vec<ContainerDetails>,
) -> PodDetails {
    let SandboxReport { status, info } = detail.unwrap_or_default();
    let status = status.unwrap_or_default();
    let mut ips = Vec::new();
    if let Some(network) = &status.network {
        let all = std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|ip| &ip.ip));
        ips = all.filter(|ip| !ip.is_empty()).map(|ip| field(ip)).collect();
    }
    const NODE: i32 = 2;
    let options = status.linux.and_then(|linux| linux.namespaces?.options);
    let host_network = options.is_some_and(|options| options.network == NODE);
    // CRI-O can work without a sandbox process. Any process of the pod is in the same network namespace.
    let pause = info.pid.filter(|&pid| pid > 0 && proc::exists(&state.options.proc_root, pid));
    let pid = pause.or_else(|| containers.iter().find_map(|container| container.pid));
    let netns = pid
        .filter(|_| !host_network)
        .map(|pid| state.options.proc_root.join(format!("{pid}/ns/net")).display().to_string());
    PodDetails {
        pod: (*names::pod_ref(state, &sandbox.metadata.unwrap_or_default(), &sandbox.labels)).clone(),
        sandbox_id: field(&sandbox.id),
        state: if sandbox.state == 0 { "ready" } else { "notready" }.to_owned(),
        created_at: time(sandbox.created_at),
        ips,
        netns,
        containers,
    }
}

fn join(
    state: &PodsState,
    listed: cri::Container,
    answer: Option<ContainerReport>,
    cgroups: &Cgroups,
) -> ContainerDetails {
    let ContainerReport { status, info } = answer.unwrap_or_default();
    let status = status.unwrap_or_else(|| ContainerStatus {
        metadata: listed.metadata.clone(),
        state: listed.state,
        image: listed.image.clone(),
        image_ref: listed.image_ref.clone(),
        annotations: listed.annotations.clone(),
        ..Default::default()
    });
    const RUNNING: i32 = 1;
    const EXITED: i32 = 2;
    let status_name = match status.state {
        0 => "created",
        RUNNING => "running",
        EXITED => "exited",
        _ => "unknown",
    };
    let reference = names::container_ref(&listed.id, status.metadata.as_ref(), names::image(&status, &info));
    let restarts = status.annotations.get("io.kubernetes.container.restartCount");
    let restarts = restarts.and_then(|n| n.parse().ok()).unwrap_or(reference.attempt);
    let mut container = from_kernel(state, reference, cgroups.get(&listed.id).map_or(&[], Vec::as_slice));
    // In kind, the runtime reports pids of its node's pid namespace: use the pid only if the cgroup contains it.
    if let Some(pid) = info.pid.filter(|pid| container.pids.contains(pid)) {
        set_pid(state, &mut container, pid);
    }
    let limit = info.memory_limit.filter(|&limit| limit > 0 && limit < 1 << 62);
    container.memory_limit_bytes = container.memory_limit_bytes.or(limit);
    let cpu = info.cpu_quota.zip(info.cpu_period).and_then(|(q, p)| hierarchy::millis(q, p));
    container.cpu_limit_millis = container.cpu_limit_millis.or(cpu.filter(|&millis| millis > 0));
    container.state = status_name.to_owned();
    container.reason = field(&status.reason);
    container.exit_code = (status.state == EXITED).then_some(status.exit_code);
    container.started_at = time(status.started_at);
    container.finished_at = time(status.finished_at);
    container.restarts = restarts;
    container.ports = ports::parse(status.annotations.get(PORTS).map_or("", String::as_str));
    container
}

/// A container with the kernel's facts only.
fn from_kernel(state: &PodsState, container: ContainerRef, cgroups: &[(PathBuf, u64)]) -> ContainerDetails {
    let hierarchy = &state.hierarchy;
    let own = cgroups.first().map(|(path, _)| path);
    let pids: Vec<u32> = cgroups.iter().flat_map(|(path, _)| hierarchy.procs(path)).collect();
    let mut all = ContainerDetails {
        restarts: container.attempt,
        container,
        state: if pids.is_empty() { "unknown" } else { "running" }.to_owned(),
        reason: String::new(),
        exit_code: None,
        started_at: None,
        finished_at: None,
        pid: None,
        pids,
        namespaces: BTreeMap::new(),
        cgroup_path: own.map(|path| hierarchy.shown(path)),
        cgroup_ids: cgroups.iter().map(|(_, id)| *id).collect(),
        memory_limit_bytes: own.and_then(|path| hierarchy.memory_limit(path)),
        memory_usage_bytes: own.and_then(|path| hierarchy.memory_usage(path)),
        cpu_limit_millis: own.and_then(|path| hierarchy.cpu_limit_millis(path)),
        ports: Vec::new(),
    };
    if let Some(pid) = proc::first_of(&state.options.proc_root, &all.pids) {
        set_pid(state, &mut all, pid);
    }
    all
}

fn set_pid(state: &PodsState, container: &mut ContainerDetails, pid: u32) {
    container.pid = Some(pid);
    container.namespaces = proc::namespaces(&state.options.proc_root, pid);
}

/// One container by the runtime's full id. None: the runtime does not know it, or does not answer.
pub(super) async fn by_id(state: &Arc<PodsState>, id: &str) -> Option<ContainerDetails> {
    let answer = state.runtime.container(id).await.ok()?;
    let listed = cri::Container { id: id.to_owned(), ..Default::default() };
    answer.status.as_ref()?;
    Some(join(state, listed, Some(answer), &state.cgroups_by_container()))
}

/// A container that is in no list, with the names that are remembered for it.
pub(super) fn unlisted(state: &PodsState, container: ContainerRef) -> ContainerDetails {
    let cgroups = state.cgroups_by_container();
    let own = cgroups.get(&container.id).cloned().unwrap_or_default();
    from_kernel(state, container, &own)
}

fn from_cgroups(state: &PodsState, cgroups: &Cgroups) -> Vec<PodDetails> {
    let known: Vec<_> = {
        let cache = state.cache();
        let alive = cache.all_known().filter(|(_, known)| known.is_alive());
        alive.map(|(key, known)| (key.clone(), known.names.clone())).collect()
    };
    let mut pods: BTreeMap<String, PodDetails> = BTreeMap::new();
    for (key, kept) in known {
        let kept = if kept.known_by == KnownBy::Unknown { names::fallback(state, &key) } else { kept };
        let Some(pod) = kept.pod else { continue };
        let pod = pods.entry(pod.uid.clone()).or_insert_with(|| without_runtime((*pod).clone()));
        let Some(container) = kept.container else { continue };
        if pod.containers.iter().all(|other| other.container.id != container.id) {
            let own = cgroups.get(&container.id).map_or(&[][..], Vec::as_slice);
            pod.containers.push(from_kernel(state, container, own));
        }
    }
    for pod in pods.values_mut() {
        let pid = pod.containers.iter().find_map(|container| container.pid);
        pod.netns =
            pid.map(|pid| state.options.proc_root.join(format!("{pid}/ns/net")).display().to_string());
    }
    pods.into_values().collect()
}

fn without_runtime(pod: PodRef) -> PodDetails {
    PodDetails {
        pod,
        sandbox_id: String::new(),
        state: "ready".to_owned(),
        created_at: None,
        ips: Vec::new(),
        netns: None,
        containers: Vec::new(),
    }
}

fn time(nanos: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(nanos.into()).ok().filter(|_| nanos > 0)
}
