//! Rings that are not drained: records that did not fit are counted exactly.

use std::net::UdpSocket;
use std::process::Stdio;

use crate::support;
use podopsy_model::Losses;
use podopsy_probes::ring::Ring;
use podopsy_probes::{DnsProbeOptions, ProbeOptions, Probes, Rate};
use support::{MemoryCgroup, in_own_network, kills_by_vmstat, query, require_root, respond};

/// Loads the probes, runs `work` without draining the rings, and returns how many records were in the ring after it,
/// and all losses.
fn unread(
    options: ProbeOptions,
    ring: impl FnOnce(&mut Probes) -> anyhow::Result<Ring>,
    work: impl FnOnce(),
) -> (u64, Losses) {
    require_root();
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    let _guard = runtime.enter();
    let mut probes = Probes::load(&options).unwrap_or_else(|error| panic!("load the probes: {error:#}"));
    let mut ring = ring(&mut probes).expect("the ring");
    let losses = probes.losses().expect("the losses");
    work();
    let mut read = 0;
    ring.drain_now(|_| read += 1);
    (read, losses.read())
}

#[test]
fn kills_that_did_not_fit_are_counted_to_the_last_one() {
    // The ring holds 148 of them.
    const KILLS: u64 = 170;
    let cgroup = MemoryCgroup::new("ring", 4 << 20);
    let before = kills_by_vmstat();
    let (read, losses) = unread(
        ProbeOptions { oom: true, ..ProbeOptions::default() },
        |probes| Ok(probes.oom_maps()?.events),
        || {
            // One shell outside of the cgroup, and one child per kill inside.
            let script = format!(
                "for n in $(seq {KILLS}); do sh -c 'echo $$ > {}/cgroup.procs; exec tail /dev/zero'; done",
                cgroup.path.display()
            );
            let mut shell = std::process::Command::new("/bin/sh");
            let status = shell.args(["-c", &script]).stderr(Stdio::null()).status().expect("run the shell");
            assert_eq!(status.code(), Some(137), "the last child was to be killed");
        },
    );
    let kills = kills_by_vmstat() - before;
    assert!(kills >= KILLS, "{kills} kills");
    let lost = losses.get("oom_ring").copied().unwrap_or(0);
    assert!(lost > 0, "the ring was to be filled: {read} read");
    assert_eq!(read + lost, kills, "{losses:?}");
}

#[test]
fn sigkills_that_did_not_fit_are_counted_to_the_last_one() {
    // The ring holds 585 of them.
    const KILLS: u64 = 700;
    let cgroup = MemoryCgroup::new("sigkill-ring", 256 << 20);
    let procs = cgroup.path.join("cgroup.procs");
    let (read, losses) = unread(
        ProbeOptions { sigkill: true, ..ProbeOptions::default() },
        |probes| Ok(probes.sigkill_maps()?.events),
        || {
            // The killer is outside of the cgroup: kills within a cgroup are not reported.
            for _ in 0..KILLS {
                let mut victim =
                    std::process::Command::new("/bin/sleep").arg("600").spawn().expect("start it");
                std::fs::write(&procs, victim.id().to_string()).expect("move it into the cgroup");
                victim.kill().and_then(|()| victim.wait()).expect("kill it");
            }
        },
    );
    let lost = losses.get("sigkill_ring").copied().unwrap_or(0);
    assert!(lost > 0, "the ring was to be filled: {read} read");
    // Kills by other processes may be among them.
    assert!(read + lost >= KILLS && read + lost < KILLS + 100, "{read} read, {losses:?}");
}

#[test]
fn failed_lookups_that_did_not_fit_are_counted_to_the_last_one() {
    // The ring holds 1,149 of them.
    const FAILURES: u16 = 2000;
    // Without the limit of events per container: that is another loss, which `dns_counts` tests.
    let dns = Some(DnsProbeOptions { rate: Rate { a_second: 0, burst: 0 }, ..DnsProbeOptions::default() });
    let (read, losses) = unread(
        ProbeOptions { dns, ..ProbeOptions::default() },
        |probes| Ok(probes.dns_maps()?.events),
        || {
            in_own_network(|| {
                let server = UdpSocket::bind("127.0.0.1:53").expect("bind port 53 in our own namespace");
                let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
                client.connect("127.0.0.1:53").expect("connect");
                let mut buffer = [0; 512];
                for id in 0..FAILURES {
                    client.send(&query(id, "full.test", 1)).expect("ask");
                    let (len, from) = server.recv_from(&mut buffer).expect("the query");
                    server.send_to(&respond(&buffer[..len], 0x8183, 1, 0), from).expect("answer");
                    client.recv(&mut buffer).expect("the answer");
                }
            });
        },
    );
    let lost = losses.get("dns_ring").copied().unwrap_or(0);
    assert!(lost > 0, "the ring was to be filled: {read} read");
    assert_eq!(read + lost, u64::from(FAILURES), "{losses:?}");
}
