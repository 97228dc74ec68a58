//! Real clients and real servers: each lookup is reported once, with its process, its pod and the application's result.
//!
//! The clients are the machine's own programs, as processes of a real pod's container: they have its cgroups, and a
//! network and a resolv.conf that the servers are in, too.
//!
//! Each test prints a table of clients by outcome: the reported lookups and their queries.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support;
use podopsy_harness::{ContainerSpec, Node, PodHandle, PodSpec};
use podopsy_model::event::Protocol;
use podopsy_model::lookup::LookupResult::{self, *};
use podopsy_model::{Detail, DnsTransaction, Event, EventKind, Lookup, Outcome};
use podopsy_recorder::{DnsOptions, RecorderOptions};
use support::clients::{self, Client};
use support::dns_sandbox::{DnsSandbox, SOON, Server, in_dns_sandbox};
use support::scripted::{ELSEWHERE, SITUATIONS, ScriptedServer, Situation};
use support::{Recording, dns, node, options, pods_of};

fn lookup_options() -> RecorderOptions {
    RecorderOptions {
        oom: false,
        dns: Some(DnsOptions { answers: true, lookups: true, ..dns() }),
        ..options()
    }
}

fn lookups_of(events: &[Event], pid: u32) -> impl Iterator<Item = (&Event, &Lookup)> {
    events.iter().filter(move |event| event.process.pid == pid).filter_map(|event| match &event.detail {
        Detail::Lookup(lookup) => Some((event, lookup.as_ref())),
        _ => None,
    })
}

fn of_process(events: &[Event], pid: u32) -> Vec<&Lookup> {
    lookups_of(events, pid).map(|(_, lookup)| lookup).collect()
}

/// Runs the pod in whose container the clients are started.
fn clients_pod(node: &Node, image: &str) -> PodHandle {
    let container = ContainerSpec::new("app", image).command(["pause"]);
    node.run_pod(PodSpec::new("shop", "clients").container(container)).expect("run the pod")
}

/// `namespace/pod/container`; nothing: it was not named.
fn pod_of(event: &Event) -> String {
    let pod = event.pod.as_ref().map(|pod| format!("{}/{}/", pod.namespace, pod.name));
    pod.unwrap_or_default() + event.container.as_ref().map_or("", |container| &container.name)
}

/// A name and the results that are correct for it, which depend on the client.
type Case = (&'static str, &'static [LookupResult]);

/// The results that the victim `resolver` causes, by the name's first label.
const MISBEHAVING: [Case; 10] = [
    ("fine.example.com", &[Answered]),
    ("nxdomain-2.example.com", &[Nxdomain]),
    ("servfail.example.com", &[Servfail]),
    ("refused.example.com", &[Refused]),
    ("formerr.example.com", &[Formerr]),
    ("nodata.example.com", &[Nodata]),
    // musl before 1.2.4 knows no TCP.
    ("truncated.example.com", &[Answered, Truncated]),
    ("silent.example.com", &[Timeout]),
    ("late-1700.example.com", &[Late]),
    ("malformed-loop.example.com", &[Malformed, Timeout]),
];

/// The results that real servers can be made to cause.
const REAL: [Case; 6] = [
    ("fine.example.com", &[Answered]),
    ("nxdomain.example.com", &[Nxdomain]),
    ("nodata.example.com", &[Nodata]),
    ("refused.test", &[Refused]),
    ("broken.test", &[Servfail]),
    ("truncated.example.com", &[Answered, Truncated]),
];

/// A client that ran.
struct Ran {
    client: &'static str,
    name: &'static str,
    expected: &'static [LookupResult],
    pid: u32,
}

/// Runs every client with every name, all at once, against the server at `address`.
fn run(sandbox: &DnsSandbox, address: &str, cgroup: &Path, clients: &[Client], cases: &[Case]) -> Vec<Ran> {
    sandbox.resolv_conf(&format!("nameserver {address}\noptions ndots:1 timeout:3 attempts:1\n"));
    let mut children = Vec::new();
    for client in clients {
        for &(name, expected) in cases {
            children.push((client.name, name, expected, client.start(name, cgroup)));
        }
    }
    let ended = |(client, name, expected, mut child): (_, _, _, std::process::Child)| {
        child.wait().expect("it ends");
        Ran { client, name, expected, pid: child.id() }
    };
    children.into_iter().map(ended).collect()
}

/// Waits for the lookups of all clients, and a little longer for others that must not follow.
fn wait(recording: &mut Recording, ran: &[&[Ran]]) {
    let is_reported =
        |seen: &[Event]| ran.iter().copied().flatten().all(|ran| !of_process(seen, ran.pid).is_empty());
    // Not `until`: the table shows which one is missing.
    let end = Instant::now() + SOON;
    while !is_reported(&recording.seen) && Instant::now() < end {
        recording.receive_for(std::time::Duration::from_millis(500));
    }
    recording.receive_for(std::time::Duration::from_millis(1500));
}

/// Prints the lookups of all clients; returns those that are wrong.
fn compare(seen: &[Event], title: &str, ran: &[Ran]) -> Vec<String> {
    let mut table: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for Ran { client, name, expected, pid } in ran {
        let found = of_process(seen, *pid);
        let results: Vec<&str> = found.iter().map(|it| it.result.as_str()).collect();
        let queries: u32 = found.iter().map(|it| it.queries).sum();
        for (event, _) in lookups_of(seen, *pid).filter(|(event, _)| pod_of(event) != "shop/clients/app") {
            wrong.push(format!("{title}: {client} {name}: of pod {:?}", pod_of(event)));
        }
        table.entry(name).or_default().insert(client, format!("{} ({queries})", results.join("+")));
        let fits = |it: &&Lookup| it.name == name.to_ascii_lowercase() && expected.contains(&it.result);
        // busybox asks again after two and a half seconds, which is longer than the recorder waits in these tests.
        // Between glibc's attempts with larger buffers there may be more time on a busy machine than the recorder
        // allows.
        let twice = match *client {
            "busybox" => name.starts_with("silent"),
            "glibc" | "python" => name.starts_with("truncated"),
            _ => false,
        };
        if found.is_empty() || found.len() > 1 + usize::from(twice) || !found.iter().all(fits) {
            let steps = |it: &&Lookup| {
                let step = |step: &podopsy_model::lookup::LookupTransaction| {
                    format!("{:?} {:?} {:?}", step.qtype, step.outcome, step.protocol)
                };
                format!("{} {:?}", it.name, it.transactions.iter().map(step).collect::<Vec<_>>())
            };
            let steps: Vec<String> = found.iter().map(steps).collect();
            wrong.push(format!(
                "{title}: {client} {name}: {results:?} instead of one of {expected:?}; {steps:?}"
            ));
        }
    }
    println!("{title}: the reported lookups, and the queries of each");
    let clients: BTreeSet<&str> = ran.iter().map(|ran| ran.client).collect();
    let line = |first: &str, cells: Vec<&str>| {
        let cells: String = cells.iter().map(|cell| format!(" {cell:16}")).collect();
        println!("{}", format!("{first:28}{cells}").trim_end());
    };
    line("", clients.iter().copied().collect());
    for (name, by_client) in &table {
        line(name, clients.iter().map(|client| by_client.get(client).map_or("", String::as_str)).collect());
    }
    wrong
}

/// How long a client waits before it is killed: less than a resolver's shortest timeout.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(300);

/// Runs the clients of a situation in a sandbox of its own; returns each with the failures that are expected.
fn meet(situation: &Situation, cgroup: &Path, clients: &[Client]) -> Vec<(Ran, BTreeSet<Outcome>)> {
    let &Situation { name, servers, tcp, options, is_given_up, clients: expected } = situation;
    let (cgroup, clients) = (cgroup.to_owned(), clients.to_vec());
    in_dns_sandbox(move |sandbox| {
        let nameservers: String =
            servers.iter().map(|(address, _)| format!("nameserver {address}\n")).collect();
        sandbox.resolv_conf(&format!("{nameservers}options ndots:1 attempts:1 {options}\n"));
        let servers: Vec<ScriptedServer> =
            servers.iter().map(|(address, udp)| ScriptedServer::start(address, *udp, tcp)).collect();
        let mut children = Vec::new();
        for (client, results, failures) in expected {
            let program = clients.iter().find(|it| it.name == *client).expect("a client of that name");
            let (asked, mut child) = (servers[0].asked(), program.start(name, &cgroup));
            if is_given_up {
                servers[0].wait_until_asked(asked + 2);
                std::thread::sleep(GIVEN_UP_AFTER);
                child.kill().expect("kill the client");
            }
            let ran = Ran { client, name, expected: results, pid: child.id() };
            children.push((child, ran, failures.iter().copied().collect()));
        }
        let ended = |(mut child, ran, failures): (std::process::Child, _, _)| {
            child.wait().expect("it ends");
            (ran, failures)
        };
        children.into_iter().map(ended).collect()
    })
}

/// Runs all situations at once.
fn meet_all(cgroup: &Path, clients: &[Client]) -> Vec<(Ran, BTreeSet<Outcome>)> {
    std::thread::scope(|scope| {
        let start = |situation| scope.spawn(move || meet(situation, cgroup, clients));
        let running: Vec<_> = SITUATIONS.iter().map(start).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("the situation is over")).collect()
    })
}

/// The queries of a client whose failures are not those that are expected, or are reported twice.
fn compare_failures(seen: &[Event], ran: &Ran, expected: &BTreeSet<Outcome>) -> Option<String> {
    let of_process = seen.iter().filter(|it| it.process.pid == ran.pid && it.kind == EventKind::DnsFailure);
    let failures: Vec<&DnsTransaction> = of_process
        .filter_map(|event| match &event.detail {
            Detail::Dns(transaction) => Some(transaction),
            _ => None,
        })
        .collect();
    let outcomes: BTreeSet<Outcome> = failures.iter().map(|it| it.outcome).collect();
    let by_udp = failures.iter().filter(|it| it.protocol == Protocol::Udp);
    let queries: Vec<_> = by_udp.map(|it| (it.id, it.qtype.as_deref(), it.server)).collect();
    let is_duplicated = queries.iter().collect::<BTreeSet<_>>().len() < queries.len();
    let is_right = |it: &&DnsTransaction| match ran.name {
        "from-elsewhere.test" => {
            it.facts.answered_from.is_some_and(|from| from.ip().to_string() == ELSEWHERE)
        }
        "given-up.test" => (GIVEN_UP_AFTER.as_nanos() as u64..1_000_000_000).contains(&it.latency_ns),
        "bad-version.test" => it.rcode == Some(16),
        _ => true,
    };
    let is_as_expected = outcomes == *expected && !is_duplicated && failures.iter().all(is_right);
    (!is_as_expected)
        .then(|| format!("{} {}: instead of the failures {expected:?}: {failures:#?}", ran.client, ran.name))
}

#[test]
fn every_outcome_of_every_client_is_reported_once_with_its_process_and_pod() {
    let (node, image) = node();
    let (victims, pod) = (node.victims().to_owned(), clients_pod(&node, &image));
    let cgroup = pod.memory_cgroup("app").expect("its cgroup");
    let built = tempfile::tempdir().expect("a folder");
    let clients = clients::all(built.path());
    let mut recording = Recording::start(lookup_options(), pods_of(&node));
    let met = meet_all(&cgroup, &clients);
    let ran = in_dns_sandbox(move |sandbox| {
        let _server = Server::ours(&victims);
        let mut all = run(sandbox, "127.0.0.1", &cgroup, &clients, &MISBEHAVING);
        // No server listens there. musl's socket is not connected and gets no ICMP error.
        let (others, connected): (Vec<Client>, Vec<Client>) =
            clients.into_iter().partition(|client| client.name == "musl");
        all.extend(run(sandbox, "127.0.0.9", &cgroup, &connected, &[("closed.example.com", &[Unreachable])]));
        all.extend(run(sandbox, "127.0.0.9", &cgroup, &others, &[("closed.example.com", &[Timeout])]));
        all
    });
    let (met, failures): (Vec<Ran>, Vec<_>) = met.into_iter().unzip();
    wait(&mut recording, &[&ran, &met]);
    let (seen, losses) = recording.stop();
    let mut wrong = compare(&seen, "a server that misbehaves", &ran);
    wrong.extend(compare(&seen, "servers and networks that misbehave", &met));
    let is_wrong = |(ran, expected): (&Ran, &BTreeSet<Outcome>)| compare_failures(&seen, ran, expected);
    wrong.extend(met.iter().zip(&failures).filter_map(is_wrong));
    assert!(wrong.is_empty(), "{}; losses: {losses:?}", wrong.join("\n"));
}

#[test]
fn real_servers_get_the_same_from_every_client_and_a_forwarder_asks_for_itself() {
    const BIND: &str = "127.0.0.2";
    const DNSMASQ: &str = "127.0.0.3";
    let (node, image) = node();
    let pod = clients_pod(&node, &image);
    let cgroup = pod.memory_cgroup("app").expect("its cgroup");
    let built = tempfile::tempdir().expect("a folder");
    let clients = clients::all(built.path());
    let mut recording = Recording::start(lookup_options(), pods_of(&node));
    let (of_bind, of_dnsmasq, forwarded, forwarder) = in_dns_sandbox(move |sandbox| {
        let _bind = Server::bind(sandbox, BIND);
        let dnsmasq = Server::dnsmasq(sandbox, DNSMASQ, BIND);
        let of_bind = run(sandbox, BIND, &cgroup, &clients, &REAL);
        let of_dnsmasq = run(sandbox, DNSMASQ, &cgroup, &clients, &REAL);
        let glibc = clients.into_iter().filter(|client| client.name == "glibc").collect::<Vec<_>>();
        let forwarded = run(sandbox, DNSMASQ, &cgroup, &glibc, &[("forwarded.example.com", &[Answered])]);
        (of_bind, of_dnsmasq, forwarded, dnsmasq.pid())
    });
    wait(&mut recording, &[&of_bind, &of_dnsmasq, &forwarded]);
    let (seen, losses) = recording.stop();
    let mut wrong = compare(&seen, "BIND", &of_bind);
    wrong.extend(compare(&seen, "dnsmasq", &of_dnsmasq));
    wrong.extend(compare(&seen, "dnsmasq, which asks BIND", &forwarded));
    assert!(wrong.is_empty(), "{}; losses: {losses:?}", wrong.join("\n"));
    // The forwarder sends the same question to BIND: that is a lookup of its own, and no other process has it.
    let of_name = |name: &str, events: &[Event]| -> Vec<(u32, LookupResult, String)> {
        let pids: BTreeSet<u32> = events.iter().map(|event| event.process.pid).collect();
        let facts = |pid: u32| {
            let all = of_process(events, pid).into_iter().filter(|it| it.name == name);
            all.map(|it| (pid, it.result, format!("{:?}", it.resolvers))).collect::<Vec<_>>()
        };
        pids.into_iter().flat_map(facts).collect()
    };
    let mut chain = of_name("forwarded.example.com", &seen);
    chain.sort_by_key(|(pid, ..)| *pid == forwarder);
    assert_eq!(
        chain,
        [
            (forwarded[0].pid, Answered, format!("[{DNSMASQ}:53]")),
            (forwarder, Answered, format!("[{BIND}:53]"))
        ]
    );
    // It forwards nothing that it can answer itself.
    assert!(
        of_process(&seen, forwarder)
            .iter()
            .all(|it| ["forwarded.example.com", "broken.test"].contains(&&*it.name))
    );
}
