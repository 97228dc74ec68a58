//! Where answers come from: the history of this node's agent, the store that an agent left, or a bundle.

use jiff::{SignedDuration, Timestamp};
use podopsy_client::{AgentClient, EventList, HistoryGap};
use podopsy_model::target_match::find_pods;
use podopsy_model::{Event, Losses, PodCandidate, PodRef, Target, TargetMatchError};
use podopsy_pods::PodDetails;
use serde::Serialize;

use super::answer::Origin;
use crate::args::{HistoryArgs, PodFilterArgs};
use crate::cmd::{kept, oom};
use crate::context::Context;
use crate::evidence::{CpuFacts, PodEvidence, gather};
use crate::exit::{NotFound, Refusal};
use crate::history;
use crate::past::{self, EVENTS_READ_MAX};
use crate::render::units;
use crate::selection::Selection;
use crate::timeline::Sources;

/// What the server was started for.
pub enum Source {
    Node(HistoryArgs),
    /// The file, and what it holds.
    Bundle(String, Box<PodEvidence>),
}

#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    Agent,
    /// No agent answers, and this is the store of one that ran.
    Store,
    Bundle,
}

/// The pods and the time that a call is about.
#[derive(Clone, Debug)]
pub struct Scope {
    pub selection: Selection,
    pub from: Timestamp,
    pub until: Timestamp,
}

/// What was recorded of a scope.
#[derive(Debug)]
pub struct Found {
    pub origin: Origin,
    pub from: Timestamp,
    pub until: Timestamp,
    pub sources: Sources,
    pub gaps: Vec<HistoryGap>,
    pub unreadable: u64,
    /// What is missing.
    pub notes: Vec<String>,
    /// Other losses than those of the newest event, and their time.
    pub losses: Option<(Losses, Timestamp)>,
}

impl Source {
    /// The last `since`. A bundle's time ends with the bundle.
    pub fn scope(
        &self,
        target: Option<Target>,
        namespace: Option<String>,
        since: SignedDuration,
    ) -> Result<Scope, Refusal> {
        if let Some(Target::Pid(_)) = target {
            let reason = "a process is looked up while it runs: name its pod (podopsy inspect shows it)";
            return Err(Refusal(reason.to_owned()));
        }
        let pods = PodFilterArgs { namespace, ..PodFilterArgs::default() };
        let selection = Selection::new(&Vec::from_iter(target), &pods)?;
        let (begin, until) = match self {
            Source::Node(_) => (Timestamp::UNIX_EPOCH, Timestamp::now()),
            Source::Bundle(_, evidence) => (evidence.manifest.from, evidence.manifest.until),
        };
        let from = until.checked_sub(since).unwrap_or(begin).max(begin);
        Ok(Scope { selection, from, until })
    }

    /// All records of the scope: events, memory, incidents, and the pods that exist.
    pub async fn records(&self, context: &Context, scope: &Scope) -> anyhow::Result<Found> {
        let args = match self {
            Source::Node(args) => args,
            Source::Bundle(file, evidence) => return of_bundle(context, file, evidence, scope).await,
        };
        let agent = history::require_agent(args).await?;
        let read = gather::records(context, &agent, &scope.selection, scope.from).await?;
        let mut found = Found::new(scope, agent_origin(context, &agent));
        found.sources = read.sources;
        found.read_gaps(&agent).await;
        if read.more {
            found.notes.push(format!("Only the newest {EVENTS_READ_MAX} events of the node were read."));
        }
        Ok(found)
    }

    /// OOM incidents and SIGKILLs, oldest first.
    pub async fn kills(&self, context: &Context, scope: &Scope) -> anyhow::Result<Found> {
        let mut found = match self {
            Source::Node(args) => kills_of_node(context, args, scope).await?,
            Source::Bundle(file, evidence) => of_bundle(context, file, evidence, scope).await?,
        };
        found.sources.events.retain(|event| event.kept_id().is_some());
        Ok(found)
    }

    /// The pods that exist, and their kills.
    pub async fn pods_and_kills(&self, context: &Context, scope: &Scope) -> anyhow::Result<Found> {
        let Source::Node(args) = self else { return self.kills(context, scope).await };
        let agent = history::require_agent(args).await?;
        let listed = selected(past::list_pods(&agent).await?, &scope.selection)?;
        let everything = Scope { selection: scope.selection.without_targets(), ..scope.clone() };
        let mut found = kills_of_node(context, args, &everything).await?;
        found.sources.pods = listed;
        Ok(found)
    }

    /// The sum of the stored CPU profiles as pprof, and its counts.
    pub async fn profile(
        &self,
        context: &Context,
        scope: &Scope,
    ) -> anyhow::Result<(Found, CpuFacts, Vec<u8>)> {
        let (mut found, profile) = match self {
            Source::Node(args) => {
                let agent = history::require_agent(args).await?;
                let time = (scope.from, scope.until);
                let profile = kept::merged(context, &agent, &scope.selection, time).await?;
                let mut found = Found::new(scope, agent_origin(context, &agent));
                found.read_gaps(&agent).await;
                (found, profile)
            }
            Source::Bundle(file, evidence) => {
                let found = of_bundle(context, file, evidence, scope).await?;
                (found, evidence.manifest.cpu.clone().zip(evidence.cpu.clone()))
            }
        };
        let Some((facts, packed)) = profile else {
            let (pods, from) = (scope.selection.describe(), units::date(scope.from));
            let reason = format!(
                "there is no CPU profile of {pods} since {from}: either the agent runs with --profile-hz 0, or the target \
                 used no CPU"
            );
            return Err(NotFound(reason).into());
        };
        found.losses = Some((facts.lost.clone(), facts.until));
        Ok((found, facts, packed))
    }
}

impl Found {
    fn new(scope: &Scope, origin: Origin) -> Found {
        Found {
            origin,
            from: scope.from,
            until: scope.until,
            sources: Sources::default(),
            gaps: Vec::new(),
            unreadable: 0,
            notes: Vec::new(),
            losses: None,
        }
    }

    /// Without the gaps, an empty answer would look like a quiet time.
    async fn read_gaps(&mut self, agent: &AgentClient) {
        match agent.gaps(self.from).await {
            Ok(gaps) => self.gaps = gaps,
            Err(error) => self.notes.push(format!("The gaps of the history are not known: {error}.")),
        }
    }
}

fn agent_origin(context: &Context, agent: &AgentClient) -> Origin {
    Origin { kind: SourceKind::Agent, name: agent.name(), node: context.node() }
}

async fn of_bundle(
    context: &Context,
    file: &str,
    evidence: &PodEvidence,
    scope: &Scope,
) -> anyhow::Result<Found> {
    let manifest = &evidence.manifest;
    let origin = Origin { kind: SourceKind::Bundle, name: file.to_owned(), node: manifest.node.clone() };
    let mut found = Found::new(scope, origin);
    found.sources = evidence.sources.clone();
    gather::select(context, &mut found.sources, &scope.selection, scope.from).await?;
    found.sources.events.retain(|event| event.time >= scope.from);
    found.gaps = evidence.gaps.iter().filter(|gap| gap.until >= scope.from).cloned().collect();
    found.notes = manifest.notes.clone();
    Ok(found)
}

/// The pods that a selection means.
fn selected(mut listed: Vec<PodDetails>, selection: &Selection) -> Result<Vec<PodDetails>, TargetMatchError> {
    let candidates: Vec<PodCandidate<'_>> = listed.iter().map(PodDetails::candidate).collect();
    let mut wanted: Vec<PodRef> = Vec::new();
    for target in &selection.targets {
        wanted.extend(find_pods(target, &candidates)?.into_iter().cloned());
    }
    let is_target = |pod: &PodRef| selection.targets.is_empty() || wanted.contains(pod);
    listed.retain(|pod| is_target(&pod.pod) && selection.has_pod(Some(&pod.pod)));
    Ok(listed)
}

async fn kills_of_node(context: &Context, args: &HistoryArgs, scope: &Scope) -> anyhow::Result<Found> {
    let Some(agent) = history::agent(args).await? else { return kills_of_store(context, args, scope).await };
    let mut query = oom::kinds();
    query.push(("from", scope.from.to_string()));
    let kept = agent.events(&query, oom::MOST).await?;
    let mut found = Found::new(scope, agent_origin(context, &agent));
    found.read_gaps(&agent).await;
    found.take_kills(context, scope, kept, &past::pods(&agent).await).await?;
    Ok(found)
}

async fn kills_of_store(context: &Context, args: &HistoryArgs, scope: &Scope) -> anyhow::Result<Found> {
    let (dir, from) = (args.state_dir.clone(), scope.from);
    let left =
        tokio::task::spawn_blocking(move || history::left(&dir, &oom::KINDS, oom::MOST, from)).await??;
    let Some((kept, gaps)) = left else { return Err(history::no_agent(args)) };
    let name = podopsy_model::text::escape(&args.state_dir.display().to_string());
    let origin = Origin { kind: SourceKind::Store, name, node: context.node() };
    let mut found = Found::new(scope, origin);
    found.gaps = gaps;
    found.notes.push("No agent runs now: what happened since the last record is not known.".to_owned());
    found.take_kills(context, scope, kept, &[]).await?;
    Ok(found)
}

impl Found {
    /// Keeps the kills of the scope.
    async fn take_kills(
        &mut self,
        context: &Context,
        scope: &Scope,
        kept: EventList,
        listed: &[PodDetails],
    ) -> anyhow::Result<()> {
        self.unreadable = kept.unreadable;
        if kept.more {
            self.notes.push(format!("Only the newest {} kills of the node were read.", oom::MOST));
        }
        let owners = past::owners_of(&kept.events);
        let scopes = past::scopes(context, &scope.selection, &owners, listed, scope.from).await?;
        let is_wanted = |event: &Event| {
            event.time >= scope.from
                && scope.selection.has_pod(event.pod.as_ref())
                && (scopes.is_empty() || scopes.iter().any(|scope| scope.has_event(event)))
        };
        self.sources.events = kept.events.into_iter().filter(is_wanted).collect();
        Ok(())
    }
}
