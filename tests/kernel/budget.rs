//! In a flood of DNS, the agent leaves out events in the order of its table, but never an OOM kill or a count.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::support;
use podopsy_model::{Detail, Event, EventKind};
use support::agent::{Agent, get, until};
use support::{MemoryCgroup, fine, in_own_network, query, require_root, respond};

/// A port that no other DNS traffic uses.
const PORT: u16 = 15_353;
const BUDGET: u64 = 20;
/// Queries of each kind per second, on a machine that is fast enough.
const FLOOD: u64 = 50;

/// The value of a sample on the agent's page.
fn sample(agent: &Agent, name: &str) -> Option<u64> {
    let (_, page) = get(&agent.address, "/metrics", "text/plain")?;
    let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    Some(line.rsplit(' ').next()?.parse::<f64>().ok()? as u64)
}

fn shedding(agent: &Agent, what: &str) -> Option<bool> {
    Some(sample(agent, &format!("podopsy_shedding{{what=\"{what}\"}}"))? == 1)
}

/// Answers by the first label: `slow` late, `no` with NXDOMAIN.
fn server() -> std::net::SocketAddr {
    let socket = UdpSocket::bind(("127.0.0.1", PORT)).expect("bind the server");
    let address = socket.local_addr().expect("its address");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let answer = match buffer.get(13..15) {
                Some(b"no") => respond(&buffer[..len], 0x8183, 1, 0),
                _ => fine(&buffer[..len]),
            };
            if buffer.get(13..15) == Some(b"sl") {
                std::thread::sleep(Duration::from_millis(3));
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    address
}

fn ask(server: std::net::SocketAddr, id: u16, name: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(support::agent::SOON)).expect("a timeout");
    socket.connect(server).expect("connect");
    socket.send(&query(id, name, 1)).expect("ask");
    let _ = socket.recv(&mut [0; 512]).expect("an answer");
}

fn failures(events: &[Event]) -> usize {
    events.iter().filter(|event| event.kind == EventKind::DnsFailure).count()
}

#[test]
fn a_flood_drops_events_in_order_but_no_kill_and_no_count() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let (port, config) = (PORT.to_string(), folder.path().join("agent.toml"));
    let set = |text: &str| std::fs::write(&config, text).expect("write the configuration");
    set(&format!("events-budget = {BUDGET}\n"));
    let agent = Agent::start_in(
        folder.path(),
        Path::new("/nonexistent/podopsy-test.sock"),
        &[
            &["--dns-port", &port, "--dns-answers", "--dns-slow-over", "2ms", "--growth", "off"],
            &["--config", config.to_str().expect("UTF-8"), "--cpu-budget", "0", "--memory-budget", "0"]
                as &[&str],
        ]
        .concat(),
    );
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, counted) = (stop.clone(), asked.clone());
    let flood = std::thread::spawn(move || {
        in_own_network(move || {
            let server = server();
            for id in 0.. {
                if stopped.load(Relaxed) {
                    break;
                }
                ["yes.test", "slow.test", "no.test"].into_iter().for_each(|name| ask(server, id, name));
                counted.fetch_add(1, Relaxed);
                std::thread::sleep(Duration::from_micros(1_000_000 / FLOOD));
            }
            server
        })
    });

    until("all of DNS left out", || shedding(&agent, "dns_failures").filter(|on| *on));
    let log = agent.log();
    let reported_at = |what: &str| log.find(&format!("left out from now on: {what}"));
    let order =
        ["dns_answers", "dns_slow", "dns_failures"].map(|what| reported_at(what).expect("it is reported"));
    assert!(order.is_sorted(), "{order:?}: {log}");
    assert_eq!(shedding(&agent, "growth"), Some(false), "events are not what growth costs");
    // Failures went on while the other two were left out already.
    let events = agent.events();
    let last = |of: &dyn Fn(&Event) -> bool| events.iter().rposition(of).expect("some were reported");
    let slow = last(&|event| matches!(&event.detail, Detail::Dns(dns) if dns.slow));
    let failed = last(&|event| event.kind == EventKind::DnsFailure);
    assert!(slow < failed, "slow answers were left out before failures: {slow}, {failed}");

    // A kill is still reported.
    let cgroup = MemoryCgroup::new("budget", 16 << 20);
    let _ = cgroup.command("head -c 64m /dev/zero | tail").status();
    let kill = until("kill while DNS is left out", || {
        agent.events().into_iter().find(|event| event.kind == EventKind::OomKill)
    });
    assert_eq!(kill.cgroup.id, cgroup.id());
    assert!(kill.losses.get("shed_dns_failures").is_some_and(|count| *count > 0), "{:?}", kill.losses);
    assert_eq!(shedding(&agent, "dns_failures"), Some(true));

    // After the flood, what was left out last comes back first.
    stop.store(true, Relaxed);
    flood.join().expect("the flood ends");
    let asked = asked.load(Relaxed);
    // The kernel's counts are exact, whether events were reported or not.
    let of_host = "namespace=\"\",pod=\"\",container=\"\"";
    for (outcome, each) in [("noerror", 2), ("nxdomain", 1)] {
        let name = format!("podopsy_dns_outcomes_total{{{of_host},outcome=\"{outcome}\"}}");
        until("every query in the counts", || sample(&agent, &name).filter(|count| *count == each * asked));
    }
    until("failures within the budget again", || shedding(&agent, "dns_failures").filter(|on| !on));
    assert_eq!(shedding(&agent, "dns_answers"), Some(true), "one step at a time");
    assert!(agent.log().contains("resumed: dns_failures"), "{}", agent.log());
    // A reload applies what it can and reports the rest; without a budget, nothing is left out.
    set("events-budget = 0\nloki-url = \"http://127.0.0.1:9\"\n");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent.pid() as i32), nix::sys::signal::SIGHUP)
        .expect("SIGHUP");
    until("answers without a budget", || shedding(&agent, "dns_answers").filter(|on| !on));
    let log = agent.log();
    assert!(
        log.contains("changed: events-budget")
            && log.contains("cannot apply without a restart of the agent: loki-url"),
        "{log}"
    );
    let before = failures(&agent.events());
    in_own_network(move || ask(server(), 7, "no.test"));
    until("failure, reported as before", || Some(()).filter(|()| failures(&agent.events()) > before));
    let shed = sample(&agent, "podopsy_shed_total{what=\"dns_failures\"}").expect("a count");
    assert!(shed > 0 && shed < asked && before as u64 + shed == asked, "{before} + {shed} of {asked}");
}

#[test]
fn the_profile_is_given_up_first_and_a_kill_is_still_reported() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state").display().to_string();
    // No agent stays within it: it is less than a clock tick in ten seconds.
    let agent = Agent::start_in(
        folder.path(),
        Path::new("/nonexistent/podopsy-test.sock"),
        &[
            &["--state-dir", &state, "--profile-hz", "97", "--keep-every", "1s", "--growth", "off"],
            &["--cpu-budget", "0.0001", "--events-budget", "0", "--memory-budget", "0"] as &[&str],
        ]
        .concat(),
    );
    until("profile left out", || shedding(&agent, "profile").filter(|on| *on));
    let log = agent.log();
    let first = log.find("left out from now on: ").expect("it is reported");
    assert!(log[first..].starts_with("left out from now on: profile"), "{log}");
    // Each minute is counted, and no profile is kept.
    until("minutes in the count", || {
        sample(&agent, "podopsy_shed_total{what=\"profile\"}").filter(|n| *n >= 2)
    });
    let cgroup = MemoryCgroup::new("budget-profile", 16 << 20);
    let _ = cgroup.command("head -c 64m /dev/zero | tail").status();
    let kill = until("kill while the profile is left out", || {
        agent.events().into_iter().find(|event| event.kind == EventKind::OomKill)
    });
    assert_eq!(kill.cgroup.id, cgroup.id());
    assert!(kill.losses.get("shed_profile").is_some_and(|count| *count > 0), "{:?}", kill.losses);
    assert_eq!(shedding(&agent, "profile"), Some(true));
}
