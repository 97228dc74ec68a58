//! Creates aya's loader without the kernel's types.
//!
//! `EbpfLoader::new` of aya 0.14 reads all of `/sys/kernel/btf/vmlinux`, and only then can the caller switch relocation
//! off. That takes 12 ms, and 30 MB meanwhile. So a thread whose root folder has no such file creates the loader.

use aya::EbpfLoader;
use nix::sched::{CloneFlags, unshare};

/// A folder that exists on every node and has no `sys/kernel/btf/vmlinux` below it.
const ROOT: &str = "/sys/kernel/btf";

pub(crate) fn new() -> EbpfLoader<'static> {
    let thread = std::thread::Builder::new().name("loader".to_owned()).spawn(|| {
        // From here on the root belongs to this thread alone. If that is not permitted, the types are read, which only
        // takes longer.
        let _ = unshare(CloneFlags::CLONE_FS).and_then(|()| nix::unistd::chroot(ROOT));
        EbpfLoader::new()
    });
    let created = thread.ok().and_then(|thread| thread.join().ok());
    let mut loader = created.unwrap_or_default();
    loader.btf(None);
    loader
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_keeps_its_root() {
        super::new();
        assert!(std::path::Path::new("/proc/self").exists());
    }
}
