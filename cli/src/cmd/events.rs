//! `podopsy events`: lists past events from the history of this node's agent.

use std::io;

use anyhow::bail;
use podopsy_client::QueryParameters;
use podopsy_model::{Event, Target};

use crate::args::EventsArgs;
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::history;
use crate::render::{event::EventPrinter, units};
use crate::terminal::note;

pub async fn run(context: &Context, args: EventsArgs) -> anyhow::Result<CommandOutcome> {
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
    let mut shown = 0u64;
    let mut out = io::stdout().lock();
    for event in answer.events.iter().filter(|event| scope.matches(event) && labels(event)) {
        lines.print(&mut out, event)?;
        shown += 1;
    }
    drop(out);
    let path = agent.socket().display();
    note(&format!("{} since {}, from the agent at {path}", units::plural(shown, "event"), units::date(from)));
    if answer.more {
        note(&format!("only the newest {} events of the node were read: --most takes more", args.most));
    }
    if answer.unreadable > 0 {
        note(&format!("{} in the store cannot be read", units::plural(answer.unreadable, "record")));
    }
    history::note_gaps(&agent, from).await;
    Ok(if shown == 0 { CommandOutcome::NothingFound } else { CommandOutcome::Success })
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

    fn matches(&self, event: &Event) -> bool {
        match self {
            EventScope::All | EventScope::Pods { .. } => true,
            EventScope::Name(word) => {
                let id = event.container.as_ref().map(|container| container.id.as_str());
                let is_id = word.len() >= 4 && id.is_some_and(|id| id.starts_with(word.as_str()));
                is_id || event.pod.as_ref().is_some_and(|pod| pod.name == *word)
            }
            EventScope::Cgroup(path) => event.cgroup.path.as_ref().is_some_and(|own| {
                own.strip_prefix(path.trim_end_matches('/'))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }),
            EventScope::Container(id) => {
                event.container.as_ref().is_some_and(|container| container.id == *id)
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
        let is = |scope: EventScope| scope.matches(&event);
        assert!(is(EventScope::Name("3f2a".into())) && is(EventScope::Name("orders".into())));
        assert!(!is(EventScope::Name("3f2".into())) && !is(EventScope::Name("order".into())));
        assert!(is(EventScope::Cgroup("/k/pod1".into())) && is(EventScope::Cgroup("/k/pod1/c1/".into())));
        assert!(!is(EventScope::Cgroup("/k/pod".into())) && is(EventScope::Cgroup("/".into())));
        assert!(is(EventScope::Container("3f2a9c".into())) && !is(EventScope::Container("3f2a".into())));
    }
}
