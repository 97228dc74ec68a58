//! Makes the corpora: small valid inputs for each target, and the shapes that hostile ones have.
//!
//! The files are committed. After a change here, `PODOPSY_FUZZ_WRITE=1 cargo test -p podopsy-fuzz corpus` writes them.
//! Further files, such as inputs that a fuzzer found, may lie beside them.

mod binary;
mod records;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::{corpus_of, elf, files, network, process};

/// Bytes of one file, and of all.
const MAX_FILE: u64 = 4 << 10;
const MAX_ALL: u64 = 300 << 10;

/// The inputs of one target by the names of their files.
type Inputs = Vec<(&'static str, Vec<u8>)>;

fn all() -> BTreeMap<&'static str, Inputs> {
    binary::inputs().into_iter().chain(text::inputs()).collect()
}

fn names() -> BTreeSet<&'static str> {
    [elf::NAMES, files::NAMES, network::NAMES, process::NAMES].concat().into_iter().collect()
}

#[test]
fn each_target_has_a_corpus_and_it_is_the_one_that_is_made_here() {
    let made = all();
    assert_eq!(made.keys().copied().collect::<BTreeSet<_>>(), names());
    for (target, inputs) in made {
        assert!(!inputs.is_empty(), "{target}");
        for (name, bytes) in inputs {
            let path = corpus_of(target).join(name);
            if std::env::var_os("PODOPSY_FUZZ_WRITE").is_some() {
                std::fs::create_dir_all(corpus_of(target)).unwrap();
                std::fs::write(&path, &bytes).unwrap();
            }
            let committed = std::fs::read(&path).unwrap_or_default();
            // Another version of the compressor may write the same content in another way.
            let is_packed = |bytes: &[u8]| bytes.starts_with(&[0x1f, 0x8b]);
            assert!(
                committed == bytes || is_packed(&bytes) && is_packed(&committed),
                "{} differs: PODOPSY_FUZZ_WRITE=1 writes it",
                path.display()
            );
        }
    }
}

#[test]
fn the_corpora_are_small_and_belong_to_targets() {
    let root = corpus_of("x").ancestors().nth(2).unwrap().to_owned();
    let mut sum = 0;
    for folder in std::fs::read_dir(&root).into_iter().flatten().flatten() {
        let target = folder.file_name().into_string().unwrap();
        assert!(names().contains(&*target), "{target} is no target");
        sum += size_of_files(&folder.path().join("corpus")) + size_of_files(&folder.path().join("crashes"));
    }
    assert!(sum <= MAX_ALL, "{sum} bytes");
}

fn size_of_files(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = files.map(|file| {
        let size = file.metadata().unwrap().len();
        assert!(size <= MAX_FILE, "{} has {size} bytes", file.path().display());
        size
    });
    sizes.sum()
}
