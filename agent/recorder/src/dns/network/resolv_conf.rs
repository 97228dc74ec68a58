//! A process's `/etc/resolv.conf`, as it sees it: read inside its root, which may be hostile.
//!
//! No symlink leads out of the root, nothing but a regular file of at most 64 KiB is opened, and who waits for a file (one
//! on a file system that the container serves itself may never answer) is a thread that nobody waits for.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use procfs::FromRead;

use crate::dns::lookups::ResolvConf;
use podopsy_stacks::symbolize::open;

/// glibc reads any length; nobody needs more.
const BYTES_MAX: u64 = 64 << 10;
/// How long a file is believed. Go looks every five seconds, too.
const FRESH: Duration = Duration::from_secs(5);
/// What could not be read is tried again sooner: the process may have been too short, and others follow.
const RETRY: Duration = Duration::from_millis(200);
const ENTRIES_MAX: usize = 1024;
/// Threads that read at the same time.
const READERS_MAX: usize = 8;
/// Processes of a container that are tried.
const TRIES_MAX: usize = 4;
/// /proc/PID/stat counts in ticks of 10 ms (USER_HZ).
const TICK_NS: u64 = 10_000_000;

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetworkView {
    /// All of a container's processes have one.
    Container { cgroup: u64 },
    /// A process of the host, which may have its own mount namespace.
    Process { pid: u32, start_ns: u64 },
}

#[derive(Debug)]
struct Entry {
    resolv: Option<Arc<ResolvConf>>,
    /// None: it is being read.
    looked: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<NetworkView, Entry>,
    /// In the order in which they came.
    order: VecDeque<NetworkView>,
    readers: usize,
}

/// What was read, by whose it is.
#[derive(Clone, Debug)]
pub struct ResolvConfCache {
    proc_root: PathBuf,
    state: Arc<Mutex<State>>,
}

impl ResolvConfCache {
    pub fn new(proc_root: &Path) -> ResolvConfCache {
        ResolvConfCache { proc_root: proc_root.to_owned(), state: Arc::default() }
    }

    /// What is known now. Never waits: what is missing or old is read meanwhile, by way of this process, or one of the
    /// others of its container (`others`, asked only when it is needed).
    pub fn get(
        &self,
        of: NetworkView,
        pid: u32,
        start_ns: u64,
        others: impl FnOnce() -> Vec<u32>,
    ) -> Option<Arc<ResolvConf>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.entries.get(&of);
        let resolv = known.and_then(|entry| entry.resolv.clone());
        let is_fresh = known.is_some_and(|entry| {
            let keep = if resolv.is_some() { FRESH } else { RETRY };
            entry.looked.is_none_or(|at| at.elapsed() < keep)
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
            state.order.push_back(of);
        }
        state.entries.insert(of, Entry { resolv: resolv.clone(), looked: None });
        state.readers += 1;
        drop(state);
        let mut pids = vec![(pid, Some(start_ns))];
        pids.extend(
            others().into_iter().filter(|&other| other != pid).map(|pid| (pid, None)).take(TRIES_MAX),
        );
        let cache = self.clone();
        let reader = std::thread::Builder::new().name("resolv.conf".into());
        if reader.spawn(move || cache.read(of, &pids)).is_err() {
            self.put(of, None);
        }
        resolv
    }

    fn read(&self, of: NetworkView, pids: &[(u32, Option<u64>)]) {
        let found = pids.iter().find_map(|&(pid, start_ns)| read(&self.proc_root, pid, start_ns).ok());
        self.put(of, found);
    }

    fn put(&self, of: NetworkView, found: Option<ResolvConf>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.readers -= 1;
        if let Some(entry) = state.entries.get_mut(&of) {
            entry.looked = Some(Instant::now());
            // A process that has gone takes nothing away from what was known.
            if let Some(found) = found {
                entry.resolv = Some(Arc::new(found));
            }
        }
    }
}

/// Reads the file by way of a process; with `start_ns`, only if it still is that process.
pub fn read(proc_root: &Path, pid: u32, start_ns: Option<u64>) -> Result<ResolvConf, &'static str> {
    let dir = proc_root.join(pid.to_string());
    let root = open::name(&dir.join("root")).map_err(|_| "process_gone")?;
    if let Some(start_ns) = start_ns.filter(|&start| start > 0) {
        let stat = procfs::process::Stat::from_file(dir.join("stat")).map_err(|_| "process_gone")?;
        if stat.starttime.abs_diff(start_ns / TICK_NS) > 1 {
            return Err("process_gone");
        }
    }
    read_inside(&root)
}

fn read_inside(root: &File) -> Result<ResolvConf, &'static str> {
    let named = open::inside(root, b"/etc/resolv.conf").map_err(|_| "file_out_of_reach")?;
    let file = open::readable(&named)?;
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
        let result = read_inside(&open::name(dir.path()).unwrap());
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
        // Would block for ever if it were opened.
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
    fn a_symlink_stays_inside() {
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
        let of = NetworkView::Container { cgroup: 7 };
        // The asker is gone: another of its container does.
        let get = || cache.get(of, u32::MAX, 1, || vec![std::process::id()]);
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
    fn another_process_with_the_same_pid_is_not_asked() {
        assert_eq!(read(Path::new("/proc"), std::process::id(), Some(1)), Err("process_gone"));
        assert_eq!(read(Path::new("/proc"), u32::MAX, None), Err("process_gone"));
    }
}
