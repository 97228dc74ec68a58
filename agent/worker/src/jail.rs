//! What the supervisor and its workers give up, beside what every helper gives up.
//!
//! The supervisor: the file system (an empty, read-only root of its own), the network (a namespace without interfaces), its
//! user and all capabilities, everything but forking and its socket. A worker, beside that: forking, and all but reading
//! the files that it is given. Neither can open anything: `open` is refused by the filter, whatever the root has.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{chdir, chroot};
use podopsy_helper::calls::AllowedCalls;
use podopsy_helper::rights::{self, Steps};

/// The user and group of the supervisor and its workers: no system user of a distribution has this number, so that no
/// process and no file of the node is theirs.
const UID: u32 = 64_997;

/// The bounds of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkerLimits {
    /// Bytes of address space.
    pub memory: u64,
}

/// Closes everything but standard input, which is the control socket, and puts the supervisor into its jail. Returns the
/// steps that failed.
pub(crate) fn enter() -> Vec<String> {
    let mut steps = Steps::default();
    rights::enter(&mut steps);
    steps.take("not traceable", prctl::set_dumpable(false));
    let namespaces = [
        ("no network", CloneFlags::CLONE_NEWNET),
        ("mounts of its own", CloneFlags::CLONE_NEWNS),
        ("no IPC", CloneFlags::CLONE_NEWIPC),
    ];
    for (what, namespace) in namespaces {
        steps.take(what, unshare(namespace));
    }
    steps.take("an empty root", empty_root());
    steps.take("a user of its own", rights::own_user(UID));
    steps.take("no capabilities", rights::keep_capabilities(&[]));
    steps.take("a filter of system calls", supervisor_calls().install());
    steps.failed()
}

/// Puts a worker that was just forked, and whose socket has this number, into its own, narrower jail.
pub(crate) fn narrow(limits: &WorkerLimits, socket: i32) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_AS, limits.memory, limits.memory)?;
    // Standard streams, the socket, and the files of one job, each with the socket that it came in.
    setrlimit(Resource::RLIMIT_NOFILE, 16, 16)?;
    worker_calls(socket).install()
}

/// A tmpfs without content at /proc, which exists everywhere, becomes the root.
fn empty_root() -> nix::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("none"), "/proc", Some("tmpfs"), flags, Some("size=4k,mode=555"))?;
    chroot("/proc")?;
    chdir("/")
}

/// What only a worker needs: to read its files, and to bound its CPU time.
const WORKER: &[libc::c_long] = &[
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_setitimer,
];

fn supervisor_calls() -> AllowedCalls {
    let mut calls = AllowedCalls::supervisor();
    calls.allow(WORKER);
    calls.allow_duplicates();
    calls
}

fn worker_calls(socket: i32) -> AllowedCalls {
    let mut calls = AllowedCalls::own();
    calls.allow(WORKER);
    calls.receive_from(socket);
    // Go's tables keep a copy of their file's descriptor for the next job.
    calls.allow_duplicates();
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_may_call_nothing_that_reaches_beyond_its_files() {
        let reaching = [
            libc::SYS_openat,
            libc::SYS_open,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_clone,
            libc::SYS_fork,
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_kill,
            libc::SYS_prctl,
            libc::SYS_ioctl,
            // With these it could take the place of its socket, and receive what others need.
            libc::SYS_dup,
            libc::SYS_dup2,
            libc::SYS_dup3,
        ];
        assert!(reaching.iter().all(|call| !worker_calls(3).allows(*call)));
    }
}
