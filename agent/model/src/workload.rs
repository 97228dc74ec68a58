//! The controller of a pod, inferred from the labels that Kubernetes' controllers set and from how they build names.
//!
//! The runtime has no owner references, and a node needs no API server for this. Labels are the pod's author's to choose, so
//! a name is inferred only if the pod's own name was built from it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::PodRef;

/// The characters of a generated name's suffix (Kubernetes, `k8s.io/apimachinery/pkg/util/rand`).
const SUFFIX_CHARACTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// What is kept of a generated name in front of its suffix (`k8s.io/apiserver/pkg/storage/names`).
const MAX_GENERATED_BASE: usize = 63 - SUFFIX_LENGTH;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WorkloadKind {
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    Job,
    CronJob,
}

impl WorkloadKind {
    /// The kind's name in Kubernetes.
    pub fn as_str(self) -> &'static str {
        match self {
            WorkloadKind::Deployment => "Deployment",
            WorkloadKind::ReplicaSet => "ReplicaSet",
            WorkloadKind::StatefulSet => "StatefulSet",
            WorkloadKind::DaemonSet => "DaemonSet",
            WorkloadKind::Job => "Job",
            WorkloadKind::CronJob => "CronJob",
        }
    }

    /// The short name that kubectl takes and podopsy prints, as `deploy` in `deploy/web`.
    pub fn short_name(self) -> &'static str {
        match self {
            WorkloadKind::Deployment => "deploy",
            WorkloadKind::ReplicaSet => "rs",
            WorkloadKind::StatefulSet => "sts",
            WorkloadKind::DaemonSet => "ds",
            WorkloadKind::Job => "job",
            WorkloadKind::CronJob => "cronjob",
        }
    }

    /// The kind that kubectl calls so: `deploy`, `deployment` or `deployments`.
    pub fn from_name(name: &str) -> Option<WorkloadKind> {
        Some(match name {
            "deploy" | "deployment" | "deployments" => WorkloadKind::Deployment,
            "rs" | "replicaset" | "replicasets" => WorkloadKind::ReplicaSet,
            "sts" | "statefulset" | "statefulsets" => WorkloadKind::StatefulSet,
            "ds" | "daemonset" | "daemonsets" => WorkloadKind::DaemonSet,
            "job" | "jobs" => WorkloadKind::Job,
            "cj" | "cronjob" | "cronjobs" => WorkloadKind::CronJob,
            _ => return None,
        })
    }
}

/// A controller of pods, in the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub kind: WorkloadKind,
    pub name: String,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// The pod's controllers, the outermost first: `Deployment orders`, `ReplicaSet orders-7d9c5b6f4`. Empty if the pod has none
/// or if labels and name do not agree.
pub fn workloads(pod: &PodRef) -> Vec<Workload> {
    let label = |key: &str| pod.labels.get(key).map(String::as_str);
    if let Some(hash) = label("pod-template-hash") {
        return of_deployment(&pod.name, hash).unwrap_or_default();
    }
    if let Some(job) = label("batch.kubernetes.io/job-name").or_else(|| label("job-name")) {
        return of_job(&pod.name, job);
    }
    if label("controller-revision-hash").is_none() {
        return Vec::new();
    }
    if label("statefulset.kubernetes.io/pod-name") == Some(&pod.name) {
        return of_stateful_set(&pod.name).into_iter().collect();
    }
    let daemon_set = label("pod-template-generation").and(generated_from(&pod.name));
    daemon_set.map(|name| workload(WorkloadKind::DaemonSet, name)).into_iter().collect()
}

fn workload(kind: WorkloadKind, name: &str) -> Workload {
    Workload { kind, name: name.to_owned() }
}

/// `<deployment>-<hash>-<suffix>`.
fn of_deployment(pod: &str, hash: &str) -> Option<Vec<Workload>> {
    let replica_set = generated_from(pod)?;
    let deployment = replica_set.strip_suffix(hash)?.strip_suffix('-')?;
    let is_named = !deployment.is_empty() && !hash.is_empty();
    is_named.then(|| {
        vec![workload(WorkloadKind::Deployment, deployment), workload(WorkloadKind::ReplicaSet, replica_set)]
    })
}

/// `<job>-<suffix>`, or `<job>-<index>-<suffix>` of an indexed Job. The part that is left of a long name is the Job's.
fn of_job(pod: &str, job: &str) -> Vec<Workload> {
    let is_own = generated_prefix(pod).is_some_and(|prefix| {
        let indexed = prefix.strip_prefix(job).and_then(|rest| rest.strip_prefix('-'));
        prefix == job
            || indexed.is_some_and(|index| !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()))
            || (is_cut(prefix) && job.starts_with(prefix))
    });
    if !is_own || job.is_empty() {
        return Vec::new();
    }
    let cron_job = cron_job_of(job).map(|name| workload(WorkloadKind::CronJob, name));
    cron_job.into_iter().chain([workload(WorkloadKind::Job, job)]).collect()
}

/// A CronJob's Jobs end in the minutes since 1970 at which they were due: eight digits until 2160 (before Kubernetes 1.21: ten, in
/// seconds).
fn cron_job_of(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    let is_time = matches!(time.len(), 8 | 10) && time.bytes().all(|byte| byte.is_ascii_digit());
    (is_time && !name.is_empty()).then_some(name)
}

/// `<set>-<ordinal>`.
fn of_stateful_set(pod: &str) -> Option<Workload> {
    let (set, ordinal) = pod.rsplit_once('-')?;
    let is_ordinal = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
    (is_ordinal && !set.is_empty()).then(|| workload(WorkloadKind::StatefulSet, set))
}

/// The whole name that a pod's name was generated from; none if it was cut for its length.
fn generated_from(pod: &str) -> Option<&str> {
    generated_prefix(pod).filter(|prefix| !is_cut(prefix))
}

/// What stands in front of the generated suffix.
fn generated_prefix(pod: &str) -> Option<&str> {
    let (base, suffix) = pod.split_at_checked(pod.len().checked_sub(SUFFIX_LENGTH)?)?;
    if !suffix.bytes().all(|byte| SUFFIX_CHARACTERS.contains(&byte)) {
        return None;
    }
    // A cut name may have lost its hyphen.
    let prefix = base.strip_suffix('-').or_else(|| is_cut(base).then_some(base))?;
    (!prefix.is_empty()).then_some(prefix)
}

/// Whether a name that was used as a base, with or without the hyphen behind it, may be the beginning of a longer one.
fn is_cut(prefix: &str) -> bool {
    prefix.len() >= MAX_GENERATED_BASE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inferred(name: &str, labels: &[(&str, &str)]) -> String {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let pod = PodRef { namespace: "shop".into(), name: name.into(), uid: "u".into(), labels };
        workloads(&pod).iter().map(Workload::to_string).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_workload_is_inferred_from_labels_and_name() {
        let hash = ("pod-template-hash", "7d9c5b6f4");
        let revision = ("controller-revision-hash", "6f8d");
        for (name, labels, expected) in [
            ("orders-7d9c5b6f4-x2v8p", &[hash][..], "Deployment orders, ReplicaSet orders-7d9c5b6f4"),
            ("api-v2-7d9c5b6f4-x2v8p", &[hash], "Deployment api-v2, ReplicaSet api-v2-7d9c5b6f4"),
            ("agent-x2v8p", &[revision, ("pod-template-generation", "1")], "DaemonSet agent"),
            ("db-0", &[revision, ("statefulset.kubernetes.io/pod-name", "db-0")], "StatefulSet db"),
            ("report-x2v8p", &[("job-name", "report")], "Job report"),
            ("report-3-x2v8p", &[("batch.kubernetes.io/job-name", "report")], "Job report"),
            (
                "nightly-29402881-x2v8p",
                &[("job-name", "nightly-29402881")],
                "CronJob nightly, Job nightly-29402881",
            ),
            ("pod", &[("app", "pod")], ""),
        ] {
            assert_eq!(inferred(name, labels), expected, "{name}");
        }
    }

    #[test]
    fn labels_that_the_name_does_not_confirm_are_not_believed() {
        let hash = ("pod-template-hash", "7d9c5b6f4");
        let revision = ("controller-revision-hash", "6f8d");
        for (name, labels) in [
            ("mine", &[hash][..]),
            ("orders-7d9c5b6f4-a1e0u", &[hash]),
            ("orders-other-x2v8p", &[hash]),
            ("-7d9c5b6f4-x2v8p", &[hash]),
            ("orders-x2v8p", &[("pod-template-hash", "")]),
            ("mine-x2v8p", &[("job-name", "payments")]),
            ("payments-x-x2v8p", &[("job-name", "payments")]),
            ("db-0", &[revision, ("statefulset.kubernetes.io/pod-name", "db-1")]),
            ("db", &[revision, ("statefulset.kubernetes.io/pod-name", "db")]),
            ("agent-x2v8p", &[revision]),
            ("ää-é", &[hash]),
        ] {
            assert_eq!(inferred(name, labels), "", "{name} {labels:?}");
        }
    }

    #[test]
    fn of_a_name_that_was_cut_nothing_is_inferred_but_what_a_label_has() {
        let long = "a".repeat(60);
        let cut = |name: &str| format!("{}x2v8p", &name[..MAX_GENERATED_BASE]);
        let set = format!("{long}-7d9c5b6f4-");
        assert_eq!(inferred(&cut(&set), &[("pod-template-hash", "7d9c5b6f4")]), "");
        let job = format!("{long}-job");
        assert_eq!(inferred(&cut(&format!("{job}-")), &[("job-name", &job)]), format!("Job {job}"));
    }
}
