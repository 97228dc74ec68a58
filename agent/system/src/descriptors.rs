//! Raises the limit of file descriptors for a full node.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Enough for files that are kept open to symbolize processes that have exited (at most 1,664: 512 for stacks of kills,
/// 1,024 for the profile, 128 for growth), maps, rings, sockets and the store.
const DESCRIPTORS: u64 = 8192;

/// Raises the soft limit towards the hard limit; the soft limit is 1,024 under systemd and in containers of containerd 2.
/// Returns the limit if it is still too low.
pub fn raise() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let wanted = DESCRIPTORS.min(hard);
    if soft < wanted {
        // If this fails, the limit stays as it was and is returned below.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
    }
    let (now, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (now < DESCRIPTORS).then_some(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 512.min(hard), hard).unwrap();
        let too_few = raise();
        let (soft, after) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, after), (DESCRIPTORS.min(hard), hard));
        assert_eq!(too_few, (hard < DESCRIPTORS).then_some(hard));
    }
}
