//! Kills → incidents: collects all victims of one visit of the OOM killer in one incident, and releases the incident
//! when the runtime has had time to notice the exits.
//!
//! This module must not depend on aya or on rendering.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use podopsy_model::verdict;

use super::OomFacts;
use podopsy_model::event::Detail;
use podopsy_model::growth::GrowthProfile;
use podopsy_model::incident::{Attempt, OomIncident, Victim};
use podopsy_model::{Event, EventKind, Losses, OomKill};
use podopsy_pods::{ContainerDetails, Pods};
use podopsy_system::sync::lock;

/// The kills of one visit follow each other within this time. The runtime needs about as long to notice an exit.
const SETTLE: Duration = Duration::from_millis(1500);
/// How often the runtime is asked again while it still reports a container as running that must have ended.
const RETRIES: u32 = 3;
/// Without the log: kills with the same trigger within this time belong to one incident.
const SAME_VISIT_NS: u64 = 100_000_000;
/// Open incidents at most; beyond that the oldest is released early.
const OPEN_MAX: usize = 1024;
const VICTIMS_MAX: usize = 1024;
/// Containers whose attempts are remembered, and attempts of each container.
const CONTAINERS_MAX: usize = 1024;
const ATTEMPTS_MAX: usize = 20;

/// Builds incidents from kills.
pub struct IncidentBuilder {
    /// The first four digits of the boot id.
    id_prefix: String,
    open: VecDeque<OpenIncident>,
    attempts: AttemptsByContainer,
}

/// Pod uid and container name → the attempts that ended by an OOM kill, oldest first.
type AttemptsByContainer = Arc<Mutex<HashMap<(String, String), VecDeque<Attempt>>>>;

struct OpenIncident {
    incident: OomIncident,
    /// The event of the first kill: the incident takes its owner from there.
    event: Event,
    /// The log's sequence number of the first kill.
    sequence: Option<u64>,
    /// The time of the last kill (CLOCK_BOOTTIME).
    boot_ns: u64,
    due: Instant,
}

/// An incident that waits for the runtime's report.
pub struct PendingIncident {
    open: OpenIncident,
    attempts: AttemptsByContainer,
}

impl IncidentBuilder {
    /// `boot_id`: the content of `/proc/sys/kernel/random/boot_id`.
    pub fn new(boot_id: &str) -> IncidentBuilder {
        IncidentBuilder {
            id_prefix: boot_id.chars().take(4).collect(),
            open: VecDeque::new(),
            attempts: AttemptsByContainer::default(),
        }
    }

    /// The prefix of the incident ids of this boot.
    pub fn id_prefix(&self) -> &str {
        &self.id_prefix
    }

    /// Adds a kill to its incident, or opens a new one. Writes the facts and the incident's id into the kill's event.
    pub fn add(&mut self, event: &mut Event, boot_ns: u64, facts: OomFacts) {
        let Detail::Oom(kill) = &mut event.detail else { return };
        kill.limit = Some(facts.limit.clone());
        kill.already_dying = facts.already_dying;
        let first = facts.visit.as_ref().and_then(|visit| visit.kills.first()).map(|kill| kill.sequence);
        let existing = self.open.iter().position(|open| match first {
            Some(sequence) => open.incident.id == self.id_of(sequence),
            None => {
                open.incident.trigger.as_ref() == Some(&kill.trigger)
                    && boot_ns.abs_diff(open.boot_ns) < SAME_VISIT_NS
            }
        });
        let id = match (existing, first) {
            (Some(index), _) => self.open[index].incident.id.clone(),
            (None, Some(sequence)) => self.id_of(sequence),
            (None, None) => format!("{}-t{}-{}", self.id_prefix, kill.victim.tid, boot_ns / 1_000_000),
        };
        kill.incident = Some(id.clone());
        let victim = Victim {
            task: kill.victim.clone(),
            rss: kill.rss,
            oom_score_adj: kill.oom_score_adj,
            already_dying: kill.already_dying,
            container: event.container.clone(),
            cgroup: event.cgroup.clone(),
        };
        let group = facts.visit.as_ref().is_some_and(|visit| visit.group.is_some());
        if let Some(index) = existing {
            let open = &mut self.open[index];
            open.boot_ns = boot_ns;
            open.due = Instant::now() + SETTLE;
            open.incident.group |= group;
            if !open.add_victim(victim) {
                // Another thread of a known victim: marked again, but killed once.
                kill.already_dying = true;
            }
            return;
        }
        let incident = new_incident(id, kill, victim, group, facts);
        let due = Instant::now() + SETTLE;
        self.open.push_back(OpenIncident { incident, event: event.clone(), sequence: first, boot_ns, due });
    }

    fn id_of(&self, sequence: u64) -> String {
        format!("{}-{sequence}", self.id_prefix)
    }

    /// When the next incident is due.
    pub fn due(&self) -> Option<Instant> {
        self.open.iter().map(|open| open.due).min()
    }

    /// Removes and returns the incidents that are due; with `all`, every open incident.
    pub fn take_due(&mut self, all: bool) -> Vec<PendingIncident> {
        let now = Instant::now();
        let over = self.open.len().saturating_sub(OPEN_MAX);
        let mut due = Vec::new();
        let mut still_open = VecDeque::new();
        for (index, open) in self.open.drain(..).enumerate() {
            if all || index < over || open.due <= now {
                due.push(PendingIncident { open, attempts: self.attempts.clone() });
            } else {
                still_open.push_back(open);
            }
        }
        self.open = still_open;
        due
    }
}

impl OpenIncident {
    /// False: a thread of the same process is a victim already.
    fn add_victim(&mut self, victim: Victim) -> bool {
        let pid = victim.task.pid;
        if self.incident.victims.iter().any(|known| known.task.pid == pid) {
            return false;
        }
        if self.incident.victims.len() < VICTIMS_MAX {
            self.incident.victims.push(victim);
        }
        // The task table is complete at the first kill, but which of its rows are victims is not known until later.
        if let Some(table) = &mut self.incident.processes {
            for row in table.rows.iter_mut().filter(|row| row.pid == pid) {
                row.victim = true;
            }
        }
        true
    }
}

fn new_incident(id: String, kill: &OomKill, victim: Victim, group: bool, facts: OomFacts) -> OomIncident {
    let already_dying = kill.already_dying;
    let kernel_kills = facts.visit.as_ref().map_or(u64::from(!already_dying), |visit| visit.counted());
    let constraint = facts.visit.as_ref().and_then(|visit| visit.chosen.as_ref()).map(|chosen| {
        let name = chosen.constraint.strip_prefix("CONSTRAINT_").unwrap_or(&chosen.constraint);
        podopsy_model::text::escape(&name.to_ascii_lowercase())
    });
    OomIncident {
        id,
        victims: vec![victim],
        trigger: Some(kill.trigger.clone()).filter(|trigger| trigger.tid != 0),
        trigger_cgroup: kill.trigger_cgroup.clone(),
        group,
        kernel_kills,
        constraint,
        limit: facts.limit,
        levels: facts.levels,
        processes: facts.processes,
        curve: facts.curve,
        growth: None,
        qos: facts.qos,
        runtime: None,
        verdicts: Vec::new(),
        attempts: Vec::new(),
        advice: None,
        recovered: kill.recovered,
    }
}

impl PendingIncident {
    /// The log's sequence number of the first kill; None: the log has nothing about it.
    pub fn sequence(&self) -> Option<u64> {
        self.open.sequence
    }

    /// Takes over what the log says by now: the line about the group is printed after the first kill.
    pub fn update_from_log(&mut self, group: bool, kernel_kills: u64) {
        self.open.incident.group |= group;
        self.open.incident.kernel_kills = kernel_kills;
    }

    /// The time of the last kill (CLOCK_BOOTTIME), and how many kills the kernel counts for it, by the cgroup that they
    /// were reported for. Empty for an incident that was recovered from the log.
    pub fn counted_kills(&self) -> (u64, HashMap<u64, u64>) {
        let incident = &self.open.incident;
        let mut kills = HashMap::new();
        if !incident.recovered {
            let killed: Vec<_> = incident.victims.iter().filter(|victim| !victim.already_dying).collect();
            for victim in &killed {
                *kills.entry(victim.cgroup.id).or_default() += 1;
            }
            // The kernel counts the first victim of a group kill twice: as the chosen one, and as a member.
            let counted_twice = incident.kernel_kills.saturating_sub(killed.len() as u64);
            if let Some(first) = killed.first() {
                *kills.entry(first.cgroup.id).or_default() += counted_twice;
            }
        }
        (self.open.boot_ns, kills)
    }

    /// The first victim's cgroup id, and the time of the last kill (CLOCK_BOOTTIME).
    pub fn first_victim(&self) -> (u64, u64) {
        (self.open.event.cgroup.id, self.open.boot_ns)
    }

    /// Sets the growth profile: the code that the memory grew by.
    pub fn set_growth(&mut self, growth: Option<GrowthProfile>) {
        self.open.incident.growth = growth;
    }

    /// Asks the runtime, and again while it lags behind, and makes the event. `closing` becomes true when there is no
    /// more time to wait.
    pub async fn settle(
        mut self,
        pods: &Pods,
        mut closing: tokio::sync::watch::Receiver<bool>,
        losses: &Mutex<Losses>,
    ) -> Event {
        let id = self.open.event.container.as_ref().map(|container| container.id.clone());
        for retry in 0..=RETRIES {
            let Some(id) = &id else { break };
            self.open.incident.runtime = pods.container(id).await.map(ContainerDetails::view);
            if verdict::is_settled(&self.open.incident) || retry == RETRIES || *closing.borrow() {
                break;
            }
            let _ = tokio::time::timeout(SETTLE, closing.wait_for(|&now| now)).await;
        }
        let PendingIncident { open: OpenIncident { mut incident, event, .. }, attempts } = self;
        incident.verdicts = verdict::verdicts(&incident);
        incident.attempts = remember_attempt(&attempts, &event, &incident);
        incident.advice = verdict::advice(&incident);
        let losses = lock(losses).clone();
        Event { kind: EventKind::OomIncident, incident: Some(Box::new(incident)), losses, ..event }
    }
}

/// Adds this attempt of the container, if it has ended, and returns all attempts that are known.
fn remember_attempt(attempts: &AttemptsByContainer, event: &Event, incident: &OomIncident) -> Vec<Attempt> {
    let (Some(pod), Some(container)) = (&event.pod, &event.container) else { return Vec::new() };
    let mut all = lock(attempts);
    let key = (pod.uid.clone(), container.name.clone());
    if all.len() >= CONTAINERS_MAX && !all.contains_key(&key) {
        // The history on the disk still has the others.
        all.clear();
    }
    let known = all.entry(key).or_default();
    if let Some(view) = incident.runtime.as_ref().filter(|view| view.state == "exited")
        && let Some(started) = view.started_at
        && known.back().is_none_or(|last| last.attempt != container.attempt)
    {
        known.push_back(Attempt {
            attempt: container.attempt,
            seconds: event.time.duration_since(started).as_secs_f64(),
        });
        if known.len() > ATTEMPTS_MAX {
            known.pop_front();
        }
    }
    known.iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_log::visit::{LoggedKill, Visit};
    use podopsy_model::event::{OomTask, ProcessRef};
    use podopsy_model::incident::{Evidence, Level, LimitHit};
    use podopsy_model::{CgroupRef, Owner};

    fn facts(sequence: Option<u64>) -> OomFacts {
        let kill = |sequence| LoggedKill { sequence, time_us: 1, killed: None, tid: 1, taken: true };
        let limit = LimitHit {
            of: Level::Container,
            how: Evidence::Observed,
            by: String::new(),
            path: None,
            limit_bytes: None,
            usage_bytes: None,
        };
        OomFacts {
            visit: sequence.map(|s| Arc::new(Visit { kills: vec![kill(s)], ..Visit::default() })),
            limit,
            levels: Vec::new(),
            processes: None,
            curve: None,
            qos: None,
            already_dying: sequence.is_none(),
        }
    }

    fn kill(pid: u32, trigger: u32) -> Event {
        let task = |pid| OomTask { pid, tid: pid, comm: "x".into() };
        let kill = OomKill {
            victim: task(pid),
            trigger: task(trigger),
            trigger_cgroup: CgroupRef::default(),
            rss: None,
            oom_score_adj: None,
            kernel_stack: Vec::new(),
            user_stack: Vec::new(),
            incident: None,
            limit: None,
            already_dying: false,
            recovered: false,
        };
        let process = ProcessRef { pid, comm: "x".into(), start_time: None };
        Event::new(
            jiff::Timestamp::UNIX_EPOCH,
            EventKind::OomKill,
            "n",
            Owner::default(),
            process,
            Detail::Oom(kill),
            Losses::new(),
        )
    }

    fn id(event: &Event) -> &str {
        match &event.detail {
            Detail::Oom(kill) => kill.incident.as_deref().unwrap(),
            _ => panic!("no kill"),
        }
    }

    #[tokio::test]
    async fn one_visit_makes_one_incident_and_the_next_visit_another() {
        let mut builder = IncidentBuilder::new("3f2a9c0d-51b7");
        let mut kills = [kill(1, 9), kill(2, 9), kill(3, 9)];
        for (event, sequence) in kills.iter_mut().zip([7, 7, 8]) {
            builder.add(event, 1000, facts(Some(sequence)));
        }
        assert_eq!([id(&kills[0]), id(&kills[1]), id(&kills[2])], ["3f2a-7", "3f2a-7", "3f2a-8"]);
        assert!(builder.take_due(false).is_empty());
        builder.open.iter_mut().for_each(|open| open.due = Instant::now());
        let victims: Vec<_> =
            builder.take_due(false).iter().map(|one| one.open.incident.victims.len()).collect();
        assert_eq!(victims, [2, 1]);
        assert_eq!(builder.due(), None);
    }

    #[tokio::test]
    async fn without_the_log_kills_with_one_trigger_at_one_time_make_an_incident() {
        let mut builder = IncidentBuilder::new("3f2a");
        let mut kills = [kill(1, 9), kill(2, 9), kill(3, 8), kill(4, 9)];
        for (event, ms) in kills.iter_mut().zip([1000, 1050, 1060, 2000]) {
            builder.add(event, ms * 1_000_000, facts(None));
        }
        let ids: Vec<_> = kills.iter().map(id).collect();
        assert_eq!(ids, ["3f2a-t1-1000", "3f2a-t1-1000", "3f2a-t3-1060", "3f2a-t4-2000"]);
        assert!(matches!(&kills[1].detail, Detail::Oom(kill) if kill.already_dying));
        assert_eq!(builder.take_due(true).len(), 3);
    }
}
