//! `podopsy pods`: the pods and containers of this node, as the container runtime lists them.

use std::io;
use std::sync::Arc;

use podopsy_client::{AgentClient, ClientError, QueryParameters};
use podopsy_fleet::untrusted;
use podopsy_pods::PodDetails;
use serde::{Deserialize, Serialize};

use crate::args::{ListFormat, PodsArgs};
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::fleet::ClusterAgents;
use crate::render;
use crate::terminal::note;
use crate::{privilege, selector::Selector};

/// A pod of a cluster; `-o json` prints it as it is.
#[derive(Debug, Serialize)]
struct PodOnNode {
    node: String,
    #[serde(flatten)]
    details: PodDetails,
}

pub async fn run(context: &Context, args: PodsArgs) -> anyhow::Result<CommandOutcome> {
    if let Some(fleet) = &context.fleet {
        return run_fleet(context, fleet, &args).await;
    }
    privilege::require_runtime("pods", context.global.cri_socket.as_deref())?;
    let directory = context.pods().await?;
    let pods = select(directory.list().await?, args.namespace.as_deref(), args.selector.as_ref());
    let mut out = io::stdout().lock();
    match args.output {
        // An empty list is printed as JSON, too.
        ListFormat::Json => render::json(&mut out, &pods)?,
        _ if pods.is_empty() => {}
        format => {
            let rows: Vec<_> = pods.iter().map(|pod| (None, pod)).collect();
            render::pods::print(&mut out, context.stdout, &rows, format == ListFormat::Wide)?;
        }
    }
    if !pods.is_empty() {
        return Ok(CommandOutcome::Success);
    }
    let why = match (directory.status().cri_error, args.namespace.is_some() || args.selector.is_some()) {
        (Some(error), _) => format!("no pods: {error}"),
        (None, true) => "no pods match".to_owned(),
        (None, false) => "no pods on this node".to_owned(),
    };
    note(&why);
    Ok(CommandOutcome::NothingFound)
}

/// The pods of all nodes, as their agents list them.
async fn run_fleet(
    context: &Context,
    fleet: &ClusterAgents,
    args: &PodsArgs,
) -> anyhow::Result<CommandOutcome> {
    let query = fleet.namespace.iter().map(|namespace| ("namespace", namespace.clone())).collect();
    let query: Arc<QueryParameters> = Arc::new(query);
    let asked = fleet.fleet.ask(move |_, client| list(client, query.clone()));
    let answers = fleet.take(fleet.wait(asked).await)?;
    let mut pods: Vec<PodOnNode> = Vec::new();
    for (agent, listed) in answers {
        let selected = select(listed, fleet.namespace.as_deref(), fleet.selector.as_ref());
        pods.extend(selected.into_iter().map(|details| PodOnNode { node: agent.node.clone(), details }));
    }
    let name = |pod: &PodOnNode| (pod.details.pod.namespace.clone(), pod.details.pod.name.clone());
    pods.sort_by_cached_key(name);
    let mut out = io::stdout().lock();
    match args.output {
        ListFormat::Json => render::json(&mut out, &pods)?,
        _ if pods.is_empty() => note("no pods match"),
        format => {
            let has_nodes = fleet.has_several_nodes();
            let rows: Vec<_> =
                pods.iter().map(|pod| (has_nodes.then_some(pod.node.as_str()), &pod.details)).collect();
            render::pods::print(&mut out, context.stdout, &rows, format == ListFormat::Wide)?;
        }
    }
    Ok(if pods.is_empty() { CommandOutcome::NothingFound } else { CommandOutcome::Success })
}

async fn list(client: AgentClient, query: Arc<QueryParameters>) -> Result<Vec<PodDetails>, ClientError> {
    #[derive(Deserialize)]
    struct Listed {
        pods: Vec<PodDetails>,
    }
    let (_, body) = client.get("/api/v1/pods", &query).await?;
    let listed: Result<Listed, _> = untrusted::parse(&body);
    listed.map(|listed| listed.pods).map_err(|error| ClientError::InvalidResponse(error.to_string()))
}

fn select(pods: Vec<PodDetails>, namespace: Option<&str>, selector: Option<&Selector>) -> Vec<PodDetails> {
    let mut pods: Vec<PodDetails> = pods
        .into_iter()
        .filter(|pod| namespace.is_none_or(|namespace| pod.pod.namespace == namespace))
        .filter(|pod| selector.is_none_or(|selector| selector.matches(&pod.pod.labels)))
        .collect();
    pods.sort_by(|a, b| (&a.pod.namespace, &a.pod.name).cmp(&(&b.pod.namespace, &b.pod.name)));
    pods
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::pods::tests::pod;

    #[test]
    fn pods_are_filtered_and_sorted() {
        let all = || vec![pod("pricing", vec![]), pod("checkout-api", vec![])];
        let names = |pods: Vec<PodDetails>| pods.into_iter().map(|pod| pod.pod.name).collect::<Vec<_>>();
        assert_eq!(names(select(all(), None, None)), ["checkout-api", "pricing"]);
        assert_eq!(names(select(all(), Some("finance"), Some(&"app=pricing".parse().unwrap()))), ["pricing"]);
        assert!(select(all(), Some("shop"), None).is_empty());
    }
}
