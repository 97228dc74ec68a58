//! The state that the parts of this crate share, and the lookup of a cgroup's owner.
//!
//! This module must not depend on inotify (see [`super::watch`]) or on the sources of names (see [`super::names`]).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::cache::{CacheLimits, CgroupCache, CgroupEntry, KnownContainer, ResolvedNames, SearchState};
use super::hierarchy::Hierarchy;
use super::trust::{self, KubeletRoots};
use super::watch::CgroupWatch;
use super::{CgroupLineage, LineageLevel, MemoryCgroup, PodsOptions, PodsStatus, names, paths, proc};
use podopsy_model::{CgroupRef, ContainerRef, KnownBy, Owner, text};
use podopsy_runtime::{NodeRoot, Runtime, RuntimeClient};
use podopsy_system::sync::lock;

/// The least time between two scans for unknown ids. Requests that come meanwhile wait for the next scan.
const RESCAN_EVERY: Duration = Duration::from_millis(200);
/// How long an id that a scan did not find is not searched for again.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
const UNKNOWN_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct PodsState {
    pub options: PodsOptions,
    pub hierarchy: Hierarchy,
    pub runtime: Runtime,
    pub watch: CgroupWatch,
    cache: Mutex<CgroupCache>,
    /// The number of searches that have ended. A change wakes those who wait for names.
    pub settled: tokio::sync::watch::Sender<u64>,
    pub sandboxes: Mutex<HashMap<String, names::Sandbox>>,
    /// The runtime's process, and the roots that follow from it.
    roots: Mutex<(Option<u32>, Arc<KubeletRoots>)>,
    pub labels_dropped: AtomicU64,
    unknown: AtomicU64,
    not_found: Mutex<HashMap<u64, Instant>>,
    last_scan: tokio::sync::Mutex<Option<Instant>>,
    pub closing: AtomicBool,
}

impl PodsState {
    pub fn new(
        options: PodsOptions,
        limits: CacheLimits,
        max_watches: Option<usize>,
    ) -> anyhow::Result<Arc<PodsState>> {
        let hierarchy = Hierarchy::find(&options.proc_root, &options.cgroup_root)?;
        Ok(Arc::new(PodsState {
            runtime: runtime(&options, &hierarchy),
            watch: CgroupWatch::new(&options.proc_root, max_watches),
            hierarchy,
            options,
            cache: Mutex::new(CgroupCache::new(limits)),
            settled: tokio::sync::watch::Sender::new(0),
            sandboxes: Mutex::default(),
            roots: Mutex::default(),
            labels_dropped: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            not_found: Mutex::default(),
            last_scan: tokio::sync::Mutex::default(),
            closing: AtomicBool::new(false),
        }))
    }

    /// Locks the cache. The guard must not be held across an await.
    pub fn cache(&self) -> MutexGuard<'_, CgroupCache> {
        lock(&self.cache)
    }

    /// Where pods' names in a path are believed.
    pub fn roots(&self) -> Arc<KubeletRoots> {
        let runtime = self.runtime.pid();
        let mut kept = lock(&self.roots);
        if let Some(pid) = runtime.filter(|_| kept.0 != runtime) {
            let proc_root = &self.options.proc_root;
            let root = self.hierarchy.root_seen_by(proc_root, pid).unwrap_or_else(|| "/".into());
            let own = proc::cgroup(proc_root, &self.hierarchy, pid);
            let own = own.map(|path| PathBuf::from(OsString::from_vec(self.hierarchy.absolute(&path))));
            *kept = (runtime, Arc::new(KubeletRoots::new(root, own)));
        }
        kept.1.clone()
    }

    /// Learns from the directory of a container that the runtime has confirmed.
    pub fn learn_root(&self, dir: &Path) {
        Arc::make_mut(&mut lock(&self.roots).1).learn(dir);
    }

    /// Learns the kubelet's roots from what the runtime reports of its containers: the path (`linux.cgroupsPath`) by the id.
    pub fn learn_roots(&self, reported: &HashMap<&str, &str>) {
        let roots = self.roots();
        let mut confirmed = Vec::new();
        for (_, entry) in self.cache().live() {
            let absolute = self.hierarchy.absolute(&entry.path);
            for container in &entry.name.containers {
                let Some(path) = reported.get(container.container_id.as_str()) else { continue };
                let dir = trust::prefix(&absolute, container.depth);
                if roots.may_teach(&dir) && roots.is_at(&dir, path) {
                    confirmed.push(dir);
                }
            }
        }
        confirmed.iter().for_each(|dir| self.learn_root(dir));
    }

    pub async fn owner_of_cgroup(self: &Arc<PodsState>, id: u64) -> Owner {
        if id == 0 {
            self.unknown.fetch_add(1, Relaxed);
            return Owner::default();
        }
        if self.cache().entry(id).is_none() {
            self.scan_for(id).await;
        }
        let deadline = tokio::time::Instant::now() + self.options.cri_timeout;
        let mut settled = self.settled.subscribe();
        loop {
            let Some((owner, searching)) = self.look(id) else {
                self.unknown.fetch_add(1, Relaxed);
                return Owner { cgroup: CgroupRef { id, path: None }, ..Owner::default() };
            };
            if !searching || tokio::time::timeout_at(deadline, settled.changed()).await.is_err() {
                return owner;
            }
        }
    }

    /// The owner as far as it is known now, and whether [`PodsState::owner_of_cgroup`] would wait for more.
    pub fn owner_now(self: &Arc<PodsState>, id: u64) -> (Owner, bool) {
        match self.look(id) {
            Some(found) => found,
            None => {
                let is_final = id == 0 || self.was_not_found(id);
                self.unknown.fetch_add(is_final.into(), Relaxed);
                (Owner { cgroup: CgroupRef { id, path: None }, ..Owner::default() }, !is_final)
            }
        }
    }

    /// The owner as far as it is known, and whether a search for its names is running.
    fn look(self: &Arc<PodsState>, id: u64) -> Option<(Owner, bool)> {
        let (mut owner, names, search, key) = {
            let cache = self.cache();
            let entry = cache.entry(id)?;
            let cgroup = CgroupRef { id, path: Some(self.hierarchy.shown(&entry.path)) };
            let owner = Owner { cgroup, known_by: KnownBy::Host, ..Owner::default() };
            let Some(key) = entry.key.clone() else { return Some((owner, false)) };
            let known = cache.known(&key)?;
            (owner, known.names.clone(), known.search, key)
        };
        // A failed search is repeated in the background, without making the caller wait (and a search that no runtime
        // answered is repeated by `names::retry_down`). So a broken runtime costs one wait per container, not per event.
        let searching =
            names.known_by == KnownBy::Unknown && matches!(search, SearchState::Idle | SearchState::Running);
        if search == SearchState::Idle
            || matches!(search, SearchState::Absent(after) if Instant::now() >= after)
        {
            names::spawn(self, key.clone());
        }
        let names = match names.known_by {
            // Nothing is known yet: use the sources on the node itself.
            KnownBy::Unknown => names::fallback(self, &key),
            // Since then a pod's container with the same id may have been seen.
            KnownBy::CgroupPath if names.pod.is_none() => names::fallback(self, &key),
            _ => names,
        };
        owner.pod = names.pod.as_deref().cloned();
        owner.container = names.container;
        owner.known_by = names.known_by;
        Some((owner, searching))
    }

    /// Scans the hierarchy for an id that no inotify event reported. One scan serves all callers that wait.
    async fn scan_for(self: &Arc<PodsState>, id: u64) {
        if self.was_not_found(id) {
            return;
        }
        let asked = Instant::now();
        let mut last = self.last_scan.lock().await;
        if last.is_none_or(|at| at < asked) {
            if let Some(at) = *last {
                tokio::time::sleep(RESCAN_EVERY.saturating_sub(at.elapsed())).await;
            }
            let began = Instant::now();
            self.rescan().await;
            *last = Some(began);
        }
        drop(last);
        if self.cache().entry(id).is_none() {
            let mut not_found = self.not_found();
            if not_found.len() >= UNKNOWN_MAX {
                not_found.retain(|_, at| at.elapsed() < UNKNOWN_FOR);
            }
            if not_found.len() < UNKNOWN_MAX {
                not_found.insert(id, Instant::now());
            }
        }
    }

    /// Whether a recent scan did not find this id.
    fn was_not_found(&self, id: u64) -> bool {
        self.not_found().get(&id).is_some_and(|at| at.elapsed() < UNKNOWN_FOR)
    }

    fn not_found(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        lock(&self.not_found)
    }

    /// Reads the whole tree again, on a blocking thread.
    pub async fn rescan(self: &Arc<PodsState>) {
        let state = self.clone();
        let runtime = tokio::runtime::Handle::current();
        let scan = move || {
            let _guard = runtime.enter();
            state.scan_all();
        };
        if let Err(error) = tokio::task::spawn_blocking(scan).await {
            tracing::warn!(%error, "could not scan the cgroups");
        }
    }

    /// The id of the directory at a path, which is also added to the cache.
    pub fn id_of_path(self: &Arc<PodsState>, path: &Path) -> Option<u64> {
        let id = self.hierarchy.id(path)?;
        self.observe(path);
        Some(id)
    }

    /// Living cgroups by container id, as (path, cgroup id), the container's own first.
    pub fn cgroups_by_container(&self) -> HashMap<String, Vec<(PathBuf, u64)>> {
        let roots = self.roots();
        let mut in_pods = std::collections::HashSet::new();
        let mut found = Vec::new();
        let cache = self.cache();
        for (id, entry) in cache.live() {
            let Some(key) = entry.key.as_ref() else { continue };
            let Some(known) = cache.known(key) else { continue };
            if let Some(container) = container_id(&roots, key, known) {
                let in_pod = known.names.pod.is_some() || roots.believed(bytes(key)).pod_uid.is_some();
                if in_pod {
                    in_pods.insert(container.clone());
                }
                found.push((container, in_pod, entry.path.clone(), id));
            }
        }
        drop(cache);
        let mut all: HashMap<String, Vec<(PathBuf, u64)>> = Default::default();
        for (container, in_pod, path, id) in found {
            // A cgroup elsewhere that claims the id of a pod's container is not part of it.
            if in_pod || !in_pods.contains(&container) {
                all.entry(container).or_default().push((path, id));
            }
        }
        for cgroups in all.values_mut() {
            cgroups.sort_by_cached_key(|(path, _)| (path.components().count(), path.clone()));
        }
        all
    }

    /// The cgroup at `path` and its ancestors, with the level that each path shows.
    pub fn lineage(&self, path: &Path) -> CgroupLineage {
        let roots = self.roots();
        let name = roots.believed(&self.hierarchy.absolute(path));
        let levels = path.ancestors().map(|path| LineageLevel {
            id: self.cache().id_at(path),
            shown: self.hierarchy.shown(path),
            level: roots.believed(&self.hierarchy.absolute(path)).level(),
            path: path.to_owned(),
        });
        CgroupLineage { levels: levels.collect(), qos: name.qos.map(paths::Qos::as_str) }
    }

    /// The owner of the cgroup at a path. The cgroup may be gone.
    pub async fn owner_of_path(self: &Arc<PodsState>, absolute: &[u8]) -> Owner {
        let relative = self.hierarchy.from_absolute(absolute);
        let id = relative.and_then(|path| self.cache().id_at(&path).or_else(|| self.id_of_path(&path)));
        if let Some(id) = id {
            return self.owner_of_cgroup(id).await;
        }
        let name = paths::parse(absolute);
        let is_host = name.containers.is_empty() && name.pod_uid.is_none();
        let names = if is_host { None } else { Some(names::find_once(self, absolute, &name).await) };
        gone_owner(absolute, names)
    }

    /// The owner of the cgroup at a path as far as it is known now. Does not ask the runtime.
    pub fn owner_of_path_now(self: &Arc<PodsState>, absolute: &[u8]) -> Owner {
        let relative = self.hierarchy.from_absolute(absolute);
        if let Some(id) = relative.and_then(|path| self.cache().id_at(&path)) {
            return self.owner_now(id).0;
        }
        let name = paths::parse(absolute);
        let is_host = name.containers.is_empty() && name.pod_uid.is_none();
        gone_owner(
            absolute,
            (!is_host).then(|| names::fallback(self, Path::new(OsStr::from_bytes(absolute)))),
        )
    }

    /// The own cgroups of living containers, each followed by its ancestors. Each ancestor appears once.
    pub fn memory_cgroups(&self) -> Vec<MemoryCgroup> {
        let roots = self.roots();
        let cache = self.cache();
        let mut ancestors = std::collections::HashSet::new();
        let mut levels = Vec::new();
        for (id, entry) in cache.live().filter(|(_, e)| !e.name.below && !e.name.containers.is_empty()) {
            let Some(key) = entry.key.as_ref() else { continue };
            let own = entry.name.container().map(|container| &container.container_id);
            // A cgroup that a container created may look like another container's own.
            if cache.known(key).and_then(|known| container_id(&roots, key, known)).as_ref() != own {
                continue;
            }
            levels.push(MemoryCgroup { id, path: entry.path.clone(), container: true });
            for path in entry.path.ancestors().skip(1) {
                if !ancestors.insert(path.to_owned()) {
                    break;
                }
                let id = cache.id_at(path);
                levels.extend(id.map(|id| MemoryCgroup { id, path: path.to_owned(), container: false }));
            }
        }
        levels
    }

    /// The owners of the own cgroups of living containers.
    pub fn living(&self) -> Vec<Owner> {
        let cache = self.cache();
        let own = cache.live().filter(|(_, entry)| !entry.name.below);
        let owner = |(id, entry): (u64, &CgroupEntry)| {
            let names = &cache.known(entry.key.as_ref()?)?.names;
            Some(Owner {
                pod: names.pod.as_deref().cloned(),
                container: Some(names.container.clone()?),
                cgroup: CgroupRef { id, path: Some(self.hierarchy.shown(&entry.path)) },
                known_by: names.known_by,
            })
        };
        own.filter_map(owner).collect()
    }

    pub fn status(&self) -> PodsStatus {
        let (cri_socket, runtime, cri_error) = self.runtime.about();
        let cache = self.cache();
        let (containers_known, containers_remembered_dead) = cache.counts();
        let losses = [
            ("cri_errors", self.runtime.errors()),
            ("runtime_readers_lost", self.runtime.readers_lost()),
            ("cgroups_unknown", self.unknown.load(Relaxed)),
            ("cgroups_missed", self.watch.missed()),
            ("cgroups_over_limit", cache.over_limit),
            ("watches_refused", self.watch.refused()),
            ("watch_overflows", self.watch.overflows()),
            ("dead_evicted", cache.dead_evicted),
            ("labels_dropped", self.labels_dropped.load(Relaxed)),
        ];
        PodsStatus {
            cri_socket,
            runtime,
            cri_error,
            containers_known,
            containers_remembered_dead,
            losses: losses.into_iter().filter(|(_, n)| *n > 0).map(|(k, n)| (k.to_owned(), n)).collect(),
        }
    }
}

fn runtime(options: &PodsOptions, hierarchy: &Hierarchy) -> Runtime {
    if let Some(reader) = &options.reader {
        return Runtime::Reader(reader.clone());
    }
    let node_root = proc::node_root(&options.proc_root, hierarchy).map(NodeRoot::new);
    let client = RuntimeClient::new(options.cri_socket.clone(), node_root, options.cri_timeout);
    Runtime::Direct(Box::new(client))
}

/// The owner of a cgroup that is gone. `names`: None for a cgroup of the host.
fn gone_owner(absolute: &[u8], names: Option<ResolvedNames>) -> Owner {
    let cgroup = CgroupRef { id: 0, path: Some(text::escape_bytes(absolute)) };
    let Some(names) = names else { return Owner { cgroup, known_by: KnownBy::Host, ..Owner::default() } };
    let pod = names.pod.as_deref().cloned();
    Owner { pod, container: names.container, known_by: names.known_by, cgroup }
}

/// The id of the container in the resolved names, else the one in the path that is believed.
fn container_id(roots: &KubeletRoots, key: &Path, known: &KnownContainer) -> Option<String> {
    match (&known.names.container, known.names.known_by) {
        (Some(ContainerRef { id, .. }), _) => Some(id.clone()),
        // The runtime reported that it is a sandbox, or that it is none of its containers.
        (None, KnownBy::Cri | KnownBy::Host) => None,
        (None, _) => roots.believed(bytes(key)).container().map(|container| container.container_id.clone()),
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
