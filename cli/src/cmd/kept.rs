//! `podopsy profile --since`: merges the profiles of a target that the agent has stored.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use podopsy_client::{AgentClient, ClientError, QueryParameters};
use podopsy_model::profile::{Profile as Sampled, Sampling};
use podopsy_model::{Target, text};
use podopsy_profiles::import;
use podopsy_store::ProfileFacts;
use serde::Deserialize;

use crate::args::ProfileArgs;
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::history;
use crate::output;
use crate::render::{losses, top, units};
use crate::terminal::note;

/// Profiles per page of the list.
const PAGE_SIZE: &str = "1000";

pub async fn run(context: &Context, args: &ProfileArgs, since: Duration) -> anyhow::Result<CommandOutcome> {
    let pending = output::prepare(args.outputs()?)?;
    let is_to_stdout = pending.has_stdout();
    let Some(agent) = history::agent(&args.history).await? else {
        bail!(
            "no agent answers at {}: start podopsy-agent with --state-dir (--socket names the socket of \
             one that runs), or sample from now on, without --since",
            args.history.state_dir.join(podopsy_client::SOCKET_NAME).display()
        );
    };
    let from = history::ago(since);
    let mut query = target_query(context, args.target()).await?;
    query.push(("from", from.to_string()));
    let totals = sum_profiles(&agent, &query).await?;
    let shown = text::escape(&args.target().to_string());
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
    let profile = read.to_profile(Sampled {
        start: totals.begin.unwrap_or(from),
        duration: totals.duration(),
        sampling: Sampling::Cpu { frequency_hz: facts.frequency_hz },
        node: context.node(),
        samples: Vec::new(),
        mappings: Vec::new(),
        losses: facts.lost.clone(),
        quality: Vec::new(),
        unwind: Default::default(),
    });
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
        top::print(&mut io::stdout().lock(), context.stdout, &profile, args.top)?;
    }
    history::note_gaps(&agent, from).await;
    written.map(|()| CommandOutcome::Success)
}

/// The query parameters for the target. The agent stores profiles by container.
async fn target_query(context: &Context, target: &Target) -> anyhow::Result<QueryParameters> {
    Ok(match target {
        Target::All => Vec::new(),
        Target::Pod { namespace, pod, container } => history::of_pod(namespace, pod, container.as_deref()),
        Target::Name(_) | Target::Pid(_) | Target::Cgroup(_) => {
            // A running process leads to its container's name; a name alone is taken as the pod's, which may be gone.
            let word = || match target {
                Target::Name(word) => Some(vec![("pod", word.clone())]),
                _ => None,
            };
            let owner = match target {
                Target::Pid(pid) => Some(context.pods().await?.owner_of_pid(*pid).await?),
                _ => None,
            };
            let container = owner.and_then(|owner| Some((owner.pod?, owner.container?)));
            match (container, word()) {
                (Some((pod, container)), _) => {
                    history::of_pod(&pod.namespace, &pod.name, Some(&container.name))
                }
                (None, Some(query)) => query,
                (None, None) => {
                    bail!(
                        "the agent stores profiles by container: give a pod name, or namespace/pod/container"
                    )
                }
            }
        }
    })
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
    let mut minutes = std::collections::BTreeSet::new();
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
