//! podopsy's build and test commands, one module each. It is a library, so that the offline tests can use [`stamp`] and the
//! rules of [`tidy`] without building anything.
//!
//! | command | file | does |
//! |---|---|---|
//! | `setup` | [`setup`] | installs packages and bpf-linker |
//! | `build-ebpf` | [`build_ebpf`] | probe-ebpf/ → probe-ebpf/prebuilt/ |
//! | `demo` | [`demo`] | records two real pods |
//! | `test` | [`test`] | runs everything that CI runs |
//! | `vm` | [`vm`] | runs the kernel tests on Debian's kernels |
//! | `cluster` | [`cluster`] | runs a real Kubernetes node, and the tests that need one |
//! | `bench` | [`bench`] | measures what the probes cost |
//! | `build-static` | [`statics`] | builds the binaries of images |
//! | `image` | [`image`] | builds static binaries and the container image |
//! | `chart` | [`chart`] | writes a Helm chart from manifests/ |
//! | `picture` | [`picture`] | draws terminal output and the dashboard in docs/images/ as SVG |
//! | `tidy` | [`tidy`] | checks the rules that a tool can check |
//!
//! [`sh`] runs commands, [`apt`] installs packages, [`archive`] fetches those of other Debian releases ([`debian13`], the
//! kernels of [`vm`]), [`toolchain`] finds what compiles the kernel side.

#![forbid(unsafe_code)]

pub mod apt;
pub mod archive;
pub mod bench;
pub mod build_ebpf;
pub mod chart;
pub mod cluster;
pub mod debian13;
pub mod demo;
pub mod image;
pub mod picture;
pub mod setup;
pub mod sh;
pub mod stamp;
pub mod statics;
pub mod test;
pub mod tidy;
pub mod toolchain;
pub mod vm;
