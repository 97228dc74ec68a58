//! The node, the agent and the pods that all cells share.
//!
//! | pod | what it is |
//! |---|---|
//! | `shop/cart-1` | it lives: `app` computes, `client` looks up a name that does not exist |
//! | `shop/cart-2` | the same with names that somebody chose to harm, and a child that the OOM killer ended |
//! | `shop/orders` | it is dead: the OOM killer ended it twice |

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use podopsy_harness::{ContainerSpec, Node, PodHandle, PodSpec, Resolver};
use podopsy_model::text;
use serde_json::Value;
use tempfile::TempDir;

use super::table::{Call, Row, Situation};
use crate::support::agent::{Agent, until};
use crate::support::{Running, node};

/// What must not begin a line: a name with a newline would put it there.
pub const INJECTED: &str = "INJECTED";
/// A container's name and a label's value: an escape sequence, a newline, a right-to-left mark and HTML.
const HOSTILE_NAME: &str = "a\x1b[2J\nINJECTED\u{202e}<b>x";
/// A process's name, which has 15 bytes: that of the program's file.
const HOSTILE_COMM: &str = "\x1b[2J\nINJECTED<b>";
/// A name that is looked up.
const HOSTILE_QUERY: &str = "x\x1b[2J\u{202e}<b>.test";
const NO_SOCKET: &str = "/nonexistent/agent.sock";
const NO_RUNTIME: &str = "/nonexistent/cri.sock";
/// User and group of no one.
const NO_USER: &str = "65534";
const MIB: i64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

pub struct Stage {
    /// A copy of podopsy that every user can run, and the files that commands write.
    folder: TempDir,
    files: AtomicUsize,
    /// A process whose core takes long to write.
    large: Running,
    /// The ids of the kills in the dead and in the hostile pod.
    dead_id: String,
    hostile_id: String,
    agent: Agent,
    _pods: [PodHandle; 3],
    _resolver: Resolver,
    node: Node,
}

impl Stage {
    pub fn set() -> Stage {
        let (node, image) = node();
        let state = node.directory().join("state");
        let agent = Agent::start(&node, &["--state-dir", &state.to_string_lossy(), "--keep-every", "1s"]);
        let resolver = node.resolver("nxdomain").expect("a resolver");
        let folder = open_folder();
        let dead = dead_pod(&node, &image);
        let pods = [live_pod(&node, &image), hostile_pod(&node, &image, folder.path()), dead];
        let large = Command::new(node.victims().join("leak"))
            .args(["--hold", "400MiB", "--wait", "600s"])
            .stdout(Stdio::null())
            .spawn();
        let mut stage = Stage {
            folder,
            files: AtomicUsize::new(0),
            large: Running(large.expect("start the large process")),
            dead_id: String::new(),
            hostile_id: String::new(),
            agent,
            _pods: pods,
            _resolver: resolver,
            node,
        };
        stage.dead_id = stage.kill_in("orders");
        stage.hostile_id = stage.kill_in("cart-2");
        for pod in ["shop/cart-1", "shop/cart-2"] {
            until("failed lookup in the history", || stage.answer(&["events", pod, "--kind", "dns.failure"]));
        }
        stage
    }

    /// Waits for the incident of a pod in the history, and returns its id.
    fn kill_in(&self, pod: &str) -> String {
        until("incident in the history", || {
            let listed = self.answer(&["oom", &format!("shop/{pod}"), "-o", "json"])?;
            let listed: Value = serde_json::from_str(&listed).expect("JSON");
            Some(listed["incidents"][0]["incident"]["id"].as_str()?.to_owned())
        })
    }

    fn answer(&self, args: &[&str]) -> Option<String> {
        let output = self.command(Situation::Live).args(args).output().expect("run podopsy");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// podopsy, as a situation finds it.
    pub fn command(&self, situation: Situation) -> Command {
        let program = self.folder.path().join("podopsy");
        let mut command = match situation {
            Situation::Unprivileged => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", NO_USER, "--regid", NO_USER, "--clear-groups"]).arg(program);
                command
            }
            _ => Command::new(program),
        };
        let own_socket = self.node.directory().join("agent.sock");
        let socket = if situation == Situation::NoAgent { Path::new(NO_SOCKET) } else { &own_socket };
        let no_runtime = situation == Situation::NoRuntime;
        let runtime = if no_runtime { Path::new(NO_RUNTIME) } else { self.node.cri_socket() };
        command.env("PODOPSY_SOCKET", socket).env("PODOPSY_CRI_SOCKET", runtime).current_dir("/");
        command
    }

    /// The arguments of a call, and the file that it may write.
    pub fn arguments(&self, row: &Row, situation: Situation, call: &Call) -> (Vec<String>, PathBuf) {
        let (target, id) = match situation {
            Situation::Live => ("shop/cart-1", &self.dead_id),
            Situation::Dead => ("shop/orders", &self.dead_id),
            Situation::Missing => ("shop/nothing", &self.dead_id),
            Situation::Ambiguous => ("shop/cart", &self.dead_id),
            Situation::Hostile | Situation::Narrow => ("shop/cart-2", &self.hostile_id),
            _ if row.is_of_dead => ("shop/orders", &self.dead_id),
            _ => ("shop/cart-1", &self.dead_id),
        };
        let file = self.folder.path().join(format!("file-{}", self.files.fetch_add(1, Relaxed)));
        let boot = id.split('-').next().unwrap_or_default();
        let replaced = [
            ("TARGET", target),
            ("RAW", HOSTILE_NAME),
            // As podopsy prints it, and so as it is copied from there.
            ("SHOWN", &text::escape(HOSTILE_NAME)),
            ("ID", id.as_str()),
            ("BOOT", boot),
            ("LARGE", &self.large.0.id().to_string()),
            ("FILE", &file.to_string_lossy()),
            ("FOLDER", &self.folder.path().to_string_lossy()),
        ];
        let word = |word: &str| {
            replaced.iter().fold(word.to_owned(), |word, (name, value)| word.replace(name, value))
        };
        (call.args.unwrap_or(row.args).split(' ').map(word).collect(), file)
    }

    /// What is wrong with the files of a call: hostile HTML that is not escaped, and what a failure left.
    pub fn check_file(&self, file: &Path, situation: Situation, code: Option<i32>) -> Option<String> {
        let name = file.file_name()?.to_str()?;
        let entries = fs::read_dir(self.folder.path()).expect("the folder").flatten();
        let own = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().split('.').next() == Some(name);
        let path = entries.filter(own).map(|entry| entry.path()).next()?;
        if code != Some(0) {
            return Some(format!("it failed and left {}", path.display()));
        }
        let is_html = path.extension().is_some_and(|extension| extension == "html");
        let content = if is_html { fs::read_to_string(&path).expect("the report") } else { String::new() };
        let is_harmful = situation == Situation::Hostile
            && ["<b>x", "INJECTED<b", "\x1b", "\u{202e}"].iter().any(|raw| content.contains(raw));
        let _ = fs::remove_file(&path);
        is_harmful.then(|| "the report has a hostile name that is not escaped".to_owned())
    }

    /// Files that commands began and did not remove.
    pub fn unfinished_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path()).expect("the folder").flatten();
        let is_unfinished =
            |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(".podopsy-");
        entries.filter(is_unfinished).map(|entry| entry.path()).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.agent.log());
        }
    }
}

/// A folder that every user can read, with podopsy in it. In memory: a core is refused on a disk that is nearly full, as that of a
/// machine that builds may be.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open the folder");
    let [podopsy, _] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let program = folder.path().join("podopsy");
    // By another process: a child that is started meanwhile would inherit the descriptor, and the file could not be run.
    let copied = Command::new("install").args(["-m", "755"]).arg(podopsy).arg(program).status();
    assert!(copied.expect("run install").success());
    folder
}

fn live_pod(node: &Node, image: &str) -> PodHandle {
    let app = ContainerSpec::new("app", image).command(["burner", "--busy", "30"]).port(8080);
    let client = ContainerSpec::new("client", image).command(["lookup", "gone.test", "--every", "500"]);
    node.run_pod(PodSpec::new("shop", "cart-1").container(app).container(client)).expect("run the pod")
}

/// Ended by the OOM killer, started again, and ended again.
fn dead_pod(node: &Node, image: &str) -> PodHandle {
    let api = ContainerSpec::new("api", image).command(["leak", "--fast"]).memory_limit(32 * MIB);
    let pod = node.run_pod(PodSpec::new("shop", "orders").container(api)).expect("run the pod");
    pod.wait_exited("api", SOON).expect("it is killed");
    pod.restart("api").expect("start it again");
    pod.wait_exited("api", SOON).expect("it is killed again");
    pod
}

/// Its programs are copies whose files' names are hostile, and so are their processes' names.
fn hostile_pod(node: &Node, image: &str, folder: &Path) -> PodHandle {
    let container = |name: String, victim: &str, args: &[&str]| {
        let programs = folder.join(victim);
        fs::create_dir(&programs).expect("a folder");
        fs::copy(node.victims().join(victim), programs.join(HOSTILE_COMM)).expect("copy a program");
        let inside = format!("/{victim}");
        let program = format!("{inside}/{HOSTILE_COMM}");
        let command = std::iter::once(program.as_str()).chain(args.iter().copied());
        ContainerSpec::new(name, image).command(command).mount_read_only(&programs, inside)
    };
    let app = container(HOSTILE_NAME.to_owned(), "burner", &["--busy", "30"]);
    let client =
        container(format!("{HOSTILE_NAME}2"), "lookup", &["gone.test", HOSTILE_QUERY, "--every", "500"]);
    let leaker = container(format!("{HOSTILE_NAME}3"), "leak", &["--child"])
        .memory_limit(64 * MIB)
        .single_process_oom_kill();
    let spec = PodSpec::new("shop", "cart-2").label("app", HOSTILE_NAME);
    node.run_pod(spec.container(app).container(client).container(leaker)).expect("run the pod")
}
