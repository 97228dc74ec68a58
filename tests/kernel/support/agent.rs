//! The agent in its own process, a Prometheus that scrapes it, and requests to both.

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podopsy_harness::Node;
use podopsy_model::Event;
use serde_json::Value;

use super::Running;
use super::dns_sandbox::unpacked;

pub const SOON: Duration = Duration::from_secs(90);

/// For operations of several steps, each of which is slow on an emulated machine.
fn patience() -> Duration {
    if super::is_emulated() { SOON * 3 } else { SOON }
}

pub fn until<T>(what: &str, found: impl FnMut() -> Option<T>) -> T {
    wait(found).unwrap_or_else(|| panic!("no {what}"))
}

/// None: it was not found in time.
pub fn wait<T>(mut found: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        match found() {
            Some(found) => return Some(found),
            None if began.elapsed() > patience() => return None,
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Head and body of the response; None: the server does not respond yet.
pub fn get(address: &str, path: &str, accept: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut all = String::new();
    stream.read_to_string(&mut all).ok()?;
    all.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.to_owned()))
}

/// The value of a counter of losses on the metrics page; None: nothing was lost by it.
pub fn loss(address: &str, counter: &str) -> Option<f64> {
    let (_, page) = get(address, "/metrics", "*/*")?;
    let series = format!("podopsy_losses_total{{counter=\"{counter}\"}}");
    page.lines().find(|line| line.starts_with(&series))?.rsplit(' ').next()?.parse().ok()
}

/// The processes that a process has started, and those that they have.
pub fn descendants(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<i32> = lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect::<Vec<_>>())
        .collect();
    children.into_iter().flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

/// A running agent.
pub struct Agent {
    pub process: Running,
    /// The address of its TCP listener.
    pub address: String,
    folder: PathBuf,
}

impl Agent {
    /// Starts the agent and waits until it records.
    pub fn start(node: &Node, arguments: &[&str]) -> Agent {
        Agent::start_in(node.directory(), node.cri_socket(), arguments)
    }

    /// As [`Agent::start`], with its output in `folder`.
    pub fn start_in(folder: &Path, runtime: &Path, arguments: &[&str]) -> Agent {
        Agent::start_by(&[], folder, runtime, arguments)
    }

    /// As [`Agent::start_in`], by a program that then executes the agent.
    pub fn start_by(by: &[&str], folder: &Path, runtime: &Path, arguments: &[&str]) -> Agent {
        let [_, program] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
        let folder = folder.to_owned();
        let file = |name| fs::File::create(folder.join(name)).expect("the agent's output");
        let mut line = by.iter().map(OsString::from).chain([program.into_os_string()]);
        let mut command = Command::new(line.next().expect("the line has the agent's program"));
        command.args(line);
        command.arg("--cri-socket").arg(runtime).args(["--listen", "127.0.0.1:0"]);
        command.arg("--socket").arg(folder.join("agent.sock")).args(arguments);
        // Off unless a test asks for it by a flag: unwind tables are slow to build on an emulated machine.
        command.env("PODOPSY_PROFILE_HZ", "0");
        let child = command.stdout(file("agent.out")).stderr(file("agent.log")).spawn();
        let process = Running(child.expect("start the agent"));
        let mut agent = Agent { process, address: String::new(), folder };
        let address = || {
            let log = agent.log();
            // As text, or as JSON.
            let (_, rest) = log.split_once("address=").or_else(|| log.split_once("\"address\":\""))?;
            let is_end = |c: char| c.is_whitespace() || c == '"';
            rest.split(is_end).next().filter(|_| log.contains("recording")).map(str::to_owned)
        };
        let found = wait(address);
        agent.address = found.unwrap_or_else(|| panic!("the agent does not record: {}", agent.log()));
        agent
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default()
    }

    /// What podopsy prints, and the folded stacks of the last minutes; the latter are none if there are none yet.
    pub fn kept_profile(&self) -> (String, Option<String>) {
        let [podopsy, _] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
        let out = self.folder.join("kept.folded");
        let mut command = Command::new(podopsy);
        command.args(["profile", "--since", "10m", "-a", "-o"]).arg(&out);
        let done = command.arg("--socket").arg(self.folder.join("agent.sock")).output().expect("run podopsy");
        let folded = done.status.success().then(|| fs::read_to_string(&out).expect("the profile"));
        (String::from_utf8_lossy(&done.stderr).trim_end().to_owned(), folded)
    }

    /// The events that it has written so far.
    pub fn events(&self) -> Vec<Event> {
        written(&self.folder.join("agent.out"))
    }
}

/// The events in a file with an agent's output.
pub fn written(file: &Path) -> Vec<Event> {
    let written = fs::read_to_string(file).expect("the agent's output");
    super::whole_lines(&written).map(|line| serde_json::from_str(line).expect("an event")).collect()
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

/// Starts a Prometheus that scrapes the agent; returns it and its address. `interval` is in Prometheus's notation,
/// `more` are lines of its configuration.
pub fn prometheus(folder: &Path, agent: &str, interval: &str, more: &str) -> (Running, String) {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its number");
    let config = folder.join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: {interval}, evaluation_interval: {interval}, external_labels: {{cluster: test}}}}\n\
         scrape_configs:\n\
         - job_name: podopsy\n\
         \x20 honor_labels: true\n\
         \x20 static_configs: [{{targets: ['{agent}']}}]\n\
         {more}"
    );
    fs::write(&config, text).expect("write its configuration");
    let mut command = Command::new(unpacked("usr/bin/prometheus"));
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()));
    command.arg(format!("--web.listen-address={free}")).arg("--enable-feature=exemplar-storage");
    let log = fs::File::create(folder.join("prometheus.log")).expect("its log");
    let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("start Prometheus");
    (Running(child), free.to_string())
}

/// The value of the only series in a query's result.
pub fn value(prometheus: &str, query: &str) -> Option<f64> {
    let (_, body) = get(prometheus, &format!("/api/v1/query?query={query}"), "*/*")?;
    let answer: Value = serde_json::from_str(&body).ok()?;
    match answer["data"]["result"].as_array()?.as_slice() {
        [one] => one["value"][1].as_str()?.parse().ok(),
        _ => None,
    }
}
