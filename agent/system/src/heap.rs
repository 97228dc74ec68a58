//! What the allocator holds of memory that was freed, given back to the kernel.
//!
//! glibc keeps freed memory in arenas, as many as eight a CPU, and each as large as its threads' work once made it: tables
//! are made, BTF is read and symbols are looked up in bursts, on threads of their own, and an agent that is always on would
//! hold the sum of all bursts for good (60 MiB of 100). So there is one arena, what is large lies outside of it, and
//! whoever has just put down a lot says so.

/// Of all threads: they allocate little at the same time, and two of them held 2 MiB more.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 1;
/// From this size on memory is mapped for its own, and is the kernel's again when it is freed. glibc would raise it each time
/// that something larger is freed, up to 32 MiB.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 256 << 10;

/// Call first thing: threads that are there already have their arenas.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two integers, and is called by any thread at any time (mallopt(3)); what it refuses stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
    }
}

/// Call after a burst; takes a few milliseconds, and holds up who allocates meanwhile.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches only what is free, under the allocator's own locks (malloc_trim(3)).
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
    fn what_was_freed_between_what_is_kept_is_the_kernels_again() {
        const SIZE: usize = 16 << 10;
        let mut all: Vec<Option<Vec<u8>>> = (0..4096).map(|at| Some(vec![at as u8 | 1; SIZE])).collect();
        // What stays keeps the arena's end where it is: without a word nothing of this is given back.
        all.iter_mut().enumerate().filter(|(at, _)| at % 16 != 15).for_each(|(_, one)| *one = None);
        let before = resident();
        give_back();
        let after = resident();
        assert!(before.saturating_sub(after) > 30 << 20, "{before} and then {after}");
        assert!(all.iter().flatten().all(|one| one.len() == SIZE));
    }
}
