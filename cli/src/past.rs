//! Past events of what a [`Selection`] means, from the history of this node's agent.

use jiff::Timestamp;
use podopsy_client::{AgentClient, ClientError, EventList, QueryParameters};
use podopsy_model::{Event, Owner, Target, TargetMatchError};
use podopsy_pods::PodDetails;
use serde::Deserialize;

use crate::context::Context;
use crate::history;
use crate::render::units;
use crate::selection::{OwnerScope, Selection};

/// How many events are read to find those of a TARGET that only this side can match.
pub const EVENTS_READ_MAX: usize = 10_000;

/// Which past events are wanted.
#[derive(Clone, Debug)]
pub struct PastQuery {
    pub from: Timestamp,
    /// Empty: all kinds.
    pub kinds: Vec<String>,
    /// At most the newest N.
    pub max: usize,
}

/// The newest events of the selection, oldest first.
pub async fn events(
    context: &Context,
    agent: &AgentClient,
    selection: &Selection,
    query: &PastQuery,
) -> anyhow::Result<EventList> {
    let mut parameters: QueryParameters = vec![("from", query.from.to_string())];
    parameters.extend(query.kinds.iter().map(|kind| ("kind", kind.clone())));
    let is_selected = |event: &Event| selection.has_pod(event.pod.as_ref());
    if let [Target::Pod { namespace: Some(namespace), pod, container }] = &selection.targets[..] {
        let mut exact = parameters.clone();
        exact.extend(history::of_pod(namespace, pod, container.as_deref()));
        let mut found = agent.events(&exact, query.max).await?;
        found.events.retain(is_selected);
        if !found.events.is_empty() {
            return Ok(found);
        }
    }
    parameters.extend(selection.namespace.iter().map(|namespace| ("namespace", namespace.clone())));
    if selection.targets.is_empty() {
        let mut found = agent.events(&parameters, query.max).await?;
        found.events.retain(is_selected);
        return Ok(found);
    }
    let mut found = agent.events(&parameters, EVENTS_READ_MAX).await?;
    let owners = owners_of(&found.events);
    let scopes = scopes(context, selection, &owners, &pods(agent).await, query.from).await?;
    found.events.retain(|event| is_selected(event) && scopes.iter().any(|scope| scope.has_event(event)));
    let older = found.events.len().saturating_sub(query.max);
    found.events.drain(..older);
    found.more |= older > 0;
    Ok(found)
}

/// The scopes of the TARGETs, by the owners of past events and the pods that exist.
pub async fn scopes(
    context: &Context,
    selection: &Selection,
    owners: &[Owner],
    listed: &[PodDetails],
    from: Timestamp,
) -> anyhow::Result<Vec<OwnerScope>> {
    let mut scopes = Vec::new();
    for target in &selection.targets {
        let scope = match target {
            Target::Pid(pid) => of_process(context, *pid).await?,
            target => {
                OwnerScope::in_history(target, owners, listed).map_err(|error| with_window(error, from))?
            }
        };
        scopes.push(scope);
    }
    Ok(scopes)
}

/// Each owner once.
pub fn owners_of(events: &[Event]) -> Vec<Owner> {
    let mut owners: Vec<Owner> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for event in events {
        let pod = event.pod.as_ref().map(|pod| (&pod.uid, &pod.name));
        let container = event.container.as_ref().map(|container| &container.id);
        if seen.insert((pod, container)) {
            owners.push(event.owner());
        }
    }
    owners
}

/// The pods that exist on the agent's node. None if it cannot list them: past events name their pods themselves.
pub async fn pods(agent: &AgentClient) -> Vec<PodDetails> {
    list_pods(agent).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot list the agent's pods");
        Vec::new()
    })
}

/// The pods that exist on the agent's node.
pub async fn list_pods(agent: &AgentClient) -> Result<Vec<PodDetails>, ClientError> {
    #[derive(Deserialize)]
    struct PodsResponse {
        pods: Vec<PodDetails>,
    }
    let response: PodsResponse = agent.json("/api/v1/pods", &Vec::new()).await?;
    Ok(response.pods)
}

/// A running process stands for its container or cgroup.
async fn of_process(context: &Context, pid: u32) -> anyhow::Result<OwnerScope> {
    let owner = context.pods().await?.owner_of_pid(pid).await?;
    match (owner.container, owner.cgroup.path) {
        (Some(container), _) => Ok(OwnerScope::Container(container.id)),
        (None, Some(path)) => Ok(OwnerScope::CgroupPath(path)),
        (None, None) => anyhow::bail!("pid:{pid} is in no cgroup that can be seen from here"),
    }
}

fn with_window(error: TargetMatchError, from: Timestamp) -> TargetMatchError {
    match error {
        TargetMatchError::NotFound(text) => {
            let is_bounded = from > Timestamp::UNIX_EPOCH;
            let since = if is_bounded { format!(" since {}", units::date(from)) } else { String::new() };
            let place = format!("among the pods that exist, and those in the history{since}");
            TargetMatchError::NotFound(format!("{place}: {text}"))
        }
        error => error,
    }
}
