//! The map `DNS_IN_FLIGHT`: queries that wait for their answer, and who has how many of them.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData};
use podopsy_wire::{CacheLine, DnsKey, DnsPending, STATE_TIMED_OUT, USED_INSERTED, USED_REMOVED, USED_SWEPT};

use crate::batch;
use crate::pod::Pod;
use crate::program::take_map;

/// The map `DNS_IN_FLIGHT`, seen from user space.
pub struct InFlight {
    map: HashMap<MapData, Pod<DnsKey>, Pod<DnsPending>>,
    fd: OwnedFd,
    max: u32,
    used: Array<MapData, Pod<CacheLine>>,
    swept: HashMap<MapData, u64, u64>,
}

impl InFlight {
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<InFlight> {
        let map = take_map(ebpf, "DNS_IN_FLIGHT")?;
        let Map::HashMap(data) = &map else { bail!("DNS_IN_FLIGHT is no hash map") };
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        let max = data.info().context("read the size of DNS_IN_FLIGHT")?.max_entries();
        Ok(InFlight {
            map: HashMap::try_from(map).context("DNS_IN_FLIGHT is no hash map")?,
            fd,
            max,
            used: Array::try_from(take_map(ebpf, "DNS_IN_FLIGHT_USED")?)
                .context("DNS_IN_FLIGHT_USED is no array")?,
            swept: HashMap::try_from(take_map(ebpf, "DNS_SWEPT")?).context("DNS_SWEPT is no hash map")?,
        })
    }

    /// How many queries the map can hold.
    pub fn max(&self) -> u64 {
        self.max.into()
    }

    /// How many queries are in the map by the kernel side's count, before those that user space has removed are
    /// subtracted.
    pub fn inserted_and_not_removed(&self) -> u64 {
        // Removals are read first: what happens in between makes the difference larger, never smaller.
        let removed = self.used(USED_REMOVED);
        self.used(USED_INSERTED).saturating_sub(removed)
    }

    fn used(&self, index: u32) -> u64 {
        self.used.get(&index, 0).map_or(0, |Pod(line)| line.count)
    }

    /// Publishes how many queries user space has removed since the load: of one cgroup, and of the map.
    pub fn publish_swept(&mut self, of_cgroups: impl IntoIterator<Item = (u64, u64)>, all: u64) {
        for (cgroup_id, count) in of_cgroups {
            // A full map leaves the cgroup with a smaller share, until the next sweep.
            let _ = self.swept.insert(cgroup_id, count, 0);
        }
        let _ = self.used.set(USED_SWEPT, Pod(CacheLine { count: all, ..CacheLine::default() }), 0);
    }

    /// Forgets how many queries of a cgroup were removed.
    pub fn forget_swept(&mut self, cgroup_id: u64) {
        let _ = self.swept.remove(&cgroup_id);
    }

    /// All queries in the map. The kernel side writes meanwhile: an entry that one sweep misses is found by the next.
    pub fn entries(&self) -> Vec<(DnsKey, DnsPending)> {
        match batch::entries::<Pod<DnsKey>, Pod<DnsPending>>(self.fd.as_fd()) {
            Some(entries) => entries.into_iter().map(|(Pod(key), Pod(pending))| (key, pending)).collect(),
            None => self.entries_one_by_one(),
        }
    }

    fn entries_one_by_one(&self) -> Vec<(DnsKey, DnsPending)> {
        self.map.iter().filter_map(Result::ok).map(|(Pod(key), Pod(pending))| (key, pending)).collect()
    }

    /// Marks a query as timed out; false: its answer arrived in between and is reported instead.
    pub fn mark_timed_out(&mut self, key: DnsKey, pending: DnsPending) -> bool {
        const BPF_EXIST: u64 = 2;
        let marked = DnsPending { state: STATE_TIMED_OUT, ..pending };
        self.map.insert(Pod(key), Pod(marked), BPF_EXIST).is_ok()
    }

    /// Removes a query; false: the kernel side removed it first.
    pub fn remove(&mut self, key: &DnsKey) -> bool {
        self.map.remove(&Pod(*key)).is_ok()
    }
}
