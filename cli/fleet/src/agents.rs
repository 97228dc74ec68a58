//! The agents' pods.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::kubectl::{CONTAINER, Kubectl, KubectlError, is_name};

/// The label of the agents' pods in manifests/.
pub const LABEL: &str = "app.kubernetes.io/name=podopsy-agent";

/// An agent, and its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Agent {
    /// The node's name in events: the pod's NODE_NAME, or else the node that it runs on.
    pub node: String,
    /// The node that the pod runs on, as the API server has it.
    pub host: String,
    pub namespace: String,
    pub pod: String,
}

/// A node whose agent did not answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeFailure {
    pub node: String,
    pub reason: String,
    /// RBAC refused the call.
    pub is_forbidden: bool,
}

impl NodeFailure {
    pub fn new(node: &str, reason: impl Into<String>) -> NodeFailure {
        NodeFailure { node: node.to_owned(), reason: reason.into(), is_forbidden: false }
    }
}

/// What the API server lists of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Pod {
    pub metadata: Metadata,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub deletion_timestamp: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub node_name: String,
    containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    env: Vec<Variable>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    value: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodStatus {
    pub phase: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodList {
    pub items: Vec<Pod>,
}

/// Lists the agents in a namespace: those that run, and the others with the reason.
pub async fn list(
    kubectl: &Kubectl,
    namespace: &str,
) -> Result<(Vec<Agent>, Vec<NodeFailure>), KubectlError> {
    let pods: PodList =
        kubectl.get(&["pods", &format!("--namespace={namespace}"), "--selector", LABEL]).await?;
    Ok(sort(pods.items))
}

fn sort(pods: Vec<Pod>) -> (Vec<Agent>, Vec<NodeFailure>) {
    let (mut agents, mut failures) = (Vec::new(), Vec::new());
    for pod in pods {
        let node = node_name(&pod);
        // What has no node is not scheduled, and would be the agent of none.
        if ![&node, &pod.spec.node_name, &pod.metadata.namespace, &pod.metadata.name]
            .iter()
            .all(|name| is_name(name))
        {
            continue;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            failures.push(NodeFailure::new(&node, "its agent's pod is being deleted"));
        } else if pod.status.phase != "Running" {
            let phase: String =
                pod.status.phase.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
            failures.push(NodeFailure::new(&node, format!("its agent's pod is {phase}")));
        } else {
            let Metadata { name, namespace, .. } = pod.metadata;
            agents.push(Agent { node, host: pod.spec.node_name, namespace, pod: name });
        }
    }
    // During an update, a node has the old pod and the new one.
    failures.retain(|failure| agents.iter().all(|agent| agent.node != failure.node));
    agents.sort();
    failures.sort();
    failures.dedup_by(|a, b| a.node == b.node);
    (agents, failures)
}

fn node_name(pod: &Pod) -> String {
    let agent = pod.spec.containers.iter().find(|container| container.name == CONTAINER);
    let variable = agent.and_then(|agent| agent.env.iter().find(|variable| variable.name == "NODE_NAME"));
    // The DaemonSet's comes from the node by `valueFrom`, and has no value here.
    let given = variable.and_then(|variable| variable.value.clone());
    given.unwrap_or_else(|| pod.spec.node_name.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, phase: &str) -> serde_json::Value {
        json!({
            "metadata": { "name": name, "namespace": "podopsy" },
            "spec": { "nodeName": node, "containers": [{ "name": "agent", "env": [{ "name": "NODE_NAME", "valueFrom": {} }] }] },
            "status": { "phase": phase },
        })
    }

    #[test]
    fn only_agents_that_run_are_asked_and_the_others_have_a_reason() {
        let mut ending = pod("old", "n2", "Running");
        ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        let mut named = pod("extra", "n1", "Running");
        named["spec"]["containers"][0]["env"][0] = json!({ "name": "NODE_NAME", "value": "other" });
        let mut replaced = ending.clone();
        replaced["spec"]["nodeName"] = "n1".into();
        let items = json!({ "items": [
            pod("c", "n3", "Pending"), pod("b", "n1", "Running"), ending, named, replaced,
            pod("--all", "n4", "Running"), pod("d", "", "Pending"),
        ]});
        let list: PodList = serde_json::from_value(items).unwrap();
        let (agents, failures) = sort(list.items);
        let names: Vec<_> = agents.iter().map(|agent| (&*agent.node, &*agent.host, &*agent.pod)).collect();
        assert_eq!(names, [("n1", "n1", "b"), ("other", "n1", "extra")]);
        let reasons: Vec<_> = failures.iter().map(|failure| (&*failure.node, &*failure.reason)).collect();
        let expected = [("n2", "its agent's pod is being deleted"), ("n3", "its agent's pod is Pending")];
        assert_eq!(reasons, expected);
    }
}
