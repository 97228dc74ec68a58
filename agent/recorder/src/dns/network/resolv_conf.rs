//! Reads a process's `/etc/resolv.conf` inside its root, which may be hostile.
//!
//! No symlink leads out of the root, and only a regular file of at most 64 KiB is read. A file on a file system that
//! the container itself serves may never answer. Therefore an opener reads the file (`podopsy_opener`), and no caller waits
//! for it: a separate thread does, for a bounded time.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use procfs::FromRead;

use crate::dns::lookups::ResolvConf;
use podopsy_opener::{Openers, Target};
use podopsy_stacks::symbolize::maps::Mounts;
use podopsy_stacks::tenant;
use podopsy_system::sync::lock;

/// The largest file that is read. glibc reads any length, but no sensible file is larger.
const BYTES_MAX: u64 = 64 << 10;
/// After this time a file is read again. Go does the same every five seconds.
const FRESH: Duration = Duration::from_secs(5);
/// A file that could not be read is tried again sooner: the process may have ended too early, and others follow.
const RETRY: Duration = Duration::from_millis(200);
const ENTRIES_MAX: usize = 1024;
/// Threads that read at the same time.
const READERS_MAX: usize = 8;
/// Further processes of a container through which the file is tried.
const TRIES_MAX: usize = 4;
/// A tick of `/proc/PID/stat`: 10 ms (USER_HZ).
const TICK_NS: u64 = 10_000_000;

/// The processes that share one view of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetworkView {
    /// The processes of a container.
    Container { cgroup: u64 },
    /// One host process: it may have its own mount namespace.
    Process { pid: u32, start_ns: u64 },
}

#[derive(Debug)]
struct CacheEntry {
    resolv: Option<Arc<ResolvConf>>,
    /// None: the file is being read.
    read_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct CacheState {
    entries: HashMap<NetworkView, CacheEntry>,
    /// In the order of insertion.
    order: VecDeque<NetworkView>,
    /// Threads that are reading.
    readers: usize,
}

/// The files that were read, by view.
#[derive(Clone, Debug)]
pub struct ResolvConfCache {
    proc_root: PathBuf,
    openers: Openers,
    state: Arc<Mutex<CacheState>>,
}

impl ResolvConfCache {
    pub fn new(proc_root: &Path, openers: &Openers) -> ResolvConfCache {
        ResolvConfCache { proc_root: proc_root.to_owned(), openers: openers.clone(), state: Arc::default() }
    }

    /// Returns what is known now and never waits. A file that is missing or old is read in the background: through this
    /// process, or through one of the others of its container (`others`, called only if they are needed).
    pub fn get(
        &self,
        view: NetworkView,
        pid: u32,
        start_ns: u64,
        others: impl FnOnce() -> Vec<u32>,
    ) -> Option<Arc<ResolvConf>> {
        let mut state = lock(&self.state);
        let known = state.entries.get(&view);
        let resolv = known.and_then(|entry| entry.resolv.clone());
        let is_fresh = known.is_some_and(|entry| {
            let max_age = if resolv.is_some() { FRESH } else { RETRY };
            entry.read_at.is_none_or(|at| at.elapsed() < max_age)
        });
        if is_fresh || state.readers >= READERS_MAX {
            return resolv;
        }
        if known.is_none() {
            if state.order.len() >= ENTRIES_MAX
                && let Some(oldest) = state.order.pop_front()
            {
                state.entries.remove(&oldest);
            }
            state.order.push_back(view);
        }
        state.entries.insert(view, CacheEntry { resolv: resolv.clone(), read_at: None });
        state.readers += 1;
        drop(state);
        let mut pids = vec![(pid, Some(start_ns))];
        pids.extend(
            others().into_iter().filter(|&other| other != pid).map(|pid| (pid, None)).take(TRIES_MAX),
        );
        let cache = self.clone();
        let reader = std::thread::Builder::new().name("resolv.conf".into());
        if reader.spawn(move || cache.read(view, &pids)).is_err() {
            self.insert(view, None);
        }
        resolv
    }

    fn read(&self, view: NetworkView, pids: &[(u32, Option<u64>)]) {
        let read =
            |&(pid, start_ns): &(u32, Option<u64>)| read(&self.proc_root, &self.openers, pid, start_ns);
        let found = pids.iter().find_map(read);
        self.insert(view, found);
    }

    fn insert(&self, view: NetworkView, found: Option<ResolvConf>) {
        let mut state = lock(&self.state);
        state.readers -= 1;
        if let Some(entry) = state.entries.get_mut(&view) {
            entry.read_at = Some(Instant::now());
            // If the process is gone, what was read before stays valid.
            if let Some(found) = found {
                entry.resolv = Some(Arc::new(found));
            }
        }
    }
}

/// Reads the file through a process. With `start_ns`, only if the pid still belongs to the process with this start
/// time.
pub fn read(proc_root: &Path, openers: &Openers, pid: u32, start_ns: Option<u64>) -> Option<ResolvConf> {
    let target = Target { tenant: tenant::of_process(pid), pid, may_hang: Mounts::read(pid).has_remote() };
    let content = openers.content_in_root(target, b"/etc/resolv.conf", BYTES_MAX).ok()?;
    // Only now: if the pid belongs to the process after the file was read, it did so before.
    if let Some(start_ns) = start_ns.filter(|&start| start > 0) {
        let stat = procfs::process::Stat::from_file(proc_root.join(format!("{pid}/stat"))).ok()?;
        if stat.starttime.abs_diff(start_ns / TICK_NS) > 1 {
            return None;
        }
    }
    Some(ResolvConf::parse(&content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_reads_once_and_never_waits() {
        let openers = Openers::in_threads();
        let cache = ResolvConfCache::new(Path::new("/proc"), &openers);
        let view = NetworkView::Container { cgroup: 7 };
        // The asker is gone: the file is read through another process of its container.
        let get = || cache.get(view, u32::MAX, 1, || vec![std::process::id()]);
        assert_eq!(get(), None);
        let end = Instant::now() + Duration::from_secs(20);
        while get().is_none() {
            let own = read(Path::new("/proc"), &openers, std::process::id(), None);
            assert!(Instant::now() < end || own.is_none());
            if Instant::now() > end {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for cgroup in 0..2 * ENTRIES_MAX as u64 {
            cache.get(NetworkView::Container { cgroup }, u32::MAX, 1, Vec::new);
        }
        assert!(cache.state.lock().unwrap().entries.len() <= ENTRIES_MAX);
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_read() {
        let openers = Openers::in_threads();
        assert!(read(Path::new("/proc"), &openers, std::process::id(), Some(1)).is_none());
        assert!(read(Path::new("/proc"), &openers, u32::MAX, None).is_none());
    }
}
