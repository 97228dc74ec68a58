//! Files and processes that a hostile container's owner chose, against an agent with the memory limit of the manifest. The
//! agent must live, give up its rights in time, and report a neighbour's kills in time and in full.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use podopsy_model::EventKind;
use support::agent::{Agent, until};
use support::{MemoryCgroup, Running, hostile_elf, is_emulated, require_root};

/// The memory limit of the manifest.
const LIMIT: u64 = 256 << 20;
/// The attacks' own limit: it must suffice for them.
const ATTACK_LIMIT: u64 = 2 << 30;
const KILLS: usize = 6;

/// An agent in a cgroup with the manifest's limit, which profiles all the time.
struct Attacked {
    agent: Agent,
    cgroup: MemoryCgroup,
    folder: tempfile::TempDir,
    started: Instant,
}

impl Attacked {
    fn start(name: &str) -> Attacked {
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
    fn is_restrained_in_time(&self) {
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
    fn reports_a_neighbours_kills(&self, name: &str) {
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
    fn is_alive(&mut self) {
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
    fn profile(&self) -> Option<String> {
        let [podopsy, _] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
        let out = self.folder.path().join("kept.folded");
        let mut command = Command::new(podopsy);
        command.args(["profile", "--since", "10m", "-a", "-o"]).arg(&out);
        command.arg("--socket").arg(self.folder.path().join("agent.sock"));
        let done = command.output().expect("run podopsy");
        if !done.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&done.stderr).trim_end());
            return None;
        }
        fs::read_to_string(&out).ok()
    }
}

/// Runs a program in the attacker's cgroup.
fn attack(cgroup: &MemoryCgroup, line: &str) -> Running {
    Running(cgroup.command(line).stdout(Stdio::null()).spawn().expect("start an attack"))
}

fn native(folder: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("victims/native/{name}.c"));
    let program = folder.join(name);
    let built = Command::new("gcc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).status();
    assert!(built.is_ok_and(|status| status.success()), "gcc: cargo xtask setup test");
    program
}

#[test]
fn hostile_files_cost_the_attacker_its_own_names_and_no_neighbour_a_kill() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    hostile_elf::names(&path("names"), 600);
    hostile_elf::python_bomb(&path("python_bomb"), 64);
    hostile_elf::frame_bomb(&path("frame_bomb"), 8, 3000);
    hostile_elf::mangled(&path("mangled"), 26);
    hostile_elf::unit_bomb(&path("unit_bomb"), 4000, 20_000);
    hostile_elf::sparse(&path("sparse"));
    let attacker = MemoryCgroup::new("attacker-files", ATTACK_LIMIT);
    let all = ["names", "python_bomb", "frame_bomb", "mangled", "unit_bomb", "sparse"];
    // They run when the agent starts.
    let attacks = all.map(|name| attack(&attacker, &path(name).display().to_string()));
    let mut attacked = Attacked::start("files");
    attacked.is_restrained_in_time();
    attacked.reports_a_neighbours_kills("files");
    attacked.is_alive();
    drop(attacks);
    let profile = until("profile of the attacks", || {
        let profile = attacked.profile()?;
        // The function of `mangled` stands without its file.
        let mut others = all.iter().filter(|name| **name != "mangled");
        others.all(|name| profile.contains(name)).then_some(profile)
    });
    // The name that stands for terabytes is shown as far as it goes.
    assert!(profile.contains("f(A<int, int>, A<A<int, int>"), "{profile}");
    assert!(profile.lines().all(|line| line.len() < 64 << 10));
}

#[test]
fn growing_perf_maps_and_thousands_of_mappings_stay_within_the_agents_memory() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let (perf_map, long_maps) = (native(folder.path(), "perf_map"), native(folder.path(), "long_maps"));
    let attacker = MemoryCgroup::new("attacker-maps", ATTACK_LIMIT);
    let mut attacks: Vec<Running> =
        (0..3).map(|_| attack(&attacker, &format!("{} 64", perf_map.display()))).collect();
    let maps: Vec<u32> = attacks.iter().map(|attack| attack.0.id()).collect();
    let mut attacked = Attacked::start("maps");
    attacked.is_restrained_in_time();
    // The newest entry, behind 64 MiB of others.
    let is_named = || attacked.profile()?.contains("made_at_run_time").then_some(());
    until("name of code made at run time", is_named);
    // The memory budget may shed profiles from here on, but not kills.
    attacks.push(attack(&attacker, &format!("{} {} 40 4000", long_maps.display(), folder.path().display())));
    attacked.reports_a_neighbours_kills("maps");
    attacked.is_alive();
    drop(attacks);
    maps.iter().for_each(|pid| drop(fs::remove_file(format!("/tmp/perf-{pid}.map"))));
}

/// Starts programs that no worker has read yet, one after the other, each a small file of its own.
fn start_small_programs(folder: &Path, attacker: &MemoryCgroup, goes_on: &AtomicBool) -> u32 {
    let mut number = 0;
    while goes_on.load(Relaxed) {
        number += 1;
        let program = folder.join(format!("small-{number}"));
        fs::copy("/bin/true", &program).expect("copy a program");
        let _ = attacker.command(&program.display().to_string()).status();
        let _ = fs::remove_file(&program);
    }
    number
}

#[test]
fn thousands_of_small_programs_and_files_that_change_cost_no_neighbour_a_kill() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let changing = native(folder.path(), "changing");
    let attacker = MemoryCgroup::new("attacker-many", ATTACK_LIMIT);
    let attacks = [1, 2].map(|number| {
        attack(&attacker, &format!("{} {}/copy-{number}", changing.display(), folder.path().display()))
    });
    let mut attacked = Attacked::start("many");
    attacked.is_restrained_in_time();
    let goes_on = AtomicBool::new(true);
    let began = Instant::now();
    let started = std::thread::scope(|threads| {
        let small: Vec<_> = (0..2)
            .map(|number| {
                let own = folder.path().join(number.to_string());
                fs::create_dir(&own).expect("a folder");
                let (attacker, goes_on) = (&attacker, &goes_on);
                threads.spawn(move || start_small_programs(&own, attacker, goes_on))
            })
            .collect();
        attacked.reports_a_neighbours_kills("many");
        goes_on.store(false, Relaxed);
        small.into_iter().map(|thread| thread.join().expect("the programs")).sum::<u32>()
    });
    eprintln!("{started} small programs in {:?}", began.elapsed());
    assert!(is_emulated() || started > 600, "too few: {started}");
    attacked.is_alive();
    drop(attacks);
    let profile = until("profile of the attack", || {
        attacked.profile().filter(|profile| profile.contains("copy-") || profile.contains("changing"))
    });
    assert!(profile.lines().all(|line| line.len() < 64 << 10));
}
