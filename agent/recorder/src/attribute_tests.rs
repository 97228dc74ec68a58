//! The whole task on a folder of cgroups, without a runtime and without a kernel.

use std::fs;
use std::os::unix::fs::MetadataExt;

use podopsy_model::event::Protocol;
use podopsy_model::{KnownBy, Outcome};
use podopsy_opener::Openers;
use podopsy_pods::PodsOptions;

use super::*;
use crate::oom::stack_queue::NamesSender;
use crate::oom::stacks::NamedStacks;
use crate::oom::{IncidentBuilder, OomExaminer};
use crate::options::DnsOptions;
use crate::sigkill::SigkillScope;

/// A running attribution.
struct Running {
    records: mpsc::Sender<Record>,
    events: mpsc::Receiver<Event>,
    totals: Arc<Totals>,
    pods: Arc<Pods>,
    /// The id of a cgroup of the host.
    host: u64,
    _node: tempfile::TempDir,
}

impl Running {
    async fn start() -> Running {
        let node = tempfile::tempdir().unwrap();
        let at = |path: &str| node.path().join(path);
        fs::create_dir_all(at("cg/system.slice")).unwrap();
        fs::create_dir_all(at("proc/self")).unwrap();
        fs::write(at("cg/cgroup.controllers"), "memory").unwrap();
        let host = fs::metadata(at("cg/system.slice")).unwrap().ino();
        let pods = PodsOptions {
            cri_socket: Some(at("cri.sock")),
            proc_root: at("proc"),
            cgroup_root: at("cg"),
            log_pods: at("logs"),
            ..PodsOptions::default()
        };
        let pods = Pods::start(pods).await.unwrap();
        let totals = Arc::<Totals>::default();
        let confirmations = Arc::<Confirmations>::default();
        let attribution = Attribution {
            context: Arc::new(EventContext { node: "n".into(), pods: pods.clone(), totals: totals.clone() }),
            oom: OomAttribution {
                examiner: Arc::new(OomExaminer::new(pods.clone(), None, None)),
                incident_builder: IncidentBuilder::new("3f2a"),
                growth: None,
                confirmations: confirmations.clone(),
                examining: Default::default(),
            },
            dns: DnsAttribution::new(&DnsOptions::default(), pods.clone(), &Openers::in_threads()),
            sigkills: SigkillCorrelator::new(SigkillScope::None, "n", "3f2a", pods.clone()),
            saver: None,
            confirmations,
        };
        let (records, received) = mpsc::channel(64);
        let (sent, events) = mpsc::channel(64);
        tokio::spawn(attribution.run(None, received, sent));
        Running { records, events, totals, pods, host, _node: node }
    }

    async fn send(&self, record: Record) {
        assert!(self.records.send(record).await.is_ok());
    }

    async fn next(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await.unwrap().unwrap()
    }
}

fn task(cgroup_id: u64, pid: u32) -> Task {
    Task { cgroup_id, pid, tid: pid, ..Task::UNKNOWN }
}

fn query(cgroup: u64, id: u16) -> Record {
    let transaction = DnsTransaction {
        name: Some("a.".into()),
        qtype: Some("A".into()),
        server: ([10, 0, 0, 10], 53).into(),
        protocol: Protocol::Udp,
        id,
        latency_ns: 5,
        outcome: Outcome::Servfail,
        rcode: Some(2),
        sends: 1,
        malformed: None,
        slow: false,
        answer_dropped: false,
        facts: Default::default(),
    };
    Record::Dns { asker: task(cgroup, 7), owner: None, time_ns: clock::boot_now_ns(), transaction }
}

/// A kill in this cgroup, and the sender of the names of its stacks.
fn kill(cgroup: u64, pid: u32) -> (Record, NamesSender) {
    let (sender, names) = tokio::sync::watch::channel(None);
    let kill = OomDecoded {
        time_ns: clock::boot_now_ns(),
        victim: task(cgroup, pid),
        trigger: task(cgroup, pid),
        rss_pages: None,
        oom_score_adj: None,
        already_dying: false,
        image: 0,
        kernel: Vec::new(),
        user: Vec::new(),
        cgroup_path: None,
    };
    (Record::Oom(Box::new(kill), Some(names)), sender)
}

fn query_id(event: &Event) -> u16 {
    match &event.detail {
        Detail::Dns(transaction) => transaction.id,
        _ => panic!("{event:?}"),
    }
}

fn frames(event: &Event) -> (usize, usize) {
    match &event.detail {
        Detail::Oom(kill) => (kill.kernel_stack.len(), kill.user_stack.len()),
        _ => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn a_lookup_that_waits_delays_only_the_records_of_its_own_cgroup() {
    let mut running = Running::start().await;
    // The next search for an unknown cgroup has to wait 200 ms after this one.
    running.pods.owner_of_cgroup(u64::MAX - 1).await;
    running.send(query(u64::MAX, 1)).await;
    running.send(query(u64::MAX, 2)).await;
    let host = running.host;
    running.send(query(host, 3)).await;
    let (record, _names) = kill(host, 42);
    running.send(record).await;
    let known = running.next().await;
    assert_eq!((query_id(&known), known.known_by), (3, KnownBy::Host));
    let kill = running.next().await;
    assert_eq!((kill.kind, kill.process.pid), (EventKind::OomKill, 42));
    let late = [running.next().await, running.next().await];
    assert_eq!(late.each_ref().map(query_id), [1, 2], "in their order");
    assert!(late.iter().all(|event| event.known_by == KnownBy::Unknown));
}

#[tokio::test]
async fn a_kill_leaves_without_names_and_its_incident_has_them() {
    let mut running = Running::start().await;
    let host = running.host;
    let (slow, _never) = kill(host, 1);
    let (record, names) = kill(host, 2);
    running.send(slow).await;
    running.send(record).await;
    let first = [running.next().await, running.next().await];
    assert!(first.iter().all(|event| event.kind == EventKind::OomKill && frames(event) == (0, 0)));
    let frame = podopsy_model::profile::Frame::default();
    let named = NamedStacks { kernel: vec![frame.clone()], user: vec![frame.clone(), frame] };
    names.send(Some(Arc::new(named))).unwrap();
    let incident = running.next().await;
    assert_eq!((incident.kind, incident.process.pid), (EventKind::OomIncident, 2), "not behind the slow one");
    assert_eq!(frames(&incident), (1, 2));
    assert_eq!(running.totals.stacks_unnamed.load(Relaxed), 0);
}

#[tokio::test]
async fn names_that_never_come_are_counted() {
    let mut running = Running::start().await;
    let host = running.host;
    let (record, names) = kill(host, 1);
    running.send(record).await;
    assert_eq!(running.next().await.kind, EventKind::OomKill);
    drop(names);
    let incident = running.next().await;
    assert_eq!((incident.kind, frames(&incident)), (EventKind::OomIncident, (0, 0)));
    assert_eq!(running.totals.stacks_unnamed.load(Relaxed), 1);
}

#[tokio::test]
async fn what_is_under_way_at_the_end_is_still_reported() {
    let mut running = Running::start().await;
    running.pods.owner_of_cgroup(u64::MAX - 1).await;
    running.send(query(u64::MAX, 1)).await;
    let (record, names) = kill(running.host, 1);
    running.send(record).await;
    drop(names);
    drop(running.records);
    let mut kinds = Vec::new();
    while let Some(event) = running.events.recv().await {
        kinds.push(event.kind);
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [EventKind::OomKill, EventKind::OomIncident, EventKind::DnsFailure]);
}
