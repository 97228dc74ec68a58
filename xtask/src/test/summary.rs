//! The summary of a run: each step with its verdict and its wall time, the slowest tests, and the total.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sh;
use crate::vm::Table;

/// How many of the slowest kernel tests are listed.
const SLOWEST: usize = 10;
/// A crate whose tests take less time is not listed.
const LISTED: Duration = Duration::from_secs(1);

/// What has happened so far.
pub struct Summary {
    start: Instant,
    steps: Vec<Step>,
    notes: Vec<String>,
    slowest: Vec<String>,
    passed_tests: u64,
}

struct Step {
    name: String,
    took: Duration,
    is_ok: bool,
    detail: String,
    /// Failed tests, and the crates that took longest.
    lines: Vec<String>,
}

impl Default for Summary {
    fn default() -> Self {
        let (steps, notes, slowest) = Default::default();
        Self { start: Instant::now(), steps, notes, slowest, passed_tests: 0 }
    }
}

impl Summary {
    /// Runs a check. Its failure is kept for the end, so that one run shows everything that is wrong.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        if let Err(error) = self.require(name, check) {
            eprintln!("{error:#}");
        }
    }

    /// Runs a step that the following ones need.
    pub fn require<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        sh::progress(format_args!("== {name}"));
        let start = Instant::now();
        let result = step();
        self.add(name, start.elapsed(), result.is_ok(), if result.is_ok() { "" } else { "see above" });
        result
    }

    /// Runs test programs, or cargo with the tests of many crates, to the last one.
    pub fn tests(&mut self, name: &str, commands: impl IntoIterator<Item = Command>) -> Result<()> {
        sh::progress(format_args!("== {name}"));
        let start = Instant::now();
        let (mut success, mut output) = (true, Output::default());
        for mut command in commands {
            let (has_succeeded, more) = run_and_read(&mut command)?;
            success &= has_succeeded;
            output.stdout.push_str(&more.stdout);
            output.stderr.push_str(&more.stderr);
        }
        let counts = LibtestCounts::read(&output.stdout);
        self.add_tests(name, start.elapsed(), success, counts.passed, &counts);
        if let Some(step) = self.steps.last_mut() {
            step.lines.extend(counts.failures.iter().map(|test| format!("failed: {test}")));
            step.lines.extend(
                times_of_programs(&output)
                    .into_iter()
                    .map(|(program, took)| format!("{:6.1} s  {program}", took.as_secs_f64())),
            );
        }
        Ok(())
    }

    /// Adds a step of tests that has ended.
    pub fn add_tests(&mut self, name: &str, took: Duration, is_ok: bool, passed: u64, counts: impl Display) {
        self.passed_tests += passed;
        self.add(name, took, is_ok, counts);
    }

    /// Adds a step that has ended.
    pub fn add(&mut self, name: &str, took: Duration, is_ok: bool, detail: impl Display) {
        let (name, detail) = (name.to_owned(), detail.to_string());
        self.steps.push(Step { name, took, is_ok, detail, lines: Vec::new() });
    }

    /// Adds a line below the steps.
    pub fn add_note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Adds the slowest tests of the table.
    pub fn add_slowest(&mut self, table: &Table) {
        for (took, test, column) in table.slowest(SLOWEST) {
            self.slowest.push(format!("{:6.1} s  {test} on {column}", took.as_secs_f64()));
        }
    }

    pub fn print(&self) {
        eprintln!("\n{}", self.render());
    }

    /// Fails if a step did, or if a filter matched no test.
    pub fn conclude(self, filtered: bool) -> Result<()> {
        if self.steps.iter().any(|step| !step.is_ok) {
            bail!("not everything passed");
        }
        if filtered && self.passed_tests == 0 {
            bail!("no test's name contains the filter; `cargo test --workspace -- --list` shows the names");
        }
        Ok(())
    }

    fn render(&self) -> String {
        let width = self.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
        let mut lines = vec!["summary (minutes:seconds of wall time)".to_owned()];
        for Step { name, took, is_ok, detail, lines: more } in &self.steps {
            let verdict = if *is_ok { "ok" } else { "FAILED" };
            let line = format!("  {verdict:6} {:>6}  {name:width$}  {detail}", minutes(*took));
            lines.push(line.trim_end().to_owned());
            lines.extend(more.iter().map(|line| format!("                   {line}")));
        }
        lines.push(format!("  {:6} {:>6}  total", "", minutes(self.start.elapsed())));
        lines.extend(self.notes.iter().map(|note| format!("  {note}")));
        if !self.slowest.is_empty() {
            lines.push("the slowest kernel tests".to_owned());
            lines.extend(self.slowest.iter().map(|line| format!("  {line}")));
        }
        lines.join("\n")
    }
}

/// `13:07`.
pub fn minutes(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// What test programs printed.
#[derive(Default)]
struct Output {
    stdout: String,
    stderr: String,
}

/// Runs the command, shows its output as it comes (a test's name appears before its verdict), and returns it.
fn run_and_read(command: &mut Command) -> Result<(bool, Output)> {
    sh::progress(format_args!("$ {}", sh::show(command)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start the tests")?;
    let stderr = child.stderr.take().map(|stderr| std::thread::spawn(move || copy_lines(stderr)));
    let stdout = child.stdout.take().map(copy_bytes).transpose()?.unwrap_or_default();
    let stderr = stderr.and_then(|thread| thread.join().ok()).unwrap_or_default();
    Ok((child.wait()?.success(), Output { stdout, stderr }))
}

/// Copies to stdout, byte by byte as they come.
fn copy_bytes(mut from: impl Read) -> Result<String> {
    let mut all = Vec::new();
    let mut to = std::io::stdout().lock();
    let mut buffer = [0; 8192];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(String::from_utf8_lossy(&all).into_owned());
        }
        all.extend_from_slice(&buffer[..count]);
        to.write_all(&buffer[..count]).and_then(|()| to.flush())?;
    }
}

/// Copies to stderr, line by line.
fn copy_lines(from: impl Read) -> String {
    let mut all = String::new();
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        eprintln!("{line}");
        all.push_str(&line);
        all.push('\n');
    }
    all
}

/// The times of test programs, slowest first: cargo names each on stderr, and libtest ends each with its time on stdout.
fn times_of_programs(output: &Output) -> Vec<(String, Duration)> {
    let names = output.stderr.lines().filter_map(|line| {
        let line = line.trim_start();
        let doc_tests = line.strip_prefix("Doc-tests ").map(|name| format!("{name} (examples)"));
        doc_tests.or_else(|| {
            // "Running unittests src/lib.rs (target/debug/deps/podopsy_model-97d3c1a0e3a7f6c5)"
            let path = line.strip_prefix("Running ")?.split_once(" (")?.1.strip_suffix(')')?;
            Some(path.rsplit('/').next()?.rsplit_once('-')?.0.to_owned())
        })
    });
    let times = output.stdout.lines().filter_map(|line| {
        let seconds = line.strip_prefix("test result: ")?.rsplit_once("finished in ")?.1;
        seconds.strip_suffix('s')?.parse().ok().map(Duration::from_secs_f64)
    });
    let mut all: Vec<_> = names.zip(times).filter(|(_, took)| *took >= LISTED).collect();
    all.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
    all
}

/// The sums over libtest's "test result:" lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct LibtestCounts {
    passed: u64,
    failed: u64,
    ignored: u64,
    failures: BTreeSet<String>,
}

impl LibtestCounts {
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

impl Display for LibtestCounts {
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
        let counts = LibtestCounts::read(output);
        assert_eq!((counts.passed, counts.failed, counts.ignored), (41, 1, 3));
        assert_eq!(counts.failures.into_iter().collect::<Vec<_>>(), ["m::b"]);
    }

    #[test]
    fn a_failed_step_and_a_filter_that_matches_nothing_are_failures() {
        let mut summary = Summary::default();
        summary.check("tidy", || bail!("untidy"));
        assert!(summary.conclude(false).is_err());
        assert!(Summary::default().conclude(true).is_err());
        assert!(Summary::default().conclude(false).is_ok());
    }

    #[test]
    fn each_program_gets_its_time_and_short_ones_are_left_out() {
        let stderr = "   Compiling xtask v0.1.0\n     Running unittests src/lib.rs (target/debug/deps/podopsy_model-97d3c1a0)\n\
                          Running tests/stamp.rs (target/debug/deps/stamp-60a737cf)\n   Doc-tests podopsy_agent\n";
        let result =
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in";
        let stdout = format!("{result} 2.50s\n\n{result} 0.03s\n\n{result} 11.00s\n");
        let times = times_of_programs(&Output { stdout, stderr: stderr.into() });
        let seconds = Duration::from_secs_f64;
        let expected =
            [("podopsy_agent (examples)".into(), seconds(11.0)), ("podopsy_model".into(), seconds(2.5))];
        assert_eq!(times, expected);
    }

    #[test]
    fn the_summary_has_a_wall_time_for_each_step_and_the_total() {
        let mut summary = Summary::default();
        summary.add("setup", Duration::from_secs(123), true, "");
        summary.add_tests(
            "kernel tests here",
            Duration::from_secs_f64(803.6),
            false,
            2,
            "2 passed, 1 failed",
        );
        summary.slowest.push(" 118.2 s  storm::a on 6.18 here".to_owned());
        let expected = "\
summary (minutes:seconds of wall time)
  ok       2:03  setup
  FAILED  13:24  kernel tests here  2 passed, 1 failed
           0:00  total
the slowest kernel tests
   118.2 s  storm::a on 6.18 here";
        assert_eq!(summary.render(), expected);
        assert!(summary.conclude(false).is_err());
    }
}
