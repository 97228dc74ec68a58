//! Finds the separate debug file of an executable: by build id, or by the name and the checksum in `.gnu_debuglink`.
//!
//! Only the host's folder of debug files is searched, whatever path a container's file contains. Must not depend on:
//! caches, blazesym.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::Crc;

use super::elf::{self, Layout, read_at, sections};
use super::open;

/// Where distributions put separate debug information.
const FOLDER: &str = "/usr/lib/debug";
/// The largest file whose checksum is computed: a checksum covers the whole file.
const MAX_CHECKED: u64 = 1 << 30;
/// Bytes of `.gnu_debuglink`: a file name, padded to four bytes, and a checksum.
const MAX_LINK: usize = 1024;

/// Opens the debug file of an executable that was mapped from `path`.
pub(super) fn find(file: &File, layout: &Layout, path: &str) -> Option<File> {
    by_build_id(Path::new(FOLDER), &layout.build_id).or_else(|| by_link(Path::new(FOLDER), file, path))
}

/// Opens `.build-id/XX/YYYY.debug`. The id is written in hex, so that it cannot lead to another folder.
fn by_build_id(folder: &Path, build_id: &[u8]) -> Option<File> {
    let (first, rest) = build_id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = folder.join(format!(".build-id/{first:02x}/{rest}.debug"));
    let file = open::regular_file(&open::reference(&path).ok()?).ok()?;
    // A debug file contains the build id too. A file with the right name but another id is not the right one.
    (elf::layout(&file)?.build_id == build_id).then_some(file)
}

/// Opens the linked file in the executable's own folder below `folder`.
fn by_link(folder: &Path, file: &File, path: &str) -> Option<File> {
    let section = sections(file).into_iter().find(|section| section.name == b".gnu_debuglink")?;
    let link = read_at(file, section.offset, usize::try_from(section.size).ok()?.min(MAX_LINK)).ok()?;
    let name = std::str::from_utf8(&link[..link.iter().position(|&byte| byte == 0)?]).ok()?;
    let sum = link.get((name.len() + 1).next_multiple_of(4)..)?.get(..4)?;
    // The link must be a plain file name, and no path to another folder.
    if name.is_empty() || name.contains('/') || name == ".." {
        return None;
    }
    let below: PathBuf = Path::new(path).parent()?.join(name);
    let root = open::reference(folder).ok()?;
    let found =
        open::regular_file(&open::reference_inside(&root, below.as_os_str().as_encoded_bytes()).ok()?)
            .ok()?;
    (checksum(&found)? == u32::from_le_bytes(sum.try_into().ok()?)).then_some(found)
}

fn checksum(file: &File) -> Option<u32> {
    if file.metadata().ok()?.len() > MAX_CHECKED {
        return None;
    }
    let (mut sum, mut piece, mut file) = (Crc::new(), vec![0; 1 << 20], file.take(MAX_CHECKED));
    loop {
        match file.read(&mut piece).ok()? {
            0 => return Some(sum.sum()),
            read => sum.update(&piece[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::symbolize::symbol_copy;

    fn run(program: &str, args: &[&str]) {
        let done =
            Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// A stripped program, its debug file, and a folder like /usr/lib/debug.
    #[test]
    #[ignore = "needs g++ and binutils: cargo xtask setup test"]
    fn a_debug_file_is_found_by_build_id_or_by_link_only_if_it_belongs_to_the_executable() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir_all(path("debug/opt/shop")).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/victims/native/signals.c");
        let (program, debug) = (path("checkout"), path("debug/opt/shop/checkout.debug"));
        for build_id in ["-Wl,--build-id=0xc0ffee00c0ffee00", "-Wl,--build-id=none"] {
            run("gcc", &["-g", build_id, "-o", &program, source]);
            run("objcopy", &["--only-keep-debug", &program, &debug]);
            run("objcopy", &["--strip-all", &format!("--add-gnu-debuglink={debug}"), &program]);
            let file = File::open(&program).unwrap();
            assert!(
                symbol_copy::copy_symbols(&file, symbol_copy::FileAuthor::Container)
                    .unwrap()
                    .is_none_or(|copy| !copy.has_debug_info)
            );
            let found = by_link(Path::new(&path("debug")), &file, "/opt/shop/checkout").unwrap();
            assert!(
                symbol_copy::copy_symbols(&found, symbol_copy::FileAuthor::Container)
                    .unwrap()
                    .unwrap()
                    .has_debug_info
            );
            // Another folder, and a path that leads out of the folder.
            assert!(by_link(Path::new(&path("debug")), &file, "/opt/other/checkout").is_none());
            assert!(by_link(Path::new(&path("debug")), &file, "/../../opt/other/checkout").is_none());
            if !build_id.ends_with("none") {
                let id = elf::layout(&file).unwrap().build_id;
                std::fs::create_dir_all(path("debug/.build-id/c0")).unwrap();
                std::fs::copy(&debug, path("debug/.build-id/c0/ffee00c0ffee00.debug")).unwrap();
                assert!(by_build_id(Path::new(&path("debug")), &id).is_some());
                std::fs::copy("/bin/true", path("debug/.build-id/c0/ffee00c0ffee00.debug")).unwrap();
                assert!(by_build_id(Path::new(&path("debug")), &id).is_none(), "a file of another program");
            }
            std::fs::write(&debug, "replaced").unwrap();
            assert!(by_link(Path::new(&path("debug")), &file, "/opt/shop/checkout").is_none());
        }
    }
}
