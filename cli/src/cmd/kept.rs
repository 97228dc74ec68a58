//! `podopsy profile --since`: what the agent has kept of a target's CPU time, added up.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use podopsy_client::{AgentClient, ClientError, QueryParameters};
use podopsy_model::profile::{Profile as Sampled, Sampling};
use podopsy_model::{Target, text};
use podopsy_profiles::export::Format;
use podopsy_profiles::import;
use podopsy_store::ProfileFacts;
use serde::Deserialize;

use crate::args::Profile;
use crate::context::Context;
use crate::exit::Verdict;
use crate::history;
use crate::output;
use crate::render::{losses, top, units};
use crate::terminal::note;

/// Profiles whose numbers are asked for at a time.
const LIMIT: &str = "1000";

pub async fn run(context: &Context, args: &Profile, since: Duration) -> anyhow::Result<Verdict> {
    let pending = output::prepare(args.outputs()?)?;
    let Some(agent) = history::agent(&args.history).await? else {
        bail!(
            "no agent answers at {}: start podopsy-agent with --state-dir (--socket names the socket of \
             one that runs), or sample from now on, without --since",
            args.history.state_dir.join(podopsy_client::SOCKET_NAME).display()
        );
    };
    let from = history::ago(since);
    let mut query = whose(context, args.target()).await?;
    query.push(("from", from.to_string()));
    let numbers = numbers(&agent, &query).await?;
    let shown = text::escape(&args.target().to_string());
    if numbers.profiles == 0 {
        note(&format!(
            "the agent has kept no profile of {shown} since {}: it runs with --profile-hz 0, or nothing ran",
            units::date(from)
        ));
        return Ok(Verdict::Nothing);
    }
    let (_, packed) = agent.get("/api/v1/profiles/merged", &query).await?;
    let read = import::pprof::read(&*packed, Some("samples")).context("the agent's profile")?;
    let facts = &numbers.facts;
    let profile = read.to_profile(Sampled {
        start: numbers.begin.unwrap_or(from),
        duration: numbers.lasted(),
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
        units::plural(numbers.profiles, "profile"),
        losses(&facts.lost)
    ));
    if facts.user_stacks > 0 {
        let share = facts.complete as f64 * 100.0 / facts.user_stacks as f64;
        note(&format!("user stacks complete: {} of {} ({share:.2} %)", facts.complete, facts.user_stacks));
    }
    let mut failed = None;
    // The agent's own file as it is: it has all that podopsy knows.
    let written = pending.finish_with(|format, out| match format {
        Format::Pprof => Ok(out.write_all(&packed)?),
        format => format.write(&profile, out),
    });
    for (output, result) in written {
        match result {
            Ok(()) => note(&format!("wrote {}: open it with {}", output.shown(), output.open_with())),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    top::print(&mut io::stdout().lock(), context.stdout, &profile, args.top)?;
    history::note_gaps(&agent, from).await;
    failed.map_or(Ok(Verdict::Fine), Err)
}

/// What to ask for. Profiles are kept by container.
async fn whose(context: &Context, target: &Target) -> anyhow::Result<QueryParameters> {
    Ok(match target {
        Target::All => Vec::new(),
        Target::Pod { namespace, pod, container } => history::of_pod(namespace, pod, container.as_deref()),
        Target::Name(_) | Target::Pid(_) | Target::Cgroup(_) => {
            // A container that lives has a name; of the dead, the pod's name is asked for.
            let word = || match target {
                Target::Name(word) => Some(vec![("pod", word.clone())]),
                _ => None,
            };
            let owner = match target {
                Target::Pid(pid) => Some(context.pods().await?.owner_of_pid(*pid).await?),
                _ => None,
            };
            let named = owner.and_then(|owner| Some((owner.pod?, owner.container?)));
            match (named, word()) {
                (Some((pod, container)), _) => {
                    history::of_pod(&pod.namespace, &pod.name, Some(&container.name))
                }
                (None, Some(query)) => query,
                (None, None) => {
                    bail!("the agent keeps profiles by container: name a pod, or namespace/pod/container")
                }
            }
        }
    })
}

/// What the profiles of a window have, and lack.
#[derive(Default)]
struct Numbers {
    profiles: u64,
    begin: Option<Timestamp>,
    end: Option<Timestamp>,
    facts: ProfileFacts,
}

impl Numbers {
    fn lasted(&self) -> Duration {
        let span = self.begin.zip(self.end).map(|(begin, end)| end.duration_since(begin));
        span.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default()
    }
}

async fn numbers(agent: &AgentClient, query: &QueryParameters) -> Result<Numbers, ClientError> {
    #[derive(Deserialize)]
    struct Page {
        profiles: Vec<One>,
        next: Option<String>,
    }
    #[derive(Deserialize)]
    struct One {
        from: Timestamp,
        until: Timestamp,
        facts: Option<ProfileFacts>,
    }
    let (mut sum, mut cursor) = (Numbers::default(), None);
    // What is lost is lost on the node: each minute counts once, however many containers have it.
    let mut minutes = std::collections::BTreeSet::new();
    loop {
        let mut asked = query.clone();
        asked.push(("limit", LIMIT.to_owned()));
        asked.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: Page = agent.json("/api/v1/profiles", &asked).await?;
        for one in page.profiles {
            sum.profiles += 1;
            sum.begin = Some(sum.begin.map_or(one.from, |begin| begin.min(one.from)));
            sum.end = sum.end.max(Some(one.until));
            let Some(facts) = one.facts else { continue };
            sum.facts.add(&facts);
            if minutes.insert(one.from) {
                facts
                    .lost
                    .into_iter()
                    .for_each(|(name, count)| *sum.facts.lost.entry(name).or_default() += count);
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(sum);
        }
    }
}
