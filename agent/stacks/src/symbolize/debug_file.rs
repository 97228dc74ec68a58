//! Opens the separate debug file of an executable: by build id, or by the name in `.gnu_debuglink`.
//!
//! Only the host's folder of debug files is searched, whatever path a container's file contains. The parser checks that the
//! file belongs to the executable. Must not depend on: caches, ELF.

use std::fs::File;
use std::path::Path;

use podopsy_worker::FileDescription;

use super::{hex, open};

/// Where distributions put separate debug information.
const FOLDER: &str = "/usr/lib/debug";

/// Opens the debug file of an executable that was mapped from `path`.
pub(super) fn open(described: &FileDescription, path: &str) -> Option<File> {
    let folder = Path::new(FOLDER);
    by_build_id(folder, &described.layout.build_id)
        .or_else(|| by_link(folder, path, &described.debug_link.as_ref()?.name))
}

/// Opens `.build-id/XX/YYYY.debug`. The id is written in hex, so that it cannot lead to another folder.
fn by_build_id(folder: &Path, build_id: &[u8]) -> Option<File> {
    let (first, rest) = build_id.split_first()?;
    let path = folder.join(format!(".build-id/{first:02x}/{}.debug", hex(rest)));
    open::regular_file(&open::reference(&path).ok()?).ok()
}

/// Opens the linked file in the executable's own folder below `folder`.
fn by_link(folder: &Path, path: &str, name: &str) -> Option<File> {
    // The parser promises a plain name. It may have been taken over by the file that it read.
    if name.is_empty() || name.contains('/') || name == ".." {
        return None;
    }
    let below = Path::new(path).parent()?.join(name);
    let root = open::reference(folder).ok()?;
    open::regular_file(&open::reference_inside(&root, below.as_os_str().as_encoded_bytes()).ok()?).ok()
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
        let text = |file: Option<File>| file.map(|file| std::io::read_to_string(file).unwrap());
        assert_eq!(text(by_build_id(folder.path(), &[0xc0, 0xff, 0xee])).as_deref(), Some("by id"));
        assert_eq!(text(by_build_id(folder.path(), &[])), None);
        let link = |path: &str, name: &str| text(by_link(folder.path(), path, name));
        assert_eq!(link("/opt/shop/checkout", "checkout.debug").as_deref(), Some("by link"));
        assert_eq!(link("/opt/other/checkout", "checkout.debug"), None);
        assert_eq!(link("/x/../../opt/shop/checkout", "../checkout.debug"), None);
        assert_eq!(link("/../../opt/other/checkout", "checkout.debug"), None);
    }
}
