//! The pods of an owner: `deploy/NAME` and the like, by the selector that the API server has of it.
//!
//! A selector matches pods that are gone, too: their events have their labels.

use std::collections::BTreeMap;

use podopsy_model::{PodRef, WorkloadKind, workloads};
use serde::Deserialize;

use crate::agents::{Metadata, Pod, PodList};
use crate::kubectl::{Kubectl, KubectlError, is_name};

/// How kubectl names the kind's objects. None: the kind has no selector of pods, as a CronJob.
fn resource(kind: WorkloadKind) -> Option<&'static str> {
    Some(match kind {
        WorkloadKind::Deployment => "deployments.apps",
        WorkloadKind::StatefulSet => "statefulsets.apps",
        WorkloadKind::DaemonSet => "daemonsets.apps",
        WorkloadKind::ReplicaSet => "replicasets.apps",
        WorkloadKind::Job => "jobs.batch",
        WorkloadKind::CronJob => return None,
    })
}

/// A selector of pods, as the API server has it (`LabelSelector`), in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodFilter {
    #[serde(skip)]
    pub namespace: String,
    pub match_labels: BTreeMap<String, String>,
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// A pod that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LivePod {
    pub pod: PodRef,
    /// Empty: it is not scheduled.
    pub host: String,
    pub is_running: bool,
}

impl PodFilter {
    /// The pods of an owner.
    pub async fn of_owner(
        kubectl: &Kubectl,
        namespace: &str,
        kind: WorkloadKind,
        name: &str,
    ) -> Result<PodFilter, KubectlError> {
        #[derive(Deserialize)]
        struct Owner {
            spec: Spec,
        }
        #[derive(Deserialize)]
        struct Spec {
            selector: PodFilter,
        }
        require_name(name)?;
        let Some(resource) = resource(kind) else {
            let reason = format!("a {} has no selector of pods", kind.as_str());
            return Err(KubectlError::Failed(reason));
        };
        let owner: Owner =
            kubectl.get(&[&format!("{resource}/{name}"), &format!("--namespace={namespace}")]).await?;
        let filter = owner.spec.selector;
        if filter.match_labels.is_empty() && filter.match_expressions.is_empty() {
            return Err(KubectlError::Failed(format!("{name} has no selector, so its pods cannot be found")));
        }
        Ok(PodFilter { namespace: namespace.to_owned(), ..filter })
    }

    pub fn matches(&self, pod: &PodRef) -> bool {
        pod.namespace == self.namespace
            && self.match_labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|expression| expression.matches(&pod.labels))
    }

    /// Its pods that exist.
    pub async fn live_pods(&self, kubectl: &Kubectl) -> Result<Vec<LivePod>, KubectlError> {
        let namespace = format!("--namespace={}", self.namespace);
        let selector = format!("--selector={self}");
        let list: PodList = kubectl.get(&["pods", &namespace, &selector]).await?;
        Ok(list.items.into_iter().filter_map(LivePod::new).collect())
    }
}

impl LivePod {
    fn new(pod: Pod) -> Option<LivePod> {
        let is_running = pod.status.phase == "Running" && pod.metadata.deletion_timestamp.is_none();
        let Metadata { name, namespace, uid, labels, .. } = pod.metadata;
        let pod_ref = PodRef { namespace, name, uid, labels };
        is_name(&pod_ref.name).then_some(LivePod { pod: pod_ref, host: pod.spec.node_name, is_running })
    }

    /// All pods of a namespace.
    pub async fn list(kubectl: &Kubectl, namespace: &str) -> Result<Vec<LivePod>, KubectlError> {
        let list: PodList = kubectl.get(&["pods", &format!("--namespace={namespace}")]).await?;
        Ok(list.items.into_iter().filter_map(LivePod::new).collect())
    }

    /// Whether a controller of this kind and name has made it, as far as its labels and its name show.
    pub fn is_of(&self, kind: WorkloadKind, name: &str) -> bool {
        workloads(&self.pod).iter().any(|owner| owner.kind == kind && owner.name == name)
    }

    /// The pod of this name. None: it is gone.
    pub async fn find(
        kubectl: &Kubectl,
        namespace: &str,
        name: &str,
    ) -> Result<Option<LivePod>, KubectlError> {
        require_name(name)?;
        match kubectl.get::<Pod>(&["pods", name, &format!("--namespace={namespace}")]).await {
            Ok(pod) => Ok(LivePod::new(pod)),
            Err(KubectlError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Expression {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let is_in = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => is_in,
            Operator::NotIn => !is_in,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// The selector as `kubectl --selector` takes it.
impl std::fmt::Display for PodFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let labels = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let expressions = self.match_expressions.iter().map(|Expression { key, operator, values }| {
            let values = values.join(",");
            match operator {
                Operator::In => format!("{key} in ({values})"),
                Operator::NotIn => format!("{key} notin ({values})"),
                Operator::Exists => key.clone(),
                Operator::DoesNotExist => format!("!{key}"),
            }
        });
        f.write_str(&labels.chain(expressions).collect::<Vec<_>>().join(","))
    }
}

fn require_name(name: &str) -> Result<(), KubectlError> {
    let error = || KubectlError::Failed("this cannot be the name of an object in Kubernetes".to_owned());
    if is_name(name) { Ok(()) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_matches_pods_that_are_gone_by_their_labels() {
        let selector = json!({
            "matchLabels": { "app": "web" },
            "matchExpressions": [
                { "key": "tier", "operator": "In", "values": ["front", "edge"] },
                { "key": "canary", "operator": "DoesNotExist" },
            ],
        });
        let filter: PodFilter = serde_json::from_value(selector).unwrap();
        let filter = PodFilter { namespace: "shop".into(), ..filter };
        assert_eq!(filter.to_string(), "app=web,tier in (front,edge),!canary");
        let pod = |namespace: &str, labels: &[(&str, &str)]| PodRef {
            namespace: namespace.into(),
            name: "web-1".into(),
            uid: "u".into(),
            labels: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        };
        let edge = [("app", "web"), ("tier", "edge")];
        assert!(filter.matches(&pod("shop", &edge)) && !filter.matches(&pod("other", &edge)));
        assert!(!filter.matches(&pod("shop", &[("app", "web"), ("tier", "back")])));
        assert!(!filter.matches(&pod("shop", &[&edge[..], &[("canary", "")]].concat())));
    }
}
