//! Delivery to destinations that misbehave; every item must be accounted for.

use std::time::Duration;

use super::queue::QueueItem;
use super::{
    DeliveryCounts, Destination, DestinationClient, DestinationFormat, DestinationSettings, ExportHeader,
};
use crate::testing::hostile_server::{BUSY, Behavior, HostileServer, OK, REDIRECT};
use crate::testing::wait_until;

const SOON: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct LineItem(String);

impl QueueItem for LineItem {
    fn bytes(&self) -> usize {
        self.0.len()
    }
}

struct LineFormat;

impl DestinationFormat for LineFormat {
    type Item = LineItem;

    fn content_type(&self) -> &'static str {
        "text/plain"
    }

    fn encode(&self, batch: &[LineItem]) -> anyhow::Result<Vec<u8>> {
        Ok(batch.iter().flat_map(|line| format!("{}\n", line.0).into_bytes()).collect())
    }

    fn rejected(&self, answer: &[u8]) -> u64 {
        u64::from(answer.starts_with(b"but one"))
    }
}

fn settings(url: &str) -> DestinationSettings {
    DestinationSettings {
        headers: vec![ExportHeader::parse("X-Scope-OrgID=shop").unwrap()],
        linger: Duration::from_millis(20),
        timeout: Duration::from_millis(400),
        ..DestinationSettings::new(url)
    }
}

fn destination(settings: DestinationSettings) -> Destination<LineItem> {
    Destination::start("test", settings, LineFormat).unwrap()
}

fn lines(server: &HostileServer) -> usize {
    server.accepted().iter().map(|body| body.lines().count()).sum()
}

/// Asserts that every item was delivered or lost, and none waits.
fn assert_accounted(counts: DeliveryCounts, offered: u64) -> DeliveryCounts {
    assert_eq!((counts.offered, counts.waiting, counts.waiting_bytes), (offered, 0, 0), "{counts:?}");
    assert_eq!(counts.delivered + counts.lost_sum(), offered, "{counts:?}");
    counts
}

/// Sends ten lines. Returns the counts: delivered, refused, expired, abandoned, retries.
async fn send_ten(
    behaviors: &'static [Behavior],
    change: impl Fn(&mut DestinationSettings),
) -> (HostileServer, [u64; 5]) {
    let server = HostileServer::start(behaviors).await;
    let mut settings = settings(&server.url);
    change(&mut settings);
    let destination = destination(settings);
    (0..10).for_each(|n| destination.offer(LineItem(format!("line {n}"))));
    wait_until("every line has an outcome", || destination.stats().counts().waiting == 0).await;
    let counts = assert_accounted(destination.close(SOON).await, 10);
    (server, [counts.delivered, counts.refused, counts.expired, counts.abandoned, counts.retries])
}

#[tokio::test]
async fn a_batch_that_fails_temporarily_is_retried_and_arrives_once() {
    const AT_ONCE: Behavior = Behavior::Respond(
        "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\nslow",
    );
    let (server, counts) =
        send_ten(&[BUSY, AT_ONCE, Behavior::Reset, Behavior::Hang, Behavior::RespondSlowly, OK], |_| {})
            .await;
    assert_eq!(counts, [10, 0, 0, 0, 5]);
    let lines: String = (0..10).map(|n| format!("line {n}\n")).collect();
    assert_eq!(*server.accepted(), [lines]);
}

#[tokio::test]
async fn a_batch_that_is_refused_permanently_is_counted_and_not_retried() {
    const NO: Behavior = Behavior::Respond("HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nwho");
    let (server, counts) = send_ten(&[NO], |_| {}).await;
    assert_eq!(counts, [0, 10, 0, 0, 0]);
    assert_eq!(server.requests(), 1);
    // Redirects are not followed.
    assert_eq!(send_ten(&[REDIRECT], |_| {}).await.1, [0, 10, 0, 0, 0]);
}

#[tokio::test]
async fn items_that_a_success_reports_as_rejected_are_counted_as_refused() {
    const BUT_ONE: Behavior = Behavior::Respond("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nbut one");
    assert_eq!(send_ten(&[BUT_ONE], |_| {}).await.1, [9, 1, 0, 0, 0]);
}

#[tokio::test]
async fn a_batch_expires_after_retry_for() {
    let (_, counts) =
        send_ten(&[Behavior::Reset], |settings| settings.retry_for = Duration::from_millis(300)).await;
    assert_eq!(counts[..4], [0, 0, 10, 0]);
}

#[tokio::test]
async fn a_destination_that_hangs_has_a_bounded_queue_and_does_not_affect_others() {
    let (hung, well) = (HostileServer::start(&[Behavior::Hang]).await, HostileServer::start(&[OK]).await);
    let slow =
        DestinationSettings { queue_bytes: 1000, batch_items: 10, timeout: SOON, ..settings(&hung.url) };
    let (slow, fast) = (destination(slow), destination(settings(&well.url)));
    // Wait until the first batch is being sent, so that the number of dropped items is exact.
    (0..10).for_each(|_| slow.offer(LineItem("0123456789".into())));
    while hung.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for n in 0..5000 {
        slow.offer(LineItem(format!("{n:010}")));
        fast.offer(LineItem(format!("{n:010}")));
    }
    while fast.stats().counts().delivered < 5000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(lines(&well), 5000);
    let counts = slow.stats().counts();
    assert_eq!(
        (counts.offered, counts.queue_full, counts.waiting, counts.waiting_bytes),
        (5010, 4900, 110, 1100)
    );
    let counts = assert_accounted(slow.close(Duration::from_millis(50)).await, 5010);
    assert_eq!((counts.delivered, counts.abandoned), (0, 110), "the batch in flight and the queue");
}

#[tokio::test]
async fn closing_delivers_the_items_that_wait() {
    let server = HostileServer::start(&[OK]).await;
    let patient = DestinationSettings { linger: SOON, ..settings(&server.url) };
    let destination = destination(patient);
    (0..2000).for_each(|n| destination.offer(LineItem(n.to_string())));
    assert_eq!(assert_accounted(destination.close(SOON).await, 2000).delivered, 2000);
    assert_eq!(lines(&server), 2000);
}

#[tokio::test]
async fn waiting_items_are_sent_to_the_destinations_new_address() {
    // The requested delay holds for this address, but not for another one.
    const IN_TEN_MINUTES: Behavior = Behavior::Respond(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 600\r\nContent-Length: 0\r\n\r\n",
    );
    let (old, new) = (HostileServer::start(&[IN_TEN_MINUTES]).await, HostileServer::start(&[OK]).await);
    let destination = destination(settings(&old.url));
    (0..10).for_each(|n| destination.offer(LineItem(n.to_string())));
    while old.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    destination.replace_client(DestinationClient::new("test", settings(&new.url)).unwrap());
    assert_eq!(destination.url(), new.url);
    wait_until("the items are sent to the new address", || destination.stats().counts().waiting == 0).await;
    destination.offer(LineItem("10".into()));
    assert_eq!(assert_accounted(destination.close(SOON).await, 11).delivered, 11);
    assert_eq!((lines(&new), old.requests()), (11, 1));
}

#[tokio::test]
async fn invalid_settings_are_an_error_at_the_start() {
    let error = |settings: DestinationSettings| {
        format!("{:#}", Destination::start("loki", settings, LineFormat).err().unwrap())
    };
    let of = |url: &str| error(DestinationSettings::new(url));
    assert!(of("loki:3100").contains("must begin with http:// or https://"), "{}", of("loki:3100"));
    assert!(of("nonsense").contains("is no URL"));
    assert!(of("https://ann:hunter2@a/").contains("put them into a header"));
    for hidden in ["https://ann:hunter2@a/", "ann:hunter2@a", "https:/ann:hunter2@[a/"] {
        assert!(!of(hidden).contains("hunter2"), "{}", of(hidden));
    }
    let headers = vec![ExportHeader::parse("Authorization=Bearer \x01").unwrap()];
    assert!(
        error(DestinationSettings { headers, ..DestinationSettings::new("http://a/") })
            .contains("bytes that a header must not have")
    );
    let ca = Some("/nonexistent".into());
    let missing =
        error(DestinationSettings { certificate_authority: ca, ..DestinationSettings::new("https://a/") });
    assert!(missing.contains("read /nonexistent"), "{missing}");
}
