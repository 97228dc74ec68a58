//! The pid namespace that this process runs in. A pod has one of its own unless `hostPID` is set, and so has a node that is itself
//! a container.

use std::path::Path;

/// The inode number of the initial one, which contains every process (`PROC_PID_INIT_INO` in `<linux/proc_ns.h>`).
pub const INITIAL: u32 = 0xEFFF_FFFC;

/// The inode number of this process's pid namespace. None: /proc is not mounted, or not readable.
pub fn own() -> Option<u32> {
    own_in(Path::new("/proc"))
}

/// The same by another mount of /proc.
pub fn own_in(proc_root: &Path) -> Option<u32> {
    let link = std::fs::read_link(proc_root.join("self/ns/pid")).ok()?;
    link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()
}

/// The same if it is not the initial one: then /proc shows a part of the processes, under other ids.
pub fn nested() -> Option<u32> {
    own().filter(|&inode| inode != INITIAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_links_number_is_the_inode() {
        use std::os::unix::fs::MetadataExt as _;
        let inode = std::fs::metadata("/proc/self/ns/pid").unwrap().ino();
        assert_eq!(own().map(u64::from), Some(inode));
        assert_eq!(nested().is_some(), inode != u64::from(INITIAL));
        assert_eq!(own_in(Path::new("/nonexistent")), None);
    }
}
