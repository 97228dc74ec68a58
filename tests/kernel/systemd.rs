//! The notifications of a unit with `Type=notify`: ready, watchdog, reloading, stopping.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::support;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::agent::{Agent, SOON};

#[test]
fn a_unit_notifies_systemd_of_start_watchdog_reload_and_stop() {
    support::require_root();
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("systemd's socket");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let by = ["env", &variable, "WATCHDOG_USEC=2000000"];
    let mut agent = Agent::start_by(
        &by,
        dir.path(),
        Path::new("/nonexistent/podopsy-test.sock"),
        &["--log-format", "json"],
    );
    let notification = || {
        let mut bytes = [0; 512];
        let len = socket.recv(&mut bytes).expect("a notification in time");
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let next_but_watchdog = || std::iter::repeat_with(notification).find(|text| !text.contains("WATCHDOG=1"));
    let send = |signal| kill(Pid::from_raw(agent.pid() as i32), signal).expect("send it a signal");

    assert_eq!(notification().trim(), "READY=1");
    for _ in 0..2 {
        assert_eq!(notification().trim(), "WATCHDOG=1");
    }
    send(Signal::SIGHUP);
    let reloading = next_but_watchdog().expect("a notification");
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert_eq!(next_but_watchdog().expect("a notification").trim(), "READY=1");
    send(Signal::SIGTERM);
    assert_eq!(next_but_watchdog().expect("a notification").trim(), "STOPPING=1");
    assert!(agent.process.0.wait().expect("its end").success(), "{}", agent.log());

    // The log, which the journal gets, is JSON objects.
    let log = agent.log();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    let is_recording =
        |line: &Value| line["message"].as_str().is_some_and(|message| message.contains("recording"));
    let line = lines.iter().find(|line| is_recording(line)).expect("a line about the recording");
    assert!(line["level"] == "INFO" && line["timestamp"].is_string() && line["containers"] == 0, "{line}");
}
