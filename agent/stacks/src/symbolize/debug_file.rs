//! Opens the separate debug file of an executable: by build id, or by the name in `.gnu_debuglink`.
//!
//! Only the host's folder of debug files is searched, whatever path a container's file contains. The parser checks that the
//! file belongs to the executable. Must not depend on: caches, ELF.

use std::path::{Component, Path};

use podopsy_opener::{FileHandle, Openers, Target};
use podopsy_worker::{FileDescription, Tenant};

use super::hex;

/// Where distributions put separate debug information.
const FOLDER: &str = "/usr/lib/debug";
/// The node's own files belong to no container.
const NODE: Tenant = Tenant::MAX;

/// Opens the debug file of an executable that was mapped from `path`.
pub(super) fn open(openers: &Openers, described: &FileDescription, path: &str) -> Option<FileHandle> {
    let folder = Path::new(FOLDER);
    by_build_id(openers, folder, &described.layout.build_id)
        .or_else(|| by_link(openers, folder, path, &described.debug_link.as_ref()?.name))
}

fn open_path(openers: &Openers, path: &Path) -> Option<FileHandle> {
    let target = Target { tenant: NODE, pid: std::process::id(), may_hang: false };
    openers.file_in_root(target, path.as_os_str().as_encoded_bytes()).ok()
}

/// Opens `.build-id/XX/YYYY.debug`. The id is written in hex, so that it cannot lead to another folder.
fn by_build_id(openers: &Openers, folder: &Path, build_id: &[u8]) -> Option<FileHandle> {
    let (first, rest) = build_id.split_first()?;
    let path = folder.join(format!(".build-id/{first:02x}/{}.debug", hex(rest)));
    open_path(openers, &path)
}

/// Opens the linked file in the executable's own folder below `folder`.
fn by_link(openers: &Openers, folder: &Path, path: &str, name: &str) -> Option<FileHandle> {
    // The parser promises a plain name. It may have been taken over by the file that it read.
    if name.is_empty() || name.contains('/') || name == ".." {
        return None;
    }
    let below = Path::new(path).parent()?.strip_prefix("/").ok()?;
    // The kernel shows paths without such components; a container's mount namespace is not trusted with that.
    let is_plain = below.components().all(|component| matches!(component, Component::Normal(_)));
    is_plain.then(|| open_path(openers, &folder.join(below).join(name))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_file_is_found_by_build_id_or_by_link_below_the_folder_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("opt/shop")).unwrap();
        std::fs::create_dir_all(folder.path().join(".build-id/c0")).unwrap();
        std::fs::write(folder.path().join("opt/shop/checkout.debug"), "by link").unwrap();
        std::fs::write(folder.path().join(".build-id/c0/ffee.debug"), "by id").unwrap();
        let openers = Openers::in_threads();
        let size = |file: Option<FileHandle>| file.map(|file| file.stat.size);
        let by_id = |id: &[u8]| size(by_build_id(&openers, folder.path(), id));
        assert_eq!(by_id(&[0xc0, 0xff, 0xee]), Some(b"by id".len() as u64));
        assert_eq!(by_id(&[]), None);
        let link = |path: &str, name: &str| size(by_link(&openers, folder.path(), path, name));
        assert_eq!(link("/opt/shop/checkout", "checkout.debug"), Some(b"by link".len() as u64));
        assert_eq!(link("/opt/other/checkout", "checkout.debug"), None);
        assert_eq!(link("/x/../../opt/shop/checkout", "../checkout.debug"), None);
        assert_eq!(link("/../../opt/other/checkout", "checkout.debug"), None);
    }
}
