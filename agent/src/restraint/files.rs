//! What each kind of thread is refused of files.
//!
//! No thread changes modes, owners, times or attributes, and none makes links: root may do that to its files without any
//! capability, and Landlock does not see it. Threads that record open files for reading alone. The threads that write the
//! state folder are kept inside of it by Landlock ([`super::state`]).
//!
//! The filter sees the flags of open(2) and openat(2), because they are in a register. Those of openat2(2) are in memory,
//! where the filter cannot look, so openat2 is refused as a whole: files of containers are
//! opened in a process of its own (`podopsy-opener`).

use seccompiler::SeccompCmpOp;

use super::filter::{Kind, Refusal, when};

/// Calls that are not in the libc crate yet (`<asm-generic/unistd.h>`; the same number on every processor).
const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_REMOVEXATTRAT: libc::c_long = 466;
const SYS_FILE_SETATTR: libc::c_long = 469;

/// Refused on every thread.
pub const METADATA: &[libc::c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    SYS_SETXATTRAT,
    SYS_REMOVEXATTRAT,
    SYS_FILE_SETATTR,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    // By name: Landlock knows it since Linux 6.2. SQLite uses ftruncate.
    libc::SYS_truncate,
];

#[cfg(target_arch = "x86_64")]
pub const METADATA_HERE: &[libc::c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_link,
    libc::SYS_symlink,
];
#[cfg(not(target_arch = "x86_64"))]
pub const METADATA_HERE: &[libc::c_long] = &[];

/// Also refused on threads that record.
const CHANGES: &[libc::c_long] =
    // SQLite calls fchown, which is permitted to the threads of the state folder: they hold no right to give files away.
    &[libc::SYS_fchown, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_renameat, libc::SYS_renameat2];

#[cfg(target_arch = "x86_64")]
const CHANGES_HERE: &[libc::c_long] =
    &[libc::SYS_creat, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename];
#[cfg(not(target_arch = "x86_64"))]
const CHANGES_HERE: &[libc::c_long] = &[];

/// `__O_TMPFILE`: O_TMPFILE without O_DIRECTORY.
const TMPFILE: libc::c_int = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// The refused uses of files that depend on the kind of thread.
pub fn refusals(kind: Kind) -> anyhow::Result<Vec<Refusal>> {
    let mut refused = Vec::new();
    match kind {
        Kind::Recording => {
            refused.extend(CHANGES.iter().chain(CHANGES_HERE).map(|call| Refusal::always(*call)));
            // Any one of these bits.
            for flag in [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC, TMPFILE] {
                opens_with(&mut refused, flag, flag)?;
            }
            refused.push(Refusal::always(libc::SYS_openat2));
        }
        Kind::State => {
            // A file that is opened for reading is emptied all the same, and Landlock before Linux 6.2 does not see it.
            opens_with(&mut refused, libc::O_ACCMODE | libc::O_TRUNC, libc::O_TRUNC)?;
            refused.push(Refusal::always(libc::SYS_openat2));
        }
        Kind::Any => {}
    }
    Ok(refused)
}

/// Refuses to open files where `flags & mask == value`.
fn opens_with(refused: &mut Vec<Refusal>, mask: libc::c_int, value: libc::c_int) -> anyhow::Result<()> {
    let flags = |argument| when(argument, SeccompCmpOp::MaskedEq(mask as u64), value as u64);
    refused.push(Refusal::only(libc::SYS_openat, flags(2)?));
    #[cfg(target_arch = "x86_64")]
    refused.push(Refusal::only(libc::SYS_open, flags(1)?));
    Ok(())
}
