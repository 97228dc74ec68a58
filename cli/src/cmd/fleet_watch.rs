//! `kubectl podopsy watch`: new events of all agents as they happen.

use std::io;

use podopsy_client::{AgentClient, ClientError, QueryParameters};
use podopsy_fleet::{Agent, NodeFailure, Transport, untrusted};
use podopsy_model::{Event, EventKind};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::watch::until_end;
use crate::args::{WatchArgs, WatchKind};
use crate::context::Context;
use crate::exit::{CommandOutcome, Refusal};
use crate::fleet::{ClusterAgents, ClusterTarget};
use crate::render::event::EventPrinter;
use crate::signals;
use crate::terminal::note;

/// Agents that are watched at a time: each is a kubectl of some 40 MiB that runs as long as the command.
const AGENTS_MAX: usize = 64;
/// Events that wait to be printed. A stream waits when they are full, and the agent then drops and counts its events.
const WAITING: usize = 256;

pub async fn run(
    context: &Context,
    fleet: &ClusterAgents,
    args: &WatchArgs,
) -> anyhow::Result<CommandOutcome> {
    let agents = &fleet.fleet.agents;
    if agents.len() > AGENTS_MAX {
        return Err(Refusal(format!(
            "watch: {} nodes are more than {AGENTS_MAX}; name some with --node",
            agents.len()
        ))
        .into());
    }
    let stop = until_end(signals::stop()?, args.duration);
    let (sender, mut events) = mpsc::channel(WAITING);
    let targets = fleet.resolve(&args.targets()).await?;
    let query = query(fleet, args, &targets);
    for agent in agents.iter().cloned() {
        tokio::spawn(follow(fleet.fleet.transport.clone(), agent, query.clone(), sender.clone()));
    }
    drop(sender);
    if !fleet.fleet.missing.is_empty() {
        fleet.note_failures(&fleet.fleet.missing, agents.len())?;
    }
    note(&format!("watching {}; Ctrl-C ends", fleet.describe()));
    let mut lines = EventPrinter::new(args.output, context.stdout);
    if fleet.has_several_nodes() {
        lines = lines.with_nodes();
    }
    let (mut shown, mut failures) = (0, Vec::new());
    let mut stop = std::pin::pin!(stop);
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = &mut stop => break,
        };
        match event {
            Some(Ok(event)) if is_wanted(fleet, &targets, &event) => {
                lines.print(&mut io::stdout().lock(), &event)?;
                shown += 1;
                if args.count.is_some_and(|count| shown >= count) {
                    return Ok(CommandOutcome::Success);
                }
            }
            Some(Ok(_)) => {}
            Some(Err(failure)) => {
                failures.push(failure);
                let rest = agents.len() - failures.len();
                fleet.note_failures(&failures[failures.len() - 1..], rest)?;
            }
            None => break,
        }
    }
    Ok(if args.count.is_some() { CommandOutcome::NothingFound } else { CommandOutcome::Success })
}

fn query(fleet: &ClusterAgents, args: &WatchArgs, targets: &[ClusterTarget]) -> QueryParameters {
    let kinds = [
        (WatchKind::Oom, [EventKind::OomKill, EventKind::OomIncident].as_slice()),
        (WatchKind::Sigkill, &[EventKind::Sigkill]),
        (WatchKind::Dns, &[EventKind::DnsFailure]),
    ];
    let wanted = kinds.iter().filter(|(kind, _)| args.wants(*kind)).flat_map(|(_, kinds)| kinds.iter());
    let mut query: QueryParameters = wanted.map(|kind| ("kind", kind.as_str().to_owned())).collect();
    match (targets, &fleet.namespace) {
        ([one], _) => query.extend(one.query()),
        ([], Some(namespace)) => query.push(("namespace", namespace.clone())),
        _ => {}
    }
    query
}

fn is_wanted(fleet: &ClusterAgents, targets: &[ClusterTarget], event: &Event) -> bool {
    let pod = event.pod.as_ref();
    let is_of = |namespace: &String| pod.is_some_and(|pod| pod.namespace == *namespace);
    let is_target = match targets {
        [] => fleet.namespace.as_ref().is_none_or(is_of),
        targets => targets.iter().any(|target| target.matches(&event.owner())),
    };
    is_target
        && fleet.selector.as_ref().is_none_or(|selector| pod.is_some_and(|pod| selector.matches(&pod.labels)))
}

/// Passes on the events of one agent until its stream ends.
async fn follow(
    transport: Transport,
    agent: Agent,
    query: QueryParameters,
    events: mpsc::Sender<Result<Event, NodeFailure>>,
) {
    let failure = match transport.connect(&agent).await {
        Err(failure) => failure,
        Ok(connection) => match read(&connection.client, &agent, &query, &events).await {
            Ok(()) => NodeFailure::new(&agent.node, "the agent has ended the stream"),
            Err(error) => connection.failure(&agent, &error).await,
        },
    };
    // The receiver is gone when the command has ended.
    let _ = events.send(Err(failure)).await;
}

/// The line of a stream that has dropped events.
#[derive(Deserialize)]
struct Dropped {
    lost: u64,
}

async fn read(
    client: &AgentClient,
    agent: &Agent,
    query: &QueryParameters,
    events: &mpsc::Sender<Result<Event, NodeFailure>>,
) -> Result<(), ClientError> {
    let mut lines = client.lines("/api/v1/events/live", query).await?;
    while let Some(line) = lines.next().await? {
        if let Ok(Dropped { lost }) = serde_json::from_slice(&line) {
            note(&format!("{}: {lost} events were read too slowly and dropped", agent.node));
        }
        // Such as a kind of event that this version does not know.
        let Ok(event) = untrusted::parse::<Event>(&line) else { continue };
        if events.send(Ok(Event { node: agent.node.clone(), ..event })).await.is_err() {
            break;
        }
    }
    Ok(())
}
