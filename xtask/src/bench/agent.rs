//! An agent under measurement: starts it, measures it from outside, ends it, and reads its output.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sh;

/// A running agent.
pub struct Agent {
    child: Child,
    folder: PathBuf,
}

/// The output of an agent that has ended.
pub struct EndedAgent {
    stdout: String,
    pub losses: String,
    pub peak_kib: u64,
}

impl Agent {
    pub const TIMEOUT: Duration = Duration::from_secs(5);

    /// Starts `program`, with `more` arguments than every benchmark needs, and waits until it records.
    pub fn start(program: &Path, folder: &Path, more: &[&str]) -> Result<Agent> {
        let file = |name: &str| File::create(folder.join(name)).context("write into the bench's folder");
        // If the benchmark is killed, its agent has to end, too.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .args(["--dns-timeout", "5s"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(file("events")?)
            .stderr(file("log")?)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let agent = Agent { child, folder: folder.to_owned() };
        let end = Instant::now() + Duration::from_secs(30);
        while !agent.log()?.contains("recording") {
            if Instant::now() > end {
                bail!("the agent does not record:\n{}", agent.log()?);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(agent)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its TCP address, if its arguments configure one.
    pub fn address(&self) -> Result<String> {
        let log = self.log()?;
        let address = log.split_once("address=").and_then(|(_, rest)| rest.split_whitespace().next());
        Ok(address.context("the agent's log names no address")?.to_owned())
    }

    /// The events that it has emitted so far.
    pub fn events(&self) -> Result<String> {
        std::fs::read_to_string(self.folder.join("events")).context("read the agent's events")
    }

    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(self.folder.join("log")).context("read the agent's log")
    }

    /// Its user and system time since its start.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        // USER_HZ is 100 on every Linux.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Name, run time in ns and run count of each of its programs that see packets.
    pub fn programs(&self) -> Result<Vec<(String, u64, u64)>> {
        let text = sh::capture(Command::new("bpftool").args(["-j", "prog", "show"]))?;
        let programs: serde_json::Value = serde_json::from_str(&text).context("bpftool's JSON")?;
        let ids = self.program_ids()?;
        let mine = |program: &&serde_json::Value| program["id"].as_u64().is_some_and(|id| ids.contains(&id));
        let programs = programs.as_array().context("bpftool's list")?.iter().filter(mine);
        Ok(programs
            .filter_map(|program| {
                let name = program["name"].as_str().filter(|name| name.starts_with("dns_"))?;
                Some((name.to_owned(), program["run_time_ns"].as_u64()?, program["run_cnt"].as_u64()?))
            })
            .collect())
    }

    /// The IDs of its own programs: another recorder on this machine has programs of the same names.
    fn program_ids(&self) -> Result<Vec<u64>> {
        let folder = format!("/proc/{}/fdinfo", self.child.id());
        let mut ids = Vec::new();
        for file in std::fs::read_dir(&folder).context(folder)? {
            let text = std::fs::read_to_string(file?.path()).unwrap_or_default();
            // Programs have one, and links have their program's.
            let id: Option<u64> =
                text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
            ids.extend(id);
        }
        Ok(ids)
    }

    pub fn stop(mut self) -> Result<EndedAgent> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak_kib = peak.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0);
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).context("end the agent")?;
        self.child.wait()?;
        let log = self.log()?;
        let losses =
            log.lines().find_map(|line| line.split_once("losses=")).map(|(_, losses)| losses.to_owned());
        Ok(EndedAgent {
            stdout: std::fs::read_to_string(self.folder.join("events"))?,
            losses: losses.with_context(|| format!("the agent did not end well:\n{log}"))?,
            peak_kib,
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl EndedAgent {
    pub fn events(&self, outcome: &str, name: &str) -> u64 {
        let outcome = format!(r#""outcome":"{outcome}""#);
        self.stdout.lines().filter(|line| line.contains(&outcome) && line.contains(name)).count() as u64
    }

    /// The lost records and queries, summed over their loss counters.
    pub fn lost(&self) -> u64 {
        ["dns_throttled", "dns_ring", "recorder_queue", "dns_over_share", "dns_in_flight"]
            .iter()
            .filter_map(|name| {
                let (_, rest) = self.losses.split_once(&format!("\"{name}\": "))?;
                rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
            })
            .sum()
    }
}
