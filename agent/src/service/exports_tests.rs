//! The agent's exports to all kinds of bad destinations at once, beside good ones: the good ones get everything, memory is
//! bounded, and each event is accounted for at every moment.
//!
//! The time is compressed: a request has 0.4 s instead of 10 s, and a batch is retried for 2 s instead of 10 minutes. For
//! the real times: `cargo test -p podopsy-agent --lib exports_at_real_pace_by_hand -- --ignored --nocapture`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Exports;
use podopsy_deliver::EncodedEvent;
use podopsy_deliver::loki::Loki;
use podopsy_deliver::testing::hostile_server::{BUSY, Behavior, HostileServer, OK, REDIRECT, RETRY_LATER};
use podopsy_deliver::testing::lookup;
use podopsy_deliver::{DeliveryCounts, Destination, DestinationSettings, DestinationStats, ExportHeader};
use podopsy_model::Detail;

const SOON: Duration = Duration::from_secs(60);
/// Fills within two seconds if nothing is delivered.
const QUEUE: usize = 512 << 10;
const BATCH: usize = 64 << 10;

/// The timeouts, and the duration of the test.
#[derive(Clone, Copy)]
struct Pace {
    timeout: Duration,
    retry_for: Duration,
    lasts: Duration,
    every: Duration,
}

struct TestDestination {
    name: &'static str,
    server: HostileServer,
    stats: DestinationStats,
}

/// The name of a destination, its behaviors, and whether all events are delivered in the end, or none.
const DESTINATIONS: [(&str, &[Behavior], bool); 11] = [
    ("good", &[OK], true),
    ("refuses", &[], false),
    ("hangs", &[Behavior::Hang], false),
    ("resets", &[Behavior::Reset], false),
    ("429", &[RETRY_LATER], false),
    ("503", &[BUSY], false),
    ("drips", &[Behavior::RespondSlowly], false),
    ("nibbles", &[Behavior::ReadSlowly], false),
    ("redirects", &[REDIRECT], false),
    ("endless head", &[Behavior::EndlessHead], false),
    ("endless body", &[Behavior::EndlessBody], true),
];

async fn start_destinations(pace: Pace) -> (Exports, Vec<TestDestination>) {
    let (mut exports, mut all) = (Exports::default(), Vec::new());
    for (name, behaviors, good) in DESTINATIONS {
        let server = if behaviors.is_empty() {
            HostileServer::refusing().await
        } else {
            HostileServer::start(behaviors).await
        };
        let settings = DestinationSettings {
            headers: vec![ExportHeader::parse("X-Scope-OrgID=shop").unwrap()],
            // On a busy machine, a good destination may be slow.
            timeout: if good { SOON } else { pace.timeout },
            retry_for: pace.retry_for,
            linger: Duration::from_millis(20),
            queue_bytes: QUEUE,
            batch_bytes: BATCH,
            ..DestinationSettings::new(&server.url)
        };
        let destination = Destination::start(name, settings, Loki).unwrap();
        all.push(TestDestination { name, server, stats: destination.stats() });
        exports.events.push(destination);
    }
    (exports, all)
}

/// Asserts that every item is counted, and that the items that wait are within the bound.
fn assert_accounted(name: &str, counts: DeliveryCounts) {
    assert_eq!(counts.offered, counts.delivered + counts.lost_sum() + counts.waiting, "{name}: {counts:?}");
    // The batch in flight counts as waiting, too.
    assert!(counts.waiting_bytes <= (QUEUE + BATCH) as u64, "{name}: {counts:?}");
}

/// The names of the lookups that arrived, each counted once.
fn arrived(server: &HostileServer) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for body in server.accepted().iter() {
        let push: Value = serde_json::from_str(body).unwrap();
        for value in push["streams"].as_array().unwrap().iter().flat_map(|s| s["values"].as_array().unwrap())
        {
            assert!(names.insert(value[2]["dns_name"].as_str().unwrap().to_owned()), "twice: {value}");
        }
    }
    names
}

async fn all_at_once(pace: Pace) {
    let (exports, destinations) = start_destinations(pace).await;
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
        destinations.iter().for_each(|one| assert_accounted(one.name, one.stats.counts()));
        tokio::time::sleep(pace.every).await;
    }
    // The good destinations have everything while the others still retry.
    let well: Vec<_> = destinations.iter().filter(|one| good(one.name)).collect();
    let end = Instant::now() + SOON;
    while well.iter().any(|one| one.stats.counts().waiting > 0) {
        assert!(Instant::now() < end, "{:?}", well.iter().map(|one| one.stats.counts()).collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for one in &well {
        assert_eq!(one.stats.counts().lost_sum(), 0, "{}: {:?}", one.name, one.stats.counts());
        assert_eq!(arrived(&one.server), offered, "{}", one.name);
    }
    let losses = exports.losses();
    assert!(losses["export_hangs"] > 0 && !losses.contains_key("export_good"), "{losses:?}");
    // It requests a delay of one second each time, which is kept.
    let asked = destinations.iter().find(|one| one.name == "429").map(|one| one.server.requests() as u64);
    assert!(asked.is_some_and(|asked| (2..=began.elapsed().as_secs() + 2).contains(&asked)), "{asked:?}");
    let at = Instant::now();
    exports.close(pace.timeout, &[]).await;
    assert!(at.elapsed() < SOON + pace.timeout, "{:?}", at.elapsed());
    for one in &destinations {
        let counts = one.stats.counts();
        println!("{:13} {counts:?}", one.name);
        assert_accounted(one.name, counts);
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
async fn bad_destinations_do_not_affect_the_good_ones() {
    all_at_once(Pace {
        timeout: Duration::from_millis(400),
        retry_for: Duration::from_secs(2),
        lasts: Duration::from_secs(6),
        every: Duration::from_millis(20),
    })
    .await;
}

/// More than ten minutes, with the default settings. Also checks the resident memory, because no other test runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes 13 minutes"]
async fn exports_at_real_pace_by_hand() {
    let before = resident();
    all_at_once(Pace {
        timeout: Duration::from_secs(10),
        retry_for: Duration::from_secs(600),
        lasts: Duration::from_secs(780),
        every: Duration::from_millis(500),
    })
    .await;
    let grown = resident().saturating_sub(before);
    println!("resident memory grew by {grown} KiB");
    // The test itself keeps some 40 MiB of received events.
    assert!(grown < 96 << 10, "{grown} KiB");
}

/// KiB.
fn resident() -> u64 {
    let status = procfs::process::Process::myself().unwrap().status().unwrap();
    status.vmrss.unwrap()
}

/// An API server that accepts connections and never responds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_hangs_does_not_affect_other_destinations() {
    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        exports: super::ExportArgs,
    }
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("https://{}", silent.local_addr().unwrap());
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "secret").unwrap();
    let (token, well) = (token.path().to_str().unwrap(), HostileServer::start(&[OK]).await);
    let args = ["x", "--kubernetes-events", "--kubernetes-api", &api, "--kubernetes-token", token];
    let loki = ["--loki-url", &well.url, "--loki-header=X-Scope-OrgID=shop"];
    let args = <Args as clap::Parser>::parse_from(args.iter().chain(&loki));
    let mut exports = Exports::start(&args.exports, "n1").unwrap();
    let (mut offered, at) = (BTreeSet::new(), Instant::now());
    for n in 0..2000 {
        let name = format!("{n}.example");
        exports.offer(&lookup(&name, 1));
        let mut kill = podopsy_deliver::testing::oom_incident(n, |_| ());
        kill.pod.iter_mut().for_each(|pod| pod.uid = format!("{}", n % 100));
        exports.notify_pod(&kill);
        exports.tick(&[]);
        offered.insert(name);
    }
    assert!(at.elapsed() < SOON, "an offer waited");
    let stats = |name: &str| exports.stats().into_iter().find(|one| one.destination == name).unwrap();
    let (kubernetes, loki) = (stats("kubernetes_events"), stats("loki"));
    while loki.counts().delivered < 2000 {
        assert!(at.elapsed() < SOON, "{:?}", loki.counts());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(arrived(&well), offered);
    // The first Event of each pod, and its first repetition.
    let counts = kubernetes.counts();
    assert_eq!((counts.offered, counts.waiting, counts.delivered), (200, 200, 0), "{counts:?}");
    let at = Instant::now();
    exports.close(Duration::from_millis(100), &[]).await;
    assert!(at.elapsed() < SOON, "{:?}", at.elapsed());
    let counts = kubernetes.counts();
    assert_eq!((counts.offered, counts.abandoned, counts.waiting), (300, 300, 0), "with the final updates");
}

#[tokio::test]
async fn without_settings_there_are_no_destinations() {
    let exports = Exports::start(&Default::default(), "n1").unwrap();
    assert!(!exports.has_event_destinations() && exports.stats().is_empty() && exports.losses().is_empty());
    let event: Arc<EncodedEvent> = lookup("a", 1);
    exports.offer(&event);
    exports.close(Duration::ZERO, &[]).await;
}
