//! Records → events: adds the owner, the time and the losses to what the probe saw.
//!
//! No record waits for another one's owner or facts. A record whose owner is known becomes an event at once. Lookups that
//! have to wait (for the container runtime, for the kernel's log) run in tasks of their own, each with a time limit.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use podopsy_decode::{OomDecoded, SigkillDecoded};
use podopsy_model::{Detail, DnsTransaction, Event, EventKind, Losses, Owner, ProcessRef, text};
use podopsy_pods::Pods;
use podopsy_system::clock;
use podopsy_wire::Task;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::confirm::{CheckpointSaver, Confirmations};
use crate::dns::attribute::DnsAttribution;
use crate::dns::waiting::Accepted;
use crate::oom::attribute::{ExaminedKill, OomAttribution};
use crate::oom::checkpoint::RecoveryCheckpoint;
use crate::oom::recover::{MissedKills, RecoveredKills};
use crate::oom::stack_queue::NamesReceiver;
use crate::sigkill::SigkillCorrelator;
use crate::totals::Totals;

/// How often the checkpoint is considered: it is written one to two of these after it was taken.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a stop waits for kills that are being read from the kernel's log. A restart reads the others again.
const MISSED_TIMEOUT: Duration = Duration::from_secs(2);

/// A decoded record that waits for its owner.
pub(crate) enum Record {
    /// With the names of its stacks, once they are known.
    Oom(Box<OomDecoded>, Option<NamesReceiver>),
    Dns {
        asker: Task,
        /// Where it is known already, from inside the pod.
        owner: Option<Box<Owner>>,
        time_ns: u64,
        transaction: DnsTransaction,
    },
    Sigkill(Box<SigkillDecoded>),
}

/// The parts of [`Record::Dns`].
pub(crate) struct DnsQuery {
    pub asker: Task,
    pub owner: Option<Box<Owner>>,
    pub time_ns: u64,
    pub transaction: DnsTransaction,
}

/// What every event needs.
pub(crate) struct EventContext {
    pub node: String,
    pub pods: Arc<Pods>,
    pub totals: Arc<Totals>,
}

impl EventContext {
    pub fn losses(&self) -> Losses {
        self.totals.losses()
    }

    /// An event at `time_ns` (CLOCK_BOOTTIME) of the process that `task` belongs to.
    pub fn event(&self, time_ns: u64, kind: EventKind, owner: Owner, task: &Task, detail: Detail) -> Event {
        let process = ProcessRef {
            pid: task.pid,
            comm: text::from_kernel(&task.comm),
            start_time: clock::start(task.start_ns),
        };
        Event::new(clock::wall(time_ns), kind, &self.node, owner, process, detail, self.losses())
    }
}

/// The receiver of the events is gone, so the pipeline ends.
struct ReceiverGone;

/// Attributes records. Those of one cgroup become events in the order in which they happened.
pub(crate) struct Attribution {
    pub context: Arc<EventContext>,
    pub oom: OomAttribution,
    pub dns: DnsAttribution,
    pub sigkills: Arc<SigkillCorrelator>,
    /// Writes the checkpoint from which a restart goes on.
    pub saver: Option<CheckpointSaver>,
    pub confirmations: Arc<Confirmations>,
}

/// Where events go, and whether the recorder is stopping.
struct Outlet {
    events: mpsc::Sender<Event>,
    closing: watch::Receiver<bool>,
}

/// Kills that were missed while down, as they are read and attributed.
struct Recovery {
    /// So that the probe's records of them are not reported again.
    known: RecoveredKills,
    /// None: all have been received.
    kills: Option<mpsc::Receiver<ExaminedKill>>,
}

impl Recovery {
    async fn next(&mut self) -> Option<ExaminedKill> {
        match &mut self.kills {
            Some(kills) => kills.recv().await,
            None => None,
        }
    }
}

impl Attribution {
    /// Runs until the records end or the receiver of the events is gone.
    pub async fn run(
        mut self,
        missed: Option<MissedKills>,
        records: mpsc::Receiver<Record>,
        events: mpsc::Sender<Event>,
    ) {
        // Without a receiver there is no one left to tell: the caller has dropped it.
        let _ = self.attribute_all(missed, records, events).await;
    }

    async fn attribute_all(
        &mut self,
        missed: Option<MissedKills>,
        mut records: mpsc::Receiver<Record>,
        events: mpsc::Sender<Event>,
    ) -> Result<(), ReceiverGone> {
        let (close, closing) = watch::channel(false);
        let outlet = Outlet { events, closing };
        let mut recovery = self.recover(missed);
        let mut save = tokio::time::interval(SAVE_INTERVAL);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let incident_due = self.oom.incident_builder.due();
            let lookup_due = self.dns.due();
            tokio::select! {
                record = records.recv() => match record {
                    Some(record) => self.attribute(record, &recovery.known, &outlet).await?,
                    None => break,
                },
                kill = self.oom.next_examined() => self.send_kill(kill, &outlet).await?,
                (queries, owner) = self.dns.waiting.next(), if !self.dns.waiting.is_empty() => {
                    for query in queries {
                        self.send_query(query, owner.clone(), &outlet).await?;
                    }
                }
                kill = recovery.next(), if recovery.kills.is_some() => match kill {
                    Some(kill) => self.send_kill(kill, &outlet).await?,
                    None => recovery.kills = None,
                },
                () = until(incident_due) => self.settle(&outlet, false),
                () = until(lookup_due) => self.send_lookups(&outlet, false).await?,
                _ = save.tick() => {
                    let is_idle = records.is_empty() && recovery.kills.is_none();
                    self.save_checkpoint(is_idle).await;
                }
            }
        }
        // From here on a slow runtime is not waited for.
        let _ = close.send(true);
        self.finish(recovery, &outlet).await
    }

    /// Sends what is under way, and writes the last checkpoint.
    async fn finish(&mut self, mut recovery: Recovery, outlet: &Outlet) -> Result<(), ReceiverGone> {
        while let Some(kill) = self.oom.next_examined_of_all().await {
            self.send_kill(kill, outlet).await?;
        }
        for (queries, owner) in self.dns.waiting.take_all() {
            for query in queries {
                self.send_query(query, owner.clone(), outlet).await?;
            }
        }
        let end = Instant::now() + MISSED_TIMEOUT;
        let mut has_all_missed = true;
        while recovery.kills.is_some() {
            match tokio::time::timeout_at(end, recovery.next()).await {
                Ok(Some(kill)) => self.send_kill(kill, outlet).await?,
                Ok(None) => recovery.kills = None,
                Err(_) => {
                    has_all_missed = false;
                    break;
                }
            }
        }
        self.send_lookups(outlet, true).await?;
        self.settle(outlet, true);
        if has_all_missed {
            let now = self.oom.checkpoint();
            write_checkpoint(self.saver.take().and_then(|saver| saver.end(now))).await;
        }
        Ok(())
    }

    /// Starts to attribute the kills that the kernel's log has and no run has reported. Live kills do not wait for them.
    fn recover(&self, missed: Option<MissedKills>) -> Recovery {
        let Some(missed) = missed else { return Recovery { known: RecoveredKills::default(), kills: None } };
        let known = RecoveredKills::new(&missed.visits);
        let kills = self.oom.missed_kills(self.context.clone(), missed.visits);
        Recovery { known, kills: Some(kills) }
    }

    async fn attribute(
        &mut self,
        record: Record,
        recovered: &RecoveredKills,
        outlet: &Outlet,
    ) -> Result<(), ReceiverGone> {
        match record {
            Record::Sigkill(signal) => {
                let (events, closing) = (outlet.events.clone(), outlet.closing.clone());
                self.sigkills.report(*signal, events, closing, self.context.totals.losses.clone());
                Ok(())
            }
            Record::Oom(kill, _) if recovered.contains(kill.victim.pid, kill.victim.tid, kill.time_ns) => {
                Ok(())
            }
            Record::Oom(kill, names) => {
                self.oom.examine(&self.context, kill, names);
                Ok(())
            }
            Record::Dns { asker, owner, time_ns, transaction } => {
                match self.dns.waiting.accept(DnsQuery { asker, owner, time_ns, transaction }) {
                    Accepted::Known(known) => {
                        let (query, owner) = *known;
                        self.send_query(query, owner, outlet).await
                    }
                    Accepted::Waits => Ok(()),
                    Accepted::Dropped => {
                        self.context.totals.dns_waiting_dropped.fetch_add(1, Relaxed);
                        Ok(())
                    }
                }
            }
        }
    }

    async fn send_kill(&mut self, kill: ExaminedKill, outlet: &Outlet) -> Result<(), ReceiverGone> {
        let event = self.oom.add(kill, self.context.losses());
        self.send(event, outlet).await
    }

    async fn send_query(
        &mut self,
        query: DnsQuery,
        owner: Owner,
        outlet: &Outlet,
    ) -> Result<(), ReceiverGone> {
        match self.dns.transaction(&self.context, query, owner) {
            Some(event) => self.send(event, outlet).await,
            None => Ok(()),
        }
    }

    async fn send_lookups(&mut self, outlet: &Outlet, all: bool) -> Result<(), ReceiverGone> {
        for event in self.dns.lookups(&self.context, all) {
            outlet.events.send(event).await.map_err(|_| ReceiverGone)?;
        }
        Ok(())
    }

    async fn send(&self, event: Event, outlet: &Outlet) -> Result<(), ReceiverGone> {
        self.confirmations.sent(&event);
        outlet.events.send(event).await.map_err(|_| ReceiverGone)
    }

    fn settle(&mut self, outlet: &Outlet, all: bool) {
        self.oom.settle(&self.context, &outlet.events, &outlet.closing, all);
    }

    /// `is_idle`: no record waits, and no kill is being read from the kernel's log.
    async fn save_checkpoint(&mut self, is_idle: bool) {
        let is_quiet = is_idle && self.oom.is_quiet();
        let oom = &self.oom;
        let due = self.saver.as_mut().and_then(|saver| saver.round(is_quiet, || oom.checkpoint()));
        write_checkpoint(due).await;
    }
}

async fn write_checkpoint(due: Option<(PathBuf, RecoveryCheckpoint)>) {
    let Some((dir, checkpoint)) = due else { return };
    let saved = tokio::task::spawn_blocking(move || checkpoint.save(&dir)).await;
    if let Ok(Err(error)) = saved {
        tracing::warn!("a restart will not know which kills it missed: {error:#}");
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "attribute_tests.rs"]
mod tests;
