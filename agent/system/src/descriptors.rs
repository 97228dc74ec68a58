//! File descriptors enough for a full node.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files whose symbols the dead will need (1,664 at most: 512 for stacks of kills, 1,024 for the profile, 128 for growth), maps,
/// rings, sockets, the store.
const DESCRIPTORS: u64 = 8192;

/// The soft limit is 1,024 under systemd and in containers of containerd 2; the hard one is there to be taken. Says what it
/// is if it is still too low.
pub fn raise() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let wanted = DESCRIPTORS.min(hard);
    if soft < wanted {
        // Without this right the limit is what it was, and is told below.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
    }
    let (now, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (now < DESCRIPTORS).then_some(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_as_many_as_the_hard_limit_has() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 512.min(hard), hard).unwrap();
        let too_few = raise();
        let (soft, after) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, after), (DESCRIPTORS.min(hard), hard));
        assert_eq!(too_few, (hard < DESCRIPTORS).then_some(hard));
    }
}
