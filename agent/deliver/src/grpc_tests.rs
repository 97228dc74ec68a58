//! Couriers that call, against collectors that answer, and against all that do not; every record must be accounted for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

use super::grpc::Grpc;
use super::otlp::Logs;
use super::worker::Answer;
use super::written::Written;
use super::{Counts, Courier, Format, Header, Settings, trust};
use crate::testing::collector::{Collector, Say, until};
use crate::testing::lookup;

const SOON: Duration = Duration::from_secs(60);
const METHOD: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

fn settings(url: &str) -> Settings {
    Settings {
        method: Some(METHOD),
        headers: vec![Header::parse("X-Scope-OrgID=shop").unwrap()],
        linger: Duration::from_millis(20),
        ..Settings::new(url)
    }
}

fn courier(settings: Settings) -> Courier<Arc<Written>> {
    Courier::start("otlp_logs", settings, Logs).unwrap()
}

/// Ten records, and what became of them: delivered, refused, expired, abandoned, retries.
async fn ten(says: &'static [Say], change: impl Fn(&mut Settings)) -> (Collector, [u64; 5]) {
    let collector = Collector::start(says).await;
    let mut settings = settings(&collector.url);
    change(&mut settings);
    let courier = courier(settings);
    (0..10).for_each(|n| courier.offer(lookup(&format!("{n}.example"), n)));
    until("settled", || courier.ledger().counts().waiting == 0).await;
    let counts = courier.close(SOON).await;
    assert_eq!((counts.offered, counts.waiting, counts.waiting_bytes), (10, 0, 0), "{counts:?}");
    assert_eq!(counts.delivered + counts.lost_sum(), 10, "{counts:?}");
    (collector, [counts.delivered, counts.refused, counts.expired, counts.abandoned, counts.retries])
}

fn short(settings: &mut Settings) {
    settings.timeout = Duration::from_millis(600);
}

#[tokio::test]
async fn a_collector_gets_by_grpc_what_it_would_get_by_http() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "Bearer hunter2\n").unwrap();
    let header = format!("Authorization=@{}", token.display());
    let secret = |settings: &mut Settings| settings.headers.push(Header::parse(&header).unwrap());
    let (collector, counts) = ten(&[Say::Take], secret).await;
    assert_eq!(counts, [10, 0, 0, 0, 0]);
    let taken = collector.logs();
    let (metadata, request) = &taken[0];
    let of = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert_eq!((of("x-scope-orgid"), of("authorization")), ("shop", "Bearer hunter2"));
    assert!(of("grpc-timeout").starts_with("10000000"), "{metadata:?}");
    assert!(of("user-agent").starts_with("podopsy-agent/"), "{metadata:?}");
    let records: Vec<_> = request.resource_logs[0].scope_logs[0].log_records.iter().collect();
    assert_eq!((taken.len(), records.len()), (1, 10));
    assert_eq!(records[9].time_unix_nano, 9_000_000_000);
    let batch = [lookup("0.example", 0)];
    let mut posted = ExportLogsServiceRequest::decode(Logs.body(&batch).unwrap().as_slice()).unwrap();
    let posted = &mut posted.resource_logs[0].scope_logs[0].log_records[0];
    posted.observed_time_unix_nano = records[0].observed_time_unix_nano;
    assert_eq!(records[0], posted);
}

#[tokio::test]
async fn what_fails_for_now_is_called_again_and_arrives_once() {
    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);
    let says = &[
        Say::No(Code::Unavailable, None),
        Say::No(Code::ResourceExhausted, AT_ONCE),
        Say::No(Code::Aborted, AT_ONCE),
        Say::Http(503),
        Say::Reset,
        Say::Stall,
        Say::Take,
    ];
    let (collector, counts) = ten(says, short).await;
    assert_eq!(counts, [10, 0, 0, 0, 6]);
    assert_eq!((collector.logs().len(), collector.calls()), (1, 7));
}

#[tokio::test]
async fn what_is_refused_for_good_is_counted_and_not_called_again() {
    const SAYS: [&[Say]; 6] = [
        &[Say::No(Code::InvalidArgument, None)],
        &[Say::No(Code::Unauthenticated, None)],
        &[Say::No(Code::Unimplemented, None)],
        // Only who says when means "later".
        &[Say::No(Code::ResourceExhausted, None)],
        // Nor does a time make a refusal anything else.
        &[Say::No(Code::InvalidArgument, Some(Duration::ZERO))],
        &[Say::Http(401)],
    ];
    for says in SAYS {
        let (collector, counts) = ten(says, |_| {}).await;
        assert_eq!((counts, collector.calls()), ([0, 10, 0, 0, 0], 1), "{says:?}");
    }
}

#[tokio::test]
async fn a_success_may_have_rejected_some() {
    assert_eq!(ten(&[Say::TakeBut(3)], |_| {}).await.1, [7, 3, 0, 0, 0]);
    assert_eq!(ten(&[Say::TakeBut(99)], |_| {}).await.1, [0, 10, 0, 0, 0]);
    // A negative count, and a warning without one.
    assert_eq!(ten(&[Say::TakeBut(-3)], |_| {}).await.1, [10, 0, 0, 0, 0]);
    assert_eq!(ten(&[Say::TakeBut(0)], |_| {}).await.1, [10, 0, 0, 0, 0]);
}

#[tokio::test]
async fn who_asks_for_time_gets_it() {
    const SAYS: &[Say] = &[Say::No(Code::Unavailable, Some(Duration::from_secs(2))), Say::Take];
    let begun = Instant::now();
    assert_eq!(ten(SAYS, |_| {}).await.1, [10, 0, 0, 0, 1]);
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// Hands bytes on, until `frozen`: from then on its first connection takes them, and hands on none.
async fn middle(to: &Collector, frozen: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let to = to.url.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((near, _)) = listener.accept().await {
            let (near, far) = (near.into_split(), TcpStream::connect(&to).await.unwrap().into_split());
            let dies = std::mem::take(&mut first).then(|| frozen.clone());
            tokio::spawn(hand_on(near.0, far.1, dies.clone()));
            tokio::spawn(hand_on(far.0, near.1, dies));
        }
    });
    url
}

async fn hand_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, dies: Option<Arc<AtomicBool>>) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let dead = dies.as_ref().is_some_and(|dies| dies.load(Relaxed));
        if !dead && to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

/// As after a load balancer that forgot its connections: without pings each call would go down the same one.
#[tokio::test]
async fn a_connection_that_died_in_silence_is_left() {
    let collector = Collector::start(&[Say::Take]).await;
    let frozen = Arc::new(AtomicBool::new(false));
    let courier = courier(Settings {
        timeout: Duration::from_secs(2),
        ..settings(&middle(&collector, frozen.clone()).await)
    });
    courier.offer(lookup("before.example", 1));
    until("delivered", || courier.ledger().counts().delivered == 1).await;
    frozen.store(true, Relaxed);
    courier.offer(lookup("after.example", 2));
    until("delivered, too", || courier.ledger().counts().delivered == 2).await;
    assert!(courier.close(SOON).await.retries >= 1);
}

/// What a collector does, and whether it has everything in the end.
const COLLECTORS: [(&str, &[Say], bool); 13] = [
    ("good", &[Say::Take], true),
    ("slow", &[Say::Slowly(Duration::from_millis(50))], true),
    ("refuses", &[], false),
    ("hangs", &[Say::Hang], false),
    ("stalls", &[Say::Stall], false),
    ("resets mid-stream", &[Say::Reset], false),
    ("cuts", &[Say::Cut], false),
    ("endless", &[Say::Endless], false),
    ("wordless", &[Say::Wordless], false),
    ("later", &[Say::No(Code::Unavailable, Some(Duration::from_secs(1)))], false),
    ("invalid", &[Say::No(Code::InvalidArgument, None)], false),
    ("busy proxy", &[Say::Http(503)], false),
    ("speaks http/1", &[Say::Http1], false),
];

const QUEUE: usize = 256 << 10;
const BATCH: usize = 64 << 10;

fn exact(name: &str, counts: Counts) {
    assert_eq!(counts.offered, counts.delivered + counts.lost_sum() + counts.waiting, "{name}: {counts:?}");
    assert!(counts.waiting_bytes <= (QUEUE + BATCH) as u64, "{name}: {counts:?}");
}

/// The names of the lookups that arrived, each once.
fn arrived(collector: &Collector) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, request) in collector.logs().iter() {
        for record in &request.resource_logs[0].scope_logs[0].log_records {
            let name = record.attributes.iter().find(|pair| pair.key == "dns.question.name").unwrap();
            assert!(names.insert(format!("{:?}", name.value)), "twice: {name:?}");
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_to_bad_collectors_changes_nothing_for_the_good_ones() {
    let mut all = Vec::new();
    for (name, says, good) in COLLECTORS {
        let collector =
            if says.is_empty() { Collector::refusing().await } else { Collector::start(says).await };
        let settings = Settings {
            timeout: if good { SOON } else { Duration::from_millis(400) },
            patience: Duration::from_secs(1),
            queue_bytes: QUEUE,
            batch_bytes: BATCH,
            ..settings(&collector.url)
        };
        let courier = courier(settings);
        all.push((name, good, collector, courier));
    }
    let (begun, mut offered) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(2) {
        for _ in 0..5 {
            let event = lookup(&format!("{offered}.example"), 1);
            all.iter().for_each(|(.., courier)| courier.offer(event.clone()));
            offered += 1;
        }
        all.iter().for_each(|(name, .., courier)| exact(name, courier.ledger().counts()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (name, good, collector, courier) in all {
        if good {
            until("delivered", || courier.ledger().counts().waiting == 0).await;
            assert_eq!(arrived(&collector).len(), offered, "{name}");
        }
        let counts = courier.close(Duration::from_millis(500)).await;
        println!("{name:17} calls {:3} {counts:?}", collector.calls());
        exact(name, counts);
        assert_eq!((counts.offered, counts.waiting), (offered as u64, 0), "{name}: {counts:?}");
        assert_eq!(counts.delivered, if good { offered as u64 } else { 0 }, "{name}: {counts:?}");
        match name {
            _ if good => {}
            // Who ends a call without its status is UNKNOWN, which OTLP does not call again.
            "invalid" | "wordless" => assert_eq!(counts.refused, counts.offered, "{counts:?}"),
            "later" => assert!((1..9).contains(&collector.calls()), "{}", collector.calls()),
            name => assert_eq!(counts.refused, 0, "{name}: {counts:?}"),
        }
    }
}

#[tokio::test]
async fn an_address_with_a_path_is_told_at_the_start() {
    for url in ["http://collector:4317/v1/logs", "http://collector:4317/?tenant=b"] {
        let error = format!("{:#}", Courier::start("otlp_logs", settings(url), Logs).err().unwrap());
        assert!(error.contains("no path: it is http://collector:4317, or --otlp-protocol"), "{error}");
    }
}

/// What is said of one call.
async fn said(settings: &Settings) -> Result<(), String> {
    let client = trust::client(settings).unwrap();
    let call = |client, body| async move {
        let grpc = Grpc::new(client, settings, METHOD).unwrap();
        grpc.call(HeaderMap::new(), body).await
    };
    match call(client, Bytes::from(Logs.body(&[lookup("a.example", 1)]).unwrap())).await {
        Ok(_) => Ok(()),
        Err(Answer::Never(said) | Answer::Later(said, _)) => Err(said),
        Err(_) => unreachable!("a success is no error"),
    }
}

#[tokio::test]
async fn what_went_wrong_is_said_with_what_mends_it() {
    let of = async |says: &'static [Say]| {
        said(&settings(&Collector::start(says).await.url)).await.err().unwrap_or_default()
    };
    let other = of(&[Say::Http1]).await;
    assert!(other.contains("(4318) wants --otlp-protocol http/protobuf"), "{other}");
    let lacks = of(&[Say::No(Code::Unimplemented, None)]).await;
    assert!(lacks.contains("it may lack this signal"), "{lacks}");
    let hostile = of(&[Say::No(Code::PermissionDenied, None)]).await;
    assert!(hostile.starts_with("PermissionDenied: no\\x1b;"), "{hostile}");
    assert!(of(&[Say::Http(503)]).await.contains("HTTP 503"), "a proxy");
    let nobody = said(&settings(&Collector::refusing().await.url)).await.unwrap_err();
    assert!(nobody.contains("Connection refused") && !nobody.contains("127.0.0.1"), "{nobody}");
    // The other way around: who posts to a port for gRPC.
    let collector = Collector::start(&[Say::Take]).await;
    let posts = Settings { method: None, ..settings(&collector.url) };
    let error = trust::client(&posts).unwrap().post(&posts.url).body("x").send().await.unwrap_err();
    let error = trust::said(error);
    assert!(error.contains("wants --otlp-protocol grpc"), "{error}");
}
