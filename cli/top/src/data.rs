//! What the table shows.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a container uses. Null: not known from this source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerRow {
    /// Null: the row is of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    pub namespace: String,
    pub pod: String,
    /// Empty in a row that is the sum of a pod.
    pub container: String,
    /// CPU time in thousandths of a core, since the last row.
    pub cpu_millis: Option<u64>,
    /// Null: no quota.
    pub cpu_limit_millis: Option<u64>,
    /// Share of the quota's periods in which the container was throttled (`nr_throttled` by `nr_periods` of `cpu.stat`), percent;
    /// null: no quota.
    pub throttled_percent: Option<f64>,
    /// Memory that the kernel cannot reclaim: without page cache.
    pub memory_bytes: Option<u64>,
    /// Null: no limit.
    pub limit_bytes: Option<u64>,
    /// The median of the slopes (Theil–Sen) over the last minute.
    pub growth_bytes_per_second: Option<f64>,
    /// DNS queries that failed, over the last seconds.
    pub dns_failures_per_second: Option<f64>,
    /// OOM kills in the hour before.
    pub oom_kills: Option<u64>,
    pub restarts: Option<u32>,
    /// The last values of `memory_bytes`, oldest first.
    pub memory_samples: Vec<u64>,
}

/// All rows at one time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub time: Timestamp,
    /// False: from the history.
    pub is_live: bool,
    pub rows: Vec<ContainerRow>,
    /// What is missing, and why.
    pub notes: Vec<String>,
}

/// Identifies a row over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey {
    pub node: Option<String>,
    pub namespace: String,
    pub pod: String,
    /// Empty: the pod.
    pub container: String,
}

impl RowKey {
    /// As a TARGET of other commands.
    pub fn target(&self) -> String {
        let container = if self.container.is_empty() { "" } else { "/" };
        format!("{}/{}{container}{}", self.namespace, self.pod, self.container)
    }
}

/// Slopes that would take longer than this to the limit are noise.
const LIMIT_SECONDS_MAX: f64 = 24.0 * 3600.0;

impl ContainerRow {
    pub fn key(&self) -> RowKey {
        RowKey {
            node: self.node.clone(),
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            container: self.container.clone(),
        }
    }

    /// Memory in percent of the limit.
    pub fn memory_percent(&self) -> Option<f64> {
        let limit = self.limit_bytes.filter(|&limit| limit > 0)?;
        Some(self.memory_bytes? as f64 * 100.0 / limit as f64)
    }

    /// The time until the memory is at the limit, if it goes on growing like this. None: no limit, no growth, or more than a day.
    pub fn seconds_to_limit(&self) -> Option<u64> {
        let slope = self.growth_bytes_per_second.filter(|&slope| slope > 0.0)?;
        let left = self.limit_bytes?.saturating_sub(self.memory_bytes?);
        let seconds = left as f64 / slope;
        (seconds <= LIMIT_SECONDS_MAX).then_some(seconds as u64)
    }
}

/// The sums of the pods. A sum is known if each of its parts is.
pub fn by_pod(rows: &[ContainerRow]) -> Vec<ContainerRow> {
    let mut pods: BTreeMap<RowKey, ContainerRow> = BTreeMap::new();
    for row in rows {
        let key = RowKey { container: String::new(), ..row.key() };
        let first = || ContainerRow { container: String::new(), ..row.clone() };
        pods.entry(key).and_modify(|sum| sum.add(row)).or_insert_with(first);
    }
    pods.into_values().collect()
}

impl ContainerRow {
    fn add(&mut self, other: &ContainerRow) {
        self.cpu_millis = sum(self.cpu_millis, other.cpu_millis);
        self.cpu_limit_millis = sum(self.cpu_limit_millis, other.cpu_limit_millis);
        self.memory_bytes = sum(self.memory_bytes, other.memory_bytes);
        self.limit_bytes = sum(self.limit_bytes, other.limit_bytes);
        self.oom_kills = sum(self.oom_kills, other.oom_kills);
        self.growth_bytes_per_second =
            self.growth_bytes_per_second.zip(other.growth_bytes_per_second).map(|(a, b)| a + b);
        self.dns_failures_per_second =
            self.dns_failures_per_second.zip(other.dns_failures_per_second).map(|(a, b)| a + b);
        self.restarts = self.restarts.zip(other.restarts).map(|(a, b)| a.saturating_add(b));
        // A pod is throttled as much as its most throttled container.
        let throttled = [self.throttled_percent, other.throttled_percent];
        self.throttled_percent = throttled.into_iter().flatten().max_by(f64::total_cmp);
        let skip = self.memory_samples.len().saturating_sub(other.memory_samples.len());
        self.memory_samples.drain(..skip);
        let more = other.memory_samples.len() - self.memory_samples.len();
        for (own, added) in self.memory_samples.iter_mut().zip(&other.memory_samples[more..]) {
            *own = own.saturating_add(*added);
        }
    }
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.zip(b).map(|(a, b)| a.saturating_add(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MIB, row};

    #[test]
    fn the_time_to_the_limit_needs_growth_and_a_limit() {
        let growing = ContainerRow { growth_bytes_per_second: Some(MIB as f64), ..row("cart", "app", 40) };
        assert_eq!((growing.seconds_to_limit(), growing.memory_percent()), (Some(24), Some(62.5)));
        for slope in [None, Some(0.0), Some(-5.0), Some(1.0), Some(f64::NAN)] {
            let row = ContainerRow { growth_bytes_per_second: slope, ..growing.clone() };
            assert_eq!(row.seconds_to_limit(), None, "{slope:?}");
        }
        let free = ContainerRow { limit_bytes: None, ..growing };
        assert_eq!((free.seconds_to_limit(), free.memory_percent()), (None, None));
    }

    #[test]
    fn a_pod_is_the_sum_of_its_containers_as_far_as_all_are_known() {
        let app = ContainerRow { memory_samples: vec![1, 2, 3], ..row("cart", "app", 40) };
        let side = ContainerRow { limit_bytes: None, memory_samples: vec![10, 20], ..row("cart", "side", 2) };
        let pods = by_pod(&[app, side, row("web", "app", 1)]);
        let cart = &pods[0];
        assert_eq!((cart.pod.as_str(), cart.container.as_str(), pods.len()), ("cart", "", 2));
        assert_eq!((cart.memory_bytes, cart.limit_bytes), (Some(42 * MIB), None));
        assert_eq!(cart.memory_samples, [12, 23]);
        assert_eq!(cart.key().target(), "shop/cart");
    }
}
