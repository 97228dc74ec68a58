//! Kills → incidents: collects all victims of one visit of the OOM killer in one incident, and releases the incident
//! when the runtime has had time to notice the exits.
//!
//! This module must not depend on aya or on rendering.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use podopsy_model::verdict;

use super::limit::{self, LevelReading};
use super::stack_queue::NamesReceiver;
use super::stacks::NamedStacks;
use super::{OomFacts, charged, levels};
use crate::kernel_log::visit::{LoggedKill, Visit};
use podopsy_model::event::Detail;
use podopsy_model::growth::GrowthProfile;
use podopsy_model::incident::{Attempt, OomIncident, ProcessTable, Victim};
use podopsy_model::{Event, EventKind, KnownBy, Losses, OomKill, Owner};
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

pub(crate) struct OpenIncident {
    incident: OomIncident,
    /// The event of the first kill: the incident takes its owner from there.
    event: Event,
    /// The log's sequence number of the first kill.
    sequence: Option<u64>,
    /// The times of the first and of the last kill (CLOCK_BOOTTIME).
    first_ns: u64,
    boot_ns: u64,
    due: Instant,
    /// The levels as they were read, to decide again whose limit it was when the log's lines come late.
    levels: Vec<LevelReading>,
    /// Kills whose line was not in the log yet: thread id, and time (CLOCK_BOOTTIME).
    unlogged: Vec<(u32, u64)>,
    /// The names of the first kill's stacks, once they are known.
    names: Option<NamesReceiver>,
    /// The processes that are left, as they are being read.
    pub survivors: Option<JoinHandle<Option<ProcessTable>>>,
}

/// An incident that waits for names and for the runtime's report.
pub struct PendingIncident {
    open: OpenIncident,
    attempts: AttemptsByContainer,
    pub(crate) names: Option<NamesReceiver>,
    pub(crate) survivors: Option<JoinHandle<Option<ProcessTable>>>,
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
    /// Kills may come in any order. Returns a new incident that has no table of processes.
    pub(crate) fn add(
        &mut self,
        event: &mut Event,
        boot_ns: u64,
        facts: OomFacts,
        names: Option<NamesReceiver>,
    ) -> Option<&mut OpenIncident> {
        let Detail::Oom(kill) = &mut event.detail else { return None };
        kill.limit = Some(facts.limit.clone());
        kill.already_dying = facts.already_dying;
        let first = facts.visit.as_ref().and_then(|visit| visit.kills.first()).map(|kill| kill.sequence);
        let existing = self.open.iter().position(|open| open.is_same_visit(kill, boot_ns, &facts));
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
        let is_unlogged = facts.visit.is_none() && !kill.already_dying;
        let unlogged = is_unlogged.then_some((kill.victim.tid, boot_ns));
        if let Some(index) = existing {
            let open = &mut self.open[index];
            open.boot_ns = open.boot_ns.max(boot_ns);
            open.due = Instant::now() + SETTLE;
            open.incident.group |= facts.visit.as_ref().is_some_and(|visit| visit.group.is_some());
            open.sequence = open.sequence.or(first);
            open.unlogged.extend(unlogged.filter(|_| open.unlogged.len() < VICTIMS_MAX));
            if !open.add_victim(victim, boot_ns) {
                // Another thread of a known victim: marked again, but killed once.
                kill.already_dying = true;
            } else if boot_ns < open.first_ns {
                open.first_ns = boot_ns;
                open.event = event.clone();
                open.names = names;
            }
            return None;
        }
        let levels = facts.levels.clone();
        let incident = new_incident(id, kill, victim, facts);
        self.open.push_back(OpenIncident {
            incident,
            event: event.clone(),
            sequence: first,
            first_ns: boot_ns,
            boot_ns,
            due: Instant::now() + SETTLE,
            levels,
            unlogged: unlogged.into_iter().collect(),
            names,
            survivors: None,
        });
        self.open.back_mut().filter(|open| open.incident.processes.is_none())
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
                due.push(PendingIncident::new(open, self.attempts.clone()));
            } else {
                still_open.push_back(open);
            }
        }
        self.open = still_open;
        due
    }
}

impl OpenIncident {
    /// Whether a kill belongs to this visit of the OOM killer.
    fn is_same_visit(&self, kill: &OomKill, boot_ns: u64, facts: &OomFacts) -> bool {
        let is_near = |at: u64| boot_ns.abs_diff(at) < SAME_VISIT_NS;
        let Some(visit) = &facts.visit else {
            let is_near = is_near(self.boot_ns) || is_near(self.first_ns);
            return is_near && self.incident.trigger.as_ref() == Some(&kill.trigger);
        };
        let first = visit.kills.first().map(|kill| kill.sequence);
        let has_line_of =
            |&(tid, at): &(u32, u64)| is_near(at) && visit.kills.iter().any(|kill| kill.tid == tid);
        match self.sequence {
            Some(_) => self.sequence == first,
            // The lines of its kills had not been read when they were reported.
            None => self.unlogged.iter().any(has_line_of),
        }
    }

    /// False: a thread of the same process is a victim already.
    fn add_victim(&mut self, victim: Victim, boot_ns: u64) -> bool {
        let pid = victim.task.pid;
        if self.incident.victims.iter().any(|known| known.task.pid == pid) {
            return false;
        }
        if self.incident.victims.len() < VICTIMS_MAX {
            let at = if boot_ns < self.first_ns { 0 } else { self.incident.victims.len() };
            self.incident.victims.insert(at, victim);
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

/// The kernel's CONSTRAINT_*, in lower case.
fn constraint(visit: &Visit) -> Option<String> {
    let constraint = &visit.chosen.as_ref()?.constraint;
    let name = constraint.strip_prefix("CONSTRAINT_").unwrap_or(constraint);
    Some(podopsy_model::text::escape(&name.to_ascii_lowercase()))
}

fn new_incident(id: String, kill: &OomKill, victim: Victim, facts: OomFacts) -> OomIncident {
    let already_dying = kill.already_dying;
    let kernel_kills = facts.visit.as_ref().map_or(u64::from(!already_dying), |visit| visit.counted());
    let constraint = facts.visit.as_deref().and_then(constraint);
    let group = facts.visit.as_ref().is_some_and(|visit| visit.group.is_some());
    OomIncident {
        id,
        victims: vec![victim],
        trigger: Some(kill.trigger.clone()).filter(|trigger| trigger.tid != 0),
        trigger_cgroup: kill.trigger_cgroup.clone(),
        group,
        kernel_kills,
        constraint,
        limit: facts.limit,
        levels: facts.levels.into_iter().map(|level| level.state).collect(),
        processes: facts.processes,
        charged: facts.charged,
        curve: facts.curve,
        heap: facts.heap,
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
    fn new(mut open: OpenIncident, attempts: AttemptsByContainer) -> PendingIncident {
        let (names, survivors) = (open.names.take(), open.survivors.take());
        PendingIncident { open, attempts, names, survivors }
    }

    /// The log's sequence number of the first kill; None: the log has nothing about it.
    pub fn sequence(&self) -> Option<u64> {
        self.open.sequence
    }

    /// Takes over what the log says by now: the line about the group is printed after the first kill.
    pub fn update_from_log(&mut self, group: bool, kernel_kills: u64) {
        self.open.incident.group |= group;
        self.open.incident.kernel_kills = kernel_kills;
    }

    /// The kills whose lines the log did not have yet: thread id, and time (CLOCK_BOOTTIME).
    pub fn take_unlogged(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.open.unlogged)
    }

    /// Takes over what the log says of a kill that was reported before its line came. The id stays: the kill has it.
    pub(crate) fn add_late_line(&mut self, visit: Visit, line: &LoggedKill) {
        let open = &mut self.open;
        if open.sequence.is_some() {
            return;
        }
        open.sequence = visit.kills.first().map(|kill| kill.sequence);
        let in_cgroup = line.killed.as_ref().map(|killed| killed.in_cgroup);
        let limit = limit::decide(Some(&visit), in_cgroup, &open.levels);
        let table = levels::table(&visit, limit.usage_bytes);
        let incident = &mut open.incident;
        incident.constraint = constraint(&visit);
        incident.processes = table.or(incident.processes.take());
        incident.charged = charged::of(Some(&visit), &limit, &open.levels);
        incident.limit = limit;
        if let Detail::Oom(kill) = &mut open.event.detail {
            kill.limit = Some(incident.limit.clone());
        }
    }

    /// The first victim's cgroup id, and how its container is known.
    pub fn owner(&self) -> (u64, KnownBy) {
        (self.open.event.cgroup.id, self.open.event.known_by)
    }

    /// The event of the first kill, as it is by now.
    pub fn event(&self) -> &Event {
        &self.open.event
    }

    /// Takes over an owner that became known after the kill was reported; false: it is no better.
    pub fn update_owner(&mut self, owner: Owner) -> bool {
        let OpenIncident { incident, event, .. } = &mut self.open;
        if owner.known_by == event.known_by || owner.known_by == KnownBy::Unknown {
            return false;
        }
        for victim in incident.victims.iter_mut().filter(|victim| victim.cgroup.id == owner.cgroup.id) {
            victim.container = owner.container.clone();
            victim.cgroup = owner.cgroup.clone();
        }
        (event.pod, event.container) = (owner.pod, owner.container);
        (event.cgroup, event.known_by) = (owner.cgroup, owner.known_by);
        true
    }

    /// Sets the trigger's stacks.
    pub(crate) fn set_stacks(&mut self, names: &NamedStacks) {
        if let Detail::Oom(kill) = &mut self.open.event.detail {
            (kill.kernel_stack, kill.user_stack) = (names.kernel.clone(), names.user.clone());
        }
    }

    /// Sets the table of the processes that were left, unless the log had the killer's own.
    pub fn set_processes(&mut self, table: Option<ProcessTable>) {
        let processes = &mut self.open.incident.processes;
        *processes = processes.take().or(table);
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

    /// Asks the runtime, and again while it lags behind. `closing` becomes true when there is no more time to wait.
    pub async fn ask_runtime(&mut self, pods: &Pods, mut closing: tokio::sync::watch::Receiver<bool>) {
        let id = self.open.event.container.as_ref().map(|container| container.id.clone());
        let Some(id) = id else { return };
        for retry in 0..=RETRIES {
            self.open.incident.runtime = pods.container(&id).await.map(ContainerDetails::view);
            if verdict::is_settled(&self.open.incident) || retry == RETRIES || *closing.borrow() {
                break;
            }
            let _ = tokio::time::timeout(SETTLE, closing.wait_for(|&now| now)).await;
        }
    }

    /// The incident's event.
    pub fn into_event(self, losses: &Mutex<Losses>) -> Event {
        let PendingIncident { open: OpenIncident { mut incident, event, .. }, attempts, .. } = self;
        incident.verdicts = verdict::verdicts(&incident);
        incident.attempts = remember_attempt(&attempts, &event, &incident);
        let of_heap = verdict::heap_verdict(&incident);
        if let Some(heap) = &mut incident.heap {
            heap.verdict = of_heap;
        }
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
    use crate::kernel_log::line::Chosen;
    use podopsy_model::CgroupRef;
    use podopsy_model::event::{OomTask, ProcessRef};
    use podopsy_model::incident::{Evidence, Level, LimitHit};

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
            charged: None,
            curve: None,
            heap: None,
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
            builder.add(event, 1000, facts(Some(sequence)), None);
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
            builder.add(event, ms * 1_000_000, facts(None), None);
        }
        let ids: Vec<_> = kills.iter().map(id).collect();
        assert_eq!(ids, ["3f2a-t1-1000", "3f2a-t1-1000", "3f2a-t3-1060", "3f2a-t4-2000"]);
        assert!(matches!(&kills[1].detail, Detail::Oom(kill) if kill.already_dying));
        assert_eq!(builder.take_due(true).len(), 3);
    }

    #[tokio::test]
    async fn the_first_victim_is_the_one_that_was_killed_first_in_whatever_order_kills_come() {
        let mut builder = IncidentBuilder::new("3f2a");
        let (mut late, mut early) = (kill(2, 9), kill(1, 9));
        assert!(builder.add(&mut late, 2000, facts(Some(7)), None).is_some());
        let (_sender, names) = tokio::sync::watch::channel(None);
        assert!(builder.add(&mut early, 1000, facts(Some(7)), Some(names)).is_none());
        let incident = builder.take_due(true).remove(0);
        assert!(incident.names.is_some(), "the names of the first kill's stacks are awaited");
        let event = incident.into_event(&Mutex::default());
        let victims: Vec<_> = event.incident.unwrap().victims.iter().map(|victim| victim.task.pid).collect();
        assert_eq!((event.process.pid, &victims[..]), (1, &[1, 2][..]));
    }

    #[tokio::test]
    async fn lines_of_the_log_that_come_late_complete_the_incident_and_its_id_stays() {
        let mut builder = IncidentBuilder::new("3f2a");
        let unlogged = || OomFacts { already_dying: false, ..facts(None) };
        let mut first = kill(1, 9);
        builder.add(&mut first, 1_000_000_000, unlogged(), None);
        // The next kill of the group comes when the lines of both are there.
        let line = |sequence, tid| LoggedKill { sequence, time_us: 1, killed: None, tid, taken: false };
        let visit =
            Visit { kills: vec![line(7, 1), line(8, 2)], group: Some(b"/a".to_vec()), ..Visit::default() };
        let mut second = kill(2, 9);
        let with_lines = OomFacts { visit: Some(Arc::new(visit.clone())), ..unlogged() };
        builder.add(&mut second, 1_000_000_500, with_lines, None);
        assert_eq!([id(&first), id(&second)], ["3f2a-t1-1000", "3f2a-t1-1000"]);
        let mut incidents = builder.take_due(true);
        assert_eq!((incidents.len(), incidents[0].sequence()), (1, Some(7)));
        assert_eq!(incidents[0].take_unlogged(), [(1, 1_000_000_000)]);
        assert!(incidents[0].open.incident.group);

        let mut alone = kill(3, 8);
        builder.add(&mut alone, 5_000_000_000, unlogged(), None);
        let mut incident = builder.take_due(true).remove(0);
        let chosen = Chosen {
            constraint: "CONSTRAINT_MEMCG".into(),
            oom_memcg: Some(b"/a".to_vec()),
            ..Chosen::default()
        };
        incident.add_late_line(Visit { chosen: Some(chosen), ..visit }, &line(7, 3));
        let event = incident.into_event(&Mutex::default());
        let incident = event.incident.as_ref().unwrap();
        assert_eq!((incident.id.as_str(), incident.constraint.as_deref()), ("3f2a-t3-5000", Some("memcg")));
        assert_eq!((incident.limit.by.as_str(), incident.limit.path.as_deref()), ("kernel log", Some("/a")));
        assert!(matches!(&event.detail, Detail::Oom(kill) if kill.limit.as_ref() == Some(&incident.limit)));
    }

    #[tokio::test]
    async fn names_of_the_pod_that_come_late_are_in_the_incident() {
        let mut builder = IncidentBuilder::new("3f2a");
        let mut event = kill(1, 9);
        (event.cgroup.id, event.known_by) = (5, KnownBy::CgroupPath);
        builder.add(&mut event, 1000, facts(Some(7)), None);
        let mut incident = builder.take_due(true).remove(0);
        let mut owner = podopsy_model::testing::owner("shop", "cart", &[]);
        assert!(!incident.update_owner(owner.clone()), "nothing is known of it");
        (owner.cgroup.id, owner.known_by) = (5, KnownBy::Cri);
        assert!(incident.update_owner(owner));
        let event = incident.into_event(&Mutex::default());
        assert_eq!((event.pod.unwrap().name.as_str(), event.known_by), ("cart", KnownBy::Cri));
        assert_eq!(event.incident.unwrap().victims[0].container.as_ref().unwrap().name, "app");
    }
}
