//! Runs the tests, each in its own process, and writes one verdict for each.
//!
//! ```text
//! begin SUITE::NAME
//! | a line of what the test printed (only if it failed)
//! ok SUITE::NAME MILLISECONDS
//! fail SUITE::NAME MILLISECONDS REASON
//! end COUNT
//! ```
//!
//! The reader has the list of tests: a test without a verdict has failed. A failed test is run once more at the end and
//! then has two verdicts.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::job::{Job, Test};
use crate::kernel_log;

/// The number of bytes shown of a failed test's output, from its end.
const SHOWN: u64 = 32 << 10;

/// Runs the job. An error is the guest's own, never a test's.
pub fn run(job: &Job, verdicts: &mut dyn Write) -> Result<()> {
    let mut failed = Vec::new();
    for test in &job.tests {
        if !judge(test, job, verdicts)? {
            failed.push(test);
        }
    }
    // A second try, reported as such: an emulated machine on a busy host misses deadlines that the test is not about.
    for test in failed {
        judge(test, job, verdicts)?;
    }
    writeln!(verdicts, "end {}", job.tests.len()).context("write the verdicts")
}

/// Runs one test and writes its verdict; whether it passed.
fn judge(test: &Test, job: &Job, verdicts: &mut dyn Write) -> Result<bool> {
    let name = &test.name;
    writeln!(verdicts, "begin {name}")?;
    verdicts.flush()?;
    let (start, log) = (Instant::now(), kernel_log::Mark::now());
    let outcome = run_test(test, job);
    let took = start.elapsed().as_millis();
    match &outcome {
        Ok(()) => writeln!(verdicts, "ok {name} {took}")?,
        Err((reason, output)) => {
            for line in output.lines() {
                writeln!(verdicts, "| {}", line.replace(|c: char| c.is_control() && c != '\t', "."))?;
            }
            writeln!(verdicts, "fail {name} {took} {reason}")?;
            eprintln!("{name} failed; the kernel's log meanwhile:");
            log.since().iter().for_each(|line| eprintln!("{line}"));
        }
    }
    verdicts.flush()?;
    Ok(outcome.is_ok())
}

/// Runs the test's process; the error is the reason and the output.
fn run_test(test: &Test, job: &Job) -> Result<(), (String, String)> {
    let silent = |error: std::io::Error| (format!("cannot run it: {error}"), String::new());
    let mut output = tempfile::tempfile().map_err(silent)?;
    let mut child = Command::new(&test.program)
        .args(["--exact", &test.name, "--nocapture", "--test-threads=1"])
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(silent)?)
        .stderr(output.try_clone().map_err(silent)?)
        // At the time limit, the whole group is killed.
        .process_group(0)
        .spawn()
        .map_err(silent)?;
    let status = wait(&mut child, test.limit).map_err(silent)?;
    let text = tail(&mut output).map_err(silent)?;
    match status {
        // libtest succeeds if no test has this name.
        Some(status) if status.success() && text.contains("test result: ok. 1 passed") => Ok(()),
        Some(status) if status.success() => Err(("no test of that name ran".to_owned(), text)),
        Some(status) => Err((ended(status), text)),
        None => Err((format!("no end within {} s", test.limit.as_secs()), text)),
    }
}

/// The exit status; None: it exceeded the limit and was killed with its process group.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(101), _) => "it failed".to_owned(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "it ended somehow".to_owned(),
    }
}

fn tail(file: &mut File) -> std::io::Result<String> {
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(SHOWN)))?;
    let mut bytes = Vec::new();
    file.take(SHOWN).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(name: &str, limit: Duration) -> Vec<String> {
        let test = Test { limit, name: name.to_owned(), program: std::env::current_exe().unwrap() };
        let environment = vec![("PODOPSY_GUEST_SELFTEST".to_owned(), "1".to_owned())];
        let mut out = Vec::new();
        run(&Job { tests: vec![test], environment, ..Job::default() }, &mut out).unwrap();
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    fn is_child() -> bool {
        std::env::var_os("PODOPSY_GUEST_SELFTEST").is_some()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_passing_test_gets_its_verdict() {
        if is_child() {
            return;
        }
        let lines = verdicts("suite::tests::a_passing_test_gets_its_verdict", LONG);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[1].starts_with("ok suite::tests::a_passing"), "{lines:?}");
        assert_eq!(lines[2], "end 1");
    }

    #[test]
    fn a_failing_test_shows_what_it_said_and_cannot_fake_a_verdict() {
        if is_child() {
            println!("\nok suite 1\nend 1");
            panic!("as it should");
        }
        let lines =
            verdicts("suite::tests::a_failing_test_shows_what_it_said_and_cannot_fake_a_verdict", LONG);
        assert!(lines.contains(&"| ok suite 1".to_owned()), "{lines:?}");
        assert!(
            lines.iter().any(|line| line.starts_with("| ") && line.contains("as it should")),
            "{lines:?}"
        );
        let verdict = lines.iter().find(|line| line.starts_with("fail ")).unwrap();
        assert!(verdict.ends_with(" it failed"), "{verdict}");
        assert!(!lines.iter().any(|line| line.starts_with("ok ")));
    }

    #[test]
    fn a_test_that_hangs_is_ended_and_one_that_is_not_there_fails() {
        if is_child() {
            std::thread::sleep(LONG);
        }
        let name = "suite::tests::a_test_that_hangs_is_ended_and_one_that_is_not_there_fails";
        let lines = verdicts(name, Duration::from_millis(300));
        assert!(lines.iter().any(|line| line.contains("no end within")), "{lines:?}");
        let lines = verdicts("no::such", LONG);
        assert!(lines.iter().any(|line| line.ends_with("no test of that name ran")), "{lines:?}");
    }
}
