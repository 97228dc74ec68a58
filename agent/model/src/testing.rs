//! Example events and incidents, for the tests of this crate and of others (feature `testing`).

use jiff::Timestamp;

use crate::event::{OomTask, ProcessRef, Protocol};
use crate::incident::{Evidence, Level, LimitHit, OomIncident, Victim};
use crate::{
    ContainerRef, Detail, DnsTransaction, Event, EventKind, Losses, OomKill, Outcome, Owner, PodRef,
};

pub fn owner(namespace: &str, pod: &str, labels: &[(&str, &str)]) -> Owner {
    Owner {
        pod: Some(PodRef {
            namespace: namespace.into(),
            name: pod.into(),
            uid: format!("uid-of-{pod}"),
            labels: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        }),
        container: Some(ContainerRef {
            name: "app".into(),
            id: format!("{pod}-app"),
            image: "shop/app:1".into(),
            attempt: 0,
        }),
        ..Owner::default()
    }
}

fn event(kind: EventKind, time: Timestamp, owner: Owner, detail: Detail) -> Event {
    let process = ProcessRef { pid: 7, comm: "app".into(), start_time: None };
    Event::new(time, kind, "n", owner, process, detail, Losses::new())
}

pub fn dns(time: Timestamp, owner: Owner, name: &str) -> Event {
    let detail = DnsTransaction {
        name: Some(name.into()),
        qtype: Some("A".into()),
        server: ([10, 0, 0, 10], 53).into(),
        protocol: Protocol::Udp,
        id: 1,
        latency_ns: 5,
        outcome: Outcome::Servfail,
        rcode: Some(2),
        sends: 1,
        malformed: None,
        slow: false,
        answer_dropped: false,
        facts: Default::default(),
    };
    event(EventKind::DnsFailure, time, owner, Detail::Dns(detail))
}

pub fn kill(time: Timestamp, owner: Owner, incident: &str, tid: u32, recovered: bool) -> Event {
    let task = OomTask { pid: tid, tid, comm: "app".into() };
    let kill = OomKill {
        victim: task.clone(),
        trigger: task,
        trigger_cgroup: Default::default(),
        rss: None,
        oom_score_adj: None,
        kernel_stack: Vec::new(),
        user_stack: Vec::new(),
        incident: Some(incident.into()),
        limit: None,
        already_dying: false,
        recovered,
    };
    event(EventKind::OomKill, time, owner, Detail::Oom(kill))
}

/// A container of 64 MiB whose process 42 was killed.
pub fn incident() -> OomIncident {
    let task = OomTask { pid: 42, tid: 42, comm: "leak".into() };
    OomIncident {
        id: "3f2a-7".into(),
        victims: vec![Victim {
            task: task.clone(),
            rss: None,
            oom_score_adj: Some(999),
            already_dying: false,
            container: None,
            cgroup: Default::default(),
        }],
        trigger: Some(task),
        trigger_cgroup: Default::default(),
        group: false,
        kernel_kills: 1,
        constraint: None,
        limit: LimitHit {
            of: Level::Container,
            how: Evidence::Observed,
            by: "kernel log".into(),
            path: None,
            limit_bytes: Some(64 << 20),
            usage_bytes: Some(64 << 20),
        },
        levels: Vec::new(),
        processes: None,
        charged: None,
        curve: None,
        heap: None,
        growth: None,
        qos: None,
        runtime: None,
        verdicts: Vec::new(),
        attempts: Vec::new(),
        advice: None,
        recovered: false,
    }
}
