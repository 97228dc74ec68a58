//! `cargo xtask build-ebpf [--check]`: probe-ebpf/ → probe-ebpf/prebuilt/{podopsy-probe.o, STAMP}.
//!
//! The same sources and tools give the same bytes in any folder and with any CARGO_HOME: paths are remapped,
//! and what differs between machines (the linker's path) is passed in environment variables, since cargo hashes
//! rustflags into symbol names. DWARF is only bpf-linker's source for BTF, and is stripped afterwards.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

use crate::sh;
use crate::stamp::{self, Stamp};
use crate::toolchain::{self, Toolchain};

const TARGET: &str = "bpfel-unknown-none";
const BIN: &str = "podopsy-probe";

/// The command.
pub fn run(check: bool) -> Result<()> {
    let probe = sh::root().join("probe-ebpf");
    let toolchain = toolchain::find()?;
    sh::progress(format_args!("{}: rustc {}", toolchain.name, toolchain.tools.rustc));
    if check { check_bytes(&probe, &toolchain) } else { rebuild(&probe, &toolchain) }
}

fn rebuild(probe: &Path, toolchain: &Toolchain) -> Result<()> {
    let object = compile(probe, toolchain, &probe.join("target"), false)?;
    let stamp = Stamp::of(probe, &object, toolchain.tools.clone())?;
    std::fs::create_dir_all(probe.join("prebuilt"))?;
    // The object first: a stamp must never describe an object that is not written yet.
    std::fs::write(probe.join(stamp::OBJECT), &object).context(stamp::OBJECT)?;
    std::fs::write(probe.join(stamp::STAMP), stamp.to_string()).context(stamp::STAMP)?;
    sh::progress(format_args!("probe-ebpf/{}: {} bytes, {}", stamp::OBJECT, object.len(), stamp.object));
    Ok(())
}

fn check_bytes(probe: &Path, toolchain: &Toolchain) -> Result<()> {
    let stamp = Stamp::read(probe)?;
    let committed = std::fs::read(probe.join(stamp::OBJECT))
        .with_context(|| format!("{}: {}", stamp::OBJECT, stamp::REMEDY))?;
    let complaints = stamp::complaints(probe)?;
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    // A separate folder: the result of an earlier build must not stand in for the sources.
    let scratch = Scratch(sh::root().join(format!("target/ebpf-check-{}", std::process::id())));
    let rebuilt = compile(probe, toolchain, &scratch.0, true)?;
    if rebuilt == committed {
        sh::progress(format_args!(
            "the committed object equals a rebuild of its sources, byte for byte ({})",
            stamp.object
        ));
        return Ok(());
    }
    let mut report = String::from("the committed object differs from a rebuild of its sources:");
    for line in differences(&committed, &rebuilt)? {
        report += &format!("\n  {line}");
    }
    if toolchain.tools == stamp.tools {
        report += &format!("\nthe tools are those of STAMP, so the object is stale: {}", stamp::REMEDY);
    } else {
        report += &format!(
            "\nthe tools are not those of STAMP, so the bytes need not agree; STAMP's:\n{}here:\n{}\
             compare with STAMP's tools (`cargo xtask setup ebpf` on Debian 12), or {}",
            stamp.tools,
            toolchain.tools,
            stamp::REMEDY
        );
    }
    bail!(report)
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: it lies under target/, so `cargo clean` removes the rest.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Compiles, links and strips; returns the object.
fn compile(probe: &Path, toolchain: &Toolchain, target_dir: &Path, locked: bool) -> Result<Vec<u8>> {
    let locked: &[&str] = if locked { &["--locked"] } else { &[] };
    // First the crates: the flags name the folders that they are unpacked to.
    sh::run(cargo(probe, toolchain).arg("fetch").args(locked)).context("probe-ebpf/Cargo.lock")?;
    let mut build = cargo(probe, toolchain);
    build.args(["build", "--release", "--bin", BIN, "-Z", "build-std=core", "--target", TARGET]).args(locked);
    build.arg("--target-dir").arg(target_dir);
    build.env("CARGO_ENCODED_RUSTFLAGS", rustflags(probe, toolchain)?);
    build.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker);
    sh::run(&mut build)?;
    let linked = target_dir.join(TARGET).join("release").join(BIN);
    let stripped = linked.with_extension("o");
    let mut strip = Command::new(&toolchain.objcopy);
    if let Some(libraries) = &toolchain.objcopy_libraries {
        strip.env("LD_LIBRARY_PATH", libraries);
    }
    sh::run(strip.arg("--strip-debug").arg(&linked).arg(&stripped))?;
    std::fs::read(&stripped).with_context(|| stripped.display().to_string())
}

/// A cargo for the probe's workspace, without the environment variables that the outer cargo or the user set for other builds.
fn cargo(probe: &Path, toolchain: &Toolchain) -> Command {
    let mut command = sh::cargo();
    for (name, _) in std::env::vars_os() {
        if is_foreign(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    // RUSTC_BOOTSTRAP lets a stable cargo and rustc take -Z flags.
    command.current_dir(probe).env("RUSTC", &toolchain.rustc).env("RUSTC_BOOTSTRAP", "1");
    command
}

fn is_foreign(name: &str) -> bool {
    let whole = [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUSTC",
        "RUSTC_WRAPPER",
        "CARGO_TARGET_DIR",
    ];
    let starts = [
        "CARGO_PROFILE_",
        "CARGO_BUILD_",
        "CARGO_TARGET_BPF",
        "CARGO_UNSTABLE_",
        "RUSTC_WORKSPACE_",
        "CARGO_PKG_",
    ];
    whole.contains(&name) || starts.iter().any(|start| name.starts_with(start))
}

/// The flags, in the format of CARGO_ENCODED_RUSTFLAGS.
fn rustflags(probe: &Path, toolchain: &Toolchain) -> Result<OsString> {
    let mut flags: Vec<OsString> =
        // The layout of pt_regs: of the machine that we run on, since the target "bpf" has none.
        ["--cfg", r#"bpf_target_arch="x86_64""#, "-Cdebuginfo=2", "-Clink-arg=--btf"].map(OsString::from).into();
    let mut remap = |from: &Path, to: &str| {
        let mut pair = from.as_os_str().to_owned();
        pair.push("=");
        pair.push(to);
        flags.extend([OsString::from("--remap-path-prefix"), pair]);
    };
    remap(probe, "/podopsy/probe-ebpf");
    for dir in &toolchain.rust_src {
        remap(dir, "/rust");
    }
    for dir in registries()? {
        remap(&dir, "/cargo");
    }
    Ok(flags.join(&OsString::from("\u{1f}")))
}

/// Where cargo unpacks crates: a folder for each registry, named after a hash of its address.
fn registries() -> Result<Vec<PathBuf>> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
            .join(".cargo"),
    };
    let src = home.join("registry/src");
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(&src).with_context(|| src.display().to_string())? {
        dirs.push(entry?.path());
    }
    dirs.sort();
    Ok(dirs)
}

/// The differences between two objects, section by section.
fn differences(committed: &[u8], rebuilt: &[u8]) -> Result<Vec<String>> {
    let committed = sections(committed).context("the committed object")?;
    let rebuilt = sections(rebuilt).context("the rebuilt object")?;
    let mut out = Vec::new();
    for (name, old) in &committed {
        match rebuilt.get(name) {
            None => out.push(format!("{name}: only in the committed object")),
            Some(new) if new == old => {}
            Some(new) => {
                let first = old.iter().zip(new).take_while(|(a, b)| a == b).count();
                out.push(format!(
                    "{name}: {} bytes committed, {} rebuilt, first difference at {first:#x}",
                    old.len(),
                    new.len()
                ));
            }
        }
    }
    out.extend(
        rebuilt
            .keys()
            .filter(|name| !committed.contains_key(*name))
            .map(|n| format!("{n}: only in the rebuilt object")),
    );
    if out.is_empty() {
        out.push("no section's contents: headers or the order of sections".to_owned());
    }
    Ok(out)
}

fn sections(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let file = object::File::parse(bytes)?;
    file.sections().map(|s| Ok((s.name()?.to_owned(), s.data()?.to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_for_other_builds_do_not_reach_the_kernel_side() {
        for name in [
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "CARGO_PROFILE_RELEASE_DEBUG",
            "CARGO_BUILD_TARGET",
            "RUSTC_WRAPPER",
        ] {
            assert!(is_foreign(name), "{name}");
        }
        for name in ["PATH", "HOME", "CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "CARGO_HTTP_PROXY"] {
            assert!(!is_foreign(name), "{name}");
        }
    }

    #[test]
    fn differing_sections_are_named() {
        // Any two ELF files do: this test's own binary, and itself with one byte of .text turned.
        let mut bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let old = bytes.clone();
        let (offset, _) =
            object::File::parse(&*old).unwrap().section_by_name(".text").unwrap().file_range().unwrap();
        bytes[offset as usize + 0x10] ^= 1;
        let found = differences(&old, &bytes).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with(".text: ") && found[0].ends_with("first difference at 0x10"),
            "{found:?}"
        );
        assert_eq!(
            differences(&old, &old).unwrap(),
            ["no section's contents: headers or the order of sections"]
        );
    }
}
