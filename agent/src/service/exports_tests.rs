//! The agent's exports with every kind of bad destination at once, beside good ones: these get everything, memory is
//! bounded, and each event is accounted for at every moment.
//!
//! In compressed time: a request has 0.4 s instead of 10 s, and patience is 2 s instead of 10 minutes. `by_hand` takes the
//! real ones: `cargo test -p podopsy-agent --lib exports_by_hand -- --ignored --nocapture`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Exports;
use podopsy_deliver::loki::Loki;
use podopsy_deliver::testing::hostile::{Act, BUSY, ELSEWHERE, LATER, OK, Server};
use podopsy_deliver::testing::lookup;
use podopsy_deliver::written::Written;
use podopsy_deliver::{Counts, Courier, Header, Ledger, Settings};
use podopsy_model::Detail;

const SOON: Duration = Duration::from_secs(60);
/// Full within two seconds where nothing leaves.
const QUEUE: usize = 512 << 10;
const BATCH: usize = 64 << 10;

/// How long everything takes.
#[derive(Clone, Copy)]
struct Pace {
    timeout: Duration,
    patience: Duration,
    lasts: Duration,
    every: Duration,
}

struct Destination {
    name: &'static str,
    server: Server,
    ledger: Ledger,
}

/// What a destination does, and what becomes of events there in the end: all delivered, or none.
const DESTINATIONS: [(&str, &[Act], bool); 11] = [
    ("good", &[OK], true),
    ("refuses", &[], false),
    ("hangs", &[Act::Hang], false),
    ("resets", &[Act::Reset], false),
    ("429", &[LATER], false),
    ("503", &[BUSY], false),
    ("drips", &[Act::Drip], false),
    ("nibbles", &[Act::Nibble], false),
    ("redirects", &[ELSEWHERE], false),
    ("endless head", &[Act::EndlessHead], false),
    ("endless body", &[Act::EndlessBody], true),
];

async fn destinations(pace: Pace) -> (Exports, Vec<Destination>) {
    let (mut exports, mut all) = (Exports::default(), Vec::new());
    for (name, acts, good) in DESTINATIONS {
        let server = if acts.is_empty() { Server::refusing().await } else { Server::start(acts).await };
        let settings = Settings {
            headers: vec![Header::parse("X-Scope-OrgID=shop").unwrap()],
            // On a busy machine one that is good may take its time.
            timeout: if good { SOON } else { pace.timeout },
            patience: pace.patience,
            linger: Duration::from_millis(20),
            queue_bytes: QUEUE,
            batch_bytes: BATCH,
            ..Settings::new(&server.url)
        };
        let courier = Courier::start(name, settings, Loki).unwrap();
        all.push(Destination { name, server, ledger: courier.ledger() });
        exports.events.push(courier);
    }
    (exports, all)
}

/// Nothing is missing, and no more waits than may.
fn exact(name: &str, counts: Counts) {
    assert_eq!(counts.offered, counts.delivered + counts.lost_sum() + counts.waiting, "{name}: {counts:?}");
    // The batch that is under way waits, too.
    assert!(counts.waiting_bytes <= (QUEUE + BATCH) as u64, "{name}: {counts:?}");
}

/// The names of the lookups that arrived, each counted once.
fn arrived(server: &Server) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for body in server.taken().iter() {
        let push: Value = serde_json::from_str(body).unwrap();
        for value in push["streams"].as_array().unwrap().iter().flat_map(|s| s["values"].as_array().unwrap())
        {
            assert!(names.insert(value[2]["dns_name"].as_str().unwrap().to_owned()), "twice: {value}");
        }
    }
    names
}

async fn all_at_once(pace: Pace) {
    let (exports, destinations) = destinations(pace).await;
    let (began, mut offered) = (Instant::now(), BTreeSet::new());
    while began.elapsed() < pace.lasts {
        for _ in 0..10 {
            let name = format!("{}.example", offered.len());
            let event = lookup(&name, 1);
            assert!(matches!(event.event.detail, Detail::Lookup(_)));
            let at = Instant::now();
            exports.offer(&event);
            assert!(at.elapsed() < SOON, "an offer waited");
            offered.insert(name);
        }
        destinations.iter().for_each(|one| exact(one.name, one.ledger.counts()));
        tokio::time::sleep(pace.every).await;
    }
    // The good ones have it all while the others still try.
    let well: Vec<_> = destinations.iter().filter(|one| good(one.name)).collect();
    let end = Instant::now() + SOON;
    while well.iter().any(|one| one.ledger.counts().waiting > 0) {
        assert!(Instant::now() < end, "{:?}", well.iter().map(|one| one.ledger.counts()).collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for one in &well {
        assert_eq!(one.ledger.counts().lost_sum(), 0, "{}: {:?}", one.name, one.ledger.counts());
        assert_eq!(arrived(&one.server), offered, "{}", one.name);
    }
    let told = exports.losses();
    assert!(told["export_hangs"] > 0 && !told.contains_key("export_good"), "{told:?}");
    // It asked for a second each time, and got it.
    let asked = destinations.iter().find(|one| one.name == "429").map(|one| one.server.requests() as u64);
    assert!(asked.is_some_and(|asked| (2..=began.elapsed().as_secs() + 2).contains(&asked)), "{asked:?}");
    let at = Instant::now();
    exports.close(pace.timeout, &[]).await;
    assert!(at.elapsed() < SOON + pace.timeout, "{:?}", at.elapsed());
    for one in &destinations {
        let counts = one.ledger.counts();
        println!("{:13} {counts:?}", one.name);
        exact(one.name, counts);
        assert_eq!((counts.offered, counts.waiting, counts.waiting_bytes), (offered.len() as u64, 0, 0));
        let delivered = if good(one.name) { offered.len() as u64 } else { 0 };
        assert_eq!(counts.delivered, delivered, "{}: {counts:?}", one.name);
        match one.name {
            "redirects" => assert_eq!(counts.refused, counts.offered, "{counts:?}"),
            _ if good(one.name) => assert_eq!(counts.lost_sum(), 0, "{counts:?}"),
            name => assert!(counts.expired > 0 && counts.queue_full > 0, "{name}: {counts:?}"),
        }
    }
}

fn good(name: &str) -> bool {
    DESTINATIONS.iter().any(|(one, _, good)| *one == name && *good)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_to_bad_destinations_change_nothing_for_the_good_ones() {
    all_at_once(Pace {
        timeout: Duration::from_millis(400),
        patience: Duration::from_secs(2),
        lasts: Duration::from_secs(6),
        every: Duration::from_millis(20),
    })
    .await;
}

/// Ten minutes and more, with what is set unless told otherwise; memory is looked at, because nothing else runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes 13 minutes"]
async fn exports_by_hand() {
    let before = resident();
    all_at_once(Pace {
        timeout: Duration::from_secs(10),
        patience: Duration::from_secs(600),
        lasts: Duration::from_secs(780),
        every: Duration::from_millis(500),
    })
    .await;
    let grown = resident().saturating_sub(before);
    println!("resident memory grew by {grown} KiB");
    // What the test itself keeps of what arrived is some 40 MiB.
    assert!(grown < 96 << 10, "{grown} KiB");
}

/// KiB.
fn resident() -> u64 {
    let status = procfs::process::Process::myself().unwrap().status().unwrap();
    status.vmrss.unwrap()
}

/// An API server that takes connections and never says a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_hangs_changes_nothing_for_the_others() {
    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        exports: super::ExportArgs,
    }
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("https://{}", silent.local_addr().unwrap());
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "secret").unwrap();
    let (token, well) = (token.path().to_str().unwrap(), Server::start(&[OK]).await);
    let args = ["x", "--kubernetes-events", "--kubernetes-api", &api, "--kubernetes-token", token];
    let loki = ["--loki-url", &well.url, "--loki-header=X-Scope-OrgID=shop"];
    let args = <Args as clap::Parser>::parse_from(args.iter().chain(&loki));
    let mut exports = Exports::start(&args.exports, "n1").unwrap();
    let (mut offered, at) = (BTreeSet::new(), Instant::now());
    for n in 0..2000 {
        let name = format!("{n}.example");
        exports.offer(&lookup(&name, 1));
        let mut kill = podopsy_deliver::testing::oom(n, |_| ());
        kill.pod.iter_mut().for_each(|pod| pod.uid = format!("{}", n % 100));
        exports.told(&kill);
        exports.round(&[]);
        offered.insert(name);
    }
    assert!(at.elapsed() < SOON, "an offer waited");
    let ledger = |name: &str| exports.ledgers().into_iter().find(|one| one.destination == name).unwrap();
    let (kubernetes, loki) = (ledger("kubernetes_events"), ledger("loki"));
    while loki.counts().delivered < 2000 {
        assert!(at.elapsed() < SOON, "{:?}", loki.counts());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(arrived(&well), offered);
    // Each pod's first, and that it repeats.
    let counts = kubernetes.counts();
    assert_eq!((counts.offered, counts.waiting, counts.delivered), (200, 200, 0), "{counts:?}");
    let at = Instant::now();
    exports.close(Duration::from_millis(100), &[]).await;
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
    let counts = kubernetes.counts();
    assert_eq!((counts.offered, counts.abandoned, counts.waiting), (300, 300, 0), "with the last words");
}

/// Where nothing is configured, nothing is made.
#[tokio::test]
async fn without_a_destination_there_is_none() {
    let exports = Exports::start(&Default::default(), "n1").unwrap();
    assert!(exports.is_empty() && exports.ledgers().is_empty() && exports.losses().is_empty());
    let event: Arc<Written> = lookup("a", 1);
    exports.offer(&event);
    exports.close(Duration::ZERO, &[]).await;
}
