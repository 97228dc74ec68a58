//! What the room's parts share, and the answer to "whose cgroup is this?".
//!
//! Must not know: inotify (see [`super::watch`]), or how names are found (see [`super::names`]).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cache::{Cache, Entry, Limits, Names, Search};
use super::hierarchy::Hierarchy;
use super::runtime::Runtime;
use super::watch::Watch;
use super::{Level, Options, Place, Status, Step, names, paths};
use podopsy_model::{CgroupRef, ContainerRef, KnownBy, Owner, PodRef, text};

/// Between two scans for ids that nobody knows; who asks meanwhile waits for the next one.
const RESCAN_EVERY: Duration = Duration::from_millis(200);
/// An id that a scan did not find is not searched again for so long.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
const UNKNOWN_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Room {
    pub options: Options,
    pub hierarchy: Hierarchy,
    pub runtime: Runtime,
    pub watch: Watch,
    cache: Mutex<Cache>,
    /// Counts the searches that ended: those who wait for names look again.
    pub settled: tokio::sync::watch::Sender<u64>,
    pub sandboxes: Mutex<std::collections::HashMap<String, Arc<PodRef>>>,
    pub labels_dropped: AtomicU64,
    unknown: AtomicU64,
    not_found: Mutex<std::collections::HashMap<u64, Instant>>,
    last_scan: tokio::sync::Mutex<Option<Instant>>,
    pub closing: AtomicBool,
}

impl Room {
    pub fn new(options: Options, limits: Limits, max_watches: Option<usize>) -> anyhow::Result<Arc<Room>> {
        let hierarchy = Hierarchy::find(&options.proc_root, &options.cgroup_root)?;
        Ok(Arc::new(Room {
            runtime: Runtime::new(options.cri_socket.clone(), options.cri_timeout),
            watch: Watch::new(&options.proc_root, max_watches),
            hierarchy,
            options,
            cache: Mutex::new(Cache::new(limits)),
            settled: tokio::sync::watch::Sender::new(0),
            sandboxes: Mutex::default(),
            labels_dropped: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            not_found: Mutex::default(),
            last_scan: tokio::sync::Mutex::default(),
            closing: AtomicBool::new(false),
        }))
    }

    /// Never held across an await.
    pub fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn owner_of_cgroup(self: &Arc<Room>, id: u64) -> Owner {
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

    /// The owner as far as it is known, and whether more is on its way.
    fn look(self: &Arc<Room>, id: u64) -> Option<(Owner, bool)> {
        let (mut owner, names, search, key, name) = {
            let cache = self.cache();
            let entry = cache.entry(id)?;
            let cgroup = CgroupRef { id, path: Some(self.hierarchy.shown(&entry.path)) };
            let owner = Owner { cgroup, known_by: KnownBy::Host, ..Owner::default() };
            let Some(key) = entry.key.clone() else { return Some((owner, false)) };
            let known = cache.known(&key)?;
            (owner, known.names.clone(), known.search, key, known.name.clone())
        };
        // What was searched in vain is searched again without keeping anyone waiting (and what no runtime
        // answered, by `names::retry_down`): a broken runtime costs each container one wait, not each event.
        let searching =
            names.known_by == KnownBy::Unknown && matches!(search, Search::Idle | Search::Running);
        if search == Search::Idle || matches!(search, Search::Absent(after) if Instant::now() >= after) {
            names::spawn(self, key);
        }
        let names = match names.known_by {
            // Nothing yet: what lies on the node itself.
            KnownBy::Unknown => names::fallback(self, &name),
            _ => names,
        };
        owner.pod = names.pod.as_deref().cloned();
        owner.container = names.container;
        owner.known_by = names.known_by;
        Some((owner, searching))
    }

    /// Looks through the hierarchy for an id that no event told of; one scan serves all who wait.
    async fn scan_for(self: &Arc<Room>, id: u64) {
        let recently = |at: &Instant| at.elapsed() < UNKNOWN_FOR;
        if self.not_found().get(&id).is_some_and(recently) {
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
                not_found.retain(|_, at| recently(at));
            }
            if not_found.len() < UNKNOWN_MAX {
                not_found.insert(id, Instant::now());
            }
        }
    }

    fn not_found(&self) -> MutexGuard<'_, std::collections::HashMap<u64, Instant>> {
        self.not_found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the whole tree again, off the async threads.
    pub async fn rescan(self: &Arc<Room>) {
        let room = self.clone();
        let runtime = tokio::runtime::Handle::current();
        let scan = move || {
            let _guard = runtime.enter();
            room.scan_all();
        };
        if let Err(error) = tokio::task::spawn_blocking(scan).await {
            tracing::warn!(%error, "scan of the cgroups failed");
        }
    }

    /// The id of a directory, which is remembered from now on.
    pub fn id_of_path(self: &Arc<Room>, path: &Path) -> Option<u64> {
        let id = self.hierarchy.id(path)?;
        self.observe(path);
        Some(id)
    }

    /// Living cgroups of each container by its id: (path, id), the container's own first.
    pub fn cgroups_by_container(&self) -> std::collections::HashMap<String, Vec<(PathBuf, u64)>> {
        let mut all: std::collections::HashMap<String, Vec<(PathBuf, u64)>> = Default::default();
        let cache = self.cache();
        for (id, entry) in cache.live() {
            let Some(known) = entry.key.as_ref().and_then(|key| cache.known(key)) else { continue };
            if let Some(container) = container_id(&known.names, known) {
                all.entry(container).or_default().push((entry.path.clone(), id));
            }
        }
        drop(cache);
        for cgroups in all.values_mut() {
            cgroups.sort_by_cached_key(|(path, _)| (path.components().count(), path.clone()));
        }
        all
    }

    /// Each cgroup from `path` up, by what its path says.
    pub fn place(&self, path: &Path) -> Place {
        let name = paths::parse(&self.hierarchy.absolute(path));
        let steps = path.ancestors().map(|path| {
            let absolute = self.hierarchy.absolute(path);
            Step {
                id: self.cache().id_at(path),
                shown: self.hierarchy.shown(path),
                level: paths::level(&absolute),
                path: path.to_owned(),
            }
        });
        Place { steps: steps.collect(), qos: name.qos.map(paths::Qos::as_str) }
    }

    /// By the path of a cgroup that may be gone.
    pub async fn owner_of_path(self: &Arc<Room>, absolute: &[u8]) -> Owner {
        let relative = self.hierarchy.from_absolute(absolute);
        let id = relative.and_then(|path| self.cache().id_at(&path).or_else(|| self.id_of_path(&path)));
        if let Some(id) = id {
            return self.owner_of_cgroup(id).await;
        }
        let cgroup = CgroupRef { id: 0, path: Some(text::escape_bytes(absolute)) };
        let name = paths::parse(absolute);
        if name.containers.is_empty() && name.pod_uid.is_none() {
            return Owner { cgroup, known_by: KnownBy::Host, ..Owner::default() };
        }
        let names = names::now(self, &name).await;
        Owner {
            pod: names.pod.as_deref().cloned(),
            container: names.container,
            known_by: names.known_by,
            cgroup,
        }
    }

    /// Living containers' own cgroups, each followed by those above it (once each).
    pub fn memory_levels(&self) -> Vec<Level> {
        let cache = self.cache();
        let mut above = std::collections::HashSet::new();
        let mut levels = Vec::new();
        for (id, entry) in cache.live().filter(|(_, e)| !e.name.below && !e.name.containers.is_empty()) {
            let Some(known) = entry.key.as_ref().and_then(|key| cache.known(key)) else { continue };
            if container_id(&known.names, known).is_none() {
                continue;
            }
            levels.push(Level { id, path: entry.path.clone(), container: true });
            for path in entry.path.ancestors().skip(1) {
                if !above.insert(path.to_owned()) {
                    break;
                }
                let id = cache.id_at(path);
                levels.extend(id.map(|id| Level { id, path: path.to_owned(), container: false }));
            }
        }
        levels
    }

    /// Owners of living containers' own cgroups.
    pub fn living(&self) -> Vec<Owner> {
        let cache = self.cache();
        let own = cache.live().filter(|(_, entry)| !entry.name.below);
        let owner = |(id, entry): (u64, &Entry)| {
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

    pub fn status(&self) -> Status {
        let (cri_socket, runtime, cri_error) = self.runtime.about();
        let cache = self.cache();
        let (containers_known, containers_remembered_dead) = cache.counts();
        let losses = [
            ("cri_errors", self.runtime.errors()),
            ("cgroups_unknown", self.unknown.load(Relaxed)),
            ("cgroups_missed", self.watch.missed()),
            ("cgroups_over_limit", cache.over_limit),
            ("watches_refused", self.watch.refused()),
            ("watch_overflows", self.watch.overflows()),
            ("dead_evicted", cache.dead_evicted),
            ("labels_dropped", self.labels_dropped.load(Relaxed)),
        ];
        Status {
            cri_socket,
            runtime,
            cri_error,
            containers_known,
            containers_remembered_dead,
            losses: losses.into_iter().filter(|(_, n)| *n > 0).map(|(k, n)| (k.to_owned(), n)).collect(),
        }
    }
}

/// The container that the names speak of, else the innermost of the path.
fn container_id(names: &Names, known: &super::cache::Known) -> Option<String> {
    match (&names.container, names.known_by) {
        (Some(ContainerRef { id, .. }), _) => Some(id.clone()),
        // The runtime says that it is a sandbox.
        (None, KnownBy::Cri) => None,
        (None, _) => known.name.container().map(|place| place.container_id.clone()),
    }
}
