//! Which events make one pod incident, and when failed lookups and memory are called correlated.

use super::correlate::{correlate, pearson};
use super::*;
use podopsy_model::event::ProcessRef;
use podopsy_model::memory::Curve;
use podopsy_model::testing::{kill, owner};
use podopsy_model::{EventKind, Lookup};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn failed(second: i64, pod: &str, name: &str) -> Event {
    let lookup: Lookup = serde_json::from_value(serde_json::json!({
        "name": name, "name_known_by": "query", "types": ["A"], "result": "timeout", "wait_ns": 5, "start": at(second),
        "queries": 1, "sends": 1, "futile": { "queries": 0, "names": [] }, "resolvers": [], "transactions": [],
        "search": null, "saw": "all",
    }))
    .unwrap();
    let process = ProcessRef { pid: 7, comm: "app".into(), start_time: None };
    let (owner, detail) = (owner("shop", pod, &[]), Detail::Lookup(Box::new(lookup)));
    Event::new(at(second), EventKind::DnsLookup, "n", owner, process, detail, Losses::new())
}

fn killed(second: i64, pod: &str, id: &str) -> Event {
    kill(at(second), owner("shop", pod, &[]), id, second as u32, false)
}

/// The event of an OOM incident, with a memory curve.
fn incident(second: i64, pod: &str, id: &str, curve: Curve) -> Event {
    let mut oom = podopsy_model::testing::incident();
    (oom.id, oom.curve, oom.runtime) = (id.into(), Some(curve), None);
    Event { kind: EventKind::OomIncident, incident: Some(Box::new(oom)), ..killed(second, pod, id) }
}

/// A curve with a point each second: `held` is in MiB, by second.
fn curve(seconds: i64, held: impl Fn(i64) -> i64) -> Curve {
    let bytes = |mib: i64| (mib as u64) << 20;
    Curve {
        time: (0..seconds).map(at).collect(),
        current_bytes: (0..seconds).map(|second| bytes(held(second)) + (5 << 20)).collect(),
        file_bytes: (0..seconds).map(|_| 5 << 20).collect(),
        ..Curve::default()
    }
}

#[test]
fn kills_of_one_pod_within_two_minutes_are_one_incident_and_another_pods_are_not() {
    let mut incidents = PodIncidents::new("3f2a-0000");
    for (number, (second, pod)) in [(0, "a"), (0, "a"), (5, "b"), (90, "a")].into_iter().enumerate() {
        incidents.add(&killed(second, pod, "3f2a-7"), Some(number as i64));
    }
    let mut changed = incidents.changed(at(91));
    changed.sort_by_key(|one| one.pod.name.clone());
    let [a, b] = &changed[..] else { panic!("{changed:?}") };
    assert_eq!((a.oom_kills, a.from, a.until, a.open), (3, at(0), at(90), true));
    assert_eq!(
        (a.events.as_slice(), a.incident.as_str()),
        ([0, 1, 3].as_slice(), "3f2a-i1700000000000-uid-of-a")
    );
    assert_eq!((b.oom_kills, b.containers.as_slice()), (1, ["app".to_owned()].as_slice()));
    assert!(incidents.changed(at(92)).is_empty(), "nothing has changed");
    // Two minutes without an event end it, and the end is returned once.
    let over = incidents.changed(at(211));
    assert_eq!(over.iter().map(|one| (one.open, one.oom_kills)).collect::<Vec<_>>().len(), 2);
    assert!(over.iter().all(|one| !one.open) && incidents.changed(at(212)).is_empty());
    incidents.add(&killed(300, "a", "3f2a-9"), None);
    let next = incidents.changed(at(300)).remove(0);
    assert_eq!((next.oom_kills, next.from), (1, at(300)));
    assert_ne!(next.incident, a.incident);
}

#[test]
fn one_failed_lookup_is_no_incident_and_a_streak_is_one_that_begins_with_its_first() {
    let mut incidents = PodIncidents::new("boot");
    for second in [0, 100, 150] {
        incidents.add(&failed(second, "a", "one.test"), Some(second));
    }
    assert!(incidents.changed(at(150)).is_empty(), "three, and not within a minute");
    incidents.add(&failed(155, "a", "two.test"), Some(155));
    let changed = incidents.changed(at(155)).remove(0);
    assert_eq!((changed.failed_lookups, changed.from, changed.events), (3, at(100), vec![100, 150, 155]));
    for n in 0..100 {
        incidents.add(&failed(156, "a", &format!("{}.test", n % 2)), None);
    }
    let changed = incidents.changed(at(157)).remove(0);
    assert_eq!(changed.failed_lookups, 103);
    assert_eq!(changed.failed_names[..2], [("0.test".to_owned(), 50), ("1.test".to_owned(), 50)]);
    assert_eq!(changed.correlated, None);
}

#[test]
fn restarts_are_counted_by_the_attempt() {
    let mut incidents = PodIncidents::new("boot");
    for (second, attempt) in [(0, 4), (10, 4), (20, 6), (30, 5)] {
        let mut event = killed(second, "a", "b-1");
        event.container.as_mut().unwrap().attempt = attempt;
        incidents.add(&event, None);
    }
    assert_eq!(incidents.changed(at(30)).remove(0).restarts, 2);
}

#[test]
fn failures_memory_and_a_kill_that_line_up_are_correlated_with_their_numbers() {
    let mut incidents = PodIncidents::new("boot");
    // Flat for a minute, then one MiB more with each failure.
    for second in (60..100).step_by(2) {
        incidents.add(&failed(second, "a", "db.test"), None);
    }
    incidents.add(&incident(100, "a", "b-7", curve(100, |s| 10 + (s - 60).max(0) / 2)), Some(1));
    let changed = incidents.changed(at(101)).remove(0);
    let found = changed.correlated.expect("they line up");
    assert_eq!((found.failures, found.oom.as_str(), found.container.as_str()), (20, "b-7", "app"));
    assert!((found.grown_mib - 19.0).abs() < 0.1 && found.grown_since_first_failure > 0.99, "{found:?}");
    assert!(found.coefficient > 0.99 && found.steps_coefficient.is_some_and(|r| r > 0.5), "{found:?}");
    assert!(
        found.sentence().starts_with("20 lookups failed and memory grew by 19.0 MiB in the 100 s before")
    );
    for word in ["cause", "because", "due to", "led to"] {
        assert!(!found.sentence().contains(word));
    }
}

#[test]
fn curves_that_do_not_line_up_are_not_correlated() {
    let failures: Vec<Timestamp> = (60..100).step_by(2).map(at).collect();
    let found = |failures: &[Timestamp], curve: &Curve| correlate(failures, curve, at(100));
    let leak = curve(100, |s| 10 + (s - 60).max(0));
    assert!(found(&failures, &leak).is_some());
    // The leak was over before; memory falls; it is flat; too few failures; too few points; a leak from the start.
    for other in
        [curve(100, |s| 10 + s.min(50)), curve(100, |s| 200 - s), curve(100, |_| 50), curve(4, |s| s * 10)]
    {
        assert_eq!(found(&failures, &other), None);
    }
    assert_eq!(found(&failures[..4], &leak), None);
    assert_eq!(found(&[], &leak), None);
    assert_eq!(found(&failures, &Curve::default()), None);
    assert_eq!(found(&(95..100).map(at).collect::<Vec<_>>(), &curve(100, |s| s * 2)), None);
    // Failures at another time.
    assert_eq!(found(&(500..540).map(at).collect::<Vec<_>>(), &leak), None);
}

#[test]
fn pearson_gives_the_correlation_coefficient() {
    let r = |a: &[f64], b: &[f64]| pearson(a, b);
    assert!((r(&[1.0, 2.0, 3.0, 5.0], &[2.0, 1.0, 4.0, 3.0]).unwrap() - 0.529_150).abs() < 1e-5);
    assert_eq!(r(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), Some(-1.0));
    assert_eq!((r(&[1.0, 1.0], &[1.0, 2.0]), r(&[], &[]), r(&[1.0], &[1.0])), (None, None, None));
    assert_eq!(r(&[f64::NAN, 1.0], &[1.0, 2.0]), None);
}

#[test]
fn the_number_of_pods_is_bounded_and_evictions_are_counted() {
    let mut incidents = PodIncidents::new("boot");
    for n in 0..PODS_MAX as i64 + 5 {
        incidents.add(&killed(n, &format!("p{n}"), "b-1"), None);
    }
    assert_eq!(
        (incidents.pods.len(), incidents.evicted().losses()),
        (PODS_MAX, [("incidents_evicted".to_owned(), 5)].into())
    );
    assert!(!incidents.pods.contains_key("uid-of-p4") && incidents.pods.contains_key("uid-of-p5"));
    // Pods without recent events are dropped.
    incidents.changed(at(PODS_MAX as i64 + 700));
    assert!(incidents.pods.is_empty());
    let no_pod = Event { pod: None, ..killed(0, "a", "b-1") };
    incidents.add(&no_pod, None);
    assert!(incidents.pods.is_empty());
}
