//! Containers that flood DNS, and the neighbours that they could harm: child processes of a test, which are its own program.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use podopsy_model::DnsCounts;
use podopsy_recorder::{DnsOptions, RecorderOptions};

use super::{MemoryCgroup, Recording, dns, no_runtime, options};

/// How long to wait for what must come.
pub const SOON: Duration = Duration::from_secs(60);
/// A limit that no test reaches.
const MEMORY: u64 = 1 << 30;
/// Names the work of a child process.
const WORK: &str = "PODOPSY_WORK";

/// The work of a child process, which is this test's own program.
pub struct Work<'a> {
    pub kind: &'static str,
    pub rate: u32,
    pub seconds: u32,
    /// The child works in these cgroups in turn.
    pub cgroups: &'a [MemoryCgroup],
}

impl Work<'_> {
    /// Starts the child, which runs the test with this full name.
    pub fn start(&self, test: &str) -> Child {
        let this: PathBuf = std::env::current_exe().expect("this test's own program");
        let paths: Vec<String> =
            self.cgroups.iter().map(|cgroup| cgroup.path.display().to_string()).collect();
        let line = format!("{} --ignored --exact {test} --nocapture", this.display());
        let mut command = self.cgroups[0].command(&line);
        command.env(WORK, format!("{} {} {} {}", self.kind, self.rate, self.seconds, paths.join(" ")));
        command.stdout(Stdio::piped()).spawn().expect("start ourselves again")
    }
}

/// What a child process was started for.
pub struct Task {
    pub kind: String,
    pub rate: u32,
    pub seconds: u32,
    pub cgroups: Vec<PathBuf>,
}

impl Task {
    /// None: this process is no child of a test.
    pub fn of_this_process() -> Option<Task> {
        let work = std::env::var(WORK).ok()?;
        let words: Vec<&str> = work.split(' ').collect();
        let number = |at: usize| words[at].parse().expect("a number");
        let cgroups = words[3..].iter().map(PathBuf::from).collect();
        Some(Task { kind: words[0].to_owned(), rate: number(1), seconds: number(2), cgroups })
    }
}

/// Reports a child's number of queries to its test, which calls [`sent`].
pub fn report_sent(number: u64) {
    println!("\nsent {number}");
}

/// Waits for a child's end; returns how many queries it has sent.
pub fn sent(mut child: Child) -> u64 {
    let mut text = String::new();
    child.stdout.take().expect("its output").read_to_string(&mut text).expect("its text");
    let status = child.wait().expect("wait for ourselves");
    assert!(status.success(), "{status}: {text}");
    let line = text.lines().find_map(|line| line.split_once("sent ")).expect("the number of queries");
    line.1.trim().parse().expect("a number")
}

/// The recorder with the default timeout, within which a flood fills the map of queries in flight.
pub fn recording() -> Recording {
    let dns = DnsOptions { timeout: Duration::from_secs(5), ..dns() };
    Recording::start(RecorderOptions { dns: Some(dns), ..options() }, no_runtime())
}

pub fn cgroups(name: &str, count: usize) -> Vec<MemoryCgroup> {
    (0..count).map(|n| MemoryCgroup::new(&format!("{name}{n}"), MEMORY)).collect()
}

/// The counts of all these cgroups together.
pub fn counts(recording: &Recording, cgroups: &[MemoryCgroup]) -> DnsCounts {
    let all = recording.dns_counts();
    let mut sum = DnsCounts::default();
    for cgroup in cgroups {
        let id = cgroup.id();
        all.iter().filter(|counts| counts.owner.cgroup.id == id).for_each(|counts| sum.add(counts));
    }
    sum
}

/// Reports that a child's flood has begun to its test, which calls [`wait_until_ready`].
pub fn report_ready() {
    println!("\nready");
}

/// Waits until a child has reported that its flood has begun.
pub fn wait_until_ready(child: &mut Child) {
    let output = child.stdout.as_mut().expect("its output");
    let (mut text, mut byte) = (Vec::new(), [0]);
    // Byte by byte: what follows is for `sent`.
    while !text.ends_with(b"\nready\n") {
        let read = output.read(&mut byte).expect("its text");
        assert_eq!(read, 1, "it ended: {}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
}
