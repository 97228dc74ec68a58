//! Finds cgroups as they are created and removed: inotify on every directory, and scans where that does not suffice.
//!
//! This module handles directories only. It must not depend on the meaning of their names or on the source of pod names.
//!
//! Races: a watch is set before its directory is read, so that a child created in between is seen twice rather than never.
//! An event only causes another look at the directory, so an outdated event does no harm.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio_stream::StreamExt;

use super::cache::InsertOutcome;
use super::names;
use super::state::PodsState;
use podopsy_system::sync::lock;

/// The largest number of watches. Also, never more than half of root's limit is used, because the kubelet and the runtime
/// share it.
const WATCHES_MAX: usize = 32_768;
/// How often the tree is read while some directory has no watch.
const RESCAN_EVERY: Duration = Duration::from_secs(1);
/// How often expired dead cgroups are dropped.
const CLEAN_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct CgroupWatch {
    state: Mutex<WatchState>,
    limit: usize,
    refused: AtomicU64,
    overflows: AtomicU64,
    missed: AtomicU64,
    /// Some directory has no watch, so the tree is read at intervals.
    degraded: AtomicBool,
}

#[derive(Default)]
struct WatchState {
    watches: Option<Watches>,
    paths: HashMap<WatchDescriptor, PathBuf>,
    /// The reverse of `paths`.
    at: HashMap<PathBuf, WatchDescriptor>,
}

impl WatchState {
    /// Removes a watch. The kernel (6.18) does not end a watch in cgroupfs when the directory is removed: without this, one
    /// watch and its inode would remain for each container that ever ran, until the limit is reached.
    fn remove(&mut self, wd: WatchDescriptor) {
        self.paths.remove(&wd);
        if let Some(watches) = &mut self.watches {
            // This fails if the kernel has removed the watch already.
            let _ = watches.remove(wd);
        }
    }
}

impl std::fmt::Debug for WatchState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} watches", self.paths.len())
    }
}

impl CgroupWatch {
    pub fn new(proc_root: &Path, limit: Option<usize>) -> CgroupWatch {
        let granted = std::fs::read_to_string(proc_root.join("sys/fs/inotify/max_user_watches"));
        let granted = granted.ok().and_then(|text| text.trim().parse::<usize>().ok());
        let limit = limit.unwrap_or_else(|| granted.map_or(WATCHES_MAX, |n| WATCHES_MAX.min(n / 2)));
        CgroupWatch {
            state: Mutex::default(),
            limit,
            refused: AtomicU64::new(0),
            overflows: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            degraded: AtomicBool::new(false),
        }
    }

    /// Directories for which no watch could be set.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// How often the kernel's queue overflowed.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Relaxed)
    }

    /// Directories that were gone before they could be read.
    pub fn missed(&self) -> u64 {
        self.missed.load(Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, WatchState> {
        lock(&self.state)
    }

    /// Watches a directory. Returns whether it is watched now.
    fn add(&self, dir: &Path, path: &Path) -> bool {
        let mut state = self.lock();
        let full = state.paths.len() >= self.limit;
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR | WatchMask::DONT_FOLLOW;
        let added = match &mut state.watches {
            Some(watches) if !full => watches.add(dir, mask),
            _ => Err(std::io::Error::from(std::io::ErrorKind::StorageFull)),
        };
        match added {
            Ok(wd) => {
                state.paths.insert(wd.clone(), path.to_owned());
                // The directory was removed and created again, and the removal was not noticed.
                if let Some(old) = state.at.insert(path.to_owned(), wd.clone()).filter(|old| *old != wd) {
                    state.remove(old);
                }
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(_) => {
                self.refused.fetch_add(1, Relaxed);
                self.degraded.store(true, Relaxed);
                false
            }
        }
    }
}

impl CgroupWatch {
    /// Ends the watch of a directory that is gone.
    fn end(&self, path: &Path) {
        let mut state = self.lock();
        if let Some(wd) = state.at.remove(path) {
            state.remove(wd);
        }
    }

    /// Forgets a watch that the kernel has ended.
    fn forget(&self, wd: &WatchDescriptor) {
        let mut state = self.lock();
        if let Some(path) = state.paths.remove(wd)
            && state.at.get(&path) == Some(wd)
        {
            state.at.remove(&path);
        }
    }
}

impl PodsState {
    /// Adds a directory and all directories below it.
    pub fn observe(self: &Arc<PodsState>, from: &Path) {
        self.hierarchy.walk(from, &mut |path| self.observe_one(path, &mut HashSet::new()));
    }

    /// Adds one directory. Returns false if it is gone or exceeds a bound; what is below it is then skipped.
    fn observe_one(self: &Arc<PodsState>, path: &Path, seen: &mut HashSet<u64>) -> bool {
        let Some(id) = self.hierarchy.id(path) else { return false };
        seen.insert(id);
        let inserted = self.cache().insert(id, path, &self.hierarchy.absolute(path), Instant::now());
        match inserted {
            InsertOutcome::Refused => return false,
            InsertOutcome::Old { watched: true } => return true,
            // A watch was refused before. That was counted once; it is not requested again at every scan.
            InsertOutcome::Old { watched: false } if self.watch.degraded.load(Relaxed) => return true,
            InsertOutcome::NewContainer(key) => names::spawn(self, key),
            InsertOutcome::Old { .. } | InsertOutcome::New => {}
        }
        if self.watch.add(&self.hierarchy.join(path), path) {
            self.cache().set_watched(id);
        }
        true
    }

    /// Reads the whole tree: adds new directories, and marks those as dead that are gone without an event.
    pub fn scan_all(self: &Arc<PodsState>) {
        let mut seen = HashSet::new();
        self.hierarchy.walk(Path::new(""), &mut |path| self.observe_one(path, &mut seen));
        let unseen: Vec<(u64, PathBuf)> = {
            let cache = self.cache();
            cache.live().filter(|(id, _)| !seen.contains(id)).map(|(id, e)| (id, e.path.clone())).collect()
        };
        for (id, path) in unseen {
            // It may have been created after the scan had passed.
            let now = self.hierarchy.id(&path);
            if now != Some(id) {
                self.cache().bury(id, Instant::now());
            }
            // A new directory at the same path has its own watch, which stays.
            if now.is_none() {
                self.watch.end(&path);
            }
        }
    }

    /// Marks the cgroup at a path as dead, if it is really gone.
    fn remove(&self, path: &Path) {
        let id = self.cache().id_at(path);
        if let Some(id) = id
            && self.hierarchy.id(path) != Some(id)
        {
            self.cache().bury(id, Instant::now());
            self.watch.end(path);
        }
    }

    /// Starts inotify; from here on [`PodsState::observe`] sets watches. None: inotify is not available.
    pub fn open_watch(&self) -> Option<Inotify> {
        match Inotify::init() {
            Ok(inotify) => {
                self.watch.lock().watches = Some(inotify.watches());
                Some(inotify)
            }
            Err(error) => {
                tracing::warn!(%error, "could not start inotify: cgroups are found by reading the tree every second");
                self.watch.degraded.store(true, Relaxed);
                None
            }
        }
    }
}

/// Reads inotify events until the task is aborted.
pub(super) async fn follow(state: Arc<PodsState>, inotify: Inotify) {
    let give_up = |error: std::io::Error| {
        tracing::warn!(%error, "could not read inotify: cgroups are found by reading the tree every second");
        state.watch.degraded.store(true, Relaxed);
    };
    let mut events = match inotify.into_event_stream(vec![0; 64 * 1024]) {
        Ok(events) => events,
        Err(error) => return give_up(error),
    };
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => return give_up(error),
        };
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            state.watch.overflows.fetch_add(1, Relaxed);
            state.rescan().await;
            continue;
        }
        if event.mask.contains(EventMask::IGNORED) {
            state.watch.forget(&event.wd);
            continue;
        }
        let Some(name) = event.name.filter(|_| event.mask.contains(EventMask::ISDIR)) else { continue };
        let Some(parent) = state.watch.lock().paths.get(&event.wd).cloned() else { continue };
        let path = parent.join(name);
        if event.mask.contains(EventMask::CREATE) {
            if state.hierarchy.id(&path).is_none() {
                state.watch.missed.fetch_add(1, Relaxed);
            }
            state.observe(&path);
        } else if event.mask.contains(EventMask::DELETE) {
            state.remove(&path);
        }
    }
}

/// Periodic work: scans while watches are missing, dropping expired dead cgroups, repeating unanswered searches.
pub(super) async fn maintain(state: Arc<PodsState>) {
    let mut tick = tokio::time::interval(RESCAN_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut cleaned = Instant::now();
    loop {
        tick.tick().await;
        if state.watch.degraded.load(Relaxed) {
            state.rescan().await;
        }
        if cleaned.elapsed() >= CLEAN_EVERY {
            cleaned = Instant::now();
            state.cache().prune(cleaned);
        }
        names::retry_down(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_ends_with_its_directory_even_if_the_kernel_keeps_it() {
        let root = tempfile::tempdir().unwrap();
        let inotify = Inotify::init().unwrap();
        let watch = CgroupWatch::new(Path::new("/proc"), None);
        watch.lock().watches = Some(inotify.watches());
        let count = |watch: &CgroupWatch| {
            let state = watch.lock();
            (state.paths.len(), state.at.len())
        };
        for name in ["a", "b"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            assert!(watch.add(&root.path().join(name), Path::new(name)));
        }
        // The directories still exist, so no event comes from the kernel.
        watch.end(Path::new("a"));
        assert_eq!(count(&watch), (1, 1));
        watch.end(Path::new("a"));
        assert_eq!(count(&watch), (1, 1), "it had no watch any more");
        // Another directory replaces the second one, without an event.
        assert!(watch.add(root.path(), Path::new("b")));
        assert_eq!(count(&watch), (1, 1));
        let wd = watch.lock().at[Path::new("b")].clone();
        watch.forget(&wd);
        assert_eq!(count(&watch), (0, 0));
    }
}
