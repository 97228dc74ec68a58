//! Finds the process behind a socket: address → /proc/net → inode number → the process that has this file open.
//!
//! The search runs while the query is on its way. A socket that is closed at once is gone by then, and the open files
//! of another user's process cannot be read without CAP_SYS_PTRACE. Such a query is counted as one with an unknown
//! asker; no guess is made.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podopsy_wire::Task;
use procfs::FromRead;

use super::parse::{Endpoint, Flow, TCP};

/// /proc/PID/stat counts in ticks of 10 ms (USER_HZ).
const TICK_NS: u64 = 10_000_000;
/// Processes that were found lately, and are searched first.
const RECENT_MAX: usize = 16;
/// At most one part in this many of all time is spent on the search for processes.
const TIME_SHARE: u32 = 4;
/// Time that may be spent at once.
const BURST: Duration = Duration::from_millis(200);
/// Open files of a process that are searched: it may have a million.
const FILES_MAX: usize = 65_536;
/// Lines of a table in /proc/net that are read.
const SOCKETS_MAX: usize = 65_536;

/// Most sockets in the cache.
const CACHE_MAX: usize = 4096;

/// The open file of a socket. While it is still that socket, the client's address belongs to the process.
#[derive(Debug)]
struct CachedSocket {
    file: PathBuf,
    inode: u64,
    task: Task,
}

/// Finds processes in one /proc.
#[derive(Debug)]
pub struct AskerFinder {
    proc_root: PathBuf,
    recent: VecDeque<u32>,
    /// By the client's address and the protocol.
    cache: HashMap<(Endpoint, u32), CachedSocket>,
    /// Time that may still be spent, as of `updated`.
    left: Duration,
    updated: Instant,
}

impl AskerFinder {
    pub fn new(proc_root: &Path) -> AskerFinder {
        AskerFinder {
            proc_root: proc_root.to_owned(),
            recent: VecDeque::new(),
            cache: HashMap::new(),
            left: BURST,
            updated: Instant::now(),
        }
    }

    /// The process that has the client's socket; [`Task::UNKNOWN`] if none is found. The cgroup is left 0.
    pub fn find(&mut self, flow: &Flow) -> Task {
        let key = (flow.client, flow.protocol);
        if let Some(cached) = self.cache.get(&key) {
            if is_socket(&cached.file, cached.inode) {
                return cached.task;
            }
            self.cache.remove(&key);
        }
        let begun = Instant::now();
        self.left = (self.left + begun.duration_since(self.updated) / TIME_SHARE).min(BURST);
        self.updated = begun;
        if self.left.is_zero() {
            return Task::UNKNOWN;
        }
        let deadline = begun + self.left;
        let found = self.inode(flow).and_then(|inode| Some((inode, self.holder(inode, deadline)?)));
        self.left = self.left.saturating_sub(begun.elapsed());
        let Some((inode, (pid, file))) = found else { return Task::UNKNOWN };
        self.recent.retain(|&other| other != pid);
        self.recent.push_front(pid);
        self.recent.truncate(RECENT_MAX);
        let task = self.task(pid);
        if self.cache.len() >= CACHE_MAX {
            self.cache.clear();
        }
        self.cache.insert(key, CachedSocket { file, inode, task });
        task
    }

    /// The inode number of the socket that is bound to the client's address, or to its port on every address.
    fn inode(&self, flow: &Flow) -> Option<u64> {
        let protocol = if flow.protocol == TCP { "tcp" } else { "udp" };
        let is_ipv4 = flow.client.address.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        // A socket of IPv6 may also use IPv4.
        let tables: &[&str] = if is_ipv4 { &["", "6"] } else { &["6"] };
        tables.iter().find_map(|version| {
            // The table of the thread's network namespace, because the packet socket was opened in that.
            let file = self.proc_root.join(format!("thread-self/net/{protocol}{version}"));
            let lines = BufReader::new(fs::File::open(file).ok()?).lines().skip(1).take(SOCKETS_MAX);
            let mut any = None;
            for line in lines {
                let Some(socket) = parse_socket(&line.ok()?) else { continue };
                if socket.port != flow.client.port {
                    continue;
                }
                if socket.address == flow.client.address {
                    return Some(socket.inode);
                }
                if socket.is_any && any.is_none() {
                    any = Some(socket.inode);
                }
            }
            any
        })
    }

    /// The process that has the socket open, and the path of the open file. Processes that were found lately are
    /// searched first; the others only until the deadline.
    fn holder(&self, inode: u64, deadline: Instant) -> Option<(u32, PathBuf)> {
        let holds = |pid: u32| {
            let files = fs::read_dir(self.proc_root.join(format!("{pid}/fd"))).ok()?;
            let mut files = files.flatten().take(FILES_MAX).map(|file| file.path());
            Some((pid, files.find(|file| is_socket(file, inode))?))
        };
        if let Some(found) = self.recent.iter().find_map(|&pid| holds(pid)) {
            return Some(found);
        }
        let pids = fs::read_dir(&self.proc_root).ok()?.flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.take_while(|_| Instant::now() < deadline).find_map(holds)
    }

    /// The identity of a process, without its cgroup.
    fn task(&self, pid: u32) -> Task {
        let dir = self.proc_root.join(pid.to_string());
        let mut comm = [0; 16];
        let name = fs::read(dir.join("comm")).unwrap_or_default();
        let name = name.strip_suffix(b"\n").unwrap_or(&name);
        let len = name.len().min(15);
        comm[..len].copy_from_slice(&name[..len]);
        let stat = procfs::process::Stat::from_file(dir.join("stat"));
        let start_ns = stat.map_or(0, |stat| stat.starttime.saturating_mul(TICK_NS));
        Task { cgroup_id: 0, start_ns, pid, tid: pid, comm }
    }
}

/// Whether an open file in /proc/PID/fd is the socket with that inode number.
fn is_socket(file: &Path, inode: u64) -> bool {
    let target = fs::read_link(file).unwrap_or_default();
    let digits =
        target.as_os_str().as_bytes().strip_prefix(b"socket:[").and_then(|rest| rest.strip_suffix(b"]"));
    digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()) == Some(inode)
}

/// A line of /proc/net/udp, udp6, tcp or tcp6.
struct SocketLine {
    address: [u8; 16],
    port: u16,
    is_any: bool,
    inode: u64,
}

/// Parses `  12: 0100007F:0035 00000000:0000 07 … inode …`.
fn parse_socket(line: &str) -> Option<SocketLine> {
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let inode = fields.nth(7)?.parse().ok().filter(|&inode| inode != 0)?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    // Hex digits of words in this machine's byte order.
    let words = if address.len() == 8 { &mut bytes[12..] } else { &mut bytes[..] };
    for (at, word) in words.chunks_exact_mut(4).enumerate() {
        let digits = address.get(at * 8..at * 8 + 8)?;
        word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    let is_any = bytes == [0; 16];
    if address.len() == 8 {
        bytes[10..12].fill(0xff);
    }
    Some(SocketLine { address: bytes, port, is_any, inode })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::UDP;

    #[test]
    fn lines_of_ipv4_and_ipv6_are_read() {
        let line = "  433: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0 0";
        let found = parse_socket(line).unwrap();
        assert_eq!((found.port, found.inode, found.is_any), (53, 4242, false));
        assert_eq!(found.address, std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
        let line = "  1: 00000000000000000000000000000000:D2F0 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 77 2 0";
        let found = parse_socket(line).unwrap();
        assert_eq!((found.port, found.inode, found.is_any), (0xd2f0, 77, true));
        for bad in ["", "sl local_address", "1: zz:0035 0:0 07 0:0 00:0 0 0 0 77", "1: 0100007F:0035 x"] {
            assert!(parse_socket(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_process_of_an_open_socket_is_found() {
        let open = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = open.local_addr().unwrap();
        let localhost = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        let client = Endpoint { address: localhost, port: address.port() };
        let flow = Flow { client, server: Endpoint { address: localhost, port: 53 }, protocol: UDP };
        let mut finder = AskerFinder::new(Path::new("/proc"));
        let task = finder.find(&flow);
        assert_eq!(task.pid, std::process::id());
        assert!(task.start_ns > 0 && task.comm[0] != 0);
        assert_eq!(finder.find(&flow), task, "from the cache");
        drop(open);
        assert_eq!(finder.find(&flow), Task::UNKNOWN);
    }
}
