//! Shrinks the maps of probes that are not wanted: the loader creates all maps of the object, and of a profile's 16 MiB
//! those of DNS would be 12.

use aya::EbpfLoader;
use nix::unistd::{SysconfVar, sysconf};

use crate::ProbeOptions;

/// A pod's samples and files, where the maps count as the pod's memory: 64 samples with the longest stacks, and more files
/// than any pod maps.
const IN_POD: [(&str, u32); 4] =
    [("AYA_LOGS", 16 << 10), ("SAMPLES", 256 << 10), ("TABLE_REQUESTS", 32 << 10), ("TABLES", 1024)];

/// Call after every other change of sizes.
pub(crate) fn shrink(options: &ProbeOptions, loader: &mut EbpfLoader<'_>) {
    let by_tables = options.cpu.as_ref().is_some_and(|cpu| cpu.unwind);
    let maps = [
        ("DNS_IN_FLIGHT", options.dns.is_some()),
        ("DNS_CONNECTIONS", options.dns.is_some()),
        ("DNS_SENDERS", options.dns.is_some()),
        ("DNS_COUNTERS", options.dns.is_some()),
        ("DNS_SWEPT", options.dns.is_some()),
        ("DNS_ASKED", options.dns.is_some()),
        ("DNS_ANSWERED", options.dns.is_some()),
        ("DNS_A_NAMES", options.dns.is_some()),
        ("EXECUTABLES", options.oom),
        ("OOM_SIGNALLED", options.oom || options.sigkill),
        ("OOM_AT_WORK", options.sigkill),
        ("SIGKILL_BY_KERNEL", options.sigkill),
        ("TABLES", by_tables),
        ("RULES", by_tables),
    ];
    if options.cpu.as_ref().is_some_and(|cpu| cpu.in_pod) {
        for (name, max) in IN_POD {
            loader.map_max_entries(name, max);
        }
    }
    for (name, _) in maps.into_iter().filter(|(_, is_wanted)| !is_wanted) {
        loader.map_max_entries(name, 1);
    }
    // A ring has at least one page.
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u32::try_from(size).ok());
    let rings = [
        ("OOM_EVENTS", options.oom),
        ("EXECS", options.oom),
        ("SIGKILL_EVENTS", options.sigkill),
        ("DNS_EVENTS", options.dns.is_some()),
        ("SAMPLES", options.cpu.is_some()),
        ("TABLE_REQUESTS", by_tables),
    ];
    for (name, _) in rings.into_iter().filter(|(_, is_wanted)| !is_wanted) {
        loader.map_max_entries(name, page.unwrap_or(4096));
    }
}
