//! Kills that happened while no recorder was running, read from the kernel's log.

use std::sync::{Arc, Mutex};

use super::checkpoint::RecoveryCheckpoint;
use super::levels::{self, Baseline};
use super::{IncidentBuilder, OomFacts, combine};
use crate::kernel_log::visit::{LoggedKill, Visit};
use crate::kernel_log::{self, KernelLogBacklog};
use crate::memory::files::machine_oom_kills;
use podopsy_model::event::{OomTask, ProcessRef, Rss};
use podopsy_model::{Detail, Event, EventKind, Losses, OomKill, Owner, text};
use podopsy_pods::Pods;
use podopsy_system::clock;

/// Kills that are reported for one visit: a group may be large.
const KILLS_MAX: usize = 256;

/// What happened between two runs.
#[derive(Debug, Default, PartialEq)]
pub struct MissedKills {
    /// The number of kills by the kernel's counter; None: it cannot be determined.
    pub kills: Option<u64>,
    /// The visits that the log still has.
    pub visits: Vec<Visit>,
    /// The machine was rebooted in between: the kills before the reboot are not known.
    pub rebooted: bool,
}

impl MissedKills {
    /// The kills that the log still has, counted as the kernel counts them.
    pub fn known(&self) -> u64 {
        self.visits.iter().map(Visit::counted).sum()
    }

    /// The kills of which only the number is known.
    pub fn unknown(&self) -> u64 {
        self.kills.unwrap_or(0).saturating_sub(self.known())
    }
}

/// Finds what was missed between the checkpoint of the last run and now. `backlog` is the whole log.
pub fn find_missed(
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
    // If the counter did not rise, there were no kills: the log's visits are older than the checkpoint.
    let trusted = kills.is_none_or(|kills| kills > 0);
    let visits = backlog.visits.into_iter().filter(|visit| trusted && new(visit)).collect();
    MissedKills { kills, visits, rebooted }
}

/// The kills that were read from the log at the start. The probes are attached before the log is read, so that no kill
/// is missed. A kill in between is therefore seen twice: in the log and by the probe. Each has its pid, its thread id and
/// its CLOCK_BOOTTIME in ns.
#[derive(Debug, Default)]
pub struct RecoveredKills(Vec<(u32, u32, u64)>);

impl RecoveredKills {
    /// How far the log's clock and the probes' clock may differ. The same pid is not given to another victim so soon.
    const CLOCK_DIFFERENCE_NS: u64 = 10_000_000_000;

    /// The kills that [`kill_events`] makes of these visits.
    pub fn new(visits: &[Visit]) -> RecoveredKills {
        let kills = visits.iter().flat_map(|visit| {
            let reported = visit.kills.iter().take(KILLS_MAX);
            reported.map(|kill| (pid_of(visit, kill), kill.tid, boot_ns(kill)))
        });
        RecoveredKills(kills.collect())
    }

    /// Whether a kill that a probe saw was also read from the log.
    pub fn contains(&self, pid: u32, tid: u32, boot_ns: u64) -> bool {
        self.0.iter().any(|&(known_pid, known_tid, at)| {
            (known_pid == pid || known_tid == tid) && at.abs_diff(boot_ns) < Self::CLOCK_DIFFERENCE_NS
        })
    }
}

/// The kills of a visit as events, each with its facts and its CLOCK_BOOTTIME in ns.
pub async fn kill_events(pods: &Pods, node: &str, visit: Visit) -> Vec<(Event, u64, OomFacts)> {
    let mut out = Vec::new();
    for kill in visit.kills.iter().take(KILLS_MAX) {
        let path = cgroup_of_victim(&visit, kill);
        let owner = match path {
            Some(path) => pods.owner_of_path(path).await,
            None => Owner::default(),
        };
        let place = path.and_then(|path| pods.lineage_of_path(path));
        let levels =
            place.as_ref().map(|place| levels::read(pods, place, &Baseline::None)).unwrap_or_default();
        let mut facts = combine(Some(visit.clone()), Some(kill), levels);
        facts.qos = place.and_then(|place| place.qos).map(str::to_owned);
        facts.already_dying = kill.killed.is_none();
        let boot_ns = boot_ns(kill);
        out.push((event(node, &visit, kill, owner, boot_ns), boot_ns, facts));
    }
    out
}

/// The log names the cgroup of the first victim, and for a group kill the cgroup that contains all victims.
fn cgroup_of_victim<'a>(visit: &'a Visit, kill: &LoggedKill) -> Option<&'a Vec<u8>> {
    let chosen = visit.chosen.as_ref().filter(|chosen| chosen.tid == kill.tid);
    chosen.and_then(|chosen| chosen.task_memcg.as_ref()).or(visit.group.as_ref())
}

/// The kill's line has the id of the thread that holds the memory. The task table, if there is one, has its process.
fn pid_of(visit: &Visit, kill: &LoggedKill) -> u32 {
    visit.rows.iter().find(|row| row.tid == kill.tid).map_or(kill.tid, |row| row.pid)
}

fn boot_ns(kill: &LoggedKill) -> u64 {
    kill.time_us.saturating_mul(1000)
}

fn event(node: &str, visit: &Visit, kill: &LoggedKill, owner: Owner, boot_ns: u64) -> Event {
    let row = visit.rows.iter().find(|row| row.tid == kill.tid);
    let pid = pid_of(visit, kill);
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
    Event::new(
        clock::wall(boot_ns),
        EventKind::OomKill,
        node,
        owner,
        process,
        Detail::Oom(detail),
        Losses::new(),
    )
}

/// The incidents that the kernel's log still has, without a recorder.
pub struct PastIncidents {
    /// Oldest first.
    pub incidents: Vec<Event>,
    /// The prefix of the incident ids of this boot.
    pub boot: String,
    /// Kills since boot by the kernel's counter; None: this kernel does not count them.
    pub counted: Option<u64>,
}

/// Reads the kernel's log from its beginning. Fails if the log cannot be read.
pub async fn past_incidents(pods: &Arc<Pods>, node: &str) -> anyhow::Result<PastIncidents> {
    let counted = machine_oom_kills(std::path::Path::new("/proc"));
    let backlog = kernel_log::read_backlog(None)?;
    let mut builder = IncidentBuilder::new(&super::checkpoint::boot_id());
    for visit in backlog.visits {
        for (mut event, boot_ns, facts) in kill_events(pods, node, visit).await {
            builder.add(&mut event, boot_ns, facts, None);
        }
    }
    // The kills are long past: waiting for the runtime would change nothing.
    let (_closing, closing) = tokio::sync::watch::channel(true);
    let mut incidents = Vec::new();
    for mut incident in builder.take_due(true) {
        incident.ask_runtime(pods, closing.clone()).await;
        incidents.push(incident.into_event(&Mutex::default()));
    }
    Ok(PastIncidents { incidents, boot: builder.id_prefix().to_owned(), counted })
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
    fn only_kills_after_the_last_run_were_missed() {
        let missed = find_missed(&state("b", 10, 5), &state("b", 99, 8), backlog(&[9, 10, 11, 12]));
        assert_eq!((missed.kills, missed.known(), missed.unknown(), missed.rebooted), (Some(3), 2, 1, false));
        assert!(missed.visits.iter().all(|visit| visit.kills[0].sequence > 10));
    }

    #[test]
    fn a_kill_that_was_read_from_the_log_is_recognized_when_a_probe_reports_it() {
        let kill = LoggedKill { sequence: 1, time_us: 60_000_000, killed: None, tid: 7, taken: false };
        let recovered = RecoveredKills::new(&[Visit { kills: vec![kill], ..Visit::default() }]);
        // The two clocks differ a little; another thread of the process; a kernel that passes only a thread id.
        assert!(
            recovered.contains(7, 7, 60_500_000_000)
                && recovered.contains(7, 9, 59_500_000_000)
                && recovered.contains(0, 7, 60_000_000_000)
        );
        // Another victim, and a pid that was used again.
        assert!(!recovered.contains(8, 8, 60_000_000_000) && !recovered.contains(7, 7, 80_000_000_000));
    }

    #[test]
    fn after_a_reboot_all_kills_of_this_boot_were_missed() {
        let missed = find_missed(&state("a", 900, 70), &state("b", 20, 2), backlog(&[11, 12]));
        assert_eq!((missed.kills, missed.known(), missed.unknown(), missed.rebooted), (Some(2), 2, 0, true));
    }

    #[test]
    fn if_the_counter_did_not_rise_nothing_was_missed() {
        let missed = find_missed(&state("b", 10, 5), &state("b", 99, 5), backlog(&[11]));
        assert_eq!((missed.kills, missed.known()), (Some(0), 0));
    }
}
