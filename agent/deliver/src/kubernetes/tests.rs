//! Which Events are written on a pod, how often, and that the API server's validation would accept them.

use serde_json::Value;

use super::*;
use crate::testing::{event_validation as validation, lookup, oom_incident};
use jiff::Timestamp;
use podopsy_model::event::EventKind;
use podopsy_model::incident::{Level, Verdict};
use podopsy_model::pod_incident::Correlation;
use podopsy_model::{Event, PodIncident, PodRef};
use std::sync::atomic::Ordering::Relaxed;

pub fn pod(name: &str) -> PodRef {
    PodRef { namespace: "shop".into(), name: name.into(), uid: format!("uid-{name}"), labels: [].into() }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// A pod incident of `shop/basket` with failed lookups.
pub fn streak(failures: u64, until: i64) -> PodIncident {
    PodIncident {
        incident: "3f2a-i1-uid-bask".into(),
        from: at(0),
        until: at(until),
        open: true,
        node: "n1".into(),
        pod: pod("basket"),
        containers: Vec::new(),
        oom_kills: 0,
        ooms: Vec::new(),
        sigkills: 0,
        restarts: 0,
        failed_lookups: failures,
        failed_names: vec![("db.shop.svc".into(), 2), ("a\\x1b".into(), 1)],
        events: Vec::new(),
        correlated: None,
    }
}

fn add(tracker: &mut SeriesTracker, event: &Event, second: i64) -> Option<EventWrite> {
    tracker.add(notice_from_event(event).unwrap(), at(second))
}

fn request(write: &EventWrite) -> DeliveryRequest {
    KubernetesEvents.request(std::slice::from_ref(write)).unwrap()
}

fn body(request: &DeliveryRequest) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

/// The request of a write, which must pass the API server's validation.
fn valid_request(write: &EventWrite) -> DeliveryRequest {
    let request = request(write);
    let (sent, namespace) = (body(&request), write.object.metadata.namespace.as_str());
    let create = if write.is_update {
        assert_eq!(validation::errors_in_patch(&sent), [""; 0], "{sent}");
        *request.fallback.clone().unwrap().1
    } else {
        request.clone()
    };
    assert_eq!(validation::errors_in_new(&body(&create), namespace), [""; 0], "{}", body(&create));
    request
}

#[test]
fn an_oom_incident_is_one_event_whose_note_explains_the_verdicts() {
    let mut tracker = SeriesTracker::new("n1");
    let event = oom_incident(0, |it| {
        it.victims.push(it.victims[0].clone());
        it.victims.push(it.victims[0].clone());
        it.verdicts = vec![Verdict::SilentChildKill];
        it.advice = Some("grew by 3.0 MiB a minute".into());
    });
    let write = add(&mut tracker, &event, 0).unwrap();
    let request = valid_request(&write);
    assert_eq!(
        (&request.method, request.path.as_str()),
        (&Method::POST, "/apis/events.k8s.io/v1/namespaces/shop/events")
    );
    let sent = body(&request);
    assert_eq!(sent["regarding"]["fieldPath"], "spec.containers{api}");
    assert_eq!(
        (&sent["regarding"]["uid"], &sent["regarding"]["kind"]),
        (&"uid-basket".into(), &"Pod".into())
    );
    assert_eq!((&sent["reason"], &sent["type"]), (&"PodopsyOOMKilledWhileRunning".into(), &"Warning".into()));
    assert_eq!((&sent["reportingController"], &sent["reportingInstance"]), (&"podopsy".into(), &"n1".into()));
    assert_eq!(
        sent["note"],
        "The kernel's OOM killer killed leak[42] and 2 other processes: the container's limit of 64 MiB was met. \
         silent child kill: PID 1 lives on and the pod is Running, so Kubernetes shows no OOMKilled. \
         grew by 3.0 MiB a minute. podopsy oom show 3f2a-7"
    );
    assert_eq!(sent.get("series"), None);

    let node = oom_incident(0, |it| (it.limit.of, it.verdicts) = (Level::Node, vec![Verdict::NodeOom]));
    assert_eq!(notice_from_event(&node).unwrap().reason, "PodopsyNodeOOMKilled");
    // No notice for a single victim, for an incident that killed nothing, for a host process, and for a lookup.
    assert!(notice_from_event(&Event { kind: EventKind::OomKill, incident: None, ..node.clone() }).is_none());
    assert!(notice_from_event(&oom_incident(0, |it| it.victims[0].already_dying = true)).is_none());
    assert!(notice_from_event(&Event { pod: None, ..node }).is_none());
    assert!(notice_from_event(&lookup("a", 1).event).is_none());
}

#[test]
fn repetitions_update_a_series_at_intervals_and_when_it_ends() {
    let mut tracker = SeriesTracker::new("n1");
    let update_and_count = |write: Option<EventWrite>| {
        write.map(|write| {
            valid_request(&write);
            (write.is_update, write.object.series.map_or(1, |series| series.count))
        })
    };
    let kill = |tracker: &mut SeriesTracker, second| {
        update_and_count(add(tracker, &oom_incident(second, |_| ()), second))
    };
    assert_eq!(kill(&mut tracker, 0), Some((false, 1)));
    assert_eq!(kill(&mut tracker, 10), Some((true, 2)), "the first repetition is sent at once");
    assert_eq!((kill(&mut tracker, 30), kill(&mut tracker, 70)), (None, None));
    assert!(tracker.due(at(309)).is_empty());
    let [due] = &tracker.due(at(310))[..] else { panic!("nothing is due") };
    assert_eq!(update_and_count(Some(due.clone())), Some((true, 4)));
    let request = request(due);
    assert_eq!(
        request.path,
        format!("/apis/events.k8s.io/v1/namespaces/shop/events/{}", due.object.metadata.name)
    );
    assert_eq!((&request.method, request.content_type), (&Method::PATCH, "application/merge-patch+json"));
    assert_eq!(
        body(&request),
        json!({"series": {"count": 4, "lastObservedTime": "2027-01-15T08:01:10.000000Z"}})
    );
    // The final update is sent once the series has ended, and the next kill begins a new one.
    assert_eq!(kill(&mut tracker, 400), None);
    let [last] = &tracker.due(at(761))[..] else { panic!("no final update") };
    assert_eq!(update_and_count(Some(last.clone())), Some((true, 5)));
    assert_eq!(kill(&mut tracker, 800), Some((false, 1)));
    assert_eq!(kill(&mut tracker, 801), Some((true, 2)));
    kill(&mut tracker, 802);
    let [end] = &tracker.finish(at(803))[..] else { panic!("nothing at the end") };
    assert_eq!(update_and_count(Some(end.clone())), Some((true, 3)));
    assert!(tracker.finish(at(804)).is_empty());
    assert_eq!(tracker.dropped().limited.load(Relaxed), 0);
}

#[test]
fn a_streak_of_failed_lookups_and_a_correlation_are_one_event_each() {
    let mut tracker = SeriesTracker::new("n1");
    assert!(notices_from_incident(&streak(2, 5)).is_empty());
    let mut add_all = |incident: &PodIncident, second| -> Vec<EventWrite> {
        let all = notices_from_incident(incident).into_iter();
        all.filter_map(|notice| tracker.add(notice, at(second)))
            .inspect(|write| drop(valid_request(write)))
            .collect()
    };
    let [first] = &add_all(&streak(3, 5), 5)[..] else { panic!("nothing") };
    assert_eq!((first.object.reason, first.is_update), ("PodopsyDNSLookupsFailing", false));
    assert_eq!(
        first.object.note,
        "DNS lookups of this pod fail: 3 so far, most often db.shop.svc (2), a\\x1b (1) (incident 3f2a-i1-uid-bask)."
    );
    assert_eq!(first.object.series.as_ref().unwrap().count, 3);
    assert_eq!(first.object.regarding.field_path, None);
    assert!(add_all(&streak(9, 20), 20).is_empty(), "not updated each second");
    let correlated = Correlation {
        oom: "3f2a-7".into(),
        container: "api".into(),
        from: at(0),
        until: at(40),
        failures: 12,
        grown_mib: 31.0,
        grown_since_first_failure: 0.9,
        coefficient: 0.97,
        steps_coefficient: None,
        points: 30,
    };
    let it = PodIncident { correlated: Some(correlated), ..streak(12, 40) };
    let [write] = &add_all(&it, 41)[..] else { panic!("nothing") };
    assert_eq!(write.object.reason, "PodopsyCorrelated");
    assert!(write.object.note.contains("31.0 MiB") && write.object.note.contains("names no cause"));
    assert!(add_all(&it, 42).is_empty(), "only once");
    let [due] = &add_all(&it, 306)[..] else { panic!("nothing is due") };
    assert_eq!((due.is_update, due.object.series.as_ref().unwrap().count), (true, 12));
}

#[test]
fn requests_are_limited_for_each_pod_and_dropped_notices_are_counted() {
    let mut tracker = SeriesTracker::new("n1");
    let mut sent = 0;
    // Each is a new incident of the same pod.
    for n in 0..100 {
        let it = PodIncident { incident: format!("i{n}"), ..streak(3, n) };
        sent +=
            notices_from_incident(&it).into_iter().filter_map(|notice| tracker.add(notice, at(n))).count();
    }
    assert_eq!((sent, tracker.dropped().limited.load(Relaxed)), (25, 75));
    let other = PodIncident { pod: pod("till"), ..streak(3, 1) };
    assert!(
        tracker.add(notices_from_incident(&other).remove(0), at(100)).is_some(),
        "another pod has its own limit"
    );
    // Repetitions that are never sent are counted, too.
    let it = PodIncident { incident: "i3".into(), ..streak(10, 101) };
    assert!(tracker.add(notices_from_incident(&it).remove(0), at(101)).is_none());
    assert!(tracker.finish(at(102)).is_empty());
    assert_eq!(tracker.dropped().limited.load(Relaxed), 75 + 7);
}

#[test]
fn invalid_names_cause_no_request_and_long_texts_are_truncated() {
    let mut tracker = SeriesTracker::new(&"n".repeat(300));
    let mut write = |namespace: &str, name: &str, uid: &str| {
        let pod =
            PodRef { namespace: namespace.into(), name: name.into(), uid: uid.into(), labels: [].into() };
        let notice = notice_from_event(&Event {
            pod: Some(pod),
            ..oom_incident(0, |it| it.advice = Some("é".repeat(2000)))
        });
        tracker.add(notice.unwrap(), at(0))
    };
    for (namespace, name) in [
        ("", "a"),
        ("shop/../x", "a"),
        ("shop?x=", "a"),
        ("Shop", "a"),
        ("shop", ""),
        ("shop", "a..b"),
        ("shop", "-a"),
        ("shop", "a_b"),
        ("shop.x", "a"),
        ("shop", "a/b"),
        ("shop", "\\x1b[2J"),
    ] {
        assert!(write(namespace, name, "u").is_none(), "{namespace} {name}");
    }
    assert!(write("shop", "a", "").is_none());
    let long = write("shop", &format!("{}.b", "a".repeat(251)), "u").unwrap();
    valid_request(&long);
    assert!(long.object.note.len() > 1000 && long.object.metadata.name.len() <= 253);
    assert_eq!(tracker.dropped().unnamed.load(Relaxed), 12);
}

#[test]
fn the_stubs_validation_rejects_what_the_api_server_rejects() {
    let good = body(&request(&add(&mut SeriesTracker::new("n1"), &oom_incident(0, |_| ()), 0).unwrap()));
    for (field, value) in [
        ("eventTime", json!("2026-01-01T00:00:00Z")),
        ("reportingController", json!("")),
        ("reportingInstance", json!("x".repeat(129))),
        ("action", json!(null)),
        ("reason", json!("x".repeat(129))),
        ("note", json!("x".repeat(1025))),
        ("type", json!("Error")),
        ("series", json!({"count": 1, "lastObservedTime": "2026-01-01T00:00:00.000000Z"})),
        ("regarding", json!({"namespace": "other"})),
        ("count", json!(1)),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        assert_eq!(validation::errors_in_new(&bad, "shop").len(), 1, "{field}");
    }
    assert_eq!(validation::errors_in_patch(&json!({"note": "x", "series": {"count": 2}})).len(), 2);
}
