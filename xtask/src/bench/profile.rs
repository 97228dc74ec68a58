//! `cargo xtask bench profile`: podopsy and its peers on the same load, one after the other; and podopsy on a crowd of
//! processes, where its memory must stay within its budget.
//!
//! One definition of a complete stack is applied to every tool's own output: it leads to the program's `_start`, or to
//! libc's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::mount::{MsFlags, mount};

use super::load::Load;
use super::measure::{self, Cost, Statistics};
use crate::apt::{self, Package};
use crate::sh;
use crate::statics::{self, Statics};

const PACKAGES: &[Package] = &[
    Package { name: "bpftool", why: "reads the kernel's statistics of each program" },
    Package { name: "time", why: "measures a process's CPU time and memory" },
    Package { name: "g++", why: "compiles programs without frame pointers" },
    Package { name: "python3", why: "is one" },
    Package { name: "linux-perf", why: "is a peer" },
    Package { name: "bpftrace", why: "is another" },
];
const FREQUENCY: u64 = 99;
/// The two tools that are compared.
const NODE: &str = "podopsy, whole node";
const BEE: &str = "pbee --dwarf true";
/// The budgets: kernel memory for tables, and the agent's own memory.
const TABLES_MIB: f64 = 64.0;
const RSS_MIB: f64 = 48.0;

#[derive(Debug, Args)]
pub struct Options {
    /// Duration of each run in seconds
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=600))]
    seconds: u64,
    /// The podopsy to measure, instead of one built as it ships
    #[arg(long, value_name = "PATH")]
    podopsy: Option<PathBuf>,
    /// profile-bee's program; it is built by `cargo install profile-bee --locked --root target/peers`
    #[arg(long, value_name = "PATH")]
    pbee: Option<PathBuf>,
    /// How often all tools run, in turn; podopsy's cost relative to profile-bee's is that of the medians
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=20))]
    rounds: u64,
    /// Run only the tools whose name begins with this; can be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Instead of peers, compare numbers of processes and binaries, up to 1,000 and 300
    #[arg(long)]
    crowd: bool,
}

/// A tool on the same load.
struct Tool {
    name: &'static str,
    /// Or, if it is missing, how to install it.
    command: Result<(PathBuf, Vec<String>), &'static str>,
    stacks: Stacks,
}

/// Where its output has the stacks.
enum Stacks {
    Folded(&'static str),
    PerfData(&'static str),
    Nowhere,
}

/// The load's samples, and those of them that lead to the beginning of their program.
#[derive(Default)]
struct Found {
    samples: u64,
    complete: u64,
}

/// The command.
pub fn run(options: &Options) -> Result<()> {
    sh::need_root("bench profile", "loads the probes")?;
    apt::install(PACKAGES)?;
    let podopsy = match &options.podopsy {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => statics::build(Statics::Podopsy)?.join("podopsy"),
    };
    mount_tracefs()?;
    let folder = sh::root().join("target/bench-profile");
    std::fs::create_dir_all(&folder).context("make a folder for the bench")?;
    let statistics = Statistics::on()?;
    let done =
        if options.crowd { crowd(options, &podopsy, &folder) } else { peers(options, &podopsy, &folder) };
    drop(statistics);
    done
}

/// profile-bee and bpftrace need it.
fn mount_tracefs() -> Result<()> {
    let at = Path::new("/sys/kernel/tracing");
    if at.join("events").exists() {
        return Ok(());
    }
    mount(Some("tracefs"), at, Some("tracefs"), MsFlags::empty(), None::<&str>).context("mount tracefs")
}

fn peers(options: &Options, podopsy: &Path, folder: &Path) -> Result<()> {
    let seconds = options.seconds;
    println!(
        "| tool | CPU s (user + sys) | peak RSS MiB | kernel maps MiB | in BPF s (runs) | samples of the load (by its CPU time) | complete |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut costs: HashMap<&str, Vec<Cost>> = HashMap::new();
    for _ in 0..options.rounds {
        let wanted = |tool: &Tool| {
            options.only.is_empty() || options.only.iter().any(|start| tool.name.starts_with(start))
        };
        for tool in tools(options, podopsy).into_iter().filter(wanted) {
            if let Some(cost) = measured(&tool, folder, seconds)? {
                costs.entry(tool.name).or_default().push(cost);
            }
        }
    }
    if let [Some(ours), Some(theirs)] = [NODE, BEE].map(|name| costs.get(name)) {
        println!("\n{}", against(ours, theirs));
    }
    Ok(())
}

/// Runs a tool and prints its row. Returns its cost, or None if it is missing or failed.
fn measured(tool: &Tool, folder: &Path, seconds: u64) -> Result<Option<Cost>> {
    let mut command = match &tool.command {
        Ok((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        Err(how) => {
            println!("| {} | not here: {how} |", tool.name);
            return Ok(None);
        }
    };
    let load = Load::two(folder)?;
    // Past the dynamic loader.
    std::thread::sleep(Duration::from_millis(500));
    let only_first = tool.name.contains("process");
    let before = load.cpu(only_first);
    if only_first {
        command.arg(format!("pid:{}", load.first()));
    }
    let cost = measure::run(&command, folder, seconds);
    let wanted = (load.cpu(only_first) - before).as_secs_f64() * FREQUENCY as f64;
    drop(load);
    match cost.and_then(|cost| Ok((stacks(&tool.stacks, folder)?, cost))) {
        Ok(((found, more), cost)) => {
            row(tool.name, &cost, more.as_ref(), &found, wanted);
            Ok(Some(cost))
        }
        Err(error) => {
            println!("| {} | failed: {error:#} |", tool.name);
            Ok(None)
        }
    }
}

/// podopsy's cost relative to the peer's, by medians.
fn against(ours: &[Cost], theirs: &[Cost]) -> String {
    let part = |of: fn(&Cost) -> f64| median(ours, of) / median(theirs, of);
    let cpu = part(|cost| cost.user_seconds + cost.system_seconds);
    let memory = part(|cost| cost.peak_kib as f64 * 1024.0 + cost.kernel_bytes as f64);
    format!("{NODE} takes {cpu:.2} of the CPU of {BEE}, and {memory:.2} of its memory (RSS and kernel maps)")
}

fn median(costs: &[Cost], of: fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    (at(low) + at(high)) / 2.0
}

fn row(name: &str, cost: &Cost, more: Option<&Cost>, found: &Found, wanted: f64) {
    let cpu = |cost: &Cost| format!("{:.2} + {:.2}", cost.user_seconds, cost.system_seconds);
    let mib = |kib: u64| format!("{:.0}", kib as f64 / 1024.0);
    let and = |what: Option<String>| what.map(|what| format!(", then {what} to read it")).unwrap_or_default();
    let (samples, complete) = match found.samples {
        0 => ("–".to_owned(), "–".to_owned()),
        samples => (
            format!("{samples} ({wanted:.0})"),
            format!("{:.2} %", found.complete as f64 * 100.0 / samples as f64),
        ),
    };
    println!(
        "| {name} | {}{} | {}{} | {:.1} | {:.2} ({}) | {samples} | {complete} |",
        cpu(cost),
        and(more.map(cpu)),
        mib(cost.peak_kib),
        and(more.map(|more| mib(more.peak_kib))),
        cost.kernel_bytes as f64 / f64::from(1 << 20),
        cost.bpf_seconds,
        cost.bpf_runs,
    );
}

fn tools(options: &Options, podopsy: &Path) -> Vec<Tool> {
    let (seconds, frequency) = (options.seconds.to_string(), FREQUENCY.to_string());
    let command = |program: &Path, args: &[&str]| {
        (program.to_owned(), args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    };
    let here =
        |name: &str, how, args: &[&str]| sh::which(name).map(|program| command(&program, args)).ok_or(how);
    let duration = format!("{seconds}s");
    let ours = |args: &[&str]| {
        Ok(command(podopsy, &[&["profile", "-F", &frequency, "-d", &duration], args].concat()))
    };
    let pbee = options.pbee.clone().unwrap_or_else(|| sh::root().join("target/peers/bin/pbee"));
    let bee = |args: &[&str]| {
        let milliseconds = format!("{seconds}000");
        let bee = command(&pbee, &[&["-f", &frequency, "-t", &milliseconds], args].concat());
        if pbee.is_file() { Ok(bee) } else { Err("cargo install profile-bee --locked --root target/peers") }
    };
    let perf = "apt-get install linux-perf";
    let record = ["record", "-q", "-a", "-e", "cpu-clock", "-F", &frequency];
    let script = format!(
        "profile:hz:{FREQUENCY} {{ @[comm, ustack(perf)] = count(); }} interval:s:{seconds} {{ exit(); }}"
    );
    vec![
        Tool {
            name: NODE,
            command: ours(&["--all", "-o", "node.folded"]),
            stacks: Stacks::Folded("node.folded"),
        },
        Tool {
            name: "podopsy, one process",
            command: ours(&["-o", "one.folded"]),
            stacks: Stacks::Folded("one.folded"),
        },
        Tool {
            name: "podopsy, whole node, frame pointers",
            command: ours(&["--all", "--stacks", "frame-pointers", "-o", "fp.folded"]),
            stacks: Stacks::Folded("fp.folded"),
        },
        Tool {
            name: BEE,
            command: bee(&["--dwarf", "true", "--collapse", "bee.folded"]),
            stacks: Stacks::Folded("bee.folded"),
        },
        Tool {
            name: "pbee, frame pointers",
            command: bee(&["--collapse", "bee-fp.folded"]),
            stacks: Stacks::Folded("bee-fp.folded"),
        },
        Tool {
            name: "bpftrace",
            command: here("bpftrace", "apt-get install bpftrace", &["-e", &script]),
            stacks: Stacks::Nowhere,
        },
        Tool {
            name: "perf record -g",
            command: here("perf", perf, &[&record[..], &["-g", "-o", "fp.data", "sleep", &seconds]].concat()),
            stacks: Stacks::PerfData("fp.data"),
        },
        Tool {
            name: "perf --call-graph dwarf,16384",
            command: here(
                "perf",
                perf,
                &[&record[..], &["--call-graph", "dwarf,16384", "-o", "dwarf.data", "sleep", &seconds]]
                    .concat(),
            ),
            stacks: Stacks::PerfData("dwarf.data"),
        },
    ]
}

/// The stacks that the tool found, and the cost of reading them if that takes another command.
fn stacks(kind: &Stacks, folder: &Path) -> Result<(Found, Option<Cost>)> {
    match kind {
        Stacks::Nowhere => Ok((Found::default(), None)),
        Stacks::Folded(name) => Ok((folded(&read(&folder.join(name))?), None)),
        Stacks::PerfData(name) => {
            let mut script = Command::new("perf");
            script.args(["script", "-F", "comm,ip,sym", "--max-stack", "127", "-i", name]);
            let cost = measure::run(&script, folder, 1)?;
            Ok((scripted(&cost.output), Some(Cost { output: String::new(), ..cost })))
        }
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `frame;frame;… count`: the program's name is one of the first frames.
fn folded(text: &str) -> Found {
    let mut found = Found::default();
    for line in text.lines() {
        let Some((stack, Ok(count))) =
            line.rsplit_once(' ').map(|(stack, count)| (stack, count.parse::<u64>()))
        else {
            continue;
        };
        let is_load = stack.split(';').take(3).any(|frame| is_load(frame.trim()));
        found.add(is_load, count, stack.split(';').any(is_outermost));
    }
    found
}

/// `perf script`: a line with the program's name, then a frame a line, then an empty one.
fn scripted(text: &str) -> Found {
    let mut found = Found::default();
    for sample in text.split("\n\n") {
        let mut lines = sample.trim_start_matches('\n').lines();
        let Some(head) = lines.next() else { continue };
        let complete = lines.any(|line| is_outermost(line.trim().split(' ').next_back().unwrap_or_default()));
        found.add(is_load(head.trim()), 1, complete);
    }
    found
}

impl Found {
    fn add(&mut self, is_load: bool, count: u64, complete: bool) {
        if is_load {
            self.samples += count;
            self.complete += if complete { count } else { 0 };
        }
    }
}

fn is_load(name: &str) -> bool {
    let name = name.split_whitespace().next().unwrap_or_default();
    let name = name.split(['(', '-']).next().unwrap_or_default();
    name == "deep" || name == "python3" || name == "python3.11"
}

fn is_outermost(frame: &str) -> bool {
    frame.contains("_start") && !frame.contains("_start_")
        || frame.contains("__libc_start_main")
        || frame.contains("__libc_start_call_main")
}

/// Cost by processes and distinct binaries.
fn crowd(options: &Options, podopsy: &Path, folder: &Path) -> Result<()> {
    println!(
        "| processes | binaries | CPU s (user + sys) | peak RSS MiB | kernel maps MiB | in BPF s (runs) | complete |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut over = Vec::new();
    for (processes, binaries) in [(10, 10), (100, 30), (300, 100), (1000, 100), (1000, 300)] {
        let load = Load::crowd(folder, processes, binaries)?;
        let mut command = Command::new(podopsy);
        let duration = format!("{}s", options.seconds);
        command.args(["profile", "--all", "-F", &FREQUENCY.to_string(), "-d", &duration]);
        let cost = measure::run(&command, folder, options.seconds)?;
        drop(load);
        let complete = cost.output.lines().find_map(|line| line.strip_prefix("user stacks complete: "));
        let (rss, kernel) = (cost.peak_kib as f64 / 1024.0, cost.kernel_bytes as f64 / f64::from(1 << 20));
        println!(
            "| {processes} | {binaries} | {:.2} + {:.2} | {rss:.0} | {kernel:.1} | {:.2} ({}) | {} |",
            cost.user_seconds,
            cost.system_seconds,
            cost.bpf_seconds,
            cost.bpf_runs,
            complete.unwrap_or("–"),
        );
        ensure!(complete.is_some(), "podopsy took no profile:\n{}", cost.output);
        if rss > RSS_MIB || kernel > TABLES_MIB {
            over.push(format!("{processes} processes: RSS {rss:.0} MiB, kernel {kernel:.0} MiB"));
        }
    }
    if !over.is_empty() {
        bail!("over the budget of {RSS_MIB} MiB and {TABLES_MIB} MiB: {}", over.join("; "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_that_of_the_medians() {
        let cost = |user_seconds, mib: u64| Cost { user_seconds, peak_kib: mib << 10, ..Cost::default() };
        let (ours, theirs) =
            ([cost(0.2, 30), cost(9.0, 30), cost(0.1, 30)], [cost(0.8, 120), cost(1.2, 120)]);
        assert!(
            against(&ours, &theirs)
                .contains("takes 0.20 of the CPU of pbee --dwarf true, and 0.25 of its memory")
        );
    }

    #[test]
    fn complete_stacks_of_the_load_are_counted() {
        let text = "host;deep;_start;__libc_start_main_alias_1;main;leaf_a(int) 60\n\
            host;deep;[unwind: no table yet for deep];leaf_a(int) 3\nhost;sleep;_start;main 9\ngarbage\n";
        let found = folded(text);
        assert_eq!((found.samples, found.complete), (63, 60));
        let text =
            "deep \n    55d0 leaf_a\n    55d1 _start\n\npython3 \n    7f00 [unknown]\n\nsleep \n  1 _start\n";
        let found = scripted(text);
        assert_eq!((found.samples, found.complete), (2, 1));
    }
}
