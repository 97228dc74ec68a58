//! Commands that read the agent's history, from outside: the binary asks an agent in this process.
#![forbid(unsafe_code)]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/node.rs"]
mod node;
#[path = "support/outcome.rs"]
mod outcome;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use node::Node;
use outcome::expect;
use podopsy_model::memory::MemorySteps;
use podopsy_model::testing::{dns, incident, kill, owner};
use podopsy_model::{Event, EventKind, OomIncident};
use podopsy_profiles::export::{Format, example};
use podopsy_store::{MemoryRecord, ProfileFacts, ProfileRecord};

const PODOPSY: &str = env!("CARGO_BIN_EXE_podopsy");

fn put_lookup(node: &mut Node, seconds_ago: i64, pod: &str, labels: &[(&str, &str)], name: &str) {
    let time = Timestamp::now() - SignedDuration::from_secs(seconds_ago);
    node.agent.put(dns(time, owner("shop", pod, labels), name));
}

/// The table of docs/cli.md: one call for each exit code.
#[test]
fn each_exit_code_has_its_meaning() {
    let mut node = Node::start();
    put_lookup(&mut node, 5, "cart-1", &[], "one.test");
    put_lookup(&mut node, 4, "cart-2", &[], "two.test");
    for (arguments, code, reason) in [
        (&["events"][..], 0, "2 events"),
        (&["events", "--kind", "oom.kill"], 1, "0 events"),
        (&["events", "orders"], 1, "no pod is named orders"),
        (&["events", "cart"], 2, "shop/cart-1 (gone), shop/cart-2 (gone)"),
        (&["events", "other/cart-1", "-n", "shop"], 2, "leave one of them out"),
        (&["events", "--since", "x"], 2, "--since"),
        (&["timeline", "cart-1", "-f", "-o", "yaml"], 2, "--follow prints a table or json"),
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
    put_lookup(&mut node, 5, "cart-7d9c5b6f4-x2v8p", &hash, "one.test");
    put_lookup(&mut node, 4, "cart-7d9c5b6f4-b4cdf", &hash, "two.test");
    put_lookup(&mut node, 3, "db-0", &[], "three.test");
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

#[test]
fn a_list_has_kubectls_formats() {
    let mut node = Node::start();
    put_lookup(&mut node, 5, "cart-1", &[("app.kubernetes.io/name", "b")], "one.test");
    put_lookup(&mut node, 4, "cart-2", &[("app.kubernetes.io/name", "a")], "two.test");
    let out =
        |arguments: &[&str]| expect(&node.podopsy(&[&["events"], arguments].concat()).output().unwrap(), 0).0;
    assert_eq!(out(&["-o", "name"]), "shop/cart-1\nshop/cart-2\n");
    let template =
        r#"jsonpath={range .items[*]}{.dns.name} {.pod.labels.app\.kubernetes\.io/name}{"\n"}{end}"#;
    assert_eq!(out(&["-o", template]), "one.test b\ntwo.test a\n");
    assert_eq!(
        out(&["-o", template, "--sort-by", r".pod.labels.app\.kubernetes\.io/name"]),
        "two.test a\none.test b\n"
    );
    let filter = r#"jsonpath={.items[?(@.dns.name=="two.test")].pod.name}"#;
    assert_eq!(out(&["-o", filter]), "cart-2");
    let columns = "custom-columns=POD:.pod.name,NONE:.none";
    assert_eq!(out(&["-o", columns]), "POD     NONE\ncart-1  <none>\ncart-2  <none>\n");
    assert!(out(&["-o", columns, "--no-headers"]).starts_with("cart-1"));
    assert!(out(&["--no-headers"]).lines().count() == 2 && out(&[]).lines().count() == 3);
    let yaml: serde_json::Value = serde_yaml_ng::from_str(&out(&["-o", "yaml"])).unwrap();
    assert_eq!(yaml[1]["pod"]["name"], "cart-2");
    assert!(out(&["--color", "always"]).contains("\u{1b}[1m"));
    assert!(!out(&["--color", "never"]).contains('\u{1b}') && !out(&[]).contains('\u{1b}'));
}

fn oom(seconds_ago: i64, pod: &str, id: &str) -> Event {
    let time = Timestamp::now() - SignedDuration::from_secs(seconds_ago);
    let event = kill(time, owner("shop", pod, &[]), id, 9, false);
    let incident = OomIncident { id: id.into(), ..incident() };
    Event { kind: EventKind::OomIncident, incident: Some(Box::new(incident)), ..event }
}

/// Ten minutes of memory that grow to the limit, half a minute ago.
fn put_memory(node: &Node, pod: &str) {
    let until = Timestamp::now() - SignedDuration::from_secs(30);
    let bytes: Vec<u64> = (1..=60).map(|at| at << 20).collect();
    let steps = MemorySteps {
        from: until - SignedDuration::from_secs(590),
        until,
        step_seconds: 10,
        step: (0..60).collect(),
        current_max_bytes: bytes.clone(),
        current_bytes: bytes,
        limit_bytes: Some(60 << 20),
        ..MemorySteps::default()
    };
    node.agent.store.sender().put_memory(&MemoryRecord { owner: owner("shop", pod, &[]), steps });
}

#[test]
fn a_timeline_has_memory_lookups_and_kills_of_its_target_in_order() {
    let mut node = Node::start();
    put_memory(&node, "cart-1");
    put_memory(&node, "other");
    for seconds_ago in [50, 49, 48] {
        put_lookup(&mut node, seconds_ago, "cart-1", &[], "db.test");
    }
    node.agent.put(oom(20, "cart-1", "3f2a-7"));
    node.agent.put(oom(10, "other", "3f2a-8"));
    let call = |arguments: &[&str]| node.podopsy(&[&["timeline"], arguments].concat()).output().unwrap();
    let (out, err) = expect(&call(&["cart"]), 0);
    let kinds: Vec<&str> = out.lines().skip(1).map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    assert_eq!(kinds, ["memory", "memory", "memory", "dns-failures", "memory", "oom-kill"], "{out}{err}");
    assert!(out.contains("memory reached 100 % of the limit: 60.0 MiB of 60.0 MiB"), "{out}");
    assert!(out.contains("(correlated: 10 s before the oom-kill 3f2a-7)"), "{out}");
    assert!(out.contains("3 queries failed within 2 s: db.test (3); servfail 3"), "{out}");
    assert!(err.contains("6 entries since"), "{err}");
    let (json, _) = expect(&call(&["shop/other", "-o", "jsonpath={.items[*].id}"]), 0);
    assert_eq!(json, "3f2a-8");
    let (all, _) = expect(&call(&["-A", "-o", "name"]), 0);
    assert_eq!(all.lines().count(), 2, "{all}");
    expect(&call(&["cart", "--since", "1s"]), 1);
    expect(&call(&["none"]), 1);
    expect(&call(&[]), 2);
}

#[test]
fn a_timeline_goes_on_with_what_happens() {
    use std::io::{BufRead as _, BufReader};
    let mut node = Node::start();
    node.agent.put(oom(20, "cart-1", "3f2a-7"));
    let mut command = node.podopsy(&["timeline", "-n", "shop", "-f", "-o", "json"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || {
        let line: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        line["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(next(), "3f2a-7");
    node.agent.put(oom(0, "cart-1", "3f2a-8"));
    assert_eq!(next(), "3f2a-8");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_term_is_explained_and_an_unknown_one_is_not_found() {
    let call = |arguments: &[&str]| Command::new(PODOPSY).args(arguments).output().unwrap();
    let (out, _) = expect(&call(&["explain", "owner"]), 0);
    assert!(out.starts_with("owner\n  The pod, the container and the memory cgroup"), "{out}");
    let (out, _) = expect(&call(&["explain"]), 0);
    assert!(out.contains("Ownership") && out.contains("cgroup id"), "{out}");
    let (_, err) = expect(&call(&["explain", "ownr"]), 1);
    assert!(err.contains("did you mean owner"), "{err}");
}

/// Two minutes of CPU time of the pod's container.
fn put_profile(node: &Node, pod: &str) {
    let end = Timestamp::now() - SignedDuration::from_secs(30);
    let mut pprof = Vec::new();
    Format::Pprof.write(&example::profile(), &mut pprof).unwrap();
    let facts = ProfileFacts {
        frequency_hz: 99,
        samples: 45,
        user_stacks: 45,
        complete: 40,
        ..ProfileFacts::default()
    };
    let begin = end - SignedDuration::from_secs(120);
    node.agent.store.sender().put_profile(ProfileRecord {
        owner: owner("shop", pod, &[]),
        begin,
        end,
        pprof,
        facts,
    });
}

/// A node on which cart-1 was killed, and other stays well.
fn node_with_a_kill() -> Node {
    let mut node = Node::start();
    put_memory(&node, "cart-1");
    put_profile(&node, "cart-1");
    for seconds_ago in [50, 49, 48] {
        put_lookup(&mut node, seconds_ago, "cart-1", &[], "db.test");
    }
    put_lookup(&mut node, 30, "other", &[], "secret.test");
    node.agent.put(oom(20, "cart-1", "3f2a-7"));
    node
}

#[test]
fn a_report_has_what_the_history_has_of_its_target() {
    let node = node_with_a_kill();
    let path = node.folder.path().join("report.html");
    let write = |arguments: &[&str]| {
        let file = ["-w", path.to_str().unwrap()];
        node.podopsy(&[&["report"], arguments, &file].concat()).output().unwrap()
    };
    let sentence = "The OOM killer killed leak[42] of shop/cart-1";
    for arguments in [&["cart"][..], &["--incident", "3f2a"]] {
        let (_, err) = expect(&write(arguments), 0);
        assert!(err.contains(sentence) && err.contains("open it with any browser"), "{err}");
        let document = std::fs::read_to_string(&path).unwrap();
        for part in [
            sentence,
            "Content-Security-Policy",
            "limit 64 MiB",
            "memory reached 100 % of the limit",
            "db.test",
            "cart::total",
            "40 of 45 user stacks are complete",
            "id=\"oom-3f2a-7\"",
        ] {
            assert!(document.contains(part), "no {part} in the report of {arguments:?}");
        }
        assert!(!document.contains("secret.test"), "it has another pod's lookup");
        std::fs::remove_file(&path).unwrap();
    }
    let (_, err) = expect(&write(&["--incident", "none"]), 1);
    assert!(err.contains("no OOM has the id none"), "{err}");
    expect(&write(&["nothing"]), 1);
    expect(&write(&[]), 2);
    assert!(!path.exists());
    let (out, _) = expect(&node.podopsy(&["report", "other", "-w", "-"]).output().unwrap(), 0);
    assert!(
        out.starts_with("<!DOCTYPE html>")
            && out.contains("No kill is recorded in this time; 1 DNS query failed")
    );
}

#[test]
fn a_bundle_is_read_by_other_commands_without_an_agent() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut node = node_with_a_kill();
    let (file, report) = (node.folder.path().join("a.podopsy"), node.folder.path().join("a.html"));
    let (file, report) = (file.to_str().unwrap(), report.to_str().unwrap());
    let (_, err) = expect(&node.podopsy(&["bundle", "cart", "-w", file]).output().unwrap(), 0);
    assert!(err.contains("it holds names of pods"), "{err}");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let (before, _) = expect(&node.podopsy(&["timeline", "cart", "-o", "json"]).output().unwrap(), 0);
    node.agent.listener = None;
    let call = |arguments: &[&str]| {
        let mut command = Command::new(PODOPSY);
        command
            .args(arguments)
            .args(["--from", file])
            .env("PODOPSY_STATE_DIR", "/nonexistent")
            .env_remove("NODE_NAME");
        command.output().unwrap()
    };
    let (after, _) = expect(&call(&["timeline", "-o", "json"]), 0);
    assert_eq!(after, before);
    assert!(expect(&call(&["oom", "show"]), 0).0.starts_with("OOM 3f2a-7 of shop/cart-1/app"));
    assert!(expect(&call(&["oom", "show", "4"]), 1).1.contains("no OOM has the id"));
    expect(&call(&["timeline", "other"]), 1);
    expect(&call(&["report", "-w", report]), 0);
    assert!(std::fs::read_to_string(report).unwrap().contains("cart::total"));

    let redacted = node.folder.path().join("redacted.podopsy");
    let redacted = redacted.to_str().unwrap();
    let (_, err) = expect(&call(&["bundle", "--redact", "names,args", "-w", redacted]), 0);
    assert!(err.contains("numbers in place of other names"), "{err}");
    let output = Command::new(PODOPSY).args(["report", "--from", redacted, "-w", "-"]).output().unwrap();
    let (document, _) = expect(&output, 0);
    assert!(document.contains("cart::total") && document.contains("memory reached 100 %"));
    for name in ["shop", "cart-1", "db.test", "leak[42]"] {
        assert!(!document.contains(name), "{name} is left");
    }
    std::fs::write(redacted, "not a bundle").unwrap();
    let output = Command::new(PODOPSY).args(["timeline", "--from", redacted]).output().unwrap();
    assert!(expect(&output, 3).1.contains("is no podopsy bundle"));
}
