//! The system calls that are left to a process. Any other one ends it: supervisors and helpers make none.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::rights::to_errno;

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
    libc::SYS_write,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_close,
];

/// Calls that receive what a socket has, and take it out of the socket's queue.
const RECEIVE: &[libc::c_long] = &[libc::SYS_read, libc::SYS_recvmsg, libc::SYS_recvfrom];

/// What only a supervisor needs: to make sockets and helpers, and to end helpers.
const SUPERVISOR: &[libc::c_long] = &[
    libc::SYS_socketpair,
    libc::SYS_clone,
    libc::SYS_set_robust_list,
    libc::SYS_wait4,
    libc::SYS_kill,
    libc::SYS_getppid,
    libc::SYS_dup3,
    // A helper narrows itself by these.
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_seccomp,
];

#[cfg(target_arch = "x86_64")]
const FORKS: &[libc::c_long] = &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_dup2];
#[cfg(not(target_arch = "x86_64"))]
const FORKS: &[libc::c_long] = &[];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A filter that is being put together.
#[derive(Clone, Debug)]
pub struct AllowedCalls {
    rules: Rules,
    /// None of the conditions could be put together.
    is_broken: bool,
}

impl AllowedCalls {
    /// A process's own calls, and to send.
    pub fn own() -> AllowedCalls {
        let mut calls = AllowedCalls { rules: Rules::new(), is_broken: false };
        calls.allow(OWN);
        // Rust checks a descriptor that it closes, in builds with debug assertions.
        calls.allow_if(libc::SYS_fcntl, &[(1, SeccompCmpOp::Eq, libc::F_GETFD as u64)]);
        calls
    }

    /// What a supervisor needs.
    pub fn supervisor() -> AllowedCalls {
        let mut calls = AllowedCalls::own();
        calls.allow(RECEIVE);
        calls.allow(SUPERVISOR);
        calls.allow(FORKS);
        calls
    }

    /// Allows calls with any arguments.
    pub fn allow(&mut self, calls: &[libc::c_long]) {
        self.rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    }

    /// Allows a call if all conditions on its arguments (number, comparison, value) hold. Several such rules are alternatives.
    pub fn allow_if(&mut self, call: libc::c_long, conditions: &[(u8, SeccompCmpOp, u64)]) {
        let conditions = conditions.iter().map(|(argument, comparison, value)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, comparison.clone(), *value)
        });
        match conditions.collect::<Result<_, _>>().and_then(SeccompRule::new) {
            Ok(rule) => self.rules.entry(call).or_default().push(rule),
            Err(_) => self.is_broken = true,
        }
    }

    /// Allows to receive from one descriptor, and to look at what others have to receive without taking it: the files that lie
    /// in them are needed again, also by others.
    pub fn receive_from(&mut self, descriptor: i32) {
        for &call in RECEIVE {
            self.allow_if(call, &[(0, SeccompCmpOp::Eq, u64::from(descriptor.unsigned_abs()))]);
        }
        let peek = libc::MSG_PEEK as u64;
        self.allow_if(libc::SYS_recvmsg, &[(2, SeccompCmpOp::MaskedEq(peek), peek)]);
    }

    /// Allows to copy a descriptor to a number from 3 on, as Rust does. The number of the socket must be below: the copy could
    /// otherwise take its place, and what others need could be received from there.
    pub fn allow_duplicates(&mut self) {
        let command = libc::F_DUPFD_CLOEXEC as u64;
        self.allow_if(libc::SYS_fcntl, &[(1, SeccompCmpOp::Eq, command), (2, SeccompCmpOp::Ge, 3)]);
    }

    /// Whether a call is allowed, with any or with some arguments.
    pub fn allows(&self, call: libc::c_long) -> bool {
        self.rules.contains_key(&call)
    }

    fn compile(self) -> Option<BpfProgram> {
        if self.is_broken {
            return None;
        }
        let arch = std::env::consts::ARCH.try_into().ok()?;
        let (other, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
        SeccompFilter::new(self.rules, other, listed, arch).ok()?.try_into().ok()
    }

    /// Restricts this process to these calls.
    pub fn install(self) -> nix::Result<()> {
        let program = self.compile().ok_or(nix::Error::EINVAL)?;
        seccompiler::apply_filter(&program).map_err(|error| match error {
            seccompiler::Error::Seccomp(error) | seccompiler::Error::Prctl(error) => to_errno(error),
            _ => nix::Error::EINVAL,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_compiles() {
        let mut helper = AllowedCalls::own();
        helper.receive_from(3);
        assert!(helper.compile().is_some() && AllowedCalls::supervisor().compile().is_some());
    }

    #[test]
    fn a_supervisor_reaches_nothing_but_its_helpers() {
        let reaching = [
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_ioctl,
        ];
        assert!(reaching.iter().all(|call| !AllowedCalls::supervisor().allows(*call)));
    }
}
