//! Kills that nobody watched, from the kernel's log: while the recorder was down, or before it was ever run.

use std::sync::{Arc, Mutex};

use super::checkpoint::RecoveryCheckpoint;
use super::levels::{self, Before};
use super::{IncidentBuilder, OomFacts, facts};
use crate::kernel_log::visit::{LoggedKill, Visit};
use crate::kernel_log::{self, KernelLogBacklog};
use crate::memory::files::machine_oom_kills;
use podopsy_model::event::{OomTask, ProcessRef, Rss};
use podopsy_model::{Detail, Event, Kind, Losses, OomKill, Owner, text};
use podopsy_pods::Pods;
use podopsy_system::clock;

/// Kills told of one visit: a group may be large.
const KILLS_MAX: usize = 256;

/// What happened between two runs.
#[derive(Debug, Default, PartialEq)]
pub struct MissedKills {
    /// By the kernel's counter; None: it cannot be told.
    pub kills: Option<u64>,
    /// Those that the log still knows.
    pub visits: Vec<Visit>,
    /// The machine was started anew meanwhile: kills before that are not known.
    pub rebooted: bool,
}

impl MissedKills {
    /// Kills that the log knows, counted as the kernel counts them.
    pub fn known(&self) -> u64 {
        self.visits.iter().map(Visit::counted).sum()
    }

    /// Kills of which only the number is known.
    pub fn unknown(&self) -> u64 {
        self.kills.unwrap_or(0).saturating_sub(self.known())
    }
}

/// Compares with the last run. `backlog` is the whole log.
pub fn missed(
    before: &RecoveryCheckpoint,
    now: &RecoveryCheckpoint,
    backlog: KernelLogBacklog,
) -> MissedKills {
    let rebooted = before.boot_id != now.boot_id;
    let since = if rebooted { Some(0) } else { before.oom_kills };
    let kills = now.oom_kills.zip(since).map(|(now, since)| now.saturating_sub(since));
    let new = |visit: &Visit| {
        let first = visit.kills.first().map(|kill| kill.sequence);
        rebooted || before.log_sequence.is_none_or(|seen| first.is_some_and(|first| first > seen))
    };
    // Without a counter to say that there were any, the log alone is no witness of time.
    let trusted = kills.is_none_or(|kills| kills > 0);
    let visits = backlog.visits.into_iter().filter(|visit| trusted && new(visit)).collect();
    MissedKills { kills, visits, rebooted }
}

/// Kills that the log told at the start. The probes were attached before it was read, so that none is missed: who was killed
/// in between comes by both ways.
#[derive(Debug, Default)]
pub struct RecoveredKills(Vec<(OomTask, u64)>);

impl RecoveredKills {
    /// How far the log's clock and the probes' may be apart: a victim's pid is not another victim's so soon.
    const APART_NS: u64 = 10_000_000_000;

    pub fn add(&mut self, event: &Event, boot_ns: u64) {
        if let Detail::Oom(kill) = &event.detail {
            self.0.push((kill.victim.clone(), boot_ns));
        }
    }

    /// Whether a kill that a probe saw is one of them.
    pub fn contains(&self, pid: u32, tid: u32, boot_ns: u64) -> bool {
        self.0.iter().any(|(victim, at)| {
            (victim.pid == pid || victim.tid == tid) && at.abs_diff(boot_ns) < Self::APART_NS
        })
    }
}

/// The kills of a visit as events, each with its facts and its time since boot in ns.
pub async fn kill_events(pods: &Pods, node: &str, visit: Visit) -> Vec<(Event, u64, OomFacts)> {
    let mut out = Vec::new();
    for kill in visit.kills.iter().take(KILLS_MAX) {
        let path = victims_path(&visit, kill);
        let owner = match path {
            Some(path) => pods.owner_of_path(path).await,
            None => Owner::default(),
        };
        let place = path.and_then(|path| pods.place_of(path));
        let levels =
            place.as_ref().map(|place| levels::read(pods, place, &Before::LongAgo)).unwrap_or_default();
        let mut facts = facts(Some(visit.clone()), Some(kill), levels);
        facts.qos = place.and_then(|place| place.qos).map(str::to_owned);
        facts.already_dying = kill.killed.is_none();
        let boot_ns = kill.time_us.saturating_mul(1000);
        out.push((event(node, &visit, kill, owner, boot_ns), boot_ns, facts));
    }
    out
}

/// The log names the cgroup of the first victim, and of a group the one that all of them sat in.
fn victims_path<'a>(visit: &'a Visit, kill: &LoggedKill) -> Option<&'a Vec<u8>> {
    let chosen = visit.chosen.as_ref().filter(|chosen| chosen.tid == kill.tid);
    chosen.and_then(|chosen| chosen.task_memcg.as_ref()).or(visit.group.as_ref())
}

fn event(node: &str, visit: &Visit, kill: &LoggedKill, owner: Owner, boot_ns: u64) -> Event {
    let row = visit.rows.iter().find(|row| row.tid == kill.tid);
    // The line has the thread that holds the memory; the table, where there is one, its process.
    let pid = row.map_or(kill.tid, |row| row.pid);
    let killed = kill.killed.as_ref();
    let comm = killed.map(|killed| text::escape_bytes(&killed.comm)).unwrap_or_default();
    let task = OomTask { pid, tid: kill.tid, comm: comm.clone() };
    let invoked = visit.invoked.as_ref();
    let trigger_tid = visit.trigger_tid.unwrap_or(0);
    let page = podopsy_system::page_size();
    let detail = OomKill {
        victim: task,
        trigger: OomTask {
            pid: visit.rows.iter().find(|row| row.tid == trigger_tid).map_or(trigger_tid, |row| row.pid),
            tid: trigger_tid,
            comm: invoked.map(|invoked| text::escape_bytes(&invoked.comm)).unwrap_or_default(),
        },
        trigger_cgroup: Default::default(),
        rss: killed.map(|killed| Rss {
            anon_bytes: killed.anon_bytes,
            file_bytes: killed.file_bytes,
            shmem_bytes: killed.shmem_bytes,
            swap_bytes: row.map_or(0, |row| row.swap_pages.saturating_mul(page)),
        }),
        oom_score_adj: killed.and_then(|killed| i16::try_from(killed.oom_score_adj?).ok()),
        kernel_stack: Vec::new(),
        user_stack: Vec::new(),
        incident: None,
        limit: None,
        already_dying: false,
        recovered: true,
    };
    let process = ProcessRef { pid, comm, start_time: None };
    Event::new(clock::wall(boot_ns), Kind::OomKill, node, owner, process, Detail::Oom(detail), Losses::new())
}

/// What this machine still knows by itself, without a recorder: incidents of the log, oldest first.
pub struct PastIncidents {
    pub incidents: Vec<Event>,
    /// What ids of this boot begin with.
    pub boot: String,
    /// Kills since boot by the kernel's counter.
    pub counted: Option<u64>,
}

/// Reads the log from its beginning; an error says why it cannot be read.
pub async fn past_incidents(pods: &Arc<Pods>, node: &str) -> anyhow::Result<PastIncidents> {
    let counted = machine_oom_kills(std::path::Path::new("/proc"));
    let backlog = kernel_log::backlog(None)?;
    let mut builder = IncidentBuilder::new(&super::checkpoint::boot_id());
    for visit in backlog.visits {
        for (mut event, boot_ns, facts) in kill_events(pods, node, visit).await {
            builder.add(&mut event, boot_ns, facts);
        }
    }
    // It is long past: the runtime knows what it knows.
    let (_closing, closing) = tokio::sync::watch::channel(true);
    let mut incidents = Vec::new();
    for incident in builder.take_due(true) {
        incidents.push(incident.settle(pods, closing.clone(), &Mutex::default()).await);
    }
    Ok(PastIncidents { incidents, boot: builder.boot().to_owned(), counted })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_log::line::Killed;

    fn state(boot: &str, sequence: u64, kills: u64) -> RecoveryCheckpoint {
        let saved_at = jiff::Timestamp::UNIX_EPOCH;
        RecoveryCheckpoint {
            boot_id: boot.into(),
            log_sequence: Some(sequence),
            oom_kills: Some(kills),
            saved_at,
        }
    }

    fn backlog(sequences: &[u64]) -> KernelLogBacklog {
        let visit = |&sequence: &u64| Visit {
            kills: vec![LoggedKill {
                sequence,
                time_us: 1,
                killed: Some(Killed::default()),
                tid: 1,
                taken: false,
            }],
            ..Visit::default()
        };
        KernelLogBacklog {
            visits: sequences.iter().map(visit).collect(),
            first: Some(1),
            last: sequences.last().copied(),
        }
    }

    #[test]
    fn only_what_came_after_the_last_run_was_missed() {
        let missed = missed(&state("b", 10, 5), &state("b", 99, 8), backlog(&[9, 10, 11, 12]));
        assert_eq!((missed.kills, missed.known(), missed.unknown(), missed.rebooted), (Some(3), 2, 1, false));
        assert!(missed.visits.iter().all(|visit| visit.kills[0].sequence > 10));
    }

    #[test]
    fn a_kill_that_the_log_told_is_known_when_a_probe_tells_it_too() {
        let mut told = RecoveredKills::default();
        let visit = Visit::default();
        let kill = LoggedKill { sequence: 1, time_us: 60_000_000, killed: None, tid: 7, taken: false };
        told.add(&event("n", &visit, &kill, Owner::default(), 60_000_000_000), 60_000_000_000);
        // The two clocks are not quite the same; a thread of the process, or a kernel that passes a thread alone.
        assert!(
            told.contains(7, 7, 60_500_000_000)
                && told.contains(7, 9, 59_500_000_000)
                && told.contains(0, 7, 60_000_000_000)
        );
        // Another one, and a pid that was given out again.
        assert!(!told.contains(8, 8, 60_000_000_000) && !told.contains(7, 7, 80_000_000_000));
    }

    #[test]
    fn after_a_reboot_all_of_this_boot_was_missed() {
        let missed = missed(&state("a", 900, 70), &state("b", 20, 2), backlog(&[11, 12]));
        assert_eq!((missed.kills, missed.known(), missed.unknown(), missed.rebooted), (Some(2), 2, 0, true));
    }

    #[test]
    fn where_the_counter_stood_still_nothing_was_missed() {
        let missed = missed(&state("b", 10, 5), &state("b", 99, 5), backlog(&[11]));
        assert_eq!((missed.kills, missed.known()), (Some(0), 0));
    }
}
