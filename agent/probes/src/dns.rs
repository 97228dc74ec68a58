//! The `dns` probe: cgroup_skb, connect and sendmsg hooks at the v2 root, and the map of queries in flight.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, bail};
use aya::maps::{HashMap, Map, MapData, ProgramArray};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, KProbe};
use aya::{Ebpf, EbpfLoader};
use podopsy_wire::{DNS_PORTS_MAX, DnsConfig, DnsCounters, DnsKey, DnsPending, STATE_TIMED_OUT};

use super::batch;

/// Server ports that carry DNS if nobody says otherwise; 0 is an unused slot.
pub const DNS_PORTS: [u16; DNS_PORTS_MAX] = [53, 0, 0, 0];

/// How long a query may wait before it is called a timeout, if nobody says otherwise: the resolver's
/// own default (resolv.conf(5), `timeout`).
pub const DNS_TIMEOUT: Duration = Duration::from_secs(5);

/// Public resolvers that answer by HTTPS on the addresses that they are known by: Cloudflare, Google, Quad9, OpenDNS,
/// AdGuard.
pub const HTTPS_RESOLVERS: [IpAddr; 16] = [
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V4(Ipv4Addr::new(1, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1001)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8844)),
    IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)),
    IpAddr::V4(Ipv4Addr::new(149, 112, 112, 112)),
    IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe)),
    IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 9)),
    IpAddr::V4(Ipv4Addr::new(208, 67, 222, 222)),
    IpAddr::V4(Ipv4Addr::new(208, 67, 220, 220)),
    IpAddr::V4(Ipv4Addr::new(94, 140, 14, 14)),
    IpAddr::V4(Ipv4Addr::new(94, 140, 15, 15)),
];

/// How many records of one container may be shipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 0: as many as there are.
    pub a_second: u32,
    /// How many may come at once.
    pub burst: u32,
}

impl Default for Rate {
    /// A container's burst fills less than half of the ring.
    fn default() -> Self {
        Rate { a_second: 500, burst: 500 }
    }
}

impl Rate {
    /// What a record has to wait for, in µs; 0: nothing.
    pub fn interval_us(&self) -> u32 {
        1_000_000u32.checked_div(self.a_second).map_or(0, |us| us.max(1))
    }
}

/// What of DNS to ship.
#[derive(Clone, Debug)]
pub struct DnsWanted {
    /// Answered queries, too.
    pub answers: bool,
    /// Answers that took longer.
    pub slow_over: Option<Duration>,
    /// One success in so many; 0: none.
    pub sample: u32,
    /// Server ports that carry DNS.
    pub ports: [u16; DNS_PORTS_MAX],
    /// Of each container.
    pub rate: Rate,
    /// Resolvers whose port 443 is DNS; more than 64 are not taken ([`https_resolvers`]).
    pub https: Vec<IpAddr>,
}

impl Default for DnsWanted {
    fn default() -> Self {
        DnsWanted {
            answers: false,
            slow_over: None,
            sample: 0,
            ports: DNS_PORTS,
            rate: Rate::default(),
            https: HTTPS_RESOLVERS.to_vec(),
        }
    }
}

/// Ports as the probes take them: 53 if none is wanted. An error: there are too many.
pub fn dns_ports(wanted: &[u16]) -> anyhow::Result<[u16; DNS_PORTS_MAX]> {
    if wanted.is_empty() {
        return Ok(DNS_PORTS);
    }
    if wanted.len() > DNS_PORTS_MAX {
        bail!("{} DNS ports: at most {DNS_PORTS_MAX} can be watched", wanted.len());
    }
    let mut ports = [0; DNS_PORTS_MAX];
    ports[..wanted.len()].copy_from_slice(wanted);
    Ok(ports)
}

/// How many resolvers can be known to answer by HTTPS.
const HTTPS_MAX: usize = 64;

/// The resolvers known to answer by HTTPS, and these. An error: there are too many.
pub fn https_resolvers(more: &[IpAddr]) -> anyhow::Result<Vec<IpAddr>> {
    let mut all = HTTPS_RESOLVERS.to_vec();
    for address in more {
        // As packets have it: an IPv4 address may be written in IPv6's way.
        let address = address.to_canonical();
        if !all.contains(&address) {
            all.push(address);
        }
    }
    if all.len() > HTTPS_MAX {
        let known = HTTPS_RESOLVERS.len();
        bail!("{} DoH resolvers: at most {} can be added", all.len() - known, HTTPS_MAX - known);
    }
    Ok(all)
}

/// `DnsConfig` as the words that it is made of, in memory order.
pub(super) fn config_words(wanted: Option<&DnsWanted>) -> [u32; size_of::<DnsConfig>() / 4] {
    let off = DnsWanted::default();
    let wanted = wanted.unwrap_or(&off);
    let pair = |low: u16, high: u16| {
        let ([a, b], [c, d]) = (low.to_ne_bytes(), high.to_ne_bytes());
        u32::from_ne_bytes([a, b, c, d])
    };
    let slow_us = wanted.slow_over.map_or(0, |over| over.as_micros().clamp(1, u32::MAX.into()) as u32);
    let [a, b, c, d] = wanted.ports;
    [
        pair(a, b),
        pair(c, d),
        wanted.answers.into(),
        slow_us,
        wanted.sample,
        wanted.rate.interval_us(),
        wanted.rate.burst.max(1),
    ]
}

/// An LRU map keeps up to 128 free places for each CPU, and evicts when only those are left.
pub(super) fn size_maps(loader: &mut EbpfLoader<'_>) {
    let cpus = aya::util::nr_cpus().map_or(1, |cpus| u32::try_from(cpus).unwrap_or(u32::MAX));
    let spare = cpus.saturating_mul(128);
    for (name, least) in [
        ("DNS_IN_FLIGHT", 16_384),
        ("DNS_CONNECTED", 4096),
        ("DNS_STREAMS", 2048),
        ("DNS_NAMED", 4096),
        ("DNS_ALIASES", 1024),
    ] {
        loader.map_max_entries(name, spare.saturating_mul(2).max(least));
    }
}

/// Attaches; returns the hooks, in words, and what this kernel made us leave out.
pub(super) fn attach(ebpf: &mut Ebpf, wanted: &DnsWanted) -> anyhow::Result<(String, Option<String>)> {
    let root = super::cgroup2_root()?;
    let cgroup = File::open(&root).with_context(|| format!("open {}", root.display()))?;
    know_resolvers(ebpf, &wanted.https)?;
    // Those that are called before those that call.
    for (index, name) in (0..).zip(["dns_tcp_egress", "dns_tcp_ingress"]) {
        let program = skb_program(ebpf, name)?;
        program.load().with_context(|| format!("load {name}"))?;
        let fd = program.fd()?.try_clone()?;
        let map = ebpf.map_mut("DNS_TCP").context("the probes have no map DNS_TCP")?;
        let mut calls = ProgramArray::try_from(map)?;
        calls.set(index, &fd, 0).with_context(|| format!("put {name} into the map DNS_TCP"))?;
    }
    for (name, direction) in
        [("dns_egress", CgroupSkbAttachType::Egress), ("dns_ingress", CgroupSkbAttachType::Ingress)]
    {
        let program = skb_program(ebpf, name)?;
        program.load().with_context(|| format!("load {name}"))?;
        // `Single` is "no flags": a link at a cgroup shares it with others as it is, and refuses flags.
        program
            .attach(&cgroup, direction, CgroupAttachMode::Single)
            .with_context(|| format!("attach {name} to {}", root.display()))?;
    }
    for name in ["dns_connect4", "dns_connect6", "dns_sendmsg4", "dns_sendmsg6"] {
        let program: &mut CgroupSockAddr =
            ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
        program.load().with_context(|| format!("load {name}"))?;
        program
            .attach(&cgroup, CgroupAttachMode::Single)
            .with_context(|| format!("attach {name} to {}", root.display()))?;
    }
    let mut left_out = Vec::new();
    if let Err(error) = super::oom::raw_tracepoint(ebpf, "dns_answer_dropped", "udp_fail_queue_rcv_skb") {
        left_out.push(format!("answers that find a full receive buffer show as answered ({error:#})"));
    }
    // The tracepoint is of 5.13. Before, a kprobe does as well, where the kernel has them.
    let hook = match super::oom::raw_tracepoint(ebpf, "dns_socket_error", "inet_sk_error_report") {
        Ok(()) => "; raw tracepoint inet_sk_error_report",
        Err(first) => match kprobe(ebpf, "dns_socket_error_probe", "sock_def_error_report") {
            Ok(()) => "; kprobe sock_def_error_report",
            Err(second) => {
                let why = format!("unreachable servers show as timeouts ({first:#}; and {second:#})");
                left_out.push(why);
                ""
            }
        },
    };
    let left_out = (!left_out.is_empty()).then(|| left_out.join("; "));
    Ok((format!("cgroup_skb, connect and sendmsg at {}{hook}", root.display()), left_out))
}

fn skb_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut CgroupSkb> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// The words of an address as packets have it, IPv4 as `::ffff:a.b.c.d`.
fn words(address: &IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let (chunks, _) = octets.as_chunks::<4>();
    [0, 1, 2, 3].map(|n| u32::from_ne_bytes(chunks[n]))
}

fn know_resolvers(ebpf: &mut Ebpf, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let map = ebpf.map_mut("DNS_HTTPS").context("the probes have no map DNS_HTTPS")?;
    let mut known: HashMap<_, [u32; 4], u8> = HashMap::try_from(map)?;
    for address in addresses.iter().take(HTTPS_MAX) {
        known
            .insert(words(address), 1, 0)
            .with_context(|| format!("put {address} into the map DNS_HTTPS"))?;
    }
    Ok(())
}

fn kprobe(ebpf: &mut Ebpf, program: &str, function: &str) -> anyhow::Result<()> {
    let found: &mut KProbe =
        ebpf.program_mut(program).with_context(|| format!("no program {program}"))?.try_into()?;
    found.load().with_context(|| format!("load {program}"))?;
    found.attach(function, 0).with_context(|| format!("attach {program} to {function}"))?;
    Ok(())
}

/// The map `DNS_IN_FLIGHT`, seen from user space.
pub struct InFlight {
    map: HashMap<MapData, Key, Pending>,
    fd: OwnedFd,
}

// The orphan rule: aya's `Pod` cannot be put on the wire's types from here.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Key(DnsKey);
// SAFETY: `#[repr(C)]`, integers only, no padding (asserted in the wire crate).
unsafe impl aya::Pod for Key {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Counters(DnsCounters);
// SAFETY: as above.
unsafe impl aya::Pod for Counters {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Pending(DnsPending);
// SAFETY: as above.
unsafe impl aya::Pod for Pending {}

impl InFlight {
    pub(super) fn new(map: Map) -> anyhow::Result<InFlight> {
        let fd = match &map {
            Map::LruHashMap(data) => data.fd().as_fd().try_clone_to_owned()?,
            _ => bail!("DNS_IN_FLIGHT is no LRU hash map"),
        };
        Ok(InFlight { map: HashMap::try_from(map).context("DNS_IN_FLIGHT is no hash map")?, fd })
    }

    /// Everything in the map. The kernel side writes meanwhile: an entry may be missed in one sweep
    /// and is found in the next.
    pub fn entries(&self) -> Vec<(DnsKey, DnsPending)> {
        match batch::entries::<Key, Pending>(self.fd.as_fd()) {
            Some(entries) => entries.into_iter().map(|(Key(key), Pending(pending))| (key, pending)).collect(),
            None => self.entries_one_by_one(),
        }
    }

    fn entries_one_by_one(&self) -> Vec<(DnsKey, DnsPending)> {
        self.map.iter().filter_map(Result::ok).map(|(Key(key), Pending(pending))| (key, pending)).collect()
    }

    /// Marks a query as timed out; false: its answer came in between, and will speak for itself.
    pub fn mark_timed_out(&mut self, key: DnsKey, pending: DnsPending) -> bool {
        const BPF_EXIST: u64 = 2;
        let marked = DnsPending { state: STATE_TIMED_OUT, ..pending };
        self.map.insert(Key(key), Pending(marked), BPF_EXIST).is_ok()
    }

    /// Takes a query out; false: the kernel side was faster.
    pub fn remove(&mut self, key: &DnsKey) -> bool {
        self.map.remove(&Key(*key)).is_ok()
    }
}

/// The map `DNS_COUNTERS`, seen from user space.
pub struct KernelCounts {
    map: HashMap<MapData, u64, Counters>,
}

impl KernelCounts {
    pub(super) fn new(map: Map) -> anyhow::Result<KernelCounts> {
        Ok(KernelCounts { map: HashMap::try_from(map).context("DNS_COUNTERS is no hash map")? })
    }

    /// Every memory cgroup's counters; those that have just been made are left to the next time.
    pub fn entries(&self) -> Vec<(u64, DnsCounters)> {
        let entries = self.map.iter().filter_map(Result::ok);
        entries.map(|(id, Counters(counters))| (id, counters)).filter(|(_, c)| c.since_ns != 0).collect()
    }

    /// Makes room; what is counted between the last look and this is lost, so take what has been idle.
    pub fn remove(&mut self, cgroup_id: u64) -> bool {
        self.map.remove(&cgroup_id).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_fill_their_slots() {
        assert_eq!(dns_ports(&[]).unwrap(), [53, 0, 0, 0]);
        assert_eq!(dns_ports(&[5353, 53]).unwrap(), [5353, 53, 0, 0]);
        assert!(dns_ports(&[1, 2, 3, 4, 5]).unwrap_err().to_string().contains("at most 4"));
    }

    #[test]
    fn resolvers_are_added_to_those_that_are_known() {
        let add = |text: &[&str]| {
            let more: Vec<IpAddr> = text.iter().map(|text| text.parse().unwrap()).collect();
            https_resolvers(&more).map(|all| all[HTTPS_RESOLVERS.len()..].to_vec())
        };
        let ours = IpAddr::from([10, 0, 0, 53]);
        assert_eq!(add(&["1.1.1.1", "10.0.0.53", "::ffff:10.0.0.53"]).unwrap(), [ours]);
        let many: Vec<IpAddr> = (0..49).map(|n| IpAddr::from([10, 0, 1, n])).collect();
        assert_eq!(https_resolvers(&many[..48]).unwrap().len(), HTTPS_MAX);
        assert!(https_resolvers(&many).unwrap_err().to_string().contains("at most 48"));
    }

    #[test]
    fn settings_are_words_in_memory_order() {
        let slow_over = Some(Duration::from_millis(200));
        let wanted = DnsWanted { slow_over, sample: 7, ports: [53, 0, 0, 5353], ..DnsWanted::default() };
        let words = config_words(Some(&wanted));
        assert_eq!(words[..2], [53, 5353 << 16].map(u32::from_le));
        assert_eq!(words[2..], [0, 200_000, 7, 2000, 500]);
        assert_eq!(Rate { a_second: 0, burst: 9 }.interval_us(), 0, "no bound");
        assert_eq!(Rate { a_second: 2_000_000, burst: 9 }.interval_us(), 1);
    }

    #[test]
    fn addresses_are_as_packets_have_them() {
        assert_eq!(
            words(&IpAddr::from([1, 2, 3, 4]))[2..],
            [[0, 0, 255, 255], [1, 2, 3, 4]].map(u32::from_ne_bytes)
        );
        let v6 = words(&"2620:fe::9".parse().unwrap());
        assert_eq!(
            (v6[0], v6[3]),
            (u32::from_ne_bytes([0x26, 0x20, 0, 0xfe]), u32::from_ne_bytes([0, 0, 0, 9]))
        );
    }
}
