//! Memory cgroup id → path → names: what is known now, bounded, the dead included.
//!
//! Pure bookkeeping: must not know CRI, inotify or the file system; time is passed in.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::paths::{self, CgroupName};
use podopsy_model::{ContainerRef, KnownBy, PodRef};

/// Bounds: containers may be allowed to make cgroups, and a node must survive what they make.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Living cgroups in all.
    pub live: usize,
    /// Living cgroups in and below one container.
    pub per_container: usize,
    /// Dead cgroups remembered at most, even within `remember_dead`.
    pub dead: usize,
    pub remember_dead: Duration,
}

impl Limits {
    pub fn new(remember_dead: Duration) -> Limits {
        Limits { live: 65_536, per_container: 4096, dead: 16_384, remember_dead }
    }
}

/// The names behind a cgroup.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub pod: Option<Arc<PodRef>>,
    /// None: the pod's sandbox, or no container.
    pub container: Option<ContainerRef>,
    pub known_by: KnownBy,
}

/// How far the search for the names has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Nobody has asked yet (a pod's own level is asked for on demand).
    Idle,
    /// Under way: an owner is worth waiting for.
    Running,
    /// The runtime knows it: nothing more to learn.
    Done,
    /// No runtime answered; to be tried again when one does.
    Down,
    /// The runtime knows nothing of it; asked again on demand after this time.
    Absent(Instant),
}

#[derive(Debug)]
pub struct Entry {
    /// Relative to the hierarchy's mount.
    pub path: PathBuf,
    pub name: Arc<CgroupName>,
    /// Key into the names; None: a cgroup of the host.
    pub key: Option<Arc<str>>,
    pub watched: bool,
    pub dead: Option<Instant>,
}

#[derive(Debug)]
pub struct Known {
    pub name: Arc<CgroupName>,
    pub names: Names,
    pub search: Search,
    /// Entries that point here, and how many of them live.
    entries: usize,
    live: usize,
}

impl Known {
    pub fn alive(&self) -> bool {
        self.live > 0
    }
}

/// What [`Cache::insert`] did.
#[derive(Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It was known; false: and has no watch yet.
    Old {
        watched: bool,
    },
    New,
    /// A container's (or a pod's) that nobody has asked about: `key`.
    NewContainer(Arc<str>),
    /// Not taken: see `over_limit`.
    Refused,
}

#[derive(Debug)]
pub struct Cache {
    limits: Limits,
    entries: HashMap<u64, Entry>,
    by_path: HashMap<PathBuf, u64>,
    known: HashMap<Arc<str>, Known>,
    /// Living cgroups by outermost container.
    per_container: HashMap<String, usize>,
    dead: VecDeque<(Instant, u64)>,
    pub dead_evicted: u64,
    pub over_limit: u64,
}

impl Cache {
    pub fn new(limits: Limits) -> Cache {
        Cache {
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

    pub fn entry(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub fn id_at(&self, path: &Path) -> Option<u64> {
        self.by_path.get(path).copied()
    }

    pub fn known(&self, key: &str) -> Option<&Known> {
        self.known.get(key)
    }

    /// Living entries, in no order.
    pub fn live(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.by_path.values().filter_map(|id| Some((*id, self.entries.get(id)?)))
    }

    pub fn all_known(&self) -> impl Iterator<Item = (&Arc<str>, &Known)> {
        self.known.iter()
    }

    /// A directory was seen. `absolute` is its path below the hierarchy's root, for [`paths::parse`].
    pub fn insert(&mut self, id: u64, path: &Path, absolute: &[u8], now: Instant) -> Inserted {
        if let Some(entry) = self.entries.get(&id) {
            if entry.dead.is_none() && entry.path == path {
                return Inserted::Old { watched: entry.watched };
            }
            // Moved, revived, or (not in cgroupfs) the number was used again.
            self.forget(id);
        }
        if let Some(before) = self.by_path.get(path).copied() {
            self.bury(before, now);
        }
        let name = Arc::new(paths::parse(absolute));
        let outermost = name.containers.first().map(|place| place.container_id.clone());
        let taken = outermost.as_ref().and_then(|id| self.per_container.get(id)).copied().unwrap_or(0);
        if self.by_path.len() >= self.limits.live || taken >= self.limits.per_container {
            self.over_limit += 1;
            return Inserted::Refused;
        }
        if let Some(outermost) = outermost {
            *self.per_container.entry(outermost).or_default() += 1;
        }
        let key = key(&name);
        let mut outcome = Inserted::New;
        if let Some(key) = &key {
            let known = self.known.entry(key.clone()).or_insert_with(|| {
                if !name.containers.is_empty() {
                    outcome = Inserted::NewContainer(key.clone());
                }
                Known {
                    name: name.clone(),
                    names: Names::default(),
                    search: if name.containers.is_empty() { Search::Idle } else { Search::Running },
                    entries: 0,
                    live: 0,
                }
            });
            known.entries += 1;
            known.live += 1;
        }
        self.by_path.insert(path.to_owned(), id);
        self.entries.insert(id, Entry { path: path.to_owned(), name, key, watched: false, dead: None });
        outcome
    }

    pub fn set_watched(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.watched = true;
        }
    }

    /// Its directory is gone: it stays, among the dead.
    pub fn bury(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.dead.is_none()) else { return };
        entry.dead = Some(now);
        entry.watched = false;
        let (path, key, name) = (entry.path.clone(), entry.key.clone(), entry.name.clone());
        if self.by_path.get(&path) == Some(&id) {
            self.by_path.remove(&path);
        }
        self.release(key, &name);
        self.dead.push_back((now, id));
        self.prune(now);
    }

    /// Lets go of the dead whose time is over, and of the oldest beyond the bound (those are counted).
    pub fn prune(&mut self, now: Instant) {
        while let Some(&(since, id)) = self.dead.front() {
            let expired = now.duration_since(since) > self.limits.remember_dead;
            let full = self.dead.len() > self.limits.dead;
            if !expired && !full {
                break;
            }
            self.dead.pop_front();
            // Revived or forgotten since.
            if self.entries.get(&id).is_some_and(|entry| entry.dead == Some(since)) {
                self.dead_evicted += u64::from(!expired);
                self.forget(id);
            }
        }
    }

    /// What the search found, and how it ended. Better names are not replaced by worse ones.
    pub fn settle(&mut self, key: &str, names: Option<Names>, search: Search) {
        let Some(known) = self.known.get_mut(key) else { return };
        known.search = search;
        if let Some(names) = names
            && rank(names.known_by) <= rank(known.names.known_by)
        {
            known.names = names;
        }
    }

    /// (living, dead) containers, sandboxes included.
    pub fn counts(&self) -> (usize, usize) {
        let containers = self.known.values().filter(|known| !known.name.containers.is_empty());
        let (live, dead): (Vec<_>, Vec<_>) = containers.partition(|known| known.alive());
        (live.len(), dead.len())
    }

    fn forget(&mut self, id: u64) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if entry.dead.is_none() {
            if self.by_path.get(&entry.path) == Some(&id) {
                self.by_path.remove(&entry.path);
            }
            self.release(entry.key.clone(), &entry.name);
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

    fn release(&mut self, key: Option<Arc<str>>, name: &CgroupName) {
        if let Some(known) = key.and_then(|key| self.known.get_mut(&key)) {
            known.live = known.live.saturating_sub(1);
        }
        if let Some(outermost) = name.containers.first()
            && let Some(count) = self.per_container.get_mut(&outermost.container_id)
        {
            *count -= 1;
            if *count == 0 {
                self.per_container.remove(&outermost.container_id);
            }
        }
    }
}

/// The container ids of a path, outermost first; for a pod's own level its uid; None for the host.
fn key(name: &CgroupName) -> Option<Arc<str>> {
    if name.containers.is_empty() {
        return name.pod_uid.as_ref().map(|uid| format!("pod:{uid}").into());
    }
    let ids: Vec<_> = name.containers.iter().map(|place| place.container_id.as_str()).collect();
    Some(ids.join("/").into())
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

    fn add(cache: &mut Cache, id: u64, path: &str, now: Instant) -> Inserted {
        cache.insert(id, Path::new(path), format!("/{path}").as_bytes(), now)
    }

    fn small() -> Cache {
        Cache::new(Limits { live: 10, per_container: 3, dead: 2, remember_dead: Duration::from_secs(600) })
    }

    #[test]
    fn the_dead_stay_and_evictions_are_counted() {
        let (mut cache, now) = (small(), Instant::now());
        for id in 1..=3 {
            add(&mut cache, id, &format!("docker/{A}/{id}"), now);
        }
        for id in 1..=3 {
            cache.bury(id, now);
        }
        assert!(cache.entry(1).is_none() && cache.entry(2).is_some() && cache.entry(3).is_some());
        assert_eq!((cache.dead_evicted, cache.counts()), (1, (0, 1)));
        // Their time over, they go uncounted, and their names with them.
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
        assert_eq!(add(&mut cache, 100, "system.slice", now), Inserted::New);
    }

    #[test]
    fn a_path_used_again_buries_the_one_before() {
        let (mut cache, now) = (small(), Instant::now());
        assert!(matches!(add(&mut cache, 1, &format!("docker/{A}"), now), Inserted::NewContainer(_)));
        assert_eq!(add(&mut cache, 1, &format!("docker/{A}"), now), Inserted::Old { watched: false });
        assert_eq!(add(&mut cache, 2, &format!("docker/{A}"), now), Inserted::New);
        assert!(cache.entry(1).is_some_and(|entry| entry.dead.is_some()));
        assert_eq!(cache.id_at(Path::new(&format!("docker/{A}"))), Some(2));
        // A late rmdir event of the first does not touch the second.
        cache.bury(1, now);
        assert_eq!(cache.counts(), (1, 0));
    }

    #[test]
    fn names_only_get_better() {
        let (mut cache, now) = (small(), Instant::now());
        add(&mut cache, 1, &format!("docker/{A}"), now);
        let names = |known_by| Some(Names { known_by, ..Names::default() });
        cache.settle(A, names(KnownBy::Cri), Search::Done);
        cache.settle(A, names(KnownBy::CgroupPath), Search::Down);
        assert_eq!(cache.known(A).map(|k| k.names.known_by), Some(KnownBy::Cri));
    }
}
