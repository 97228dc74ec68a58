//! aya's loader, without the kernel's types.
//!
//! `EbpfLoader::new` of aya 0.14 reads all of `/sys/kernel/btf/vmlinux` before anyone can say that nothing is to be relocated
//! by it: 12 ms, and 30 MB while it lasts. So it is made by a thread whose root is a folder without such a file.

use aya::EbpfLoader;
use nix::sched::{CloneFlags, unshare};

/// Where there is nothing else than the kernel's types.
const ROOT: &str = "/sys/kernel/btf";

pub(crate) fn new() -> EbpfLoader<'static> {
    let aside = std::thread::Builder::new().name("loader".to_owned()).spawn(|| {
        // The root is this thread's alone from here on. Where that is not allowed it only takes longer.
        let _ = unshare(CloneFlags::CLONE_FS).and_then(|()| nix::unistd::chroot(ROOT));
        EbpfLoader::new()
    });
    let made = aside.ok().and_then(|aside| aside.join().ok());
    let mut loader = made.unwrap_or_default();
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
