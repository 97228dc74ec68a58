//! The committed kernel object was built from the committed sources. Needs no BPF toolchain: it compares
//! hashes; `cargo xtask build-ebpf --check` compares bytes.

use xtask::{sh, stamp};

#[test]
fn the_prebuilt_object_belongs_to_the_sources() {
    let complaints =
        stamp::complaints(&sh::root().join("probe-ebpf")).unwrap_or_else(|e| vec![format!("{e:#}")]);
    assert!(complaints.is_empty(), "run cargo xtask build-ebpf:\n{}", complaints.join("\n"));
}
