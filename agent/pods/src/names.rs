//! Finds the names for the ids in a cgroup's path: from the runtime, else from the log folders, else from the path alone.
//!
//! A container that may create cgroups can create `…/kubepods/pod<uid>/<id>` below its own, with another pod's uid and
//! id. So the runtime is asked for the outermost id first: it knows the container that it created. Only if it does not
//! know that id (in kind, the node is a container of docker's) does the search go inwards.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::cache::{ResolvedNames, SearchState};
use super::cri::messages::*;
use super::paths::CgroupName;
use super::runtime::CallError;
use super::state::PodsState;
use super::text::{field, labels};
use super::{logdir, proc};
use podopsy_model::{ContainerRef, KnownBy, PodRef};
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

/// Starts the search for the names of `key` in the background.
pub(super) fn spawn(state: &Arc<PodsState>, key: Arc<str>) {
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
    let open: Vec<Arc<str>> = {
        let cache = state.cache();
        let down = cache.all_known().filter(|(_, known)| known.search == SearchState::Down);
        down.map(|(key, _)| key.clone()).collect()
    };
    for key in open {
        spawn(state, key);
    }
}

async fn search(state: &Arc<PodsState>, key: &Arc<str>) {
    let mut wait = RETRY_FIRST;
    for attempt in 0..=RETRIES {
        let Some((name, alive)) = state.cache().known(key).map(|k| (k.name.clone(), k.is_alive())) else {
            return;
        };
        let (names, search) = match ask(state, &name).await {
            NameAnswer::Known(names) => (names, SearchState::Done),
            NameAnswer::Down => (fallback(state, &name), SearchState::Down),
            NameAnswer::Absent if alive && attempt < RETRIES && !state.closing.load(Relaxed) => {
                tokio::time::sleep(wait).await;
                wait *= 2;
                continue;
            }
            NameAnswer::Absent => (fallback(state, &name), SearchState::Absent(Instant::now() + ABSENT_FOR)),
        };
        state.cache().settle(key, Some(names), search);
        state.settled.send_modify(|n| *n += 1);
        return;
    }
}

/// The names for a path that is not in the cache. Asks once and does not keep the result.
pub(super) async fn find_once(state: &Arc<PodsState>, name: &CgroupName) -> ResolvedNames {
    match ask(state, name).await {
        NameAnswer::Known(names) => names,
        NameAnswer::Absent | NameAnswer::Down => fallback(state, name),
    }
}

async fn ask(state: &Arc<PodsState>, name: &CgroupName) -> NameAnswer {
    for in_path in &name.containers {
        let id = &in_path.container_id;
        let known =
            state.cache().known(id).filter(|k| k.search == SearchState::Done).map(|k| k.names.clone());
        if let Some(names) = known {
            return NameAnswer::Known(names);
        }
        match container(state, id).await {
            Ok(names) => return NameAnswer::Known(names),
            Err(CallError::NotFound) => {}
            Err(_) => return NameAnswer::Down,
        }
        match sandbox_pod(state, id).await {
            Ok(pod) => {
                return NameAnswer::Known(ResolvedNames {
                    pod: Some(pod),
                    container: None,
                    known_by: KnownBy::Cri,
                });
            }
            Err(CallError::NotFound) => {}
            Err(_) => return NameAnswer::Down,
        }
    }
    let Some(uid) = name.pod_uid.as_ref().filter(|_| name.containers.is_empty()) else {
        return NameAnswer::Absent;
    };
    // The path is that of a pod's own cgroup.
    let label_selector = [("io.kubernetes.pod.uid".to_owned(), uid.clone())].into();
    let filter = Some(PodSandboxFilter { id: String::new(), label_selector });
    let found: Result<ListPodSandboxResponse, _> =
        state.runtime.call(LIST_POD_SANDBOX, ListPodSandboxRequest { filter }).await;
    match found {
        Ok(list) => {
            match list.items.iter().find_map(|item| item.metadata.as_ref().map(|meta| (item, meta))) {
                Some((item, meta)) => {
                    let pod = Some(pod_ref(state, meta, &item.labels));
                    NameAnswer::Known(ResolvedNames { pod, container: None, known_by: KnownBy::Cri })
                }
                None => NameAnswer::Absent,
            }
        }
        Err(CallError::NotFound) => NameAnswer::Absent,
        Err(_) => NameAnswer::Down,
    }
}

async fn container(state: &Arc<PodsState>, id: &str) -> Result<ResolvedNames, CallError> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer: ContainerStatusResponse = state.runtime.call(CONTAINER_STATUS, request).await?;
    let status = answer.status.ok_or(CallError::NotFound)?;
    let info = info(&answer.info);
    let sandbox = match info.get("sandboxID").and_then(|v| v.as_str()) {
        Some(sandbox) => Some(sandbox.to_owned()),
        // Each runtime has its own verbose part; the list always contains the sandbox.
        None => {
            let filter = Some(ContainerFilter { id: id.to_owned(), ..Default::default() });
            let list: Result<ListContainersResponse, _> =
                state.runtime.call(LIST_CONTAINERS, ListContainersRequest { filter }).await;
            list.ok().and_then(|l| l.containers.into_iter().find(|c| c.id == id)).map(|c| c.pod_sandbox_id)
        }
    };
    let pod = match sandbox {
        Some(sandbox) => sandbox_pod(state, &sandbox).await.ok(),
        None => None,
    };
    let pod = pod.or_else(|| pod_from_labels(&status.labels).map(Arc::new));
    let container = container_ref(id, status.metadata.as_ref(), image(&status, &info));
    Ok(ResolvedNames { pod, container: Some(container), known_by: KnownBy::Cri })
}

async fn sandbox_pod(state: &Arc<PodsState>, id: &str) -> Result<Arc<PodRef>, CallError> {
    let kept = lock(&state.sandboxes).get(id).cloned();
    if let Some(pod) = kept {
        return Ok(pod);
    }
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let answer: PodSandboxStatusResponse = state.runtime.call(POD_SANDBOX_STATUS, request).await?;
    let status = answer.status.ok_or(CallError::NotFound)?;
    let meta = status.metadata.ok_or(CallError::NotFound)?;
    let pod = pod_ref(state, &meta, &status.labels);
    let mut kept = lock(&state.sandboxes);
    if kept.len() >= SANDBOXES_MAX {
        kept.clear();
    }
    kept.insert(id.to_owned(), pod.clone());
    drop(kept);
    Ok(pod)
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
pub(super) fn image(status: &ContainerStatus, info: &serde_json::Value) -> String {
    let spec = status.image.clone().unwrap_or_default();
    let asked = info.pointer("/config/image/user_specified_image").and_then(|v| v.as_str());
    let names = [spec.user_specified_image.as_str(), asked.unwrap_or(""), &spec.image, &status.image_ref];
    let named = names.iter().find(|name| !name.is_empty() && !is_image_id(name));
    field(named.or(names.iter().find(|name| !name.is_empty())).unwrap_or(&""))
}

fn is_image_id(name: &str) -> bool {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The verbose part of an answer: containerd and CRI-O put one JSON object under `info`.
pub(super) fn info(raw: &Strings) -> serde_json::Value {
    raw.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Names without a runtime.
pub(super) fn fallback(state: &PodsState, name: &CgroupName) -> ResolvedNames {
    let logs: &Path = &state.options.log_pods;
    let containers = name.containers.iter().map(|one| (one.pod_uid.clone(), Some(&one.container_id)));
    // The outermost first here too: the folder proves that the kubelet created that pod.
    for (uid, id) in containers.chain([(name.pod_uid.clone(), None)]) {
        let Some(uid) = uid else { continue };
        let Some(found) = logdir::find(logs, &uid, id.map(String::as_str)) else { continue };
        let pod = PodRef {
            namespace: found.namespace,
            name: found.pod,
            uid: field(&uid),
            labels: Default::default(),
        };
        let container = id.filter(|id| !is_pause(state, id)).map(|id| {
            let (name, attempt) = found.container.unwrap_or_default();
            ContainerRef { name, id: id.clone(), image: String::new(), attempt }
        });
        return ResolvedNames { pod: Some(Arc::new(pod)), container, known_by: KnownBy::LogDirectory };
    }
    let pod = name.pod_uid.as_ref().map(|uid| {
        let uid = field(uid);
        Arc::new(PodRef { namespace: String::new(), name: String::new(), uid, labels: Default::default() })
    });
    let container = name.container().map(|one| container_ref(&one.container_id, None, String::new()));
    ResolvedNames { pod, container, known_by: KnownBy::CgroupPath }
}

/// Whether a container is a pod's sandbox. Without a runtime only the name of its process, `pause`, shows that; a sandbox
/// has no log folder.
fn is_pause(state: &PodsState, id: &str) -> bool {
    let path = {
        let cache = state.cache();
        let mut live = cache.live();
        live.find(|(_, e)| !e.name.below && e.name.container().is_some_and(|p| p.container_id == id))
            .map(|(_, entry)| entry.path.clone())
    };
    let pids = path.map(|path| state.hierarchy.procs(&path)).unwrap_or_default();
    let comm = |&pid: &u32| proc::comm(&state.options.proc_root, pid);
    !pids.is_empty() && pids.iter().all(|pid| comm(pid).is_some_and(|comm| comm.trim_ascii() == b"pause"))
}
