//! `cargo xtask test [FILTER…]`: everything that CI does, in one command, and a summary at the end.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::setup::{self, Group};
use crate::{build_ebpf, sh, tidy, vm};

/// The package whose tests use the kernel, containerd and the network: one at a time, as root.
const SYSTEM_TESTS: &str = "podopsy-tests";

/// The lab's kernels that every run has: the one with the strictest verifier, and that of Debian 12. All of them, with every
/// test, take two hours on two cores: `cargo xtask vm all`.
const KERNELS: [&str; 2] = ["5.10", "6.1"];

/// The command.
pub fn run(filter: &[String], offline_only: bool, this_kernel: bool) -> Result<()> {
    let mut summary = Summary::default();
    if !offline_only {
        let arguments =
            std::iter::once("test").chain(filter.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        sh::need_root(&arguments, "loads kernel probes (`--offline-only` does not)")?;
        sh::progress("== setup");
        setup::install(&[Group::Ebpf, Group::Test])?;
        // What every machine of the lab needs, asked for before anything is built.
        if filter.is_empty() && !this_kernel {
            setup::install(&[Group::Vm])?;
        }
    }
    if filter.is_empty() {
        if !offline_only {
            summary.step("build-ebpf --check", || build_ebpf::run(true));
        }
        summary.step("tidy", tidy::run);
    }
    sh::progress("== build");
    // No point in going on without binaries: every test would fail for the same reason. Not `cargo build`, which would build
    // the agent once more, without what its tests ask of other crates.
    sh::run(sh::cargo().args(["test", "--workspace", "--no-run"]))?;

    let mut unit = sh::cargo();
    unit.args(["test", "--workspace", "--exclude", SYSTEM_TESTS, "--no-fail-fast"]);
    // Ignored there: what needs root or a package that setup has installed by now; and measurements and runs of many
    // minutes, which are named for being run by hand.
    let ignored: &[&str] = if offline_only { &[] } else { &["--include-ignored", "--skip", "by_hand"] };
    // Behind a `--`, libtest takes any number of filters.
    unit.arg("--").args(ignored).args(filter);
    summary.tests("tests of each crate", [unit])?;

    match (offline_only, filter.is_empty()) {
        (true, _) => {}
        (false, true) => summary.kernels(this_kernel)?,
        (false, false) => {
            // As the workspace's build made them: see `programs`.
            let test = |(_, program)| {
                let mut command = Command::new(program);
                // They share one kernel, and count what happens in it.
                command.current_dir(sh::root().join("tests")).arg("--test-threads=1").args(filter);
                command
            };
            summary.tests("kernel tests here", vm::suite::programs()?.into_iter().map(test))?;
        }
    }
    summary.verdict(!filter.is_empty())
}

/// What happened so far.
#[derive(Default)]
struct Summary {
    lines: Vec<String>,
    failed: bool,
    passed_tests: u64,
}

impl Summary {
    /// Runs a check; its failure is kept for the end, so that one run shows everything that is wrong.
    fn step(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        sh::progress(format_args!("== {name}"));
        let result = check();
        if let Err(e) = &result {
            eprintln!("{e:#}");
        }
        self.note(name, result.is_ok(), if result.is_ok() { "" } else { "see above" });
    }

    /// Runs programs of tests, or cargo with those of many, to the last.
    fn tests(&mut self, name: &str, commands: impl IntoIterator<Item = Command>) -> Result<()> {
        sh::progress(format_args!("== {name}"));
        let (mut success, mut output) = (true, String::new());
        for mut command in commands {
            let (ended_well, said) = run_and_read(&mut command)?;
            success &= ended_well;
            output.push_str(&said);
        }
        let counts = Counts::read(&output);
        self.passed_tests += counts.passed;
        self.note(name, success, &counts);
        for test in &counts.failures {
            self.lines.push(format!("         {test}"));
        }
        Ok(())
    }

    /// Every kernel test on the running kernel, and on two of the lab's those that ask something of a kernel.
    fn kernels(&mut self, this_kernel: bool) -> Result<()> {
        sh::progress("== kernel tests");
        self.table("kernel tests here", &vm::table(&[vm::RUNNING.to_owned()], &[], vm::JOBS)?);
        if !this_kernel {
            let tests = vm::each_run::TESTS.map(str::to_owned);
            let table = vm::table(&KERNELS.map(str::to_owned), &tests, vm::JOBS)?;
            self.table(&format!("kernel tests on {}", KERNELS.join(" and ")), &table);
        }
        Ok(())
    }

    fn table(&mut self, name: &str, table: &vm::Table) {
        table.conclude();
        let (passed, failed, unsupported) = table.counts();
        self.passed_tests += passed as u64;
        self.note(name, failed == 0, format!("{passed} passed, {failed} failed, {unsupported} unsupported"));
    }

    fn note(&mut self, name: &str, ok: bool, detail: impl Display) {
        self.failed |= !ok;
        let line = format!("  {:6} {name}  {detail}", if ok { "ok" } else { "FAILED" });
        self.lines.push(line.trim_end().to_owned());
    }

    fn verdict(self, filtered: bool) -> Result<()> {
        eprintln!();
        sh::progress("summary");
        for line in &self.lines {
            eprintln!("{line}");
        }
        if self.failed {
            bail!("not everything passed");
        }
        if filtered && self.passed_tests == 0 {
            bail!("no test's name contains the filter; `cargo test --workspace -- --list` shows the names");
        }
        Ok(())
    }
}

/// Runs the command, shows its stdout as it comes (a test's name appears before its verdict), and keeps it.
fn run_and_read(command: &mut Command) -> Result<(bool, String)> {
    sh::progress(format_args!("$ {}", sh::show(command)));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut all = Vec::new();
    if let Some(mut from) = child.stdout.take() {
        let mut to = std::io::stdout().lock();
        let mut buffer = [0; 8192];
        loop {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            all.extend_from_slice(&buffer[..n]);
            to.write_all(&buffer[..n]).and_then(|()| to.flush())?;
        }
    }
    Ok((child.wait()?.success(), String::from_utf8_lossy(&all).into_owned()))
}

/// The sums over libtest's "test result:" lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    failures: BTreeSet<String>,
}

impl Counts {
    fn read(output: &str) -> Self {
        let mut sum = Self::default();
        let mut in_failures = false;
        for line in output.lines() {
            if let Some(result) = line.strip_prefix("test result: ") {
                for part in result.split(['.', ';']) {
                    let (number, what) = part.trim().split_once(' ').unwrap_or_default();
                    let number = number.parse().unwrap_or(0);
                    match what {
                        "passed" => sum.passed += number,
                        "failed" => sum.failed += number,
                        "ignored" => sum.ignored += number,
                        _ => {}
                    }
                }
            }
            // libtest ends with a list: "failures:" and the names, indented by four spaces.
            let name = line.strip_prefix("    ").filter(|name| !name.contains(' '));
            match name {
                Some(name) if in_failures => _ = sum.failures.insert(name.to_owned()),
                _ => in_failures = line == "failures:",
            }
        }
        sum
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_summed_and_failures_named() {
        let output = "running 2 tests\ntest a ... ok\ntest m::b ... FAILED\n\nfailures:\n\n---- m::b stdout ----\n\
                      thread panicked\n    at somewhere else\n\nfailures:\n    m::b\n\n\
                      test result: FAILED. 1 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\n\
                      test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.23s\n";
        let counts = Counts::read(output);
        assert_eq!((counts.passed, counts.failed, counts.ignored), (41, 1, 3));
        assert_eq!(counts.failures.into_iter().collect::<Vec<_>>(), ["m::b"]);
    }

    #[test]
    fn a_failed_step_and_a_filter_that_matches_nothing_are_failures() {
        let mut summary = Summary::default();
        summary.step("tidy", || bail!("untidy"));
        assert!(summary.verdict(false).is_err());
        assert!(Summary::default().verdict(true).is_err());
        assert!(Summary::default().verdict(false).is_ok());
    }
}
