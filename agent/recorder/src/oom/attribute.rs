//! Kills → events and incidents: the owner, the facts, the names of the stacks, and the growth profile.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use podopsy_decode::OomDecoded;
use podopsy_model::event::{OomTask, Rss};
use podopsy_model::{Detail, Event, EventKind, KnownBy, OomKill, Owner, text};
use podopsy_system::page_size;
use podopsy_wire::Task;
use tokio::sync::{mpsc, oneshot, watch};

use super::checkpoint::RecoveryCheckpoint;
use super::recover;
use super::stacks::NamedStacks;
use super::{IncidentBuilder, OomExaminer, OomFacts, PendingIncident};
use crate::attribute::EventContext;
use crate::confirm::Confirmations;
use crate::growth::sampling::Growth;
use crate::kernel_log::visit::Visit;

/// How long a kill waits for the names in its stacks: a program that is slow to read must not delay all later kills.
const NAMES_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct OomAttribution {
    pub examiner: Arc<OomExaminer>,
    pub incident_builder: IncidentBuilder,
    /// None: growth is not sampled.
    pub growth: Option<Growth>,
    pub confirmations: Arc<Confirmations>,
}

impl OomAttribution {
    /// The checkpoint of this moment.
    pub fn checkpoint(&self) -> RecoveryCheckpoint {
        RecoveryCheckpoint::now(self.examiner.log_sequence())
    }

    /// The kills of a visit that only the kernel's log has, with their times since boot in ns.
    pub async fn missed_kills(&mut self, context: &EventContext, visit: Visit) -> Vec<(Event, u64)> {
        let mut kills = Vec::new();
        for (mut event, boot_ns, facts) in recover::kill_events(&context.pods, &context.node, visit).await {
            event.losses = context.losses();
            self.add(&mut event, boot_ns, facts);
            kills.push((event, boot_ns));
        }
        kills
    }

    /// A kill that the probe saw.
    pub async fn kill(
        &mut self,
        context: &EventContext,
        kill: OomDecoded,
        stacks: Option<oneshot::Receiver<NamedStacks>>,
    ) -> Event {
        let time_ns = kill.time_ns;
        let (owner, facts) = self.examine(context, &kill).await;
        let trigger_owner = context.owner(&kill.trigger).await;
        let names = names(context, stacks).await;
        let detail = Detail::Oom(detail(&kill, trigger_owner, names));
        let mut event = context.event(time_ns, EventKind::OomKill, owner, &kill.victim, detail);
        self.add(&mut event, time_ns, facts);
        event
    }

    /// Adds the kill to its incident, and its container to the growth candidates.
    fn add(&mut self, event: &mut Event, boot_ns: u64, facts: OomFacts) {
        if let Some(growth) = &self.growth {
            growth.killed(event);
        }
        self.incident_builder.add(event, boot_ns, facts);
    }

    async fn examine(&self, context: &EventContext, kill: &OomDecoded) -> (Owner, OomFacts) {
        let mut owner = context.owner(&kill.victim).await;
        // A container may be gone before its creation was noticed: the probe read the path while it existed.
        if owner.known_by == KnownBy::Unknown
            && let Some(path) = &kill.cgroup_path
        {
            let id = owner.cgroup.id;
            owner = context.pods.owner_of_path(path.as_bytes()).await;
            owner.cgroup.id = id;
        }
        let facts = self.examiner.examine(kill, &owner).await;
        // On kernels that pass only a pid, the log has the victim's cgroup.
        if owner.known_by == KnownBy::Unknown
            && let Some(path) =
                facts.visit.as_ref().and_then(|visit| visit.chosen.as_ref()?.task_memcg.clone())
        {
            owner = context.pods.owner_of_path(&path).await;
        }
        (owner, facts)
    }

    /// Completes incidents that are due, each in a task of its own: a slow runtime delays no kill.
    pub fn settle(
        &mut self,
        context: &EventContext,
        events: &mpsc::Sender<Event>,
        closing: &watch::Receiver<bool>,
        all: bool,
    ) {
        for mut incident in self.incident_builder.take_due(all) {
            if let Some((group, kills)) =
                incident.sequence().and_then(|first| self.examiner.visit_outcome(first))
            {
                incident.update_from_log(group, kills);
            }
            self.examiner.record_reported_kills(&incident);
            self.complete(context, incident, events.clone(), closing.clone());
        }
    }

    /// Asks for the growth profile and for the runtime's view, then sends the incident's event.
    fn complete(
        &self,
        context: &EventContext,
        mut incident: PendingIncident,
        events: mpsc::Sender<Event>,
        closing: watch::Receiver<bool>,
    ) {
        let (pods, losses) = (context.pods.clone(), context.totals.losses.clone());
        let (growth, confirmations) = (self.growth.clone(), self.confirmations.clone());
        let open = confirmations.open_incident();
        tokio::spawn(async move {
            if let Some(growth) = growth {
                let (cgroup, boot_ns) = incident.first_victim();
                incident.set_growth(growth.profile(cgroup, boot_ns).await);
            }
            let event = incident.settle(&pods, closing, &losses).await;
            confirmations.sent(&event);
            // The receiver may be gone; dropping the event is correct.
            let _ = events.send(event).await;
            drop(open);
        });
    }
}

/// The names of a kill's stacks; none where they are late or were not asked for.
async fn names(context: &EventContext, stacks: Option<oneshot::Receiver<NamedStacks>>) -> NamedStacks {
    let Some(answer) = stacks else { return NamedStacks::default() };
    match tokio::time::timeout(NAMES_TIMEOUT, answer).await {
        Ok(named) => named.unwrap_or_default(),
        Err(_) => {
            context.totals.stacks_unnamed.fetch_add(1, Relaxed);
            NamedStacks::default()
        }
    }
}

/// `rss_pages` counts pages, the event bytes.
fn detail(kill: &OomDecoded, trigger_owner: Owner, names: NamedStacks) -> OomKill {
    let page = page_size();
    OomKill {
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
        kernel_stack: names.kernel,
        user_stack: names.user,
        incident: None,
        limit: None,
        already_dying: kill.already_dying,
        recovered: false,
    }
}

fn oom_task(task: &Task) -> OomTask {
    OomTask { pid: task.pid, tid: task.tid, comm: text::from_kernel(&task.comm) }
}
