//! `podopsy restarts`: containers that have restarted, with what Kubernetes and the kernel say of the last end.

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;

use anyhow::bail;
use jiff::Timestamp;
use podopsy_fleet::EventQuery;
use podopsy_model::{Event, EventKind, sigkill_verdict};
use podopsy_pods::{ContainerDetails, PodDetails};
use serde::Serialize;

use super::{oom, pods};
use crate::args::{OutputFormat, RestartsArgs};
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::fleet::ClusterAgents;
use crate::privilege;
use crate::render::list::{self, TableStyle};
use crate::render::{self, pods::newest};
use crate::selection::Selection;
use crate::terminal::note;

/// A container, from its newest instance and the last one that ended; `-o json` prints it as it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ContainerRestarts {
    /// Null: there is one node.
    pub node: Option<String>,
    pub namespace: String,
    pub pod: String,
    pub container: String,
    pub restarts: u32,
    pub state: String,
    /// When the last instance ended, and how Kubernetes shows it: `OOMKilled (137)`. Null: none has ended.
    pub ended_at: Option<Timestamp>,
    pub kubernetes: Option<String>,
    /// What the kernel did to that instance, as podopsy recorded it; null: no kill was recorded.
    pub kernel: Option<String>,
    /// The id for `podopsy oom show`.
    pub id: Option<String>,
    /// OOM incidents and SIGKILLs of all instances of the container that the history has.
    pub oom_kills: usize,
    pub sigkills: usize,
}

pub async fn run(context: &Context, args: RestartsArgs) -> anyhow::Result<CommandOutcome> {
    let mut rows = match &context.fleet {
        Some(fleet) => of_fleet(fleet, &args).await?,
        None => of_node(context, &args).await?,
    };
    if !args.all {
        rows.retain(|row| row.restarts > 0);
    }
    let key = |row: &ContainerRestarts| (row.namespace.clone(), row.pod.clone(), row.container.clone());
    rows.sort_by_cached_key(|row| (Reverse(row.restarts), key(row)));
    list::sort(&mut rows, args.output.sort_by.as_ref())?;
    print(context, &args, &rows)?;
    if rows.is_empty() {
        note("no container has restarted");
        return Ok(CommandOutcome::NothingFound);
    }
    Ok(CommandOutcome::Success)
}

fn print(context: &Context, args: &RestartsArgs, rows: &[ContainerRestarts]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let name = |row: &ContainerRestarts| Some(format!("{}/{}/{}", row.namespace, row.pod, row.container));
    if list::print(&mut out, context.stdout, &args.output, rows, name)? {
        return Ok(());
    }
    match args.output.output {
        OutputFormat::Json => render::json(&mut out, &rows),
        OutputFormat::Yaml => render::yaml(&mut out, &rows),
        _ if rows.is_empty() => Ok(()),
        _ => render::restarts::print(&mut out, TableStyle::new(context.stdout, &args.output), rows),
    }
}

async fn of_node(context: &Context, args: &RestartsArgs) -> anyhow::Result<Vec<ContainerRestarts>> {
    privilege::require_runtime("restarts", context.global.cri_socket.as_deref())?;
    let selection = Selection::new(&args.selection.targets, &args.selection.pods)?;
    let directory = context.pods().await?;
    let listed = pods::of_node(&directory, &selection).await?;
    let has_restarts = listed.iter().flat_map(|pod| &pod.containers).any(|container| container.restarts > 0);
    if let Some(error) = directory.status().cri_error.filter(|_| !has_restarts) {
        bail!("how often containers have restarted is not known: {error}");
    }
    let (kept, source) = oom::kept(&args.history, None).await?;
    note(&match source {
        Some(source) => format!("kills are those that {source} has"),
        None => "the kernel's word is missing: no agent answers, and none has left a store".to_owned(),
    });
    Ok(rows(&listed, &kept.events))
}

async fn of_fleet(fleet: &ClusterAgents, args: &RestartsArgs) -> anyhow::Result<Vec<ContainerRestarts>> {
    let targets = fleet.resolve(&args.selection.targets).await?;
    let listed = pods::of_fleet(fleet, &targets).await?;
    let kinds = [EventKind::OomIncident, EventKind::Sigkill];
    let query = EventQuery {
        parameters: kinds.map(|kind| ("kind", kind.as_str().to_owned())).into(),
        from: Timestamp::UNIX_EPOCH,
        max: oom::MOST,
        contains: None,
        matches: Arc::new(|_| true),
    };
    let kept = fleet.events(targets, query).await?;
    let node = |name: &str| fleet.has_several_nodes().then(|| name.to_owned());
    Ok(listed.iter().flat_map(|pod| rows_of(node(&pod.node), &pod.details, &kept.events)).collect())
}

/// A row for each container of the pods of a node.
pub fn rows(pods: &[PodDetails], events: &[Event]) -> Vec<ContainerRestarts> {
    pods.iter().flat_map(|pod| rows_of(None, pod, events)).collect()
}

/// A row for each container of a pod.
fn rows_of(node: Option<String>, pod: &PodDetails, events: &[Event]) -> Vec<ContainerRestarts> {
    let row = |(container, before): (&ContainerDetails, Option<&ContainerDetails>)| {
        let name = &container.container.name;
        let own: Vec<&Event> = events.iter().filter(|event| is_of(event, pod, name)).collect();
        let ended = if container.state == "exited" { Some(container) } else { before };
        let kill = ended.and_then(|ended| kill_of(&own, ended));
        ContainerRestarts {
            node: node.clone(),
            namespace: pod.pod.namespace.clone(),
            pod: pod.pod.name.clone(),
            container: name.clone(),
            restarts: container.restarts,
            state: container.state.clone(),
            ended_at: ended.and_then(|ended| ended.finished_at),
            kubernetes: ended.map(render::pods::reason).filter(|reason| !reason.is_empty()),
            kernel: kill.and_then(describe),
            id: kill.and_then(Event::kept_id).map(str::to_owned),
            oom_kills: own.iter().filter(|event| event.incident.is_some()).count(),
            sigkills: own.iter().filter(|event| event.sigkill().is_some()).count(),
        }
    };
    newest(&pod.containers).into_iter().map(row).collect()
}

fn is_of(event: &Event, pod: &PodDetails, container: &str) -> bool {
    event.pod.as_ref().is_some_and(|own| own.uid == pod.pod.uid)
        && event.container.as_ref().is_some_and(|own| own.name == container)
}

/// The last kill of an instance. The newest events come last.
fn kill_of<'a>(events: &[&'a Event], ended: &ContainerDetails) -> Option<&'a Event> {
    let is_own = |event: &&&Event| event.container.as_ref().is_some_and(|own| own.id == ended.container.id);
    events.iter().rfind(is_own).copied()
}

fn describe(event: &Event) -> Option<String> {
    if let Some(incident) = &event.incident {
        return Some(format!("OOM kill: limit {}", render::oom::limit_hit(&incident.limit)));
    }
    event.sigkill().map(|sigkill| format!("SIGKILL from {}", sigkill_verdict::from(sigkill)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::oom::tests::event;
    use crate::render::pods::tests::{container, pod};

    /// An instance that ended by itself, and one before it that the OOM killer ended.
    fn crashing() -> PodDetails {
        let mut first = container("api", 0, "exited");
        (first.container.id, first.reason, first.exit_code) = ("3f2a9c".into(), "Error".into(), Some(137));
        let mut pod =
            pod("orders", vec![first, container("api", 3, "running"), container("side", 0, "running")]);
        (pod.pod.uid, pod.pod.namespace) = ("u".into(), "shop".into());
        pod
    }

    #[test]
    fn the_kernels_word_is_of_the_instance_that_ended_last() {
        let mut other = event("3f2a-8", 5);
        other.container.as_mut().unwrap().id = "another-instance".into();
        let rows = rows_of(None, &crashing(), &[event("3f2a-7", 10), other]);
        let api = &rows[0];
        assert_eq!((api.restarts, api.kubernetes.as_deref()), (3, Some("Error (137)")));
        assert_eq!((api.id.as_deref(), api.oom_kills, api.sigkills), (Some("3f2a-7"), 2, 0));
        assert_eq!(api.kernel.as_deref(), Some("OOM kill: limit container 64.0 MiB (observed)"));
        let side = &rows[1];
        assert_eq!((side.container.as_str(), side.restarts, &side.kernel), ("side", 0, &None));
    }
}
