//! The courier and the API server's stub: what arrives, how often, and what becomes of what is refused.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Call, Kubernetes, Recorder, of_event};
use crate::testing::kubernetes_stub::{Act, Stub};
use crate::testing::oom;
use crate::{Counts, Courier, Header, Ledger, Settings};

const SOON: Duration = Duration::from_secs(60);

fn courier(stub: &Stub) -> Courier<Call> {
    let settings = Settings {
        headers: vec![Header::bearer(&stub.token)],
        certificate_authority: Some(stub.authority.clone()),
        timeout: SOON,
        batch_items: 1,
        ..Settings::new(&stub.url)
    };
    Courier::start("kubernetes_events", settings, Kubernetes).unwrap()
}

/// Kills of one container, so many, ten minutes apart or one after the other.
fn calls(recorder: &mut Recorder, kills: i64, apart: i64) -> Vec<Call> {
    let call = |at: i64| {
        let event = oom(at * apart, |_| ());
        recorder.see(of_event(&event).unwrap(), Timestamp::UNIX_EPOCH + SignedDuration::from_secs(at * apart))
    };
    (0..kills).filter_map(call).collect()
}

async fn settled(ledger: &Ledger) -> Counts {
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let counts = ledger.counts();
        assert_eq!(counts.offered, counts.delivered + counts.lost_sum() + counts.waiting);
        if counts.waiting == 0 {
            return counts;
        }
        assert!(tokio::time::Instant::now() < end, "{counts:?} {:?}", ledger.answers());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn one_object_is_made_and_patched_whatever_happens_on_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Stub::start(dir.path()).await;
    let courier = courier(&stub);
    let mut all = calls(&mut Recorder::new("n1"), 2, 10).into_iter();
    // The answer to the first is lost: the second try finds it there.
    stub.state().next = [Act::LoseTheAnswer, Act::Say(500), Act::Say(429)].into();
    courier.offer(all.next().unwrap());
    let counts = settled(&courier.ledger()).await;
    assert_eq!((counts.delivered, counts.retries, counts.lost_sum()), (1, 3, 0));
    assert_eq!(courier.ledger().answers(), [(409, 1), (429, 1), (500, 1)]);
    assert_eq!(stub.state().events.len(), 1);

    // The kubelet exchanges the token; until the file has it, the API server says 401.
    stub.state().token = "second".into();
    courier.offer(all.next().unwrap());
    while courier.ledger().answers()[0].0 != 401 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::write(&stub.token, "second\n").unwrap();
    assert_eq!(settled(&courier.ledger()).await.delivered, 2);
    let state = stub.state();
    let event = state.events.values().next().unwrap();
    assert_eq!((state.events.len(), &event["series"]["count"]), (1, &2.into()), "{event}");
}

#[tokio::test]
async fn what_the_server_forgot_is_made_again_with_its_count() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Stub::start(dir.path()).await;
    let courier = courier(&stub);
    for call in calls(&mut Recorder::new("n1"), 2, 10) {
        courier.offer(call);
        settled(&courier.ledger()).await;
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
    assert_eq!(courier.close(SOON).await.delivered, 2);
}

#[tokio::test]
async fn what_is_refused_is_counted_by_its_reason_and_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Stub::start(dir.path()).await;
    let courier = courier(&stub);
    stub.state().next = [403, 422].map(Act::Say).into();
    let mut all = calls(&mut Recorder::new("n1"), 3, 1000).into_iter();
    courier.offer(all.next().unwrap());
    courier.offer(all.next().unwrap());
    settled(&courier.ledger()).await;
    stub.state().namespaces.clear();
    courier.offer(all.next().unwrap());
    let counts = settled(&courier.ledger()).await;
    assert_eq!((counts.refused, counts.retries, counts.delivered), (3, 0, 0));
    assert_eq!(courier.ledger().answers(), [(403, 1), (404, 1), (422, 1)]);
}

#[test]
fn a_refusal_says_what_to_do_next() {
    use crate::Format;
    use reqwest::StatusCode;
    let of = |status, answer: &str| Kubernetes.mends(status, answer.as_bytes()).unwrap_or_default();
    let forbidden =
        of(StatusCode::FORBIDDEN, "events.events.k8s.io is forbidden: User cannot create resource");
    assert!(forbidden.contains("apply manifests/components/kubernetes-events"), "{forbidden}");
    let ends = of(StatusCode::FORBIDDEN, "because it is being terminated");
    assert!(ends.contains("is being deleted"), "{ends}");
    assert!(of(StatusCode::UNAUTHORIZED, "").contains("--kubernetes-token"));
    assert!(of(StatusCode::NOT_FOUND, "").contains("namespace is gone"));
    assert_eq!(Kubernetes.mends(StatusCode::BAD_GATEWAY, b""), None);
    assert!(Kubernetes.passes(StatusCode::UNAUTHORIZED) && !Kubernetes.passes(StatusCode::FORBIDDEN));
}
