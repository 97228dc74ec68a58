//! `podopsy events`: what happened, from the history of the agent on this node.

use std::io;

use anyhow::bail;
use podopsy_client::QueryParameters;
use podopsy_model::{Event, Target};

use crate::args::Events;
use crate::context::Context;
use crate::exit::Verdict;
use crate::history;
use crate::render::{event::Lines, units};
use crate::terminal::note;

pub async fn run(context: &Context, args: Events) -> anyhow::Result<Verdict> {
    let Some(agent) = history::agent(&args.history).await? else {
        bail!(
            "no agent answers at {}: start podopsy-agent with --state-dir (--socket names the socket of one that runs), \
             or see what happens from now on with podopsy watch",
            args.history.state_dir.join(podopsy_client::SOCKET_NAME).display()
        );
    };
    let from = history::ago(args.since);
    let mut query: QueryParameters = vec![("from", from.to_string())];
    query.extend(args.kinds.iter().map(|kind| ("kind", kind.clone())));
    let whose = Whose::of(context, args.target.as_ref()).await?;
    query.extend(whose.query());
    if let Some(namespace) = &args.namespace {
        if query.iter().any(|(name, value)| *name == "namespace" && value != namespace) {
            bail!("TARGET names another namespace than --namespace {namespace}");
        }
        query.retain(|(name, _)| *name != "namespace");
        query.push(("namespace", namespace.clone()));
    }
    let answer = agent.events(&query, args.most as usize).await?;
    let labels = |event: &Event| {
        let labels = event.pod.as_ref().map(|pod| &pod.labels);
        args.selector.as_ref().is_none_or(|selector| labels.is_some_and(|labels| selector.matches(labels)))
    };
    let mut lines = Lines::dated(args.output, context.stdout);
    let mut shown = 0u64;
    let mut out = io::stdout().lock();
    for event in answer.events.iter().filter(|event| whose.is(event) && labels(event)) {
        lines.print(&mut out, event)?;
        shown += 1;
    }
    drop(out);
    let path = agent.socket().display();
    note(&format!("{} since {}, by the agent at {path}", units::plural(shown, "event"), units::date(from)));
    if answer.more {
        note(&format!("only the newest {} of the node were looked at: --most takes more", args.most));
    }
    if answer.unreadable > 0 {
        note(&format!("{} in the store cannot be read", units::plural(answer.unreadable, "record")));
    }
    history::note_gaps(&agent, from).await;
    Ok(if shown == 0 { Verdict::Nothing } else { Verdict::Fine })
}

/// Whose events: what the agent can be asked for, and what is looked at here.
#[derive(Debug, PartialEq)]
enum Whose {
    Everybodys,
    Pods {
        namespace: String,
        pod: String,
        container: Option<String>,
    },
    /// The beginning of a container's id, or a pod's name.
    Word(String),
    /// A cgroup and those below it.
    Cgroup(String),
    Container(String),
}

impl Whose {
    async fn of(context: &Context, target: Option<&Target>) -> anyhow::Result<Whose> {
        Ok(match target.cloned() {
            None | Some(Target::All) => Whose::Everybodys,
            Some(Target::Pod { namespace, pod, container }) => Whose::Pods { namespace, pod, container },
            Some(Target::Name(word)) => Whose::Word(word),
            Some(Target::Cgroup(path)) => Whose::Cgroup(path),
            // A process that lives: events are of those that ran where it runs.
            Some(Target::Pid(pid)) => {
                let owner = context.pods().await?.owner_of_pid(pid).await?;
                match (owner.container, owner.cgroup.path) {
                    (Some(container), _) => Whose::Container(container.id),
                    (None, Some(path)) => Whose::Cgroup(path),
                    (None, None) => bail!("pid:{pid} is in no cgroup that can be seen from here"),
                }
            }
        })
    }

    fn query(&self) -> QueryParameters {
        match self {
            Whose::Pods { namespace, pod, container } => {
                history::of_pod(namespace, pod, container.as_deref())
            }
            _ => Vec::new(),
        }
    }

    fn is(&self, event: &Event) -> bool {
        match self {
            Whose::Everybodys | Whose::Pods { .. } => true,
            Whose::Word(word) => {
                let id = event.container.as_ref().map(|container| container.id.as_str());
                let is_id = word.len() >= 4 && id.is_some_and(|id| id.starts_with(word.as_str()));
                is_id || event.pod.as_ref().is_some_and(|pod| pod.name == *word)
            }
            Whose::Cgroup(path) => event.cgroup.path.as_ref().is_some_and(|own| {
                own.strip_prefix(path.trim_end_matches('/'))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }),
            Whose::Container(id) => event.container.as_ref().is_some_and(|container| container.id == *id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::oom::tests::event;

    #[test]
    fn whose_events_are_meant() {
        let event = event("3f2a-1", 10);
        let is = |whose: Whose| whose.is(&event);
        assert!(is(Whose::Word("3f2a".into())) && is(Whose::Word("orders".into())));
        assert!(!is(Whose::Word("3f2".into())) && !is(Whose::Word("order".into())));
        assert!(is(Whose::Cgroup("/k/pod1".into())) && is(Whose::Cgroup("/k/pod1/c1/".into())));
        assert!(!is(Whose::Cgroup("/k/pod".into())) && is(Whose::Cgroup("/".into())));
        assert!(is(Whose::Container("3f2a9c".into())) && !is(Whose::Container("3f2a".into())));
    }
}
