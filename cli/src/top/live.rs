//! What the containers of this node use now.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use podopsy_client::{AgentClient, QueryParameters};
use podopsy_model::{Event, EventKind, Owner};
use podopsy_pods::hierarchy::CpuUsage;
use podopsy_pods::{MemoryCgroup, Pods};
use podopsy_recorder::memory::MemorySampler;
use podopsy_top::{ContainerRow, Snapshot};

use super::{EventCounts, FAILURES_WITHIN, KILLS_WITHIN, names};
use crate::context::Context;
use crate::exit::Refusal;
use crate::selection::{OwnerScope, Selection};

/// The runtime is asked for restarts this often, and the agent for its kills.
const SLOW: Duration = Duration::from_secs(10);
/// How long the first names may take, and how often they are counted.
const NAMES_WITHIN: Duration = Duration::from_secs(2);
const NAMES_POLL: Duration = Duration::from_millis(200);
/// Events of the agent that are read at most.
const EVENTS_MAX: usize = 1000;

/// Reads this node.
pub struct LiveSource {
    pods: Arc<Pods>,
    sampler: MemorySampler,
    agent: Option<AgentClient>,
    selection: Selection,
    scopes: Vec<OwnerScope>,
    /// The last reading of each cgroup.
    cpu: HashMap<u64, (Instant, CpuUsage)>,
    /// By container id.
    restarts: HashMap<String, u32>,
    kills: Vec<Event>,
    slow_at: Option<Instant>,
    notes: Vec<String>,
}

impl LiveSource {
    pub async fn start(
        context: &Context,
        selection: Selection,
        agent: Option<AgentClient>,
    ) -> anyhow::Result<LiveSource> {
        let pods = context.pods().await?;
        if pods.inside().is_some() {
            let reason = "top: shows a node, and this is a container without a way to its runtime: run it on the node, \
                          or kubectl podopsy top";
            return Err(Refusal(reason.to_owned()).into());
        }
        let scopes = OwnerScope::on_node(&selection, &pods).await?;
        let sampler = MemorySampler::start(pods.clone())?;
        let mut source = LiveSource {
            pods,
            sampler,
            agent,
            selection,
            scopes,
            cpu: HashMap::new(),
            restarts: HashMap::new(),
            kills: Vec::new(),
            slow_at: None,
            notes: Vec::new(),
        };
        source.wait_for_names().await;
        // CPU time is a difference: this is the first reading.
        let containers = source.containers();
        source.read_cpu(&containers, Instant::now());
        Ok(source)
    }

    /// The runtime names the containers one after the other: waits until there are no more of them.
    async fn wait_for_names(&self) {
        let mut known = 0;
        for _ in 0..NAMES_WITHIN.as_millis() / NAMES_POLL.as_millis() {
            tokio::time::sleep(NAMES_POLL).await;
            let now = self.containers().len();
            if now > 0 && now == known {
                return;
            }
            known = now;
        }
    }

    pub fn pods(&self) -> &Arc<Pods> {
        &self.pods
    }

    pub async fn snapshot(&mut self) -> Snapshot {
        if self.slow_at.is_none_or(|at| at.elapsed() >= SLOW) {
            self.read_slow().await;
            self.slow_at = Some(Instant::now());
        }
        let time = Timestamp::now();
        let mut notes = self.notes.clone();
        let counts = match self.recent_failures(time).await {
            Some(failures) => {
                if failures.len() >= EVENTS_MAX {
                    notes.push(format!("more than {EVENTS_MAX} queries failed: DNS ERR/S is too low"));
                }
                Some(EventCounts::at(self.kills.iter().chain(&failures), time))
            }
            None => None,
        };
        let containers = self.containers();
        let cpu = self.read_cpu(&containers, Instant::now());
        let mut rows = Vec::new();
        let mut unnamed = 0;
        for cgroup in &containers {
            let (owner, _) = self.pods.owner_now(cgroup.id, 0);
            if !self.is_wanted(&owner) {
                continue;
            }
            match self.row(cgroup, &owner, cpu.get(&cgroup.id), counts.as_ref()) {
                Some(row) => rows.push(row),
                None => unnamed += 1,
            }
        }
        if unnamed > 0 {
            notes.push(format!("{unnamed} containers have no name yet, or none that is believed"));
        }
        Snapshot { time, is_live: true, rows, notes }
    }

    fn containers(&self) -> Vec<MemoryCgroup> {
        self.pods.memory_cgroups().into_iter().filter(|cgroup| cgroup.container).collect()
    }

    fn is_wanted(&self, owner: &Owner) -> bool {
        self.selection.has_pod(owner.pod.as_ref())
            && (self.scopes.is_empty() || self.scopes.iter().any(|scope| scope.has_owner(owner)))
    }

    fn row(
        &self,
        cgroup: &MemoryCgroup,
        owner: &Owner,
        cpu: Option<&CpuShare>,
        counts: Option<&EventCounts>,
    ) -> Option<ContainerRow> {
        let names = names(owner)?;
        let usage = self.sampler.last(cgroup.id).map(|(_, usage)| usage);
        let curve = self.sampler.curve(cgroup.id).unwrap_or_default();
        let held = curve.current_bytes.iter().zip(&curve.file_bytes);
        let restarts =
            owner.container.as_ref().and_then(|container| self.restarts.get(&container.id)).copied();
        Some(ContainerRow {
            node: None,
            cpu_millis: cpu.map(|share| share.millis),
            cpu_limit_millis: self.pods.hierarchy().cpu_limit_millis(&cgroup.path),
            throttled_percent: cpu.and_then(|share| share.throttled_percent),
            memory_bytes: usage.map(|usage| usage.current_bytes.saturating_sub(usage.file_bytes)),
            limit_bytes: self.pods.hierarchy().memory_limit(&cgroup.path),
            growth_bytes_per_second: self.sampler.trend(cgroup.id).map(|trend| trend.bytes_per_second),
            dns_failures_per_second: counts.map(|counts| counts.failures_per_second(&names)),
            oom_kills: counts.map(|counts| counts.kills(&names)),
            restarts,
            memory_samples: held.map(|(current, file)| current.saturating_sub(*file)).collect(),
            namespace: names.0,
            pod: names.1,
            container: names.2,
        })
    }

    /// What each container has used since the last reading.
    fn read_cpu(&mut self, containers: &[MemoryCgroup], now: Instant) -> HashMap<u64, CpuShare> {
        let mut shares = HashMap::new();
        let mut readings = HashMap::new();
        for cgroup in containers {
            let Some(usage) = self.pods.hierarchy().cpu_usage(&cgroup.path) else { continue };
            if let Some((at, before)) = self.cpu.get(&cgroup.id) {
                shares.extend(CpuShare::between(*before, usage, now - *at).map(|share| (cgroup.id, share)));
            }
            readings.insert(cgroup.id, (now, usage));
        }
        self.cpu = readings;
        shares
    }

    /// The restarts that the runtime lists, and the kills of the last hour.
    async fn read_slow(&mut self) {
        self.notes.clear();
        match self.pods.list().await {
            Ok(pods) => {
                let containers = pods.into_iter().flat_map(|pod| pod.containers);
                self.restarts = containers.map(|details| (details.container.id, details.restarts)).collect();
            }
            Err(error) => self.notes.push(format!("restarts are not known: {error:#}")),
        }
        let Some(agent) = &self.agent else {
            self.notes.push("no agent answers: DNS ERR/S and KILLS are not known".to_owned());
            return;
        };
        let from = Timestamp::now() - KILLS_WITHIN;
        match agent.events(&query(EventKind::OomIncident, from), EVENTS_MAX).await {
            Ok(list) => self.kills = list.events,
            Err(error) => self.notes.push(format!("kills are not known: {error}")),
        }
    }

    /// None: no agent answers.
    async fn recent_failures(&self, now: Timestamp) -> Option<Vec<Event>> {
        let query = query(EventKind::DnsFailure, now - FAILURES_WITHIN);
        Some(self.agent.as_ref()?.events(&query, EVENTS_MAX).await.ok()?.events)
    }
}

fn query(kind: EventKind, from: Timestamp) -> QueryParameters {
    vec![("kind", kind.as_str().to_owned()), ("from", from.to_string())]
}

/// CPU time between two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CpuShare {
    millis: u64,
    throttled_percent: Option<f64>,
}

impl CpuShare {
    /// None: no time has passed, or a counter has gone back.
    fn between(before: CpuUsage, now: CpuUsage, elapsed: Duration) -> Option<CpuShare> {
        let used = now.used.checked_sub(before.used)?;
        let periods = now.periods.checked_sub(before.periods)?;
        let throttled = now.throttled_periods.checked_sub(before.throttled_periods)?;
        if elapsed.is_zero() {
            return None;
        }
        let throttled_percent = (periods > 0).then(|| throttled as f64 * 100.0 / periods as f64);
        Some(CpuShare {
            millis: (used.as_secs_f64() * 1000.0 / elapsed.as_secs_f64()).round() as u64,
            throttled_percent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_throttling_are_of_the_time_between_two_readings() {
        let usage = |ms, periods, throttled_periods| CpuUsage {
            used: Duration::from_millis(ms),
            periods,
            throttled_periods,
        };
        let share = |before, now| CpuShare::between(before, now, Duration::from_secs(2));
        let busy = CpuShare { millis: 250, throttled_percent: Some(50.0) };
        assert_eq!(share(usage(1000, 10, 5), usage(1500, 30, 15)), Some(busy));
        let free = CpuShare { millis: 0, throttled_percent: None };
        assert_eq!(share(usage(1000, 0, 0), usage(1000, 0, 0)), Some(free));
        assert_eq!(share(usage(1000, 0, 0), usage(900, 0, 0)), None);
        assert_eq!(CpuShare::between(usage(1, 0, 0), usage(2, 0, 0), Duration::ZERO), None);
    }
}
