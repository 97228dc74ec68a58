//! The kernel side's tables of TCP connections and of senders: removes what is left over, and what a few cgroups have more of
//! than their fair share.

use std::collections::HashMap;
use std::time::Duration;

use podopsy_probes::{OwnedEntries, OwnedEntry, TableShares};
use podopsy_wire::{DnsCounters, in_flight};

use super::flight::KEPT_FREE;
use super::usage::Usage;
use crate::fair::fair_level;

/// The kernel side removes a connection when its socket closes, but newer kernels do not call a tracepoint's program that is
/// running on the same CPU already, so it may miss that. A connection that goes on after this time is inserted again.
const IDLE: Duration = Duration::from_secs(120);
/// Sweeps that read nothing while most of the table is free.
const SWEEPS_BETWEEN: u32 = 10;

/// One of the tables.
pub(crate) struct OwnedTable {
    entries: OwnedEntries,
    pub(super) usage: Usage,
    sweeps: u32,
}

impl OwnedTable {
    pub fn connections(entries: OwnedEntries) -> OwnedTable {
        OwnedTable::new(entries, |counters| (counters.connections.inserted, counters.connections.removed))
    }

    pub fn senders(entries: OwnedEntries) -> OwnedTable {
        OwnedTable::new(entries, |counters| (counters.senders.inserted, counters.senders.removed))
    }

    fn new(entries: OwnedEntries, counts: fn(&DnsCounters) -> (u64, u64)) -> OwnedTable {
        OwnedTable { entries, usage: Usage::new(counts), sweeps: 0 }
    }

    /// Which table it is.
    pub fn number(&self) -> u32 {
        self.entries.table()
    }

    /// Reads the table if it is nearly full, or has not been read for a while.
    pub fn sweep(&mut self, shares: &mut TableShares, now: u64) {
        let table = self.number();
        let used = in_flight(shares.inserted_and_not_removed(table), 0, self.usage.swept_all);
        let allowed = shares.max(table) - shares.max(table) / KEPT_FREE;
        self.sweeps = self.sweeps.wrapping_add(1);
        if used <= allowed && !self.sweeps.is_multiple_of(SWEEPS_BETWEEN) {
            return;
        }
        self.usage.begin_sweep();
        if used == 0 {
            return;
        }
        let mut entries = self.entries.entries();
        entries.iter().for_each(|entry| self.usage.add(entry.cgroup_id));
        entries.retain(|entry| !(is_idle(entry, now) && self.remove(entry)));
        self.evict(entries, allowed);
        shares.publish_swept(table, self.usage.changed(), self.usage.swept_all);
    }

    fn remove(&mut self, entry: &OwnedEntry) -> bool {
        let is_removed = self.entries.remove(entry.key);
        if is_removed {
            self.usage.remove(entry.cgroup_id);
        }
        is_removed
    }

    /// Keeps a part of the table free for cgroups that have few entries: those with the most lose what they have not used
    /// for longest. The kernel side cannot take back what a cgroup has.
    fn evict(&mut self, mut entries: Vec<OwnedEntry>, allowed: u64) {
        entries.sort_unstable_by_key(|entry| entry.used_ns);
        for entry in excess(&entries, allowed) {
            self.remove(&entry);
        }
    }
}

/// Whether nothing has used an entry for long. One that the kernel side is filling has no time yet.
fn is_idle(entry: &OwnedEntry, now: u64) -> bool {
    let is_old = |used_ns: u64| used_ns != 0 && now.saturating_sub(used_ns) > IDLE.as_nanos() as u64;
    entry.used_ns.is_some_and(is_old)
}

/// The entries to remove so that at most `allowed` stay: the first ones of each cgroup that has more than its fair share.
fn excess(entries: &[OwnedEntry], allowed: u64) -> Vec<OwnedEntry> {
    let mut present: HashMap<u64, u64> = HashMap::new();
    for entry in entries {
        *present.entry(entry.cgroup_id).or_default() += 1;
    }
    let Some(level) = fair_level(present.values().map(|count| *count as f64), allowed as f64) else {
        return Vec::new();
    };
    let is_excess = |entry: &&OwnedEntry| {
        let Some(left) = present.get_mut(&entry.cgroup_id).filter(|left| **left > level as u64) else {
            return false;
        };
        *left -= 1;
        true
    };
    entries.iter().filter(is_excess).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: u64, cgroup_id: u64, used_ns: Option<u64>) -> OwnedEntry {
        OwnedEntry { key, cgroup_id, used_ns }
    }

    #[test]
    fn the_largest_cgroups_lose_the_first_of_their_entries_and_the_others_none() {
        let entries: Vec<OwnedEntry> = (0..20).map(|key| entry(key, u64::from(key >= 4), None)).collect();
        let lost: Vec<u64> = excess(&entries, 10).iter().map(|entry| entry.key).collect();
        assert_eq!(lost, (4..14).collect::<Vec<_>>(), "4 and 6 are left");
        assert!(excess(&entries, 20).is_empty());
    }

    #[test]
    fn only_what_was_used_and_is_old_is_idle() {
        let now = 500_000_000_000;
        let is_idle = |used_ns| is_idle(&entry(1, 2, used_ns), now);
        assert!(is_idle(Some(now - 121_000_000_000)));
        assert!(!is_idle(Some(now - 119_000_000_000)) && !is_idle(Some(now + 5)));
        assert!(!is_idle(Some(0)), "the kernel side is filling it");
        assert!(!is_idle(None));
    }
}
