//! Runs a list of tests, one process each, and writes a verdict line for every one of them.
//!
//! `podopsy-guest JOB` runs them on this machine. As PID 1 of a lab machine (`cargo xtask vm`) it first boots a system
//! from the host's root, shared read-only, and powers off at the end.

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

/// The job's path in a lab machine's initramfs.
const JOB: &str = "/job";
/// The serial port for verdicts. The console is another port, so that the kernel's messages do not mix with them.
const VERDICTS: &str = "/dev/ttyS1";

fn main() -> ExitCode {
    let result = match std::env::args_os().nth(1) {
        Some(job) => run(Path::new(&job), &mut std::io::stdout()),
        None if nix::unistd::getpid() == Pid::from_raw(1) => {
            if let Err(error) = run_as_init() {
                eprintln!("podopsy-guest: {error:#}");
            }
            // PID 1 must not end: the kernel would panic, and its report would hide the error.
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

/// Boots the lab machine, runs the tests in a child, and reaps every orphan meanwhile.
fn run_as_init() -> Result<()> {
    let text = std::fs::read_to_string(JOB).context("read the job in the initramfs")?;
    let job = job::Job::parse(&text)?;
    boot::boot(job.modules.as_deref())?;
    let moved = "/run/podopsy-job";
    std::fs::write(moved, text).context("write the job to the new root")?;
    let verdicts =
        OpenOptions::new().write(true).open(VERDICTS).with_context(|| format!("open {VERDICTS}"))?;
    // The initramfs is no longer visible; this program can still be run by its descriptor.
    let child = Command::new("/proc/self/exe")
        .arg(moved)
        .envs(boot::ENVIRONMENT)
        .stdout(verdicts)
        .spawn()
        .context("start the tests")?;
    let child = Pid::from_raw(child.id() as i32);
    // To a test that waits for a process's end, an orphan that is not reaped seems to run.
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) if pid == child => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error).context("wait for the tests"),
        }
    }
}
