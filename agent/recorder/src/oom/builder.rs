//! Kills → incidents: all victims of one visit of the OOM killer lie on the builder together, and leave it once
//! the runtime has had time to notice.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use podopsy_model::verdict;

use super::OomFacts;
use podopsy_model::event::Detail;
use podopsy_model::growth::GrowthProfile;
use podopsy_model::incident::{Attempt, Incident, Victim};
use podopsy_model::{Event, Kind, Losses, OomKill};
use podopsy_pods::{Container, Pods};

/// A visit's kills come within so long of each other; the runtime needs about as long to see an exit.
const SETTLE: Duration = Duration::from_millis(1500);
/// Asked again where a container must have ended and the runtime does not know it yet.
const ASK_AGAIN: u32 = 3;
/// Without the log: victims of the same trigger within so long are one incident's.
const TOGETHER_NS: u64 = 100_000_000;
/// Incidents on the builder; past that the oldest leaves early.
const OPEN_MAX: usize = 1024;
const VICTIMS_MAX: usize = 1024;
/// Containers whose attempts are remembered, and attempts of each.
const CONTAINERS_MAX: usize = 1024;
const ATTEMPTS_MAX: usize = 20;

/// Open incidents.
pub struct IncidentBuilder {
    boot: String,
    open: VecDeque<Open>,
    attempts: Attempts,
}

type Attempts = Arc<Mutex<HashMap<(String, String), VecDeque<Attempt>>>>;

struct Open {
    incident: Incident,
    /// The first kill's: whose it was.
    event: Event,
    /// The log's number of the first kill.
    sequence: Option<u64>,
    /// Of the last kill.
    boot_ns: u64,
    due: Instant,
}

/// An incident that waits for the runtime's word.
pub struct PendingIncident {
    open: Open,
    attempts: Attempts,
}

impl IncidentBuilder {
    /// `boot_id`: of `/proc/sys/kernel/random/boot_id`.
    pub fn new(boot_id: &str) -> IncidentBuilder {
        IncidentBuilder {
            boot: boot_id.chars().take(4).collect(),
            open: VecDeque::new(),
            attempts: Attempts::default(),
        }
    }

    /// What ids of this boot begin with.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Lays a kill down: `event` is its own, without the facts; they are put into it, with the incident's id.
    pub fn add(&mut self, event: &mut Event, boot_ns: u64, facts: OomFacts) {
        let Detail::Oom(kill) = &mut event.detail else { return };
        kill.limit = Some(facts.limit.clone());
        kill.already_dying = facts.already_dying;
        let first = facts.visit.as_ref().and_then(|visit| visit.kills.first()).map(|kill| kill.sequence);
        let known = self.open.iter().position(|open| match first {
            Some(sequence) => open.incident.id == self.id_of(sequence),
            None => {
                open.incident.trigger.as_ref() == Some(&kill.trigger)
                    && boot_ns.abs_diff(open.boot_ns) < TOGETHER_NS
            }
        });
        let id = match (known, first) {
            (Some(at), _) => self.open[at].incident.id.clone(),
            (None, Some(sequence)) => self.id_of(sequence),
            (None, None) => format!("{}-t{}-{}", self.boot, kill.victim.tid, boot_ns / 1_000_000),
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
        if let Some(at) = known {
            let open = &mut self.open[at];
            (open.boot_ns, open.due) = (boot_ns, Instant::now() + SETTLE);
            open.incident.group |= group;
            if open.incident.victims.iter().any(|known| known.task.pid == victim.task.pid) {
                // Another thread of a victim: marked again, killed once.
                kill.already_dying = true;
                return;
            }
            if open.incident.victims.len() < VICTIMS_MAX {
                open.incident.victims.push(victim);
            }
            // The table is complete from the first kill on; which of its rows are victims is not.
            if let Some(table) = &mut open.incident.processes {
                let tid = kill.victim.pid;
                table.rows.iter_mut().filter(|row| row.pid == tid).for_each(|row| row.victim = true);
            }
            return;
        }
        let incident = incident(id, kill, victim, group, facts);
        let due = Instant::now() + SETTLE;
        self.open.push_back(Open { incident, event: event.clone(), sequence: first, boot_ns, due });
    }

    fn id_of(&self, sequence: u64) -> String {
        format!("{}-{sequence}", self.boot)
    }

    /// When the next one is due.
    pub fn due(&self) -> Option<Instant> {
        self.open.iter().map(|open| open.due).min()
    }

    /// Those that are due; all of them at the end.
    pub fn take_due(&mut self, all: bool) -> Vec<PendingIncident> {
        let now = Instant::now();
        let over = self.open.len().saturating_sub(OPEN_MAX);
        let (mut due, mut open) = (Vec::new(), VecDeque::new());
        for (at, one) in self.open.drain(..).enumerate() {
            match all || at < over || one.due <= now {
                true => due.push(PendingIncident { open: one, attempts: self.attempts.clone() }),
                false => open.push_back(one),
            }
        }
        self.open = open;
        due
    }
}

fn incident(id: String, kill: &OomKill, victim: Victim, group: bool, facts: OomFacts) -> Incident {
    let already_dying = kill.already_dying;
    let kernel_kills = facts.visit.as_ref().map_or(u64::from(!already_dying), |visit| visit.counted());
    let constraint = facts.visit.as_ref().and_then(|visit| visit.chosen.as_ref()).map(|chosen| {
        let word = chosen.constraint.strip_prefix("CONSTRAINT_").unwrap_or(&chosen.constraint);
        podopsy_model::text::escape(&word.to_ascii_lowercase())
    });
    Incident {
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
    /// The log's number of its first kill.
    pub fn sequence(&self) -> Option<u64> {
        self.open.sequence
    }

    /// What the log has of it by now: the line on the group comes after the first kill.
    pub fn update_from_log(&mut self, group: bool, kernel_kills: u64) {
        self.open.incident.group |= group;
        self.open.incident.kernel_kills = kernel_kills;
    }

    /// When its last kill was (CLOCK_BOOTTIME), and the kills that the kernel counts of it, by the cgroup that they
    /// were told of; nothing of what only the log told.
    pub fn counted_kills(&self) -> (u64, HashMap<u64, u64>) {
        let incident = &self.open.incident;
        let mut told = HashMap::new();
        if !incident.recovered {
            let killed: Vec<_> = incident.victims.iter().filter(|victim| !victim.already_dying).collect();
            killed.iter().for_each(|victim| *told.entry(victim.cgroup.id).or_default() += 1);
            // The first of a group is killed twice.
            let twice = incident.kernel_kills.saturating_sub(killed.len() as u64);
            killed.first().into_iter().for_each(|victim| *told.entry(victim.cgroup.id).or_default() += twice);
        }
        (self.open.boot_ns, told)
    }

    /// Whose it was: the first victim's cgroup, and when.
    pub fn first_victim(&self) -> (u64, u64) {
        (self.open.event.cgroup.id, self.open.boot_ns)
    }

    /// Puts to it which code the memory grew by.
    pub fn set_growth(&mut self, growth: Option<GrowthProfile>) {
        self.open.incident.growth = growth;
    }

    /// Asks the runtime, again if it lags behind, until `closing` says that there is no more time.
    pub async fn settle(
        mut self,
        pods: &Pods,
        mut closing: tokio::sync::watch::Receiver<bool>,
        losses: &Mutex<Losses>,
    ) -> Event {
        let id = self.open.event.container.as_ref().map(|container| container.id.clone());
        for again in 0..=ASK_AGAIN {
            let Some(id) = &id else { break };
            self.open.incident.runtime = pods.container(id).await.map(Container::view);
            if verdict::settled(&self.open.incident) || again == ASK_AGAIN || *closing.borrow() {
                break;
            }
            let _ = tokio::time::timeout(SETTLE, closing.wait_for(|&now| now)).await;
        }
        let PendingIncident { open: Open { mut incident, event, .. }, attempts } = self;
        incident.verdicts = verdict::verdicts(&incident);
        incident.attempts = remember(&attempts, &event, &incident);
        incident.advice = verdict::advice(&incident);
        let losses = losses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Event { kind: Kind::OomIncident, incident: Some(Box::new(incident)), losses, ..event }
    }
}

/// Adds this life of the container, if it has ended, and gives all that are known.
fn remember(attempts: &Attempts, event: &Event, incident: &Incident) -> Vec<Attempt> {
    let (Some(pod), Some(container)) = (&event.pod, &event.container) else { return Vec::new() };
    let mut all = attempts.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (pod.uid.clone(), container.name.clone());
    if all.len() >= CONTAINERS_MAX && !all.contains_key(&key) {
        // The history on disk has the others.
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
    use podopsy_model::incident::{How, Level, Limit};
    use podopsy_model::{CgroupRef, Owner};

    fn facts(sequence: Option<u64>) -> OomFacts {
        let kill = |sequence| LoggedKill { sequence, time_us: 1, killed: None, tid: 1, taken: true };
        let limit = Limit {
            of: Level::Container,
            how: How::Observed,
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
            Kind::OomKill,
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
    async fn a_visit_is_one_incident_and_the_next_visit_another() {
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
    async fn without_the_log_the_trigger_and_the_moment_make_an_incident() {
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
