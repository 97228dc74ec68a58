//! `cargo xtask vm [KERNEL…]`: the kernel tests on Debian's kernels in QEMU and on the running one, and a table.
//!
//! [`kernels`] fetches, [`suite`] builds, [`initramfs`] packs, [`column`] runs and reads, [`table`] judges by the list
//! in [`unsupported`]. A machine that gives no verdict has failed.

mod column;
mod initramfs;
mod kernels;
mod suite;
mod table;
mod unsupported;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Group};
use crate::sh;
use column::{Column, Heard, Line};
use kernels::{Fetched, KERNELS};
use suite::{Suite, TEST_LIMIT};
pub use table::Table;
use table::{Cell, Heading};

/// The word for the kernel that this machine runs.
pub const RUNNING: &str = "running";
/// How many machines at once, unless told otherwise: one a core of the smallest machine that we build on.
pub const JOBS: usize = 2;

/// The command.
pub fn run(names: &[String], filter: &[String], jobs: usize) -> Result<()> {
    let arguments =
        std::iter::once("vm").chain(names.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
    wanted(names)?;
    sh::need_root(&arguments, "loads kernel probes and starts containers")?;
    sh::say("== setup");
    setup::install(&[Group::Test, Group::Vm])?;
    sh::say("== build");
    conclude(&table(names, filter, jobs)?)
}

/// Builds, runs, and returns the table of those kernels (all, if none is named); the caller installed what it needs.
pub fn table(names: &[String], filter: &[String], jobs: usize) -> Result<Table> {
    let (kernels, running) = wanted(names)?;
    matrix(&kernels, running, &Suite::build(filter)?, jobs)
}

/// The kernels that were named, and whether the running one is among them.
fn wanted(names: &[String]) -> Result<(Vec<kernels::Kernel>, bool)> {
    if names.is_empty() || names.iter().any(|name| name == "all") {
        return Ok((KERNELS.to_vec(), true));
    }
    let others = names.iter().filter(|name| *name != RUNNING);
    let kernels = others.map(|name| kernels::by_name(name)).collect::<Result<_>>()?;
    Ok((kernels, names.iter().any(|name| name == RUNNING)))
}

/// Fills the table: this machine first and alone, then `jobs` machines at a time.
fn matrix(kernels: &[kernels::Kernel], running: bool, suite: &Suite, jobs: usize) -> Result<Table> {
    let fetched = kernels::fetch(kernels)?;
    let here = this_machine()?;
    let headings = fetched.iter().map(heading).chain(running.then(|| here.clone()));
    let tests = suite.tests.iter().map(suite::Test::full_name).collect();
    let mut table = Table::new(tests, headings.collect());
    let folder = sh::root().join("target/vm");
    if running {
        let folder = fresh(&folder, RUNNING)?;
        sh::say(format_args!("== {} tests on {}", suite.tests.len(), here.name));
        let column = Column::running(&here.name, &folder, &suite.guest, &suite.job(&here, None), TEST_LIMIT)?;
        drive(vec![column], &mut table)?;
    }
    let mut todo: VecDeque<&Fetched> = fetched.iter().collect();
    let mut active = Vec::new();
    while !todo.is_empty() || !active.is_empty() {
        while active.len() < jobs
            && let Some(kernel) = todo.pop_front()
        {
            active.push(boot(kernel, &folder, suite)?);
        }
        step(&mut active, &mut table)?;
    }
    Ok(table)
}

fn heading(kernel: &Fetched) -> Heading {
    Heading {
        name: kernel.name.to_owned(),
        traits: [kernel.name, "cgroup v2", "emulated"].map(str::to_owned).into(),
    }
}

/// `6.18 here`: its series, and where its memory controller is.
fn this_machine() -> Result<Heading> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    let series: Vec<_> = release.trim().split(['.', '-']).take(2).collect();
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|all| all.contains("memory"));
    let cgroup = if v2 { "cgroup v2" } else { "cgroup v1" };
    Ok(Heading {
        name: format!("{} here", series.join(".")),
        traits: vec![RUNNING.to_owned(), cgroup.to_owned()],
    })
}

fn boot(kernel: &Fetched, folder: &Path, suite: &Suite) -> Result<Column> {
    let folder = fresh(folder, kernel.name)?;
    let job = suite.job(&heading(kernel), Some(&kernel.base.join("lib/modules")));
    let initramfs = initramfs::write(&folder, kernel, &suite.guest, &job)?;
    if kernel.drifted {
        sh::say(format_args!("{} is {}, not the pinned kernel", kernel.name, kernel.release));
    }
    sh::say(format_args!("== booting {} ({}), log in {}", kernel.name, kernel.release, folder.display()));
    Column::machine(kernel, &folder, &initramfs, TEST_LIMIT)
}

fn fresh(folder: &Path, name: &str) -> Result<PathBuf> {
    let folder = folder.join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

fn drive(mut active: Vec<Column>, table: &mut Table) -> Result<()> {
    while !active.is_empty() {
        step(&mut active, table)?;
    }
    Ok(())
}

/// Reads what every column has said, and lets go of those that are through.
fn step(active: &mut Vec<Column>, table: &mut Table) -> Result<()> {
    let mut through = Vec::new();
    for (at, column) in active.iter_mut().enumerate() {
        let Heard { lines, end } = column.poll()?;
        for line in lines {
            note(line, column, table);
        }
        if let Some(end) = end {
            if let Err(why) = end {
                sh::say(format_args!("{}: {why}; its console: {}", column.name, column.console.display()));
            }
            through.push(at);
        }
    }
    for at in through.into_iter().rev() {
        active.remove(at);
    }
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

/// One verdict line a test, in the words of libtest; what it printed only if that counts as a failure.
fn note(line: Line, column: &mut Column, table: &mut Table) {
    let name = column.name.clone();
    match line {
        Line::End => {}
        Line::Begin(_) => column.said.clear(),
        Line::Said(text) => column.said.push(text),
        Line::Ok { test, took } => say(&name, &test, &table.pass(&name, &test, took)),
        Line::Fail { test, took, reason } => {
            let cell = table.fail(&name, &test, &format!("{reason} ({:.1} s)", took.as_secs_f64()));
            if matches!(cell, Cell::Fail(_)) {
                column.said.iter().for_each(|line| eprintln!("    {line}"));
            }
            say(&name, &test, &cell);
        }
    }
}

fn say(column: &str, test: &str, cell: &Cell) {
    match cell {
        Cell::Pass(took) => println!("test {test} on {column} ... ok ({:.1} s)", took.as_secs_f64()),
        Cell::FirstTry(reason) => {
            println!("test {test} on {column} ... not at the first try: {reason}; once more at the end");
        }
        Cell::SecondTry(took) => {
            println!("test {test} on {column} ... ok at the second try ({:.1} s)", took.as_secs_f64());
        }
        Cell::Fail(reason) => println!("test {test} on {column} ... FAILED: {reason}"),
        Cell::Unsupported(entry) => println!("test {test} on {column} ... unsupported: {}", entry.why),
    }
}

/// The table, and an error if any of it is red.
fn conclude(table: &Table) -> Result<()> {
    table.conclude();
    match table.counts() {
        (_, 0, _) => Ok(()),
        (_, failed, _) => {
            bail!(
                "{failed} cells of the table are red; the machines' consoles are in target/vm/*/console.log"
            )
        }
    }
}
