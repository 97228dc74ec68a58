//! Completions in real shells, with pods of an agent.
#![forbid(unsafe_code)]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/outcome.rs"]
mod outcome;
#[path = "support/pods.rs"]
mod pods;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agent::TestAgent;
use jiff::Timestamp;
use outcome::expect;
use podopsy_model::testing::{incident, kill, owner};
use podopsy_model::{Event, EventKind, OomIncident};
use tokio::runtime::Runtime;

const PODOPSY: &str = env!("CARGO_BIN_EXE_podopsy");

/// An agent with pods, one of which has a name that a shell would run, and with two kills.
struct Node {
    _agent: TestAgent,
    socket: PathBuf,
    folder: tempfile::TempDir,
    _runtime: Runtime,
}

impl Node {
    fn start() -> Node {
        let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
        let mut agent = TestAgent::start(&runtime, folder.path(), "agent");
        for id in ["3f2a-7", "3f2a-8", "3f2a-$(id)"] {
            let event = kill(Timestamp::now(), owner("shop", "cart-1", &[]), id, 9, false);
            let incident = OomIncident { id: id.into(), ..incident() };
            agent.put(Event { kind: EventKind::OomIncident, incident: Some(Box::new(incident)), ..event });
        }
        let listed = [
            pods::pod("shop", "cart-1", 0),
            pods::pod("shop", "db-0", 0),
            pods::pod("other", "cart-2", 0),
            pods::pod("shop", "x;touch pwned", 0),
            pods::pod("shop", "$(touch pwned)", 0),
        ];
        let socket = pods::serve(folder.path(), &agent.socket, &listed);
        Node { _agent: agent, socket, folder, _runtime: runtime }
    }

    fn command(&self, program: &str) -> Command {
        let programs = Path::new(PODOPSY).parent().unwrap();
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(program);
        command.env("PATH", format!("{}:{path}", programs.display())).current_dir(self.folder.path());
        command.env("PODOPSY_SOCKET", &self.socket).env("PODOPSY_CRI_SOCKET", "/nonexistent");
        command.env("PODOPSY_STATE_DIR", "/nonexistent").env("HOME", self.folder.path());
        command
    }

    /// What bash would offer for the last of the words.
    fn bash(&self, words: &[&str]) -> Vec<String> {
        let script = r#"source <(podopsy completion bash)
            COMP_WORDS=(podopsy "$@"); COMP_CWORD=$#
            _podopsy podopsy "${!#}" "${COMP_WORDS[COMP_CWORD-1]}"
            printf '%s\n' "${COMPREPLY[@]}""#;
        let output = self.command("bash").args(["-c", script, "bash"]).args(words).output().unwrap();
        let (out, err) = expect(&output, 0);
        assert_eq!(err, "");
        out.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

#[test]
fn bash_completes_pods_namespaces_kills_terms_commands_and_options() {
    let node = Node::start();
    assert_eq!(node.bash(&["prof"]), ["profile"]);
    let pods = ["other/cart-2", "shop/cart-1", "shop/db-0"];
    assert_eq!(node.bash(&["inspect", ""]), pods);
    assert!(node.bash(&["profile", ""]).ends_with(&pods.map(str::to_owned)));
    assert_eq!(node.bash(&["timeline", "shop/"]), ["shop/cart-1", "shop/db-0"]);
    assert_eq!(node.bash(&["timeline", "shop/cart-1/"]), ["shop/cart-1/app"]);
    assert_eq!(node.bash(&["timeline", "-n", "shop", ""]), ["cart-1", "db-0"]);
    assert_eq!(node.bash(&["net", "ca"]), ["cart-1", "cart-2"]);
    assert_eq!(node.bash(&["watch", "oom", "shop/d"]), ["shop/db-0"]);
    assert_eq!(node.bash(&["watch", "s"])[0], "sigkill");
    assert_eq!(node.bash(&["events", "-n", ""]), ["other", "shop"]);
    assert_eq!(node.bash(&["oom", "show", ""]), ["3f2a-8", "3f2a-7"]);
    assert_eq!(node.bash(&["report", "--incident", "3f2a-7"]), ["3f2a-7"]);
    assert_eq!(node.bash(&["explain", "vic"]), ["victim"]);
    assert!(node.bash(&["explain", "memory"]).contains(&"memory that no process holds".to_owned()));
    assert!(node.bash(&["events", "--ki"]) == ["--kind"] && node.bash(&["report", "-w", ""]).is_empty());
    assert!(!node.folder.path().join("pwned").exists());
}

#[test]
fn a_completion_is_silent_and_soon_done_where_nothing_answers() {
    let folder = tempfile::tempdir().unwrap();
    // It takes connections, and answers none.
    let socket = folder.path().join("silent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for socket in [socket.as_path(), Path::new("/nonexistent")] {
        let began = Instant::now();
        let mut command = Command::new(PODOPSY);
        command.args(["__complete", "--", "timeline", ""]).env("PODOPSY_SOCKET", socket);
        command.env("PODOPSY_CRI_SOCKET", "/nonexistent").env("PODOPSY_STATE_DIR", "/nonexistent");
        let (out, err) = expect(&command.output().unwrap(), 0);
        assert!(out.lines().all(|line| line.starts_with('-')) && err.is_empty(), "{out}{err}");
        assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    }
}

#[test]
#[ignore = "needs fish: cargo xtask setup test installs it"]
fn fish_completes_pods_and_files() {
    let node = Node::start();
    std::fs::write(node.folder.path().join("cart.podopsy"), "").unwrap();
    let script = "podopsy completion fish | source; complete --do-complete $argv[1]";
    let complete = |line: &str| {
        let output = node.command("fish").args(["--no-config", "-c", script, line]).output().unwrap();
        let (out, _) = expect(&output, 0);
        let value = |line: &str| line.split('\t').next().unwrap().to_owned();
        out.lines().map(value).collect::<Vec<_>>()
    };
    assert_eq!(complete("podopsy timeline shop/"), ["shop/cart-1", "shop/db-0"]);
    assert_eq!(complete("podopsy timeline --from ca"), ["cart.podopsy"]);
    assert_eq!(complete("podopsy explain vic"), ["victim"]);
    assert!(!node.folder.path().join("pwned").exists());
}

#[test]
#[ignore = "needs zsh: cargo xtask setup test installs it"]
fn zsh_completes_pods_and_files() {
    let node = Node::start();
    // Functions of zsh's own, which work in an interactive shell alone, print what they are given.
    let script = r#"
        compdef() { }
        _describe() { print -rl -- "${(@P)3}" }
        _files() { print files }
        source <(podopsy completion zsh)
        words=(podopsy "$@") CURRENT=$(( $# + 1 ))
        _podopsy"#;
    let complete = |words: &[&str]| {
        let output = node.command("zsh").args(["-f", "-c", script, "zsh"]).args(words).output().unwrap();
        let (out, err) = expect(&output, 0);
        assert_eq!(err, "");
        out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["explai"]), ["explain:Explain a term, as the glossary defines it"]);
    let pods = complete(&["timeline", "shop/"]);
    assert!(pods.len() == 2 && pods[0].starts_with("shop/cart-1:running"), "{pods:?}");
    assert_eq!(complete(&["report", "-w", ""]), ["files"]);
    assert!(!node.folder.path().join("pwned").exists());
}
