//! What kernel tests share: a recorder in this process, cgroups and network namespaces that clean up after themselves.
//!
//! These tests need root and a kernel with BTF. Where something is missing, they fail with the command that installs
//! it.
#![allow(dead_code)]

pub mod agent;
pub mod attacked;
pub mod clients;
pub mod destination;
pub mod dns_flood;
pub mod dns_sandbox;
pub mod hostile;
pub mod hostile_elf;
pub mod program;
pub mod scripted;
pub mod stdout;

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use podopsy_harness::Node;
use podopsy_model::profile::{Frame, Sample};
use podopsy_model::{Detail, DnsTransaction, Event, Losses};
use podopsy_pods::{Pods, PodsOptions};
use podopsy_recorder::{DnsHook, DnsOptions, GrowthMode, Recorder, RecorderOptions};
use podopsy_stacks::{Helpers, ParserOptions};
use podopsy_store::{Collection, Filter, Reader};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Fails with the command to run, instead of an error from somewhere inside.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "kernel tests load BPF programs: run `sudo -E cargo xtask test`"
    );
}

/// Whether this is a machine of the lab, which is ten times slower; the lab's guest sets the variable.
pub fn is_emulated() -> bool {
    std::env::var_os("PODOPSY_EMULATED").is_some()
}

/// The number of repetitions for a test that is surer with more of them: a quarter on an emulated machine.
pub fn times(wanted: usize) -> usize {
    if is_emulated() { wanted / 4 } else { wanted }
}

/// The kernel's count of OOM kills since boot.
pub fn kills_by_vmstat() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").expect("/proc/vmstat");
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.parse().ok()).expect("oom_kill in /proc/vmstat")
}

/// The complete lines of a file that is being written: its last line may be incomplete.
pub fn whole_lines(text: &str) -> std::str::Lines<'_> {
    text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines()
}

/// The recorder, running in this process.
pub struct Recording {
    runtime: Runtime,
    recorder: Option<Recorder>,
    events: mpsc::Receiver<Event>,
    pub seen: Vec<Event>,
}

impl Recording {
    pub fn start(options: RecorderOptions, pods: PodsOptions) -> Recording {
        require_root();
        let runtime = Runtime::new().expect("a tokio runtime");
        let (recorder, events) = runtime
            .block_on(async {
                let pods = Pods::start(pods).await?;
                Recorder::start(options, pods).await
            })
            .unwrap_or_else(|error| panic!("start the recorder: {error:#}"));
        Recording { runtime, recorder: Some(recorder), events, seen: Vec::new() }
    }

    /// OOM and DNS probes without a container runtime; the DNS timeout is one second, so that tests need not wait five.
    pub fn host() -> Recording {
        Recording::start(options(), no_runtime())
    }

    /// Receives events until `enough` is true of them; panics with them after `limit`.
    pub fn until(&mut self, what: &str, limit: Duration, enough: impl Fn(&[Event]) -> bool) {
        let end = Instant::now() + limit;
        while !enough(&self.seen) {
            let remaining = end.saturating_duration_since(Instant::now());
            let next =
                self.runtime.block_on(async { tokio::time::timeout(remaining, self.events.recv()).await });
            match next {
                Ok(Some(event)) => self.seen.push(event),
                Ok(None) => panic!("the recorder ended while waiting for {what}"),
                Err(_) => panic!("no {what} within {limit:?}; seen: {:#?}", self.seen),
            }
        }
    }

    /// The SIGKILLs within one cgroup or container so far.
    pub fn own_kills(&self) -> u64 {
        self.recorder.as_ref().map_or(0, Recorder::own_kills)
    }

    /// Receives events for `time`, to see that no others come.
    pub fn receive_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let remaining = end.saturating_duration_since(Instant::now());
            match self.runtime.block_on(async { tokio::time::timeout(remaining, self.events.recv()).await }) {
                Ok(Some(event)) => self.seen.push(event),
                _ => return,
            }
        }
    }

    /// The switches of what is left out over a budget.
    pub fn shed(&self) -> std::sync::Arc<podopsy_recorder::shed::Shed> {
        self.recorder.as_ref().expect("it runs until it is stopped").shed()
    }

    /// Each container's DNS counts so far.
    pub fn dns_counts(&self) -> Vec<podopsy_model::DnsCounts> {
        let recorder = self.recorder.as_ref().expect("it runs until it is stopped");
        self.runtime.block_on(recorder.dns_counts())
    }

    /// The DNS counts of one memory cgroup; zeros before its first query.
    pub fn dns_counts_of(&self, cgroup_id: u64) -> podopsy_model::DnsCounts {
        let counts = self.dns_counts().into_iter();
        counts.rev().find(|counts| counts.owner.cgroup.id == cgroup_id).unwrap_or_default()
    }

    /// Stops the recorder; returns all events and the final loss counters.
    pub fn stop(mut self) -> (Vec<Event>, Losses) {
        let recorder = self.recorder.take().expect("it runs until it is stopped");
        let losses = self.runtime.block_on(recorder.stop()).expect("the recorder stops");
        while let Some(event) = self.runtime.block_on(self.events.recv()) {
            self.seen.push(event);
        }
        (std::mem::take(&mut self.seen), losses)
    }
}

/// DNS failures, by the cgroup probe, with a timeout of one second.
pub fn dns() -> DnsOptions {
    DnsOptions {
        answers: false,
        aaaa_nodata: false,
        lookups: false,
        timeout: Duration::from_secs(1),
        slow_over: None,
        sample: 0,
        ports: podopsy_recorder::options::DNS_PORTS,
        https: podopsy_recorder::options::HTTPS_RESOLVERS.to_vec(),
        hook: DnsHook::Cgroup,
    }
}

pub fn options() -> RecorderOptions {
    RecorderOptions {
        oom: true,
        sigkill: podopsy_recorder::sigkill::SigkillScope::None,
        dns: Some(dns()),
        node: "test-node".to_owned(),
        state_dir: None,
        growth: GrowthMode::Auto,
        helpers: helpers(),
    }
}

/// The helpers are the CLI's: a test program cannot be its own.
pub fn helpers() -> Helpers {
    let [program, _] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let program = program.into_os_string();
    Helpers::start(ParserOptions { program, ..ParserOptions::command(None) }).expect("start the helpers")
}

/// All events of a store, which must be readable.
pub fn stored(store: &Reader) -> Vec<Event> {
    let (mut events, mut after) = (Vec::new(), None);
    loop {
        let page = store.page(&Filter { after, ..Filter::all(Collection::Events) }).expect("a page");
        assert_eq!(page.unreadable, 0);
        events.extend(page.items.iter().map(|item| item.parse::<Event>().expect("an event")));
        after = page.next;
        if after.is_none() {
            return events;
        }
    }
}

/// The image of [`node`], with all victims.
pub const VICTIMS_IMAGE: &str = "registry.podopsy.test/shop/victims:2.0";

/// A child process, killed when this is dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The events of queries for a name.
pub fn transactions<'a>(events: &'a [Event], name: &str) -> Vec<(&'a Event, &'a DnsTransaction)> {
    let of = |event: &'a Event| match &event.detail {
        Detail::Dns(dns) if dns.name.as_deref() == Some(name) => Some((event, dns)),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

/// A response with one address.
pub fn fine(query: &[u8]) -> Vec<u8> {
    let mut out = respond(query, 0x8180, 1, 1);
    out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    out
}

/// Brings a node up and imports an image with all victims; returns both.
pub fn node() -> (Node, String) {
    require_root();
    let node = Node::up().unwrap_or_else(|error| panic!("bring the node up: {error:#}"));
    let image = node.victims_image(VICTIMS_IMAGE).expect("load the image");
    (node, image)
}

/// Pods from that node's container runtime.
pub fn pods_of(node: &Node) -> PodsOptions {
    PodsOptions { cri_socket: Some(node.cri_socket().to_owned()), ..PodsOptions::default() }
}

/// A machine without a container runtime.
pub fn no_runtime() -> PodsOptions {
    PodsOptions { cri_socket: Some("/nonexistent/podopsy-test.sock".into()), ..PodsOptions::default() }
}

/// The most frequent stacks of the samples, for a failed assertion's message.
pub fn stacks<'a>(samples: impl Iterator<Item = &'a Sample>) -> String {
    let mut stacks: Vec<(u64, String)> = samples
        .map(|sample| {
            let name = |frame: &Frame| {
                frame.function.as_deref().map_or_else(|| format!("{:x}", frame.offset), str::to_owned)
            };
            (sample.count, sample.stack.iter().map(name).collect::<Vec<_>>().join(" ← "))
        })
        .collect();
    stacks.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    stacks.iter().take(12).map(|(count, stack)| format!("{count:6} {stack}\n")).collect()
}

/// A memory cgroup, removed when this is dropped; the processes that the test started in it must have ended by then.
pub struct MemoryCgroup {
    pub path: PathBuf,
}

impl MemoryCgroup {
    pub fn new(name: &str, limit_bytes: u64) -> MemoryCgroup {
        let (root, v2) = podopsy_harness::cgroup::memory_hierarchy().expect("a memory hierarchy");
        let path = root.join(format!("podopsy-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(path.join(file), limit_bytes.to_string()).expect("set the limit");
        MemoryCgroup { path }
    }

    pub fn id(&self) -> u64 {
        fs::metadata(&self.path).expect("the cgroup is there").ino()
    }

    /// A shell that joins the cgroup and then executes `program`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(format!("echo $$ > {}/cgroup.procs && exec {program}", self.path.display()));
        command
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // A killed process leaves its cgroup shortly after its parent has reaped it.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("could not remove {}", self.path.display());
    }
}

/// Runs `work` in a new thread with a new network namespace, in which `lo` is up.
pub fn in_own_network<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of our own (root)");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(
            up.is_ok_and(|status| status.success()),
            "`ip link set lo up` failed: apt-get install iproute2"
        );
        work()
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Queries a server that does not exist, by a connected socket, which gets the ICMP error.
pub fn failed_lookup(name: &str, id: u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect("127.0.0.9:53").expect("connect");
    socket.send(&query(id, name, 1)).expect("send");
    let _ = socket.set_read_timeout(Some(Duration::from_millis(200)));
    let _ = socket.recv(&mut [0; 16]);
}

/// A query for `name`, RFC 1035 §4.
pub fn query(id: u16, name: &str, qtype: u16) -> Vec<u8> {
    let mut out = [id, 0x0100, 1, 0, 0, 0].map(u16::to_be_bytes).concat();
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend([qtype, 1].map(u16::to_be_bytes).concat());
    out
}

/// The same message as a response with these flags and counts of questions and answers.
pub fn respond(query: &[u8], flags: u16, questions: u16, answers: u16) -> Vec<u8> {
    let mut out = query.to_vec();
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    out[4..6].copy_from_slice(&questions.to_be_bytes());
    out[6..8].copy_from_slice(&answers.to_be_bytes());
    out
}
