//! What systemd is told of a unit with `Type=notify`: that it records, that it lives, that it reloads, and that it ends.

mod support;

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::agent::{Agent, SOON};

#[test]
fn a_unit_says_when_it_records_that_it_lives_that_it_reloads_and_that_it_ends() {
    support::require_root();
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("systemd's socket");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    let place = format!("NOTIFY_SOCKET={}", path.display());
    let by = ["env", &place, "WATCHDOG_USEC=2000000"];
    let mut agent = Agent::start_by(
        &by,
        dir.path(),
        Path::new("/nonexistent/podopsy-test.sock"),
        &["--log-format", "json"],
    );
    let told = || {
        let mut bytes = [0; 512];
        let len = socket.recv(&mut bytes).expect("a word in time");
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let other_than_life = || std::iter::repeat_with(told).find(|word| !word.contains("WATCHDOG=1"));
    let tell = |signal| kill(Pid::from_raw(agent.pid() as i32), signal).expect("send it a signal");

    assert_eq!(told().trim(), "READY=1");
    for _ in 0..2 {
        assert_eq!(told().trim(), "WATCHDOG=1");
    }
    tell(Signal::SIGHUP);
    let reloading = other_than_life().expect("a word");
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert_eq!(other_than_life().expect("a word").trim(), "READY=1");
    tell(Signal::SIGTERM);
    assert_eq!(other_than_life().expect("a word").trim(), "STOPPING=1");
    assert!(agent.process.0.wait().expect("its end").success(), "{}", agent.log());

    // The journal, or whoever ships it, gets objects.
    let log = agent.log();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    let says = |line: &Value| line["message"].as_str().is_some_and(|message| message.contains("recording"));
    let line = lines.iter().find(|line| says(line)).expect("that it records");
    assert!(line["level"] == "INFO" && line["timestamp"].is_string() && line["containers"] == 0, "{line}");
}
