//! The bounded cache from memory cgroup id to path to names, dead cgroups included.
//!
//! It only keeps books: it must not depend on CRI, inotify or the file system, and the time is passed in.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::paths::{self, CgroupName};
use super::trust;
use podopsy_model::{ContainerRef, KnownBy, PodRef};

/// The bounds of the cache. Containers may be allowed to create cgroups, so their number must be limited.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Living cgroups in total.
    pub live: usize,
    /// Living cgroups in and below one container.
    pub per_container: usize,
    /// Dead cgroups, even within `remember_dead`.
    pub dead: usize,
    pub remember_dead: Duration,
}

impl CacheLimits {
    pub fn new(remember_dead: Duration) -> CacheLimits {
        CacheLimits { live: 65_536, per_container: 4096, dead: 16_384, remember_dead }
    }
}

/// The names behind a cgroup.
#[derive(Clone, Debug, Default)]
pub struct ResolvedNames {
    pub pod: Option<Arc<PodRef>>,
    /// None: it is the pod's sandbox, or not a container.
    pub container: Option<ContainerRef>,
    pub known_by: KnownBy,
}

/// The progress of the search for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchState {
    /// Not started (the names of a pod's own cgroup are searched on demand).
    Idle,
    /// Running: it is worth waiting for.
    Running,
    /// The runtime gave the names, which are final.
    Done,
    /// No runtime answered; the search is repeated when one does.
    Down,
    /// The runtime does not know the container. Asked again on demand after this time.
    Absent(Instant),
}

#[derive(Debug)]
pub struct CgroupEntry {
    /// Relative to the hierarchy's mount.
    pub path: PathBuf,
    pub name: Arc<CgroupName>,
    /// The key of its [`KnownContainer`]: the absolute path of the innermost container's directory, or of the pod's own.
    /// Not the id: another cgroup may claim the same one. None: it is a cgroup of the host.
    pub key: Option<Arc<Path>>,
    /// The directory of the outermost container, to which it counts.
    outermost: Option<PathBuf>,
    pub watched: bool,
    pub dead: Option<Instant>,
}

#[derive(Debug)]
pub struct KnownContainer {
    pub name: Arc<CgroupName>,
    pub names: ResolvedNames,
    pub search: SearchState,
    /// The number of entries with this key, and how many of them are alive.
    entries: usize,
    live: usize,
}

impl KnownContainer {
    pub fn is_alive(&self) -> bool {
        self.live > 0
    }
}

/// What [`CgroupCache::insert`] did.
#[derive(Debug, PartialEq, Eq)]
pub enum InsertOutcome {
    /// The directory was known; `watched` tells whether it has a watch.
    Old {
        watched: bool,
    },
    New,
    /// The first directory of a new container, with its key; its names have to be searched.
    NewContainer(Arc<Path>),
    /// Not added, and counted in `over_limit`.
    Refused,
}

#[derive(Debug)]
pub struct CgroupCache {
    limits: CacheLimits,
    entries: HashMap<u64, CgroupEntry>,
    by_path: HashMap<PathBuf, u64>,
    known: HashMap<Arc<Path>, KnownContainer>,
    /// Living cgroups by the directory of the outermost container.
    per_container: HashMap<PathBuf, usize>,
    dead: VecDeque<(Instant, u64)>,
    pub dead_evicted: u64,
    pub over_limit: u64,
}

impl CgroupCache {
    pub fn new(limits: CacheLimits) -> CgroupCache {
        CgroupCache {
            limits,
            entries: HashMap::new(),
            by_path: HashMap::new(),
            known: HashMap::new(),
            per_container: HashMap::new(),
            dead: VecDeque::new(),
            dead_evicted: 0,
            over_limit: 0,
        }
    }

    pub fn entry(&self, id: u64) -> Option<&CgroupEntry> {
        self.entries.get(&id)
    }

    /// The id of the outermost container that a cgroup is in, or the key of its pod.
    pub fn outermost(&self, id: u64) -> Option<Arc<str>> {
        let entry = self.entries.get(&id)?;
        match entry.name.containers.first() {
            Some(container) => Some(container.container_id.as_str().into()),
            None => Some(entry.key.as_ref()?.to_string_lossy().into()),
        }
    }

    pub fn id_at(&self, path: &Path) -> Option<u64> {
        self.by_path.get(path).copied()
    }

    pub fn known(&self, key: &Path) -> Option<&KnownContainer> {
        self.known.get(key)
    }

    /// Living entries, in no particular order.
    pub fn live(&self) -> impl Iterator<Item = (u64, &CgroupEntry)> {
        self.by_path.values().filter_map(|id| Some((*id, self.entries.get(id)?)))
    }

    pub fn all_known(&self) -> impl Iterator<Item = (&Arc<Path>, &KnownContainer)> {
        self.known.iter()
    }

    /// Adds a directory that was seen. `absolute` is its path below the hierarchy's root, for [`paths::parse`].
    pub fn insert(&mut self, id: u64, path: &Path, absolute: &[u8], now: Instant) -> InsertOutcome {
        if let Some(entry) = self.entries.get(&id) {
            if entry.dead.is_none() && entry.path == path {
                return InsertOutcome::Old { watched: entry.watched };
            }
            // It was moved or revived, or (not in cgroupfs) the inode number was used again.
            self.forget(id);
        }
        if let Some(before) = self.by_path.get(path).copied() {
            self.bury(before, now);
        }
        let name = Arc::new(paths::parse(absolute));
        let outermost = name.containers.first().map(|container| trust::prefix(absolute, container.depth));
        let taken = outermost.as_ref().and_then(|dir| self.per_container.get(dir)).copied().unwrap_or(0);
        if self.by_path.len() >= self.limits.live || taken >= self.limits.per_container {
            self.over_limit += 1;
            return InsertOutcome::Refused;
        }
        if let Some(outermost) = &outermost {
            *self.per_container.entry(outermost.clone()).or_default() += 1;
        }
        let key = key(absolute, &name);
        let mut outcome = InsertOutcome::New;
        if let Some(key) = &key {
            let known = self.known.entry(key.clone()).or_insert_with(|| {
                if !name.containers.is_empty() {
                    outcome = InsertOutcome::NewContainer(key.clone());
                }
                KnownContainer {
                    name: name.clone(),
                    names: ResolvedNames::default(),
                    search: if name.containers.is_empty() { SearchState::Idle } else { SearchState::Running },
                    entries: 0,
                    live: 0,
                }
            });
            known.entries += 1;
            known.live += 1;
        }
        self.by_path.insert(path.to_owned(), id);
        let path = path.to_owned();
        self.entries.insert(id, CgroupEntry { path, name, key, outermost, watched: false, dead: None });
        outcome
    }

    pub fn set_watched(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.watched = true;
        }
    }

    /// Marks a cgroup as dead because its directory is gone. The entry stays.
    pub fn bury(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.dead.is_none()) else { return };
        entry.dead = Some(now);
        entry.watched = false;
        let (path, key, outermost) = (entry.path.clone(), entry.key.clone(), entry.outermost.clone());
        if self.by_path.get(&path) == Some(&id) {
            self.by_path.remove(&path);
        }
        self.release(key, outermost);
        self.dead.push_back((now, id));
        self.prune(now);
    }

    /// Drops dead entries whose time is over, and the oldest ones beyond the bound, which are counted.
    pub fn prune(&mut self, now: Instant) {
        while let Some(&(since, id)) = self.dead.front() {
            let expired = now.duration_since(since) > self.limits.remember_dead;
            let full = self.dead.len() > self.limits.dead;
            if !expired && !full {
                break;
            }
            self.dead.pop_front();
            // Skip an entry that was revived or dropped since.
            if self.entries.get(&id).is_some_and(|entry| entry.dead == Some(since)) {
                self.dead_evicted += u64::from(!expired);
                self.forget(id);
            }
        }
    }

    /// Records the result of a search. Names of a better source are not replaced by those of a worse one. The runtime's
    /// answer replaces all: it may be that the cgroup only looks like a container's.
    pub fn settle(&mut self, key: &Path, names: Option<ResolvedNames>, search: SearchState) {
        let Some(known) = self.known.get_mut(key) else { return };
        known.search = search;
        if let Some(names) = names
            && (search == SearchState::Done || rank(names.known_by) <= rank(known.names.known_by))
        {
            known.names = names;
        }
    }

    /// The number of (living, dead) containers, sandboxes included.
    pub fn counts(&self) -> (usize, usize) {
        let containers = self.known.values().filter(|known| !known.name.containers.is_empty());
        let (live, dead): (Vec<_>, Vec<_>) = containers.partition(|known| known.is_alive());
        (live.len(), dead.len())
    }

    fn forget(&mut self, id: u64) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if entry.dead.is_none() {
            if self.by_path.get(&entry.path) == Some(&id) {
                self.by_path.remove(&entry.path);
            }
            self.release(entry.key.clone(), entry.outermost);
        }
        if let Some(key) = entry.key
            && let Some(known) = self.known.get_mut(&key)
        {
            known.entries = known.entries.saturating_sub(1);
            if known.entries == 0 {
                self.known.remove(&key);
            }
        }
    }

    fn release(&mut self, key: Option<Arc<Path>>, outermost: Option<PathBuf>) {
        if let Some(known) = key.and_then(|key| self.known.get_mut(&key)) {
            known.live = known.live.saturating_sub(1);
        }
        if let Some(outermost) = outermost
            && let Some(count) = self.per_container.get_mut(&outermost)
        {
            *count -= 1;
            if *count == 0 {
                self.per_container.remove(&outermost);
            }
        }
    }
}

/// The key for a path: the directory of its innermost container, or the path itself if it only names a pod. None: it is
/// the host's.
fn key(absolute: &[u8], name: &CgroupName) -> Option<Arc<Path>> {
    let depth = name.container().map(|container| container.depth);
    let depth = depth.or_else(|| name.pod_uid.is_some().then_some(name.depth));
    depth.map(|depth| trust::prefix(absolute, depth).into())
}

fn rank(known_by: KnownBy) -> u8 {
    match known_by {
        KnownBy::Cri => 0,
        KnownBy::LogDirectory => 1,
        KnownBy::CgroupPath => 2,
        KnownBy::Inside => 3,
        KnownBy::Host => 4,
        KnownBy::Unknown => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "3f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e884";

    fn add(cache: &mut CgroupCache, id: u64, path: &str, now: Instant) -> InsertOutcome {
        cache.insert(id, Path::new(path), format!("/{path}").as_bytes(), now)
    }

    fn small() -> CgroupCache {
        CgroupCache::new(CacheLimits {
            live: 10,
            per_container: 3,
            dead: 2,
            remember_dead: Duration::from_secs(600),
        })
    }

    #[test]
    fn dead_cgroups_are_remembered_and_evictions_are_counted() {
        let (mut cache, now) = (small(), Instant::now());
        for id in 1..=3 {
            add(&mut cache, id, &format!("docker/{A}/{id}"), now);
        }
        for id in 1..=3 {
            cache.bury(id, now);
        }
        assert!(cache.entry(1).is_none() && cache.entry(2).is_some() && cache.entry(3).is_some());
        assert_eq!((cache.dead_evicted, cache.counts()), (1, (0, 1)));
        // Once their time is over they are dropped uncounted, and their names with them.
        cache.prune(now + Duration::from_secs(601));
        assert!(cache.entry(3).is_none());
        assert_eq!((cache.dead_evicted, cache.counts()), (1, (0, 0)));
        assert!(cache.per_container.is_empty() && cache.known.is_empty() && cache.by_path.is_empty());
    }

    #[test]
    fn one_container_cannot_fill_the_cache() {
        let (mut cache, now) = (small(), Instant::now());
        for id in 1..=9 {
            add(&mut cache, id, &format!("docker/{A}/{id}"), now);
        }
        assert_eq!(cache.over_limit, 6);
        assert_eq!(add(&mut cache, 100, "system.slice", now), InsertOutcome::New);
    }

    #[test]
    fn a_new_cgroup_at_a_path_replaces_the_one_before() {
        let (mut cache, now) = (small(), Instant::now());
        assert!(matches!(add(&mut cache, 1, &format!("docker/{A}"), now), InsertOutcome::NewContainer(_)));
        assert_eq!(add(&mut cache, 1, &format!("docker/{A}"), now), InsertOutcome::Old { watched: false });
        assert_eq!(add(&mut cache, 2, &format!("docker/{A}"), now), InsertOutcome::New);
        assert!(cache.entry(1).is_some_and(|entry| entry.dead.is_some()));
        assert_eq!(cache.id_at(Path::new(&format!("docker/{A}"))), Some(2));
        // A late rmdir event for the first one does not affect the second.
        cache.bury(1, now);
        assert_eq!(cache.counts(), (1, 0));
    }

    #[test]
    fn names_are_only_replaced_by_those_of_a_better_source() {
        let (mut cache, now) = (small(), Instant::now());
        add(&mut cache, 1, &format!("docker/{A}"), now);
        let key = PathBuf::from(format!("/docker/{A}"));
        let names = |known_by| Some(ResolvedNames { known_by, ..ResolvedNames::default() });
        cache.settle(&key, names(KnownBy::Cri), SearchState::Done);
        cache.settle(&key, names(KnownBy::CgroupPath), SearchState::Down);
        assert_eq!(cache.known(&key).map(|k| k.names.known_by), Some(KnownBy::Cri));
    }

    #[test]
    fn the_runtimes_answer_that_a_cgroup_is_no_containers_is_final() {
        let (mut cache, now) = (small(), Instant::now());
        add(&mut cache, 1, &format!("docker/{A}"), now);
        let key = PathBuf::from(format!("/docker/{A}"));
        let names = |known_by| Some(ResolvedNames { known_by, ..ResolvedNames::default() });
        cache.settle(&key, names(KnownBy::CgroupPath), SearchState::Down);
        cache.settle(&key, names(KnownBy::Host), SearchState::Done);
        assert_eq!(cache.known(&key).map(|k| k.names.known_by), Some(KnownBy::Host));
    }

    #[test]
    fn a_cgroup_that_claims_a_containers_id_shares_neither_its_names_nor_its_bound() {
        let (mut cache, now) = (small(), Instant::now());
        add(&mut cache, 1, &format!("kubepods/podx/{A}"), now);
        for id in 2..=9 {
            add(&mut cache, id, &format!("user.slice/kubepods/podx/{A}/{id}"), now);
        }
        assert_eq!(cache.over_limit, 5);
        assert_eq!(add(&mut cache, 10, &format!("kubepods/podx/{A}/y"), now), InsertOutcome::New);
        let key = |id| cache.entry(id).and_then(|entry| entry.key.clone());
        assert!(key(1) == key(10) && key(1) != key(2));
    }
}
