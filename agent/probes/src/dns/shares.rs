//! The tables that cgroups share: who has how many entries of each, and the entries that user space may remove.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData};
use podopsy_wire::{
    CacheLine, DnsConnection, DnsSender, SweptKey, TABLE_CONNECTIONS, TABLE_SENDERS, USED_INSERTED,
    USED_REMOVED, USED_SWEPT, used_index,
};

use crate::batch;
use crate::pod::Pod;
use crate::program::take_map;

/// The counters of the kernel side, and those of user space beside them. Tables are `TABLE_*` of the wire.
pub struct TableShares {
    used: Array<MapData, Pod<CacheLine>>,
    swept: HashMap<MapData, Pod<SweptKey>, u64>,
}

impl TableShares {
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<TableShares> {
        Ok(TableShares {
            used: Array::try_from(take_map(ebpf, "DNS_USED")?).context("DNS_USED is no array")?,
            swept: HashMap::try_from(take_map(ebpf, "DNS_SWEPT")?).context("DNS_SWEPT is no hash map")?,
        })
    }

    /// How many entries a table can hold.
    pub fn max(&self, table: u32) -> u64 {
        super::tables_max()[table as usize].into()
    }

    /// How many entries are in a table by the kernel side's count, before those that user space has removed are
    /// subtracted.
    pub fn inserted_and_not_removed(&self, table: u32) -> u64 {
        // Removals are read first: what happens in between makes the difference larger, never smaller.
        let removed = self.used(table, USED_REMOVED);
        self.used(table, USED_INSERTED).saturating_sub(removed)
    }

    fn used(&self, table: u32, counter: u32) -> u64 {
        self.used.get(&used_index(table, counter), 0).map_or(0, |Pod(line)| line.count)
    }

    /// Publishes how many entries of a table user space has removed since the load: of one cgroup, and of the table.
    pub fn publish_swept(&mut self, table: u32, of_cgroups: impl IntoIterator<Item = (u64, u64)>, all: u64) {
        for (cgroup_id, count) in of_cgroups {
            // A full map leaves the cgroup with a smaller share, until the next sweep.
            let _ = self.swept.insert(swept_key(cgroup_id, table), count, 0);
        }
        let line = Pod(CacheLine { count: all, ..CacheLine::default() });
        let _ = self.used.set(used_index(table, USED_SWEPT), line, 0);
    }

    /// Forgets how many entries of a cgroup were removed.
    pub fn forget_swept(&mut self, table: u32, cgroup_id: u64) {
        let _ = self.swept.remove(&swept_key(cgroup_id, table));
    }
}

fn swept_key(cgroup_id: u64, table: u32) -> Pod<SweptKey> {
    Pod(SweptKey { cgroup_id, table: table.into() })
}

/// An entry of a table, and the cgroup that it counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnedEntry {
    pub key: u64,
    pub cgroup_id: u64,
    /// When it was last used; None: that is not known, and the kernel side removes what is no longer needed.
    pub used_ns: Option<u64>,
}

/// The map `DNS_CONNECTIONS` or `DNS_SENDERS`, seen from user space.
pub struct OwnedEntries {
    map: OwnedMap,
    fd: OwnedFd,
}

enum OwnedMap {
    Connections(HashMap<MapData, u64, Pod<DnsConnection>>),
    Senders(HashMap<MapData, u64, Pod<DnsSender>>),
}

impl OwnedEntries {
    pub(super) fn connections(ebpf: &mut Ebpf) -> anyhow::Result<OwnedEntries> {
        let (map, fd) = take(ebpf, "DNS_CONNECTIONS")?;
        Ok(OwnedEntries { map: OwnedMap::Connections(HashMap::try_from(map)?), fd })
    }

    pub(super) fn senders(ebpf: &mut Ebpf) -> anyhow::Result<OwnedEntries> {
        let (map, fd) = take(ebpf, "DNS_SENDERS")?;
        Ok(OwnedEntries { map: OwnedMap::Senders(HashMap::try_from(map)?), fd })
    }

    /// Which table it is.
    pub fn table(&self) -> u32 {
        match self.map {
            OwnedMap::Connections(_) => TABLE_CONNECTIONS,
            OwnedMap::Senders(_) => TABLE_SENDERS,
        }
    }

    /// All entries. The kernel side writes meanwhile: an entry that one sweep misses is found by the next.
    pub fn entries(&self) -> Vec<OwnedEntry> {
        match &self.map {
            OwnedMap::Connections(map) => {
                let entry = |(key, Pod(connection)): (u64, Pod<DnsConnection>)| OwnedEntry {
                    key,
                    cgroup_id: connection.asker.cgroup_id,
                    used_ns: Some(connection.used_ns),
                };
                read(map, &self.fd).map(entry).collect()
            }
            OwnedMap::Senders(map) => {
                let entry = |(key, Pod(sender)): (u64, Pod<DnsSender>)| OwnedEntry {
                    key,
                    cgroup_id: sender.cgroup_id,
                    used_ns: None,
                };
                read(map, &self.fd).map(entry).collect()
            }
        }
    }

    /// Removes an entry; false: the kernel side removed it first.
    pub fn remove(&mut self, key: u64) -> bool {
        match &mut self.map {
            OwnedMap::Connections(map) => map.remove(&key).is_ok(),
            OwnedMap::Senders(map) => map.remove(&key).is_ok(),
        }
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<(Map, OwnedFd)> {
    let map = take_map(ebpf, name)?;
    let Map::HashMap(data) = &map else { bail!("{name} is no hash map") };
    let fd = data.fd().as_fd().try_clone_to_owned()?;
    Ok((map, fd))
}

/// Reads a whole map: in a few system calls, or on kernels without them entry by entry.
fn read<V: aya::Pod>(
    map: &HashMap<MapData, u64, V>,
    fd: &OwnedFd,
) -> impl Iterator<Item = (u64, V)> + use<V> {
    batch::entries::<u64, V>(fd.as_fd())
        .unwrap_or_else(|| map.iter().filter_map(Result::ok).collect())
        .into_iter()
}
