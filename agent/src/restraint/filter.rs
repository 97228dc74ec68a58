//! The filters of system calls that the agent never makes once it records. The kernel rejects them on every thread,
//! permanently. Threads that record have another filter than those that write files.
//!
//! The filter lists what is rejected, not what is allowed: a newer libc or kernel uses calls that no list of today has, and
//! an agent that cannot write its store after an update is worse than none. For the same reason a rejected call returns
//! EPERM instead of killing the agent. The kernel's audit log records each one (`SECCOMP_FILTER_FLAG_LOG`).

use std::collections::BTreeMap;
use std::ptr;

use anyhow::{Context, ensure};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

use super::{files, sockets};

/// A summary for the log.
pub const SUMMARY: &str = "system calls that start programs, trace or signal others, mount, change namespaces, \
                         identities or the kernel, make Unix sockets, or load BPF programs, are refused";

/// Calls that are rejected with any arguments.
const REFUSED: &[libc::c_long] = &[
    // Programs, and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_kcmp,
    // File systems and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_by_handle_at,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mknodat,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    // The kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    // The identity of the process.
    libc::SYS_capset,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] =
    &[libc::SYS_mknod, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// The commands of bpf(2) (`enum bpf_cmd`) that stay allowed: create, read and write maps, attach a loaded program, get
/// information about one. Not allowed: to load a program, to open an object by its id, to pin.
const BPF: [u64; 12] = [
    0,  // MAP_CREATE: tables of the unwinder
    1,  // MAP_LOOKUP_ELEM
    2,  // MAP_UPDATE_ELEM
    3,  // MAP_DELETE_ELEM
    4,  // MAP_GET_NEXT_KEY
    9,  // PROG_DETACH: on kernels without links
    15, // OBJ_GET_INFO_BY_FD
    21, // MAP_LOOKUP_AND_DELETE_ELEM
    22, // MAP_FREEZE
    24, // MAP_LOOKUP_BATCH
    28, // LINK_CREATE: the sampler on its perf events
    34, // LINK_DETACH
];

/// Calls of the x32 ABI have this bit set above the number of an ordinary call. The agent never makes one.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// The kinds of threads, which are refused different calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Those that record, answer and export.
    Recording,
    /// Those that write the state folder.
    State,
    /// Both, where they cannot have different filters.
    Any,
}

/// A call that is refused, always or under conditions.
pub struct Refusal {
    call: libc::c_long,
    conditions: Vec<SeccompCondition>,
}

impl Refusal {
    pub fn always(call: libc::c_long) -> Refusal {
        Refusal { call, conditions: Vec::new() }
    }

    /// Refused if the condition holds. Several refusals of one call are alternatives.
    pub fn only(call: libc::c_long, condition: SeccompCondition) -> Refusal {
        Refusal::if_all(call, vec![condition])
    }

    /// Refused if all conditions hold.
    pub fn if_all(call: libc::c_long, conditions: Vec<SeccompCondition>) -> Refusal {
        Refusal { call, conditions }
    }
}

/// A condition on the lower half of an argument.
pub fn when(argument: u8, op: SeccompCmpOp, value: u64) -> anyhow::Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value).context("a condition on an argument")
}

fn refusals(kind: Kind) -> anyhow::Result<Vec<Refusal>> {
    let lists = [REFUSED, REFUSED_HERE, files::METADATA, files::METADATA_HERE];
    let mut refused: Vec<Refusal> = lists.concat().into_iter().map(Refusal::always).collect();
    let not_allowed: anyhow::Result<_> =
        BPF.iter().map(|command| when(0, SeccompCmpOp::Ne, *command)).collect();
    refused.push(Refusal::if_all(libc::SYS_bpf, not_allowed?));
    // The agent may signal its own threads: abort(3) after a panic needs it.
    let own = u64::from(std::process::id());
    refused.push(Refusal::only(libc::SYS_tgkill, when(0, SeccompCmpOp::Ne, own)?));
    // The agent may read its own limits (pid 0).
    refused.push(Refusal::only(libc::SYS_prlimit64, when(0, SeccompCmpOp::Ne, 0)?));
    // To type into a terminal of the node.
    for request in [libc::TIOCSTI, libc::TIOCLINUX] {
        refused.push(Refusal::only(libc::SYS_ioctl, when(1, SeccompCmpOp::Eq, request)?));
    }
    refused.extend(sockets::refusals()?);
    refused.extend(files::refusals(kind)?);
    Ok(refused)
}

fn compile(kind: Kind) -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for Refusal { call, conditions } in refusals(kind)? {
        let alternatives = rules.entry(call).or_default();
        // A call without rules is always refused.
        if !conditions.is_empty() {
            alternatives.push(SeccompRule::new(conditions).context("a rule")?);
        }
    }
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into().context("no filter for this processor")?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).context("put the filter together")?;
    let program: BpfProgram = filter.try_into().context("compile the filter")?;
    Ok(without_x32(program))
}

#[cfg(target_arch = "x86_64")]
fn without_x32(program: BpfProgram) -> BpfProgram {
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let first = [
        // The call's number is the first field of `struct seccomp_data`.
        sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: 0 },
        sock_filter { code: (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16, jt: 0, jf: 1, k: X32 },
        sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: refuse },
    ];
    first.into_iter().chain(program).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn without_x32(program: BpfProgram) -> BpfProgram {
    program
}

/// The filter as the kernel takes it. It is never freed: the signal handlers of threads install it.
pub fn program(kind: Kind) -> anyhow::Result<&'static libc::sock_fprog> {
    let steps: Vec<libc::sock_filter> = compile(kind)?
        .iter()
        .map(|step| libc::sock_filter { code: step.code, jt: step.jt, jf: step.jf, k: step.k })
        .collect();
    let len = u16::try_from(steps.len()).context("the filter is too long")?;
    Ok(Box::leak(Box::new(libc::sock_fprog { len, filter: steps.leak().as_mut_ptr() })))
}

/// Installs the filter on this thread, permanently. The threads that it starts inherit it.
pub fn install(kind: Kind) -> anyhow::Result<()> {
    apply(program(kind)?, libc::SECCOMP_FILTER_FLAG_LOG)
}

/// Installs a filter on all threads, permanently. It fails if another thread has a filter of its own.
pub fn install_everywhere(program: &libc::sock_fprog) -> anyhow::Result<()> {
    apply(program, libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_TSYNC)
}

/// `LOG` sends each rejected call to the audit log.
fn apply(program: &libc::sock_fprog, flags: libc::c_ulong) -> anyhow::Result<()> {
    // Without no-new-privs the kernel requires CAP_SYS_ADMIN to install a filter. TSYNC also sets it on the other threads.
    nix::sys::prctl::set_no_new_privs().context("no-new-privs")?;
    // SAFETY: the program has `len` steps, which are never freed; the kernel copies them.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, ptr::from_ref(program))
    };
    ensure!(result >= 0, "seccomp(2): {}", std::io::Error::last_os_error());
    ensure!(
        result == 0,
        "thread {result} has another seccomp filter, so that this one cannot be synchronized to it"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 3] = [Kind::Recording, Kind::State, Kind::Any];

    #[test]
    fn the_filters_compile_and_are_short_enough() {
        for kind in KINDS {
            let program = compile(kind).unwrap();
            assert!(program.len() < 1000, "{}", program.len());
            #[cfg(target_arch = "x86_64")]
            assert_eq!(program[1].k, X32);
        }
    }

    /// A call that is always refused must not be among those with conditions: the filter would forget one of the two.
    #[test]
    fn no_call_is_listed_twice() {
        for kind in KINDS {
            let refused = refusals(kind).unwrap();
            for (at, one) in refused.iter().enumerate() {
                let others = refused.iter().skip(at + 1).filter(|other| other.call == one.call);
                for other in others {
                    assert!(!one.conditions.is_empty() && !other.conditions.is_empty(), "{}", one.call);
                }
            }
        }
    }
}
