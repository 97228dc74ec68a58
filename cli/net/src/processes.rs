//! Which processes hold a socket, by the links in `/proc/PID/fd`. Reading such a link does not touch the file.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use podopsy_model::text;
use serde::Serialize;

use crate::Socket;

/// Processes that are looked at, and open files of all of them together.
const PROCESSES_MAX: usize = 4096;
const FILES_MAX: usize = 1 << 20;
/// Processes that are named for one socket; servers share theirs among workers.
const OWNERS_MAX: usize = 16;

/// A process of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProcess {
    pub pid: u32,
    /// None: it is in no container.
    pub container: Option<String>,
}

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketOwner {
    pub pid: u32,
    pub comm: String,
    pub container: Option<String>,
}

/// Sets the processes of each socket.
pub(crate) fn assign(sockets: &mut [Socket], members: &[PodProcess]) {
    assign_in(Path::new("/proc"), sockets, members);
}

fn assign_in(proc_root: &Path, sockets: &mut [Socket], members: &[PodProcess]) {
    let mut by_inode: HashMap<u32, Vec<usize>> = HashMap::new();
    for (index, socket) in sockets.iter().enumerate().filter(|(_, socket)| socket.inode != 0) {
        by_inode.entry(socket.inode).or_default().push(index);
    }
    let mut files_left = FILES_MAX;
    for member in members.iter().take(PROCESSES_MAX) {
        let folder = proc_root.join(member.pid.to_string());
        let mut owner = None;
        for inode in socket_inodes(&folder, &mut files_left) {
            for &index in by_inode.get(&inode).into_iter().flatten() {
                let owner = owner.get_or_insert_with(|| SocketOwner {
                    pid: member.pid,
                    comm: comm(&folder),
                    container: member.container.clone(),
                });
                let owners = &mut sockets[index].processes;
                if owners.len() < OWNERS_MAX && !owners.contains(owner) {
                    owners.push(owner.clone());
                }
            }
        }
    }
}

fn comm(folder: &Path) -> String {
    let comm = fs::read(folder.join("comm")).unwrap_or_default();
    text::escape_bytes(comm.strip_suffix(b"\n").unwrap_or(&comm))
}

/// The inodes of the sockets among the open files of a process; none if it has ended.
fn socket_inodes(folder: &Path, files_left: &mut usize) -> Vec<u32> {
    let mut inodes = Vec::new();
    for entry in fs::read_dir(folder.join("fd")).into_iter().flatten().flatten() {
        if *files_left == 0 {
            break;
        }
        *files_left -= 1;
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
        inodes.extend(inode.and_then(|inode| inode.parse::<u32>().ok()));
    }
    inodes
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;

    use super::*;
    use crate::verdicts::tests::listener;

    #[test]
    fn the_process_that_holds_a_socket_is_found() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", held.as_raw_fd())).unwrap();
        let inode = link.to_str().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        let socket = |inode| Socket { inode, processes: Vec::new(), ..listener("127.0.0.1:1") };
        let mut sockets = [socket(inode), socket(0)];
        let member = PodProcess { pid: std::process::id(), container: Some("api".into()) };
        let gone = PodProcess { pid: u32::MAX, container: None };
        assign(&mut sockets, &[gone, member]);
        let [owner] = &sockets[0].processes[..] else { panic!("{:?}", sockets[0]) };
        assert_eq!((owner.pid, owner.container.as_deref()), (std::process::id(), Some("api")));
        assert!(!owner.comm.is_empty() && sockets[1].processes.is_empty());
    }
}
