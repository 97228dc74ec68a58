//! Runs the tests of tests/cluster one after the other on a cluster of their own, and prints a table.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::layout::Layout;
use super::{down, up};
use crate::sh;
use crate::vm::suite;

/// The test program, and its folder below tests/.
const FOLDER: &str = "cluster";

struct Verdict {
    name: String,
    took: Duration,
    has_passed: bool,
}

/// Brings a cluster up, runs the tests whose name contains one of `filter` (all, if there is none), and takes it down.
pub fn run(layout: &Layout, filter: &[String], keep: bool) -> Result<()> {
    let start = Instant::now();
    sh::progress("== build");
    let program = suite::program_in(FOLDER, &["--test", FOLDER])?;
    let names = suite::names(&program)?;
    if let Some(part) = filter.iter().find(|part| !names.iter().any(|name| name.contains(part.as_str()))) {
        bail!("no cluster test's name contains {part}");
    }
    let wanted = |name: &&String| filter.is_empty() || filter.iter().any(|part| name.contains(part.as_str()));
    let names: Vec<&String> = names.iter().filter(wanted).collect();
    up(layout)?;
    let is_up_after = start.elapsed();
    sh::progress("== tests");
    let verdicts: Result<Vec<Verdict>> =
        names.into_iter().map(|name| run_test(layout, &program, name)).collect();
    if keep {
        sh::progress("the cluster stays; `cargo xtask cluster down` ends it");
    } else {
        down::end(layout)?;
    }
    let verdicts = verdicts?;
    print_table(&verdicts, is_up_after, start.elapsed());
    match verdicts.iter().filter(|verdict| !verdict.has_passed).count() {
        0 => Ok(()),
        failed => bail!("{failed} cluster tests failed; their output is in {}", logs().display()),
    }
}

fn logs() -> PathBuf {
    sh::root().join("target/cluster")
}

fn run_test(layout: &Layout, program: &Path, name: &str) -> Result<Verdict> {
    let log = logs().join(format!("{}.log", name.replace("::", "-")));
    fs::create_dir_all(logs()).context("make the folder of the tests' output")?;
    let output = File::create(&log).with_context(|| format!("write {}", log.display()))?;
    let mut command = Command::new(program);
    command.args(["--exact", name, "--nocapture"]).current_dir(sh::root().join("tests"));
    command.env("PODOPSY_CLUSTER", &layout.run).env("PODOPSY_CLUSTER_NODE", &layout.node);
    command.env("PODOPSY_CLUSTER_STATE", layout.host_folder("/var/lib/podopsy"));
    command.stdin(Stdio::null()).stdout(output.try_clone().context("share the log")?).stderr(output);
    let start = Instant::now();
    let status = command.status().with_context(|| format!("start {}", program.display()))?;
    let verdict = Verdict { name: name.to_owned(), took: start.elapsed(), has_passed: status.success() };
    sh::progress(verdict.line());
    if !verdict.has_passed {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
    }
    Ok(verdict)
}

impl Verdict {
    fn line(&self) -> String {
        let word = if self.has_passed { "ok" } else { "FAILED" };
        format!("{word:<8}{:7.1} s  {}", self.took.as_secs_f64(), self.name)
    }
}

fn print_table(verdicts: &[Verdict], is_up_after: Duration, total: Duration) {
    println!();
    for verdict in verdicts {
        println!("{}", verdict.line());
    }
    let passed = verdicts.iter().filter(|verdict| verdict.has_passed).count();
    println!(
        "{passed} of {} passed; cluster up after {:.0} s, whole run {:.0} s",
        verdicts.len(),
        is_up_after.as_secs_f64(),
        total.as_secs_f64()
    );
}
