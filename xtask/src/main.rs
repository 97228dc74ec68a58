//! `cargo xtask`: parses the arguments and returns the exit code. Each command is a module of the library.
//!
//! Exit codes: 0 done; 1 something failed; 2 called in a way that cannot work (not root, bad arguments).

#![forbid(unsafe_code)]

#[cfg(test)]
mod docs_tests;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, build_ebpf, chart, cluster, demo, image, picture, setup, sh, statics, test, tidy, vm};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "podopsy's build and test commands",
    version
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the other commands need (as root; all groups by default)
    Setup { groups: Vec<setup::Group> },
    /// Build the kernel side into probe-ebpf/prebuilt/, with its STAMP
    BuildEbpf {
        /// Change nothing: rebuild in another folder and compare with the committed object, byte for byte
        #[arg(long)]
        check: bool,
    },
    /// Run two misbehaving pods under the recorder and show what it caught (as root)
    Demo(demo::DemoOptions),
    /// Run every test, installing what they need (as root)
    Test {
        /// Run only the tests whose name contains one of these, and skip the other checks
        filter: Vec<String>,
        /// Run only what needs neither root nor packages
        #[arg(long)]
        offline_only: bool,
        /// Do not boot other kernels
        #[arg(long, conflicts_with = "offline_only")]
        this_kernel: bool,
    },
    /// Run the kernel tests on Debian's kernels in QEMU, and on this one; a table at the end (as root)
    Vm {
        /// 5.10, 6.1, 6.12, 7.2, `running`, or `all` (the default)
        kernels: Vec<String>,
        /// Run only the tests whose name contains one of these
        #[arg(long, short, value_name = "FILTER")]
        test: Vec<String>,
        /// How many machines at once
        #[arg(long, short, default_value_t = vm::JOBS as u8, value_parser = clap::value_parser!(u8).range(1..=16))]
        jobs: u8,
    },
    /// Run a real Kubernetes node, and the tests that need one (as root; not part of `test`)
    Cluster {
        #[command(subcommand)]
        action: cluster::Action,
    },
    /// Measure what the probes cost on this machine (not part of any test)
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
    },
    /// Build static binaries, and print the folder they are in
    BuildStatic { what: statics::Statics },
    /// Build the static binaries and the container image, an OCI archive with a bill of materials; needs no daemon
    Image {
        #[command(flatten)]
        args: ImageArgs,
        /// Build it a second time, in another folder and from nothing, and compare the two byte for byte
        #[arg(long, conflicts_with = "platform")]
        check: bool,
    },
    /// Build all files of a release: binaries, image, bill of materials, manifests, completions, man pages, checksums
    Release(ImageArgs),
    /// Write a Helm chart from manifests/base and its components, into target/chart/podopsy
    Chart,
    /// Draw the terminal output and the dashboard in docs/images/ as SVG
    Picture(picture::PictureOptions),
    /// Check formatting, lints and the project's rules
    Tidy,
}

#[derive(clap::Args)]
struct ImageArgs {
    /// The image's name
    #[arg(long, default_value = image::DEFAULT_TAG)]
    tag: String,
    /// Static binaries for another processor, for one image of several platforms: arm64=FOLDER
    #[arg(long, value_name = "ARCH=FOLDER")]
    platform: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Setup { groups } => setup::run(&groups),
        Command::BuildEbpf { check } => build_ebpf::run(check),
        Command::Demo(options) => demo::run(&options),
        Command::Test { filter, offline_only, this_kernel } => test::run(&filter, offline_only, this_kernel),
        Command::Vm { kernels, test, jobs } => vm::run(&kernels, &test, jobs.into()),
        Command::Cluster { action } => cluster::run(&action),
        Command::Bench { what } => bench::run(&what),
        Command::BuildStatic { what } => statics::run(what),
        Command::Image { args, check: true } => image::check(&args.tag),
        Command::Image { args, check: false } => image::run(image::What::Image, &args.tag, &args.platform),
        Command::Release(args) => image::run(image::What::Release, &args.tag, &args.platform),
        Command::Chart => chart::run().map(drop),
        Command::Picture(options) => picture::run(options),
        Command::Tidy => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::from(if e.is::<sh::NeedsRoot>() { 2 } else { 1 })
        }
    }
}
