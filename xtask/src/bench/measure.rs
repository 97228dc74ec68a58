//! The cost of a tool: its CPU time and memory by `time`, its maps and programs in the kernel by bpftool.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::sh;

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The cost of one run.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    pub user_seconds: f64,
    pub system_seconds: f64,
    pub peak_kib: u64,
    /// Of the maps that it created.
    pub kernel_bytes: u64,
    /// Of the programs that it loaded, and how often they ran.
    pub bpf_seconds: f64,
    pub bpf_runs: u64,
    /// Its stdout and stderr.
    pub output: String,
}

/// Runs `command` for `seconds` and some more; inspects the kernel shortly before `seconds` have passed.
pub fn run(command: &Command, folder: &Path, seconds: u64) -> Result<Cost> {
    let (numbers, output) = (folder.join("time"), folder.join("output"));
    let mut timed = Command::new("/usr/bin/time");
    timed.args(["-f", "%U %S %M", "-o"]).arg(&numbers).arg(command.get_program()).args(command.get_args());
    timed.current_dir(folder);
    let file = std::fs::File::create(&output)?;
    timed.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    sh::progress(format_args!("$ {}", sh::show(command)));
    let (maps, programs) = (ids(&list("map")?), ids(&list("prog")?));
    let begun = Instant::now();
    let mut child = timed.spawn().context("start /usr/bin/time")?;
    std::thread::sleep(Duration::from_millis(seconds * 1000 - 700));
    let is_new =
        |known: &HashSet<u64>, one: &Value| one["id"].as_u64().is_some_and(|id| !known.contains(&id));
    let sum = |all: &[Value], known: &HashSet<u64>, field: &str| -> u64 {
        all.iter().filter(|one| is_new(known, one)).filter_map(|one| one[field].as_u64()).sum()
    };
    let (maps_now, programs_now) = (list("map")?, list("prog")?);
    let limit = Duration::from_secs(seconds + 180);
    while child.try_wait()?.is_none() {
        if begun.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("it did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let numbers = std::fs::read_to_string(&numbers).context("read the output of time")?;
    // If the tool failed, a line before reports it.
    let fields: Vec<&str> = numbers.lines().last().unwrap_or_default().split(' ').collect();
    let [user, system, peak] = fields[..] else { bail!("unexpected output of time: {numbers:?}") };
    Ok(Cost {
        user_seconds: user.parse()?,
        system_seconds: system.parse()?,
        peak_kib: peak.parse()?,
        kernel_bytes: sum(&maps_now, &maps, "bytes_memlock"),
        bpf_seconds: sum(&programs_now, &programs, "run_time_ns") as f64 / 1e9,
        bpf_runs: sum(&programs_now, &programs, "run_cnt"),
        output: String::from_utf8_lossy(&std::fs::read(&output)?).into_owned(),
    })
}

fn list(what: &str) -> Result<Vec<Value>> {
    let text = sh::capture(Command::new("bpftool").args(["-j", what, "show"]))?;
    serde_json::from_str(&text).context("bpftool's JSON")
}

fn ids(all: &[Value]) -> HashSet<u64> {
    all.iter().filter_map(|one| one["id"].as_u64()).collect()
}

/// Enables the kernel's statistics of programs until it is dropped. They cost about 20 ns a run.
pub struct Statistics(String);

impl Statistics {
    pub fn on() -> Result<Statistics> {
        let before = std::fs::read_to_string(STATISTICS).context(STATISTICS)?;
        std::fs::write(STATISTICS, "1").context(STATISTICS)?;
        Ok(Statistics(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = std::fs::write(STATISTICS, self.0.trim());
    }
}
