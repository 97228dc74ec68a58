//! `podopsy profile --since`: merges the profiles of a target that the agent has stored.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use podopsy_client::{AgentClient, ClientError, QueryParameters};
use podopsy_model::profile::{Profile as Sampled, Sampling};
use podopsy_model::target_match::find_pods;
use podopsy_model::{Owner, PodCandidate, PodRef, Target, TargetMatchError};
use podopsy_pods::PodDetails;
use podopsy_profiles::import;
use podopsy_store::ProfileFacts;
use serde::Deserialize;

use crate::args::ProfileArgs;
use crate::context::Context;
use crate::evidence::CpuFacts;
use crate::exit::{CommandOutcome, Refusal};
use crate::history;
use crate::render::{losses, top, units};
use crate::selection::{OwnerScope, Selection};
use crate::terminal::note;
use crate::{output, past};

/// Profiles per page of the list.
const PAGE_SIZE: &str = "1000";

pub async fn run(context: &Context, args: &ProfileArgs, since: Duration) -> anyhow::Result<CommandOutcome> {
    let pending = output::prepare(args.outputs()?)?;
    let is_to_stdout = pending.has_stdout();
    let agent = history::require_agent(&args.history).await?;
    let from = history::ago(since);
    let selection = Selection::new(&args.targets, &args.pods)?;
    let mut query =
        if args.all { Vec::new() } else { target_query(context, &agent, &selection, from).await? };
    query.push(("from", from.to_string()));
    let totals = sum_profiles(&agent, &query).await?;
    let shown = if args.all { "the whole node".to_owned() } else { selection.describe() };
    if totals.profiles == 0 {
        note(&format!(
            "the agent has no profile of {shown} since {}: either it runs with --profile-hz 0, or the target used no CPU",
            units::date(from)
        ));
        return Ok(CommandOutcome::NothingFound);
    }
    let (_, packed) = agent.get("/api/v1/profiles/merged", &query).await?;
    let read = import::pprof::read(&*packed, Some("samples")).context("the agent's profile")?;
    let facts = &totals.facts;
    let sampling = Sampling::Cpu { frequency_hz: facts.frequency_hz };
    let begin = totals.begin.unwrap_or(from);
    let base = Sampled::empty(begin, totals.duration(), sampling, &context.node());
    let profile = read.to_profile(Sampled { losses: facts.lost.clone(), ..base });
    note(&format!(
        "{} at {} Hz of {shown}, kept by the agent in {}; on the node {}",
        units::plural(profile.total(), "sample"),
        facts.frequency_hz,
        units::plural(totals.profiles, "profile"),
        losses(&facts.lost)
    ));
    if facts.user_stacks > 0 {
        let share = facts.complete as f64 * 100.0 / facts.user_stacks as f64;
        note(&format!("user stacks complete: {} of {} ({share:.2} %)", facts.complete, facts.user_stacks));
    }
    let written = output::report(pending.finish_sent(&profile, &packed));
    if !is_to_stdout {
        top::print(&mut io::stdout().lock(), context.stdout, &profile, args.top, args.top_format())?;
    }
    history::note_gaps(&agent, from).await;
    written.map(|()| CommandOutcome::Success)
}

/// The sum of the profiles of the selection in a time, as pprof. None: the agent has none.
pub async fn merged(
    context: &Context,
    agent: &AgentClient,
    selection: &Selection,
    (from, until): (Timestamp, Timestamp),
) -> anyhow::Result<Option<(CpuFacts, Vec<u8>)>> {
    let mut query = target_query(context, agent, selection, from).await?;
    query.extend([("from", from.to_string()), ("until", until.to_string())]);
    let totals = sum_profiles(agent, &query).await?;
    if totals.profiles == 0 {
        return Ok(None);
    }
    let (_, packed) = agent.get("/api/v1/profiles/merged", &query).await?;
    let ProfileFacts { frequency_hz, samples, user_stacks, complete, lost, .. } = totals.facts;
    let (from, until) = (totals.begin.unwrap_or(from), totals.end.unwrap_or(until));
    let facts = CpuFacts { from, until, frequency_hz, samples, user_stacks, complete, lost };
    Ok(Some((facts, packed.to_vec())))
}

/// The query parameters for the one pod or container that the selection means. The agent stores profiles by container.
async fn target_query(
    context: &Context,
    agent: &AgentClient,
    selection: &Selection,
    from: Timestamp,
) -> anyhow::Result<QueryParameters> {
    let [target] = &selection.targets[..] else {
        let reason = "profile --since takes one TARGET: profiles of several pods are not merged";
        return Err(Refusal(reason.to_owned()).into());
    };
    if let Target::Pid(pid) = target {
        let owner = context.pods().await?.owner_of_pid(*pid).await?;
        let (Some(pod), Some(container)) = (owner.pod, owner.container) else {
            bail!("pid:{pid} is in no container: the agent stores profiles by container")
        };
        return Ok(history::of_pod(&pod.namespace, &pod.name, Some(&container.name)));
    }
    let candidates = profiled_pods(agent, from).await?;
    let listed = past::pods(agent).await;
    let scope = match (OwnerScope::in_history(target, &candidates, &listed), target) {
        // The agent is asked for exactly this pod: the list above has the newest profiles only.
        (Err(TargetMatchError::NotFound(_)), Target::Pod { namespace: Some(namespace), pod, container }) => {
            return Ok(history::of_pod(namespace, pod, container.as_deref()));
        }
        (scope, _) => scope?,
    };
    of_scope(target, scope, &listed)
}

fn of_scope(target: &Target, scope: OwnerScope, listed: &[PodDetails]) -> anyhow::Result<QueryParameters> {
    match scope {
        OwnerScope::PodName { namespace, pod, container } => {
            Ok(history::of_pod(&namespace, &pod, container.as_deref()))
        }
        OwnerScope::Workload { namespace, .. } => {
            let pods: Vec<PodCandidate<'_>> = listed.iter().map(PodDetails::candidate).collect();
            match find_pods(target, &pods)?[..] {
                [pod] => Ok(history::of_pod(&namespace, &pod.name, None)),
                _ => Err(Refusal(format!("{target} has several pods: name one of them")).into()),
            }
        }
        _ => {
            let reason =
                "the agent stores profiles by container: give a pod name, or namespace/pod/container";
            Err(Refusal(reason.to_owned()).into())
        }
    }
}

/// The pods that have profiles since `from`. The list has their names only.
async fn profiled_pods(agent: &AgentClient, from: Timestamp) -> Result<Vec<Owner>, ClientError> {
    #[derive(Deserialize)]
    struct ProfilePage {
        profiles: Vec<ProfileOwner>,
    }
    #[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
    struct ProfileOwner {
        namespace: Option<String>,
        pod: Option<String>,
    }
    let query =
        vec![("from", from.to_string()), ("order", "newest".to_owned()), ("limit", PAGE_SIZE.to_owned())];
    let page: ProfilePage = agent.json("/api/v1/profiles", &query).await?;
    let names: BTreeSet<ProfileOwner> = page.profiles.into_iter().collect();
    let owner = |names: ProfileOwner| {
        let (namespace, name) = (names.namespace?, names.pod?);
        let pod = PodRef { namespace, uid: String::new(), name, labels: Default::default() };
        Some(Owner { pod: Some(pod), ..Owner::default() })
    };
    Ok(names.into_iter().filter_map(owner).collect())
}

/// The sum of the profiles of a time window.
#[derive(Default)]
struct ProfileTotals {
    profiles: u64,
    begin: Option<Timestamp>,
    end: Option<Timestamp>,
    facts: ProfileFacts,
}

impl ProfileTotals {
    fn duration(&self) -> Duration {
        let span = self.begin.zip(self.end).map(|(begin, end)| end.duration_since(begin));
        span.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default()
    }
}

async fn sum_profiles(agent: &AgentClient, query: &QueryParameters) -> Result<ProfileTotals, ClientError> {
    #[derive(Deserialize)]
    struct ProfilePage {
        profiles: Vec<ProfileEntry>,
        next: Option<String>,
    }
    #[derive(Deserialize)]
    struct ProfileEntry {
        from: Timestamp,
        until: Timestamp,
        facts: Option<ProfileFacts>,
    }
    let mut sum = ProfileTotals::default();
    let mut cursor = None;
    // Losses are counted per node and repeated in each container's profile: count each minute once.
    let mut minutes = BTreeSet::new();
    loop {
        let mut page_query = query.clone();
        page_query.push(("limit", PAGE_SIZE.to_owned()));
        page_query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: ProfilePage = agent.json("/api/v1/profiles", &page_query).await?;
        for profile in page.profiles {
            sum.profiles += 1;
            sum.begin = Some(sum.begin.map_or(profile.from, |begin| begin.min(profile.from)));
            sum.end = sum.end.max(Some(profile.until));
            let Some(facts) = profile.facts else { continue };
            sum.facts.add(&facts);
            if minutes.insert(profile.from) {
                for (name, count) in facts.lost {
                    *sum.facts.lost.entry(name).or_default() += count;
                }
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(sum);
        }
    }
}
