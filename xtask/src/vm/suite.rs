//! The tests of tests/kernel, built and listed; and the job that names them to a guest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::table::Heading;
use super::unsupported::{self, UnsupportedTest};
use crate::sh;
use crate::statics::{self, Statics};

/// The time limit of a test: several times the slowest run of the slowest one.
pub const TEST_LIMIT: Duration = Duration::from_secs(480);

/// The suite that runs last: it uses all of a machine's memory, and would disturb later tests.
const LAST: &str = "node_oom::";

/// The tests, and the programs that a guest needs to run them.
#[derive(Debug)]
pub struct Suite {
    /// `suite::name`, as the program knows them.
    pub tests: Vec<String>,
    /// The program of tests/kernel.
    program: PathBuf,
    /// The guest program, static.
    pub guest: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Suite {
    /// Builds everything and lists the tests whose name contains one of `filter` (all, if there is none).
    pub fn build(filter: &[String]) -> Result<Suite> {
        let victims = statics::build(Statics::Victims)?;
        let guest = statics::build(Statics::Guest)?.join("podopsy-guest");
        let podopsy = statics::build(Statics::Podopsy)?;
        let program = program_in("kernel", &[])?;
        let mut tests = names(&program)?;
        // A mistyped or outdated name must not look like a test that passed.
        if let Some(part) = filter.iter().find(|part| !tests.iter().any(|test| test.contains(*part))) {
            bail!("no kernel test's name contains {part}");
        }
        tests.retain(|test| filter.is_empty() || filter.iter().any(|part| test.contains(part)));
        let environment =
            vec![(Statics::Victims.variable(), victims), (Statics::Podopsy.variable(), podopsy)];
        Ok(Suite { tests, program, guest, environment })
    }

    #[cfg(test)]
    pub fn of_names(names: &[&str], guest: PathBuf) -> Suite {
        let tests = names.iter().map(|name| (*name).to_owned()).collect();
        Suite { tests, program: PathBuf::from("/bin/true"), guest, environment: Vec::new() }
    }

    /// Whether a test's name contains `part`.
    pub fn has(&self, part: &str) -> bool {
        self.tests.iter().any(|test| test.contains(part))
    }

    /// The text that tests/guest/src/job.rs reads: the column's tests for which `is_wanted` holds.
    pub fn job(&self, heading: &Heading, modules: Option<&Path>, is_wanted: impl Fn(&str) -> bool) -> String {
        let mut job = String::new();
        let mut line = |text: String| job.extend([text.as_str(), "\n"]);
        if let Some(modules) = modules {
            line(format!("modules {}", modules.display()));
        }
        for (name, value) in &self.environment {
            line(format!("env {name}={}", value.display()));
        }
        let (last, first): (Vec<_>, Vec<_>) = self.tests.iter().partition(|test| test.starts_with(LAST));
        for name in first.into_iter().chain(last) {
            let is_left_out =
                || unsupported::find(name, &heading.traits).is_some_and(UnsupportedTest::is_left_out);
            if heading.has(name) && is_wanted(name) && !is_left_out() {
                line(format!("test {} {name} {}", TEST_LIMIT.as_secs(), self.program.display()));
            }
        }
        job
    }
}

/// The path of the test program whose sources lie in this folder of tests/, built. `only` are arguments of cargo that keep it
/// from building the other tests.
pub fn program_in(folder: &str, only: &[&str]) -> Result<PathBuf> {
    let part = format!("/tests/{folder}/");
    let mut command = sh::cargo();
    // Of the whole workspace: without the features that other crates' tests enable, half of the dependencies would be
    // built again.
    command.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    command.args(only);
    sh::progress(format_args!("$ {}", sh::show(&command)));
    let messages = sh::capture(&mut command)?;
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("cargo's messages")?;
        let target = &message["target"];
        let is_wanted = target["kind"][0] == "test"
            && target["src_path"].as_str().is_some_and(|path| path.contains(&part));
        if let (true, Some(path)) = (is_wanted, message["executable"].as_str()) {
            return Ok(PathBuf::from(path));
        }
    }
    bail!("cargo built no program of tests/{folder}")
}

/// The program's tests without the ignored ones, which other tests start.
pub fn names(program: &Path) -> Result<Vec<String>> {
    let list = |more: &[&str]| -> Result<Vec<String>> {
        let text = sh::capture(Command::new(program).args(["--list", "--format", "terse"]).args(more))?;
        Ok(text.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect())
    };
    let ignored = list(&["--ignored"])?;
    Ok(list(&[])?.into_iter().filter(|name| !ignored.contains(name)).collect())
}
