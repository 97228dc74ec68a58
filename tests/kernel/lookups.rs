//! Lookups of real clients to the victim `resolver`: each is reported once, with the application's result.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::support;
use podopsy_harness::{ContainerSpec, Dns, Node, PodSpec};
use podopsy_model::lookup::{LookupResult, NameKnownBy};
use podopsy_model::{Detail, Event, EventKind, Lookup};
use podopsy_pods::PodsOptions;
use podopsy_recorder::{DnsOptions, RecorderOptions};
use support::clients::PYTHON;
use support::dns_sandbox::{SOON, Server, in_dns_sandbox};
use support::{Recording, dns, no_runtime, options};

fn lookup_options() -> RecorderOptions {
    let dns = DnsOptions { answers: true, lookups: true, ..dns() };
    RecorderOptions { oom: false, dns: Some(dns), ..options() }
}

fn lookups(events: &[Event]) -> impl Iterator<Item = (&Event, &Lookup)> {
    events.iter().filter_map(|event| match &event.detail {
        Detail::Lookup(lookup) => Some((event, lookup.as_ref())),
        _ => None,
    })
}

fn of_process(events: &[Event], pid: u32) -> Vec<&Lookup> {
    lookups(events).filter(|(event, _)| event.process.pid == pid).map(|(_, lookup)| lookup).collect()
}

/// glibc's resolver, by a Python process that reads names and prints results, one per line.
struct Glibc {
    child: Child,
    names: Option<ChildStdin>,
    results: BufReader<ChildStdout>,
}

impl Glibc {
    fn start() -> Glibc {
        const PROGRAM: &str = "
import socket, sys
for line in sys.stdin:
    try: print('ok', socket.getaddrinfo(line.strip(), 80)[0][4][0], flush=True)
    except OSError as error: print('error', error, flush=True)
";
        let mut child = Command::new(PYTHON)
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start python3: apt-get install python3");
        let (names, results) = (child.stdin.take(), child.stdout.take().expect("its output"));
        Glibc { child, names, results: BufReader::new(results) }
    }

    fn look_up(&mut self, name: &str) -> String {
        writeln!(self.names.as_mut().expect("open"), "{name}").expect("ask");
        let mut line = String::new();
        self.results.read_line(&mut line).expect("its result");
        line.trim().to_owned()
    }
}

impl Drop for Glibc {
    fn drop(&mut self) {
        self.names = None;
        let _ = self.child.wait();
    }
}

fn victims() -> PathBuf {
    podopsy_harness::victims(&|what| eprintln!("{what}")).expect("build the victims")
}

const CLUSTER: &str =
    "nameserver 127.0.0.1\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";

/// glibc's results for some names, and the recorded events.
struct Asked {
    results: Vec<String>,
    pid: u32,
    seen: Vec<Event>,
}

impl Asked {
    fn lookups(&self) -> Vec<&Lookup> {
        of_process(&self.seen, self.pid)
    }
}

/// Looks names up by glibc, one after the other, in a sandbox with this resolv.conf and the victim `resolver`.
fn ask_by_glibc(resolv_conf: String, names: &'static [&'static str]) -> Asked {
    ask_by_glibc_with(lookup_options(), resolv_conf, names, names.len())
}

/// Waits for at least so many lookups.
fn ask_by_glibc_with(
    options: RecorderOptions,
    resolv_conf: String,
    names: &'static [&'static str],
    least: usize,
) -> Asked {
    let victims = victims();
    let mut recording = Recording::start(options, no_runtime());
    let (results_sender, asked) = std::sync::mpsc::channel();
    let (done, go_on) = std::sync::mpsc::channel::<()>();
    let sandbox = std::thread::spawn(move || {
        in_dns_sandbox(move |sandbox| {
            sandbox.resolv_conf(&resolv_conf);
            let _server = Server::ours(&victims);
            let mut glibc = Glibc::start();
            let results: Vec<String> = names.iter().map(|name| glibc.look_up(name)).collect();
            results_sender.send((glibc.child.id(), results)).expect("the test listens");
            // The process stays, as applications do, so that its resolv.conf can be read.
            let _ = go_on.recv();
        });
    });
    let (pid, results) = asked.recv().expect("the lookups were made");
    recording.until("a lookup of each name", SOON, |seen| of_process(seen, pid).len() >= least);
    recording.receive_for(Duration::from_millis(1500));
    drop(done);
    sandbox.join().expect("the sandbox");
    Asked { results, pid, seen: recording.seen }
}

#[test]
fn glibcs_search_for_an_external_name_is_one_lookup_with_its_search_path_misses() {
    let asked = ask_by_glibc(CLUSTER.to_owned(), &["api.example.com", "nxdomain-1.example.com", "cart"]);
    let results = &asked.results;
    assert!(
        results[0].starts_with("ok 10.96.")
            && results[1].starts_with("error")
            && results[2].starts_with("ok"),
        "{results:?}"
    );
    let all = asked.lookups();
    assert_eq!(all.len(), 3, "{all:#?}");
    // Their order depends on how long each was held back.
    let facts = |name: &str| {
        let it = all.iter().find(|it| it.name == name).unwrap_or_else(|| panic!("{name}: {all:#?}"));
        (it.result, it.queries, it.search_path_misses.queries, it.search_path_misses.names.len())
    };
    assert_eq!(facts("api.example.com"), (LookupResult::Answered, 8, 6, 3));
    assert_eq!(facts("nxdomain-1.example.com"), (LookupResult::Nxdomain, 8, 6, 3));
    assert_eq!(facts("cart"), (LookupResult::Answered, 2, 0, 0));
    for it in &all {
        assert_eq!((it.types.join(" "), it.name_known_by), ("A AAAA".to_owned(), NameKnownBy::ResolvConf));
        let search = it.search.as_ref().expect("its resolv.conf was read");
        assert_eq!((search.domains.len(), search.ndots), (3, 5));
        assert_eq!(it.resolvers, ["127.0.0.1:53".parse().unwrap()]);
        assert!(it.wait_ns > 0 && it.wait_ns < SOON.as_nanos() as u64);
    }
}

#[test]
fn a_pods_lookup_is_one_with_its_pods_name_and_its_own_search_list() {
    let node = Node::up().unwrap_or_else(|error| panic!("{error:#}"));
    let image = node.victims_image("registry.podopsy.test/shop/web:1.0").expect("an image of the victims");
    let _dns = node.resolver("answer").expect("a resolver");
    let pods = PodsOptions {
        cri_socket: Some(node.cri_socket().to_owned()),
        log_pods: node.pod_logs(),
        ..PodsOptions::default()
    };
    let mut recording = Recording::start(lookup_options(), pods);
    let command = ["lookup", "api.example.com", "nxdomain-1.example.com", "--every", "20000"];
    let container = ContainerSpec::new("web", &image).command(command);
    let resolv = Dns::cluster(node.dns_address(), "shop");
    let _pod =
        node.run_pod(PodSpec::new("shop", "cart").dns(resolv).container(container)).expect("run the pod");
    let in_pod = |seen: &[Event]| -> Vec<(Event, Lookup)> {
        let of_pod = |event: &Event| {
            event
                .pod
                .as_ref()
                .is_some_and(|pod| (pod.namespace.as_str(), pod.name.as_str()) == ("shop", "cart"))
        };
        lookups(seen)
            .filter(|(event, _)| of_pod(event))
            .map(|(event, it)| (event.clone(), it.clone()))
            .collect()
    };
    recording.until("two lookups of the pod", SOON, |seen| in_pod(seen).len() >= 2);
    let all = in_pod(&recording.seen);
    for (index, (name, result)) in
        [("api.example.com", LookupResult::Answered), ("nxdomain-1.example.com", LookupResult::Nxdomain)]
            .into_iter()
            .enumerate()
    {
        let (event, it) = &all[index];
        assert_eq!((event.kind, event.process.comm.as_str()), (EventKind::DnsLookup, "lookup"));
        assert_eq!(event.container.as_ref().map(|container| container.name.as_str()), Some("web"));
        assert_eq!(
            (it.name.as_str(), it.result, it.queries, it.search_path_misses.queries),
            (name, result, 8, 6),
            "{it:#?}"
        );
        assert_eq!(
            it.search.as_ref().map(|search| search.domains[0].as_str()),
            Some("shop.svc.cluster.local")
        );
    }
}

#[test]
fn a_search_that_ends_in_silence_is_one_timeout_with_a_diagnosis() {
    // The search domains answer, and the name itself does not: it is asked for twice, with the same id.
    let asked = ask_by_glibc(format!("{CLUSTER}options timeout:1 attempts:2\n"), &["silent.example.com"]);
    assert!(asked.results[0].starts_with("error"), "{:?}", asked.results);
    let all = asked.lookups();
    assert_eq!(all.len(), 1, "{all:#?}");
    let it = all[0];
    // A query that is sent again just after its timeout (one second, for client and recorder) is a new query.
    assert!((8..=10).contains(&it.queries), "{it:#?}");
    assert_eq!((it.search_path_misses.queries, it.sends), (6, 10), "{it:#?}");
    assert_eq!((it.name.as_str(), it.result), ("silent.example.com", LookupResult::Timeout));
    let diagnosis = it.diagnosis.as_ref().expect("a timeout has one");
    assert!(diagnosis.text.contains("no answer was seen to come"), "{diagnosis:?}");
}

#[test]
fn if_only_failures_are_recorded_each_of_many_failed_lookups_is_counted() {
    // Nine lookups of each, without a pause. The name with the final dot could also be `servfail-1` of a pod of `shop`.
    const NAMES: [&str; 18] = {
        let mut names = ["servfail.example.com"; 18];
        let mut i = 0;
        while i < names.len() {
            names[i] = "servfail-1.shop.svc.cluster.local.";
            i += 2;
        }
        names
    };
    let dns = DnsOptions { lookups: true, ..dns() };
    let options = RecorderOptions { oom: false, dns: Some(dns), ..options() };
    // Before its resolv.conf has been read, the first of a process is not sure to have failed: two attempts are usual.
    let resolv_conf = format!("{CLUSTER}options timeout:1 attempts:1\n");
    let asked = ask_by_glibc_with(options, resolv_conf, &NAMES, NAMES.len() - 1);
    assert!(asked.results.iter().all(|result| result.starts_with("error")), "{:?}", asked.results);
    let all = asked.lookups();
    for (name, queries) in [("servfail.example.com", 8), ("servfail-1.shop.svc.cluster.local", 2)] {
        let of_name: Vec<_> =
            all.iter().filter(|it| it.name == name && it.result == LookupResult::Servfail).collect();
        assert!((8..=9).contains(&of_name.len()), "{name}: {all:#?}");
        assert!(of_name.iter().map(|it| it.queries).sum::<u32>() >= 8 * queries, "{name}: {all:#?}");
    }
}
