//! `podopsy events`: lists past events from the history of this node's agent.

use std::io;
use std::sync::Arc;

use anyhow::bail;
use jiff::Timestamp;
use podopsy_client::QueryParameters;
use podopsy_fleet::EventQuery;
use podopsy_model::{Event, Owner, Target};

use crate::args::EventsArgs;
use crate::context::Context;
use crate::exit::{CommandOutcome, Refusal};
use crate::fleet::{ClusterAgents, ClusterTarget};
use crate::history;
use crate::render::{event::EventPrinter, units};
use crate::terminal::note;

pub async fn run(context: &Context, args: EventsArgs) -> anyhow::Result<CommandOutcome> {
    if let Some(fleet) = &context.fleet {
        return run_fleet(context, fleet, args).await;
    }
    let Some(agent) = history::agent(&args.history).await? else {
        bail!(
            "no agent answers at {}: start podopsy-agent with --state-dir (--socket names the socket of one that runs), \
             or watch new events with podopsy watch",
            args.history.state_dir.join(podopsy_client::SOCKET_NAME).display()
        );
    };
    let from = history::ago(args.since);
    let mut query: QueryParameters = vec![("from", from.to_string())];
    query.extend(args.kinds.iter().map(|kind| ("kind", kind.clone())));
    let scope = EventScope::resolve(context, args.target.as_ref()).await?;
    query.extend(scope.query());
    if let Some(namespace) = &args.namespace {
        if query.iter().any(|(name, value)| *name == "namespace" && value != namespace) {
            bail!("TARGET has another namespace than --namespace {namespace}: leave one of them out");
        }
        query.retain(|(name, _)| *name != "namespace");
        query.push(("namespace", namespace.clone()));
    }
    let answer = agent.events(&query, args.most as usize).await?;
    let labels = |event: &Event| {
        let labels = event.pod.as_ref().map(|pod| &pod.labels);
        args.selector.as_ref().is_none_or(|selector| labels.is_some_and(|labels| selector.matches(labels)))
    };
    let mut lines = EventPrinter::dated(args.output, context.stdout);
    let wanted = answer.events.iter().filter(|event| scope.matches(&event.owner()) && labels(event));
    let shown = print(&mut lines, wanted)?;
    note_summary(shown, from, &format!("the agent at {}", agent.name()));
    if answer.more {
        note(&format!("only the newest {} events of the node were read: --most takes more", args.most));
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
    let target = fleet.resolve(args.target.as_ref()).await?;
    let scope = match &target {
        ClusterTarget::OfNode(Target::Pid(_)) => {
            let reason = "a process is of one node: name its pod, or run podopsy events there";
            return Err(Refusal(reason.to_owned()).into());
        }
        ClusterTarget::OfNode(target) => EventScope::resolve(context, Some(target)).await?,
        _ => EventScope::All,
    };
    let kinds = args.kinds.iter().map(|kind| ("kind", kind.clone()));
    let parameters: QueryParameters = kinds.chain(target.query()).collect();
    let matches = move |owner: &Owner| target.matches(owner) && scope.matches(owner);
    let max = args.most as usize;
    let query = EventQuery { parameters, from, max, contains: None, matches: Arc::new(matches) };
    let answer = fleet.events(query).await?;
    let mut lines = EventPrinter::dated(args.output, context.stdout);
    if fleet.has_several_nodes() {
        lines = lines.with_nodes();
    }
    let shown = print(&mut lines, answer.events.iter())?;
    note_summary(shown, from, &fleet.describe());
    if answer.more {
        note(&format!("these are the newest {shown}: --most takes more"));
    }
    note_unreadable(answer.unreadable);
    Ok(if shown == 0 { CommandOutcome::NothingFound } else { CommandOutcome::Success })
}

fn print<'a>(lines: &mut EventPrinter, events: impl Iterator<Item = &'a Event>) -> io::Result<u64> {
    let mut out = io::stdout().lock();
    let mut shown = 0;
    for event in events {
        lines.print(&mut out, event)?;
        shown += 1;
    }
    Ok(shown)
}

fn note_summary(shown: u64, from: Timestamp, source: &str) {
    note(&format!("{} since {}, from {source}", units::plural(shown, "event"), units::date(from)));
}

fn note_unreadable(records: u64) {
    if records > 0 {
        note(&format!("{} in the store cannot be read", units::plural(records, "record")));
    }
}

/// The events that are listed. [`query`](Self::query) filters at the agent, [`matches`](Self::matches) here.
#[derive(Debug, PartialEq)]
enum EventScope {
    All,
    Pods {
        namespace: String,
        pod: String,
        container: Option<String>,
    },
    /// The beginning of a container's id, or a pod's name.
    Name(String),
    /// A cgroup and those below it.
    Cgroup(String),
    Container(String),
}

impl EventScope {
    async fn resolve(context: &Context, target: Option<&Target>) -> anyhow::Result<EventScope> {
        Ok(match target.cloned() {
            None | Some(Target::All) => EventScope::All,
            Some(Target::Pod { namespace, pod, container }) => EventScope::Pods { namespace, pod, container },
            Some(Target::Name(word)) => EventScope::Name(word),
            Some(Target::Cgroup(path)) => EventScope::Cgroup(path),
            // A running process stands for its container or cgroup.
            Some(Target::Pid(pid)) => {
                let owner = context.pods().await?.owner_of_pid(pid).await?;
                match (owner.container, owner.cgroup.path) {
                    (Some(container), _) => EventScope::Container(container.id),
                    (None, Some(path)) => EventScope::Cgroup(path),
                    (None, None) => bail!("pid:{pid} is in no cgroup that can be seen from here"),
                }
            }
        })
    }

    fn query(&self) -> QueryParameters {
        match self {
            EventScope::Pods { namespace, pod, container } => {
                history::of_pod(namespace, pod, container.as_deref())
            }
            _ => Vec::new(),
        }
    }

    fn matches(&self, owner: &Owner) -> bool {
        match self {
            EventScope::All | EventScope::Pods { .. } => true,
            EventScope::Name(word) => {
                let id = owner.container.as_ref().map(|container| container.id.as_str());
                let is_id = word.len() >= 4 && id.is_some_and(|id| id.starts_with(word.as_str()));
                is_id || owner.pod.as_ref().is_some_and(|pod| pod.name == *word)
            }
            EventScope::Cgroup(path) => owner.cgroup.path.as_ref().is_some_and(|own| {
                own.strip_prefix(path.trim_end_matches('/'))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }),
            EventScope::Container(id) => {
                owner.container.as_ref().is_some_and(|container| container.id == *id)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::oom::tests::event;

    #[test]
    fn a_scope_matches_events_by_name_cgroup_and_container() {
        let event = event("3f2a-1", 10);
        let is = |scope: EventScope| scope.matches(&event.owner());
        assert!(is(EventScope::Name("3f2a".into())) && is(EventScope::Name("orders".into())));
        assert!(!is(EventScope::Name("3f2".into())) && !is(EventScope::Name("order".into())));
        assert!(is(EventScope::Cgroup("/k/pod1".into())) && is(EventScope::Cgroup("/k/pod1/c1/".into())));
        assert!(!is(EventScope::Cgroup("/k/pod".into())) && is(EventScope::Cgroup("/".into())));
        assert!(is(EventScope::Container("3f2a9c".into())) && !is(EventScope::Container("3f2a".into())));
    }
}
