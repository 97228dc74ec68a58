//! The agent with its stdout read through a pipe, and how long each event took from the kernel to the reader.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use podopsy_model::{Event, EventKind};

const START_TIMEOUT: Duration = Duration::from_secs(180);

/// `podopsy-agent` and its events.
pub struct StdoutAgent {
    child: Child,
    log: PathBuf,
    events: Receiver<(Timestamp, Event)>,
    pub seen: Vec<Event>,
    /// When the line of each event was read.
    read_at: Vec<Timestamp>,
}

impl StdoutAgent {
    /// Starts the agent and waits until it records. `folder`: for its log.
    pub fn start(folder: &Path, runtime: &Path, arguments: &[&str]) -> StdoutAgent {
        let [_, agent] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
        let log = folder.join("agent.log");
        let mut child = Command::new(agent)
            .arg("--cri-socket")
            .arg(runtime)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).expect("the agent's log"))
            .spawn()
            .expect("start the agent");
        let (send, events) = mpsc::channel();
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let now = Timestamp::now();
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if send.send((now, event)).is_err() {
                    return;
                }
            }
        });
        let began = Instant::now();
        while !fs::read_to_string(&log).is_ok_and(|log| log.contains("recording")) {
            assert!(
                began.elapsed() < START_TIMEOUT,
                "the agent does not record: {:?}",
                fs::read_to_string(&log)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        StdoutAgent { child, log, events, seen: Vec::new(), read_at: Vec::new() }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Receives events until `enough` is true of them; panics with `explain` after `limit`.
    pub fn until(
        &mut self,
        what: &str,
        limit: Duration,
        enough: impl Fn(&[Event]) -> bool,
        explain: impl Fn(&[Event]) -> String,
    ) {
        let end = Instant::now() + limit;
        while !enough(&self.seen) {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((read_at, event)) => {
                    self.read_at.push(read_at);
                    self.seen.push(event);
                }
                Err(RecvTimeoutError::Timeout) => panic!(
                    "no {what}; losses: {:?}; {}",
                    self.seen.last().map(|event| &event.losses),
                    explain(&self.seen)
                ),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait();
                    panic!("the agent ended before {what}: {status:?}, {:?}", fs::read_to_string(&self.log))
                }
            }
        }
    }

    /// How long the events of a kind took from the kernel to the reader of stdout.
    pub fn latencies(&self, is_wanted: impl Fn(&Event) -> bool) -> Latencies {
        let events = self.seen.iter().zip(&self.read_at).filter(|(event, _)| is_wanted(event));
        let took = events.map(|(event, read_at)| read_at.duration_since(event.time).unsigned_abs());
        let mut sorted: Vec<Duration> = took.collect();
        sorted.sort_unstable();
        Latencies(sorted)
    }

    /// The user and system time so far.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields = stat.rsplit_once(')').expect("its comm").1.split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|n| n.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Its peak resident memory.
    pub fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for StdoutAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn is_kill(event: &Event) -> bool {
    event.kind == EventKind::OomKill
}

/// Sorted, the shortest first; prints as a histogram.
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// So many percent took no longer than this.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const EDGES_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 250, 500, 1000, 5000, u64::MAX];
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let of = |percent| ms(self.percentile(percent));
        writeln!(
            out,
            "{} events: median {:.1} ms, 90 % {:.1} ms, 99 % {:.1} ms, longest {:.1} ms",
            self.count(),
            of(50),
            of(90),
            of(99),
            of(100)
        )?;
        let mut below = 0;
        for edge in EDGES_MS {
            let until = self.0.partition_point(|time| time.as_millis() < u128::from(edge));
            let count = until - below;
            let name = if edge == u64::MAX { "longer".to_owned() } else { format!("< {edge} ms") };
            if count > 0 {
                writeln!(out, "{name:>10} {count:6} {}", "#".repeat((count * 60).div_ceil(self.count())))?;
            }
            below = until;
        }
        Ok(())
    }
}
