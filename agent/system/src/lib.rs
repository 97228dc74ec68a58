//! The process and the machine that it runs on: clocks, the node's name and load, the pid namespace, file descriptors, the
//! allocator, the page cache of the program, small files, the threads that may write them.
//!
//! This crate must not depend on pods, probes or events.

pub mod clock;
pub mod descriptors;
pub mod footprint;
pub mod heap;
pub mod node;
pub mod pid_namespace;
pub mod pressure;
pub mod small_file;
pub mod state_thread;
pub mod sync;

/// The version of Landlock in this kernel. None: it has none, or it is switched off.
pub fn landlock_version() -> Option<u32> {
    // `LANDLOCK_CREATE_RULESET_VERSION` (`<linux/landlock.h>`).
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the kernel reads no attributes, and returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, VERSION) };
    u32::try_from(version).ok()
}

/// The kernel's page size in bytes.
pub fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as u64)
}
