//! `cargo xtask vm [KERNEL…]`: the kernel tests on Debian's kernels in QEMU and on the running one, and a table.
//!
//! [`kernels`] fetches, [`suite`] builds, [`initramfs`] packs, [`column`] runs and reads, [`table`] judges by the list
//! in [`unsupported`]. A test without a verdict has failed. A machine that dies or falls silent has failed the test of
//! that moment; the others' turn comes on another boot.

mod column;
pub mod each_run;
mod initramfs;
mod kernels;
pub mod suite;
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
/// How often a kernel is booted, should its machine die: each boot but the last may lose a test its first try.
const BOOTS: u32 = 3;
/// How often a column is read.
const POLL: Duration = Duration::from_millis(50);
/// How many machines at once, unless told otherwise: one a core of the smallest machine that we build on.
pub const JOBS: usize = 2;

/// The command.
pub fn run(names: &[String], filter: &[String], jobs: usize) -> Result<()> {
    let arguments =
        std::iter::once("vm").chain(names.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
    wanted(names)?;
    sh::need_root(&arguments, "loads kernel probes and starts containers")?;
    sh::progress("== setup");
    setup::install(&[Group::Test, Group::Vm])?;
    sh::progress("== build");
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
        sh::progress(format_args!("== {} tests on {}", suite.tests.len(), here.name));
        let job = suite.job(&here, None, |_| true);
        let mut column = Column::running(&here.name, &folder, &suite.guest, &job, TEST_LIMIT)?;
        while step(&mut column, &mut table)? == State::Running {
            std::thread::sleep(POLL);
        }
    }
    let mut todo: VecDeque<(&Fetched, u32)> = fetched.iter().map(|kernel| (kernel, 1)).collect();
    let mut active = Vec::new();
    while !todo.is_empty() || !active.is_empty() {
        while active.len() < jobs
            && let Some((kernel, nth)) = todo.pop_front()
        {
            active.push((boot(kernel, nth, &folder, suite, &table)?, kernel, nth));
        }
        let mut at = 0;
        while let Some((column, kernel, nth)) = active.get_mut(at) {
            match step(column, &mut table)? {
                State::Running => {
                    at += 1;
                    continue;
                }
                State::Died if *nth < BOOTS => todo.push_front((*kernel, *nth + 1)),
                State::Died | State::Through => {}
            }
            active.remove(at);
        }
        std::thread::sleep(POLL);
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

fn boot(kernel: &Fetched, nth: u32, folder: &Path, suite: &Suite, table: &Table) -> Result<Column> {
    let again = if nth == 1 { String::new() } else { format!("-{nth}") };
    let folder = fresh(folder, &format!("{}{again}", kernel.name))?;
    let modules = kernel.base.join("lib/modules");
    let job = suite.job(&heading(kernel), Some(&modules), |test| table.is_open(kernel.name, test));
    let initramfs = initramfs::write(&folder, kernel, &suite.guest, &job)?;
    if kernel.drifted {
        sh::progress(format_args!("{} is {}, not the pinned kernel", kernel.name, kernel.release));
    }
    sh::progress(format_args!(
        "== booting {} ({}), log in {}",
        kernel.name,
        kernel.release,
        folder.display()
    ));
    Column::machine(kernel, &folder, &initramfs, TEST_LIMIT)
}

fn fresh(folder: &Path, name: &str) -> Result<PathBuf> {
    let folder = folder.join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Whether a column goes on.
#[derive(PartialEq, Eq)]
enum State {
    Running,
    Through,
    Died,
}

/// Reads what the column has said. If it died, the test of that moment has failed.
fn step(column: &mut Column, table: &mut Table) -> Result<State> {
    let Heard { lines, end } = column.poll()?;
    for line in lines {
        note(line, column, table);
    }
    Ok(match end {
        None => State::Running,
        Some(Ok(())) => State::Through,
        Some(Err(why)) => {
            sh::progress(format_args!("{}: {why}; its console: {}", column.name, column.console.display()));
            if let Some(test) = &column.current {
                say(&column.name, test, &table.fail(&column.name, test, &why));
            }
            State::Died
        }
    })
}

/// One verdict line a test, in the words of libtest, and what it printed if it failed unawaited.
fn note(line: Line, column: &mut Column, table: &mut Table) {
    let name = column.name.clone();
    match line {
        Line::End => {}
        Line::Begin(test) => {
            column.said.clear();
            column.current = Some(test);
        }
        Line::Said(text) => column.said.push(text),
        Line::Ok { test, took } => {
            column.current = None;
            say(&name, &test, &table.pass(&name, &test, took));
        }
        Line::Fail { test, took, reason } => {
            let cell = table.fail(&name, &test, &format!("{reason} ({:.1} s)", took.as_secs_f64()));
            column.current = None;
            if matches!(cell, Cell::Fail(_) | Cell::FirstTry(_)) {
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
