//! Reads the machine's files, below a root folder that tests can choose. At most [`LIMIT`] bytes of a file are read.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::capability::Capabilities;
use podopsy_model::text;

/// The most that is read of a file: more than any check needs (mountinfo of a node with 110 pods is about 200 KiB).
const LIMIT: u64 = 4 << 20;

#[derive(Clone, Debug)]
pub(super) struct Machine {
    root: PathBuf,
}

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)), as far as the checks need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The mounted folder of the filesystem; for cgroups, relative to the root of this cgroup namespace.
    pub fs_root: String,
    pub point: String,
    pub fs_type: String,
    /// The options of the superblock: on cgroup v1 they contain the controllers.
    pub super_options: String,
}

impl Machine {
    pub fn host() -> Self {
        Machine::at("/")
    }

    pub fn at(root: impl Into<PathBuf>) -> Self {
        Machine { root: root.into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The text of a file without trailing whitespace. Invalid UTF-8 is replaced.
    pub fn read(&self, path: &str) -> io::Result<String> {
        self.read_up_to(path, LIMIT)
    }

    pub fn read_up_to(&self, path: &str, limit: u64) -> io::Result<String> {
        let mut raw = Vec::new();
        File::open(self.path(path))?.take(limit).read_to_end(&mut raw)?;
        Ok(String::from_utf8_lossy(&raw).trim_end().to_owned())
    }

    pub fn file_len(&self, path: &str) -> io::Result<u64> {
        // Opened instead of stat'ed, because this process must be able to read it.
        Ok(File::open(self.path(path))?.metadata()?.len())
    }

    /// The inode number of one of this process's namespaces (`net:[4026531840]`).
    pub fn namespace(&self, kind: &str) -> Option<u64> {
        let link = fs::read_link(self.path(&format!("/proc/self/ns/{kind}"))).ok()?;
        link.to_str()?.split_once('[')?.1.strip_suffix(']')?.parse().ok()
    }

    /// The value of a line in `/proc/self/status`.
    pub fn status_field(&self, key: &str) -> Option<String> {
        let status = self.read("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }

    pub fn capabilities(&self) -> Capabilities {
        let field = self.status_field("CapEff").unwrap_or_default();
        Capabilities::from_hex(&field).unwrap_or_default()
    }

    /// The effective user id. None: it cannot be read from /proc.
    pub fn euid(&self) -> Option<u32> {
        self.status_field("Uid")?.split_whitespace().nth(1)?.parse().ok()
    }

    /// The kernel's version as (major, minor).
    pub fn kernel_version(&self) -> Option<(u32, u32)> {
        let release = self.read("/proc/sys/kernel/osrelease").ok()?;
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    pub fn mounts(&self) -> Vec<Mount> {
        let text = self.read("/proc/self/mountinfo").unwrap_or_default();
        text.lines().filter_map(mount).collect()
    }
}

fn mount(line: &str) -> Option<Mount> {
    // Optional fields are between the mount options and a single dash.
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let mut back = back.split(' ');
    Some(Mount {
        fs_root: front.next()?.to_owned(),
        point: text::escape(front.next()?),
        fs_type: back.next()?.to_owned(),
        super_options: back.nth(1).unwrap_or_default().to_owned(),
    })
}

/// A path, escaped for printing.
pub(super) fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    text::escape_bytes(path.as_os_str().as_bytes())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A fake machine with these files. A content of `-> target` creates a symbolic link.
    pub fn with(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
                None => fs::write(&path, content).unwrap(),
            }
        }
        let machine = Machine::at(dir.path());
        (dir, machine)
    }

    #[test]
    fn reads_mountinfo_with_and_without_optional_fields() {
        let expected = Mount {
            fs_root: "/../..".into(),
            point: "/sys/fs/cgroup".into(),
            fs_type: "cgroup2".into(),
            super_options: "rw,nsdelegate".into(),
        };
        for optional in ["", "shared:9 ", "shared:9 master:1 "] {
            let line =
                format!("41 31 0:38 /../.. /sys/fs/cgroup rw {optional}- cgroup2 cgroup2 rw,nsdelegate");
            assert_eq!(mount(&line), Some(expected.clone()), "{line}");
        }
        assert_eq!(mount("no dash here"), None);
    }

    #[test]
    fn reads_versions_namespaces_and_ids() {
        let (_dir, machine) = with(&[
            ("/proc/sys/kernel/osrelease", "6.18.44-fc-v669\n"),
            ("/proc/self/ns/pid", "-> pid:[4026531836]"),
            ("/proc/self/status", "Name:\tx\nUid:\t1000\t0\t0\t0\nCapEff:\t000001fffeffffff\n"),
        ]);
        assert_eq!(machine.kernel_version(), Some((6, 18)));
        assert_eq!(machine.namespace("pid"), Some(4026531836));
        assert_eq!(machine.namespace("net"), None);
        assert_eq!(machine.euid(), Some(0));
    }
}
