//! `cargo xtask vm [KERNEL…]`: the kernel tests on Debian's kernels in QEMU and on the running one, and a table.
//!
//! | file | does |
//! |---|---|
//! | [`kernels`] | downloads kernels |
//! | [`suite`] | builds the tests and lists them |
//! | [`each_run`] | lists the tests that every run of `cargo xtask test` runs on other kernels |
//! | [`beside`] | lists the tests of this machine that may run beside the lab |
//! | [`matrix`] | runs the columns, several at once |
//! | [`initramfs`] | packs a machine's first file system |
//! | [`column`] | starts a machine or a local job, and reads its verdicts |
//! | [`table`] | judges the verdicts by the list in [`unsupported`] |
//!
//! A test without a verdict has failed. If a machine dies or stops writing, the test that ran has failed, and the others run
//! on another boot.

mod beside;
mod column;
mod each_run;
mod initramfs;
mod kernels;
mod matrix;
pub mod suite;
mod table;
mod unsupported;

use std::fs;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Group};
use crate::sh;
use kernels::{KERNELS, Kernel, LocalKernel};
use suite::Suite;
pub use table::{Heading, Table};

/// The name of the kernel that this machine runs.
const RUNNING: &str = "running";
/// How many machines run at once by default: one for each core of the smallest machine that we build on.
pub const JOBS: usize = 2;

/// The lab's kernels in every run of `cargo xtask test`: the one with the strictest verifier, and that of Debian 12. All
/// kernels with all tests take two hours on two cores: `cargo xtask vm all`.
pub const EACH_RUN: [&str; 2] = ["5.10", "6.1"];

/// The command.
pub fn run(names: &[String], filter: &[String], jobs: usize) -> Result<()> {
    let arguments =
        std::iter::once("vm").chain(names.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
    let (kernels, running) = select(names)?;
    sh::need_root(&arguments, "loads kernel probes and starts containers")?;
    sh::progress("== setup");
    setup::install(&[Group::Test, Group::Vm])?;
    sh::progress("== build");
    let suite = Suite::build(filter)?;
    let here = if running { Some(this_machine()?) } else { None };
    let machines =
        kernels::fetch(&kernels)?.into_iter().map(|kernel| (heading(&kernel, &[]), kernel)).collect();
    let table = matrix::run(machines, here, &suite, jobs)?;
    table.print();
    match table.counts(|_| true).failed {
        0 => Ok(()),
        failed => {
            bail!("{failed} cells of the table failed; the machines' consoles are in target/vm/*/console.log")
        }
    }
}

/// Every kernel test on this machine's kernel; and, with the lab, those of [`each_run`] on [`EACH_RUN`]'s kernels.
pub fn run_each(suite: &Suite, with_lab: bool) -> Result<Table> {
    let tests = each_run::TESTS.map(str::to_owned);
    if let Some(part) = tests.iter().find(|part| !suite.has(part)) {
        bail!("no kernel test's name contains {part}, which xtask/src/vm/each_run.rs lists");
    }
    let local = if with_lab { fetch_each()? } else { Vec::new() };
    let machines = local.into_iter().map(|kernel| (heading(&kernel, &tests), kernel)).collect();
    matrix::run(machines, Some(this_machine()?), suite, JOBS)
}

/// Downloads the kernels of [`EACH_RUN`], unless they are there.
pub fn fetch_each() -> Result<Vec<LocalKernel>> {
    kernels::fetch(&EACH_RUN.iter().map(|name| kernels::by_name(name)).collect::<Result<Vec<_>>>()?)
}

/// The kernels with these names, and whether the running one is among them.
fn select(names: &[String]) -> Result<(Vec<Kernel>, bool)> {
    if names.is_empty() || names.iter().any(|name| name == "all") {
        return Ok((KERNELS.to_vec(), true));
    }
    let others = names.iter().filter(|name| *name != RUNNING);
    let kernels = others.map(|name| kernels::by_name(name)).collect::<Result<_>>()?;
    Ok((kernels, names.iter().any(|name| name == RUNNING)))
}

/// The column of a lab machine, with the tests whose name contains one of `filter`.
fn heading(kernel: &LocalKernel, filter: &[String]) -> Heading {
    Heading {
        name: kernel.name.to_owned(),
        traits: [kernel.name, "cgroup v2", "emulated"].map(str::to_owned).into(),
        filter: filter.to_vec(),
    }
}

/// The column of this machine: `6.18 here`. Its traits have the version of the cgroups' memory controller.
fn this_machine() -> Result<Heading> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    let series: Vec<_> = release.trim().split(['.', '-']).take(2).collect();
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|all| all.contains("memory"));
    let cgroup = if v2 { "cgroup v2" } else { "cgroup v1" };
    Ok(Heading {
        name: format!("{} here", series.join(".")),
        traits: vec![RUNNING.to_owned(), cgroup.to_owned()],
        filter: Vec::new(),
    })
}

impl Heading {
    /// Whether it is the column of this machine.
    pub fn is_here(&self) -> bool {
        self.traits.iter().any(|name| name == RUNNING)
    }
}
