//! An agent with the memory limit of the manifest that is attacked by a container, and a neighbour whose kills it must report.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podopsy_model::EventKind;

use super::agent::Agent;
use super::{MemoryCgroup, Running, is_emulated};

/// The memory limit of the manifest.
const LIMIT: u64 = 256 << 20;
/// The attacks' own limit: it must suffice for them.
pub const ATTACK_LIMIT: u64 = 2 << 30;
const KILLS: usize = 6;

/// An agent in a cgroup with the manifest's limit, which profiles all the time.
pub struct Attacked {
    pub agent: Agent,
    cgroup: MemoryCgroup,
    pub folder: tempfile::TempDir,
    started: Instant,
}

impl Attacked {
    pub fn start(name: &str) -> Attacked {
        let folder = tempfile::tempdir().expect("a folder");
        let cgroup = MemoryCgroup::new(&format!("agent-{name}"), LIMIT);
        let join = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", cgroup.path.display());
        let state = folder.path().join("state");
        let state = state.to_str().expect("a path");
        let arguments = ["--state-dir", state, "--profile-hz", "49", "--keep-every", "5s"];
        let started = Instant::now();
        let by = ["/bin/sh", "-c", &join];
        let agent = Agent::start_by(&by, folder.path(), Path::new("/nonexistent"), &arguments);
        Attacked { agent, cgroup, folder, started }
    }

    /// Asserts that the agent has given up its rights within ten seconds of its start, or says that it is not ready.
    pub fn is_restrained_in_time(&self) {
        let limit = if is_emulated() { 100 } else { 10 };
        let field = |name: &str| {
            let status = fs::read_to_string(format!("/proc/{}/status", self.agent.pid())).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned();
            Some(line)
        };
        while field("Seccomp:").as_deref() != Some("2") {
            assert!(
                self.started.elapsed() < Duration::from_secs(limit),
                "not restrained: {}",
                self.agent.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        // CAP_SYS_ADMIN and CAP_NET_ADMIN are gone, or kept with a reason in the log.
        let held = u64::from_str_radix(&field("CapEff:").expect("its capabilities"), 16).expect("hex");
        assert_eq!(held & (1 << 12), 0, "it kept CAP_NET_ADMIN: {held:#x}");
        eprintln!("restrained after {:?}, with {held:#x}", self.started.elapsed());
    }

    /// Kills a neighbour's process again and again, and asserts that each kill is reported in time.
    pub fn reports_a_neighbours_kills(&self, name: &str) {
        let patience = Duration::from_secs(if is_emulated() { 20 } else { 5 });
        let victims = podopsy_harness::victims(&|what| eprintln!("{what}")).expect("build the victims");
        let neighbour = MemoryCgroup::new(&format!("neighbour-{name}"), 16 << 20);
        let id = neighbour.id();
        let reported = || {
            let own =
                |event: &podopsy_model::Event| event.kind == EventKind::OomKill && event.cgroup.id == id;
            self.agent.events().iter().filter(|event| own(event)).count()
        };
        let mut slowest = Duration::ZERO;
        for kill in 1..=KILLS {
            let leak = format!("{}/leak --step 1MiB --every 1 --up-to 64MiB", victims.display());
            let status = neighbour.command(&leak).stdout(Stdio::null()).status().expect("run the leak");
            assert!(!status.success(), "the neighbour's process was not killed");
            let ended = Instant::now();
            while reported() < kill {
                assert!(ended.elapsed() < patience, "kill {kill} is not reported: {}", self.agent.log());
                std::thread::sleep(Duration::from_millis(5));
            }
            slowest = slowest.max(ended.elapsed());
            std::thread::sleep(Duration::from_millis(if is_emulated() { 4000 } else { 2000 }));
        }
        eprintln!("{KILLS} kills of the neighbour, each reported within {slowest:?}");
    }

    /// Asserts that the agent is the one that was started, and prints what it cost.
    pub fn is_alive(&mut self) {
        assert!(
            self.agent.process.0.try_wait().expect("its state").is_none(),
            "it ended: {}",
            self.agent.log()
        );
        let read = |file: &str| fs::read_to_string(self.cgroup.path.join(file)).ok();
        let peak = read("memory.peak").or_else(|| read("memory.max_usage_in_bytes"));
        let peak: u64 = peak.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.agent.pid())).expect("its CPU time");
        let after = stat.rsplit(") ").next().expect("fields");
        let fields: Vec<u64> =
            after.split(' ').skip(11).take(4).filter_map(|field| field.parse().ok()).collect();
        let seconds = |ticks: u64| ticks as f64 / 100.0;
        eprintln!(
            "the agent's cgroup had {} of {} MiB at most; {:.2} s of CPU in the agent, in {:?}",
            peak >> 20,
            LIMIT >> 20,
            seconds(fields[0] + fields[1]),
            self.started.elapsed()
        );
    }

    /// The folded stacks of the last minutes; none if there are none yet.
    pub fn profile(&self) -> Option<String> {
        let (said, profile) = self.agent.kept_profile();
        if profile.is_none() {
            eprintln!("{said}");
        }
        profile
    }
}

/// Runs a program in the attacker's cgroup.
pub fn attack(cgroup: &MemoryCgroup, line: &str) -> Running {
    Running(cgroup.command(line).stdout(Stdio::null()).spawn().expect("start an attack"))
}

/// Builds a program of `victims/native`.
pub fn native(folder: &Path, name: &str) -> PathBuf {
    native_as(&folder.join(name), name, &[])
}

/// Builds a program of `victims/native` at a path, with more arguments for the compiler.
pub fn native_as(program: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("victims/native/{name}.c"));
    let mut command = Command::new("gcc");
    command.args(["-O1", "-pthread"]).args(arguments).arg("-o").arg(program).arg(source);
    let built = command.status();
    assert!(built.is_ok_and(|status| status.success()), "gcc: cargo xtask setup test");
    program.to_owned()
}
