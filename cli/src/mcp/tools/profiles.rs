//! `profile_top` and `growth_top`: the functions that took CPU time, and those that made memory grow.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use jiff::Timestamp;
use podopsy_model::Event;
use podopsy_model::growth::{GrowthFrame, GrowthProfile};
use podopsy_profiles::import::ImportedProfile;
use podopsy_profiles::import::pprof;
use serde::{Deserialize, Serialize};

use super::Tool;
use super::arguments::{Limit, Since, TargetName};
use crate::exit::NotFound;
use crate::mcp::answer::{Answer, Kept, Rows};
use crate::mcp::server::Server;
use crate::render::units;
use crate::timeline::EntryEvidence;

/// The functions of one pod that took the most CPU time, from the profiles that the agent keeps of all containers. Nothing is
/// sampled for this call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProfileTop {
    /// One pod by its name or the beginning of it, namespace/pod, or namespace/pod/container
    target: TargetName,
    /// Only a pod of this namespace
    namespace: Option<String>,
    /// How far back, such as 10m, 24h or 7d [default: 1h]
    since: Option<Since>,
    /// At most N functions, up to 500 [default: 30]
    limit: Option<Limit>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuProfile {
    how: EntryEvidence,
    /// The first and the last moment that the profile has samples of.
    sampled_from: Timestamp,
    sampled_until: Timestamp,
    /// Samples per second on each CPU.
    frequency_hz: u64,
    samples: u64,
    /// Samples with a user stack, and those of them that reach its outermost frame. The others lack their outer functions.
    user_stacks: u64,
    complete_user_stacks: u64,
    /// Those with the most samples of their own first.
    functions: Vec<CpuFunction>,
}

/// A function's share of the CPU time.
#[derive(Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuFunction {
    function: String,
    /// Samples in which the function itself ran.
    self_samples: u64,
    /// Samples in which it or a function that it called ran; a recursion counts once.
    total_samples: u64,
    /// Of all samples.
    self_percent: f64,
    total_percent: f64,
}

impl Tool for ProfileTop {
    const NAME: &'static str = "profile_top";
    #[cfg(test)]
    const TITLE: &'static str = "Where a pod's CPU time goes";
    type Answer = Answer<CpuProfile>;

    fn rows(&self) -> Rows {
        let max = Limit::or(self.limit, 30);
        Rows {
            field: "functions",
            kept: Kept::First,
            max,
            hint: "podopsy profile --since lists more functions",
        }
    }

    async fn run(self, server: &Server) -> anyhow::Result<Self::Answer> {
        let since = Since::or_hours(self.since, 1);
        let scope = server.source.scope(Some(self.target.into()), self.namespace, since)?;
        let (found, facts, packed) = server.source.profile(&server.context, &scope).await?;
        let read = tokio::task::spawn_blocking(move || pprof::read(&*packed, Some("samples")));
        let functions = functions(&read.await?.context("the stored profile")?);
        Ok(Answer::new(
            found,
            CpuProfile {
                how: EntryEvidence::Observed,
                sampled_from: facts.from,
                sampled_until: facts.until,
                frequency_hz: facts.frequency_hz,
                samples: facts.samples,
                user_stacks: facts.user_stacks,
                complete_user_stacks: facts.complete,
                functions,
            },
        ))
    }
}

fn functions(profile: &ImportedProfile) -> Vec<CpuFunction> {
    let all = profile.total().max(1) as f64;
    let percent = |samples: u64| (samples as f64 * 1000.0 / all).round() / 10.0;
    let row = |(function, (own, total)): (&Arc<str>, (u64, u64))| CpuFunction {
        function: function.to_string(),
        self_samples: own,
        total_samples: total,
        self_percent: percent(own),
        total_percent: percent(total),
    };
    let sums = profile.functions.iter().zip(profile.sums());
    let mut rows: Vec<CpuFunction> = sums.filter(|(_, (_, total))| *total > 0).map(row).collect();
    rows.sort_by(|a, b| {
        let key = |one: &CpuFunction| (one.self_samples, one.total_samples);
        key(b).cmp(&key(a)).then_with(|| a.function.cmp(&b.function))
    });
    rows
}

/// The functions that made a container's memory grow in the minutes before its newest OOM kill, from sampled page faults. Only
/// containers whose memory grew towards their limit, or that were killed before, have such a profile.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GrowthTop {
    /// A pod by its name or the beginning of it, namespace/pod, namespace/pod/container, or a controller: deploy/NAME, sts/NAME,
    /// ds/NAME, job/NAME; also pods that are gone [default: all]
    target: Option<TargetName>,
    /// Only pods of this namespace
    namespace: Option<String>,
    /// How far back, such as 10m, 24h or 7d [default: 24h]
    since: Option<Since>,
    /// At most N functions, up to 500 [default: 30]
    limit: Option<Limit>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GrowthAnswer {
    /// The kill, for the tool `autopsy`.
    incident: String,
    killed_at: Timestamp,
    namespace: Option<String>,
    pod: Option<String>,
    container: Option<String>,
    /// How the samples are known.
    how: EntryEvidence,
    /// The seconds before the kill that the samples cover.
    window_seconds: f64,
    samples: u64,
    /// Page faults that one sample stands for.
    period: u64,
    /// Memory that was touched for the first time. Some of it may be free again.
    estimated_bytes: u64,
    estimated_bytes_how: EntryEvidence,
    /// Samples whose stack reaches its outermost frame, and the reasons why others do not.
    complete_stacks: u64,
    incomplete_stacks: BTreeMap<String, u64>,
    /// The paths of functions, innermost first, that touched the most memory.
    paths: Vec<GrowthPath>,
    functions: Vec<GrowthFunction>,
}

/// Functions that called each other.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GrowthPath {
    percent: f64,
    functions: Vec<String>,
    outer_functions_left_out: usize,
}

/// A function's share of the samples.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GrowthFunction {
    function: String,
    file: Option<String>,
    /// Of all samples, by the function itself.
    self_percent: f64,
    /// By it and by the functions that it called.
    total_percent: f64,
}

/// Paths, and functions of a path, that are listed.
const PATHS: usize = 5;
const PATH_FUNCTIONS: usize = 12;

impl Tool for GrowthTop {
    const NAME: &'static str = "growth_top";
    #[cfg(test)]
    const TITLE: &'static str = "The code that made memory grow";
    type Answer = Answer<GrowthAnswer>;

    fn rows(&self) -> Rows {
        let max = Limit::or(self.limit, 30);
        Rows { field: "functions", kept: Kept::First, max, hint: "podopsy oom show ID -o json has all" }
    }

    async fn run(self, server: &Server) -> anyhow::Result<Self::Answer> {
        let target = self.target.map(Into::into);
        let scope = server.source.scope(target, self.namespace, Since::or_hours(self.since, 24))?;
        let found = server.source.kills(&server.context, &scope).await?;
        let newest = found.sources.events.iter().rev().find_map(|event| {
            let incident = event.incident.as_ref()?;
            Some((event, &incident.id, incident.growth.as_ref()?))
        });
        let Some((event, id, growth)) = newest else {
            let (pods, from) = (scope.selection.describe(), units::date(scope.from));
            let reason = format!(
                "no OOM kill of {pods} since {from} has a growth profile: page faults are sampled once memory grows towards the \
                 limit, or after a first kill"
            );
            return Err(NotFound(reason).into());
        };
        let answer = GrowthAnswer::of(event, id, growth);
        Ok(Answer::new(found, answer))
    }
}

impl GrowthAnswer {
    fn of(event: &Event, id: &str, growth: &GrowthProfile) -> GrowthAnswer {
        GrowthAnswer {
            incident: id.to_owned(),
            killed_at: event.time,
            namespace: event.pod.as_ref().map(|pod| pod.namespace.clone()),
            pod: event.pod.as_ref().map(|pod| pod.name.clone()),
            container: event.container.as_ref().map(|container| container.name.clone()),
            how: EntryEvidence::Observed,
            window_seconds: growth.window_seconds,
            samples: growth.samples,
            period: growth.period,
            estimated_bytes: growth.estimated_bytes,
            estimated_bytes_how: EntryEvidence::Inferred,
            complete_stacks: growth.complete,
            incomplete_stacks: growth.incomplete.clone(),
            paths: paths(growth),
            functions: growth_functions(growth),
        }
    }
}

fn percent(share: f64) -> f64 {
    (share * 1000.0).round() / 10.0
}

fn paths(growth: &GrowthProfile) -> Vec<GrowthPath> {
    let path = |path: &podopsy_model::growth::GrowthPath| {
        let functions: Vec<String> =
            path.frames.iter().take(PATH_FUNCTIONS).map(|frame| frame.function.clone()).collect();
        let outer_functions_left_out = path.frames.len() - functions.len() + path.frames_left_out;
        GrowthPath { percent: percent(path.share), functions, outer_functions_left_out }
    };
    growth.paths.iter().take(PATHS).map(path).collect()
}

/// Those with the most faults of their own first, and then those that are in one of the lists only.
fn growth_functions(growth: &GrowthProfile) -> Vec<GrowthFunction> {
    let mut shares: BTreeMap<&GrowthFrame, (f64, f64)> = BTreeMap::new();
    for one in &growth.top_self {
        shares.entry(&one.frame).or_default().0 = one.share;
    }
    for one in &growth.top_total {
        shares.entry(&one.frame).or_default().1 = one.share;
    }
    let mut shares: Vec<_> = shares.into_iter().collect();
    shares.sort_by(|(_, a), (_, b)| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let row = |(frame, (own, total)): (&GrowthFrame, (f64, f64))| GrowthFunction {
        function: frame.function.clone(),
        file: frame.file.clone(),
        self_percent: percent(own),
        total_percent: percent(total),
    };
    shares.into_iter().map(row).collect()
}
