//! What the supervisor and its workers give up. Each step that this machine does not permit is reported, and the others hold.
//!
//! The supervisor: the file system (an empty, read-only root of its own), the network (a namespace without interfaces), its
//! user and all capabilities, everything but forking and its socket. A worker, beside that: forking, and all but reading
//! the files that it is given. Neither can open anything: `open` is refused by the filter, whatever the root has.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, chdir, chroot, geteuid, setgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The user and group of the supervisor and its workers: no system user of a distribution has this number, so that no
/// process and no file of the node is theirs.
pub(crate) const UID: u32 = 64_997;

/// The bounds of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkerLimits {
    /// Bytes of address space.
    pub memory: u64,
}

/// Closes everything but standard input, which is the control socket, and puts the supervisor into its jail. Returns the
/// steps that failed.
pub(crate) fn enter() -> Vec<String> {
    let mut failed = Vec::new();
    let mut step = |what: &str, result: nix::Result<()>| {
        if let Err(error) = result {
            failed.push(format!("{what}: {error}"));
        }
    };
    // SAFETY: standard streams stay open, and this process uses no other descriptor.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    // Of the processes in a container, the kernel ends the worker first.
    step("first to be OOM-killed", fs::write("/proc/self/oom_score_adj", "1000").map_err(to_errno));
    step("no core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0));
    step("not traceable", prctl::set_dumpable(false));
    step("no new privileges", prctl::set_no_new_privs());
    let namespaces = [
        ("no network", CloneFlags::CLONE_NEWNET),
        ("mounts of its own", CloneFlags::CLONE_NEWNS),
        ("no IPC", CloneFlags::CLONE_NEWIPC),
    ];
    for (what, namespace) in namespaces {
        step(what, unshare(namespace));
    }
    step("an empty root", empty_root());
    step("a user of its own", own_user());
    for set in
        [caps::CapSet::Ambient, caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted]
    {
        step("no capabilities", caps::clear(None, set).map_err(|_| nix::Error::EPERM));
    }
    step("a filter of system calls", install(&supervisor_calls()));
    failed
}

/// Puts a worker that was just forked into its own, narrower jail.
pub(crate) fn narrow(limits: &WorkerLimits) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_AS, limits.memory, limits.memory)?;
    // Standard streams, the socket, and the files of one job.
    setrlimit(Resource::RLIMIT_NOFILE, 16, 16)?;
    install(&worker_calls())
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

fn own_user() -> nix::Result<()> {
    if !geteuid().is_root() {
        return Err(nix::Error::EPERM);
    }
    let (uid, gid) = (Uid::from_raw(UID), Gid::from_raw(UID));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

fn to_errno(error: io::Error) -> nix::Error {
    error.raw_os_error().map_or(nix::Error::EIO, nix::Error::from_raw)
}

/// Calls that a program without files and network makes for itself: memory, time, its own signals, its end.
const OWN: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The socket, and the files that came through it.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_close,
];

/// What only the supervisor needs: to make sockets and workers, and to end workers.
const SUPERVISOR: &[libc::c_long] = &[
    libc::SYS_socketpair,
    libc::SYS_clone,
    libc::SYS_set_robust_list,
    libc::SYS_wait4,
    libc::SYS_kill,
    libc::SYS_getppid,
    libc::SYS_dup3,
    // A worker narrows itself by these.
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_seccomp,
];

/// What only a worker needs: to read its files, and to bound its CPU time.
const WORKER: &[libc::c_long] = &[
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_setitimer,
];

#[cfg(target_arch = "x86_64")]
const FORKS: &[libc::c_long] = &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_dup2];
#[cfg(not(target_arch = "x86_64"))]
const FORKS: &[libc::c_long] = &[];

fn supervisor_calls() -> Vec<libc::c_long> {
    [OWN, SUPERVISOR, FORKS, WORKER].concat()
}

fn worker_calls() -> Vec<libc::c_long> {
    [OWN, WORKER].concat()
}

/// Any other call ends the process: the supervisor and its workers make none.
fn compile(allowed: &[libc::c_long]) -> Option<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<_>> = allowed.iter().map(|number| (*number, Vec::new())).collect();
    let command = |command: i32| {
        let equal =
            SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, command as u64).ok()?;
        SeccompRule::new(vec![equal]).ok()
    };
    // Rust checks a descriptor that it closes, in builds with debug assertions. Go's tables keep a copy of their file's
    // descriptor for the next job.
    rules.insert(libc::SYS_fcntl, vec![command(libc::F_GETFD)?, command(libc::F_DUPFD_CLOEXEC)?]);
    let arch = std::env::consts::ARCH.try_into().ok()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch).ok()?;
    filter.try_into().ok()
}

fn install(allowed: &[libc::c_long]) -> nix::Result<()> {
    let program = compile(allowed).ok_or(nix::Error::EINVAL)?;
    seccompiler::apply_filter(&program).map_err(|error| match error {
        seccompiler::Error::Seccomp(error) | seccompiler::Error::Prctl(error) => to_errno(error),
        _ => nix::Error::EINVAL,
    })
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
        ];
        assert!(reaching.iter().all(|call| !worker_calls().contains(call)));
        assert!(compile(&supervisor_calls()).is_some() && compile(&worker_calls()).is_some());
    }
}
