//! Each cgroup's share of the tables that cgroups fill: `DNS_IN_FLIGHT`, `DNS_CONNECTIONS` and `DNS_SENDERS`. A cgroup whose
//! queries stay without an answer, or that opens connections without end, takes entries from itself and from no other one.
//! The rule is [`podopsy_wire::in_flight_share`].
//!
//! The number of entries in use is exact: each insertion and each removal adds one to the counters of its cgroup and to
//! those of the table. User space removes entries, too, and cannot add to a value that the kernel side adds to. It writes
//! its own sums beside them. Several CPUs that check at the same moment may insert one entry each.

use podopsy_wire::{
    DnsCounters, SweptKey, TABLE_CONNECTIONS, TABLE_QUERIES, USED_INSERTED, USED_REMOVED, USED_SWEPT,
    in_flight, in_flight_share, used_index,
};

use crate::{
    dns_counts,
    maps::{DNS_SWEPT, DNS_USED, dns_setting},
};

/// Whether a cgroup may have one more entry of a table.
#[inline(always)]
pub fn has_share(counters: Option<*mut DnsCounters>, cgroup_id: u64, table: u32) -> bool {
    let used = in_flight(used(table, USED_INSERTED), used(table, USED_REMOVED), used(table, USED_SWEPT));
    let max = dns_setting!(tables_max)[table as usize] as u64;
    // How many it has is not known. These cgroups together may use half of the table.
    let Some(counters) = counters else { return used < max / 2 };
    // SAFETY: words of a map value.
    let (inserted, removed) = unsafe { (*inserted(counters, table), *removed(counters, table)) };
    let share = in_flight_share(used, max);
    // Most cgroups are below their share without what user space has removed.
    in_flight(inserted, removed, 0) < share || in_flight(inserted, removed, swept(cgroup_id, table)) < share
}

/// Counts an entry that was inserted.
#[inline(always)]
pub fn count_inserted(counters: Option<*mut DnsCounters>, table: u32) {
    add_used(table, USED_INSERTED);
    if let Some(counters) = counters {
        dns_counts::add(inserted(counters, table));
    }
}

/// Counts an entry that the kernel side removed.
#[inline(always)]
pub fn count_removed(counters: Option<*mut DnsCounters>, table: u32) {
    add_used(table, USED_REMOVED);
    if let Some(counters) = counters {
        dns_counts::add(removed(counters, table));
    }
}

#[inline(always)]
fn inserted(counters: *mut DnsCounters, table: u32) -> *mut u64 {
    // SAFETY: words of a map value.
    unsafe {
        match table {
            TABLE_QUERIES => &raw mut (*counters).inserted,
            TABLE_CONNECTIONS => &raw mut (*counters).connections.inserted,
            _ => &raw mut (*counters).senders.inserted,
        }
    }
}

#[inline(always)]
fn removed(counters: *mut DnsCounters, table: u32) -> *mut u64 {
    // SAFETY: words of a map value.
    unsafe {
        match table {
            TABLE_QUERIES => &raw mut (*counters).removed,
            TABLE_CONNECTIONS => &raw mut (*counters).connections.removed,
            _ => &raw mut (*counters).senders.removed,
        }
    }
}

#[inline(always)]
fn used(table: u32, counter: u32) -> u64 {
    // SAFETY: a word of a map value.
    DNS_USED.get_ptr(used_index(table, counter)).map_or(0, |line| unsafe { (*line).count })
}

#[inline(always)]
fn add_used(table: u32, counter: u32) {
    if let Some(line) = DNS_USED.get_ptr_mut(used_index(table, counter)) {
        // SAFETY: a word of a map value.
        dns_counts::add(unsafe { &raw mut (*line).count });
    }
}

#[inline(always)]
fn swept(cgroup_id: u64, table: u32) -> u64 {
    let key = SweptKey { cgroup_id, table: table as u64 };
    // SAFETY: a map value, which only user space writes.
    DNS_SWEPT.get_ptr(key).map_or(0, |count| unsafe { *count })
}
