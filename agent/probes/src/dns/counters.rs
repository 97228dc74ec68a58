//! The map `DNS_COUNTERS`: what each memory cgroup's queries came to.

use anyhow::Context;
use aya::maps::{HashMap, Map, MapData};
use podopsy_wire::DnsCounters;

use crate::pod::Pod;

/// The map `DNS_COUNTERS`, seen from user space.
pub struct KernelCounts {
    map: HashMap<MapData, u64, Pod<DnsCounters>>,
}

impl KernelCounts {
    pub(super) fn new(map: Map) -> anyhow::Result<KernelCounts> {
        Ok(KernelCounts { map: HashMap::try_from(map).context("DNS_COUNTERS is no hash map")? })
    }

    /// Every memory cgroup's counters. An entry that is being created (`since_ns` is 0) is left to the next call.
    pub fn entries(&self) -> Vec<(u64, DnsCounters)> {
        let entries = self.map.iter().filter_map(Result::ok);
        entries.map(|(id, Pod(counters))| (id, counters)).filter(|(_, c)| c.since_ns != 0).collect()
    }

    /// Removes an entry. Counts made since the last [`Self::entries`] are lost, so remove only entries that are idle.
    pub fn remove(&mut self, cgroup_id: u64) -> bool {
        self.map.remove(&cgroup_id).is_ok()
    }
}
