//! The profile pipeline: samples → ring → decode → aggregate → symbolize → attribute → profile.

use std::sync::Arc;
use std::time::Duration;

use crate::model::profile::Profile;
use crate::pods::Pods;

/// Whose stacks to take.
#[derive(Clone, Debug)]
pub enum Scope {
    Node,
    /// Memory cgroup ids (see `pods::Container::cgroup_ids`).
    Cgroups(Vec<u64>),
    /// A process id in the host's pid namespace.
    Process(u32),
}

#[derive(Clone, Debug)]
pub struct Options {
    pub scope: Scope,
    pub duration: Duration,
    pub frequency_hz: u64,
    pub node: String,
}

/// Samples for `options.duration` (or until `stop` resolves), calling `progress(samples so far)` a few times a second.
pub async fn profile(
    _options: Options,
    _pods: Arc<Pods>,
    _stop: impl Future<Output = ()>,
    _progress: impl FnMut(u64),
) -> anyhow::Result<Profile> {
    anyhow::bail!("not yet")
}
