//! Finds what compiles the kernel side: Debian's rustc-web, or a rustup nightly.
//!
//! BPF needs `core` compiled from source (`-Z build-std`), so a rustc that takes unstable flags, its sources,
//! and a bpf-linker whose LLVM is not older than the rustc's. Debian's comes first: its versions are the same
//! on every machine, so its object equals the one in STAMP. A nightly's object works as well, but its bytes differ.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::stamp::Tools;
use crate::{setup, sh};

/// The version of bpf-linker that `setup` installs.
pub const BPF_LINKER: &str = "0.13.0";
/// Debian's LLVM 22, the LLVM of rustc-web.
pub const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// What compiles the kernel side.
#[derive(Debug)]
pub struct Toolchain {
    /// "Debian's rustc-web", "rustup's nightly".
    pub name: &'static str,
    pub rustc: PathBuf,
    pub linker: PathBuf,
    pub objcopy: PathBuf,
    /// The folder of objcopy's libLLVM, if the loader does not search it by default.
    pub objcopy_libraries: Option<PathBuf>,
    /// The folder with library/core; two paths if one of them is a symlink.
    pub rust_src: Vec<PathBuf>,
    pub tools: Tools,
}

/// Finds a toolchain. The error lists what each of the two kinds lacks.
pub fn find() -> Result<Toolchain> {
    let debian = match debian() {
        Ok(found) => return Ok(found),
        Err(e) => e,
    };
    nightly().map_err(|nightly| {
        anyhow!(
            "no toolchain can compile the kernel side:\n  Debian's rustc-web: {debian:#}\n    \
             → cargo xtask setup ebpf (as root)\n  rustup's nightly: {nightly:#}\n    \
             → rustup toolchain install nightly --component rust-src && cargo install bpf-linker"
        )
    })
}

fn debian() -> Result<Toolchain> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    ensure!(rustc.is_file(), "no {}", rustc.display());
    let verbose = sh::capture(Command::new(&rustc).arg("-vV"))?;
    let linker = setup::tools_dir()?.join("bin/bpf-linker");
    let linker_version = linker_version(&linker)?;
    let llvm = sh::capture(Command::new(format!("{LLVM_PREFIX}/bin/llvm-config")).arg("--version"))?;
    Ok(Toolchain {
        name: "Debian's rustc-web",
        rust_src: rust_src(&rustc)?,
        linker,
        objcopy: format!("{LLVM_PREFIX}/bin/llvm-objcopy").into(),
        objcopy_libraries: None,
        tools: Tools {
            rustc: rustc_version(&verbose)?,
            cargo: cargo_version()?,
            bpf_linker: linker_version,
            llvm: llvm.trim().to_owned(),
        },
        rustc,
    })
}

fn nightly() -> Result<Toolchain> {
    let rustc = sh::capture(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]))?;
    let rustc = PathBuf::from(rustc.trim());
    let verbose = sh::capture(Command::new(&rustc).arg("-vV"))?;
    let host = field(&verbose, "host: ")?;
    let linker = sh::which("bpf-linker").context("no bpf-linker on PATH")?;
    let sysroot = sysroot(&rustc)?;
    Ok(Toolchain {
        name: "rustup's nightly",
        rust_src: rust_src(&rustc)?,
        objcopy: sysroot.join("lib/rustlib").join(host).join("bin/rust-objcopy"),
        objcopy_libraries: Some(sysroot.join("lib")),
        tools: Tools {
            rustc: rustc_version(&verbose)?,
            cargo: cargo_version()?,
            bpf_linker: linker_version(&linker)?,
            llvm: field(&verbose, "LLVM version: ")?.to_owned(),
        },
        linker,
        rustc,
    })
}

/// The version that `bpf-linker --version` prints.
pub fn linker_version(linker: &Path) -> Result<String> {
    ensure!(linker.is_file(), "no {}", linker.display());
    let version = sh::capture(Command::new(linker).arg("--version"))?;
    Ok(version.trim().trim_start_matches("bpf-linker ").to_owned())
}

fn cargo_version() -> Result<String> {
    // Cargo computes the crates' hashes, which become part of symbol names.
    let version = sh::capture(sh::cargo().arg("--version"))?;
    Ok(version.trim().trim_start_matches("cargo ").to_owned())
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    Ok(sh::capture(Command::new(rustc).args(["--print", "sysroot"]))?.trim().into())
}

/// The folder in which cargo looks for library/ when it builds `core`, and the folder that it resolves to.
fn rust_src(rustc: &Path) -> Result<Vec<PathBuf>> {
    let named = sysroot(rustc)?.join("lib/rustlib/src/rust");
    if !named.join("library/core/Cargo.toml").is_file() {
        bail!("no sources of `core` in {}", named.display());
    }
    let real = named.canonicalize()?;
    Ok(if real == named { vec![named] } else { vec![named, real] })
}

fn rustc_version(verbose: &str) -> Result<String> {
    let first = verbose.lines().next().unwrap_or_default();
    let version =
        first.strip_prefix("rustc ").with_context(|| format!("`rustc -vV` begins with `{first}`"))?;
    Ok(version.trim_end_matches(" (built from a source tarball)").to_owned())
}

fn field<'a>(verbose: &'a str, key: &str) -> Result<&'a str> {
    verbose
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .with_context(|| format!("`rustc -vV` has no `{key}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_parsed_from_the_output_of_rustc() {
        let verbose = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                       host: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n";
        assert_eq!(rustc_version(verbose).unwrap(), "1.96.0 (ac68faa20 2026-05-25)");
        assert_eq!(field(verbose, "host: ").unwrap(), "x86_64-unknown-linux-gnu");
        assert_eq!(field(verbose, "LLVM version: ").unwrap(), "22.1.8");
        assert!(rustc_version("clang 14").is_err());
    }
}
