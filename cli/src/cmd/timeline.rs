//! `podopsy timeline`: what happened to some pods, in time order, from the history of this node's agent.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use podopsy_client::AgentClient;

use super::watch::reader_is_gone;
use crate::args::{OutputFormat, TimelineArgs};
use crate::context::Context;
use crate::evidence::{bundle, gather};
use crate::exit::{CommandOutcome, Refusal};
use crate::past::EVENTS_READ_MAX;
use crate::render::list::{self, TableStyle};
use crate::render::{self, units};
use crate::selection::Selection;
use crate::terminal::note;
use crate::timeline::{self, EntryKind, TimelineEntry};
use crate::{history, signals};

/// How often the agent is asked with --follow.
const POLL: Duration = Duration::from_secs(2);
/// With --follow, what is older than this does not change any more.
const SETTLED: SignedDuration = SignedDuration::from_mins(10);
/// A streak of failed lookups may still go on for this long after its last one.
const STREAK_OPEN: SignedDuration = SignedDuration::from_secs(60);

pub async fn run(context: &Context, args: TimelineArgs) -> anyhow::Result<CommandOutcome> {
    let selection = Selection::new(&args.targets, &args.pods)?;
    if let Some(path) = &args.from {
        return of_bundle(context, &args, &selection, path).await;
    }
    let is_stream =
        matches!(args.output.output, OutputFormat::Table | OutputFormat::Wide | OutputFormat::Json);
    if args.follow && !is_stream {
        return Err(Refusal("timeline: --follow prints a table or json, one object a line".to_owned()).into());
    }
    let agent = history::require_agent(&args.history).await?;
    let from = history::ago(args.since);
    let mut entries = entries(context, &agent, &selection, from).await?;
    if args.follow {
        return follow(context, &args, &agent, &selection, entries).await;
    }
    list::sort(&mut entries, args.output.sort_by.as_ref())?;
    print(context, &args, &entries)?;
    note(&format!(
        "{} since {}, from the agent at {}",
        plural(entries.len()),
        units::date(from),
        agent.name()
    ));
    history::note_gaps(&agent, from).await;
    Ok(if entries.is_empty() { CommandOutcome::NothingFound } else { CommandOutcome::Success })
}

async fn of_bundle(
    context: &Context,
    args: &TimelineArgs,
    selection: &Selection,
    path: &Path,
) -> anyhow::Result<CommandOutcome> {
    selection.require_no_process()?;
    let mut evidence = bundle::open(path)?;
    let from = evidence.manifest.from;
    gather::select(context, &mut evidence.sources, selection, from).await?;
    let mut entries = timeline::build(&evidence.sources, from);
    list::sort(&mut entries, args.output.sort_by.as_ref())?;
    print(context, args, &entries)?;
    note(&format!("{} from {}, from a bundle", plural(entries.len()), units::date(from)));
    history::print_gaps(&evidence.gaps, from);
    Ok(if entries.is_empty() { CommandOutcome::NothingFound } else { CommandOutcome::Success })
}

fn plural(entries: usize) -> String {
    if entries == 1 { "1 entry".to_owned() } else { format!("{entries} entries") }
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
    let read = gather::records(context, agent, selection, from).await?;
    if read.more {
        note(&format!(
            "only the newest {EVENTS_READ_MAX} events of the node were read: a shorter --since has all"
        ));
    }
    Ok(timeline::build(&read.sources, from))
}
