//! Records → events: adds the owner, the time and the losses to what the probe saw.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podopsy_decode::{OomDecoded, SigkillDecoded};
use podopsy_model::{Detail, DnsTransaction, Event, EventKind, Losses, Owner, ProcessRef, text};
use podopsy_pods::Pods;
use podopsy_system::clock;
use podopsy_wire::Task;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::confirm::{CheckpointSaver, Confirmations};
use crate::dns::attribute::DnsAttribution;
use crate::oom::attribute::OomAttribution;
use crate::oom::checkpoint::RecoveryCheckpoint;
use crate::oom::recover::{MissedKills, RecoveredKills};
use crate::oom::stacks::NamedStacks;
use crate::sigkill::SigkillCorrelator;
use crate::totals::Totals;

/// How often the checkpoint is considered: it is written one to two of these after it was taken.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// A decoded record that waits for its owner.
pub(crate) enum Record {
    /// With the names of its stacks, once they are known.
    Oom(Box<OomDecoded>, Option<oneshot::Receiver<NamedStacks>>),
    Dns {
        asker: Task,
        /// Where it is known already, from inside the pod.
        owner: Option<Box<Owner>>,
        time_ns: u64,
        transaction: DnsTransaction,
    },
    Sigkill(Box<SigkillDecoded>),
}

/// What every event needs.
pub(crate) struct EventContext {
    pub node: String,
    pub pods: Arc<Pods>,
    pub totals: Arc<Totals>,
}

impl EventContext {
    pub async fn owner(&self, task: &Task) -> Owner {
        self.pods.owner_of_task(task.cgroup_id, task.pid).await
    }

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

/// Attributes records one after the other, in the order in which they happened.
pub(crate) struct Attribution {
    pub context: EventContext,
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

impl Attribution {
    /// Runs until the records end or the receiver of the events is gone. Kills that were missed while down come first.
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
        let recovered = self.send_missed(missed, &outlet).await?;
        let mut save = tokio::time::interval(SAVE_INTERVAL);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let incident_due = self.oom.incident_builder.due();
            let lookup_due = self.dns.due();
            tokio::select! {
                record = records.recv() => match record {
                    Some(record) => self.attribute(record, &recovered, &outlet).await?,
                    None => break,
                },
                () = until(incident_due) => self.oom.settle(&self.context, &outlet.events, &outlet.closing, false),
                () = until(lookup_due) => self.send_lookups(&outlet, false).await?,
                _ = save.tick() => self.save_checkpoint(records.is_empty()).await,
            }
        }
        // From here on a slow runtime is not waited for.
        let _ = close.send(true);
        self.send_lookups(&outlet, true).await?;
        self.oom.settle(&self.context, &outlet.events, &outlet.closing, true);
        let now = self.oom.checkpoint();
        write_checkpoint(self.saver.take().and_then(|saver| saver.end(now))).await;
        Ok(())
    }

    /// Kills that the kernel's log has and no run has reported; returns them, so that the probe's are not duplicated.
    async fn send_missed(
        &mut self,
        missed: Option<MissedKills>,
        outlet: &Outlet,
    ) -> Result<RecoveredKills, ReceiverGone> {
        let mut recovered = RecoveredKills::default();
        for visit in missed.into_iter().flat_map(|missed| missed.visits) {
            for (event, boot_ns) in self.oom.missed_kills(&self.context, visit).await {
                recovered.add(&event, boot_ns);
                self.send(event, outlet).await?;
            }
        }
        Ok(recovered)
    }

    async fn attribute(
        &mut self,
        record: Record,
        recovered: &RecoveredKills,
        outlet: &Outlet,
    ) -> Result<(), ReceiverGone> {
        let event = match record {
            Record::Sigkill(signal) => {
                let (events, closing) = (outlet.events.clone(), outlet.closing.clone());
                self.sigkills.report(*signal, events, closing, self.context.totals.losses.clone());
                return Ok(());
            }
            Record::Oom(kill, _) if recovered.contains(kill.victim.pid, kill.victim.tid, kill.time_ns) => {
                return Ok(());
            }
            Record::Oom(kill, stacks) => self.oom.kill(&self.context, *kill, stacks).await,
            Record::Dns { asker, owner, time_ns, transaction } => {
                self.dns.transaction(&self.context, &asker, owner, time_ns, transaction).await
            }
        };
        self.send(event, outlet).await
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

    /// `is_idle`: no record waits.
    async fn save_checkpoint(&mut self, is_idle: bool) {
        let is_quiet = is_idle && self.oom.incident_builder.due().is_none();
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
