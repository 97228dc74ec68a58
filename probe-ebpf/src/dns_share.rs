//! Each cgroup's share of `DNS_IN_FLIGHT`, so that a cgroup whose queries stay without an answer takes entries from itself
//! and from no other one. The rule is [`podopsy_wire::in_flight_share`].
//!
//! The number of entries in use is exact: each insertion and each removal adds one to the counters of its cgroup and to
//! those of the map. User space removes entries, too, and cannot add to a value that the kernel side adds to. It writes its
//! own sums beside them. Several CPUs that check at the same moment may insert one entry each.

use podopsy_wire::{DnsCounters, USED_INSERTED, USED_REMOVED, USED_SWEPT, in_flight, in_flight_share};

use crate::{
    dns_counts,
    maps::{DNS_IN_FLIGHT_USED, DNS_SWEPT, dns_setting},
};

/// Whether a cgroup may have one more query in flight.
#[inline(always)]
pub fn has_share(counters: Option<*mut DnsCounters>, cgroup_id: u64) -> bool {
    let used = in_flight(used(USED_INSERTED), used(USED_REMOVED), used(USED_SWEPT));
    let max = dns_setting!(in_flight_max) as u64;
    // How many it has is not known. These cgroups together may use half of the map.
    let Some(counters) = counters else { return used < max / 2 };
    // SAFETY: words of a map value.
    let (inserted, removed) = unsafe { ((*counters).inserted, (*counters).removed) };
    let share = in_flight_share(used, max);
    // Most cgroups are below their share without what user space has removed.
    in_flight(inserted, removed, 0) < share || in_flight(inserted, removed, swept(cgroup_id)) < share
}

/// Counts an entry that was inserted.
#[inline(always)]
pub fn count_inserted(counters: Option<*mut DnsCounters>) {
    add_used(USED_INSERTED);
    if let Some(counters) = counters {
        // SAFETY: a word of a map value.
        dns_counts::add(unsafe { &raw mut (*counters).inserted });
    }
}

/// Counts an entry that the kernel side removed.
#[inline(always)]
pub fn count_removed(counters: Option<*mut DnsCounters>) {
    add_used(USED_REMOVED);
    if let Some(counters) = counters {
        // SAFETY: a word of a map value.
        dns_counts::add(unsafe { &raw mut (*counters).removed });
    }
}

#[inline(always)]
fn used(index: u32) -> u64 {
    // SAFETY: a word of a map value.
    DNS_IN_FLIGHT_USED.get_ptr(index).map_or(0, |line| unsafe { (*line).count })
}

#[inline(always)]
fn add_used(index: u32) {
    if let Some(line) = DNS_IN_FLIGHT_USED.get_ptr_mut(index) {
        // SAFETY: a word of a map value.
        dns_counts::add(unsafe { &raw mut (*line).count });
    }
}

#[inline(always)]
fn swept(cgroup_id: u64) -> u64 {
    // SAFETY: a map value, which only user space writes.
    DNS_SWEPT.get_ptr(cgroup_id).map_or(0, |count| unsafe { *count })
}
