//! Finds the names for the ids in a cgroup's path: from the runtime, else from the log folders, else from the path alone.
//!
//! A container that may create cgroups can create `…/kubepods/pod<uid>/<id>` below its own, with another pod's uid and id;
//! so can a user with a delegated subtree. So an id that the runtime knows is believed only at the place that the runtime
//! has chosen for it (`linux.cgroupsPath` of its OCI spec), or below a kubelet's root ([`super::trust`]). The outermost id
//! is asked for first. Only if the runtime does not know it (in kind, the node is a container of docker's) does the search
//! go inwards.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::cache::{KnownContainer, ResolvedNames, SearchState};
use super::paths::CgroupName;
use super::state::PodsState;
use super::text::{field, labels};
use super::{logdir, proc, trust};
use podopsy_model::{ContainerRef, KnownBy, PodRef};
use podopsy_runtime::cri::messages::{ContainerMetadata, ContainerStatus, PodSandboxMetadata};
use podopsy_runtime::{CallError, RuntimeInfo};
use podopsy_system::sync::lock;

/// A sandbox's cgroup exists before the runtime knows it, because its network is set up first. So ask again after 50 ms,
/// 100 ms, … for 6 s in total.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRIES: u32 = 7;
/// A container that the runtime still did not know is asked for again on demand, but not more often than this.
const ABSENT_FOR: Duration = Duration::from_secs(10);
const SANDBOXES_MAX: usize = 2048;

/// The result of asking the runtime.
enum NameAnswer {
    Known(ResolvedNames),
    Absent,
    Down,
}

/// A sandbox, as the runtime reports it.
#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    pod: Arc<PodRef>,
    /// `linux.cgroupsPath` of its OCI spec. None: the runtime does not report it (cri-dockerd).
    cgroups_path: Option<String>,
}

/// Starts the search for the names of `key` in the background.
pub(super) fn spawn(state: &Arc<PodsState>, key: Arc<Path>) {
    state.cache().settle(&key, None, SearchState::Running);
    let state = state.clone();
    tokio::spawn(async move { search(&state, &key).await });
}

/// Repeats the searches that no runtime answered, once its back-off is over. Dead containers are included, since runtimes
/// remember them.
pub(super) fn retry_down(state: &Arc<PodsState>) {
    if !state.runtime.is_ready() {
        return;
    }
    let open: Vec<Arc<Path>> = {
        let cache = state.cache();
        let down = cache.all_known().filter(|(_, known)| known.search == SearchState::Down);
        down.map(|(key, _)| key.clone()).collect()
    };
    for key in open {
        spawn(state, key);
    }
}

async fn search(state: &Arc<PodsState>, key: &Arc<Path>) {
    let mut wait = RETRY_FIRST;
    for attempt in 0..=RETRIES {
        let Some((name, alive)) = state.cache().known(key).map(|k| (k.name.clone(), k.is_alive())) else {
            return;
        };
        let (names, search) = match ask(state, bytes(key), &name).await {
            NameAnswer::Known(names) => (names, SearchState::Done),
            NameAnswer::Down => (fallback(state, key), SearchState::Down),
            NameAnswer::Absent if alive && attempt < RETRIES && !state.closing.load(Relaxed) => {
                tokio::time::sleep(wait).await;
                wait *= 2;
                continue;
            }
            NameAnswer::Absent => (fallback(state, key), SearchState::Absent(Instant::now() + ABSENT_FOR)),
        };
        state.cache().settle(key, Some(names), search);
        state.settled.send_modify(|n| *n += 1);
        return;
    }
}

/// The names for a path that is not in the cache. Asks once and does not keep the result.
pub(super) async fn find_once(state: &Arc<PodsState>, absolute: &[u8], name: &CgroupName) -> ResolvedNames {
    match ask(state, absolute, name).await {
        NameAnswer::Known(names) => names,
        NameAnswer::Absent | NameAnswer::Down => fallback(state, Path::new(OsStr::from_bytes(absolute))),
    }
}

/// Asks the runtime for the containers in a path, or for the pod of a pod's own cgroup.
async fn ask(state: &Arc<PodsState>, absolute: &[u8], name: &CgroupName) -> NameAnswer {
    let mut is_imitation = false;
    for in_path in &name.containers {
        let (id, dir) = (&in_path.container_id, trust::prefix(absolute, in_path.depth));
        let known =
            state.cache().known(&dir).filter(|k| k.search == SearchState::Done).map(|k| k.names.clone());
        match known {
            Some(names) if names.known_by == KnownBy::Cri => return NameAnswer::Known(names),
            // It was found to be an imitation, so the runtime is not asked again for each cgroup below it.
            Some(_) => {
                is_imitation = true;
                continue;
            }
            None => {}
        }
        let (names, cgroups_path) = match container(state, id).await {
            Ok(found) => found,
            Err(CallError::NotFound) => match sandbox(state, id).await {
                Ok(Sandbox { pod, cgroups_path }) => {
                    let names = ResolvedNames { pod: Some(pod), container: None, known_by: KnownBy::Cri };
                    (names, cgroups_path)
                }
                Err(CallError::NotFound) => continue,
                Err(_) => return NameAnswer::Down,
            },
            Err(_) => return NameAnswer::Down,
        };
        if is_genuine(state, &dir, id, cgroups_path.as_deref()) {
            return NameAnswer::Known(names);
        }
        is_imitation = true;
    }
    if is_imitation {
        return NameAnswer::Known(host());
    }
    if !name.containers.is_empty() {
        return NameAnswer::Absent;
    }
    // The path is that of a pod's own cgroup, or looks like it.
    let Some(uid) = &state.roots().believed(absolute).pod_uid else { return NameAnswer::Known(host()) };
    match state.runtime.sandboxes(Some(uid)).await {
        Ok(list) => match list.iter().find_map(|item| item.metadata.as_ref().map(|meta| (item, meta))) {
            Some((item, meta)) => {
                let pod = Some(pod_ref(state, meta, &item.labels));
                NameAnswer::Known(ResolvedNames { pod, container: None, known_by: KnownBy::Cri })
            }
            None => NameAnswer::Absent,
        },
        Err(CallError::NotFound) => NameAnswer::Absent,
        Err(_) => NameAnswer::Down,
    }
}

/// Whether `dir` is the cgroup of the runtime's container or sandbox `id`, and not another one with its name.
fn is_genuine(state: &PodsState, dir: &Path, id: &str, cgroups_path: Option<&str>) -> bool {
    let roots = state.roots();
    if cgroups_path.is_some_and(|reported| roots.is_at(dir, reported)) {
        state.learn_root(dir);
        return true;
    }
    let believed = roots.believed(bytes(dir));
    let is_own = believed.container().is_some_and(|container| container.container_id == id);
    is_own && believed.pod_uid.is_some()
}

/// The names of a cgroup that is no container's.
fn host() -> ResolvedNames {
    ResolvedNames { known_by: KnownBy::Host, ..ResolvedNames::default() }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// A container's names, and `linux.cgroupsPath` of its OCI spec.
async fn container(state: &Arc<PodsState>, id: &str) -> Result<(ResolvedNames, Option<String>), CallError> {
    let report = state.runtime.container(id).await?;
    let (status, mut info) = (report.status.ok_or(CallError::NotFound)?, report.info);
    let sandbox_id = match info.sandbox_id.take() {
        Some(sandbox) => Some(sandbox),
        // Each runtime has its own verbose part; the list always contains the sandbox.
        None => {
            let list = state.runtime.containers(Some(id)).await.unwrap_or_default();
            list.into_iter().find(|container| container.id == id).map(|container| container.pod_sandbox_id)
        }
    };
    let pod = match sandbox_id {
        Some(id) => sandbox(state, &id).await.ok().map(|sandbox| sandbox.pod),
        None => None,
    };
    let pod = pod.or_else(|| pod_from_labels(&status.labels).map(Arc::new));
    let container = container_ref(id, status.metadata.as_ref(), image(&status, &info));
    Ok((ResolvedNames { pod, container: Some(container), known_by: KnownBy::Cri }, info.cgroups_path))
}

async fn sandbox(state: &Arc<PodsState>, id: &str) -> Result<Sandbox, CallError> {
    let kept = lock(&state.sandboxes).get(id).cloned();
    if let Some(sandbox) = kept {
        return Ok(sandbox);
    }
    let report = state.runtime.sandbox(id).await?;
    let status = report.status.ok_or(CallError::NotFound)?;
    let meta = status.metadata.ok_or(CallError::NotFound)?;
    let pod = pod_ref(state, &meta, &status.labels);
    let found = Sandbox { pod, cgroups_path: report.info.cgroups_path };
    let mut kept = lock(&state.sandboxes);
    if kept.len() >= SANDBOXES_MAX {
        kept.clear();
    }
    kept.insert(id.to_owned(), found.clone());
    drop(kept);
    Ok(found)
}

type Strings = std::collections::HashMap<String, String>;

pub(super) fn pod_ref(state: &PodsState, meta: &PodSandboxMetadata, raw: &Strings) -> Arc<PodRef> {
    // Sorted, so that the bound always drops the same labels.
    let sorted: std::collections::BTreeMap<_, _> = raw.iter().collect();
    let (labels, dropped) = labels(sorted);
    state.labels_dropped.fetch_add(dropped, Relaxed);
    let (namespace, name, uid) = (field(&meta.namespace), field(&meta.name), field(&meta.uid));
    Arc::new(PodRef { namespace, name, uid, labels })
}

/// The pod from the labels that the kubelet adds to each container.
pub(super) fn pod_from_labels(raw: &Strings) -> Option<PodRef> {
    let get = |key: &str| raw.get(key).map(|value| field(value));
    Some(PodRef {
        namespace: get("io.kubernetes.pod.namespace")?,
        name: get("io.kubernetes.pod.name")?,
        uid: get("io.kubernetes.pod.uid")?,
        labels: Default::default(),
    })
}

pub(super) fn container_ref(id: &str, meta: Option<&ContainerMetadata>, image: String) -> ContainerRef {
    let (name, attempt) = meta.map(|meta| (field(&meta.name), meta.attempt)).unwrap_or_default();
    ContainerRef { name, id: field(id), image, attempt }
}

/// The image as the pod's spec names it, if the runtime still knows that name: the kubelet resolves names to ids before
/// it creates a container.
pub(super) fn image(status: &ContainerStatus, info: &RuntimeInfo) -> String {
    let spec = status.image.clone().unwrap_or_default();
    let asked = info.image.as_deref();
    let names = [spec.user_specified_image.as_str(), asked.unwrap_or(""), &spec.image, &status.image_ref];
    let named = names.iter().find(|name| !name.is_empty() && !is_image_id(name));
    field(named.or(names.iter().find(|name| !name.is_empty())).unwrap_or(&""))
}

fn is_image_id(name: &str) -> bool {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Names without a runtime: from the log folders, else from the path alone.
pub(super) fn fallback(state: &PodsState, path: &Path) -> ResolvedNames {
    let roots = state.roots();
    let name = roots.believed(bytes(path));
    let container = name.container();
    if let Some(uid) = &name.pod_uid {
        let id = container.map(|container| container.container_id.as_str());
        return in_pod(state, path, uid, id);
    }
    let Some(container) = container else { return host() };
    let is_claimed = |(other, known): (&Arc<Path>, &KnownContainer)| {
        known.name.container().is_some_and(|one| one.container_id == container.container_id)
            && roots.believed(bytes(other)).pod_uid.is_some()
    };
    // A pod has a container with this id elsewhere.
    if state.cache().all_known().any(is_claimed) {
        return host();
    }
    let container = container_ref(&container.container_id, None, String::new());
    ResolvedNames { pod: None, container: Some(container), known_by: KnownBy::CgroupPath }
}

/// The names in a pod with a known uid. The log folder proves that the kubelet created that pod.
fn in_pod(state: &PodsState, path: &Path, uid: &str, id: Option<&str>) -> ResolvedNames {
    let found = logdir::find(&state.options.log_pods, uid, id);
    let known_by = if found.is_some() { KnownBy::LogDirectory } else { KnownBy::CgroupPath };
    let (namespace, name, in_folder) = match found {
        Some(found) => (found.namespace, found.pod, found.container),
        None => Default::default(),
    };
    let is_sandbox = known_by == KnownBy::LogDirectory && is_pause(state, path);
    let container = id.filter(|_| !is_sandbox).map(|id| {
        let (name, attempt) = in_folder.unwrap_or_default();
        ContainerRef { name, id: field(id), image: String::new(), attempt }
    });
    let pod = PodRef { namespace, name, uid: field(uid), labels: Default::default() };
    ResolvedNames { pod: Some(Arc::new(pod)), container, known_by }
}

/// Whether a container is a pod's sandbox. Without a runtime only the name of its process, `pause`, shows that; a sandbox
/// has no log folder.
fn is_pause(state: &PodsState, path: &Path) -> bool {
    let name = state.roots().believed(bytes(path));
    let dir = name.container().map(|container| trust::prefix(bytes(path), container.depth));
    let dir = dir.and_then(|dir| state.hierarchy.from_absolute(bytes(&dir)));
    let pids = dir.map(|dir| state.hierarchy.procs(&dir)).unwrap_or_default();
    let comm = |&pid: &u32| proc::comm(&state.options.proc_root, pid);
    !pids.is_empty() && pids.iter().all(|pid| comm(pid).is_some_and(|comm| comm.trim_ascii() == b"pause"))
}
