//! Events sent to the API server's stub: what arrives, how often, and how rejections are counted.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{EventWrite, KubernetesEvents, SeriesTracker, notice_from_event};
use crate::testing::api_server_stub::{ApiServerStub, StubAction};
use crate::testing::oom_incident;
use crate::{DeliveryCounts, Destination, DestinationSettings, DestinationStats, ExportHeader};

const SOON: Duration = Duration::from_secs(60);

fn destination(stub: &ApiServerStub) -> Destination<EventWrite> {
    let settings = DestinationSettings {
        headers: vec![ExportHeader::bearer(&stub.token)],
        certificate_authority: Some(stub.authority.clone()),
        timeout: SOON,
        batch_items: 1,
        ..DestinationSettings::new(&stub.url)
    };
    Destination::start("kubernetes_events", settings, KubernetesEvents).unwrap()
}

/// The writes for `kills` kills of one container, one every `interval` seconds.
fn writes(tracker: &mut SeriesTracker, kills: i64, interval: i64) -> Vec<EventWrite> {
    let write = |n: i64| {
        let event = oom_incident(n * interval, |_| ());
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(n * interval);
        tracker.add(notice_from_event(&event).unwrap(), now)
    };
    (0..kills).filter_map(write).collect()
}

async fn settled(stats: &DestinationStats) -> DeliveryCounts {
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let counts = stats.counts();
        assert_eq!(counts.offered, counts.delivered + counts.lost_sum() + counts.waiting);
        if counts.waiting == 0 {
            return counts;
        }
        assert!(tokio::time::Instant::now() < end, "{counts:?} {:?}", stats.failed_responses());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn one_object_is_created_and_patched_despite_lost_responses_and_errors() {
    let dir = tempfile::tempdir().unwrap();
    let stub = ApiServerStub::start(dir.path()).await;
    let destination = destination(&stub);
    let mut all = writes(&mut SeriesTracker::new("n1"), 2, 10).into_iter();
    // The response to the first attempt is lost; the second attempt finds that the object exists.
    stub.state().next = [StubAction::LoseResponse, StubAction::Respond(500), StubAction::Respond(429)].into();
    destination.offer(all.next().unwrap());
    let counts = settled(&destination.stats()).await;
    assert_eq!((counts.delivered, counts.retries, counts.lost_sum()), (1, 3, 0));
    assert_eq!(destination.stats().failed_responses(), [(409, 1), (429, 1), (500, 1)]);
    assert_eq!(stub.state().events.len(), 1);

    // The kubelet replaces the token; until the file has the new one, the API server answers 401.
    stub.state().token = "second".into();
    destination.offer(all.next().unwrap());
    while destination.stats().failed_responses()[0].0 != 401 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::write(&stub.token, "second\n").unwrap();
    assert_eq!(settled(&destination.stats()).await.delivered, 2);
    let state = stub.state();
    let event = state.events.values().next().unwrap();
    assert_eq!((state.events.len(), &event["series"]["count"]), (1, &2.into()), "{event}");
}

#[tokio::test]
async fn an_event_that_the_server_deleted_is_created_again_with_its_count() {
    let dir = tempfile::tempdir().unwrap();
    let stub = ApiServerStub::start(dir.path()).await;
    let destination = destination(&stub);
    for write in writes(&mut SeriesTracker::new("n1"), 2, 10) {
        destination.offer(write);
        settled(&destination.stats()).await;
        if stub.state().log.len() == 1 {
            stub.state().events.clear();
        }
    }
    let (methods, event) = {
        let state = stub.state();
        (state.log.clone(), state.events.values().next().unwrap().clone())
    };
    let of = |method: &str, status| (method.to_owned(), status);
    assert_eq!(methods, [of("POST", 201), of("PATCH", 404), of("POST", 201)]);
    assert_eq!(event["series"]["count"], 2, "{event}");
    assert_eq!(destination.close(SOON).await.delivered, 2);
}

#[tokio::test]
async fn a_rejected_event_is_counted_as_refused_and_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let stub = ApiServerStub::start(dir.path()).await;
    let destination = destination(&stub);
    stub.state().next = [403, 422].map(StubAction::Respond).into();
    let mut all = writes(&mut SeriesTracker::new("n1"), 3, 1000).into_iter();
    destination.offer(all.next().unwrap());
    destination.offer(all.next().unwrap());
    settled(&destination.stats()).await;
    stub.state().namespaces.clear();
    destination.offer(all.next().unwrap());
    let counts = settled(&destination.stats()).await;
    assert_eq!((counts.refused, counts.retries, counts.delivered), (3, 0, 0));
    assert_eq!(destination.stats().failed_responses(), [(403, 1), (404, 1), (422, 1)]);
}

#[test]
fn the_description_of_a_rejection_has_a_remedy() {
    use crate::DestinationFormat;
    use reqwest::StatusCode;
    let of = |status, answer: &str| KubernetesEvents.remedy(status, answer.as_bytes()).unwrap_or_default();
    let forbidden =
        of(StatusCode::FORBIDDEN, "events.events.k8s.io is forbidden: User cannot create resource");
    assert!(forbidden.contains("apply manifests/components/kubernetes-events"), "{forbidden}");
    let ends = of(StatusCode::FORBIDDEN, "because it is being terminated");
    assert!(ends.contains("is being deleted"), "{ends}");
    assert!(of(StatusCode::UNAUTHORIZED, "").contains("--kubernetes-token"));
    assert!(of(StatusCode::NOT_FOUND, "").contains("namespace is gone"));
    assert_eq!(KubernetesEvents.remedy(StatusCode::BAD_GATEWAY, b""), None);
    assert!(
        KubernetesEvents.is_retryable(StatusCode::UNAUTHORIZED)
            && !KubernetesEvents.is_retryable(StatusCode::FORBIDDEN)
    );
}
