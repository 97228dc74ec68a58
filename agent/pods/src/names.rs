//! From a path's ids to names: asks the runtime, then the log folders, then makes do with the path.
//!
//! A container that may make cgroups can make `…/kubepods/pod<uid>/<id>` below its own, with another pod's
//! uid and id. So the runtime is asked for the outermost id first: it knows the container that it made,
//! and only where it knows nothing of it (kind: the node is docker's container) does the search go inwards.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::cache::{Names, Search};
use super::cri::messages::*;
use super::paths::CgroupName;
use super::room::Room;
use super::runtime::CallError;
use super::text::{field, labels};
use super::{logdir, proc};
use podopsy_model::{ContainerRef, KnownBy, PodRef};

/// A sandbox's cgroup is there before the runtime answers for it (its network comes first): ask again
/// after 50 ms, 100 ms, … for 6 s in all.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRIES: u32 = 7;
/// What the runtime did not know then is asked for again on demand, but no more often than this.
const ABSENT_FOR: Duration = Duration::from_secs(10);
const SANDBOXES_MAX: usize = 2048;

enum Answer {
    Known(Names),
    Absent,
    Down,
}

/// Looks for the names of `key`, in the background.
pub(super) fn spawn(room: &Arc<Room>, key: Arc<str>) {
    room.cache().settle(&key, None, Search::Running);
    let room = room.clone();
    tokio::spawn(async move { search(&room, &key).await });
}

/// Asks again for what nobody answered, once somebody may; for the dead too, since runtimes remember them.
pub(super) fn retry_down(room: &Arc<Room>) {
    if !room.runtime.ready() {
        return;
    }
    let open: Vec<Arc<str>> = {
        let cache = room.cache();
        let down = cache.all_known().filter(|(_, known)| known.search == Search::Down);
        down.map(|(key, _)| key.clone()).collect()
    };
    for key in open {
        spawn(room, key);
    }
}

async fn search(room: &Arc<Room>, key: &Arc<str>) {
    let mut wait = RETRY_FIRST;
    for attempt in 0..=RETRIES {
        let Some((name, alive)) = room.cache().known(key).map(|k| (k.name.clone(), k.alive())) else {
            return;
        };
        let (names, search) = match ask(room, &name).await {
            Answer::Known(names) => (names, Search::Done),
            Answer::Down => (fallback(room, &name), Search::Down),
            Answer::Absent if alive && attempt < RETRIES && !room.closing.load(Relaxed) => {
                tokio::time::sleep(wait).await;
                wait *= 2;
                continue;
            }
            Answer::Absent => (fallback(room, &name), Search::Absent(Instant::now() + ABSENT_FOR)),
        };
        room.cache().settle(key, Some(names), search);
        room.settled.send_modify(|n| *n += 1);
        return;
    }
}

/// The names of a cgroup that is in no cache: asked once, not kept.
pub(super) async fn now(room: &Arc<Room>, name: &CgroupName) -> Names {
    match ask(room, name).await {
        Answer::Known(names) => names,
        Answer::Absent | Answer::Down => fallback(room, name),
    }
}

async fn ask(room: &Arc<Room>, name: &CgroupName) -> Answer {
    for place in &name.containers {
        let id = &place.container_id;
        let known = room.cache().known(id).filter(|k| k.search == Search::Done).map(|k| k.names.clone());
        if let Some(names) = known {
            return Answer::Known(names);
        }
        match container(room, id).await {
            Ok(names) => return Answer::Known(names),
            Err(CallError::NotFound) => {}
            Err(_) => return Answer::Down,
        }
        match sandbox_pod(room, id).await {
            Ok(pod) => {
                return Answer::Known(Names { pod: Some(pod), container: None, known_by: KnownBy::Cri });
            }
            Err(CallError::NotFound) => {}
            Err(_) => return Answer::Down,
        }
    }
    let Some(uid) = name.pod_uid.as_ref().filter(|_| name.containers.is_empty()) else {
        return Answer::Absent;
    };
    // A pod's own level.
    let label_selector = [("io.kubernetes.pod.uid".to_owned(), uid.clone())].into();
    let filter = Some(PodSandboxFilter { id: String::new(), label_selector });
    let found: Result<ListPodSandboxResponse, _> =
        room.runtime.call(LIST_POD_SANDBOX, ListPodSandboxRequest { filter }).await;
    match found {
        Ok(list) => {
            match list.items.iter().find_map(|item| item.metadata.as_ref().map(|meta| (item, meta))) {
                Some((item, meta)) => {
                    let pod = Some(pod_ref(room, meta, &item.labels));
                    Answer::Known(Names { pod, container: None, known_by: KnownBy::Cri })
                }
                None => Answer::Absent,
            }
        }
        Err(CallError::NotFound) => Answer::Absent,
        Err(_) => Answer::Down,
    }
}

async fn container(room: &Arc<Room>, id: &str) -> Result<Names, CallError> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer: ContainerStatusResponse = room.runtime.call(CONTAINER_STATUS, request).await?;
    let status = answer.status.ok_or(CallError::NotFound)?;
    let info = info(&answer.info);
    let sandbox = match info.get("sandboxID").and_then(|v| v.as_str()) {
        Some(sandbox) => Some(sandbox.to_owned()),
        // The verbose part is each runtime's own; the list always says it.
        None => {
            let filter = Some(ContainerFilter { id: id.to_owned(), ..Default::default() });
            let list: Result<ListContainersResponse, _> =
                room.runtime.call(LIST_CONTAINERS, ListContainersRequest { filter }).await;
            list.ok().and_then(|l| l.containers.into_iter().find(|c| c.id == id)).map(|c| c.pod_sandbox_id)
        }
    };
    let pod = match sandbox {
        Some(sandbox) => sandbox_pod(room, &sandbox).await.ok(),
        None => None,
    };
    let pod = pod.or_else(|| pod_from_labels(&status.labels).map(Arc::new));
    let container = container_ref(id, status.metadata.as_ref(), image(&status, &info));
    Ok(Names { pod, container: Some(container), known_by: KnownBy::Cri })
}

async fn sandbox_pod(room: &Arc<Room>, id: &str) -> Result<Arc<PodRef>, CallError> {
    let kept = room.sandboxes.lock().map(|kept| kept.get(id).cloned()).unwrap_or(None);
    if let Some(pod) = kept {
        return Ok(pod);
    }
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let answer: PodSandboxStatusResponse = room.runtime.call(POD_SANDBOX_STATUS, request).await?;
    let status = answer.status.ok_or(CallError::NotFound)?;
    let meta = status.metadata.ok_or(CallError::NotFound)?;
    let pod = pod_ref(room, &meta, &status.labels);
    if let Ok(mut kept) = room.sandboxes.lock() {
        if kept.len() >= SANDBOXES_MAX {
            kept.clear();
        }
        kept.insert(id.to_owned(), pod.clone());
    }
    Ok(pod)
}

type Strings = std::collections::HashMap<String, String>;

pub(super) fn pod_ref(room: &Room, meta: &PodSandboxMetadata, raw: &Strings) -> Arc<PodRef> {
    // Sorted, so that it is always the same ones that the bound leaves out.
    let sorted: std::collections::BTreeMap<_, _> = raw.iter().collect();
    let (labels, dropped) = labels(sorted);
    room.labels_dropped.fetch_add(dropped, Relaxed);
    let (namespace, name, uid) = (field(&meta.namespace), field(&meta.name), field(&meta.uid));
    Arc::new(PodRef { namespace, name, uid, labels })
}

/// The kubelet puts the pod's names on each container too.
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

/// The image by the name of the pod's spec, as far as the runtime still knows it: the kubelet resolves
/// names to ids before it creates a container.
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

/// The verbose part: containerd and CRI-O put one JSON object under `info`.
pub(super) fn info(raw: &Strings) -> serde_json::Value {
    raw.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Names without a runtime.
pub(super) fn fallback(room: &Room, name: &CgroupName) -> Names {
    let logs: &Path = &room.options.log_pods;
    let places = name.containers.iter().map(|place| (place.pod_uid.clone(), Some(&place.container_id)));
    // Outermost first here too: a folder vouches for the pod that the kubelet made.
    for (uid, id) in places.chain([(name.pod_uid.clone(), None)]) {
        let Some(uid) = uid else { continue };
        let Some(found) = logdir::find(logs, &uid, id.map(String::as_str)) else { continue };
        let pod = PodRef {
            namespace: found.namespace,
            name: found.pod,
            uid: field(&uid),
            labels: Default::default(),
        };
        let container = id.filter(|id| !is_pause(room, id)).map(|id| {
            let (name, attempt) = found.container.unwrap_or_default();
            ContainerRef { name, id: id.clone(), image: String::new(), attempt }
        });
        return Names { pod: Some(Arc::new(pod)), container, known_by: KnownBy::LogDirectory };
    }
    let pod = name.pod_uid.as_ref().map(|uid| {
        let uid = field(uid);
        Arc::new(PodRef { namespace: String::new(), name: String::new(), uid, labels: Default::default() })
    });
    let container = name.container().map(|place| container_ref(&place.container_id, None, String::new()));
    Names { pod, container, known_by: KnownBy::CgroupPath }
}

/// The sandbox's own process, which has no log folder: without a runtime, its name gives it away.
fn is_pause(room: &Room, id: &str) -> bool {
    let path = {
        let cache = room.cache();
        let mut live = cache.live();
        live.find(|(_, e)| !e.name.below && e.name.container().is_some_and(|p| p.container_id == id))
            .map(|(_, entry)| entry.path.clone())
    };
    let pids = path.map(|path| room.hierarchy.procs(&path)).unwrap_or_default();
    let comm = |&pid: &u32| proc::comm(&room.options.proc_root, pid);
    !pids.is_empty() && pids.iter().all(|pid| comm(pid).is_some_and(|comm| comm.trim_ascii() == b"pause"))
}
