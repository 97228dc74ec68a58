//! What the supervisor and its openers give up, beside what every helper gives up: the network, their user, all capabilities
//! but those by which files of containers are opened, and all system calls but these.
//!
//! The filter allows `open` and `openat` for reading alone. It cannot see the flags of `openat2`, which are in memory: there, the
//! user does it, who owns no file, and does not hold CAP_DAC_OVERRIDE.

use caps::Capability;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use podopsy_helper::calls::AllowedCalls;
use podopsy_helper::rights::{self, Steps};
use seccompiler::SeccompCmpOp;

/// The user and group of the supervisor and its openers: no system user of a distribution has this number.
const UID: u32 = 64_996;

/// Closes everything but standard input, which is the control socket, and puts the supervisor into its jail. Returns the
/// steps that failed.
pub(crate) fn enter() -> Vec<String> {
    let mut steps = Steps::default();
    rights::enter(&mut steps);
    steps.take("no network", unshare(CloneFlags::CLONE_NEWNET));
    steps.take("no IPC", unshare(CloneFlags::CLONE_NEWIPC));
    if reaches_other_users() {
        steps.take("keep capabilities", prctl::set_keepcaps(true));
        steps.take("a user of its own", rights::own_user(UID));
        steps.take("few capabilities", rights::keep_capabilities(&kept()));
    }
    steps.take("not traceable", prctl::set_dumpable(false));
    steps.take("a filter of system calls", supervisor_calls().install());
    steps.failed()
}

/// Puts an opener that was just forked, and whose socket has this number, into its own, narrower jail.
pub(crate) fn narrow(socket: i32) -> nix::Result<()> {
    opener_calls(socket).install()
}

/// Whether other users' processes and files are within reach by capabilities. Otherwise, as in an ephemeral container, they
/// are the opener's by its user, and a process's by having its capabilities (`__ptrace_may_access` in kernel/ptrace.c): it
/// keeps both.
fn reaches_other_users() -> bool {
    holds(Capability::CAP_SYS_PTRACE) && holds(Capability::CAP_DAC_READ_SEARCH)
}

fn holds(capability: Capability) -> bool {
    caps::has_cap(None, caps::CapSet::Permitted, capability).unwrap_or(false)
}

/// What opening needs: `/proc/PID` of other users' processes, their map_files, and files of other users.
fn kept() -> Vec<Capability> {
    // Before 5.9, and where a container was not given it, CAP_SYS_ADMIN stands in for it.
    let map_files = match holds(Capability::CAP_CHECKPOINT_RESTORE) {
        true => Capability::CAP_CHECKPOINT_RESTORE,
        false => Capability::CAP_SYS_ADMIN,
    };
    vec![Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH, map_files]
}

/// What an opener needs beside its own calls.
fn allow_opening(calls: &mut AllowedCalls) {
    let writing = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
    let for_reading = |argument| [(argument, SeccompCmpOp::MaskedEq(writing), 0)];
    calls.allow_if(libc::SYS_openat, &for_reading(2));
    #[cfg(target_arch = "x86_64")]
    calls.allow_if(libc::SYS_open, &for_reading(1));
    calls.allow(&[
        libc::SYS_openat2,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_pread64,
        // Seals the file.
        libc::SYS_socketpair,
    ]);
}

fn supervisor_calls() -> AllowedCalls {
    let mut calls = AllowedCalls::supervisor();
    allow_opening(&mut calls);
    calls
}

fn opener_calls(socket: i32) -> AllowedCalls {
    let mut calls = AllowedCalls::own();
    allow_opening(&mut calls);
    calls.receive_from(socket);
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opener_may_call_nothing_that_starts_connects_or_writes() {
        let reaching = [
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_clone,
            libc::SYS_fork,
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_kill,
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_pwrite64,
            libc::SYS_ioctl,
        ];
        assert!(reaching.iter().all(|call| !opener_calls(3).allows(*call)));
    }
}
