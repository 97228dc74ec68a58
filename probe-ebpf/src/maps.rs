//! Globals, rings and maps that several probes share, and the loss counters.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use podopsy_wire::{
    CacheLine, Config, DNS_CONTAINERS_MAX, DnsConfig, DnsCounters, DnsKey, DnsPending, Layout, Loss,
    SCOPE_NODE, SweptKey, TABLES, USED_MAX,
};

/// Set by user space before the load.
#[unsafe(no_mangle)]
pub static CONFIG: Global<Config> = Global::new(Config {
    layout: Layout::EMPTY,
    victim_is_task: 0,
    scope: SCOPE_NODE,
    sample_budget: 0,
    pid_namespace: 0,
});

/// Set by user space before the load.
#[unsafe(no_mangle)]
pub static DNS: Global<DnsConfig> = Global::new(DnsConfig {
    ports: [53, 0, 0, 0],
    answers: 0,
    slow_us: 0,
    sample: 0,
    interval_us: 0,
    burst: 0,
    tables_max: [0; TABLES as usize],
});

/// One field of the global `DNS`. `Global::load` would copy all of it, and this runs for every packet of the node.
macro_rules! dns_setting {
    ($field:ident) => {
        // SAFETY: a `Global` consists of its value, and nothing writes it after the load.
        unsafe {
            core::ptr::read_volatile(
                &raw const (*(&raw const $crate::maps::DNS).cast::<podopsy_wire::DnsConfig>()).$field,
            )
        }
    };
}
pub(crate) use dns_setting;

/// [`podopsy_wire::OomRecord`]s. 145 kills fit before user space has to read.
#[map]
pub static OOM_EVENTS: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// [`podopsy_wire::DnsRecord`]s and [`podopsy_wire::SocketError`]s, distinguished by their size. DNS has a ring of its
/// own, so that an outage of DNS cannot displace a kill.
#[map]
pub static DNS_EVENTS: RingBuf = RingBuf::with_byte_size(DNS_EVENTS_BYTES, 0);
pub const DNS_EVENTS_BYTES: u32 = 1024 * 1024;

/// [`podopsy_wire::Sample`]s.
#[map]
pub static SAMPLES: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);

/// Loss counters, by [`Loss`].
#[map]
pub static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Loss::ALL.len() as u32, 0);

/// Queries in flight. It is not LRU on purpose: such a map evicts the oldest entries, whichever cgroup fills it. Each
/// cgroup has a share instead (`dns_share`), and user space removes what has timed out.
#[map]
pub static DNS_IN_FLIGHT: HashMap<DnsKey, DnsPending> = HashMap::with_max_entries(16384, 0);

/// How many entries each table has that cgroups share: counters by [`podopsy_wire::used_index`], each in a cache line of its
/// own.
#[map]
pub static DNS_USED: Array<CacheLine> = Array::with_max_entries(USED_MAX, 0);

/// How many entries of each cgroup user space has removed from each table. Only user space writes it; it cannot add to a
/// value of `DNS_COUNTERS` while the kernel side does.
#[map]
pub static DNS_SWEPT: HashMap<SweptKey, u64> =
    HashMap::with_max_entries(TABLES * DNS_CONTAINERS_MAX, BPF_F_NO_PREALLOC);

/// Counters of each container, by memory cgroup id. It is neither per CPU nor LRU on purpose: on a machine with many
/// CPUs the first is large, and the second evicts before it is full. User space removes entries that have been idle for
/// long.
#[map]
pub static DNS_COUNTERS: HashMap<u64, DnsCounters> = HashMap::with_max_entries(DNS_CONTAINERS_MAX, 0);

/// Addresses (as in `DnsKey::server`) of resolvers that are known to speak HTTPS.
#[map]
pub static DNS_HTTPS: HashMap<[u32; 4], u8> = HashMap::with_max_entries(64, 0);

/// Memory cgroup ids or process ids to sample, by `Config::scope`.
#[map]
pub static TARGETS: HashMap<u64, u8> = HashMap::with_max_entries(1024, 0);

/// Adds one to a loss counter.
#[inline(always)]
pub fn count(loss: Loss) {
    if let Some(counter) = LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: the slot is this CPU's own. Only another probe can interrupt between load and store; then one count
        // is lost, in billions, and no memory is corrupted.
        unsafe { *counter += 1 };
    }
}
