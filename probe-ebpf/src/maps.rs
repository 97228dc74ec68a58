//! What the probes share: configuration, rings, counters.

use aya_ebpf::{
    Global,
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use podopsy_wire::{
    Config, DNS_CONTAINERS_MAX, DnsConfig, DnsCounters, DnsKey, DnsPending, LOSSES as NAMES, Layout, Loss,
    SCOPE_NODE, Task,
};

/// Set by user space before the load.
#[unsafe(no_mangle)]
pub static CONFIG: Global<Config> =
    Global::new(Config { layout: Layout::EMPTY, victim_is_task: 0, scope: SCOPE_NODE, sample_budget: 0 });

/// Set by user space before the load.
#[unsafe(no_mangle)]
pub static DNS: Global<DnsConfig> = Global::new(DnsConfig {
    ports: [53, 0, 0, 0],
    answers: 0,
    slow_us: 0,
    sample: 0,
    interval_us: 0,
    burst: 0,
});

/// One field of the global `DNS`: `Global::load` copies all of it, and this runs for every packet of the node.
macro_rules! dns_setting {
    ($field:ident) => {
        // SAFETY: a `Global` is its value and nothing else, and nobody writes it once the probes are loaded.
        unsafe {
            core::ptr::read_volatile(
                &raw const (*(&raw const $crate::maps::DNS).cast::<podopsy_wire::DnsConfig>()).$field,
            )
        }
    };
}
pub(crate) use dns_setting;

/// [`podopsy_wire::OomRecord`]s. A storm of 145 kills fits before anyone reads.
#[map]
pub static OOM_EVENTS: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// [`podopsy_wire::DnsRecord`]s and [`podopsy_wire::SocketError`]s, told apart by their size. A
/// ring of its own, so that an outage of DNS cannot crowd out a kill.
#[map]
pub static DNS_EVENTS: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);

/// [`podopsy_wire::Sample`]s.
#[map]
pub static SAMPLES: RingBuf = RingBuf::with_byte_size(SAMPLES_BYTES, 0);
pub const SAMPLES_BYTES: u32 = 1024 * 1024;

#[map]
pub static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(NAMES.len() as u32, 0);

/// Queries without their answer. LRU: an outage pushes out the oldest, and the counters
/// `DnsInserted` and `DnsRemoved` tell how many.
#[map]
pub static DNS_IN_FLIGHT: LruHashMap<DnsKey, DnsPending> = LruHashMap::with_max_entries(16384, 0);

/// Who connected a TCP socket to a DNS server, by socket cookie: segments may be sent by a softirq.
#[map]
pub static DNS_CONNECTED: LruHashMap<u64, Task> = LruHashMap::with_max_entries(4096, 0);

/// What is counted of each container's lookups, by memory cgroup id. Not per CPU and no LRU on purpose: on a
/// machine of many CPUs the first is large, and the second evicts before it is full. User space takes out those
/// that have long been idle.
#[map]
pub static DNS_COUNTERS: HashMap<u64, DnsCounters> = HashMap::with_max_entries(DNS_CONTAINERS_MAX, 0);

/// Addresses (as in `DnsKey::server`) of resolvers that are known to speak HTTPS.
#[map]
pub static DNS_HTTPS: HashMap<[u32; 4], u8> = HashMap::with_max_entries(64, 0);

/// Memory cgroup ids or process ids to sample, by `Config::scope`.
#[map]
pub static TARGETS: HashMap<u64, u8> = HashMap::with_max_entries(1024, 0);

#[inline(always)]
pub fn count(loss: Loss) {
    if let Some(counter) = LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: the slot is this CPU's own; an interrupt between load and store can only be
        // another probe of this file's, and then one count in billions is late, not memory.
        unsafe { *counter += 1 };
    }
}
