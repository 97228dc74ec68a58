//! Records → events: the owner, the times and the losses are put to what the probe saw.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podopsy_wire::Task;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::progress::{Progress, Saver};
use super::stacks::Named;
use crate::dns::gather::Lookups;
use crate::growth::sampling::Growth;
use crate::oom::checkpoint::RecoveryCheckpoint;
use crate::oom::recover::{self, MissedKills};
use crate::oom::{IncidentBuilder, OomExaminer, OomFacts};
use crate::sigkill;
use podopsy_decode::{OomDecoded, SigkillDecoded};
use podopsy_model::event::{OomTask, Rss};
use podopsy_model::{
    Detail, DnsTransaction, Event, Kind, KnownBy, Losses, OomKill, Outcome, Owner, ProcessRef, text,
};
use podopsy_pods::Pods;
use podopsy_system::clock;
use podopsy_system::page_size;

/// How often the state is looked after: it is written one to two of these after it was taken.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// How long a kill waits for the names in its stacks: whoever made a program hard to read must not hold back the
/// news of all others.
const NAMES_WITHIN: Duration = Duration::from_secs(30);

/// A decoded record that waits for its owner.
pub enum Record {
    Oom(Box<OomDecoded>, Option<oneshot::Receiver<Named>>),
    /// `owner`: where it is known already, from inside the pod.
    Dns {
        asker: Task,
        owner: Option<Box<Owner>>,
        time_ns: u64,
        transaction: DnsTransaction,
    },
    Sigkill(Box<SigkillDecoded>),
}

/// Attributes records one after the other, in the order in which they happened.
pub struct Attribution {
    pub node: String,
    pub pods: Arc<Pods>,
    /// The newest losses of all stages.
    pub losses: Arc<Mutex<Losses>>,
    pub stacks_unnamed: Arc<AtomicU64>,
    pub examiner: Arc<OomExaminer>,
    pub incident_builder: IncidentBuilder,
    pub sigkills: Arc<sigkill::SigkillCorrelator>,
    /// None: growth is not sampled.
    pub growth: Option<Growth>,
    /// None: lookups are not asked for.
    pub lookups: Option<Lookups>,
    pub lookups_evicted: Arc<AtomicU64>,
    /// For a restart, which finds how far this run had come.
    pub saver: Option<Saver>,
    pub progress: Arc<Progress>,
}

impl Attribution {
    /// Runs until the records end or nobody listens to the events. What was missed comes first.
    pub async fn run(
        mut self,
        missed: Option<MissedKills>,
        mut records: mpsc::Receiver<Record>,
        events: mpsc::Sender<Event>,
    ) {
        let (close, closing) = watch::channel(false);
        let mut told = recover::RecoveredKills::default();
        for visit in missed.into_iter().flat_map(|missed| missed.visits) {
            for (mut event, boot_ns, facts) in recover::kill_events(&self.pods, &self.node, visit).await {
                event.losses = self.losses();
                self.growth.iter().for_each(|growth| growth.killed(&event));
                self.incident_builder.add(&mut event, boot_ns, facts);
                told.add(&event, boot_ns);
                self.progress.sent(&event);
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }
        let mut save = tokio::time::interval(SAVE_EVERY);
        save.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = self.incident_builder.due();
            let lookups_due = self.lookups.as_ref().and_then(Lookups::due);
            let event = tokio::select! {
                record = records.recv() => match record {
                    Some(Record::Sigkill(signal)) => {
                        let (events, closing) = (events.clone(), closing.clone());
                        self.sigkills.report(*signal, events, closing, self.losses.clone());
                        continue;
                    }
                    Some(Record::Oom(kill, _)) if told.contains(kill.victim.pid, kill.victim.tid, kill.time_ns) => {
                        continue;
                    }
                    Some(Record::Oom(kill, stacks)) => self.kill(*kill, stacks).await,
                    Some(Record::Dns { asker, owner, time_ns, transaction }) => {
                        self.dns(&asker, owner, time_ns, transaction).await
                    }
                    None => break,
                },
                () = until(due) => {
                    self.settle(&events, &closing, false);
                    continue;
                }
                () = until(lookups_due) => {
                    for event in self.lookups(false) {
                        if events.send(event).await.is_err() {
                            return;
                        }
                    }
                    continue;
                }
                _ = save.tick() => {
                    let quiet = records.is_empty() && self.incident_builder.due().is_none();
                    let examiner = &self.examiner;
                    let now = || RecoveryCheckpoint::now(examiner.log_sequence());
                    let due = self.saver.as_mut().and_then(|saver| saver.round(quiet, now));
                    save_state(due).await;
                    continue;
                }
            };
            self.progress.sent(&event);
            if events.send(event).await.is_err() {
                return;
            }
        }
        // From here on nobody waits for a runtime that lags behind.
        let _ = close.send(true);
        for event in self.lookups(true) {
            if events.send(event).await.is_err() {
                return;
            }
        }
        self.settle(&events, &closing, true);
        let now = RecoveryCheckpoint::now(self.examiner.log_sequence());
        save_state(self.saver.take().and_then(|saver| saver.end(now))).await;
    }

    async fn kill(&mut self, kill: OomDecoded, stacks: Option<oneshot::Receiver<Named>>) -> Event {
        let time_ns = kill.time_ns;
        let (mut event, facts) = self.oom(kill, stacks).await;
        self.growth.iter().for_each(|growth| growth.killed(&event));
        self.incident_builder.add(&mut event, time_ns, facts);
        event
    }

    /// Sends incidents on their way, each in a task of its own: a slow runtime holds up no kill.
    fn settle(&mut self, events: &mpsc::Sender<Event>, closing: &watch::Receiver<bool>, all: bool) {
        for mut incident in self.incident_builder.take_due(all) {
            if let Some((group, kills)) =
                incident.sequence().and_then(|first| self.examiner.visit_outcome(first))
            {
                incident.update_from_log(group, kills);
            }
            self.examiner.record_reported_kills(&incident);
            let (events, closing) = (events.clone(), closing.clone());
            let (pods, losses) = (self.pods.clone(), self.losses.clone());
            let (growth, progress) = (self.growth.clone(), self.progress.clone());
            let opened = progress.opened();
            tokio::spawn(async move {
                if let Some(growth) = growth {
                    let (cgroup, boot_ns) = incident.first_victim();
                    incident.set_growth(growth.profile(cgroup, boot_ns).await);
                }
                let event = incident.settle(&pods, closing, &losses).await;
                progress.sent(&event);
                // Nobody listens any more: that is their choice.
                let _ = events.send(event).await;
                drop(opened);
            });
        }
    }

    fn losses(&self) -> Losses {
        self.losses.lock().map(|losses| losses.clone()).unwrap_or_default()
    }

    async fn oom(&self, kill: OomDecoded, stacks: Option<oneshot::Receiver<Named>>) -> (Event, OomFacts) {
        let mut owner = self.owner(&kill.victim).await;
        // Gone before its birth was noticed: the probe read the path while it was there.
        if owner.known_by == KnownBy::Unknown
            && let Some(path) = &kill.cgroup_path
        {
            let id = owner.cgroup.id;
            owner = self.pods.owner_of_path(path.as_bytes()).await;
            owner.cgroup.id = id;
        }
        let facts = self.examiner.examine(&kill, &owner).await;
        // Kernels that pass only a pid: the log has the victim's cgroup.
        if owner.known_by == KnownBy::Unknown
            && let Some(path) =
                facts.visit.as_ref().and_then(|visit| visit.chosen.as_ref()?.task_memcg.clone())
        {
            owner = self.pods.owner_of_path(&path).await;
        }
        let trigger_owner = self.owner(&kill.trigger).await;
        let named = match stacks {
            Some(answer) => match tokio::time::timeout(NAMES_WITHIN, answer).await {
                Ok(named) => named.unwrap_or_default(),
                Err(_) => {
                    self.stacks_unnamed.fetch_add(1, Relaxed);
                    Named::default()
                }
            },
            None => Named::default(),
        };
        let page = page_size();
        let detail = OomKill {
            victim: oom_task(&kill.victim),
            trigger: oom_task(&kill.trigger),
            trigger_cgroup: trigger_owner.cgroup,
            rss: kill.rss_pages.map(|[file, anon, swap, shmem]| Rss {
                anon_bytes: anon.saturating_mul(page),
                file_bytes: file.saturating_mul(page),
                shmem_bytes: shmem.saturating_mul(page),
                swap_bytes: swap.saturating_mul(page),
            }),
            oom_score_adj: kill.oom_score_adj,
            kernel_stack: named.kernel,
            user_stack: named.user,
            incident: None,
            limit: None,
            already_dying: kill.already_dying,
            recovered: false,
        };
        (self.put(kill.time_ns, Kind::OomKill, owner, &kill.victim, Detail::Oom(detail)), facts)
    }

    /// The lookups that can be told now, or all.
    fn lookups(&mut self, all: bool) -> Vec<Event> {
        let losses = self.losses();
        let Some(lookups) = &mut self.lookups else { return Vec::new() };
        let told = lookups.take_due(all, &self.node, &losses);
        self.lookups_evicted.store(lookups.evicted(), Relaxed);
        told
    }

    async fn dns(
        &mut self,
        asker: &Task,
        owner: Option<Box<Owner>>,
        time_ns: u64,
        transaction: DnsTransaction,
    ) -> Event {
        let owner = match owner {
            Some(owner) => *owner,
            None => self.owner(asker).await,
        };
        let kind = match transaction.outcome {
            Outcome::Noerror => Kind::DnsAnswer,
            _ => Kind::DnsFailure,
        };
        let event = self.put(time_ns, kind, owner, asker, Detail::Dns(transaction));
        if let Some(lookups) = &mut self.lookups {
            lookups.see(&event, asker, time_ns);
        }
        event
    }

    async fn owner(&self, task: &Task) -> Owner {
        self.pods.owner_of_task(task.cgroup_id, task.pid).await
    }

    fn put(&self, time_ns: u64, kind: Kind, owner: Owner, task: &Task, detail: Detail) -> Event {
        let process = ProcessRef {
            pid: task.pid,
            comm: text::from_kernel(&task.comm),
            start_time: clock::start(task.start_ns),
        };
        Event::new(clock::wall(time_ns), kind, &self.node, owner, process, detail, self.losses())
    }
}

async fn save_state(due: Option<(PathBuf, RecoveryCheckpoint)>) {
    let Some((dir, state)) = due else { return };
    let saved = tokio::task::spawn_blocking(move || state.save(&dir)).await;
    if let Ok(Err(error)) = saved {
        tracing::warn!("a restart will not know what it missed: {error:#}");
    }
}

fn oom_task(task: &Task) -> OomTask {
    OomTask { pid: task.pid, tid: task.tid, comm: text::from_kernel(&task.comm) }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
