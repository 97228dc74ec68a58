//! `podopsy timeline`: what happened to some pods, in time order, from the history of this node's agent.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use podopsy_client::{AgentClient, ClientError, QueryParameters};
use podopsy_model::{Event, EventKind, Owner, PodIncident};
use podopsy_store::MemoryRecord;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::watch::reader_is_gone;
use crate::args::{OutputFormat, TimelineArgs};
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::past::{self, EVENTS_READ_MAX, PastQuery};
use crate::render::list::{self, TableStyle};
use crate::render::{self, units};
use crate::selection::Selection;
use crate::terminal::note;
use crate::timeline::{self, EntryKind, Sources, TimelineEntry};
use crate::{history, signals};

/// The kinds of events that a timeline is made of. The queries of a `dns.lookup` are events of their own.
const KINDS: [EventKind; 3] = [EventKind::OomIncident, EventKind::Sigkill, EventKind::DnsFailure];
/// Records of memory, and incidents, that are read at most. A container has six records of memory an hour.
const RECORDS_MAX: usize = 10_000;
/// How often the agent is asked with --follow.
const POLL: Duration = Duration::from_secs(2);
/// With --follow, what is older than this does not change any more.
const SETTLED: SignedDuration = SignedDuration::from_mins(10);
/// A streak of failed lookups may still go on for this long after its last one.
const STREAK_OPEN: SignedDuration = SignedDuration::from_secs(60);

pub async fn run(context: &Context, args: TimelineArgs) -> anyhow::Result<CommandOutcome> {
    let agent = history::require_agent(&args.history).await?;
    let selection = Selection::new(&args.targets, &args.pods)?;
    let from = history::ago(args.since);
    let mut entries = entries(context, &agent, &selection, from).await?;
    if args.follow {
        return follow(context, &args, &agent, &selection, entries).await;
    }
    list::sort(&mut entries, args.output.sort_by.as_ref())?;
    print(context, &args, &entries)?;
    note(&format!(
        "{} since {}, from the agent at {}",
        if entries.len() == 1 { "1 entry".to_owned() } else { format!("{} entries", entries.len()) },
        units::date(from),
        agent.name()
    ));
    history::note_gaps(&agent, from).await;
    Ok(if entries.is_empty() { CommandOutcome::NothingFound } else { CommandOutcome::Success })
}

fn print(context: &Context, args: &TimelineArgs, entries: &[TimelineEntry]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let name = |entry: &TimelineEntry| Some(format!("{}/{}", entry.namespace, entry.pod));
    if list::print(&mut out, context.stdout, &args.output, entries, name)? {
        return Ok(());
    }
    match args.output.output {
        OutputFormat::Json => render::json(&mut out, &entries),
        OutputFormat::Yaml => render::yaml(&mut out, &entries),
        _ if entries.is_empty() => Ok(()),
        _ => render::timeline::print(&mut out, TableStyle::new(context.stdout, &args.output), entries),
    }
}

/// Prints entries as they come: what is new each time that the agent is asked.
async fn follow(
    context: &Context,
    args: &TimelineArgs,
    agent: &AgentClient,
    selection: &Selection,
    mut entries: Vec<TimelineEntry>,
) -> anyhow::Result<CommandOutcome> {
    let mut stop = std::pin::pin!(signals::stop()?);
    note("following; Ctrl-C ends");
    let mut printed = BTreeSet::new();
    loop {
        let now = Timestamp::now();
        for entry in entries.iter().filter(|entry| is_settled(entry, now)) {
            if printed.insert((entry.time, entry.kind, entry.pod.clone(), entry.container.clone())) {
                print_new(context, args, entry)?;
            }
        }
        tokio::select! {
            () = &mut stop => return Ok(CommandOutcome::Success),
            () = tokio::time::sleep(POLL) => {}
        }
        if reader_is_gone() {
            return Ok(CommandOutcome::Success);
        }
        entries = self::entries(context, agent, selection, now - SETTLED).await?;
    }
}

fn print_new(context: &Context, args: &TimelineArgs, entry: &TimelineEntry) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match args.output.output {
        OutputFormat::Json => {
            serde_json::to_writer(&mut out, entry)?;
            writeln!(out)?;
            out.flush()?;
        }
        _ => render::timeline::print_line(&mut out, context.stdout, entry)?,
    }
    Ok(())
}

/// Whether an entry is final: a streak of failed lookups may still grow.
fn is_settled(entry: &TimelineEntry, now: Timestamp) -> bool {
    entry.kind != EntryKind::DnsFailures || entry.until.unwrap_or(entry.time) + STREAK_OPEN < now
}

async fn entries(
    context: &Context,
    agent: &AgentClient,
    selection: &Selection,
    from: Timestamp,
) -> anyhow::Result<Vec<TimelineEntry>> {
    Ok(timeline::build(&read(context, agent, selection, from).await?, from))
}

/// Everything that the agent has of the selection since `from`.
async fn read(
    context: &Context,
    agent: &AgentClient,
    selection: &Selection,
    from: Timestamp,
) -> anyhow::Result<Sources> {
    let mut query: QueryParameters = vec![("from", from.to_string())];
    query.extend(selection.namespace.iter().map(|namespace| ("namespace", namespace.clone())));
    let kinds = KINDS.map(|kind| kind.as_str().to_owned()).into();
    let past = PastQuery { from, kinds, max: EVENTS_READ_MAX };
    let events = past::events(context, agent, &selection.without_targets(), &past).await?;
    if events.more {
        note(&format!(
            "only the newest {EVENTS_READ_MAX} events of the node were read: a shorter --since has all"
        ));
    }
    let memory: Vec<MemoryRecord> = pages(agent, "/api/v1/memory", "memory", &query).await?;
    let incidents: Vec<PodIncident> = pages(agent, "/api/v1/incidents", "incidents", &query).await?;
    let pods = past::pods(agent).await;
    let mut owners = past::owners_of(&events.events);
    owners.extend(memory.iter().map(|record| record.owner.clone()));
    let scopes = past::scopes(context, selection, &owners, &pods, from).await?;
    let is_wanted = |owner: &Owner| {
        selection.has_pod(owner.pod.as_ref())
            && (scopes.is_empty() || scopes.iter().any(|scope| scope.has_owner(owner)))
    };
    Ok(keep(Sources { events: events.events, memory, incidents, pods }, is_wanted))
}

fn keep(mut sources: Sources, is_wanted: impl Fn(&Owner) -> bool) -> Sources {
    let of_pod = |pod: &podopsy_model::PodRef| Owner { pod: Some(pod.clone()), ..Owner::default() };
    sources.events.retain(|event: &Event| is_wanted(&event.owner()));
    sources.memory.retain(|record| is_wanted(&record.owner));
    sources.incidents.retain(|incident| is_wanted(&of_pod(&incident.pod)));
    for pod in &mut sources.pods {
        let owner = of_pod(&pod.pod);
        pod.containers.retain(|details| {
            is_wanted(&Owner { container: Some(details.container.clone()), ..owner.clone() })
        });
    }
    sources
}

/// The newest records of a collection.
async fn pages<T: DeserializeOwned>(
    agent: &AgentClient,
    path: &str,
    name: &str,
    query: &QueryParameters,
) -> Result<Vec<T>, ClientError> {
    #[derive(Deserialize)]
    struct Page {
        next: Option<String>,
        #[serde(flatten)]
        collections: std::collections::BTreeMap<String, serde_json::Value>,
    }
    let (mut records, mut cursor) = (Vec::new(), None);
    loop {
        let mut query = query.clone();
        query.extend([("order", "newest".to_owned()), ("limit", "1000".to_owned())]);
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let mut page: Page = agent.json(path, &query).await?;
        let items = page.collections.remove(name).unwrap_or_default();
        let items: Vec<T> =
            serde_json::from_value(items).map_err(|error| ClientError::InvalidResponse(error.to_string()))?;
        records.extend(items);
        cursor = page.next;
        if cursor.is_none() || records.len() >= RECORDS_MAX {
            return Ok(records);
        }
    }
}
