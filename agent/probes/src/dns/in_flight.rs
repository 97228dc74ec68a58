//! The map `DNS_IN_FLIGHT`: queries that wait for their answer.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use podopsy_wire::{DnsKey, DnsPending, STATE_TIMED_OUT};

use crate::batch;
use crate::pod::Pod;
use crate::program::take_map;

/// The map `DNS_IN_FLIGHT`, seen from user space.
pub struct InFlight {
    map: HashMap<MapData, Pod<DnsKey>, Pod<DnsPending>>,
    fd: OwnedFd,
}

impl InFlight {
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<InFlight> {
        let map = take_map(ebpf, "DNS_IN_FLIGHT")?;
        let Map::HashMap(data) = &map else { bail!("DNS_IN_FLIGHT is no hash map") };
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        Ok(InFlight { map: HashMap::try_from(map).context("DNS_IN_FLIGHT is no hash map")?, fd })
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
