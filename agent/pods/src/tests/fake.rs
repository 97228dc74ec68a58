//! A fake node in a folder.

use std::path::PathBuf;
use std::time::Duration;

pub use super::fake_runtime::{APP, OLD, PAUSE, UID, serve};

use crate::PodsOptions;

pub const FAKE: &str = "ffff2233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A fake node: a folder with `cg` (a v2 hierarchy), `proc`, `logs` and the socket.
pub struct FakeNode {
    dir: tempfile::TempDir,
}

impl FakeNode {
    pub fn new() -> FakeNode {
        let node = FakeNode { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(node.at("cg")).unwrap();
        std::fs::create_dir_all(node.at("proc/self")).unwrap();
        std::fs::write(node.at("cg/cgroup.controllers"), "memory").unwrap();
        node
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Creates a cgroup and returns its id.
    pub fn mkdir(&self, path: &str) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let dir = self.at("cg").join(path);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::metadata(dir).unwrap().ino()
    }

    pub fn rmdir(&self, path: &str) {
        std::fs::remove_dir(self.at("cg").join(path)).unwrap();
    }

    pub fn options(&self) -> PodsOptions {
        PodsOptions {
            cri_socket: Some(self.at("cri.sock")),
            cri_timeout: Duration::from_millis(600),
            reader: None,
            from_inside: false,
            remember_dead: Duration::from_secs(600),
            proc_root: self.at("proc"),
            cgroup_root: self.at("cg"),
            log_pods: self.at("logs"),
        }
    }
}
