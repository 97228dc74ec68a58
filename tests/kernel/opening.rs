//! Programs on a file system that their container serves, and that stops answering. A process that touches such a file waits in the
//! kernel, in a wait that SIGKILL does not end. That may cost the agent a helper process, and the container its names.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::agent::{get, loss, until, wait};
use support::attacked::{ATTACK_LIMIT, Attacked};
use support::{MemoryCgroup, Running, is_emulated, require_root};

/// How long the agent may take to end.
const END: Duration = Duration::from_secs(2);

/// Builds `victims/native/fuse_stall.c` with another name for its function.
fn build(folder: &Path, name: &str, function: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims/native/fuse_stall.c");
    let program = folder.join(name);
    let define = format!("-DSPIN={function}");
    let built = Command::new("gcc").args(["-O1", &define, "-o"]).arg(&program).arg(source).status();
    assert!(built.is_ok_and(|status| status.success()), "gcc: cargo xtask setup test");
    program.display().to_string()
}

/// A program on a file system that has stopped answering. The kernel ends all waits for it when this is dropped.
struct Stalled {
    _server: Running,
}

impl Stalled {
    fn start(program: &str, cgroup: &MemoryCgroup, folder: &Path, mode: &str) -> Stalled {
        let mount = folder.join("mount");
        fs::create_dir_all(&mount).expect("a folder");
        let line = format!("{program} {} {mode}", mount.display());
        let mut server = cgroup.command(&line).stdout(Stdio::piped()).spawn().expect("start the file system");
        let mut output = BufReader::new(server.stdout.take().expect("its output"));
        let mut said = String::new();
        output.read_line(&mut said).expect("a line");
        assert_eq!(said.trim(), "stalled");
        Stalled { _server: Running(server) }
    }
}

/// The names of the processes below a process that wait in the kernel, in a wait that no signal ends.
fn in_uninterruptible_wait(pid: u32) -> Vec<String> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = list.split_whitespace().filter_map(|child| child.parse().ok());
    let mut found = Vec::new();
    for child in children {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        if let Some((name, rest)) = stat.split_once(") ")
            && rest.starts_with("D ")
        {
            found.push(name.split_once('(').map_or(name, |(_, name)| name).to_owned());
        }
        found.extend(in_uninterruptible_wait(child));
    }
    found
}

/// An agent beside a file system that has stopped answering.
struct Scene {
    _stalled: Stalled,
    attacked: Attacked,
}

/// What must hold while the file system of an attacker's program does not answer.
struct Expected {
    mode: &'static str,
    /// The helper that waits; none if it can be killed.
    waiting: Option<&'static str>,
    /// What the profile shows in place of the attacker's names.
    reason: &'static str,
}

fn a_stalled_file_system_costs_its_container_alone(expected: &Expected) {
    require_root();
    let Expected { mode, waiting, reason } = expected;
    let folder = tempfile::tempdir().expect("a folder");
    let attacker = MemoryCgroup::new(&format!("stalls-{mode}"), ATTACK_LIMIT);
    let neighbour = MemoryCgroup::new(&format!("beside-{mode}"), ATTACK_LIMIT);
    let program = build(folder.path(), "fuse_stall", "spins_on_fuse");
    let beside = build(folder.path(), "beside", "spins_on_a_disk");
    let _beside = Running(neighbour.command(&format!("{beside} spin")).spawn().expect("start a neighbour"));
    let stalled = Stalled::start(&program, &attacker, folder.path(), mode);

    // The file system ends first, also if the test fails: the agent's cgroup can only then be removed.
    let mut scene = Scene { _stalled: stalled, attacked: Attacked::start(&format!("stall-{mode}")) };
    let attacked = &mut scene.attacked;
    attacked.is_restrained_in_time();
    if let Some(helper) = waiting {
        let waits =
            || in_uninterruptible_wait(attacked.agent.pid()).contains(&(*helper).to_owned()).then_some(());
        until("helper that waits for the file system", waits);
    }
    let started = Instant::now();
    let profile = until("names of the neighbour", || {
        attacked.profile().filter(|profile| profile.contains("spins_on_a_disk"))
    });
    eprintln!("the neighbour has its names {:?} after the stall", started.elapsed());
    assert!(!profile.contains("spins_on_fuse"), "{profile}");
    let mut last = String::new();
    let shows_reason = || {
        last = attacked.profile()?;
        last.contains(reason).then_some(())
    };
    assert!(wait(shows_reason).is_some(), "{reason} is not in {last}");
    let given_up = loss(&attacked.agent.address, "openers_late");
    assert_eq!(given_up.is_some_and(|files| files > 0.0), reason.contains("does not answer"), "{given_up:?}");
    attacked.reports_a_neighbours_kills(&format!("stall-{mode}"));
    is_ready(attacked);
    attacked.is_alive();
    // One of each kind at most.
    let mut waiting_now = in_uninterruptible_wait(attacked.agent.pid());
    waiting_now.sort();
    assert!(waiting_now.windows(2).all(|two| two[0] != two[1]), "{waiting_now:?}");
    assert!(waiting.iter().all(|helper| waiting_now.contains(&(*helper).to_owned())), "{waiting_now:?}");
    ends_in_time(attacked);
}

/// Asserts that the agent answers, and waits for nothing but the container runtime, of which this machine has none.
fn is_ready(attacked: &Attacked) {
    let asked = Instant::now();
    let (head, _) = get(&attacked.agent.address, "/healthz", "*/*").expect("an answer");
    assert!(head.contains(" 200 "), "{head}");
    let (_, body) = get(&attacked.agent.address, "/readyz", "*/*").expect("an answer");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let waiting_for = body["waiting_for"].as_array().expect("a list");
    assert!(waiting_for.len() == 1 && body.to_string().contains("container runtime"), "{body}");
    assert!(asked.elapsed() < Duration::from_secs(if is_emulated() { 10 } else { 1 }));
}

fn ends_in_time(attacked: &mut Attacked) {
    let begin = Instant::now();
    kill(Pid::from_raw(attacked.agent.pid() as i32), Signal::SIGTERM).expect("send SIGTERM");
    let limit = if is_emulated() { END * 10 } else { END };
    while attacked.agent.process.0.try_wait().expect("its state").is_none() {
        assert!(begin.elapsed() < limit, "it has not ended: {}", attacked.agent.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    eprintln!("the agent ended within {:?}", begin.elapsed());
}

#[test]
fn an_open_without_an_answer_costs_one_process_and_the_names_of_its_container() {
    a_stalled_file_system_costs_its_container_alone(&Expected {
        mode: "open",
        waiting: Some("podopsy-opener"),
        reason: "[symbols: gave up on program: its file system does not answer]",
    });
}

#[test]
fn a_close_without_an_answer_costs_one_process_and_the_names_of_its_container() {
    a_stalled_file_system_costs_its_container_alone(&Expected {
        mode: "close",
        waiting: Some("podopsy-opener"),
        reason: "[symbols: gave up on program: its file system does not answer]",
    });
}

#[test]
fn a_read_without_an_answer_costs_one_process_and_the_names_of_its_container() {
    a_stalled_file_system_costs_its_container_alone(&Expected {
        mode: "read",
        waiting: Some("podopsy-parser"),
        reason: "[symbols: gave up on program: reading it took too long]",
    });
}

#[test]
fn requests_that_are_not_read_cost_the_names_of_their_container() {
    a_stalled_file_system_costs_its_container_alone(&Expected {
        mode: "deaf",
        waiting: None,
        reason: "[symbols: gave up on program: its file system does not answer]",
    });
}
