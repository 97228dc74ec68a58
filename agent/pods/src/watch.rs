//! Notices cgroups as they come and go: inotify on every directory, scans where that does not reach.
//!
//! Only directories matter here. Must not know: what their names mean, who answers for them.
//! The races: a watch is set before its directory is read, so that a child made in between is seen twice
//! rather than never; an event is only a hint to look again, so that old ones do no harm.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio_stream::StreamExt;

use super::cache::Inserted;
use super::names;
use super::room::Room;

/// Watches at most; and never more than half of what the kernel grants to root, since the kubelet and
/// the runtime live on the same account.
const WATCHES_MAX: usize = 32_768;
/// How often the tree is read where inotify does not reach all of it.
const RESCAN_EVERY: Duration = Duration::from_secs(1);
/// How often the dead are pruned and open questions asked again.
const CLEAN_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Watch {
    state: Mutex<State>,
    limit: usize,
    refused: AtomicU64,
    overflows: AtomicU64,
    missed: AtomicU64,
    /// Some directory has no watch: read the tree from time to time.
    degraded: AtomicBool,
}

#[derive(Default)]
struct State {
    watches: Option<Watches>,
    paths: HashMap<WatchDescriptor, PathBuf>,
    /// The same from the other side.
    at: HashMap<PathBuf, WatchDescriptor>,
}

impl State {
    /// The kernel (6.18) does not end a watch of cgroupfs with its directory: one for each container that ever ran would
    /// stay, with the inode, until none is left to be had.
    fn end(&mut self, wd: WatchDescriptor) {
        self.paths.remove(&wd);
        if let Some(watches) = &mut self.watches {
            // Where the kernel was first it is an error, and done.
            let _ = watches.remove(wd);
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} watches", self.paths.len())
    }
}

impl Watch {
    pub fn new(proc_root: &Path, limit: Option<usize>) -> Watch {
        let granted = std::fs::read_to_string(proc_root.join("sys/fs/inotify/max_user_watches"));
        let granted = granted.ok().and_then(|text| text.trim().parse::<usize>().ok());
        let limit = limit.unwrap_or_else(|| granted.map_or(WATCHES_MAX, |n| WATCHES_MAX.min(n / 2)));
        Watch {
            state: Mutex::default(),
            limit,
            refused: AtomicU64::new(0),
            overflows: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            degraded: AtomicBool::new(false),
        }
    }

    /// Directories that got no watch.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Times that the kernel's queue was full.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Relaxed)
    }

    /// Directories that were gone before they could be read.
    pub fn missed(&self) -> u64 {
        self.missed.load(Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the directory is watched now.
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
                // Gone and made again, and only the second was noticed.
                if let Some(old) = state.at.insert(path.to_owned(), wd.clone()).filter(|old| *old != wd) {
                    state.end(old);
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

impl Watch {
    /// The directory is gone.
    fn end(&self, path: &Path) {
        let mut state = self.lock();
        if let Some(wd) = state.at.remove(path) {
            state.end(wd);
        }
    }

    /// The kernel has ended it.
    fn ended(&self, wd: &WatchDescriptor) {
        let mut state = self.lock();
        if let Some(path) = state.paths.remove(wd)
            && state.at.get(&path) == Some(wd)
        {
            state.at.remove(&path);
        }
    }
}

impl Room {
    /// Takes in a directory and all below it.
    pub fn observe(self: &Arc<Room>, from: &Path) {
        self.hierarchy.walk(from, &mut |path| self.observe_one(path, &mut HashSet::new()));
    }

    /// False: gone, or more than we keep; nothing below it is looked at.
    fn observe_one(self: &Arc<Room>, path: &Path, seen: &mut HashSet<u64>) -> bool {
        let Some(id) = self.hierarchy.id(path) else { return false };
        seen.insert(id);
        let inserted = self.cache().insert(id, path, &self.hierarchy.absolute(path), Instant::now());
        match inserted {
            Inserted::Refused => return false,
            Inserted::Old { watched: true } => return true,
            // Refused before: counted once, and not asked for again at every scan.
            Inserted::Old { watched: false } if self.watch.degraded.load(Relaxed) => return true,
            Inserted::NewContainer(key) => names::spawn(self, key),
            Inserted::Old { .. } | Inserted::New => {}
        }
        if self.watch.add(&self.hierarchy.join(path), path) {
            self.cache().set_watched(id);
        }
        true
    }

    /// Reads the whole tree: what is new, and what is gone without an event.
    pub fn scan_all(self: &Arc<Room>) {
        let mut seen = HashSet::new();
        self.hierarchy.walk(Path::new(""), &mut |path| self.observe_one(path, &mut seen));
        let unseen: Vec<(u64, PathBuf)> = {
            let cache = self.cache();
            cache.live().filter(|(id, _)| !seen.contains(id)).map(|(id, e)| (id, e.path.clone())).collect()
        };
        for (id, path) in unseen {
            // It may have been made behind the scan's back.
            let now = self.hierarchy.id(&path);
            if now != Some(id) {
                self.cache().bury(id, Instant::now());
            }
            // Another directory of that name has a watch of its own.
            if now.is_none() {
                self.watch.end(&path);
            }
        }
    }

    fn gone(&self, path: &Path) {
        let id = self.cache().id_at(path);
        if let Some(id) = id
            && self.hierarchy.id(path) != Some(id)
        {
            self.cache().bury(id, Instant::now());
            self.watch.end(path);
        }
    }

    /// Starts inotify; from here on [`Room::observe`] sets watches. None: no inotify to be had.
    pub fn open_watch(&self) -> Option<Inotify> {
        match Inotify::init() {
            Ok(inotify) => {
                self.watch.lock().watches = Some(inotify.watches());
                Some(inotify)
            }
            Err(error) => {
                tracing::warn!(%error, "no inotify: cgroups are found by reading the tree every second");
                self.watch.degraded.store(true, Relaxed);
                None
            }
        }
    }
}

/// Reads events until the room closes.
pub(super) async fn follow(room: Arc<Room>, inotify: Inotify) {
    let lost = |error: std::io::Error| {
        tracing::warn!(%error, "inotify cannot be read: cgroups are found by reading the tree every second");
        room.watch.degraded.store(true, Relaxed);
    };
    let mut events = match inotify.into_event_stream(vec![0; 64 * 1024]) {
        Ok(events) => events,
        Err(error) => return lost(error),
    };
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => return lost(error),
        };
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            room.watch.overflows.fetch_add(1, Relaxed);
            room.rescan().await;
            continue;
        }
        if event.mask.contains(EventMask::IGNORED) {
            room.watch.ended(&event.wd);
            continue;
        }
        let Some(name) = event.name.filter(|_| event.mask.contains(EventMask::ISDIR)) else { continue };
        let Some(parent) = room.watch.lock().paths.get(&event.wd).cloned() else { continue };
        let path = parent.join(name);
        if event.mask.contains(EventMask::CREATE) {
            if room.hierarchy.id(&path).is_none() {
                room.watch.missed.fetch_add(1, Relaxed);
            }
            room.observe(&path);
        } else if event.mask.contains(EventMask::DELETE) {
            room.gone(&path);
        }
    }
}

/// The slow rounds: scans where watches are missing, pruning, open questions.
pub(super) async fn maintain(room: Arc<Room>) {
    let mut tick = tokio::time::interval(RESCAN_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut cleaned = Instant::now();
    loop {
        tick.tick().await;
        if room.watch.degraded.load(Relaxed) {
            room.rescan().await;
        }
        if cleaned.elapsed() >= CLEAN_EVERY {
            cleaned = Instant::now();
            room.cache().prune(cleaned);
        }
        names::retry_down(&room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_ends_with_its_directory_even_where_the_kernel_keeps_it() {
        let root = tempfile::tempdir().unwrap();
        let inotify = Inotify::init().unwrap();
        let watch = Watch::new(Path::new("/proc"), None);
        watch.lock().watches = Some(inotify.watches());
        let count = |watch: &Watch| {
            let state = watch.lock();
            (state.paths.len(), state.at.len())
        };
        for name in ["a", "b"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            assert!(watch.add(&root.path().join(name), Path::new(name)));
        }
        // The directories stay: nothing comes from the kernel.
        watch.end(Path::new("a"));
        assert_eq!(count(&watch), (1, 1));
        watch.end(Path::new("a"));
        assert_eq!(count(&watch), (1, 1), "it had none any more");
        // Another directory in the place of the second, of which nobody heard.
        assert!(watch.add(root.path(), Path::new("b")));
        assert_eq!(count(&watch), (1, 1));
        let wd = watch.lock().at[Path::new("b")].clone();
        watch.ended(&wd);
        assert_eq!(count(&watch), (0, 0));
    }
}
