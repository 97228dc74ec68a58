//! podopsy's chores, one file a command. A library, so that the offline tests can use [`stamp`] and the
//! rules of [`tidy`] without building anything.
//!
//! | command | file | does |
//! |---|---|---|
//! | `setup` | [`setup`] | installs packages and bpf-linker |
//! | `build-ebpf` | [`build_ebpf`] | probe-ebpf/ → probe-ebpf/prebuilt/ |
//! | `demo` | [`demo`] | two real pods, recorded |
//! | `test` | [`test`] | everything CI does |
//! | `vm` | [`vm`] | the kernel tests on Debian's kernels |
//! | `bench` | [`bench`] | what the probes cost |
//! | `build-static` | [`statics`] | what goes into images |
//! | `image` | [`image`] | static binaries, container image |
//! | `picture` | [`picture`] | terminal output in docs/images/ → SVG |
//! | `tidy` | [`tidy`] | the rules that a tool can check |
//!
//! [`sh`] runs commands, [`apt`] installs packages, [`archive`] fetches those of other Debian releases ([`debian13`], the
//! kernels of [`vm`]), [`toolchain`] finds what compiles the kernel side.

#![forbid(unsafe_code)]

pub mod apt;
pub mod archive;
pub mod bench;
pub mod build_ebpf;
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
