//! The process behind a socket: its address → /proc/net → its inode number → whose open files it is among.
//!
//! It is looked for while its query is on its way. Who closes at once is gone by then, and the files of another user's
//! process are closed to those without CAP_SYS_PTRACE: that is counted, and no guess is made.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podopsy_wire::Task;
use procfs::FromRead;

use super::parse::{End, Ends, TCP};

/// /proc/PID/stat counts in ticks of 10 ms (USER_HZ).
const TICK_NS: u64 = 10_000_000;
/// Processes that asked lately, and are looked at first.
const RECENT_MAX: usize = 16;
/// Of the time, at most one part in so many goes to looking for processes …
const PATIENCE: u32 = 4;
/// … and this long may be spent in one go.
const BURST: Duration = Duration::from_millis(200);
/// A process may have a million open files.
const FILES_MAX: usize = 65_536;
/// Lines of a table that are read.
const SOCKETS_MAX: usize = 65_536;

/// Sockets that are remembered.
const KNOWN_MAX: usize = 4096;

/// An open file that was found to be the socket: as long as it is, the address is its own.
#[derive(Debug)]
struct Known {
    file: PathBuf,
    inode: u64,
    task: Task,
}

/// Looks for processes by way of one /proc.
#[derive(Debug)]
pub struct Askers {
    proc_root: PathBuf,
    recent: VecDeque<u32>,
    known: HashMap<(End, u32), Known>,
    /// Time that may still be spent.
    left: Duration,
    since: Instant,
}

impl Askers {
    pub fn new(proc_root: &Path) -> Askers {
        Askers {
            proc_root: proc_root.to_owned(),
            recent: VecDeque::new(),
            known: HashMap::new(),
            left: BURST,
            since: Instant::now(),
        }
    }

    /// Who has that socket; `Task::UNKNOWN` if nobody is found. The cgroup is not looked for.
    pub fn find(&mut self, ends: &Ends) -> Task {
        let place = (ends.client, ends.protocol);
        if let Some(known) = self.known.get(&place) {
            if is_socket(&known.file, known.inode) {
                return known.task;
            }
            self.known.remove(&place);
        }
        let begun = Instant::now();
        self.left = (self.left + begun.duration_since(self.since) / PATIENCE).min(BURST);
        self.since = begun;
        if self.left.is_zero() {
            return Task::UNKNOWN;
        }
        let until = begun + self.left;
        let found = self.inode(ends).and_then(|inode| Some((inode, self.holder(inode, until)?)));
        self.left = self.left.saturating_sub(begun.elapsed());
        let Some((inode, (pid, file))) = found else { return Task::UNKNOWN };
        self.recent.retain(|&other| other != pid);
        self.recent.push_front(pid);
        self.recent.truncate(RECENT_MAX);
        let task = self.task(pid);
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(place, Known { file, inode, task });
        task
    }

    /// The inode number of the socket that is bound to that address, or to that port of every address.
    fn inode(&self, ends: &Ends) -> Option<u64> {
        let word = if ends.protocol == TCP { "tcp" } else { "udp" };
        let v4 = ends.client.address.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        // A socket of IPv6 may speak IPv4.
        let tables: &[&str] = if v4 { &["", "6"] } else { &["6"] };
        tables.iter().find_map(|version| {
            // Of the thread, because that is where the packet socket was opened.
            let file = self.proc_root.join(format!("thread-self/net/{word}{version}"));
            let lines = BufReader::new(fs::File::open(file).ok()?).lines().skip(1).take(SOCKETS_MAX);
            let mut any = None;
            for line in lines {
                let Some(socket) = socket(&line.ok()?) else { continue };
                if socket.port != ends.client.port {
                    continue;
                }
                if socket.address == ends.client.address {
                    return Some(socket.inode);
                }
                if socket.is_any && any.is_none() {
                    any = Some(socket.inode);
                }
            }
            any
        })
    }

    fn holder(&self, inode: u64, until: Instant) -> Option<(u32, PathBuf)> {
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
        pids.take_while(|_| Instant::now() < until).find_map(holds)
    }

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
    let named = fs::read_link(file).unwrap_or_default();
    let digits =
        named.as_os_str().as_bytes().strip_prefix(b"socket:[").and_then(|rest| rest.strip_suffix(b"]"));
    digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()) == Some(inode)
}

struct Socket {
    address: [u8; 16],
    port: u16,
    is_any: bool,
    inode: u64,
}

/// A line of /proc/net/udp or tcp: `  12: 0100007F:0035 00000000:0000 07 … inode …`.
fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let inode = fields.nth(7)?.parse().ok().filter(|&inode| inode != 0)?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    // Words in this machine's order, as hex digits.
    let words = if address.len() == 8 { &mut bytes[12..] } else { &mut bytes[..] };
    for (at, word) in words.chunks_exact_mut(4).enumerate() {
        let digits = address.get(at * 8..at * 8 + 8)?;
        word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    let is_any = bytes == [0; 16];
    if address.len() == 8 {
        bytes[10..12].fill(0xff);
    }
    Some(Socket { address: bytes, port, is_any, inode })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{End, UDP};

    #[test]
    fn lines_of_both_tables_are_read() {
        let line = "  433: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0 0";
        let found = socket(line).unwrap();
        assert_eq!((found.port, found.inode, found.is_any), (53, 4242, false));
        assert_eq!(found.address, std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
        let line = "  1: 00000000000000000000000000000000:D2F0 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 77 2 0";
        let found = socket(line).unwrap();
        assert_eq!((found.port, found.inode, found.is_any), (0xd2f0, 77, true));
        for bad in ["", "sl local_address", "1: zz:0035 0:0 07 0:0 00:0 0 0 0 77", "1: 0100007F:0035 x"] {
            assert!(socket(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn finds_this_very_process() {
        let open = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = open.local_addr().unwrap();
        let client =
            End { address: std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets(), port: at.port() };
        let server = End { address: client.address, port: 53 };
        let mut askers = Askers::new(Path::new("/proc"));
        let task = askers.find(&Ends { client, server, protocol: UDP });
        assert_eq!(task.pid, std::process::id());
        assert!(task.start_ns > 0 && task.comm[0] != 0);
        assert_eq!(askers.find(&Ends { client, server, protocol: UDP }), task, "remembered");
        drop(open);
        assert_eq!(askers.find(&Ends { client, server, protocol: UDP }), Task::UNKNOWN);
    }
}
