//! `cargo xtask bench dns`: dnsperf against dnsmasq in a network namespace of their own, with and without the agent in
//! turns; what a packet costs, by the kernel's own statistics; and failures and silence, counted on both sides.

use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sched::{CloneFlags, setns};

use super::agent::Agent;
use crate::apt::{self, Package};
use crate::sh;
use crate::statics::{self, Statics};

const PACKAGES: &[Package] = &[
    Package { name: "dnsperf", why: "sends queries as fast as it can" },
    Package { name: "dnsmasq-base", why: "answers the queries" },
    Package { name: "iproute2", why: "creates their network" },
    Package { name: "bpftool", why: "reads the kernel's statistics of each program" },
];
const NETWORK: &str = "podopsy-bench";
const CLIENT_CPU: &str = "0";
const SERVER_CPU: &str = "1";
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Queries that are never answered.
const SILENT: u32 = 100_000;

#[derive(Debug, Args)]
pub struct Options {
    /// How often each configuration is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Duration of each measurement in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// The agent to measure, instead of one built as it ships
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

/// The command.
pub fn run(options: &Options) -> Result<()> {
    sh::need_root("bench dns", "loads the probes")?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if cpus < 2 {
        bail!("client and server need a CPU each, and there is {cpus}");
    }
    if PACKAGES.iter().any(|package| !is_there(package.name)) {
        apt::install(PACKAGES)?;
    }
    let agent = match &options.agent {
        Some(path) => path.clone(),
        None => statics::build(Statics::Podopsy)?.join("podopsy-agent"),
    };
    let bench = Bench::new(agent)?;
    bench.rates(options)?;
    bench.costs(options.seconds)?;
    bench.failures(options.seconds)?;
    bench.silence()
}

fn is_there(package: &str) -> bool {
    let program = match package {
        "dnsmasq-base" => "dnsmasq",
        "iproute2" => "ip",
        name => name,
    };
    sh::which(program).is_some() || Path::new("/usr/sbin").join(program).is_file()
}

/// The network, the server and the folder with the questions; dropping it removes all of them.
struct Bench {
    agent: PathBuf,
    server: Child,
    folder: PathBuf,
}

/// The result that dnsperf prints.
struct DnsperfResult {
    sent: u64,
    lost: u64,
    rate: f64,
}

impl Bench {
    fn new(agent: PathBuf) -> Result<Bench> {
        let folder = std::env::temp_dir().join(format!("podopsy-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).context("make a folder for the bench")?;
        std::fs::write(folder.join("good"), "www.good.test A\nmail.good.test A\n")?;
        std::fs::write(folder.join("bad"), "www.bad.test A\nmail.bad.test AAAA\n")?;
        sh::run(Command::new("ip").args(["netns", "add", NETWORK]))?;
        let started = sh::run(inside(CLIENT_CPU, "ip").args(["link", "set", "lo", "up"])).and_then(|()| {
            let mut server = inside(SERVER_CPU, "dnsmasq");
            server.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"]);
            server.args(["--user=root", "--pid-file=", "--listen-address=127.0.0.1", "--bind-interfaces"]);
            server.args(["--address=/good.test/192.0.2.1", "--local=/bad.test/"]);
            sh::progress(format_args!("$ {}", sh::show(&server)));
            server.stdin(Stdio::null()).spawn().context("start dnsmasq")
        });
        let server = match started {
            Ok(server) => server,
            Err(error) => {
                remove_network();
                return Err(error);
            }
        };
        let bench = Bench { agent, server, folder };
        let end = Instant::now() + Duration::from_secs(10);
        while bench.perf("good", 1)?.rate == 0.0 {
            if Instant::now() > end {
                bail!("dnsmasq does not answer");
            }
        }
        Ok(bench)
    }

    fn perf(&self, questions: &str, seconds: u32) -> Result<DnsperfResult> {
        let file = self.folder.join(questions);
        let mut command = inside(CLIENT_CPU, "dnsperf");
        command.args(["-s", "127.0.0.1", "-c", "4", "-l", &seconds.to_string(), "-d"]).arg(file);
        let text = sh::capture(&mut command)?;
        let number = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            number
                .and_then(|number| number.parse().ok())
                .with_context(|| format!("dnsperf's output has no {name:?}\n{text}"))
        };
        Ok(DnsperfResult {
            sent: number("Queries sent:")? as u64,
            lost: number("Queries lost:")? as u64,
            rate: number("Queries per second:")?,
        })
    }

    /// Queries per second, in turns: without the agent, with an agent that expects DNS at an unused port, and with the
    /// agent as it ships. The second one measures the hooks alone: the kernel calls them for every packet.
    fn rates(&self, options: &Options) -> Result<()> {
        const SIDES: [(&str, Option<&[&str]>); 3] = [
            ("without the agent", None),
            ("with its hooks alone", Some(&["--dns-port", "5300"])),
            ("with the agent", Some(&[])),
        ];
        let mut rates = [const { Vec::new() }; SIDES.len()];
        for round in 0..options.rounds as usize {
            // The order rotates, so that a machine that becomes slower favours none of the three.
            for step in 0..SIDES.len() {
                let side = (round + step) % SIDES.len();
                let agent =
                    SIDES[side].1.map(|more| Agent::start(&self.agent, &self.folder, more)).transpose()?;
                rates[side].push(self.perf("good", options.seconds)?.rate);
                agent.map(Agent::stop).transpose()?;
            }
        }
        for ((name, _), of_side) in SIDES.iter().zip(&rates) {
            // Compared within each round: the speed of a shared machine changes over time.
            let ratios: Vec<f64> = of_side.iter().zip(&rates[0]).map(|(rate, alone)| rate / alone).collect();
            let (all, middle, ratio) = (list(of_side), median(of_side), median(&ratios));
            println!("queries a second, {name}: {all}; median {middle:.0}, {ratio:.3} of without");
        }
        Ok(())
    }

    /// Measured separately from the rates: the kernel's statistics themselves cost time.
    fn costs(&self, seconds: u32) -> Result<()> {
        let before = std::fs::read_to_string(STATISTICS).context(STATISTICS)?;
        let agent = Agent::start(&self.agent, &self.folder, &[])?;
        std::fs::write(STATISTICS, "1").context(STATISTICS)?;
        let measured = self.perf("good", seconds).and_then(|_| agent.programs()).and_then(|dns| {
            other_packets(seconds.min(3))?;
            let all = agent.programs()?;
            Ok((dns, all))
        });
        std::fs::write(STATISTICS, before.trim()).context(STATISTICS)?;
        let (dns, all) = measured?;
        for (name, time, runs) in &dns {
            let (other_time, other_runs) = all
                .iter()
                .find(|after| after.0 == *name)
                .map_or((0, 0), |after| (after.1.saturating_sub(*time), after.2.saturating_sub(*runs)));
            println!(
                "{name}: {} ns a packet while dnsperf runs ({runs} packets), {} ns a packet that is no DNS ({other_runs})",
                time / (*runs).max(1),
                other_time / other_runs.max(1),
            );
        }
        agent.stop()?;
        Ok(())
    }

    /// Every failure is an event, or counted as a loss.
    fn failures(&self, seconds: u32) -> Result<()> {
        let agent = Agent::start(&self.agent, &self.folder, &[])?;
        let perf = self.perf("bad", seconds)?;
        let after = agent.stop()?;
        let answered = perf.sent - perf.lost;
        let counted = after.events("nxdomain", "bad.test") + after.lost();
        println!(
            "failures: {answered} of {} queries answered, {} events and {} counted as dropped; agent's peak RSS {} KiB",
            perf.sent,
            counted - after.lost(),
            after.lost(),
            after.peak_kib
        );
        if counted < answered {
            bail!(
                "{} failures were neither reported nor counted as lost: {:?}",
                answered - counted,
                after.losses
            );
        }
        Ok(())
    }

    /// 100,000 queries in flight, which are never answered.
    fn silence(&self) -> Result<()> {
        let agent = Agent::start(&self.agent, &self.folder, &[])?;
        let before = agent.cpu()?;
        let begun = Instant::now();
        let _sockets = in_network(unanswered)??;
        // Twice the timeout, so that the last query has been reported.
        std::thread::sleep(Agent::TIMEOUT * 2 + Duration::from_secs(2));
        let busy = agent.cpu()?.saturating_sub(before);
        let took = begun.elapsed();
        let after = agent.stop()?;
        let events = after.events("timeout", "silent.test");
        println!(
            "silence: {SILENT} asked, {events} events and {} counted as dropped or evicted; agent's peak RSS {} KiB, {:.1} % of a CPU for {} s",
            after.lost(),
            after.peak_kib,
            100.0 * busy.as_secs_f64() / took.as_secs_f64(),
            took.as_secs()
        );
        if events + after.lost() < u64::from(SILENT) {
            bail!("some were neither reported nor counted as lost: {:?}", after.losses);
        }
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        remove_network();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn remove_network() {
    let _ = Command::new("ip").args(["netns", "del", NETWORK]).status();
}

/// A command in the benchmark's network, pinned to this CPU: without pinning, rates differ by a fifth between runs.
fn inside(cpu: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", NETWORK, "taskset", "--cpu-list", cpu, program]);
    command
}

/// Runs `work` on a thread in the benchmark's network.
fn in_network<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let path = format!("/run/netns/{NETWORK}");
    let network = File::open(&path).with_context(|| path)?;
    let worker = std::thread::spawn(move || setns(network, CloneFlags::CLONE_NEWNET).map(|()| work()));
    Ok(worker.join().ok().context("a thread of the bench failed")??)
}

/// Sends the queries and keeps the sockets open. The server's socket is never read.
fn unanswered() -> Result<Vec<UdpSocket>> {
    let mut sockets = vec![UdpSocket::bind("127.0.0.5:53").context("bind 127.0.0.5:53")?];
    for first in (0..SILENT).step_by(50_000) {
        let client = UdpSocket::bind("127.0.0.1:0")?;
        client.connect("127.0.0.5:53")?;
        for n in first..(first + 50_000).min(SILENT) {
            client.send(&question((n - first) as u16))?;
        }
        sockets.push(client);
    }
    Ok(sockets)
}

/// `silent.test A`.
fn question(id: u16) -> Vec<u8> {
    let header = [id, 0x0100, 1, 0, 0, 0].map(u16::to_be_bytes).concat();
    [&header[..], b"\x06silent\x04test\0\0\x01\0\x01"].concat()
}

/// Datagrams over loopback that have nothing to do with DNS.
fn other_packets(seconds: u32) -> Result<()> {
    in_network(move || -> Result<()> {
        let server = UdpSocket::bind("127.0.0.1:5555")?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        let mut buffer = [0; 64];
        let end = Instant::now() + Duration::from_secs(seconds.into());
        while Instant::now() < end {
            client.send_to(&[0; 48], "127.0.0.1:5555")?;
            server.recv(&mut buffer)?;
        }
        Ok(())
    })?
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn list(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.0}")).collect::<Vec<_>>().join(" ")
}
