//! What the supervisor and its reader give up, beside what every helper gives up: the network, all capabilities, and all
//! system calls but these. No file can be opened.
//!
//! The user stays: the runtime's socket belongs to root, and connecting takes the right to write it. The node's root is opened
//! before the capabilities are gone, so that `/proc/1/root` need not be followed later.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use podopsy_helper::calls::AllowedCalls;
use podopsy_helper::rights::{self, Steps};
use seccompiler::SeccompCmpOp;

/// Bytes of address space of a reader. The program itself takes some, and the largest response of the runtime the most.
const MEMORY: u64 = 256 << 20;
/// Standard streams, the node's root, tokio's own, and connections: one for each socket that is tried.
const DESCRIPTORS: u64 = 64;

/// Closes everything but standard input, which is the control socket, opens the node's root, and puts the supervisor into its
/// jail. Returns the path that leads to the node's root from now on, and the steps that failed.
pub(crate) fn enter(node_root: Option<&Path>) -> (Option<PathBuf>, Vec<String>) {
    let mut steps = Steps::default();
    rights::enter(&mut steps);
    // In a container without the right, there is no node's root to look into.
    let root = node_root.and_then(|root| open_root(root).ok());
    steps.take("no network", unshare(CloneFlags::CLONE_NEWNET));
    steps.take("no IPC", unshare(CloneFlags::CLONE_NEWIPC));
    steps.take("not traceable", prctl::set_dumpable(false));
    steps.take("no capabilities", rights::keep_capabilities(&[]));
    steps.take("a filter of system calls", supervisor_calls().install());
    (root, steps.failed())
}

/// Opens a folder as a starting point for paths, for as long as the process lives.
fn open_root(root: &Path) -> io::Result<PathBuf> {
    let folder = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(root)?;
    Ok(Path::new("/proc/self/fd").join(OsStr::new(&folder.into_raw_fd().to_string())))
}

/// Puts a reader that was just forked, and that talks by this socket, into its own, narrower jail.
pub(crate) fn narrow(socket: &impl AsRawFd) -> nix::Result<()> {
    debug_assert_eq!(socket.as_raw_fd(), 0);
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS)?;
    reader_calls().install()
}

/// What a reader needs beside its own calls: to find sockets, to connect to them, and tokio's waiting.
fn allow_reading(calls: &mut AllowedCalls) {
    calls.allow_if(libc::SYS_socket, &[(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)]);
    // Sets that a socket does not wait.
    calls.allow_if(libc::SYS_ioctl, &[(1, SeccompCmpOp::Eq, libc::FIONBIO)]);
    // tokio checks that they do not, in builds with debug assertions.
    calls.allow_if(libc::SYS_fcntl, &[(1, SeccompCmpOp::Eq, libc::F_GETFL as u64)]);
    calls.allow_duplicates();
    calls.allow(&[
        libc::SYS_connect,
        libc::SYS_getsockopt,
        libc::SYS_shutdown,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_writev,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        // tokio wakes itself by a pair of sockets when signals come, of which a reader handles none.
        libc::SYS_socketpair,
    ]);
    #[cfg(target_arch = "x86_64")]
    calls.allow(&[libc::SYS_epoll_wait]);
}

fn supervisor_calls() -> AllowedCalls {
    let mut calls = AllowedCalls::supervisor();
    allow_reading(&mut calls);
    calls
}

fn reader_calls() -> AllowedCalls {
    let mut calls = AllowedCalls::own();
    allow_reading(&mut calls);
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_may_call_nothing_that_opens_starts_or_listens() {
        let reaching = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_accept4,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fork,
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_kill,
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_prctl,
        ];
        assert!(reaching.iter().all(|call| !reader_calls().allows(*call)));
    }
}
