//! Maps of what is not wanted are made as small as they can be: the object's maps are all made, whoever uses them, and of
//! a profile's 16 MiB 12 would be those of DNS.

use aya::EbpfLoader;
use nix::unistd::{SysconfVar, sysconf};

use super::Wanted;

/// To be called behind whatever else sizes maps.
pub(super) fn shrink(wanted: &Wanted, loader: &mut EbpfLoader<'_>) {
    let by_tables = wanted.oncpu.as_ref().is_some_and(|oncpu| oncpu.unwind);
    let maps = [
        ("DNS_IN_FLIGHT", wanted.dns.is_some()),
        ("DNS_CONNECTED", wanted.dns.is_some()),
        ("DNS_STREAMS", wanted.dns.is_some()),
        ("DNS_COUNTERS", wanted.dns.is_some()),
        ("EXECUTABLES", wanted.oom),
        ("TABLES", by_tables),
        ("RULES", by_tables),
    ];
    for (name, _) in maps.into_iter().filter(|(_, is_wanted)| !is_wanted) {
        loader.map_max_entries(name, 1);
    }
    // A ring has a page at least.
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u32::try_from(size).ok());
    let rings = [
        ("OOM_EVENTS", wanted.oom),
        ("EXECS", wanted.oom),
        ("SIGNAL_EVENTS", wanted.sigkill),
        ("DNS_EVENTS", wanted.dns.is_some()),
        ("SAMPLES", wanted.oncpu.is_some()),
        ("TABLE_REQUESTS", by_tables),
    ];
    for (name, _) in rings.into_iter().filter(|(_, is_wanted)| !is_wanted) {
        loader.map_max_entries(name, page.unwrap_or(4096));
    }
}
