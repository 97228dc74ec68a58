//! Commands that read the agent's history, from outside: the binary asks an agent in this process.
#![forbid(unsafe_code)]

#[path = "support/agent.rs"]
mod agent;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use agent::TestAgent;
use jiff::{SignedDuration, Timestamp};
use podopsy_model::testing::{dns, owner};
use tokio::runtime::Runtime;

const PODOPSY: &str = env!("CARGO_BIN_EXE_podopsy");

/// An agent, and the options that lead to it.
struct Node {
    agent: TestAgent,
    folder: tempfile::TempDir,
    _runtime: Runtime,
}

impl Node {
    fn start() -> Node {
        let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
        let agent = TestAgent::start(&runtime, folder.path(), "agent");
        Node { agent, folder, _runtime: runtime }
    }

    fn podopsy(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PODOPSY);
        command.args(arguments).env("PODOPSY_SOCKET", &self.agent.socket);
        command.env("PODOPSY_STATE_DIR", self.folder.path().join("none"));
        command.env("PODOPSY_CRI_SOCKET", "/nonexistent").env_remove("NODE_NAME");
        command
    }

    fn put_lookup(&mut self, seconds_ago: i64, pod: &str, labels: &[(&str, &str)], name: &str) {
        let time = Timestamp::now() - SignedDuration::from_secs(seconds_ago);
        self.agent.put(dns(time, owner("shop", pod, labels), name));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asserts on the exit code, and returns stdout and stderr.
fn expect(output: &Output, code: i32) -> (String, String) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout:\n{out}\nstderr:\n{err}");
    (out, err)
}

/// The table of docs/cli.md: one call for each exit code.
#[test]
fn each_exit_code_has_its_meaning() {
    let mut node = Node::start();
    node.put_lookup(5, "cart-1", &[], "one.test");
    node.put_lookup(4, "cart-2", &[], "two.test");
    for (arguments, code, reason) in [
        (&["events"][..], 0, "2 events"),
        (&["events", "--kind", "oom.kill"], 1, "0 events"),
        (&["events", "orders"], 1, "no pod is named orders"),
        (&["events", "cart"], 2, "shop/cart-1 (gone), shop/cart-2 (gone)"),
        (&["events", "other/cart-1", "-n", "shop"], 2, "leave one of them out"),
        (&["events", "--since", "x"], 2, "--since"),
        (&["events", "--socket", "/nonexistent/socket"], 3, "no agent answers"),
    ] {
        let (_, err) = expect(&node.podopsy(arguments).output().unwrap(), code);
        assert!(err.contains(reason), "{arguments:?}: {err}");
    }
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let folder = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let binary = folder.path().join("podopsy");
    let copied = Command::new("install").args(["-m", "755", PODOPSY]).arg(&binary).status().unwrap();
    let opened = Command::new("chmod").arg("755").arg(folder.path()).status().unwrap();
    assert!(copied.success() && opened.success());
    let output = Command::new(&binary).arg("pods").uid(65534).gid(65534).current_dir("/").output().unwrap();
    let (_, err) = expect(&output, 4);
    assert!(err.contains("needs root"), "{err}");
}

#[test]
fn a_past_pod_is_found_by_the_beginning_of_its_name_or_by_its_controller() {
    let mut node = Node::start();
    let hash = [("pod-template-hash", "7d9c5b6f4"), ("app", "cart")];
    node.put_lookup(5, "cart-7d9c5b6f4-x2v8p", &hash, "one.test");
    node.put_lookup(4, "cart-7d9c5b6f4-b4cdf", &hash, "two.test");
    node.put_lookup(3, "db-0", &[], "three.test");
    let names = |arguments: &[&str]| -> Vec<String> {
        let output = node.podopsy(&[&["events", "-o", "json"], arguments].concat()).output().unwrap();
        let (out, _) = expect(&output, 0);
        let name = |line: &str| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            event["dns"]["name"].as_str().unwrap().to_owned()
        };
        out.lines().map(name).collect()
    };
    assert_eq!(names(&["cart-7d9c5b6f4-x"]), ["one.test"]);
    assert_eq!(names(&["deploy/cart"]), ["one.test", "two.test"]);
    assert_eq!(names(&["shop/deployment/cart", "db"]), ["one.test", "two.test", "three.test"]);
    assert_eq!(names(&["deploy/cart", "--most", "1"]), ["two.test"]);
    assert_eq!(names(&["-n", "shop", "-l", "app!=cart"]), ["three.test"]);
    assert_eq!(names(&["db-0", "-A"]), ["three.test"]);
    let (_, err) = expect(&node.podopsy(&["events", "cart"]).output().unwrap(), 2);
    assert!(err.contains("shop/deploy/cart means all of them"), "{err}");
}
