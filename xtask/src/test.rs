//! `cargo xtask test [FILTER…]`: everything that CI does, in one command, and a summary at the end.
//!
//! ```text
//! packages ── tidy ── build ──────────────── object ── tests of each crate ── fuzzing ── kernel tests
//!         └── tools, programs, kernels ──┘
//! ```
//!
//! Downloads run beside tidy and the build, which need nothing of them. Packages are installed before: an upgraded linker
//! must not be replaced while cargo links.

mod summary;

use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::setup::{self, Group};
use crate::vm::suite::{self, Suite};
use crate::vm::{self, Heading};
use crate::{build_ebpf, sh, tidy};
use summary::Summary;

/// The package whose tests use the kernel, containerd and the network: one at a time, as root.
const SYSTEM_TESTS: &str = "podopsy-tests";
/// The test program whose tests are fuzz targets, and how long each of them searches for new inputs.
const FUZZ_TARGETS: &str = "targets";
const FUZZ_SECONDS: &str = "2";

/// The command.
pub fn run(filter: &[String], offline_only: bool, this_kernel: bool) -> Result<()> {
    let mut summary = Summary::default();
    let result = if offline_only {
        run_offline(filter, &mut summary)
    } else {
        let arguments =
            std::iter::once("test").chain(filter.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        sh::need_root(&arguments, "loads kernel probes (`--offline-only` does not)")?;
        if filter.is_empty() {
            run_all(!this_kernel, &mut summary)
        } else {
            run_filtered(filter, &mut summary)
        }
    };
    summary.print();
    result?;
    summary.conclude(!filter.is_empty())
}

/// Everything that needs neither root nor packages.
fn run_offline(filter: &[String], summary: &mut Summary) -> Result<()> {
    if filter.is_empty() {
        summary.check("tidy", tidy::run);
    }
    summary.require("build", build_tests)?;
    summary.tests("tests of each crate", [crate_tests(false, filter)])?;
    summary.tests("fuzzing", [fuzz_targets(filter)])
}

fn run_filtered(filter: &[String], summary: &mut Summary) -> Result<()> {
    summary.require("setup", || setup::install(&[Group::Ebpf, Group::Test]))?;
    summary.require("build", build_tests)?;
    summary.tests("tests of each crate", [crate_tests(true, filter)])?;
    summary.tests("fuzzing", [fuzz_targets(filter)])?;
    // As the workspace's build made it: see `program`.
    let mut kernel_tests = Command::new(suite::program_in("kernel", &[])?);
    // They share one kernel, and count what happens in it.
    kernel_tests.current_dir(sh::root().join("tests")).arg("--test-threads=1").args(filter);
    summary.tests("kernel tests here", [kernel_tests])
}

fn run_all(with_lab: bool, summary: &mut Summary) -> Result<()> {
    let mut groups = vec![Group::Ebpf, Group::Test];
    if with_lab {
        groups.push(Group::Vm);
    }
    summary.require("setup: packages", || setup::install_packages(&groups))?;
    let downloads = start_downloads(groups, with_lab);
    summary.check("tidy", tidy::run);
    let suite = summary.require("build", || {
        build_tests()?;
        Suite::build(&[])
    });
    // The downloads first: they must not go on when a failed build ends the run.
    let (took, downloaded) = join(downloads);
    summary.add("setup: downloads", took, downloaded.is_ok(), "beside tidy and build");
    downloaded?;
    let suite = suite?;
    summary.check("build-ebpf --check", || build_ebpf::run(true));
    summary.tests("tests of each crate", [crate_tests(true, &[])])?;
    summary.tests("fuzzing", [fuzz_targets(&[])])?;
    kernel_tests(&suite, with_lab, summary)
}

type Downloads = JoinHandle<(Duration, Result<()>)>;

/// Downloads and builds what the groups need besides packages, and the lab's kernels.
fn start_downloads(groups: Vec<Group>, with_lab: bool) -> Downloads {
    std::thread::spawn(move || {
        let start = Instant::now();
        let result = setup::install_rest(&groups)
            .and_then(|()| if with_lab { vm::fetch_each().map(drop) } else { Ok(()) });
        (start.elapsed(), result)
    })
}

fn join(downloads: Downloads) -> (Duration, Result<()>) {
    downloads
        .join()
        .unwrap_or_else(|_| (Duration::ZERO, Err(anyhow!("the thread of the downloads panicked"))))
}

/// Builds every test. Without binaries every test would fail for the same reason, so a failure ends the run. It is not
/// `cargo build`, which would build the agent once more, without the features that its tests enable.
fn build_tests() -> Result<()> {
    sh::run(sh::cargo().args(["test", "--workspace", "--no-run"]))
}

fn crate_tests(with_ignored: bool, filter: &[String]) -> Command {
    let mut command = sh::cargo();
    // `--tests` leaves out examples in documentation: there are none that run, and cargo would start rustdoc for each crate.
    command.args(["test", "--workspace", "--tests", "--exclude", SYSTEM_TESTS, "--no-fail-fast"]);
    // Fuzz targets only replay their corpora here: `fuzz_targets`.
    command.env("PODOPSY_FUZZ_SECONDS", "0");
    // Ignored are tests that need root or a package, which setup has installed by now; and measurements and runs of many
    // minutes, which have `by_hand` in their names.
    let ignored: &[&str] = if with_ignored { &["--include-ignored", "--skip", "by_hand"] } else { &[] };
    // Behind a `--`, libtest takes any number of filters.
    command.arg("--").args(ignored).args(filter);
    command
}

/// Each target tries random bytes and damaged copies of its corpus: less than a minute on two CPUs.
fn fuzz_targets(filter: &[String]) -> Command {
    let mut command = sh::cargo();
    // With the features of the whole workspace, as `build_tests` built it.
    command.args(["test", "--workspace", "--test", FUZZ_TARGETS, "--no-fail-fast", "--"]).args(filter);
    command.env("PODOPSY_FUZZ_SECONDS", FUZZ_SECONDS);
    command
}

fn kernel_tests(suite: &Suite, with_lab: bool, summary: &mut Summary) -> Result<()> {
    sh::progress("== kernel tests");
    let start = Instant::now();
    let table = vm::run_each(suite, with_lab)?;
    let elapsed = start.elapsed();
    table.print();
    let mut add = |name: &str, is_counted: &dyn Fn(&Heading) -> bool| {
        let counts = table.counts(is_counted);
        summary.add_tests(name, table.time(is_counted), counts.failed == 0, counts.passed as u64, counts);
    };
    add("kernel tests here", &Heading::is_here);
    if with_lab {
        let name = format!("kernel tests on {}", vm::EACH_RUN.join(" and "));
        add(&name, &|heading| !heading.is_here());
        summary.add_note(format!("both kinds of kernel tests together: {}", summary::minutes(elapsed)));
    }
    summary.add_slowest(&table);
    Ok(())
}
