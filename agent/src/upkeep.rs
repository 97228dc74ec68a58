//! What the process wants of its C library and of the kernel, before it has threads: a heap that gives back, and
//! descriptors enough for a full node.
//!
//! Must not know: what anyone keeps in memory or holds open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files whose symbols the dead will need (some 1,700 on a node with 200 containers), maps, rings, sockets, the store.
const DESCRIPTORS: u64 = 8192;

/// The soft limit is 1,024 under systemd and in containers of containerd 2; the hard one is there to be taken. Says what it
/// is if it is still too low.
pub fn raise_descriptors() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let wanted = DESCRIPTORS.min(hard);
    if soft < wanted {
        // Without this right the limit is what it was, and is told below.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
    }
    let (now, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (now < DESCRIPTORS).then_some(now)
}

/// glibc gives each thread that allocates a heap of its own, eight for each CPU: what one of them frees is of no use to
/// another, and stays resident. Two thirds of the agent's memory were that.
#[cfg(target_env = "gnu")]
pub fn share_heap() {
    const ARENAS: i32 = 2;
    // SAFETY: mallopt takes two integers, and may be called at any time.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Gives free pages back to the kernel, after much was freed at once. Takes milliseconds.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: malloc_trim takes how much to leave at the top, and locks what it looks at.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries keep one heap.
#[cfg(not(target_env = "gnu"))]
pub fn share_heap() {}

#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_as_many_as_the_hard_limit_has() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 512.min(hard), hard).unwrap();
        let too_few = raise_descriptors();
        let (soft, after) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, after), (DESCRIPTORS.min(hard), hard));
        assert_eq!(too_few, (hard < DESCRIPTORS).then_some(hard));
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_was_freed_in_pieces_is_given_back() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
                * crate::memory::files::page_size() as usize
        };
        // Small enough for the heap, and one piece in 64 stays: without a word nothing is given back.
        let mut pieces: Vec<Box<[u8]>> = (0..64 << 10).map(|_| vec![1; 1024].into_boxed_slice()).collect();
        let full = resident();
        let mut n = 0;
        pieces.retain(|_| {
            n += 1;
            n % 64 == 0
        });
        give_back();
        let left = resident();
        assert!(left + (40 << 20) < full, "{} MiB of {} MiB are left", left >> 20, full >> 20);
        assert_eq!(pieces.len(), 1 << 10);
    }
}
