//! The agents of a cluster as the source of a command: the scope of the question, progress, and what to report about nodes
//! that did not answer.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use podopsy_client::{EventList, QueryParameters};
use podopsy_fleet::owners::LivePod;
use podopsy_fleet::{
    Agent, Answers, EventQuery, Fleet, Kubectl, KubectlError, Limits, NodeFailure, PodFilter,
};
use podopsy_model::target_match::find_pods;
use podopsy_model::{Owner, PodCandidate, PodRef, Target, TargetMatchError, WorkloadKind, text, workloads};

use crate::args::FleetOptions;
use crate::exit::{NotFound, NotPermitted, Refusal};
use crate::history;
use crate::render::units;
use crate::selector::Selector;
use crate::terminal::{Terminal, note};

/// Progress is shown only if the agents take longer than this.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
/// Nodes that are named in one line.
const NODES_NAMED: usize = 8;

#[derive(Debug)]
pub struct ClusterAgents {
    pub fleet: Fleet,
    /// None: the agents are reached by sockets in a folder.
    kubectl: Option<Kubectl>,
    /// None: all namespaces.
    pub namespace: Option<String>,
    pub selector: Option<Selector>,
    is_incomplete: AtomicBool,
    /// How many agents answered the last question.
    answered: AtomicUsize,
}

/// TARGET, as the cluster knows it.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterTarget {
    All,
    Pod {
        namespace: String,
        pod: String,
        container: Option<String>,
    },
    Owner {
        filter: PodFilter,
        name: String,
    },
    /// What has no selector: its pods are inferred from labels and names.
    Inferred {
        namespace: String,
        kind: WorkloadKind,
        name: String,
    },
    /// Only a node's own podopsy can look it up.
    OfNode(Target),
}

impl ClusterAgents {
    pub async fn find(options: FleetOptions) -> anyhow::Result<ClusterAgents> {
        if options.all_namespaces && options.namespace.is_some() {
            return Err(Refusal("-A and -n exclude each other: leave one of them out".to_owned()).into());
        }
        let limits = Limits { deadline: options.timeout, ..Limits::default() };
        let mut namespace = options.namespace;
        let (mut fleet, kubectl) = match &options.sockets {
            Some(folder) => {
                let fleet = Fleet::of_sockets(folder, limits);
                (fleet.with_context(|| format!("--sockets {}", folder.display()))?, None)
            }
            None => {
                let kubectl = Kubectl { context: options.context, kubeconfig: options.kubeconfig };
                if namespace.is_none() && !options.all_namespaces {
                    namespace = Some(kubectl.namespace().await.map_err(refused)?);
                }
                let found = Fleet::find(kubectl.clone(), &options.agent_namespace, limits).await;
                (found.map_err(refused)?, Some(kubectl))
            }
        };
        if fleet.agents.is_empty() && fleet.missing.is_empty() {
            bail!(
                "no agent is in the namespace {}: install the DaemonSet (kubectl apply -k manifests/base), or name \
                 the agents' namespace with --agent-namespace",
                text::escape(&options.agent_namespace)
            );
        }
        if !options.nodes.is_empty() {
            fleet.keep_nodes(&options.nodes);
        }
        let answered = AtomicUsize::new(fleet.agents.len());
        let (selector, is_incomplete) = (options.selector, AtomicBool::new(false));
        Ok(ClusterAgents { fleet, kubectl, namespace, selector, is_incomplete, answered })
    }

    /// Whether a node did not answer.
    pub fn is_incomplete(&self) -> bool {
        self.is_incomplete.load(Relaxed)
    }

    /// Whether rows have to name their node.
    pub fn has_several_nodes(&self) -> bool {
        self.fleet.agents.len() + self.fleet.missing.len() > 1
    }

    /// Those that answered: `the agents of 3 nodes`.
    pub fn describe(&self) -> String {
        match (&self.fleet.agents[..], self.answered.load(Relaxed)) {
            ([one], _) => format!("the agent of {}", one.node),
            (_, 1) => "the agent of 1 node".to_owned(),
            (_, answered) => format!("the agents of {answered} nodes"),
        }
    }

    /// Waits for the agents. A bar shows how many have answered, on a terminal and if it takes long.
    pub async fn wait<T>(&self, answers: impl Future<Output = T>) -> T {
        let mut answers = std::pin::pin!(answers);
        let early = tokio::time::timeout(PROGRESS_AFTER, &mut answers).await;
        if let Ok(answers) = early {
            return answers;
        }
        if !Terminal::stderr().is_terminal() {
            return answers.await;
        }
        let all = self.fleet.agents.len() as u64;
        let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("asking the agents [{bar:30}] {pos} of {len}, {elapsed}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        loop {
            bar.set_position(self.fleet.asked.load(Relaxed) as u64);
            if let Ok(answers) = tokio::time::timeout(Duration::from_millis(100), &mut answers).await {
                bar.finish_and_clear();
                return answers;
            }
        }
    }

    /// The newest events of the targets; without targets, of the pods that `-n` and `-l` select.
    pub async fn events(
        &self,
        targets: Vec<ClusterTarget>,
        mut query: EventQuery,
    ) -> anyhow::Result<EventList> {
        match (&targets[..], &self.namespace) {
            ([one], _) => query.parameters.extend(one.query()),
            ([], Some(namespace)) => query.parameters.push(("namespace", namespace.clone())),
            _ => {}
        }
        let matches = query.matches;
        let (namespace, selector) = (self.namespace.clone(), self.selector.clone());
        let is_wanted = move |owner: &Owner| {
            let pod = owner.pod.as_ref();
            let is_target = match &targets[..] {
                [] => namespace
                    .as_ref()
                    .is_none_or(|namespace| pod.is_some_and(|pod| pod.namespace == *namespace)),
                targets => targets.iter().any(|target| target.matches(owner)),
            };
            let has_labels = |selector: &Selector| pod.is_some_and(|pod| selector.matches(&pod.labels));
            is_target && selector.as_ref().is_none_or(has_labels) && matches(owner)
        };
        self.events_of_all(EventQuery { matches: Arc::new(is_wanted), ..query }).await
    }

    /// The newest events of all agents, oldest first. Reports gaps, versions and nodes that did not answer on stderr.
    pub async fn events_of_all(&self, query: EventQuery) -> anyhow::Result<EventList> {
        let from = query.from;
        let found = self.wait(self.fleet.events(query)).await;
        self.note_failures(&found.failures, found.answered.len())?;
        note_versions(found.answered.iter().map(|(agent, version)| (agent, version.as_str())));
        history::print_gaps_of_nodes(&found.gaps, from);
        Ok(found.list)
    }

    /// Names the nodes that did not answer. An error: no node answered because RBAC does not permit it.
    pub fn note_failures(&self, failures: &[NodeFailure], answered: usize) -> anyhow::Result<()> {
        self.answered.store(answered, Relaxed);
        let Some(first) = failures.first() else { return Ok(()) };
        if answered == 0 && failures.iter().all(|failure| failure.is_forbidden) {
            return Err(refused(KubectlError::Forbidden(first.reason.clone())));
        }
        self.is_incomplete.store(true, Relaxed);
        for line in describe_failures(failures) {
            note(&line);
        }
        if answered == 0 {
            bail!("no agent answered");
        }
        Ok(())
    }

    /// Reports what the answers lack on stderr, and hands them over with their agents.
    pub fn take<T>(&self, answers: Answers<T>) -> anyhow::Result<Vec<(Agent, T)>> {
        self.note_failures(&answers.failures, answers.answers.len())?;
        note_versions(answers.answers.iter().map(|answer| (&answer.agent, answer.version.as_str())));
        Ok(answers.answers.into_iter().map(|answer| (answer.agent, answer.value)).collect())
    }

    /// Asks the API server what each TARGET is. Without a namespace, a pod is in that of `-n` or of the context.
    pub async fn resolve(&self, targets: &[Target]) -> anyhow::Result<Vec<ClusterTarget>> {
        let mut resolved = Vec::new();
        for target in targets {
            resolved.push(self.resolve_one(target).await?);
        }
        Ok(resolved)
    }

    async fn resolve_one(&self, target: &Target) -> anyhow::Result<ClusterTarget> {
        let place = |own: &Option<String>| own.clone().or_else(|| self.namespace.clone());
        let (namespace, pod, container) = match target {
            Target::Workload { namespace, kind, name } => {
                return self.resolve_workload(place(namespace).as_deref(), *kind, name).await;
            }
            Target::All => return Ok(ClusterTarget::All),
            Target::Pid(_) | Target::Cgroup(_) => return Ok(ClusterTarget::OfNode(target.clone())),
            Target::Name(name) => (place(&None), name, None),
            Target::Pod { namespace, pod, container } => (place(namespace), pod, container.clone()),
        };
        let Some(namespace) = namespace else { return Ok(ClusterTarget::OfNode(target.clone())) };
        let pod = self.complete_name(&namespace, pod).await?;
        Ok(ClusterTarget::Pod { namespace, pod, container })
    }

    async fn resolve_workload(
        &self,
        namespace: Option<&str>,
        kind: WorkloadKind,
        name: &str,
    ) -> anyhow::Result<ClusterTarget> {
        let refusal = || Refusal(format!("{}: name its namespace with -n", text::escape(name)));
        let namespace = namespace.ok_or_else(refusal)?;
        // Only the Jobs of a CronJob have selectors.
        if kind == WorkloadKind::CronJob {
            return Ok(ClusterTarget::Inferred {
                namespace: namespace.to_owned(),
                kind,
                name: name.to_owned(),
            });
        }
        let filter = PodFilter::of_owner(self.kubectl()?, namespace, kind, name).await.map_err(refused)?;
        Ok(ClusterTarget::Owner { filter, name: format!("{}/{name}", kind.short_name()) })
    }

    /// The name of the only pod whose name begins so. The name itself, if a pod has it or if none begins so: it may be gone.
    async fn complete_name(&self, namespace: &str, pod: &str) -> anyhow::Result<String> {
        let Some(kubectl) = &self.kubectl else { return Ok(pod.to_owned()) };
        if !matches!(LivePod::find(kubectl, namespace, pod).await, Ok(None)) {
            return Ok(pod.to_owned());
        }
        let Ok(pods) = LivePod::list(kubectl, namespace).await else { return Ok(pod.to_owned()) };
        let candidates: Vec<PodCandidate<'_>> = pods.iter().map(candidate).collect();
        let (namespace, container) = (Some(namespace.to_owned()), None);
        let target = Target::Pod { namespace, pod: pod.to_owned(), container };
        match find_pods(&target, &candidates) {
            Ok(found) => Ok(found.first().map_or_else(|| pod.to_owned(), |found| found.name.clone())),
            Err(TargetMatchError::NotFound(_)) => Ok(pod.to_owned()),
            Err(error) => Err(error.into()),
        }
    }

    /// The agent on the node of targets that exist, and the targets as that node's podopsy knows them.
    pub async fn locate(&self, targets: &[Target]) -> anyhow::Result<(&Agent, Vec<String>)> {
        let mut located: Option<(&Agent, Vec<String>)> = None;
        for target in targets {
            let (agent, shown) = self.locate_one(target).await?;
            match &mut located {
                None => located = Some((agent, shown)),
                Some((first, all)) if first.node == agent.node => all.extend(shown),
                Some((first, _)) => {
                    return Err(Refusal(format!(
                        "{} is on {}, and what stands before it on {}: name targets of one node at a time",
                        text::escape(&target.to_string()),
                        agent.node,
                        first.node
                    ))
                    .into());
                }
            }
        }
        match located {
            Some(located) => Ok(located),
            None => Ok((self.one_agent()?, Vec::new())),
        }
    }

    async fn locate_one(&self, target: &Target) -> anyhow::Result<(&Agent, Vec<String>)> {
        match self.resolve_one(target).await? {
            ClusterTarget::Pod { namespace, pod, container } => {
                let container = container.map(|container| format!("/{container}")).unwrap_or_default();
                let shown = format!("{namespace}/{pod}{container}");
                let Some(kubectl) = &self.kubectl else { return Ok((self.one_agent()?, vec![shown])) };
                let live = LivePod::find(kubectl, &namespace, &pod).await.map_err(refused)?;
                match live {
                    Some(live) => Ok((self.agent_of(&live, &shown)?, vec![shown])),
                    None if self.fleet.agents.len() == 1 => Ok((self.one_agent()?, vec![shown])),
                    None => Err(NotFound(format!(
                        "there is no pod {}: kubectl podopsy events lists what happened to pods that are gone; \
                         with --node, its node's podopsy is asked",
                        text::escape(&shown)
                    ))
                    .into()),
                }
            }
            ClusterTarget::Owner { filter, name } => {
                let pods = filter.live_pods(self.kubectl()?).await.map_err(refused)?;
                self.locate_pods(&pods, &name)
            }
            ClusterTarget::Inferred { namespace, kind, name } => {
                let mut pods = LivePod::list(self.kubectl()?, &namespace).await.map_err(refused)?;
                pods.retain(|pod| pod.is_of(kind, &name));
                self.locate_pods(&pods, &format!("{}/{name}", kind.short_name()))
            }
            ClusterTarget::OfNode(target) => Ok((self.one_agent()?, vec![target.to_string()])),
            ClusterTarget::All => Ok((self.one_agent()?, Vec::new())),
        }
    }

    /// The pods of a controller that run on the node of the first one.
    fn locate_pods(&self, pods: &[LivePod], name: &str) -> anyhow::Result<(&Agent, Vec<String>)> {
        let running: Vec<&LivePod> = pods.iter().filter(|pod| pod.is_running).collect();
        let Some(first) = running.first() else {
            return Err(NotFound(format!("{} has no pod that runs", text::escape(name))).into());
        };
        let here = running.iter().filter(|pod| pod.host == first.host);
        let shown: Vec<String> = here.map(|pod| format!("{}/{}", pod.pod.namespace, pod.pod.name)).collect();
        if shown.len() < running.len() {
            note(&format!(
                "{} has {} that run; this is about those on {}: {}",
                text::escape(name),
                units::plural(running.len() as u64, "pod"),
                text::escape(&first.host),
                text::escape(&shown.join(", "))
            ));
        }
        Ok((self.agent_of(first, name)?, shown))
    }

    fn agent_of(&self, pod: &LivePod, shown: &str) -> anyhow::Result<&Agent> {
        if pod.host.is_empty() {
            bail!("{} is on no node yet", text::escape(shown));
        }
        let Some(agent) = self.fleet.agent_on(&pod.host) else {
            let reason = self.fleet.missing.iter().find(|failure| failure.node == pod.host);
            let reason = reason.map_or("it has no agent", |failure| &failure.reason);
            bail!(
                "{} runs on {}, which cannot be asked: {reason}",
                text::escape(shown),
                text::escape(&pod.host)
            );
        };
        Ok(agent)
    }

    fn one_agent(&self) -> anyhow::Result<&Agent> {
        let refusal = || {
            Refusal("name a pod, or one node with --node: this is done by podopsy on that node".to_owned())
        };
        match &self.fleet.agents[..] {
            [one] => Ok(one),
            _ => Err(refusal().into()),
        }
    }

    /// For calls of the API server, and of podopsy on a node.
    pub fn kubectl(&self) -> Result<&Kubectl, Refusal> {
        self.kubectl.as_ref().ok_or_else(|| Refusal("this needs kubectl: leave --sockets out".to_owned()))
    }
}

impl ClusterTarget {
    /// The conditions that agents check.
    pub fn query(&self) -> QueryParameters {
        match self {
            ClusterTarget::Pod { namespace, pod, container } => {
                history::of_pod(namespace, pod, container.as_deref())
            }
            ClusterTarget::Owner { filter, .. } => {
                let labels =
                    filter.match_labels.iter().map(|(key, value)| ("label", format!("{key}={value}")));
                [("namespace", filter.namespace.clone())].into_iter().chain(labels).collect()
            }
            ClusterTarget::Inferred { namespace, .. } => vec![("namespace", namespace.clone())],
            ClusterTarget::All | ClusterTarget::OfNode(_) => Vec::new(),
        }
    }

    /// Whether an event with this owner is meant. [`ClusterTarget::OfNode`] is for the caller to decide.
    pub fn matches(&self, owner: &Owner) -> bool {
        let is_pod = |is: &dyn Fn(&PodRef) -> bool| owner.pod.as_ref().is_some_and(is);
        match self {
            ClusterTarget::All | ClusterTarget::OfNode(_) => true,
            ClusterTarget::Owner { filter, .. } => is_pod(&|pod| filter.matches(pod)),
            ClusterTarget::Inferred { namespace, kind, name } => is_pod(&|pod| {
                pod.namespace == *namespace
                    && workloads(pod).iter().any(|owner| owner.kind == *kind && owner.name == *name)
            }),
            ClusterTarget::Pod { namespace, pod: name, container } => {
                is_pod(&|pod| pod.namespace == *namespace && pod.name == *name)
                    && container
                        .as_ref()
                        .is_none_or(|name| owner.container.as_ref().is_some_and(|one| one.name == *name))
            }
        }
    }
}

fn candidate(pod: &LivePod) -> PodCandidate<'_> {
    let note = if pod.is_running { "running" } else { "not running" };
    PodCandidate { pod: &pod.pod, note: format!("{note}, on {}", pod.host) }
}

/// An error of kubectl.
fn refused(error: KubectlError) -> anyhow::Error {
    match error {
        KubectlError::Forbidden(reason) => NotPermitted(format!(
            "your rights do not permit it: {reason} (docs/fleet.md lists the rights that this needs)"
        ))
        .into(),
        KubectlError::NotFound(reason) => NotFound(reason).into(),
        error => error.into(),
    }
}

/// One line for each reason, with the nodes that have it.
fn describe_failures(failures: &[NodeFailure]) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for failure in failures {
        by_reason.entry(&failure.reason).or_default().push(&failure.node);
    }
    let describe = |(reason, nodes): (&str, Vec<&str>)| {
        format!("no answer from {}: {}", name_nodes(&nodes), text::visible(reason))
    };
    by_reason.into_iter().map(describe).collect()
}

/// `n1, n2 and 5 more`.
fn name_nodes(nodes: &[&str]) -> String {
    let named: Vec<String> = nodes.iter().take(NODES_NAMED).map(|node| text::visible(node)).collect();
    let more = nodes.len() - named.len();
    let more = if more > 0 { format!(" and {more} more nodes") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

/// Names the agents of another version than this podopsy's.
fn note_versions<'a>(answered: impl Iterator<Item = (&'a Agent, &'a str)>) {
    let mut others: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let own = env!("CARGO_PKG_VERSION");
    for (agent, version) in answered.filter(|(_, version)| *version != own) {
        others.entry(version).or_default().push(&agent.node);
    }
    for (version, nodes) in others {
        note(&format!(
            "the agent of {} is version {version}, this is {own}: what only one of them knows is left out",
            name_nodes(&nodes)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_with_one_reason_are_one_line() {
        let mut failures: Vec<_> = (0..10).map(|n| NodeFailure::new(&format!("n{n}"), "late")).collect();
        failures.push(NodeFailure::new("x", "gone\x1b[2J"));
        assert_eq!(
            describe_failures(&failures),
            [
                "no answer from x: gone\\x1b[2J",
                "no answer from n0, n1, n2, n3, n4, n5, n6, n7 and 2 more nodes: late"
            ]
        );
    }
}
