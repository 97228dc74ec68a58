//! `cargo xtask bench soak`: a node's worth of real containers, a dozen of them in trouble, and the agent beside them for
//! an hour. It samples the agent's resources every ten seconds. At the end it reports what grew, and whether the agent saw as
//! many kills as the kernel counted.

mod curve;
mod load;
mod report;
mod sample;

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use serde_json::Value;

use super::agent::Agent;
use crate::setup::{self, Group};
use crate::sh;
use crate::statics::{self, Statics};
use curve::Verdict;
use load::{Load, Toll};
use sample::Sample;

/// The interval between samples; Prometheus scrapes as often, or less.
const EVERY: Duration = Duration::from_secs(10);
/// How long the agent may take to report the last kill: it waits for the runtime's report.
const SETTLED: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct Options {
    /// How long to measure, once all containers run
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=24 * 60))]
    minutes: u64,
    /// Number of containers, a dozen of them in trouble; two share a pod
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=400))]
    containers: u64,
    /// The agent's always-on profile, samples a second and CPU
    #[arg(long, default_value_t = 19)]
    profile_hz: u32,
    /// The history's size: small, so that it is full early on and the rest shows how it stays at its limit
    #[arg(long, default_value = "32MiB")]
    store_bytes: String,
    /// Write every sample to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
    /// The agent to measure, instead of one built as it ships
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

/// The command.
pub fn run(options: &Options) -> Result<()> {
    sh::need_root("bench soak", "loads the probes and starts containers")?;
    setup::install(&[Group::Demo])?;
    let program = match &options.agent {
        Some(path) => std::path::absolute(path).with_context(|| path.display().to_string())?,
        None => statics::build(Statics::Podopsy)?.join("podopsy-agent"),
    };
    let signals = Signals::new();
    let folder = Folder::new()?;
    let (mut load, socket) = Load::start(options.containers as usize)?;
    let state = folder.0.join("state");
    let (socket, state_text) = (socket.display().to_string(), state.display().to_string());
    let api = folder.0.join("agent.sock").display().to_string();
    let hz = options.profile_hz.to_string();
    let arguments = [
        ["--cri-socket", &socket],
        ["--state-dir", &state_text],
        ["--socket", &api],
        ["--listen", "127.0.0.1:0"],
        ["--profile-hz", &hz],
        ["--store-bytes", &options.store_bytes],
    ];
    let start = || -> Result<(Agent, String, f64)> {
        let began = Instant::now();
        let agent = Agent::start(&program, &folder.0, arguments.as_flattened())?;
        let address = agent.address()?;
        while sample::get(&address, "/readyz").is_err() {
            if began.elapsed() > SETTLED {
                bail!("the agent is not ready:\n{}", agent.log()?);
            }
            signals.wait(Duration::from_millis(50))?;
        }
        Ok((agent, address, began.elapsed().as_secs_f64()))
    };

    let (agent, address, seconds) = start()?;
    let mut watch =
        Watch { agent: &agent, address, state: &state, began: Instant::now(), samples: Vec::new() };
    let empty = watch.take()?;
    sh::progress(format_args!(
        "the agent is ready after {seconds:.1} s; starting {} containers",
        options.containers
    ));
    let (pods, took, uids) = load.crowd()?;
    let full = watch.take()?;
    println!(
        "{} containers in {pods} pods started in {took:.0} s; the agent, ready {seconds:.1} s after its own start, took \
         {:.2} s of CPU for them, and went from {:.1} to {:.1} MiB RSS\n",
        options.containers,
        full.cpu_seconds - empty.cpu_seconds,
        empty.rss_mib,
        full.rss_mib
    );
    let before = load.toll()?;
    watch.run(Duration::from_secs(options.minutes * 60), &signals)?;
    let samples = std::mem::take(&mut watch.samples);
    if let Some(path) = &options.samples {
        write(&samples, path)?;
    }

    sh::progress("no more kills: waiting for the agent's last report");
    let toll = load.settle()?;
    let seen = reported_kills(&agent, &uids, toll, &signals)?;
    drop(watch);
    let ended = agent.stop()?;
    let (table, verdict) = report::table(&samples);
    println!("\n{} minutes, {} containers, {} Hz\n\n{table}", options.minutes, options.containers, hz);
    print_counts(&samples, toll, before, seen, ended.peak_kib);

    // The cost of a start on a node that is full.
    let (again, address, seconds) = start()?;
    let mut watch =
        Watch { agent: &again, address, state: &state, began: Instant::now(), samples: Vec::new() };
    let now = watch.take()?;
    println!(
        "restarted beside all of them: ready after {seconds:.1} s, {:.2} s of CPU, {:.1} MiB RSS",
        now.cpu_seconds, now.rss_mib
    );
    drop(watch);
    again.stop()?;
    drop(load);
    if seen != toll.kills {
        bail!("the agent reported {seen} kills, and the kernel counted {}", toll.kills);
    }
    match verdict {
        Verdict::Grows => bail!("something grows: see the table"),
        Verdict::Unclear => println!("verdict: not clear; a longer run would show it"),
        Verdict::Flat => println!("verdict: flat"),
    }
    Ok(())
}

/// The agent, and its samples so far.
struct Watch<'a> {
    agent: &'a Agent,
    address: String,
    state: &'a Path,
    began: Instant,
    samples: Vec<Sample>,
}

impl Watch<'_> {
    fn take(&mut self) -> Result<Sample> {
        let seconds = self.began.elapsed().as_secs_f64();
        Sample::take(self.agent.pid(), self.state, &self.address, seconds, self.agent.cpu()?)
    }

    /// Takes samples for this time, and prints a line each minute.
    fn run(&mut self, time: Duration, signals: &Signals) -> Result<()> {
        println!("{}", report::HEAD);
        self.began = Instant::now();
        let mut minute = self.take()?;
        self.samples.push(minute.clone());
        let mut due = EVERY;
        while due <= time {
            signals.wait(due.saturating_sub(self.began.elapsed()))?;
            due += EVERY;
            let now = self.take()?;
            self.samples.push(now.clone());
            if now.seconds - minute.seconds > 59.0 {
                println!("{}", report::minute(&minute, &now));
                minute = now;
            }
        }
        Ok(())
    }
}

/// The number of kills that the agent has reported in these pods. Waits for the expected number, up to [`SETTLED`].
fn reported_kills(agent: &Agent, uids: &[String], toll: Toll, signals: &Signals) -> Result<u64> {
    let uids: HashSet<&str> = uids.iter().map(String::as_str).collect();
    let end = Instant::now() + SETTLED;
    loop {
        let seen = kills_in(&agent.events()?, &uids);
        if seen >= toll.kills || Instant::now() > end {
            return Ok(seen);
        }
        signals.wait(Duration::from_millis(500))?;
    }
}

/// The kills in our own pods: other tests may run on this machine.
fn kills_in(events: &str, uids: &HashSet<&str>) -> u64 {
    let kills = events.lines().filter(|line| line.contains(r#""oom.kill""#));
    let ours = kills.filter(|line| {
        let event: Value = serde_json::from_str(line).unwrap_or_default();
        event["kind"] == "oom.kill" && event["pod"]["uid"].as_str().is_some_and(|uid| uids.contains(uid))
    });
    ours.count() as u64
}

fn print_counts(samples: &[Sample], toll: Toll, before: Toll, seen: u64, peak_kib: u64) {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return };
    println!(
        "CPU over all: {:.2} % of one; peak RSS {:.1} MiB",
        report::cpu_percent(first, last),
        peak_kib as f64 / 1024.0
    );
    println!(
        "events: {:.0} ({:.1} a second); DNS events left out by the limit a container: {:.0}; shed: {:.0}",
        last.events - first.events,
        (last.events - first.events) / (last.seconds - first.seconds).max(1.0),
        last.dropped - first.dropped,
        last.shed - first.shed
    );
    println!("lost, by counter: {:?}", report::lost(first, last));
    println!(
        "OOM kills in these containers: {} by the kernel and the runtime, {seen} reported by the agent; restarts: {}",
        toll.kills,
        toll.restarts - before.restarts
    );
}

fn write(samples: &[Sample], path: &Path) -> Result<()> {
    let lines: String = samples.iter().map(|sample| sample.line() + "\n").collect();
    std::fs::write(path, lines).with_context(|| format!("write {}", path.display()))
}

/// The agent's files; dropping it removes them.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("podopsy-soak-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Takes SIGINT and SIGTERM while the benchmark waits, which is nearly always, so that the agent and the load end in order.
/// The signals are blocked only for that time, because a child inherits blocked signals. At other times they end this
/// process, and the children end with it: their stdin closes and their parent dies.
struct Signals(SigSet);

impl Signals {
    fn new() -> Signals {
        Signals(SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]))
    }

    /// Waits. A signal that arrives meanwhile is an error.
    fn wait(&self, time: Duration) -> Result<()> {
        let signals = SignalFd::new(&self.0).context("take signals")?;
        self.0.thread_block().context("take signals")?;
        let has_signal = poll_until(&signals, Instant::now() + time);
        self.0.thread_unblock().context("let signals through")?;
        if has_signal? {
            bail!("interrupted; the agent and the load were ended");
        }
        Ok(())
    }
}

/// Returns true if a signal arrived, and takes it.
fn poll_until(signals: &SignalFd, end: Instant) -> Result<bool> {
    loop {
        let left = end.saturating_duration_since(Instant::now()).min(Duration::from_secs(60));
        // Rounded up: otherwise the last millisecond would be a busy loop.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if Instant::now() >= end => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(signals.read_signal().context("take a signal")?.is_some()),
            Err(error) => return Err(error).context("wait"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kills_of_our_own_pods_count() {
        let events = r#"{"kind":"oom.kill","pod":{"uid":"a","name":"leaks"}}
            {"kind":"oom.kill","pod":{"uid":"b"}}
            {"kind":"oom.kill","pod":null}
            {"kind":"oom.incident","pod":{"uid":"a"},"victims":["oom.kill"]}
            {"kind":"oom.kill","pod":{"uid":"a"}"#;
        assert_eq!(kills_in(events, &HashSet::from(["a"])), 1);
    }
}
