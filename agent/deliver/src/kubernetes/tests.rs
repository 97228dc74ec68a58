//! What is said on a pod, how often, and that the API server would take it.

use serde_json::Value;

use super::*;
use crate::testing::{kubernetes_validation as validation, lookup, oom};
use jiff::Timestamp;
use podopsy_model::event::Kind;
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

/// The incident's event of an OOM kill in `shop/basket`.
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

fn said(recorder: &mut Recorder, event: &Event, second: i64) -> Option<Call> {
    recorder.see(of_event(event).unwrap(), at(second))
}

fn requests(call: &Call) -> Request {
    Kubernetes.request(std::slice::from_ref(call)).unwrap()
}

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

/// As the API server would look at it.
fn valid(call: &Call) -> Request {
    let request = requests(call);
    let (sent, namespace) = (body(&request), call.object.metadata.namespace.as_str());
    let create = if call.again {
        assert_eq!(validation::of_patch(&sent), [""; 0], "{sent}");
        *request.otherwise.clone().unwrap().1
    } else {
        request.clone()
    };
    assert_eq!(validation::of_new(&body(&create), namespace), [""; 0], "{}", body(&create));
    request
}

#[test]
fn an_incident_is_one_event_with_the_verdicts_words() {
    let mut recorder = Recorder::new("n1");
    let event = oom(0, |it| {
        it.victims.push(it.victims[0].clone());
        it.victims.push(it.victims[0].clone());
        it.verdicts = vec![Verdict::SilentChildKill];
        it.advice = Some("grew by 3.0 MiB a minute".into());
    });
    let call = said(&mut recorder, &event, 0).unwrap();
    let request = valid(&call);
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

    let node = oom(0, |it| (it.limit.of, it.verdicts) = (Level::Node, vec![Verdict::NodeOom]));
    assert_eq!(of_event(&node).unwrap().reason, "PodopsyNodeOOMKilled");
    // Each victim's own event, one that was dying anyway, and a host process are not worth one.
    assert!(of_event(&Event { kind: Kind::OomKill, incident: None, ..node.clone() }).is_none());
    assert!(of_event(&oom(0, |it| it.victims[0].already_dying = true)).is_none());
    assert!(of_event(&Event { pod: None, ..node }).is_none());
    assert!(of_event(&lookup("a", 1).event).is_none());
}

#[test]
fn repetitions_are_a_series_told_now_and_then_and_at_its_end() {
    let mut recorder = Recorder::new("n1");
    let told = |call: Option<Call>| {
        call.map(|call| {
            valid(&call);
            (call.again, call.object.series.map_or(1, |series| series.count))
        })
    };
    let kill = |recorder: &mut Recorder, second| told(said(recorder, &oom(second, |_| ()), second));
    assert_eq!(kill(&mut recorder, 0), Some((false, 1)));
    assert_eq!(kill(&mut recorder, 10), Some((true, 2)), "that it repeats is told at once");
    assert_eq!((kill(&mut recorder, 30), kill(&mut recorder, 70)), (None, None));
    assert!(recorder.due(at(309)).is_empty());
    let [due] = &recorder.due(at(310))[..] else { panic!("nothing is due") };
    assert_eq!(told(Some(due.clone())), Some((true, 4)));
    let request = requests(due);
    assert_eq!(
        request.path,
        format!("/apis/events.k8s.io/v1/namespaces/shop/events/{}", due.object.metadata.name)
    );
    assert_eq!((&request.method, request.content_type), (&Method::PATCH, "application/merge-patch+json"));
    assert_eq!(
        body(&request),
        json!({"series": {"count": 4, "lastObservedTime": "2027-01-15T08:01:10.000000Z"}})
    );
    // Its last word comes once it is over, and what comes then is a new one.
    assert_eq!(kill(&mut recorder, 400), None);
    let [last] = &recorder.due(at(761))[..] else { panic!("no last word") };
    assert_eq!(told(Some(last.clone())), Some((true, 5)));
    assert_eq!(kill(&mut recorder, 800), Some((false, 1)));
    assert_eq!(kill(&mut recorder, 801), Some((true, 2)));
    kill(&mut recorder, 802);
    let [end] = &recorder.finish(at(803))[..] else { panic!("nothing at the end") };
    assert_eq!(told(Some(end.clone())), Some((true, 3)));
    assert!(recorder.finish(at(804)).is_empty());
    assert_eq!(recorder.dropped().limited.load(Relaxed), 0);
}

#[test]
fn a_streak_and_what_lines_up_are_an_event_each() {
    let mut recorder = Recorder::new("n1");
    assert!(of_incident(&streak(2, 5)).is_empty());
    let mut see = |incident: &PodIncident, second| -> Vec<Call> {
        let all = of_incident(incident).into_iter();
        all.filter_map(|saying| recorder.see(saying, at(second))).inspect(|call| drop(valid(call))).collect()
    };
    let [first] = &see(&streak(3, 5), 5)[..] else { panic!("nothing") };
    assert_eq!((first.object.reason, first.again), ("PodopsyDNSLookupsFailing", false));
    assert_eq!(
        first.object.note,
        "DNS lookups of this pod fail: 3 so far, most often db.shop.svc (2), a\\x1b (1) (incident 3f2a-i1-uid-bask)."
    );
    assert_eq!(first.object.series.as_ref().unwrap().count, 3);
    assert_eq!(first.object.regarding.field_path, None);
    assert!(see(&streak(9, 20), 20).is_empty(), "not each second");
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
    let [call] = &see(&it, 41)[..] else { panic!("nothing") };
    assert_eq!(call.object.reason, "PodopsyCorrelated");
    assert!(call.object.note.contains("31.0 MiB") && call.object.note.contains("names no cause"));
    assert!(see(&it, 42).is_empty(), "once");
    let [due] = &see(&it, 306)[..] else { panic!("nothing is due") };
    assert_eq!((due.again, due.object.series.as_ref().unwrap().count), (true, 12));
}

#[test]
fn a_pod_has_so_many_requests_and_what_is_dropped_is_counted() {
    let mut recorder = Recorder::new("n1");
    let mut sent = 0;
    // A pod that makes a new incident each time.
    for n in 0..100 {
        let it = PodIncident { incident: format!("i{n}"), ..streak(3, n) };
        sent += of_incident(&it).into_iter().filter_map(|saying| recorder.see(saying, at(n))).count();
    }
    assert_eq!((sent, recorder.dropped().limited.load(Relaxed)), (25, 75));
    let other = PodIncident { pod: pod("till"), ..streak(3, 1) };
    assert!(recorder.see(of_incident(&other).remove(0), at(100)).is_some(), "another pod has its own");
    // Repetitions that nobody hears of any more are counted, too.
    let it = PodIncident { incident: "i3".into(), ..streak(10, 101) };
    assert!(recorder.see(of_incident(&it).remove(0), at(101)).is_none());
    assert!(recorder.finish(at(102)).is_empty());
    assert_eq!(recorder.dropped().limited.load(Relaxed), 75 + 7);
}

#[test]
fn hostile_names_make_no_request_and_long_words_fit() {
    let mut recorder = Recorder::new(&"n".repeat(300));
    let mut call = |namespace: &str, name: &str, uid: &str| {
        let pod =
            PodRef { namespace: namespace.into(), name: name.into(), uid: uid.into(), labels: [].into() };
        let saying = of_event(&Event { pod: Some(pod), ..oom(0, |it| it.advice = Some("é".repeat(2000))) });
        recorder.see(saying.unwrap(), at(0))
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
        assert!(call(namespace, name, "u").is_none(), "{namespace} {name}");
    }
    assert!(call("shop", "a", "").is_none());
    let long = call("shop", &format!("{}.b", "a".repeat(251)), "u").unwrap();
    valid(&long);
    assert!(long.object.note.len() > 1000 && long.object.metadata.name.len() <= 253);
    assert_eq!(recorder.dropped().unnamed.load(Relaxed), 12);
}

#[test]
fn the_stubs_validation_refuses_what_the_api_server_would() {
    let good = body(&requests(&said(&mut Recorder::new("n1"), &oom(0, |_| ()), 0).unwrap()));
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
        assert_eq!(validation::of_new(&bad, "shop").len(), 1, "{field}");
    }
    assert_eq!(validation::of_patch(&json!({"note": "x", "series": {"count": 2}})).len(), 2);
}
