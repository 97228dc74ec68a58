//! Delivery by gRPC to collectors that behave and to collectors that do not; every record must be accounted for.

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
use super::otlp::OtlpLogs;
use super::worker::SendOutcome;
use super::{
    DeliveryCounts, Destination, DestinationFormat, DestinationSettings, EncodedEvent, ExportHeader,
    http_client,
};
use crate::testing::collector::{Collector, Reply};
use crate::testing::{lookup, wait_until};

const SOON: Duration = Duration::from_secs(60);
const METHOD: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

fn settings(url: &str) -> DestinationSettings {
    DestinationSettings {
        method: Some(METHOD),
        headers: vec![ExportHeader::parse("X-Scope-OrgID=shop").unwrap()],
        linger: Duration::from_millis(20),
        ..DestinationSettings::new(url)
    }
}

fn destination(settings: DestinationSettings) -> Destination<Arc<EncodedEvent>> {
    Destination::start("otlp_logs", settings, OtlpLogs).unwrap()
}

/// Sends ten records. Returns the counts: delivered, refused, expired, abandoned, retries.
async fn send_ten(
    replies: &'static [Reply],
    change: impl Fn(&mut DestinationSettings),
) -> (Collector, [u64; 5]) {
    let collector = Collector::start(replies).await;
    let mut settings = settings(&collector.url);
    change(&mut settings);
    let destination = destination(settings);
    (0..10).for_each(|n| destination.offer(lookup(&format!("{n}.example"), n)));
    wait_until("every record has an outcome", || destination.stats().counts().waiting == 0).await;
    let counts = destination.close(SOON).await;
    assert_eq!((counts.offered, counts.waiting, counts.waiting_bytes), (10, 0, 0), "{counts:?}");
    assert_eq!(counts.delivered + counts.lost_sum(), 10, "{counts:?}");
    (collector, [counts.delivered, counts.refused, counts.expired, counts.abandoned, counts.retries])
}

fn short(settings: &mut DestinationSettings) {
    settings.timeout = Duration::from_millis(600);
}

#[tokio::test]
async fn a_collector_gets_the_same_records_by_grpc_as_by_http() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "Bearer hunter2\n").unwrap();
    let header = format!("Authorization=@{}", token.display());
    let secret =
        |settings: &mut DestinationSettings| settings.headers.push(ExportHeader::parse(&header).unwrap());
    let (collector, counts) = send_ten(&[Reply::Accept], secret).await;
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
    let mut posted = ExportLogsServiceRequest::decode(OtlpLogs.encode(&batch).unwrap().as_slice()).unwrap();
    let posted = &mut posted.resource_logs[0].scope_logs[0].log_records[0];
    posted.observed_time_unix_nano = records[0].observed_time_unix_nano;
    assert_eq!(records[0], posted);
}

#[tokio::test]
async fn a_call_that_fails_temporarily_is_retried_and_arrives_once() {
    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);
    let replies = &[
        Reply::Reject(Code::Unavailable, None),
        Reply::Reject(Code::ResourceExhausted, AT_ONCE),
        Reply::Reject(Code::Aborted, AT_ONCE),
        Reply::HttpStatus(503),
        Reply::ResetStream,
        Reply::Stall,
        Reply::Accept,
    ];
    let (collector, counts) = send_ten(replies, short).await;
    assert_eq!(counts, [10, 0, 0, 0, 6]);
    assert_eq!((collector.logs().len(), collector.calls()), (1, 7));
}

#[tokio::test]
async fn a_call_that_is_refused_permanently_is_counted_and_not_retried() {
    const REPLIES: [&[Reply]; 6] = [
        &[Reply::Reject(Code::InvalidArgument, None)],
        &[Reply::Reject(Code::Unauthenticated, None)],
        &[Reply::Reject(Code::Unimplemented, None)],
        // RESOURCE_EXHAUSTED is retryable only with a retry delay.
        &[Reply::Reject(Code::ResourceExhausted, None)],
        // A retry delay does not make other codes retryable.
        &[Reply::Reject(Code::InvalidArgument, Some(Duration::ZERO))],
        &[Reply::HttpStatus(401)],
    ];
    for replies in REPLIES {
        let (collector, counts) = send_ten(replies, |_| {}).await;
        assert_eq!((counts, collector.calls()), ([0, 10, 0, 0, 0], 1), "{replies:?}");
    }
}

#[tokio::test]
async fn records_that_a_success_reports_as_rejected_are_counted_as_refused() {
    assert_eq!(send_ten(&[Reply::AcceptBut(3)], |_| {}).await.1, [7, 3, 0, 0, 0]);
    assert_eq!(send_ten(&[Reply::AcceptBut(99)], |_| {}).await.1, [0, 10, 0, 0, 0]);
    // A negative count, and a warning without one.
    assert_eq!(send_ten(&[Reply::AcceptBut(-3)], |_| {}).await.1, [10, 0, 0, 0, 0]);
    assert_eq!(send_ten(&[Reply::AcceptBut(0)], |_| {}).await.1, [10, 0, 0, 0, 0]);
}

#[tokio::test]
async fn a_requested_retry_delay_is_kept() {
    const REPLIES: &[Reply] =
        &[Reply::Reject(Code::Unavailable, Some(Duration::from_secs(2))), Reply::Accept];
    let begun = Instant::now();
    assert_eq!(send_ten(REPLIES, |_| {}).await.1, [10, 0, 0, 0, 1]);
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// A proxy that forwards bytes. Once `frozen` is set, its first connection reads bytes and forwards none.
async fn proxy(to: &Collector, frozen: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let to = to.url.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((near, _)) = listener.accept().await {
            let (near, far) = (near.into_split(), TcpStream::connect(&to).await.unwrap().into_split());
            let dies = std::mem::take(&mut first).then(|| frozen.clone());
            tokio::spawn(forward(near.0, far.1, dies.clone()));
            tokio::spawn(forward(far.0, near.1, dies));
        }
    });
    url
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, dies: Option<Arc<AtomicBool>>) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let dead = dies.as_ref().is_some_and(|dies| dies.load(Relaxed));
        if !dead && to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

/// As after a restart of a load balancer that dropped its connections: without pings, each call would use the dead one.
#[tokio::test]
async fn a_connection_that_died_silently_is_replaced() {
    let collector = Collector::start(&[Reply::Accept]).await;
    let frozen = Arc::new(AtomicBool::new(false));
    let destination = destination(DestinationSettings {
        timeout: Duration::from_secs(2),
        ..settings(&proxy(&collector, frozen.clone()).await)
    });
    destination.offer(lookup("before.example", 1));
    wait_until("the records are delivered", || destination.stats().counts().delivered == 1).await;
    frozen.store(true, Relaxed);
    destination.offer(lookup("after.example", 2));
    wait_until("the second record is delivered", || destination.stats().counts().delivered == 2).await;
    assert!(destination.close(SOON).await.retries >= 1);
}

/// The name of a collector, its replies, and whether it has received everything in the end.
const COLLECTORS: [(&str, &[Reply], bool); 13] = [
    ("good", &[Reply::Accept], true),
    ("slow", &[Reply::AcceptAfter(Duration::from_millis(50))], true),
    ("refuses", &[], false),
    ("hangs", &[Reply::Hang], false),
    ("stalls", &[Reply::Stall], false),
    ("resets mid-stream", &[Reply::ResetStream], false),
    ("cuts", &[Reply::ResetConnection], false),
    ("endless", &[Reply::Endless], false),
    ("no status", &[Reply::NoStatus], false),
    ("later", &[Reply::Reject(Code::Unavailable, Some(Duration::from_secs(1)))], false),
    ("invalid", &[Reply::Reject(Code::InvalidArgument, None)], false),
    ("busy proxy", &[Reply::HttpStatus(503)], false),
    ("speaks http/1", &[Reply::Http1], false),
];

const QUEUE: usize = 256 << 10;
const BATCH: usize = 64 << 10;

fn assert_accounted(name: &str, counts: DeliveryCounts) {
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
async fn bad_collectors_do_not_affect_the_good_ones_by_grpc() {
    let mut all = Vec::new();
    for (name, replies, good) in COLLECTORS {
        let collector =
            if replies.is_empty() { Collector::refusing().await } else { Collector::start(replies).await };
        let settings = DestinationSettings {
            timeout: if good { SOON } else { Duration::from_millis(400) },
            retry_for: Duration::from_secs(1),
            queue_bytes: QUEUE,
            batch_bytes: BATCH,
            ..settings(&collector.url)
        };
        let destination = destination(settings);
        all.push((name, good, collector, destination));
    }
    let (begun, mut offered) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(2) {
        for _ in 0..5 {
            let event = lookup(&format!("{offered}.example"), 1);
            all.iter().for_each(|(.., destination)| destination.offer(event.clone()));
            offered += 1;
        }
        all.iter().for_each(|(name, .., destination)| assert_accounted(name, destination.stats().counts()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (name, good, collector, destination) in all {
        if good {
            wait_until("the records are delivered", || destination.stats().counts().waiting == 0).await;
            assert_eq!(arrived(&collector).len(), offered, "{name}");
        }
        let counts = destination.close(Duration::from_millis(500)).await;
        println!("{name:17} calls {:3} {counts:?}", collector.calls());
        assert_accounted(name, counts);
        assert_eq!((counts.offered, counts.waiting), (offered as u64, 0), "{name}: {counts:?}");
        assert_eq!(counts.delivered, if good { offered as u64 } else { 0 }, "{name}: {counts:?}");
        match name {
            _ if good => {}
            // A response without a status is UNKNOWN, which OTLP does not retry.
            "invalid" | "no status" => assert_eq!(counts.refused, counts.offered, "{counts:?}"),
            "later" => assert!((1..9).contains(&collector.calls()), "{}", collector.calls()),
            name => assert_eq!(counts.refused, 0, "{name}: {counts:?}"),
        }
    }
}

#[tokio::test]
async fn a_grpc_url_with_a_path_is_an_error_at_the_start() {
    for url in ["http://collector:4317/v1/logs", "http://collector:4317/?tenant=b"] {
        let error = format!("{:#}", Destination::start("otlp_logs", settings(url), OtlpLogs).err().unwrap());
        assert!(error.contains("no path: use http://collector:4317, or set --otlp-protocol"), "{error}");
    }
}

/// Makes one call. The error is its description.
async fn call_error(settings: &DestinationSettings) -> Result<(), String> {
    let client = http_client::build(settings).unwrap();
    let call = |client, body| async move {
        let grpc = Grpc::new(client, settings, METHOD).unwrap();
        grpc.call(HeaderMap::new(), body).await
    };
    match call(client, Bytes::from(OtlpLogs.encode(&[lookup("a.example", 1)]).unwrap())).await {
        Ok(_) => Ok(()),
        Err(SendOutcome::Refused(reason) | SendOutcome::Retry(reason, _)) => Err(reason),
        Err(_) => unreachable!("a success is no error"),
    }
}

#[tokio::test]
async fn the_description_of_a_failed_call_has_a_remedy() {
    let of = async |replies: &'static [Reply]| {
        call_error(&settings(&Collector::start(replies).await.url)).await.err().unwrap_or_default()
    };
    let other = of(&[Reply::Http1]).await;
    assert!(other.contains("(4318) needs --otlp-protocol http/protobuf"), "{other}");
    let lacks = of(&[Reply::Reject(Code::Unimplemented, None)]).await;
    assert!(lacks.contains("may not support this signal"), "{lacks}");
    let hostile = of(&[Reply::Reject(Code::PermissionDenied, None)]).await;
    assert!(hostile.starts_with("PermissionDenied: no\\x1b;"), "{hostile}");
    assert!(of(&[Reply::HttpStatus(503)]).await.contains("HTTP 503"), "a proxy");
    let refused = call_error(&settings(&Collector::refusing().await.url)).await.unwrap_err();
    assert!(refused.contains("Connection refused") && !refused.contains("127.0.0.1"), "{refused}");
    // The other way around: a POST to a port for gRPC.
    let collector = Collector::start(&[Reply::Accept]).await;
    let posts = DestinationSettings { method: None, ..settings(&collector.url) };
    let error = http_client::build(&posts).unwrap().post(&posts.url).body("x").send().await.unwrap_err();
    let error = http_client::describe_error(error);
    assert!(error.contains("needs --otlp-protocol grpc"), "{error}");
}
