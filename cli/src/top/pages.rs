//! The pages of one container: its timeline, the autopsy of its last kill, its flame graph.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use podopsy_client::AgentClient;
use podopsy_fleet::kubectl::read_bounded;
use podopsy_model::Target;
use podopsy_model::profile::{Profile, Sampling};
use podopsy_pods::Pods;
use podopsy_profiles::import;
use podopsy_recorder::cpu::{self, ProfileOptions};
use podopsy_stacks::Helpers;
use podopsy_top::RowKey;
use tokio::sync::mpsc;

use crate::cmd::profile;
use crate::context::Context;
use crate::evidence::gather;
use crate::exit::NotFound;
use crate::fleet::ClusterAgents;
use crate::privilege;
use crate::render;
use crate::selection::Selection;
use crate::terminal::Terminal;
use crate::timeline;

/// How far back a timeline and an autopsy look.
const WITHIN: SignedDuration = SignedDuration::from_hours(24);
/// One profile of a flame graph, and how many are shown together.
const WINDOW: Duration = Duration::from_secs(2);
const WINDOWS: usize = 15;
const FREQUENCY_HZ: u64 = 99;
/// What a node may send for a page, and for a profile.
const PAGE_BYTES_MAX: usize = 1 << 20;
const PROFILE_BYTES_MAX: usize = 64 << 20;

fn target(key: &RowKey) -> Target {
    let container = (!key.container.is_empty()).then(|| key.container.clone());
    Target::Pod { namespace: Some(key.namespace.clone()), pod: key.pod.clone(), container }
}

fn lines(printed: Vec<u8>) -> Vec<String> {
    String::from_utf8_lossy(&printed).lines().map(str::to_owned).collect()
}

/// The timeline of a container until `until`.
pub async fn timeline(
    context: &Context,
    agent: &AgentClient,
    key: &RowKey,
    until: Timestamp,
) -> anyhow::Result<Vec<String>> {
    let from = until - WITHIN;
    let read = gather::records(context, agent, &Selection::of(target(key)), from).await?;
    let mut entries = timeline::build(&read.sources, from);
    entries.retain(|entry| entry.time <= until);
    if entries.is_empty() {
        return Err(NotFound(format!("the agent has nothing of {} in a day", key.target())).into());
    }
    let mut out = Vec::new();
    render::timeline::print(&mut out, Terminal::PLAIN.into(), &entries)?;
    Ok(lines(out))
}

/// The autopsy of a container's last kill before `until`.
pub async fn autopsy(
    context: &Context,
    agent: &AgentClient,
    key: &RowKey,
    until: Timestamp,
) -> anyhow::Result<Vec<String>> {
    let read = gather::records(context, agent, &Selection::of(target(key)), until - WITHIN).await?;
    let is_kill = |event: &&podopsy_model::Event| event.kept_id().is_some() && event.time <= until;
    let Some(event) = read.sources.events.iter().rfind(is_kill) else {
        return Err(NotFound(format!("the agent has no kill of {} in a day", key.target())).into());
    };
    let mut out = Vec::new();
    render::kill(&mut out, Terminal::PLAIN, event)?;
    Ok(lines(out))
}

/// What podopsy on the container's node prints.
pub async fn of_node(fleet: &ClusterAgents, key: &RowKey, words: &[&str]) -> anyhow::Result<Vec<String>> {
    let words: Vec<OsString> = words.iter().map(Into::into).collect();
    Ok(lines(run(fleet, key, &words, PAGE_BYTES_MAX).await?))
}

/// The same for the autopsy of its last kill.
pub async fn autopsy_of_node(fleet: &ClusterAgents, key: &RowKey) -> anyhow::Result<Vec<String>> {
    let target = key.target();
    let ids = of_node(fleet, key, &["oom", &target, "--each", "--output=name"]).await?;
    let Some(id) = ids.last() else {
        return Err(NotFound(format!("the agent has no kill of {target} in a day")).into());
    };
    of_node(fleet, key, &["oom", "show", id]).await
}

async fn run(fleet: &ClusterAgents, key: &RowKey, words: &[OsString], max: usize) -> anyhow::Result<Vec<u8>> {
    let node = key.node.as_deref().unwrap_or_default();
    let agent = fleet.fleet.agents.iter().find(|agent| agent.node == node);
    let agent = agent.with_context(|| format!("no agent on {node}"))?;
    let mut child =
        fleet.kubectl()?.exec_command(agent, words, false).spawn().context("cannot start kubectl")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (printed, reason) = tokio::join!(read_bounded(stdout, max), read_bounded(stderr, PAGE_BYTES_MAX));
    let printed = printed.map_err(|error| anyhow::anyhow!("{node}: {error}"))?;
    if !child.wait().await?.success() && printed.is_empty() {
        let reason = reason.map(lines).unwrap_or_default();
        anyhow::bail!("{node}: {}", reason.first().map_or("no answer", String::as_str));
    }
    Ok(printed)
}

/// Profiles of a container, one after the other, until it is dropped.
pub struct FlameFeed {
    profiles: mpsc::Receiver<anyhow::Result<Profile>>,
    windows: VecDeque<Profile>,
    pub key: RowKey,
}

impl FlameFeed {
    /// Samples on this node.
    pub fn of_pods(context: &Context, pods: &Arc<Pods>, key: RowKey) -> anyhow::Result<FlameFeed> {
        privilege::require("the flame graph", privilege::SAMPLE)?;
        let (sender, profiles) = mpsc::channel(1);
        let (pods, helpers, node) = (pods.clone(), context.helpers(), context.node());
        let target = target(&key);
        tokio::spawn(async move {
            loop {
                let profile = sample(&pods, &target, &helpers, &node).await;
                let has_failed = profile.is_err();
                if sender.send(profile).await.is_err() || has_failed {
                    return;
                }
            }
        });
        Ok(FlameFeed { profiles, windows: VecDeque::new(), key })
    }

    /// Samples on the container's node.
    pub fn of_fleet(fleet: &Arc<ClusterAgents>, key: RowKey) -> FlameFeed {
        let (sender, profiles) = mpsc::channel(1);
        let (fleet, of) = (fleet.clone(), key.clone());
        tokio::spawn(async move {
            loop {
                let profile = sample_on_node(&fleet, &of).await;
                let has_failed = profile.is_err();
                if sender.send(profile).await.is_err() || has_failed {
                    return;
                }
            }
        });
        FlameFeed { profiles, windows: VecDeque::new(), key }
    }

    /// The sum of the last windows, when there is a new one. None: there will be no more.
    pub async fn next(&mut self) -> Option<anyhow::Result<Profile>> {
        let profile = match self.profiles.recv().await? {
            Ok(profile) => profile,
            Err(error) => return Some(Err(error)),
        };
        self.windows.push_back(profile);
        if self.windows.len() > WINDOWS {
            self.windows.pop_front();
        }
        let mut windows = self.windows.iter().cloned();
        let mut sum = windows.next()?;
        for window in windows {
            sum.samples.extend(window.samples);
            sum.duration += window.duration;
        }
        Some(Ok(sum))
    }
}

/// One window. The target is looked up each time: a container may have restarted.
async fn sample(pods: &Arc<Pods>, target: &Target, helpers: &Helpers, node: &str) -> anyhow::Result<Profile> {
    let options = ProfileOptions {
        scope: profile::scope(pods, &Selection::of(target.clone())).await?,
        duration: WINDOW,
        sampling: Sampling::Cpu { frequency_hz: FREQUENCY_HZ },
        unwind: true,
        node: node.to_owned(),
        helpers: helpers.clone(),
    };
    cpu::profile(options, pods.clone(), std::future::pending(), |_| {}).await
}

async fn sample_on_node(fleet: &ClusterAgents, key: &RowKey) -> anyhow::Result<Profile> {
    let window = format!("--duration={}s", WINDOW.as_secs());
    let words = ["profile", &key.target(), &window, "--output=-", "--format=pprof"].map(OsString::from);
    let packed = run(fleet, key, &words, PROFILE_BYTES_MAX).await?;
    let sampling = Sampling::Cpu { frequency_hz: FREQUENCY_HZ };
    let node = key.node.as_deref().unwrap_or_default();
    let empty = Profile::empty(Timestamp::now(), WINDOW, sampling, node);
    if packed.is_empty() {
        return Ok(empty);
    }
    Ok(import::pprof::read(&*packed, Some("samples")).context("the node's profile")?.to_profile(empty))
}
