//! The process and the machine that it runs on: clocks, the node's name, file descriptors, the allocator, small files.
//!
//! This crate must not depend on pods, probes or events.

pub mod clock;
pub mod descriptors;
pub mod heap;
pub mod node;
pub mod small_file;
pub mod sync;

/// The kernel's page size in bytes.
pub fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as u64)
}
