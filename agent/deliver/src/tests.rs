//! Couriers against destinations that misbehave; every item must be accounted for.

use std::time::Duration;

use super::queue::Weigh;
use super::{Counts, Courier, Format, Header, Route, Settings};
use crate::testing::hostile::{Act, BUSY, ELSEWHERE, OK, Server};

const SOON: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Line(String);

impl Weigh for Line {
    fn bytes(&self) -> usize {
        self.0.len()
    }
}

struct Lines;

impl Format for Lines {
    type Item = Line;

    fn content_type(&self) -> &'static str {
        "text/plain"
    }

    fn body(&self, batch: &[Line]) -> anyhow::Result<Vec<u8>> {
        Ok(batch.iter().flat_map(|line| format!("{}\n", line.0).into_bytes()).collect())
    }

    fn refused(&self, answer: &[u8]) -> u64 {
        u64::from(answer.starts_with(b"but one"))
    }
}

fn settings(url: &str) -> Settings {
    Settings {
        headers: vec![Header::parse("X-Scope-OrgID=shop").unwrap()],
        linger: Duration::from_millis(20),
        timeout: Duration::from_millis(400),
        ..Settings::new(url)
    }
}

fn courier(settings: Settings) -> Courier<Line> {
    Courier::start("test", settings, Lines).unwrap()
}

fn lines(server: &Server) -> usize {
    server.taken().iter().map(|body| body.lines().count()).sum()
}

/// Nothing is missing, and nothing waits.
fn exact(counts: Counts, offered: u64) -> Counts {
    assert_eq!((counts.offered, counts.waiting, counts.waiting_bytes), (offered, 0, 0), "{counts:?}");
    assert_eq!(counts.delivered + counts.lost_sum(), offered, "{counts:?}");
    counts
}

/// Ten lines, and what became of them: delivered, refused, expired, abandoned, retries.
async fn ten(acts: &'static [Act], change: impl Fn(&mut Settings)) -> (Server, [u64; 5]) {
    let server = Server::start(acts).await;
    let mut settings = settings(&server.url);
    change(&mut settings);
    let courier = courier(settings);
    (0..10).for_each(|n| courier.offer(Line(format!("line {n}"))));
    let settled = async {
        loop {
            if courier.ledger().counts().waiting == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, settled).await.expect("not settled");
    let counts = exact(courier.close(SOON).await, 10);
    (server, [counts.delivered, counts.refused, counts.expired, counts.abandoned, counts.retries])
}

#[tokio::test]
async fn what_fails_for_now_is_tried_again_and_arrives_once() {
    const AT_ONCE: Act =
        Act::Say("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\nslow");
    let (server, counts) = ten(&[BUSY, AT_ONCE, Act::Reset, Act::Hang, Act::Drip, OK], |_| {}).await;
    assert_eq!(counts, [10, 0, 0, 0, 5]);
    let lines: String = (0..10).map(|n| format!("line {n}\n")).collect();
    assert_eq!(*server.taken(), [lines]);
}

#[tokio::test]
async fn what_is_refused_for_good_is_counted_and_not_tried_again() {
    const NO: Act = Act::Say("HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nwho");
    let (server, counts) = ten(&[NO], |_| {}).await;
    assert_eq!(counts, [0, 10, 0, 0, 0]);
    assert_eq!(server.requests(), 1);
    // A redirect is no way to choose another destination.
    assert_eq!(ten(&[ELSEWHERE], |_| {}).await.1, [0, 10, 0, 0, 0]);
}

#[tokio::test]
async fn a_success_may_have_refused_some() {
    const BUT_ONE: Act = Act::Say("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nbut one");
    assert_eq!(ten(&[BUT_ONE], |_| {}).await.1, [9, 1, 0, 0, 0]);
}

#[tokio::test]
async fn patience_ends() {
    let (_, counts) = ten(&[Act::Reset], |settings| settings.patience = Duration::from_millis(300)).await;
    assert_eq!(counts[..4], [0, 0, 10, 0]);
}

#[tokio::test]
async fn one_that_hangs_costs_a_bounded_queue_and_nobody_else() {
    let (hung, well) = (Server::start(&[Act::Hang]).await, Server::start(&[OK]).await);
    let slow = Settings { queue_bytes: 1000, batch_items: 10, timeout: SOON, ..settings(&hung.url) };
    let (slow, fast) = (courier(slow), courier(settings(&well.url)));
    // The first batch is under way when the others come, so that what is dropped can be told exactly.
    (0..10).for_each(|_| slow.offer(Line("0123456789".into())));
    while hung.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for n in 0..5000 {
        slow.offer(Line(format!("{n:010}")));
        fast.offer(Line(format!("{n:010}")));
    }
    while fast.ledger().counts().delivered < 5000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(lines(&well), 5000);
    let counts = slow.ledger().counts();
    assert_eq!(
        (counts.offered, counts.queue_full, counts.waiting, counts.waiting_bytes),
        (5010, 4900, 110, 1100)
    );
    let counts = exact(slow.close(Duration::from_millis(50)).await, 5010);
    assert_eq!((counts.delivered, counts.abandoned), (0, 110), "what was under way and what waited");
}

#[tokio::test]
async fn closing_delivers_what_waits() {
    let server = Server::start(&[OK]).await;
    let patient = Settings { linger: SOON, ..settings(&server.url) };
    let courier = courier(patient);
    (0..2000).for_each(|n| courier.offer(Line(n.to_string())));
    assert_eq!(exact(courier.close(SOON).await, 2000).delivered, 2000);
    assert_eq!(lines(&server), 2000);
}

#[tokio::test]
async fn what_waits_goes_where_the_destination_has_moved_to() {
    // Nobody would come before that, but to another address.
    const IN_TEN_MINUTES: Act =
        Act::Say("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 600\r\nContent-Length: 0\r\n\r\n");
    let (old, new) = (Server::start(&[IN_TEN_MINUTES]).await, Server::start(&[OK]).await);
    let courier = courier(settings(&old.url));
    (0..10).for_each(|n| courier.offer(Line(n.to_string())));
    while old.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    courier.turn(Route::new("test", settings(&new.url)).unwrap());
    assert_eq!(courier.url(), new.url);
    let moved = async {
        while courier.ledger().counts().waiting > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, moved).await.expect("it still waits for the old one");
    courier.offer(Line("10".into()));
    assert_eq!(exact(courier.close(SOON).await, 11).delivered, 11);
    assert_eq!((lines(&new), old.requests()), (11, 1));
}

#[tokio::test]
async fn settings_that_cannot_be_are_told_at_the_start() {
    let error = |settings: Settings| format!("{:#}", Courier::start("loki", settings, Lines).err().unwrap());
    let of = |url: &str| error(Settings::new(url));
    assert!(of("loki:3100").contains("must begin with http:// or https://"), "{}", of("loki:3100"));
    assert!(of("nonsense").contains("is no URL"));
    assert!(of("https://ann:hunter2@a/").contains("go into a header"));
    for hidden in ["https://ann:hunter2@a/", "ann:hunter2@a", "https:/ann:hunter2@[a/"] {
        assert!(!of(hidden).contains("hunter2"), "{}", of(hidden));
    }
    let headers = vec![Header::parse("Authorization=Bearer \x01").unwrap()];
    assert!(
        error(Settings { headers, ..Settings::new("http://a/") }).contains("bytes that no header may have")
    );
    let ca = Some("/nonexistent".into());
    let missing = error(Settings { certificate_authority: ca, ..Settings::new("https://a/") });
    assert!(missing.contains("read /nonexistent"), "{missing}");
}
