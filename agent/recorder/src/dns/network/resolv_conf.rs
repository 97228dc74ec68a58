//! Reads a process's `/etc/resolv.conf` inside its root, which may be hostile.
//!
//! No symlink leads out of the root, and only a regular file of at most 64 KiB is read. A file on a file system that
//! the container itself serves may never answer. Therefore a separate thread reads the file, and no caller waits for
//! it.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use procfs::FromRead;

use crate::dns::lookups::ResolvConf;
use podopsy_stacks::StackLossReason;
use podopsy_stacks::symbolize::open;
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
    state: Arc<Mutex<CacheState>>,
}

impl ResolvConfCache {
    pub fn new(proc_root: &Path) -> ResolvConfCache {
        ResolvConfCache { proc_root: proc_root.to_owned(), state: Arc::default() }
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
        let found = pids.iter().find_map(|&(pid, start_ns)| read(&self.proc_root, pid, start_ns).ok());
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
///
/// An error is the reason as a short name: `process_gone`, `file_out_of_reach`, `file_not_regular`, `file_too_large`.
pub fn read(proc_root: &Path, pid: u32, start_ns: Option<u64>) -> Result<ResolvConf, &'static str> {
    let dir = proc_root.join(pid.to_string());
    let root = open::reference(&dir.join("root")).map_err(|_| "process_gone")?;
    if let Some(start_ns) = start_ns.filter(|&start| start > 0) {
        let stat = procfs::process::Stat::from_file(dir.join("stat")).map_err(|_| "process_gone")?;
        if stat.starttime.abs_diff(start_ns / TICK_NS) > 1 {
            return Err("process_gone");
        }
    }
    read_inside(&root)
}

fn read_inside(root: &File) -> Result<ResolvConf, &'static str> {
    let path = open::reference_inside(root, b"/etc/resolv.conf").map_err(|_| "file_out_of_reach")?;
    let file = open::regular_file(&path).map_err(StackLossReason::as_str)?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|_| "file_out_of_reach")?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err("file_too_large");
    }
    Ok(ResolvConf::parse(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(make: impl FnOnce(&Path)) -> (tempfile::TempDir, Result<ResolvConf, &'static str>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        make(&dir.path().join("etc/resolv.conf"));
        let result = read_inside(&open::reference(dir.path()).unwrap());
        (dir, result)
    }

    #[test]
    fn hostile_files_are_refused_or_read_within_bounds() {
        let refused = |make: &dyn Fn(&Path)| container(make).1.unwrap_err();
        assert_eq!(refused(&|_| {}), "file_out_of_reach");
        assert_eq!(
            refused(&|path| std::os::unix::fs::symlink("/etc/hostname", path).unwrap()),
            "file_out_of_reach"
        );
        assert_eq!(
            refused(&|path| std::os::unix::fs::symlink("../../../../etc/hostname", path).unwrap()),
            "file_out_of_reach"
        );
        assert_eq!(
            refused(&|path| std::os::unix::fs::symlink("/proc/self/fd/0", path).unwrap()),
            "file_out_of_reach"
        );
        // Opening a FIFO would block forever.
        assert_eq!(
            refused(&|path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap()),
            "file_not_regular"
        );
        assert_eq!(refused(&|path| std::fs::create_dir(path).unwrap()), "file_not_regular");
        assert_eq!(
            refused(&|path| std::fs::write(path, "search x\n".repeat(100_000)).unwrap()),
            "file_too_large"
        );
        assert_eq!(refused(&|path| File::create(path).unwrap().set_len(1 << 40).unwrap()), "file_too_large");
        let garbage: Vec<u8> = (0..60_000u32).map(|i| (i.wrapping_mul(7919) >> 3) as u8).collect();
        assert!(container(|path| std::fs::write(path, garbage).unwrap()).1.is_ok());
    }

    #[test]
    fn a_symlink_is_resolved_inside_the_root() {
        let (_dir, read) = container(|path| {
            std::os::unix::fs::symlink("/run/resolv.conf", path).unwrap();
            let run = path.parent().unwrap().parent().unwrap().join("run");
            std::fs::create_dir(&run).unwrap();
            std::fs::write(run.join("resolv.conf"), "search inside.test\n").unwrap();
        });
        assert_eq!(read.unwrap().search, ["inside.test"]);
    }

    #[test]
    fn the_cache_reads_once_and_never_waits() {
        let cache = ResolvConfCache::new(Path::new("/proc"));
        let view = NetworkView::Container { cgroup: 7 };
        // The asker is gone: the file is read through another process of its container.
        let get = || cache.get(view, u32::MAX, 1, || vec![std::process::id()]);
        assert_eq!(get(), None);
        let end = Instant::now() + Duration::from_secs(20);
        while get().is_none() {
            assert!(Instant::now() < end || read(Path::new("/proc"), std::process::id(), None).is_err());
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
        assert_eq!(read(Path::new("/proc"), std::process::id(), Some(1)), Err("process_gone"));
        assert_eq!(read(Path::new("/proc"), u32::MAX, None), Err("process_gone"));
    }
}
