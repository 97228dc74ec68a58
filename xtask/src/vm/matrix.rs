//! Fills the table: jobs of this machine and of the lab's machines, several at once.
//!
//! ```text
//! this machine   |== tests that run alone ==|== tests that may run beside the lab ==|
//! machine 1                                 |== boot ==|== tests ==================|
//! machine 2                                 |== boot ==|== tests ==================|
//! ```

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::beside;
use super::column::{Column, GuestLine, Update};
use super::initramfs;
use super::kernels::LocalKernel;
use super::suite::{Suite, TEST_LIMIT};
use super::table::{Cell, Heading, Table};
use crate::sh;

/// How often a kernel is booted if its machine dies. Each boot but the last may cost a test its first try.
const BOOTS: u32 = 3;
/// The interval at which columns are polled.
const POLL: Duration = Duration::from_millis(50);

/// A column's heading, and the kernel of its machine.
pub type Machine = (Heading, LocalKernel);

/// Runs the suite on this machine (if `here`), and on `jobs` machines at a time.
pub fn run(machines: Vec<Machine>, here: Option<Heading>, suite: &Suite, jobs: usize) -> Result<Table> {
    let headings = machines.iter().map(|(heading, _)| heading.clone()).chain(here.clone());
    let tests = suite.tests.clone();
    let table = Table::new(tests, headings.collect());
    let mut matrix = Matrix { suite, table, folder: sh::root().join("target/vm"), active: Vec::new(), jobs };
    if let Some(here) = &here {
        let at_once = jobs.min(machines.len());
        let is_beside = at_once > 0 && beside::has_memory_for(at_once);
        matrix.start_here(here, "running", |test| !(is_beside && beside::is_patient(test)))?;
        matrix.run_to_end(VecDeque::new())?;
        if is_beside {
            matrix.start_here(here, "running-beside", beside::is_patient)?;
        }
    }
    matrix.run_to_end(machines.iter().map(|machine| Boot { machine, number: 1 }).collect())?;
    Ok(matrix.table)
}

struct Matrix<'a> {
    suite: &'a Suite,
    table: Table,
    /// Each job has a folder in it.
    folder: PathBuf,
    active: Vec<Active<'a>>,
    jobs: usize,
}

/// A job that runs.
struct Active<'a> {
    column: Column,
    /// None: it runs on this machine.
    boot: Option<Boot<'a>>,
    start: Instant,
}

/// A boot of a machine, counted from 1.
#[derive(Clone, Copy)]
struct Boot<'a> {
    machine: &'a Machine,
    number: u32,
}

#[derive(PartialEq, Eq)]
enum ColumnState {
    Running,
    Finished,
    Died,
}

impl<'a> Matrix<'a> {
    fn start_here(&mut self, here: &Heading, folder: &str, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
        let folder = fresh(&self.folder, folder)?;
        let job = self.suite.job(here, None, is_wanted);
        let count = job.lines().filter(|line| line.starts_with("test ")).count();
        sh::progress(format_args!("== {count} tests on {}", here.name));
        let column = Column::running(&here.name, &folder, &self.suite.guest, &job, TEST_LIMIT)?;
        self.active.push(Active { column, boot: None, start: Instant::now() });
        Ok(())
    }

    fn boot(&mut self, boot: Boot<'a>) -> Result<()> {
        let (heading, kernel) = boot.machine;
        let suffix = if boot.number == 1 { String::new() } else { format!("-{}", boot.number) };
        let folder = fresh(&self.folder, &format!("{}{suffix}", kernel.name))?;
        let modules = kernel.base.join("lib/modules");
        let job = self.suite.job(heading, Some(&modules), |test| self.table.is_open(kernel.name, test));
        let initramfs = initramfs::write(&folder, kernel, &self.suite.guest, &job)?;
        if kernel.drifted {
            sh::progress(format_args!("{} is {}, not the pinned kernel", kernel.name, kernel.release));
        }
        sh::progress(format_args!(
            "== booting {} ({}), log in {}",
            kernel.name,
            kernel.release,
            folder.display()
        ));
        let column = Column::machine(kernel, &folder, &initramfs, TEST_LIMIT)?;
        self.active.push(Active { column, boot: Some(boot), start: Instant::now() });
        Ok(())
    }

    /// Boots the waiting machines as others finish, and returns when every job is over.
    fn run_to_end(&mut self, mut waiting: VecDeque<Boot<'a>>) -> Result<()> {
        while !waiting.is_empty() || !self.active.is_empty() {
            while self.active.iter().filter(|active| active.boot.is_some()).count() < self.jobs
                && let Some(boot) = waiting.pop_front()
            {
                self.boot(boot)?;
            }
            let mut index = 0;
            while let Some(active) = self.active.get_mut(index) {
                let state = poll(&mut active.column, &mut self.table)?;
                if state == ColumnState::Running {
                    index += 1;
                    continue;
                }
                let Active { column, boot, start } = self.active.remove(index);
                self.table.add_time(&column.name, start.elapsed());
                if let Some(boot) = boot.filter(|boot| state == ColumnState::Died && boot.number < BOOTS) {
                    waiting.push_front(Boot { number: boot.number + 1, ..boot });
                }
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

fn fresh(folder: &Path, name: &str) -> Result<PathBuf> {
    let folder = folder.join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Records what the column has written. If it died, the test that ran has failed.
fn poll(column: &mut Column, table: &mut Table) -> Result<ColumnState> {
    let Update { lines, end } = column.poll()?;
    for line in lines {
        record(line, column, table);
    }
    Ok(match end {
        None => ColumnState::Running,
        Some(Ok(())) => ColumnState::Finished,
        Some(Err(why)) => {
            sh::progress(format_args!("{}: {why}; its console: {}", column.name, column.console.display()));
            if let Some(test) = &column.current {
                print_verdict(&column.name, test, &table.fail(&column.name, test, &why));
            }
            ColumnState::Died
        }
    })
}

/// Prints one verdict for each test, in libtest's words, and the output of a test that failed unexpectedly.
fn record(line: GuestLine, column: &mut Column, table: &mut Table) {
    let name = column.name.clone();
    match line {
        GuestLine::End => {}
        GuestLine::Begin(test) => {
            column.output.clear();
            column.current = Some(test);
        }
        GuestLine::Output(text) => column.output.push(text),
        GuestLine::Ok { test, took } => {
            column.current = None;
            print_verdict(&name, &test, &table.pass(&name, &test, took));
        }
        GuestLine::Fail { test, took, reason } => {
            let cell = table.fail(&name, &test, &format!("{reason} ({:.1} s)", took.as_secs_f64()));
            column.current = None;
            if matches!(cell, Cell::Fail(_) | Cell::FirstTry(_)) {
                for line in &column.output {
                    eprintln!("    {line}");
                }
            }
            print_verdict(&name, &test, &cell);
        }
    }
}

fn print_verdict(column: &str, test: &str, cell: &Cell) {
    match cell {
        Cell::Pass(took) => println!("test {test} on {column} ... ok ({:.1} s)", took.as_secs_f64()),
        Cell::FirstTry(reason) => {
            println!("test {test} on {column} ... failed at the first try: {reason}; once more at the end");
        }
        Cell::SecondTry(took) => {
            println!("test {test} on {column} ... ok at the second try ({:.1} s)", took.as_secs_f64());
        }
        Cell::Fail(reason) => println!("test {test} on {column} ... FAILED: {reason}"),
        Cell::Unsupported(entry) => println!("test {test} on {column} ... unsupported: {}", entry.why),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::super::table::Counts;
    use super::*;

    /// A guest that passes every test of its job but those named `fails`, which it runs twice.
    const GUEST: &str = r#"#!/bin/sh
grep '^test ' "$1" | while read -r _ _ name _; do
    echo "begin $name"
    case $name in
        *::fails) echo "fail $name 1 it failed"; echo "fail $name 1 it failed again" ;;
        *) echo "ok $name 7" ;;
    esac
done
echo "end 0"
"#;

    #[test]
    fn tests_that_run_alone_and_tests_that_run_beside_the_lab_fill_one_column() {
        let folder = tempfile::tempdir().unwrap();
        let (source, guest) = (folder.path().join("guest.sh"), folder.path().join("guest"));
        fs::write(&source, GUEST).unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
        // Copied by another process: a child that another test forks meanwhile could inherit our descriptor, and a file
        // that is open for writing cannot be executed (ETXTBSY).
        assert!(Command::new("cp").arg(&source).arg(&guest).status().unwrap().success());
        let suite = Suite::of_names(&["profile::a", "dns::b", "oom::fails"], guest);
        let here = Heading { name: "here".to_owned(), traits: Vec::new(), filter: Vec::new() };
        let tests = suite.tests.clone();
        let table = Table::new(tests, vec![here.clone()]);
        let folder = folder.path().join("vm");
        let mut matrix = Matrix { suite: &suite, table, folder: folder.clone(), active: Vec::new(), jobs: 1 };
        matrix.start_here(&here, "running", |test| !beside::is_patient(test)).unwrap();
        matrix.run_to_end(VecDeque::new()).unwrap();
        assert_eq!(matrix.table.counts(|_| true), Counts { passed: 1, failed: 2, unsupported: 0 });
        matrix.start_here(&here, "running-beside", beside::is_patient).unwrap();
        matrix.run_to_end(VecDeque::new()).unwrap();
        assert_eq!(matrix.table.counts(|_| true), Counts { passed: 2, failed: 1, unsupported: 0 });
        let text = matrix.table.to_string();
        assert!(text.contains("FAIL         oom::fails on here: it failed again (0.0 s)"), "{text}");
        let jobs =
            ["running", "running-beside"].map(|name| fs::read_to_string(folder.join(name).join("job")));
        let jobs = jobs.map(|job| job.unwrap().matches("test ").count());
        assert_eq!(jobs, [1, 2]);
    }
}
