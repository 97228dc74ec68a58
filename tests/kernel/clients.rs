//! Real clients and real servers: each lookup is reported once, with its process, its pod and the application's result.
//!
//! The clients are the machine's own programs, as processes of a real pod's container: they have its cgroups, and a
//! network and a resolv.conf that the servers are in, too.
//!
//! Each test prints a table of clients by outcome: the reported lookups and their queries.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use crate::support;
use podopsy_harness::{ContainerSpec, Node, PodHandle, PodSpec};
use podopsy_model::lookup::LookupResult::{self, *};
use podopsy_model::{Detail, Event, Lookup};
use podopsy_recorder::{DnsOptions, RecorderOptions};
use support::clients::{self, Client};
use support::dns_sandbox::{DnsSandbox, SOON, Server, in_dns_sandbox};
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
        let fits = |it: &&Lookup| it.name == *name && expected.contains(&it.result);
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
    let clients: std::collections::BTreeSet<&str> = ran.iter().map(|ran| ran.client).collect();
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

#[test]
fn every_outcome_of_every_client_is_reported_once_with_its_process_and_pod() {
    let (node, image) = node();
    let (victims, pod) = (node.victims().to_owned(), clients_pod(&node, &image));
    let cgroup = pod.memory_cgroup("app").expect("its cgroup");
    let built = tempfile::tempdir().expect("a folder");
    let clients = clients::all(built.path());
    let mut recording = Recording::start(lookup_options(), pods_of(&node));
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
    wait(&mut recording, &[&ran]);
    let (seen, losses) = recording.stop();
    let wrong = compare(&seen, "a server that misbehaves", &ran);
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
        let pids: std::collections::BTreeSet<u32> = events.iter().map(|event| event.process.pid).collect();
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
