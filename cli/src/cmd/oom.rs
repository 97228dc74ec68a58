//! `podopsy oom` lists past OOM kills, including those that Kubernetes does not show, and SIGKILLs without an OOM.
//! `podopsy oom show` prints the autopsy of one of them.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use podopsy_client::{EventList, QueryParameters};
use podopsy_fleet::EventQuery;
use podopsy_model::incident::Verdict as OomVerdict;
use podopsy_model::{Event, EventKind, OomIncident, verdict};
use podopsy_recorder::oom::recover;
use serde::Serialize;

use crate::args::{HistoryArgs, OomArgs, OomCommand, OutputFormat, ShowArgs};
use crate::context::Context;
use crate::evidence::bundle;
use crate::exit::{CommandOutcome, NotFound, Refusal};
use crate::fleet::ClusterAgents;
use crate::history::{agent, ago, left, note_gaps, print_gaps};
use crate::render::list::{self, TableStyle};
use crate::render::{self, units};
use crate::selection::Selection;
use crate::terminal::note;
use crate::{past, privilege};

/// The answer; `-o json` prints it as it is. The incidents include SIGKILLs without an OOM.
#[derive(Debug, Serialize)]
struct OomReport {
    incidents: Vec<Event>,
    /// Kills since boot, as the kernel counts them; null: the kernel gives no count.
    kills_since_boot: Option<u64>,
    /// How many of them are neither in the agent's history nor in the kernel's log; null: not known.
    kills_unknown: Option<u64>,
    /// The sources of the answer, as text.
    known_by: Vec<String>,
}

pub async fn run(context: &Context, args: OomArgs) -> anyhow::Result<CommandOutcome> {
    let mut out = io::stdout();
    if let Some(OomCommand::Show(args)) = args.show {
        return show(context, &args, &mut out).await;
    }
    // Many kills may be in one row: the table of a large cluster is made of its newest ones.
    let most = (args.most as usize).saturating_mul(KILLS_OF_A_ROW).min(MOST);
    let since = Some(ago(args.since));
    let mut report = match &context.fleet {
        Some(fleet) => {
            let targets = fleet.resolve(&args.selection.targets).await?;
            report_of(fleet, fleet.events(targets, query(since, most, None)).await?)
        }
        None => {
            let selection = Selection::new(&args.selection.targets, &args.selection.pods)?;
            let mut report = gather(context, &args.history, since).await?;
            select(context, &mut report.incidents, &selection).await?;
            report
        }
    };
    let from = ago(args.since);
    report.incidents.retain(|event| event.time >= from);
    if args.silent {
        report.incidents.retain(is_silent);
    }
    list::sort(&mut report.incidents, args.output.sort_by.as_ref())?;
    print_list(context, &args, &report)?;
    if let Some(unknown) = report.kills_unknown.filter(|&unknown| unknown > 0) {
        note(&format!(
            "{} since boot without details: no agent ran then, and the kernel's log no longer has them",
            units::plural(unknown, "kill")
        ));
    }
    if !report.known_by.is_empty() {
        note(&format!("sources: {}", report.known_by.join(", ")));
    }
    if report.incidents.is_empty() && args.silent {
        note("no OOM kill that Kubernetes does not show matches");
        return Ok(CommandOutcome::NothingFound);
    }
    if report.incidents.is_empty() {
        note("no OOM kills and no other SIGKILLs match");
        return Ok(CommandOutcome::NothingFound);
    }
    Ok(CommandOutcome::Success)
}

/// The only kill of a bundle.
fn only(incidents: &[Event]) -> anyhow::Result<&Event> {
    let kills: Vec<&Event> = incidents.iter().filter(|event| event.kept_id().is_some()).collect();
    match kills[..] {
        [one] => Ok(one),
        [] => Err(NotFound("the bundle has no OOM kill and no other SIGKILL".to_owned()).into()),
        _ => {
            let ids: Vec<&str> = kills.iter().filter_map(|event| event.kept_id()).take(IDS_LISTED).collect();
            let more = if kills.len() > IDS_LISTED { ", …" } else { "" };
            let (count, ids) = (kills.len(), ids.join(", "));
            Err(Refusal(format!("the bundle has {count} kills: give the id of one: {ids}{more}")).into())
        }
    }
}

/// Ids that an error lists.
const IDS_LISTED: usize = 20;

/// The autopsy of one.
async fn show(
    context: &Context,
    args: &ShowArgs,
    out: &mut impl io::Write,
) -> anyhow::Result<CommandOutcome> {
    let id = args.id.as_deref().unwrap_or_default();
    let incidents = match (&args.from, &context.fleet) {
        (Some(path), _) => bundle::open(path)?.sources.events,
        // An id is of one node: -n need not name its namespace.
        (None, Some(fleet)) => fleet.events_of_all(query(None, MOST, Some(id.to_owned()))).await?.events,
        (None, None) => gather(context, &args.history, None).await?.incidents,
    };
    let event = if args.id.is_some() { find(&incidents, id)? } else { only(&incidents)? };
    if render::data(out, &args.sheet.output, event)? {
        return Ok(CommandOutcome::Success);
    }
    render::kill(out, context.stdout, event)?;
    Ok(CommandOutcome::Success)
}

fn print_list(context: &Context, args: &OomArgs, report: &OomReport) -> io::Result<()> {
    let mut out = io::stdout();
    let id = |event: &Event| event.kept_id().map(str::to_owned);
    if list::print(&mut out, context.stdout, &args.output, &report.incidents, id)? {
        return Ok(());
    }
    match args.output.output {
        OutputFormat::Json => return render::json(&mut out, report),
        OutputFormat::Yaml => return render::yaml(&mut out, report),
        _ if report.incidents.is_empty() => return Ok(()),
        _ => {}
    }
    let rows = match args.each {
        true => render::oom::single(&report.incidents),
        false => render::oom::grouped(&report.incidents),
    };
    let left = rows.len().saturating_sub(args.most as usize);
    let has_node = context.fleet.as_ref().is_some_and(|fleet| fleet.has_several_nodes());
    render::oom::print(&mut out, TableStyle::new(context.stdout, &args.output), &rows[left..], has_node)?;
    if left > 0 {
        note(&format!("{} before these: --most {} lists all", plural_rows(left), rows.len()));
    }
    Ok(())
}

fn plural_rows(rows: usize) -> String {
    units::plural(rows as u64, "row")
}

/// What is asked of the agents of a cluster.
fn query(since: Option<Timestamp>, max: usize, contains: Option<String>) -> EventQuery {
    let from = since.unwrap_or(Timestamp::UNIX_EPOCH);
    EventQuery { parameters: kinds(), from, max, contains, matches: Arc::new(|_| true) }
}

/// What the agents of a cluster answered.
fn report_of(fleet: &ClusterAgents, kept: EventList) -> OomReport {
    if kept.more {
        let oldest = kept.events.first().map(|event| units::date(event.time)).unwrap_or_default();
        note(&format!(
            "only the newest {} records are read, since {oldest}: --most reads more",
            kept.events.len()
        ));
    }
    note_unreadable(kept.unreadable);
    // What the kernel counts since boot, a node's own podopsy knows.
    OomReport {
        incidents: kept.events,
        kills_since_boot: None,
        kills_unknown: None,
        known_by: vec![fleet.describe()],
    }
}

fn note_unreadable(records: u64) {
    if records > 0 {
        note(&format!("{} in the store cannot be read", units::plural(records, "record")));
    }
}

pub const KINDS: [EventKind; 2] = [EventKind::OomIncident, EventKind::Sigkill];

pub fn kinds() -> QueryParameters {
    KINDS.map(|kind| ("kind", kind.as_str().to_owned())).into()
}

/// Merges the agent's history (from the agent, or from the store that it left) with the kernel's log, oldest first.
/// Prints gaps in the history after `gaps_since` on stderr.
async fn gather(
    context: &Context,
    from: &HistoryArgs,
    gaps_since: Option<Timestamp>,
) -> anyhow::Result<OomReport> {
    privilege::require_runtime("oom", context.global.cri_socket.as_deref())?;
    let (pods, node) = (context.pods().await?, context.node());
    let (kept, by) = kept(from, gaps_since).await?;
    let mut known_by: Vec<String> = by.into_iter().collect();
    let mut incidents = kept.events;
    if kept.more {
        note(&format!("only the newest {MOST} records of the history are read"));
    }
    note_unreadable(kept.unreadable);
    let past = match recover::past_incidents(&pods, &node).await {
        Ok(past) => past,
        Err(error) => {
            note(&format!(
                "cannot read past kills from the kernel's log: {error:#}; only the agent's history is listed"
            ));
            recover::PastIncidents { incidents: Vec::new(), boot: String::new(), counted: None }
        }
    };
    incidents.extend(completed(from, &past.incidents, &incidents).await);
    let kept: HashSet<String> = ids(&incidents);
    let boot = past.boot.clone();
    // The history covers earlier boots; the kernel's count starts at boot.
    let of_this_boot =
        |event: &&Event| incident(event).is_some_and(|one| one.id.starts_with(&format!("{boot}-")));
    let kills = |event: &Event| incident(event).map_or(0, |one| one.kernel_kills);
    let from_history: u64 = incidents.iter().filter(of_this_boot).map(kills).sum();
    let new: Vec<Event> = past
        .incidents
        .into_iter()
        .filter(|event| incident(event).is_some_and(|one| !kept.contains(&one.id)))
        .collect();
    let from_log: u64 = new.iter().map(kills).sum();
    let kills_unknown = past.counted.map(|all| all.saturating_sub(from_history + from_log));
    if past.counted.is_some() {
        known_by.push("the kernel's log".to_owned());
    }
    incidents.extend(new);
    incidents.sort_by_key(|event| event.time);
    Ok(OomReport { incidents, kills_since_boot: past.counted, kills_unknown, known_by })
}

/// An agent completes an incident within seconds after its kill. The log has the kill at once, without the stacks.
const COMPLETED_WITHIN: Duration = Duration::from_secs(5);
const FRESH: SignedDuration = SignedDuration::from_secs(10);
const POLL: Duration = Duration::from_millis(250);

/// The incidents of the last seconds as the agent completes them, so that a kill that was recorded does not look like one that
/// was missed.
async fn completed(from: &HistoryArgs, logged: &[Event], kept: &[Event]) -> Vec<Event> {
    let mut missing = unfinished(logged, kept, Timestamp::now());
    let mut found = Vec::new();
    let since = Timestamp::now() - FRESH - SignedDuration::from_secs(1);
    let query = [kinds(), vec![("from", since.to_string())]].concat();
    let end = Instant::now() + COMPLETED_WITHIN;
    while !missing.is_empty() && Instant::now() < end {
        tokio::time::sleep(POLL).await;
        let Ok(Some(agent)) = agent(from).await else { break };
        let Ok(newer) = agent.events(&query, MOST).await else { break };
        let is_wanted = |event: &Event| incident(event).is_some_and(|one| missing.contains(&one.id));
        found.extend(newer.events.into_iter().filter(is_wanted));
        let completed = ids(&found);
        missing.retain(|id| !completed.contains(id));
    }
    found
}

/// The ids of incidents that the log has, and the history not yet.
fn unfinished(logged: &[Event], kept: &[Event], now: Timestamp) -> HashSet<String> {
    let kept = ids(kept);
    let is_fresh = |event: &&Event| now.duration_since(event.time) < FRESH;
    let fresh = logged.iter().filter(is_fresh).filter_map(incident).map(|one| one.id.clone());
    fresh.filter(|id| !kept.contains(id)).collect()
}

fn ids(events: &[Event]) -> HashSet<String> {
    events.iter().filter_map(incident).map(|one| one.id.clone()).collect()
}

/// All OOM incidents and SIGKILLs in the history, because the kernel's count is compared with them; and the source.
pub async fn kept(
    from: &HistoryArgs,
    gaps_since: Option<Timestamp>,
) -> anyhow::Result<(EventList, Option<String>)> {
    if let Some(agent) = agent(from).await? {
        match agent.events(&kinds(), MOST).await {
            Ok(kept) => {
                if let Some(since) = gaps_since {
                    note_gaps(&agent, since).await;
                }
                return Ok((kept, Some(format!("the agent at {}", agent.name()))));
            }
            // The agent runs without a store, or cannot read it.
            Err(error) => {
                note(&format!("{error}; reading the store in {} instead", from.state_dir.display()))
            }
        }
    }
    let (dir, since) = (from.state_dir.clone(), gaps_since.unwrap_or(Timestamp::MAX));
    let read = tokio::task::spawn_blocking(move || left(&dir, &KINDS, MOST, since)).await?;
    let by = format!("the store in {}", from.state_dir.display());
    Ok(match read {
        Ok(Some((kept, gaps))) => {
            print_gaps(&gaps, since);
            (kept, Some(by))
        }
        Ok(None) => (EventList::default(), None),
        Err(error) => {
            note(&format!("cannot read {by}: {error}"));
            (EventList::default(), None)
        }
    })
}

/// Whether Kubernetes does not show the kill, gives another reason, or counts the container as succeeded.
fn is_silent(event: &Event) -> bool {
    let silent = [OomVerdict::SilentChildKill, OomVerdict::RuntimeDisagrees];
    incident(event).is_some_and(|one| {
        verdict::counts_as_success(one) || one.verdicts.iter().any(|verdict| silent.contains(verdict))
    })
}

/// How many incidents and SIGKILLs are read at most; more are not expected in a store.
pub const MOST: usize = 10_000;
/// How many are read of a cluster for each row of the table.
const KILLS_OF_A_ROW: usize = 20;

fn incident(event: &Event) -> Option<&OomIncident> {
    event.incident.as_deref()
}

/// Keeps the incidents of the selection. A TARGET may be a pod that is gone.
async fn select(context: &Context, incidents: &mut Vec<Event>, selection: &Selection) -> anyhow::Result<()> {
    incidents.retain(|event| selection.has_pod(event.pod.as_ref()));
    if selection.targets.is_empty() {
        return Ok(());
    }
    let listed = context.pods().await?.list().await.unwrap_or_default();
    let owners = past::owners_of(incidents);
    let scopes = past::scopes(context, selection, &owners, &listed, Timestamp::UNIX_EPOCH).await?;
    incidents.retain(|event| scopes.iter().any(|scope| scope.has_event(event)));
    Ok(())
}

/// Finds the event with this id, or the only one whose id begins with it.
pub fn find<'a>(incidents: &'a [Event], id: &str) -> anyhow::Result<&'a Event> {
    let with = |of: &dyn Fn(&str) -> bool| -> Vec<&'a Event> {
        incidents.iter().filter(|event| event.kept_id().is_some_and(of)).collect()
    };
    let exact = with(&|one| one == id);
    let found = if exact.is_empty() { with(&|one| one.starts_with(id)) } else { exact };
    match found[..] {
        [one] => Ok(one),
        [] => Err(NotFound(format!(
            "no OOM has the id {id}: podopsy oom --since 30d --each --most 10000 lists all ids"
        ))
        .into()),
        _ => {
            let found = units::plural(found.len() as u64, "OOM");
            Err(Refusal(format!("{found} begin with {id}: give more characters of the id")).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::oom::tests::event;

    #[test]
    fn a_kill_in_a_container_that_ended_with_0_is_silent() {
        let mut one = event("3f2a-1", 10);
        let incident = one.incident.as_mut().unwrap();
        incident.verdicts = vec![OomVerdict::Agrees];
        let view = incident.runtime.as_mut().unwrap();
        (view.state, view.reason, view.exit_code) = ("exited".into(), "OOMKilled".into(), Some(137));
        assert!(!is_silent(&one));
        one.incident.as_mut().unwrap().runtime.as_mut().unwrap().exit_code = Some(0);
        assert!(is_silent(&one));
    }

    #[test]
    fn only_kills_of_the_last_seconds_are_waited_for() {
        let logged = [event("3f2a-1", 1), event("3f2a-2", 2)];
        let at = |seconds| logged[1].time + SignedDuration::from_secs(seconds);
        assert_eq!(unfinished(&logged, &logged[..1], at(5)), HashSet::from(["3f2a-2".to_owned()]));
        assert!(unfinished(&logged, &logged, at(5)).is_empty());
        assert!(unfinished(&logged, &[], at(60)).is_empty());
    }

    #[test]
    fn an_id_or_an_unambiguous_prefix_finds_the_event() {
        let events = [event("3f2a-1", 1), event("3f2a-12", 1), event("3f2a-2", 1)];
        let found = |id| find(&events, id).map(|event| incident(event).unwrap().id.clone());
        assert_eq!(found("3f2a-1").unwrap(), "3f2a-1");
        assert_eq!(found("3f2a-12").unwrap(), "3f2a-12");
        let sigkill = [crate::render::sigkill::tests::event("3f2a-k7-9", 1)];
        assert!(find(&sigkill, "3f2a-k").is_ok_and(|event| event.sigkill().is_some()));
        assert!(found("3f2a").unwrap_err().to_string().contains("3 OOMs begin with"));
        assert!(found("x").unwrap_err().to_string().contains("podopsy oom --since"));
    }
}
