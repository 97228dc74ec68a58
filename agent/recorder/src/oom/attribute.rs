//! Kills → events and incidents.
//!
//! ```text
//! record ─ examine (a task each: owner, levels, kernel log) ─→ oom.kill
//!                                     └─ incident ─ complete (a task each: names, growth, runtime) ─→ oom.incident
//! ```
//!
//! A kill is reported as soon as its owner and its line in the kernel's log are known, or when their time is over. No kill
//! waits for another. What takes longer is added to the incident: the names of the frames, late lines of the log, late
//! names of the pod, the growth profile and the runtime's report.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use podopsy_decode::OomDecoded;
use podopsy_model::event::{OomTask, Rss};
use podopsy_model::growth::GrowthProfile;
use podopsy_model::incident::ProcessTable;
use podopsy_model::{CgroupRef, Detail, Event, EventKind, KnownBy, Losses, OomKill, Owner, text};
use podopsy_system::page_size;
use podopsy_wire::Task;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

use super::checkpoint::RecoveryCheckpoint;
use super::recover;
use super::stack_queue::NamesReceiver;
use super::stacks::NamedStacks;
use super::{IncidentBuilder, OomExaminer, OomFacts, PendingIncident};
use crate::attribute::EventContext;
use crate::confirm::Confirmations;
use crate::growth::sampling::Growth;
use crate::kernel_log::visit::Visit;

/// How long a kill waits for the runtime to name a container that has only just appeared. Its incident looks again.
const OWNER_WITHIN: Duration = Duration::from_secs(1);
/// How long an incident waits for the names in its stacks: a large program takes seconds to read.
const NAMES_TIMEOUT: Duration = Duration::from_secs(30);
/// The same when the recorder stops.
const NAMES_TIMEOUT_AT_END: Duration = Duration::from_secs(2);
/// Kills that are examined at a time. Each one beyond is reported with what is known at once.
const EXAMINED_MAX: usize = 1024;
/// Kills from the kernel's log that were attributed and not yet received.
const MISSED_QUEUE: usize = 16;

/// A kill with everything that its event needs.
pub(crate) struct ExaminedKill {
    event: Event,
    boot_ns: u64,
    facts: OomFacts,
    names: Option<NamesReceiver>,
}

pub(crate) struct OomAttribution {
    pub examiner: Arc<OomExaminer>,
    pub incident_builder: IncidentBuilder,
    /// None: growth is not sampled.
    pub growth: Option<Growth>,
    pub confirmations: Arc<Confirmations>,
    pub examining: JoinSet<ExaminedKill>,
}

impl OomAttribution {
    /// The checkpoint of this moment.
    pub fn checkpoint(&self) -> RecoveryCheckpoint {
        RecoveryCheckpoint::now(self.examiner.log_sequence())
    }

    /// Whether no kill is being examined and no incident is open.
    pub fn is_quiet(&self) -> bool {
        self.examining.is_empty() && self.incident_builder.due().is_none()
    }

    /// The kills of visits that only the kernel's log has.
    pub fn missed_kills(
        &self,
        context: Arc<EventContext>,
        visits: Vec<Visit>,
    ) -> mpsc::Receiver<ExaminedKill> {
        let (sender, kills) = mpsc::channel(MISSED_QUEUE);
        tokio::spawn(async move {
            for visit in visits {
                for (event, boot_ns, facts) in recover::kill_events(&context.pods, &context.node, visit).await
                {
                    let kill = ExaminedKill { event, boot_ns, facts, names: None };
                    if sender.send(kill).await.is_err() {
                        // The recorder stops; a restart reads the rest again.
                        return;
                    }
                }
            }
        });
        kills
    }

    /// Starts to examine a kill that the probe saw; [`OomAttribution::next_examined`] returns it.
    pub fn examine(
        &mut self,
        context: &Arc<EventContext>,
        kill: Box<OomDecoded>,
        names: Option<NamesReceiver>,
    ) {
        let within = if self.examining.len() < EXAMINED_MAX { OWNER_WITHIN } else { Duration::ZERO };
        let examination = Examination {
            context: context.clone(),
            examiner: self.examiner.clone(),
            deadline: Instant::now() + within,
        };
        self.examining.spawn(async move { examination.run(&kill, names).await });
    }

    /// The next kill that is to be reported. Cancel-safe.
    pub async fn next_examined(&mut self) -> ExaminedKill {
        match self.next_examined_of_all().await {
            Some(kill) => kill,
            None => std::future::pending().await,
        }
    }

    /// The same; None: no kill is being examined.
    pub async fn next_examined_of_all(&mut self) -> Option<ExaminedKill> {
        loop {
            match self.examining.join_next().await? {
                Ok(kill) => return Some(kill),
                Err(error) => tracing::error!("lost an OOM kill while it was examined: {error}"),
            }
        }
    }

    /// Adds a kill to its incident, and its container to the growth candidates. Returns the kill's event.
    pub fn add(&mut self, kill: ExaminedKill, losses: Losses) -> Event {
        let ExaminedKill { mut event, boot_ns, facts, names } = kill;
        event.losses = losses;
        if let Some(growth) = &self.growth {
            growth.killed(&event);
        }
        let limit = facts.limit.clone();
        if let Some(incident) = self.incident_builder.add(&mut event, boot_ns, facts, names) {
            // The log has no table: read /proc soon, but do not delay the kill.
            incident.survivors = self.examiner.survivors(&limit, event.cgroup.id);
        }
        event
    }

    /// Completes incidents that are due, each in a task of its own: a slow runtime delays no kill.
    pub fn settle(
        &mut self,
        context: &Arc<EventContext>,
        events: &mpsc::Sender<Event>,
        closing: &watch::Receiver<bool>,
        all: bool,
    ) {
        for incident in self.incident_builder.take_due(all) {
            let completion = Completion {
                context: context.clone(),
                examiner: self.examiner.clone(),
                growth: self.growth.clone(),
                closing: closing.clone(),
            };
            let (events, confirmations) = (events.clone(), self.confirmations.clone());
            let open = confirmations.open_incident();
            tokio::spawn(async move {
                let event = completion.run(incident).await;
                confirmations.sent(&event);
                // The receiver may be gone; dropping the event is correct.
                let _ = events.send(event).await;
                drop(open);
            });
        }
    }
}

/// Looks up what the event of one kill needs.
struct Examination {
    context: Arc<EventContext>,
    examiner: Arc<OomExaminer>,
    /// For the owners.
    deadline: Instant,
}

impl Examination {
    async fn run(self, kill: &OomDecoded, names: Option<NamesReceiver>) -> ExaminedKill {
        // Before anything that waits: a runtime removes a dead container's cgroup within milliseconds.
        let levels = self.examiner.levels(kill.victim.cgroup_id, kill.time_ns);
        let (mut owner, trigger_cgroup, found) =
            tokio::join!(self.victim(kill), self.trigger(&kill.trigger), self.examiner.find_in_log(kill));
        let facts = self.examiner.facts(kill, &owner, levels, found);
        // On kernels that pass only a pid, the log has the victim's cgroup.
        if owner.known_by == KnownBy::Unknown
            && let Some(path) = facts.victim_cgroup()
        {
            owner = self.owner_of_path(path).await;
        }
        let detail = Detail::Oom(detail(kill, trigger_cgroup));
        let event = self.context.event(kill.time_ns, EventKind::OomKill, owner, &kill.victim, detail);
        ExaminedKill { event, boot_ns: kill.time_ns, facts, names }
    }

    async fn victim(&self, kill: &OomDecoded) -> Owner {
        let mut owner = self.owner(&kill.victim).await;
        // A container may be gone before its creation was noticed: the probe read the path while it existed.
        if owner.known_by == KnownBy::Unknown
            && let Some(path) = &kill.cgroup_path
        {
            let id = owner.cgroup.id;
            owner = self.owner_of_path(path.as_bytes()).await;
            owner.cgroup.id = id;
        }
        owner
    }

    async fn trigger(&self, task: &Task) -> CgroupRef {
        let (owner, _) = self.context.pods.owner_now(task.cgroup_id, task.pid);
        if owner.cgroup.path.is_some() {
            return owner.cgroup;
        }
        self.owner(task).await.cgroup
    }

    /// The owner; after the deadline, as far as it is known by then.
    async fn owner(&self, task: &Task) -> Owner {
        let pods = &self.context.pods;
        let (cgroup, pid) = (task.cgroup_id, task.pid);
        let (owner, is_incomplete) = pods.owner_now(cgroup, pid);
        if !is_incomplete {
            return owner;
        }
        let found = timeout_at(self.deadline, pods.owner_of_task(cgroup, pid)).await;
        found.unwrap_or_else(|_| pods.owner_now(cgroup, pid).0)
    }

    async fn owner_of_path(&self, path: &[u8]) -> Owner {
        let pods = &self.context.pods;
        let found = timeout_at(self.deadline, pods.owner_of_path(path)).await;
        found.unwrap_or_else(|_| pods.owner_of_path_now(path))
    }
}

/// Looks up what an incident's event has beyond its kills.
struct Completion {
    context: Arc<EventContext>,
    examiner: Arc<OomExaminer>,
    growth: Option<Growth>,
    closing: watch::Receiver<bool>,
}

impl Completion {
    async fn run(self, mut incident: PendingIncident) -> Event {
        self.examiner.add_late_lines(&mut incident).await;
        self.examiner.record_reported_kills(&incident);
        self.update_owner(&mut incident).await;
        let (cgroup, boot_ns) = incident.first_victim();
        let (names, survivors) = (incident.names.take(), incident.survivors.take());
        let (names, table, growth, ()) = tokio::join!(
            self.names(names),
            survivors_table(survivors),
            self.growth_profile(cgroup, boot_ns),
            incident.ask_runtime(&self.context.pods, self.closing.clone())
        );
        incident.set_stacks(&names);
        incident.set_processes(table);
        incident.set_growth(growth);
        incident.into_event(&self.context.totals.losses)
    }

    async fn growth_profile(&self, cgroup: u64, boot_ns: u64) -> Option<GrowthProfile> {
        self.growth.as_ref()?.profile(cgroup, boot_ns).await
    }

    /// Looks again for the names of a container that the runtime had not named in time.
    async fn update_owner(&self, incident: &mut PendingIncident) {
        let (cgroup, known_by) = incident.owner();
        if cgroup != 0 && !matches!(known_by, KnownBy::Cri | KnownBy::Host | KnownBy::Inside) {
            let owner = self.context.pods.owner_of_cgroup(cgroup).await;
            if incident.update_owner(owner)
                && let Some(growth) = &self.growth
            {
                growth.killed(incident.event());
            }
        }
    }

    /// The names of the stacks. None where they are late, which is counted, or were not asked for.
    async fn names(&self, names: Option<NamesReceiver>) -> Arc<NamedStacks> {
        let Some(mut names) = names else { return Arc::default() };
        let mut closing = self.closing.clone();
        let is_late = async {
            let is_stopping = timeout(NAMES_TIMEOUT, closing.wait_for(|&now| now)).await.is_ok();
            if is_stopping {
                tokio::time::sleep(NAMES_TIMEOUT_AT_END).await;
            }
        };
        let known = tokio::select! {
            known = names.wait_for(Option::is_some) => known.ok().and_then(|names| names.clone()),
            () = is_late => None,
        };
        if known.is_none() {
            self.context.totals.stacks_unnamed.fetch_add(1, Relaxed);
        }
        known.unwrap_or_default()
    }
}

async fn survivors_table(read: Option<JoinHandle<Option<ProcessTable>>>) -> Option<ProcessTable> {
    read?.await.ok().flatten()
}

/// `rss_pages` counts pages, the event bytes. The stacks get their names in the incident.
fn detail(kill: &OomDecoded, trigger_cgroup: CgroupRef) -> OomKill {
    let page = page_size();
    OomKill {
        victim: oom_task(&kill.victim),
        trigger: oom_task(&kill.trigger),
        trigger_cgroup,
        rss: kill.rss_pages.map(|[file, anon, swap, shmem]| Rss {
            anon_bytes: anon.saturating_mul(page),
            file_bytes: file.saturating_mul(page),
            shmem_bytes: shmem.saturating_mul(page),
            swap_bytes: swap.saturating_mul(page),
        }),
        oom_score_adj: kill.oom_score_adj,
        kernel_stack: Vec::new(),
        user_stack: Vec::new(),
        incident: None,
        limit: None,
        already_dying: kill.already_dying,
        recovered: false,
    }
}

fn oom_task(task: &Task) -> OomTask {
    OomTask { pid: task.pid, tid: task.tid, comm: text::from_kernel(&task.comm) }
}
