//! `podopsy events`: lists past events from the history of this node's agent.

use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use podopsy_fleet::EventQuery;
use podopsy_model::{Event, Owner, Target};

use crate::args::{EventsArgs, ListFormat, OutputArgs, OutputFormat};
use crate::context::Context;
use crate::exit::{CommandOutcome, Refusal};
use crate::fleet::{ClusterAgents, ClusterTarget};
use crate::history;
use crate::past::{self, PastQuery};
use crate::render::{self, event::EventPrinter, list, units};
use crate::selection::{OwnerScope, Selection, can_be_id};
use crate::terminal::note;

pub async fn run(context: &Context, args: EventsArgs) -> anyhow::Result<CommandOutcome> {
    if let Some(fleet) = &context.fleet {
        return run_fleet(context, fleet, args).await;
    }
    let agent = history::require_agent(&args.history).await?;
    let selection = Selection::new(&args.selection.targets, &args.selection.pods)?;
    let from = history::ago(args.since);
    let query = PastQuery { from, kinds: args.kinds.clone(), max: args.most as usize };
    let mut answer = past::events(context, &agent, &selection, &query).await?;
    let shown = print(context, &args.output, &mut answer.events, false)?;
    note_summary(shown, from, &format!("the agent at {}", agent.name()));
    if answer.more {
        note(&format!("only the newest {} events were read: --most takes more", args.most));
    }
    note_unreadable(answer.unreadable);
    history::note_gaps(&agent, from).await;
    Ok(if shown == 0 { CommandOutcome::NothingFound } else { CommandOutcome::Success })
}

/// The events of all nodes.
async fn run_fleet(
    context: &Context,
    fleet: &ClusterAgents,
    args: EventsArgs,
) -> anyhow::Result<CommandOutcome> {
    let from = history::ago(args.since);
    let (mut targets, mut scopes) = (fleet.resolve(&args.selection.targets).await?, Vec::new());
    for target in &targets {
        if let ClusterTarget::OfNode(target) = target {
            scopes.push(scope_of_node(target)?);
        }
    }
    targets.retain(|target| !matches!(target, ClusterTarget::OfNode(_)));
    if !targets.is_empty() && !scopes.is_empty() {
        let reason = "with -A, name each TARGET with its namespace: another one stands beside them";
        return Err(Refusal(reason.to_owned()).into());
    }
    let parameters = args.kinds.iter().map(|kind| ("kind", kind.clone())).collect();
    let matches =
        move |owner: &Owner| scopes.is_empty() || scopes.iter().any(|scope| has_owner(scope, owner));
    let max = args.most as usize;
    let query = EventQuery { parameters, from, max, contains: None, matches: Arc::new(matches) };
    let mut answer = fleet.events(targets, query).await?;
    let shown = print(context, &args.output, &mut answer.events, fleet.has_several_nodes())?;
    note_summary(shown, from, &fleet.describe());
    if answer.more {
        note(&format!("these are the newest {shown}: --most takes more"));
    }
    note_unreadable(answer.unreadable);
    Ok(if shown == 0 { CommandOutcome::NothingFound } else { CommandOutcome::Success })
}

/// What names nothing that the API server knows: a cgroup, a container's id, or a pod's name in any namespace.
fn scope_of_node(target: &Target) -> Result<NodeScope, Refusal> {
    match target {
        Target::Cgroup(path) => Ok(NodeScope::Owner(OwnerScope::CgroupPath(path.clone()))),
        Target::Name(name) | Target::Pod { pod: name, .. } => Ok(NodeScope::Name(name.clone())),
        _ => Err(Refusal("a process is of one node: name its pod, or run podopsy events there".to_owned())),
    }
}

enum NodeScope {
    Owner(OwnerScope),
    Name(String),
}

fn has_owner(scope: &NodeScope, owner: &Owner) -> bool {
    match scope {
        NodeScope::Owner(scope) => scope.has_owner(owner),
        NodeScope::Name(name) => {
            owner.pod.as_ref().is_some_and(|pod| pod.name == *name)
                || (can_be_id(name) && OwnerScope::Container(name.clone()).has_owner(owner))
        }
    }
}

/// Returns how many events were printed.
fn print(context: &Context, args: &OutputArgs, events: &mut Vec<Event>, has_nodes: bool) -> io::Result<u64> {
    let mut out = io::stdout().lock();
    list::sort(events, args.sort_by.as_ref())?;
    let pod = |event: &Event| event.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
    if list::print(&mut out, context.stdout, args, events, pod)? {
        return Ok(events.len() as u64);
    }
    let format = match args.output {
        OutputFormat::Yaml => return render::yaml(&mut out, events).map(|()| events.len() as u64),
        OutputFormat::Json => ListFormat::Json,
        OutputFormat::Wide => ListFormat::Wide,
        _ => ListFormat::Table,
    };
    let mut lines = EventPrinter::dated(format, context.stdout);
    if has_nodes {
        lines = lines.with_nodes();
    }
    if args.no_headers {
        lines = lines.without_header();
    }
    events.iter().try_for_each(|event| lines.print(&mut out, event))?;
    Ok(events.len() as u64)
}

fn note_summary(shown: u64, from: Timestamp, source: &str) {
    note(&format!("{} since {}, from {source}", units::plural(shown, "event"), units::date(from)));
}

fn note_unreadable(records: u64) {
    if records > 0 {
        note(&format!("{} in the store cannot be read", units::plural(records, "record")));
    }
}
