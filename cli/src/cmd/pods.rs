//! `podopsy pods`: the pods and containers of this node, as the container runtime lists them.

use std::io::{self, Write as _};
use std::sync::Arc;

use anyhow::bail;
use podopsy_client::{AgentClient, ClientError, QueryParameters};
use podopsy_fleet::untrusted;
use podopsy_model::{Owner, PodRef};
use podopsy_pods::{PodDetails, Pods, Resolved};
use serde::{Deserialize, Serialize};

use crate::args::{OutputArgs, OutputFormat, PodsArgs};
use crate::context::Context;
use crate::exit::{CommandOutcome, Refusal};
use crate::fleet::{ClusterAgents, ClusterTarget};
use crate::privilege;
use crate::render::list::{self, TableStyle};
use crate::render::{self, pods::PodRow};
use crate::selection::Selection;
use crate::terminal::note;

/// A pod of a cluster; `-o json` prints it as it is.
#[derive(Debug, Serialize)]
pub struct PodOnNode {
    pub node: String,
    #[serde(flatten)]
    pub details: PodDetails,
}

pub async fn run(context: &Context, args: PodsArgs) -> anyhow::Result<CommandOutcome> {
    if let Some(fleet) = &context.fleet {
        return run_fleet(context, fleet, &args).await;
    }
    privilege::require_runtime("pods", context.global.cri_socket.as_deref())?;
    let directory = context.pods().await?;
    let selection = Selection::new(&args.selection.targets, &args.selection.pods)?;
    let mut pods = of_node(&directory, &selection).await?;
    list::sort(&mut pods, args.output.sort_by.as_ref())?;
    let rows: Vec<_> = pods.iter().map(|pod| (None, pod)).collect();
    print(context, &args.output, &pods, &rows)?;
    if !pods.is_empty() {
        return Ok(CommandOutcome::Success);
    }
    note(if selection == Selection::default() { "no pods on this node" } else { "no pods match" });
    Ok(CommandOutcome::NothingFound)
}

/// The pods of all nodes, as their agents list them.
async fn run_fleet(
    context: &Context,
    fleet: &ClusterAgents,
    args: &PodsArgs,
) -> anyhow::Result<CommandOutcome> {
    let targets = fleet.resolve(&args.selection.targets).await?;
    let mut pods = of_fleet(fleet, &targets).await?;
    list::sort(&mut pods, args.output.sort_by.as_ref())?;
    let has_nodes = fleet.has_several_nodes();
    let node = |pod: &PodOnNode| has_nodes.then(|| pod.node.clone());
    let nodes: Vec<Option<String>> = pods.iter().map(node).collect();
    let rows: Vec<_> = nodes.iter().zip(&pods).map(|(node, pod)| (node.as_deref(), &pod.details)).collect();
    print(context, &args.output, &pods, &rows)?;
    if pods.is_empty() {
        note("no pods match");
    }
    Ok(if pods.is_empty() { CommandOutcome::NothingFound } else { CommandOutcome::Success })
}

/// The pods that the agents list, sorted by name.
pub async fn of_fleet(fleet: &ClusterAgents, targets: &[ClusterTarget]) -> anyhow::Result<Vec<PodOnNode>> {
    let namespace = fleet.namespace.as_ref().filter(|_| targets.is_empty());
    let query = namespace.into_iter().map(|namespace| ("namespace", namespace.clone())).collect();
    let query: Arc<QueryParameters> = Arc::new(query);
    let asked = fleet.fleet.ask(move |_, client| list_pods(client, query.clone()));
    let answers = fleet.take(fleet.wait(asked).await)?;
    let mut pods: Vec<PodOnNode> = Vec::new();
    for (agent, listed) in answers {
        let is_wanted = |pod: &PodDetails| {
            let owner = Owner { pod: Some(pod.pod.clone()), ..Owner::default() };
            let is_target = targets.is_empty() || targets.iter().any(|target| target.matches(&owner));
            is_target && fleet.selector.as_ref().is_none_or(|selector| selector.matches(&pod.pod.labels))
        };
        pods.extend(
            listed
                .into_iter()
                .filter(is_wanted)
                .map(|details| PodOnNode { node: agent.node.clone(), details }),
        );
    }
    let name = |pod: &PodOnNode| (pod.details.pod.namespace.clone(), pod.details.pod.name.clone());
    pods.sort_by_cached_key(name);
    Ok(pods)
}

/// Prints the list. An empty one is printed as JSON and YAML, too.
fn print<T: Serialize>(
    context: &Context,
    args: &OutputArgs,
    pods: &[T],
    rows: &[PodRow<'_>],
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut names = rows.iter().map(|(_, pod)| format!("{}/{}", pod.pod.namespace, pod.pod.name));
    if args.output == OutputFormat::Name {
        return names.try_for_each(|name| writeln!(out, "{name}"));
    }
    if list::print(&mut out, context.stdout, args, pods, |_| None)? {
        return Ok(());
    }
    match args.output {
        OutputFormat::Json => render::json(&mut out, &pods),
        OutputFormat::Yaml => render::yaml(&mut out, &pods),
        _ if rows.is_empty() => Ok(()),
        _ => render::pods::print(&mut out, TableStyle::new(context.stdout, args), rows),
    }
}

async fn list_pods(client: AgentClient, query: Arc<QueryParameters>) -> Result<Vec<PodDetails>, ClientError> {
    #[derive(Deserialize)]
    struct Listed {
        pods: Vec<PodDetails>,
    }
    let (_, body) = client.get("/api/v1/pods", &query).await?;
    let listed: Result<Listed, _> = untrusted::parse(&body);
    listed.map(|listed| listed.pods).map_err(|error| ClientError::InvalidResponse(error.to_string()))
}

/// The pods that are wanted, sorted. An error: a TARGET means none, or is ambiguous.
pub async fn of_node(directory: &Arc<Pods>, selection: &Selection) -> anyhow::Result<Vec<PodDetails>> {
    let mut listed = directory.list().await?;
    if !selection.targets.is_empty() {
        let mut wanted: Vec<PodRef> = Vec::new();
        for resolved in selection.resolve(directory).await? {
            let Resolved::Containers(pod, _) = resolved else {
                return Err(Refusal(
                    "pods: a TARGET is in no pod: podopsy inspect shows what it is".to_owned(),
                )
                .into());
            };
            wanted.push(pod);
        }
        listed.retain(|pod| wanted.contains(&pod.pod));
    }
    let selected = select(listed, selection);
    match directory.status().cri_error {
        // What cgroups and log folders show may not be all.
        Some(error) if selected.is_empty() => bail!("no pods: {error}"),
        _ => Ok(selected),
    }
}

fn select(mut pods: Vec<PodDetails>, selection: &Selection) -> Vec<PodDetails> {
    pods.retain(|pod| selection.has_pod(Some(&pod.pod)));
    pods.sort_by(|a, b| (&a.pod.namespace, &a.pod.name).cmp(&(&b.pod.namespace, &b.pod.name)));
    pods
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::PodFilterArgs;
    use crate::render::pods::tests::pod;

    #[test]
    fn pods_are_filtered_and_sorted() {
        let names = |namespace: Option<&str>, selector: Option<&str>| {
            let pods = PodFilterArgs {
                namespace: namespace.map(str::to_owned),
                selector: selector.map(|text| text.parse().unwrap()),
                ..PodFilterArgs::default()
            };
            let selection = Selection::new(&[], &pods).unwrap();
            let all = vec![pod("pricing", vec![]), pod("checkout-api", vec![])];
            select(all, &selection).into_iter().map(|pod| pod.pod.name).collect::<Vec<_>>()
        };
        assert_eq!(names(None, None), ["checkout-api", "pricing"]);
        assert_eq!(names(Some("finance"), Some("app=pricing")), ["pricing"]);
        assert!(names(Some("shop"), None).is_empty());
    }
}
