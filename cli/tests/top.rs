//! `podopsy top` on a terminal and in pipes, on the history of an agent in this process.
#![forbid(unsafe_code)]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/node.rs"]
mod node;
#[path = "support/outcome.rs"]
mod outcome;

use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node::Node;
use outcome::expect;
use podopsy_model::memory::MemorySteps;
use podopsy_model::testing::{dns, owner};
use podopsy_store::MemoryRecord;
use podopsy_terminal::TerminalProcess;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const LEFT: &str = "\x1b[D";
const SIZE: (u16, u16) = (20, 150);

/// An agent whose history has two containers: `cart` grows by 1 MiB every ten seconds until five seconds ago, `web` ended a minute
/// ago.
fn start() -> Node {
    let mut node = Node::start();
    put_memory(&node, "cart", 5);
    put_memory(&node, "web", 60);
    for seconds_ago in 1..=5 {
        let time = Timestamp::now() - SignedDuration::from_secs(35 + seconds_ago);
        node.agent.put(dns(time, owner("shop", "cart", &[]), "db.test"));
    }
    node
}

fn put_memory(node: &Node, pod: &str, ended_seconds_ago: i64) {
    let until = Timestamp::now() - SignedDuration::from_secs(ended_seconds_ago);
    let bytes: Vec<u64> = (1..=60).map(|step| step * MIB).collect();
    let steps = MemorySteps {
        from: until - SignedDuration::from_secs(600),
        until,
        step_seconds: 10,
        step: (0..60).collect(),
        current_max_bytes: bytes.clone(),
        current_bytes: bytes,
        file_bytes: vec![0; 60],
        limit_bytes: Some(64 * MIB),
        ..MemorySteps::default()
    };
    node.agent.store.sender().put_memory(&MemoryRecord { owner: owner("shop", pod, &[]), steps });
}

fn top(node: &Node, arguments: &[&str]) -> Command {
    node.podopsy(&[&["top"], arguments].concat())
}

#[test]
fn a_pipe_gets_one_table_in_each_of_kubectls_formats() {
    let node = start();
    let out = |arguments: &[&str]| {
        let arguments = [&["--at", "1s"], arguments].concat();
        expect(&top(&node, &arguments).output().unwrap(), 0).0
    };
    let table = out(&[]);
    assert!(table.contains("shop/cart") && table.contains("60.0Mi  64.0Mi  94 %"), "{table}");
    assert!(!table.contains("shop/web"), "it has ended: {table}");
    let json: Value = serde_json::from_str(&out(&["-o", "json"])).unwrap();
    let row = &json["rows"][0];
    assert_eq!((&row["memory_bytes"], &row["cpu_millis"]), (&Value::from(60 * MIB), &Value::Null));
    assert_eq!(json["is_live"], false);
    assert!(out(&["-o", "name", "--by-pod"]).trim() == "shop/cart");
    assert!(out(&["-o", "jsonpath={.items[0].limit_bytes}"]) == (64 * MIB).to_string());
    let (_, err) = expect(&top(&node, &["--at", "1s", "-n", "none"]).output().unwrap(), 1);
    assert!(err.contains("no containers match"), "{err}");
    let (_, err) = expect(&top(&node, &["--at", "tomorrow"]).output().unwrap(), 2);
    assert!(err.contains("10 minutes ago"), "{err}");
    let earlier = expect(&top(&node, &["--at", "90 seconds ago"]).output().unwrap(), 0).0;
    assert!(earlier.contains("shop/web") && earlier.contains("51.0Mi"), "{earlier}");
}

#[test]
fn the_screen_moves_in_time_and_shows_pages() {
    let node = start();
    let mut top = TerminalProcess::start(top(&node, &["--at", "2s"]), SIZE).unwrap();
    let screen = top.wait_for("shop/cart").unwrap();
    assert!(screen.contains("history  1 container  by percent") && screen.contains("▂▃"), "{screen}");
    top.press(LEFT).unwrap();
    top.press(LEFT).unwrap();
    top.press(LEFT).unwrap();
    let screen = top.wait_for("0.5").unwrap();
    assert!(
        screen.contains("57.0Mi") && screen.contains("LIMIT IN"),
        "failed queries, and less memory: {screen}"
    );
    top.press("/cart\r").unwrap();
    top.wait_for("filter: cart  Esc").unwrap();
    top.press("t").unwrap();
    let page = top.wait_for("timeline of shop/cart").unwrap();
    assert!(page.contains("memory reached 50 % of the limit"), "{page}");
    top.press("q").unwrap();
    top.wait_for("history").unwrap();
    top.press("a").unwrap();
    top.wait_for("the agent has no kill of shop/cart").unwrap();
    top.press("?").unwrap();
    top.wait_for("In a flame graph").unwrap();
    top.press("q/nothing\r").unwrap();
    top.wait_for("history  0 containers").unwrap();
    top.press("q").unwrap();
    let (status, _) = top.end().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn the_terminal_is_restored_by_signals_too() {
    let node = start();
    for (signal, keys) in [(Some(Signal::SIGTERM), ""), (Some(Signal::SIGINT), ""), (None, "\x03")] {
        let mut top = TerminalProcess::start(top(&node, &["--at", "2s"]), SIZE).unwrap();
        top.wait_for("shop/cart").unwrap();
        top.press(keys).unwrap();
        if let Some(signal) = signal {
            kill(Pid::from_raw(top.child.id() as i32), signal).unwrap();
        }
        let (status, _) = top.end().unwrap();
        assert_eq!(status.code(), Some(0), "{signal:?}");
    }
}

#[test]
fn on_a_narrow_terminal_each_line_fits() {
    let node = start();
    let mut top = TerminalProcess::start(top(&node, &["--at", "2s"]), (10, 40)).unwrap();
    let screen = top.wait_for("shop/cart").unwrap();
    assert!(screen.contains("94 %") && screen.lines().all(|line| line.chars().count() <= 40), "{screen}");
    top.press("q").unwrap();
    assert_eq!(top.end().unwrap().0.code(), Some(0));
}
