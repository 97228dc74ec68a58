//! Applications that look a name up again and again while DNS fails: each lookup is counted once, and in time.
//!
//! The queries are those that glibc 2.36, musl 1.2.3 and Go make according to their sources; only failures are recorded.

use std::sync::Arc;

use jiff::Timestamp;

use super::builder::LookupLimits;
use super::{LookupBuilder, LookupQuery, ProcessKey, ResolvConf, search};
use podopsy_model::event::Protocol;
use podopsy_model::lookup::{LookupResult, SeenOutcomes};
use podopsy_model::{DnsTransaction, Lookup, Outcome};

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
/// The time that a server needs for an answer.
const ANSWER_NS: u64 = MS / 5;
const DNS_TIMEOUT_NS: u64 = 5 * S;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Library {
    Glibc,
    Musl,
    Go,
}

/// What the servers answer for a name, at a time.
type Servers = fn(&str, u64) -> Outcome;

/// A thread that looks a name up.
struct Client<'a> {
    library: Library,
    resolv: &'a ResolvConf,
    servers: Servers,
    now: u64,
    id: u16,
    queries: Vec<LookupQuery>,
}

impl Client<'_> {
    /// One call of getaddrinfo for both families; returns whether it was answered. A final dot makes the name absolute.
    fn look_up(&mut self, name: &str) -> bool {
        let absolute = name.strip_suffix('.');
        let name = absolute.unwrap_or(name);
        let has_all_dots = search::dots(name) >= self.resolv.ndots;
        let names = match (absolute, self.library) {
            (Some(_), _) => vec![name.to_owned()],
            (None, Library::Musl) if has_all_dots => vec![name.to_owned()],
            _ => self.resolv.candidates(name),
        };
        let mut rest = names.iter();
        while let Some(candidate) = rest.next() {
            match (self.ask(candidate), self.library) {
                (Outcome::Noerror, _) => return true,
                (Outcome::Nxdomain, _) | (_, Library::Go) | (Outcome::Servfail, Library::Glibc) => {}
                // glibc goes on to the name itself.
                (_, Library::Glibc) if candidate != name => rest = names[names.len() - 1..].iter(),
                _ => return false,
            }
        }
        false
    }

    /// Asks for A and AAAA until one server answers; returns the outcome.
    fn ask(&mut self, name: &str) -> Outcome {
        match ((self.servers)(name, self.now), self.library) {
            (outcome @ (Outcome::Noerror | Outcome::Nxdomain), _) => {
                self.id += 1;
                self.pair(name, 0, outcome, (self.now, self.now + ANSWER_NS), 1);
                self.now += 2 * ANSWER_NS;
                outcome
            }
            (outcome, Library::Musl) => {
                self.ask_as_musl(name, outcome);
                outcome
            }
            (Outcome::Timeout, Library::Glibc) => {
                self.time_out_as_glibc(name);
                Outcome::Timeout
            }
            (outcome, _) => {
                self.ask_in_rounds(name, outcome);
                outcome
            }
        }
    }

    fn timeout_ns(&self) -> u64 {
        u64::from(self.resolv.timeout) * S
    }

    /// Each server in turn. A round repeats the query on the same sockets, which are closed at the end.
    fn time_out_as_glibc(&mut self, name: &str) {
        self.id += 1;
        let (started, rounds) = (self.now, self.resolv.attempts);
        let servers = self.resolv.nameservers.len();
        self.now += u64::from(rounds) * self.timeout_ns() * servers as u64;
        for server in 0..servers {
            let sent = started + server as u64 * self.timeout_ns();
            self.pair(name, server, Outcome::Timeout, (sent, self.now), rounds);
        }
    }

    /// Each server in turn, each query on a new socket. Go takes a new id each time.
    fn ask_in_rounds(&mut self, name: &str, outcome: Outcome) {
        self.id += 1;
        let latency = if outcome == Outcome::Timeout { self.timeout_ns() } else { ANSWER_NS };
        for _ in 0..self.resolv.attempts {
            for server in 0..self.resolv.nameservers.len() {
                self.id += u16::from(self.library == Library::Go);
                self.pair(name, server, outcome, (self.now, self.now + latency), 1);
                self.now += latency + ANSWER_NS;
            }
        }
    }

    /// musl asks all servers at once, with one id until its timeout. It asks again at once four times after SERVFAIL, and
    /// else after each interval.
    fn ask_as_musl(&mut self, name: &str, outcome: Outcome) {
        self.id += 1;
        let end = self.now + self.timeout_ns();
        let interval = self.timeout_ns() / u64::from(self.resolv.attempts);
        for server in 0..self.resolv.nameservers.len() {
            if outcome == Outcome::Timeout {
                self.pair(name, server, outcome, (self.now, end), self.resolv.attempts);
                continue;
            }
            for round in 0..u64::from(self.resolv.attempts) {
                let again = if outcome == Outcome::Servfail && server == 0 { 3 } else { 1 };
                for n in 0..again {
                    let sent = self.now + round * interval + n * 2 * ANSWER_NS;
                    self.pair(name, server, outcome, (sent, sent + ANSWER_NS), 1);
                }
            }
        }
        self.now = end;
    }

    fn pair(&mut self, name: &str, server: usize, outcome: Outcome, (sent, done): (u64, u64), sends: u32) {
        for (qtype, id) in [("A", self.id), ("AAAA", self.id ^ 0x8000)] {
            let server = (self.resolv.nameservers[server], 53).into();
            let transaction = DnsTransaction {
                name: Some(name.to_owned()),
                qtype: Some(qtype.to_owned()),
                server,
                protocol: Protocol::Udp,
                id,
                latency_ns: done - sent,
                outcome,
                rcode: None,
                sends,
                malformed: None,
                slow: false,
                answer_dropped: false,
                facts: Default::default(),
            };
            self.queries.extend(LookupQuery::new(transaction, done));
        }
    }
}

/// An application whose threads look a name up, again and again.
struct Application<'a> {
    library: Library,
    resolv_conf: &'a str,
    name: &'a str,
    servers: Servers,
    every_ns: u64,
    lookups: usize,
    /// When each thread starts.
    threads: &'a [u64],
}

/// What an application got, and what was reported of it.
struct Seen {
    failures: usize,
    reported: Vec<Lookup>,
}

impl Application<'_> {
    fn resolv(&self) -> ResolvConf {
        ResolvConf::parse(self.resolv_conf.as_bytes())
    }

    /// The failures that the application sees, and all queries that have failed.
    fn fail(&self) -> (usize, Vec<LookupQuery>) {
        let (resolv, mut failures, mut queries) = (self.resolv(), 0, Vec::new());
        for (thread, start) in self.threads.iter().enumerate() {
            let (library, servers, id) = (self.library, self.servers, thread as u16 * 5000);
            let mut client =
                Client { library, resolv: &resolv, servers, now: S + start, id, queries: Vec::new() };
            for _ in 0..self.lookups {
                failures += usize::from(!client.look_up(self.name));
                client.now += self.every_ns;
            }
            queries.extend(client.queries);
        }
        queries.retain(|query| query.transaction.outcome != Outcome::Noerror);
        queries.sort_by_key(|query| query.done_ns);
        (failures, queries)
    }

    fn run(&self) -> Seen {
        let (failures, queries) = self.fail();
        let resolv = self.resolv();
        let tries = resolv.attempts * resolv.nameservers.len() as u32;
        let further_attempts = u64::from((tries - 1) * resolv.timeout) * S;
        // A second for further queries, and one for those of another thread.
        let latest = DNS_TIMEOUT_NS + 2 * S + further_attempts;
        Seen { failures, reported: report(queries, Some(Arc::new(resolv)), latest) }
    }
}

/// The failed lookups that are reported, each at most `latest` after its end.
fn report(queries: Vec<LookupQuery>, resolv: Option<Arc<ResolvConf>>, latest: u64) -> Vec<Lookup> {
    let limits = LookupLimits::default();
    let mut builder: LookupBuilder<()> =
        LookupBuilder::new(DNS_TIMEOUT_NS, SeenOutcomes::Failures, limits, |_| Timestamp::UNIX_EPOCH);
    let process = ProcessKey { pid: 7, start_ns: 1 };
    let mut reported = Vec::new();
    let mut report_until = |builder: &mut LookupBuilder<()>, now: u64| {
        while let Some(due) = builder.due().filter(|due| *due <= now) {
            for closed in builder.take_due(due, false, |_| None) {
                assert!(due <= closed.end_ns + latest, "{due}: {closed:#?}");
                reported.push(closed.lookup);
            }
        }
    };
    for query in queries {
        report_until(&mut builder, query.done_ns);
        builder.add(process, 1, query, resolv.clone(), || ());
    }
    report_until(&mut builder, u64::MAX);
    reported.retain(|lookup| lookup.result.is_failure());
    reported
}

fn by_zone(name: &str, in_cluster: Outcome, outside: Outcome) -> Outcome {
    if name.ends_with(".cluster.local") { in_cluster } else { outside }
}

/// In `cluster.local` there is nothing.
fn outside_only(name: &str, outcome: Outcome) -> Outcome {
    by_zone(name, Outcome::Nxdomain, outcome)
}

const OUTCOMES: [(&str, Servers); 9] = [
    ("servfail", |_, _| Outcome::Servfail),
    ("servfail outside", |name, _| outside_only(name, Outcome::Servfail)),
    ("refused", |_, _| Outcome::Refused),
    ("refused outside", |name, _| outside_only(name, Outcome::Refused)),
    ("silent", |_, _| Outcome::Timeout),
    ("silent outside", |name, _| outside_only(name, Outcome::Timeout)),
    ("nxdomain", |_, _| Outcome::Nxdomain),
    ("answered outside", |name, _| outside_only(name, Outcome::Noerror)),
    ("servfail in the cluster", |name, _| by_zone(name, Outcome::Servfail, Outcome::Noerror)),
];

const SEARCH: &str = "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
const SERVER: &str = "nameserver 10.96.0.10\n";
const TWO_SERVERS: &str = "nameserver 10.96.0.10\nnameserver 10.96.0.11\n";

const IN_POD: &str = "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n\
                      options ndots:5 timeout:1 attempts:1\n";
const PERIODS_MS: [u64; 5] = [20, 150, 500, 1200, 2000];
const LOOKUPS: usize = 12;

/// Some with one server and some with two, with and without a search list, with one attempt and with two.
fn resolv_confs() -> Vec<String> {
    let mut all = Vec::new();
    for servers in [SERVER, TWO_SERVERS] {
        for search in ["", SEARCH] {
            for options in ["timeout:1 attempts:1", "timeout:2 attempts:2"] {
                all.push(format!("{servers}{search}options {options}\n"));
            }
        }
    }
    all
}

/// The applications of one thread of which not exactly the failed lookups are counted.
fn miscounted(library: Library, resolv_conf: &str, name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (title, servers) in OUTCOMES {
        for every in PERIODS_MS {
            let (every_ns, threads) = (every * MS, &[0]);
            let application =
                Application { library, resolv_conf, name, servers, every_ns, lookups: LOOKUPS, threads };
            let Seen { failures, reported } = application.run();
            if reported.len() != failures {
                let count = reported.len();
                wrong.push(format!(
                    "{library:?} {name} {title}, every {every} ms, {resolv_conf:?}: {count} of {failures}"
                ));
            }
        }
    }
    wrong
}

#[test]
fn each_of_many_failed_lookups_is_counted_once() {
    let mut wrong = Vec::new();
    for library in [Library::Glibc, Library::Musl, Library::Go] {
        for resolv_conf in resolv_confs() {
            for name in ["www.example.com", "www.example.com.", "pay", "api.finance.svc.cluster.local."] {
                wrong.extend(miscounted(library, &resolv_conf, name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// An application in a pod of the namespace `shop`, with glibc and one attempt.
fn in_pod(name: &str, servers: Servers) -> Application<'_> {
    Application {
        library: Library::Glibc,
        resolv_conf: IN_POD,
        name,
        servers,
        every_ns: 150 * MS,
        lookups: LOOKUPS,
        threads: &[0],
    }
}

#[test]
fn threads_that_look_a_name_up_at_once_are_counted_at_least_once_a_period() {
    for (title, servers) in &OUTCOMES[..7] {
        for threads in [&[0, 0, 0][..], &[0, 10_000, 300_000], &[0, MS, 70 * MS]] {
            let Seen { failures, reported } =
                Application { threads, ..in_pod("www.example.com", *servers) }.run();
            let queries: u32 = reported.iter().map(|it| it.queries).sum();
            let is_counted = (LOOKUPS..=failures).contains(&reported.len());
            assert!(is_counted && queries > 0, "{title} {threads:?}: {} of {failures}", reported.len());
        }
    }
}

#[test]
fn an_outage_that_begins_within_a_lookup_shifts_none_of_those_that_follow() {
    // As recorded from glibc: silence, then answers, then SERVFAIL.
    let servers: Servers = |name, now| match now / S {
        0..5 => Outcome::Timeout,
        5..8 => outside_only(name, Outcome::Noerror),
        _ => Outcome::Servfail,
    };
    for library in [Library::Glibc, Library::Musl, Library::Go] {
        let application = Application { library, lookups: 60, ..in_pod("www.example.com", servers) };
        let Seen { failures, reported } = application.run();
        assert_eq!(reported.len(), failures, "{library:?}");
        let servfail = reported.iter().filter(|it| it.result == LookupResult::Servfail).count();
        assert!(servfail >= 39, "{library:?}: {servfail}");
    }
}

#[test]
fn lookups_are_not_shifted_if_the_search_list_is_not_known() {
    let (failures, mut queries) = in_pod("www.example.com", |_, _| Outcome::Servfail).fail();
    // The first name was asked for before the recorder started.
    queries.drain(..2);
    let reported = report(queries, None, DNS_TIMEOUT_NS + 8 * S);
    let names: Vec<&str> = reported.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, vec!["www.example.com"; failures]);
}

#[test]
fn an_absolute_name_is_reported_as_it_was_asked_for() {
    for (title, servers) in [OUTCOMES[0], OUTCOMES[2]] {
        for name in ["api.shop.svc.cluster.local.", "api.finance.svc.cluster.local.", "www.example.com."] {
            let reported = in_pod(name, servers).run().reported;
            let names: Vec<String> = reported.into_iter().map(|it| it.name + ".").collect();
            assert_eq!(names, vec![name; LOOKUPS], "{title}");
        }
    }
}
