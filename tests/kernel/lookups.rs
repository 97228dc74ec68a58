//! Lookups of real clients against a server of ours: each is told once, with what the application got.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use podopsy_agent::model::lookup::{LookupResult, NameKnownBy};
use podopsy_agent::model::{Detail, Event, Kind, Lookup, Outcome};
use podopsy_agent::pods::Options as PodsOptions;
use podopsy_agent::recorder::{DnsOptions, Options};
use podopsy_harness::{ContainerSpec, Dns, Node, PodSpec};
use support::{Recording, dns, no_runtime, options};

/// A second of timeout and a second of hold come to each lookup, and clients wait three seconds of their own.
const SOON: Duration = Duration::from_secs(90);
/// Debian's own: whatever stands before it in PATH may be a wrapper that starts another process.
const PYTHON: &str = "/usr/bin/python3";

fn lookup_options() -> Options {
    let dns = DnsOptions { answers: true, lookups: true, ..dns() };
    Options { oom: false, dns: Some(dns), ..options() }
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

/// A thread in network and mount namespaces of its own, with a resolv.conf of its own.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// To be called in a thread that is the place's alone.
    fn enter() -> Place {
        let dir = tempfile::tempdir().expect("a folder");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces of our own (root)");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .expect("keep mounts to ourselves");
        for (file, text) in [("resolv.conf", ""), ("nsswitch.conf", "hosts: files dns\n")] {
            let ours = dir.path().join(file);
            fs::write(&ours, text).expect("write");
            let theirs = fs::canonicalize(Path::new("/etc").join(file))
                .unwrap_or_else(|error| panic!("/etc/{file} is needed to be covered: {error}"));
            mount(Some(&ours), &theirs, none, MsFlags::MS_BIND, none).expect("cover it");
        }
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(
            up.is_ok_and(|status| status.success()),
            "`ip link set lo up` failed: apt-get install iproute2"
        );
        Place { dir }
    }

    fn resolv_conf(&self, text: &str) {
        // Written in place: another file would not be the one that is mounted.
        fs::write(self.dir.path().join("resolv.conf"), text).expect("write resolv.conf");
    }
}

fn in_place<T: Send + 'static>(work: impl FnOnce(&Place) -> T + Send + 'static) -> T {
    std::thread::spawn(move || work(&Place::enter()))
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Ended when it is dropped.
struct Server(Child);

impl Server {
    fn start(victims: &Path) -> Server {
        let mut child = Command::new(victims.join("resolver"))
            // Segments are the affair of the tests of `dns`.
            .args(["127.0.0.1:53", "--whole"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("start our resolver");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let first = lines.next().expect("a line").expect("readable");
        assert!(first.starts_with("resolver: "), "{first}");
        // Its log is read to the end, so that it never waits for us.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Server(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// glibc through Python: names in, results out, one a line, as long as we like.
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

#[test]
fn glibcs_search_for_an_external_name_is_one_lookup_with_its_futile_queries() {
    let victims = victims();
    let mut recording = Recording::start(lookup_options(), no_runtime());
    let (told, pid) = std::sync::mpsc::channel();
    let (done, go_on) = std::sync::mpsc::channel::<()>();
    let place = std::thread::spawn(move || {
        in_place(move |place| {
            place.resolv_conf(CLUSTER);
            let _server = Server::start(&victims);
            let mut glibc = Glibc::start();
            let results =
                ["api.example.com", "nxdomain-1.example.com", "cart"].map(|name| glibc.look_up(name));
            told.send((glibc.child.id(), results)).expect("the test listens");
            // The process stays, as applications do, so that its resolv.conf can be read.
            let _ = go_on.recv();
        });
    });
    let (pid, results) = pid.recv().expect("the lookups were made");
    assert!(
        results[0].starts_with("ok 10.96.")
            && results[1].starts_with("error")
            && results[2].starts_with("ok"),
        "{results:?}"
    );
    recording.until("three lookups", SOON, |seen| of_process(seen, pid).len() >= 3);
    recording.for_a_while(Duration::from_millis(1500));
    drop(done);
    place.join().expect("the place");

    let all = of_process(&recording.seen, pid);
    assert_eq!(all.len(), 3, "{all:#?}");
    let facts =
        |it: &Lookup| (it.name.clone(), it.result, it.queries, it.futile.queries, it.futile.names.len());
    assert_eq!(facts(all[0]), ("api.example.com".to_owned(), LookupResult::Answered, 8, 6, 3));
    assert_eq!(facts(all[1]), ("nxdomain-1.example.com".to_owned(), LookupResult::Nxdomain, 8, 6, 3));
    assert_eq!(facts(all[2]), ("cart".to_owned(), LookupResult::Answered, 2, 0, 0));
    for it in all {
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
        assert_eq!((event.kind, event.process.comm.as_str()), (Kind::DnsLookup, "lookup"));
        assert_eq!(event.container.as_ref().map(|container| container.name.as_str()), Some("web"));
        assert_eq!(
            (it.name.as_str(), it.result, it.queries, it.futile.queries),
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
fn a_search_that_ends_in_silence_is_one_timeout_and_says_what_was_seen_around_it() {
    let victims = victims();
    let mut recording = Recording::start(lookup_options(), no_runtime());
    let (told, pid) = std::sync::mpsc::channel();
    let (done, go_on) = std::sync::mpsc::channel::<()>();
    let place = std::thread::spawn(move || {
        in_place(move |place| {
            // The search domains answer, and the name itself does not: it is asked for twice, with the same id.
            place.resolv_conf(&format!("{CLUSTER}options timeout:1 attempts:2\n"));
            let _server = Server::start(&victims);
            let mut glibc = Glibc::start();
            let result = glibc.look_up("silent.example.com");
            told.send((glibc.child.id(), result)).expect("the test listens");
            let _ = go_on.recv();
        });
    });
    let (pid, result) = pid.recv().expect("the lookup was made");
    assert!(result.starts_with("error"), "{result}");
    recording.until("a lookup", SOON, |seen| !of_process(seen, pid).is_empty());
    drop(done);
    place.join().expect("the place");
    let all = of_process(&recording.seen, pid);
    assert_eq!(all.len(), 1, "{all:#?}");
    let it = all[0];
    // What is sent again just after it counted as a timeout (a second, for both) is a query of its own.
    assert!((8..=10).contains(&it.queries), "{it:#?}");
    assert_eq!((it.futile.queries, it.sends), (6, 10), "{it:#?}");
    assert_eq!((it.name.as_str(), it.result), ("silent.example.com", LookupResult::Timeout));
    let diagnosis = it.diagnosis.as_ref().expect("a timeout has one");
    assert!(diagnosis.text.contains("no answer was seen to come"), "{diagnosis:?}");
}

/// The clients of the table; each gets a name, and exits.
fn clients(dir: &Path) -> Vec<(&'static str, Vec<String>)> {
    const MUSL: &str = "#include <netdb.h>\nint main(int c, char **v) { struct addrinfo *a, h = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}; return getaddrinfo(v[1], \"80\", &h, &a) != 0; }\n";
    const GO: &str = "package main\nimport (\"context\"; \"net\"; \"os\")\nfunc main() { r := net.Resolver{PreferGo: true}; if _, err := r.LookupHost(context.Background(), os.Args[1]); err != nil { println(err.Error()); os.Exit(1) } }\n";
    let (musl, go) = (dir.join("musl"), dir.join("go"));
    fs::write(dir.join("lookup.c"), MUSL).expect("write");
    fs::write(dir.join("lookup.go"), GO).expect("write");
    let built =
        Command::new("musl-gcc").args(["-static", "-o"]).arg(&musl).arg(dir.join("lookup.c")).status();
    assert!(built.is_ok_and(|status| status.success()), "musl-gcc: apt-get install musl-tools");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&go)
        .arg(dir.join("lookup.go"))
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", dir.join("go-cache"))
        .env("GO111MODULE", "off")
        .status();
    assert!(built.is_ok_and(|status| status.success()), "go build: apt-get install golang-go");
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let python = "import socket, sys; socket.getaddrinfo(sys.argv[1], 80)";
    vec![
        ("glibc", words(&[PYTHON, "-c", python])),
        ("musl", words(&[musl.to_str().expect("UTF-8")])),
        ("go", words(&[go.to_str().expect("UTF-8")])),
        ("dig", words(&["dig", "+tries=1", "+time=3"])),
    ]
}

/// (Name, what a lookup of it comes to; several: it depends on the client).
const CASES: [(&str, &[LookupResult]); 9] = [
    ("fine.example.com", &[LookupResult::Answered]),
    ("nxdomain-2.example.com", &[LookupResult::Nxdomain]),
    ("servfail.example.com", &[LookupResult::Servfail]),
    ("refused.example.com", &[LookupResult::Refused]),
    ("nodata.example.com", &[LookupResult::Nodata]),
    // musl before 1.2.4 knows no TCP.
    ("truncated.example.com", &[LookupResult::Answered, LookupResult::Truncated]),
    ("silent.example.com", &[LookupResult::Timeout]),
    ("late-1700.example.com", &[LookupResult::Late]),
    ("malformed-loop.example.com", &[LookupResult::Malformed, LookupResult::Timeout]),
];

#[test]
fn every_outcome_of_every_client_is_told_once_with_its_process() {
    let victims = victims();
    let built = tempfile::tempdir().expect("a folder");
    let clients = clients(built.path());
    let mut recording = Recording::start(lookup_options(), no_runtime());
    let (told, ran) = std::sync::mpsc::channel();
    let place = std::thread::spawn(move || {
        in_place(move |place| {
            let options = "options ndots:1 timeout:3 attempts:1\n";
            place.resolv_conf(&format!("nameserver 127.0.0.1\n{options}"));
            let _server = Server::start(&victims);
            let run = |command: &[String], name: &str| {
                let mut child = Command::new(&command[0]);
                child.args(&command[1..]).arg(name).stdout(Stdio::null()).stderr(Stdio::null());
                child
                    .spawn()
                    .unwrap_or_else(|error| panic!("{}: {error}; apt-get install bind9-dnsutils", command[0]))
            };
            let mut children = Vec::new();
            for (client, command) in &clients {
                for (name, results) in CASES {
                    children.push((*client, name, results.to_vec(), run(command, name)));
                }
            }
            let mut all = Vec::new();
            for (client, name, results, mut child) in children {
                child.wait().expect("it ends");
                all.push((client, name, results, child.id()));
            }
            // Nobody listens there. musl's sockets are not connected: the network's error never reaches them.
            place.resolv_conf(&format!("nameserver 127.0.0.9\n{options}"));
            for (client, command) in &clients {
                let name = "nobody.example.com";
                let mut child = run(command, name);
                child.wait().expect("it ends");
                let result =
                    if *client == "musl" { LookupResult::Timeout } else { LookupResult::Unreachable };
                all.push((client, name, vec![result], child.id()));
            }
            told.send(all).expect("the test listens");
        });
    });
    place.join().expect("the place");
    let ran = ran.recv().expect("the clients ran");
    let ended = |seen: &[Event]| ran.iter().all(|(.., pid)| !of_process(seen, *pid).is_empty());
    // The table says which is missing.
    let end = std::time::Instant::now() + SOON;
    while !ended(&recording.seen) && std::time::Instant::now() < end {
        recording.for_a_while(Duration::from_millis(500));
    }
    recording.for_a_while(Duration::from_millis(1500));

    let mut table: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (client, name, expected, pid) in &ran {
        let found = of_process(&recording.seen, *pid);
        let words: Vec<&str> = found.iter().map(|it| it.result.word()).collect();
        let queries: u32 = found.iter().map(|it| it.queries).sum();
        table.entry(name).or_default().insert(client, format!("{} ({queries})", words.join("+")));
        let fits = |it: &&Lookup| it.name == *name && expected.contains(&it.result);
        // An answer that is larger than glibc's buffer is asked for once more with a larger one: two lookups indeed.
        let most = if *client == "glibc" && name.starts_with("truncated") { 2 } else { 1 };
        let right = (1..=most).contains(&found.len()) && found.iter().all(fits);
        let asked: Vec<Outcome> =
            found.iter().flat_map(|it| it.transactions.iter().map(|step| step.outcome)).collect();
        if !right {
            wrong.push(format!("{client} {name}: {words:?} instead of one of {expected:?}; {asked:?}"));
        }
    }
    println!("lookups told, and the queries of each, by name and client");
    println!("{:28} {:16} {:16} {:16} {:16}", "", "glibc", "musl", "go", "dig");
    for (name, by_client) in &table {
        let cell = |client: &str| by_client.get(client).cloned().unwrap_or_default();
        println!("{name:28} {:16} {:16} {:16} {:16}", cell("glibc"), cell("musl"), cell("go"), cell("dig"));
    }
    if !wrong.is_empty() {
        for event in &recording.seen {
            if let Detail::Dns(dns) = &event.detail {
                let process = &event.process;
                println!(
                    "{} {}[{}] {:?} {:?} {:?} {} {:?} id {} {:?}",
                    event.time,
                    process.comm,
                    process.pid,
                    dns.name,
                    dns.qtype,
                    dns.outcome,
                    dns.latency_ns,
                    dns.protocol,
                    dns.id,
                    process.start_time
                );
            }
        }
    }
    let (_, losses) = recording.stop();
    assert!(wrong.is_empty(), "{}; losses: {losses:?}", wrong.join("\n"));
}
