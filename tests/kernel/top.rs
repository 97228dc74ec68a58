//! `podopsy top` on real pods: CPU, throttling, memory and the flame graph on its screen.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support;
use podopsy_harness::{ContainerSpec, Node, PodSpec};
use podopsy_terminal::TerminalProcess;
use serde_json::Value;
use support::node;

const SOON: Duration = Duration::from_secs(40);
const MIB: u64 = 1 << 20;

fn top(node: &Node, args: &[&str]) -> Command {
    let binaries = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let mut command = Command::new(&binaries[0]);
    command.arg("--cri-socket").arg(node.cri_socket()).args(["top", "-n", "face"]).args(args);
    command.args(["--state-dir", "/nonexistent"]);
    command
}

fn rows(snapshot: &str) -> Vec<Value> {
    let snapshot: Value = serde_json::from_str(snapshot).expect("JSON");
    snapshot["rows"].as_array().expect("rows").clone()
}

fn row<'a>(rows: &'a [Value], pod: &str) -> &'a Value {
    rows.iter().find(|row| row["pod"] == pod).unwrap_or_else(|| panic!("{pod}: {rows:#?}"))
}

#[test]
fn what_containers_use_is_listed_and_one_is_looked_into() {
    let (node, image) = node();
    let container = |command: &[&str]| ContainerSpec::new("app", &image).command(command.iter().copied());
    let burner = container(&["burner"]).cpu_limit(200).memory_limit(64 << 20);
    let _burner = node.run_pod(PodSpec::new("face", "burner").container(burner)).expect("burner");
    let leaker = container(&["leak", "--step", "1MiB", "--every", "500"]).memory_limit(256 << 20);
    let _leaker = node.run_pod(PodSpec::new("face", "leaker").container(leaker)).expect("leaker");

    let output = top(&node, &["-b", "-o", "json"]).output().expect("run podopsy");
    let first = rows(&String::from_utf8_lossy(&output.stdout));
    assert!(row(&first, "burner")["cpu_millis"].is_u64(), "the first table has CPU time: {first:#?}");

    let end = Instant::now() + SOON;
    let rows = loop {
        let output =
            top(&node, &["-b", "-o", "json", "--count", "8", "-d", "1s"]).output().expect("run podopsy");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text.lines().count(), 8);
        let rows = rows(text.lines().last().expect("a line"));
        // Beside other tests a burner may get less than its quota for a while.
        if row(&rows, "burner")["throttled_percent"].as_f64() > Some(50.0) || Instant::now() > end {
            break rows;
        }
    };
    let burner = row(&rows, "burner");
    let millis = burner["cpu_millis"].as_u64().expect("CPU");
    assert!((120..=260).contains(&millis), "a quota of 200: {burner}");
    assert!(burner["throttled_percent"].as_f64() > Some(50.0), "{burner}");
    assert_eq!((&burner["cpu_limit_millis"], &burner["restarts"]), (&Value::from(200), &Value::from(0)));
    let leaker = row(&rows, "leaker");
    let slope = leaker["growth_bytes_per_second"].as_f64().expect("a slope");
    assert!((1.0..=3.0).contains(&(slope / MIB as f64)), "2 MiB a second: {leaker}");
    assert!(leaker["memory_samples"].as_array().is_some_and(|samples| samples.len() > 5), "{leaker}");
    assert!(
        leaker["oom_kills"].is_null() && leaker["dns_failures_per_second"].is_null(),
        "no agent: {leaker}"
    );

    let mut screen = TerminalProcess::start(top(&node, &["--sort", "cpu"]), (24, 120)).expect("a terminal");
    let table = screen.wait_for("no agent answers").expect("the table");
    assert!(table.contains("face/burner") && table.contains("live  2 containers"), "{table}");
    screen.press("f").expect("a key");
    let flame = screen.wait_for("price_options").expect("the flame graph");
    assert!(flame.contains("face/burner/app: CPU"), "{flame}");
    screen.press("t").expect("a key");
    screen.press("q").expect("a key");
    screen.wait_for("live  2 containers").expect("the table again");
    screen.press("t").expect("a key");
    screen.wait_for("no agent answers: start podopsy-agent").expect("the reason");
    screen.press("q").expect("a key");
    let (status, _) = screen.end().expect("the terminal as it was");
    assert_eq!(status.code(), Some(0));
}
