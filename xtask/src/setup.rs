//! `cargo xtask setup [ebpf|test|vm|cluster|demo]…`: installs what the other commands need. Idempotent.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::apt::{self, Package};
use crate::{cluster, debian13, sh, toolchain};

/// What to install. Without a name, all groups are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// The compiler of the kernel side: rustc-web, LLVM 22, bpf-linker
    Ebpf,
    /// What the kernel tests run on: a container runtime, and Go's pprof
    Test,
    /// What the lab boots other kernels with
    Vm,
    /// What a real Kubernetes node is built with and runs on
    Cluster,
    /// What the demo runs on
    Demo,
}

const EBPF: &[Package] = &[
    Package { name: "rustc-web", why: "Rust 1.96 with LLVM 22: compiles the kernel side" },
    Package { name: "rust-web-src", why: "the sources of `core`, which -Z build-std compiles for BPF" },
    Package { name: "llvm-22", why: "llvm-objcopy: removes DWARF from the object" },
    Package { name: "llvm-22-dev", why: "bpf-linker links against LLVM 22, the LLVM of that rustc" },
    Package { name: "libpolly-22-dev", why: "llvm-config of llvm-22-dev lists it" },
    Package { name: "zlib1g-dev", why: "LLVM links it" },
    Package { name: "libzstd-dev", why: "LLVM links it" },
    Package { name: "gcc", why: "cargo links programs with it" },
    Package { name: "g++", why: "libstdc++, which LLVM links" },
];

const PODS: &[Package] = &[
    Package { name: "containerd", why: "runs the tests' and the demo's pods, as a private instance" },
    Package { name: "runc", why: "containerd starts containers with it" },
    Package { name: "containernetworking-plugins", why: "gives the pods their network" },
    Package { name: "iproute2", why: "inspects and removes the pods' network" },
    Package { name: "iptables", why: "the CNI bridge plugin calls it" },
];

const READERS: &[Package] = &[
    Package {
        name: "golang-go",
        why: "`go tool pprof` must be able to read our profiles; a test profiles a Go program",
    },
    Package { name: "graphviz", why: "draws `go tool pprof`'s web graph" },
    Package { name: "binutils", why: "readelf is what our unwind tables are compared with" },
    Package { name: "g++", why: "compiles programs with known stacks" },
    Package {
        name: "gdb",
        why: "opens the cores of `podopsy core`, and what it sees live is what they are compared with",
    },
    Package { name: "python3", why: "a test profiles it; a process that holds memory" },
    Package { name: "nodejs", why: "its heap fills a container's limit" },
    Package {
        name: "python3-venv",
        why: "holds what checks the image's bill of materials, and a client of `podopsy mcp`",
    },
    Package { name: "zsh", why: "a test completes podopsy's command line in it" },
    Package { name: "fish", why: "a test completes podopsy's command line in it" },
    Package { name: "openssl", why: "a test profiles it" },
    Package { name: "chromium", why: "a test opens a report in it, without a network" },
    Package { name: "luajit", why: "stacks of an interpreter in assembly, and of code made at run time" },
    Package {
        name: "nodejs",
        why: "stacks of code made at run time, and of code that was moved to huge pages",
    },
    Package { name: "xz-utils", why: "a test profiles it; newer kernels' modules are compressed" },
];

const RESOLVERS: &[Package] = &[
    Package { name: "musl-tools", why: "musl's resolver differs from glibc's" },
    Package { name: "bind9-dnsutils", why: "dig, a client that sends any query" },
    Package { name: "libc-ares-dev", why: "c-ares, the resolver of Node.js, gRPC and curl" },
    Package { name: "dnsmasq-base", why: "a forwarder, without a service" },
];

/// Unpacked beside the system, not installed: installing them would start a service or replace another package.
const UNPACKED: &[Package] = &[
    Package { name: "bind9", why: "named, a real DNS server" },
    Package { name: "busybox-static", why: "a client with its own resolver" },
    Package { name: "openjdk-17-jdk-headless", why: "compiles the tests' Java programs" },
    Package { name: "openjdk-17-jre-headless", why: "a JVM whose heap fills its limit" },
    Package { name: "prometheus", why: "scrapes the agent; promtool checks its metrics page" },
    Package { name: "prometheus-alertmanager", why: "forwards the alerts of a real kill" },
    Package { name: "victoria-metrics", why: "Prometheus writes to it by remote write" },
];

const LAB: &[Package] = &[
    Package { name: "qemu-system-x86", why: "boots other kernels, without KVM" },
    Package { name: "cpio", why: "packs a machine's initramfs" },
    Package { name: "kmod", why: "resolves the modules' dependencies, and loads modules in the machines" },
    Package { name: "debian-archive-keyring", why: "verifies the kernels' signatures" },
];

/// What Kubernetes is built with. Its own sources are downloaded by `cargo xtask cluster up`.
const KUBERNETES: &[Package] = &[
    Package { name: "golang-go", why: "compiles Kubernetes" },
    Package { name: "make", why: "starts the generator of the API's description" },
    Package { name: "rsync", why: "Kubernetes' Makefile calls it" },
    Package { name: "jq", why: "the generator of the API's description calls it" },
    Package { name: "debian-archive-keyring", why: "verifies the source package" },
    Package { name: "openssl", why: "makes the cluster's certificates" },
];

/// Unpacked into a folder of their own: the tests' folder would otherwise be replaced.
const CLUSTER_UNPACKED: &[Package] = &[Package { name: "etcd-server", why: "stores the cluster's objects" }];

/// The command.
pub fn run(groups: &[Group]) -> Result<()> {
    let names: Vec<_> =
        groups.iter().filter_map(|g| Some(g.to_possible_value()?.get_name().to_owned())).collect();
    sh::need_root(format!("setup {}", names.join(" ")).trim_end(), "installs packages")?;
    let all = [Group::Ebpf, Group::Test, Group::Vm, Group::Cluster, Group::Demo];
    install(if groups.is_empty() { &all } else { groups })
}

/// Installs the groups; the caller has checked that it runs as root.
pub fn install(groups: &[Group]) -> Result<()> {
    install_packages(groups)?;
    install_rest(groups)
}

/// The first half of [`install`]: packages of this machine.
pub fn install_packages(groups: &[Group]) -> Result<()> {
    apt::install(&packages(groups))
}

/// The second half: what is kept in the cache folder, beside the system.
pub fn install_rest(groups: &[Group]) -> Result<()> {
    if groups.contains(&Group::Test) {
        unpack_servers()?;
        debian13::install(&cache_dir()?)?;
        cluster::ensure_kubectl()?;
        fetch_schemas()?;
        install_python("sbom", "xtask/schemas/requirements.txt", "the validator of CycloneDX")?;
        install_python("mcp", "cli/tests/mcp/requirements.txt", "the SDK of the Model Context Protocol")?;
    }
    if groups.contains(&Group::Cluster) {
        apt::unpack(CLUSTER_UNPACKED, &cache_dir()?.join("cluster/packages"))?;
    }
    if groups.contains(&Group::Ebpf) {
        install_bpf_linker()?;
    }
    Ok(())
}

/// Unpacks Prometheus and the other servers; returns the folder that has their `usr/bin`.
pub fn unpack_servers() -> Result<PathBuf> {
    let folder = cache_dir()?.join("packages");
    apt::unpack(UNPACKED, &folder)?;
    Ok(folder)
}

fn packages(groups: &[Group]) -> Vec<Package> {
    let mut out: Vec<Package> = Vec::new();
    for group in groups {
        let lists: &[&[Package]] = match group {
            Group::Ebpf => &[EBPF],
            Group::Test => &[PODS, READERS, RESOLVERS],
            Group::Vm => &[LAB],
            Group::Cluster => &[PODS, KUBERNETES],
            Group::Demo => &[PODS],
        };
        for package in lists.iter().copied().flatten() {
            if out.iter().all(|listed| listed.name != package.name) {
                out.push(*package);
            }
        }
    }
    out
}

/// The folder of tools that are built here. It lies outside of target/, so that they survive `cargo clean` and serve other
/// clones.
pub fn tools_dir() -> Result<PathBuf> {
    Ok(cache_dir()?.join("tools"))
}

/// The folder of everything that clones share.
pub fn cache_dir() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = match cache {
        Some(dir) => dir,
        None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(cache.join("podopsy"))
}

/// Downloads the crates that a test reads the types of Kubernetes' objects from.
fn fetch_schemas() -> Result<()> {
    let mut command = sh::cargo();
    command.args(["fetch", "--quiet", "--locked", "--manifest-path"]);
    sh::run(command.arg(sh::root().join("xtask/schemas/Cargo.toml")))
        .context("cannot download the schemas of Kubernetes; they need crates.io")
}

/// A Python with packages of a test, in a folder of the cache.
fn install_python(name: &str, requirements: &str, what: &str) -> Result<()> {
    let folder = cache_dir()?.join(name);
    sh::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let mut command = Command::new(folder.join("bin/python"));
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    sh::run(command.arg(sh::root().join(requirements)))
        .with_context(|| format!("cannot install {what}; it needs PyPI"))
}

fn install_bpf_linker() -> Result<()> {
    let root = tools_dir()?;
    let installed = toolchain::linker_version(&root.join("bin/bpf-linker")).ok();
    if installed.as_deref() == Some(toolchain::BPF_LINKER) {
        sh::progress(format_args!("bpf-linker {} is in {}", toolchain::BPF_LINKER, root.display()));
        return Ok(());
    }
    sh::progress(format_args!(
        "building bpf-linker {} into {} (about a minute)",
        toolchain::BPF_LINKER,
        root.display()
    ));
    let mut command = sh::cargo();
    command.args(["install", "bpf-linker", "--version", toolchain::BPF_LINKER, "--locked", "--force"]);
    command.args(["--no-default-features", "--features", "llvm-22", "--root"]).arg(&root);
    // Flags meant for podopsy (crt-static, say) must not reach a program that loads libLLVM.so.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    sh::run(command.env("LLVM_PREFIX", toolchain::LLVM_PREFIX))
        .context("cannot build bpf-linker; it needs crates.io and the packages of `cargo xtask setup ebpf`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_package_is_listed_twice_and_each_has_a_reason() {
        let mut all = packages(&[Group::Ebpf, Group::Test, Group::Vm, Group::Cluster, Group::Demo]);
        all.extend_from_slice(UNPACKED);
        all.extend_from_slice(CLUSTER_UNPACKED);
        for (i, package) in all.iter().enumerate() {
            assert!(!package.why.is_empty());
            assert!(all[i + 1..].iter().all(|other| other.name != package.name), "{} twice", package.name);
        }
        assert!(all.iter().any(|p| p.name == "rustc-web") && all.iter().any(|p| p.name == "containerd"));
    }

    #[test]
    fn the_demo_needs_no_compiler_of_the_kernel_side() {
        assert!(
            packages(&[Group::Demo]).iter().all(|p| !p.name.contains("llvm") && !p.name.contains("rust"))
        );
    }
}
