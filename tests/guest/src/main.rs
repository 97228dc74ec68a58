//! Runs a list of tests, one process each, and writes a verdict line for every one of them.
//!
//! `podopsy-guest JOB` does so on the machine that it is started on. As PID 1 of a lab machine (`cargo xtask vm`)
//! it first makes a system out of the host's root, shared read-only, and powers off in the end.
//! It knows nothing of podopsy, nor what the tests test.

#![forbid(unsafe_code)]

mod boot;
mod job;
mod kernel_log;
mod suite;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

/// Where a lab machine's job lies in its initramfs.
const JOB: &str = "/job";
/// The port that carries verdicts. The console has one of its own, so that the kernel's messages cannot tear them.
const VERDICTS: &str = "/dev/ttyS1";

fn main() -> ExitCode {
    let result = match std::env::args_os().nth(1) {
        Some(job) => run(Path::new(&job), &mut std::io::stdout()),
        None if nix::unistd::getpid() == Pid::from_raw(1) => {
            if let Err(error) = machine() {
                eprintln!("podopsy-guest: {error:#}");
            }
            // PID 1 must not end: the kernel would panic, and hide what was said.
            let failed = reboot(RebootMode::RB_POWER_OFF);
            eprintln!("podopsy-guest: power off: {failed:?}");
            loop {
                std::thread::park();
            }
        }
        None => Err(anyhow::anyhow!("usage: podopsy-guest JOB (`cargo xtask vm` makes the job)")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podopsy-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(job: &Path, verdicts: &mut dyn Write) -> Result<()> {
    let text = std::fs::read_to_string(job).with_context(|| format!("read {}", job.display()))?;
    suite::run(&job::Job::parse(&text)?, verdicts)
}

/// All that a lab machine does: a system, the tests in a child, and every orphan reaped meanwhile.
fn machine() -> Result<()> {
    let text = std::fs::read_to_string(JOB).context("read the job in the initramfs")?;
    let job = job::Job::parse(&text)?;
    boot::boot(job.modules.as_deref())?;
    let moved = "/run/podopsy-job";
    std::fs::write(moved, text).context("write the job to the new root")?;
    let verdicts =
        OpenOptions::new().write(true).open(VERDICTS).with_context(|| format!("open {VERDICTS}"))?;
    // The initramfs is out of sight by now, the program that runs is not.
    let child = Command::new("/proc/self/exe")
        .arg(moved)
        .envs(boot::ENVIRONMENT)
        .stdout(verdicts)
        .spawn()
        .context("start the tests")?;
    let child = Pid::from_raw(child.id() as i32);
    // A process that nobody reaps looks alive to tests that wait for its end.
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) if pid == child => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error).context("wait for the tests"),
        }
    }
}
