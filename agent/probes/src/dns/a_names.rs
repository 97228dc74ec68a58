//! The map `DNS_A_NAMES`: names whose A records processes have just asked for.

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{Array, MapData};
use podopsy_wire::{AName, DnsPending};

use crate::program::take_map;

/// The map `DNS_A_NAMES`, seen from user space.
pub struct ANames {
    map: Array<MapData, u64>,
}

impl ANames {
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<ANames> {
        let map = take_map(ebpf, "DNS_A_NAMES")?;
        Ok(ANames { map: Array::try_from(map).context("DNS_A_NAMES is no array")? })
    }

    /// Whether the process of a query has asked for the A records of the same name, at about this time.
    pub fn has(&self, pending: &DnsPending, now_ns: u64) -> bool {
        let name = AName::new(pending.name_hash, pending.asker.pid, now_ns);
        self.map.get(&name.slot, 0).is_ok_and(|value| name.is_recent(value))
    }
}
