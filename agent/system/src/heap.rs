//! Returns freed memory from the allocator to the kernel.
//!
//! glibc keeps freed memory in arenas, up to eight per CPU, and an arena stays as large as its largest use. Building tables,
//! reading BTF and symbolizing happen in bursts on separate threads, so an agent that is always on would permanently hold
//! the sum of all bursts (60 MiB of 100 MiB). So there is one arena, large blocks are mapped outside of it, and code that
//! has just freed a lot of memory calls [`give_back`].

/// One arena for all threads: they rarely allocate at the same time, and a second arena held 2 MiB more.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 1;
/// From this size on, a block gets a mapping of its own, which is unmapped when it is freed. Without a fixed value glibc
/// raises the threshold whenever a larger block is freed, up to 32 MiB.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 256 << 10;

/// Call this first in `main`: threads that exist already keep their arenas.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two integers and may be called by any thread at any time (mallopt(3)); on failure nothing changes.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
    }
}

/// For a process that ends when it has nothing to do: freed memory is used again, instead of being unmapped and cleared by the
/// kernel for the next block.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: as in `keep_small`.
    unsafe {
        // The largest values that glibc takes, or needs for a worker's address space.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 20);
        libc::mallopt(libc::M_TOP_PAD, 1 << 20);
    }
}

/// Call this after a burst. It takes a few milliseconds, in which other threads wait to allocate.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches only free memory, under the allocator's own locks (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;
    use crate::page_size;

    fn resident() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * page_size()
    }

    #[test]
    fn memory_freed_between_live_blocks_returns_to_the_kernel() {
        const SIZE: usize = 16 << 10;
        let mut all: Vec<Option<Vec<u8>>> = (0..4096).map(|at| Some(vec![at as u8 | 1; SIZE])).collect();
        // The live blocks keep the end of the arena in place, so nothing is returned without the call.
        all.iter_mut().enumerate().filter(|(at, _)| at % 16 != 15).for_each(|(_, one)| *one = None);
        let before = resident();
        give_back();
        let after = resident();
        assert!(before.saturating_sub(after) > 30 << 20, "{before} and then {after}");
        assert!(all.iter().flatten().all(|one| one.len() == SIZE));
    }
}
