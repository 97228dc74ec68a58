//! The `dns` probe: cgroup_skb, connect and sendmsg hooks at the v2 root, and its maps: queries in flight, connections,
//! senders, and each cgroup's share of them.

mod a_names;
mod counters;
mod in_flight;
mod options;
mod shares;

use std::fs::File;
use std::net::IpAddr;

use anyhow::Context;
use aya::maps::{HashMap, ProgramArray};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, KProbe};
use aya::{Ebpf, EbpfLoader};
use podopsy_wire::{DnsConfig, TABLES};

use crate::program::{cgroup2_root, raw_tracepoint, take_map};
use crate::ring::Ring;

pub use a_names::ANames;
pub use counters::KernelCounts;
pub use in_flight::InFlight;
use options::HTTPS_MAX;
pub use options::{
    DNS_PORTS, DNS_TIMEOUT, DnsProbeOptions, HTTPS_RESOLVERS, Rate, dns_ports, https_resolvers,
};
pub use shares::{OwnedEntries, OwnedEntry, TableShares};

/// What the dns probe hands to user space.
pub struct DnsMaps {
    /// Records of queries that ended, and of socket errors.
    pub events: Ring,
    pub in_flight: InFlight,
    /// TCP connections to DNS servers.
    pub connections: OwnedEntries,
    /// Tasks that send by sockets that are not connected.
    pub senders: OwnedEntries,
    pub shares: TableShares,
    pub counts: KernelCounts,
    pub a_names: ANames,
}

impl DnsMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> anyhow::Result<DnsMaps> {
        Ok(DnsMaps {
            events: Ring::new("DNS_EVENTS", take_map(ebpf, "DNS_EVENTS")?)?,
            in_flight: InFlight::take(ebpf)?,
            connections: OwnedEntries::connections(ebpf)?,
            senders: OwnedEntries::senders(ebpf)?,
            shares: TableShares::take(ebpf)?,
            counts: KernelCounts::new(take_map(ebpf, "DNS_COUNTERS")?)?,
            a_names: ANames::take(ebpf)?,
        })
    }
}

/// The tables that cgroups share, by `TABLE_*`, and how many entries each has at least.
const TABLES_MIN: [(&str, u32); TABLES as usize] =
    [("DNS_IN_FLIGHT", 16_384), ("DNS_CONNECTIONS", 2048), ("DNS_SENDERS", 4096)];

/// How many entries each table has: more on machines with more than 64 CPUs, which run more containers.
pub(crate) fn tables_max() -> [u32; TABLES as usize] {
    let cpus = aya::util::nr_cpus().map_or(1, |cpus| u32::try_from(cpus).unwrap_or(u32::MAX));
    TABLES_MIN.map(|(_, least)| (least / 64).saturating_mul(cpus).max(least))
}

/// The probes' global `DNS`; None: the defaults.
pub(crate) fn config(options: Option<&DnsProbeOptions>) -> DnsConfig {
    let off = DnsProbeOptions::default();
    let options = options.unwrap_or(&off);
    DnsConfig {
        ports: options.ports,
        answers: options.answers.into(),
        slow_us: options.slow_over.map_or(0, |over| over.as_micros().clamp(1, u32::MAX.into()) as u32),
        sample: options.sample,
        interval_us: options.rate.interval_us(),
        burst: options.rate.burst.max(1),
        tables_max: tables_max(),
    }
}

pub(crate) fn size_maps(loader: &mut EbpfLoader<'_>) {
    for ((name, _), max) in TABLES_MIN.into_iter().zip(tables_max()) {
        loader.map_max_entries(name, max);
    }
}

/// Attaches; returns a description of the hooks, and of what this kernel lacks.
pub(crate) fn attach(ebpf: &mut Ebpf, wanted: &DnsProbeOptions) -> anyhow::Result<(String, Option<String>)> {
    let root = cgroup2_root()?;
    let cgroup = File::open(&root).with_context(|| format!("open {}", root.display()))?;
    add_https_resolvers(ebpf, &wanted.https)?;
    // What removes entries comes before what inserts them.
    raw_tracepoint(ebpf, "dns_tcp_state", "inet_sock_set_state")?;
    raw_tracepoint(ebpf, "dns_sender_exit", "sched_process_exit")?;
    // A program that is called must be loaded before its caller.
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
    if let Err(error) = release_hook(ebpf, &cgroup) {
        left_out.push(format!("queries whose socket was closed show as timeouts ({error:#})"));
    }
    if let Err(error) = raw_tracepoint(ebpf, "dns_answer_dropped", "udp_fail_queue_rcv_skb") {
        left_out.push(format!("answers that find a full receive buffer show as answered ({error:#})"));
    }
    // The tracepoint came with 5.13. Older kernels get a kprobe, where they have kprobes.
    let hook = match raw_tracepoint(ebpf, "dns_socket_error", "inet_sk_error_report") {
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
    Ok((format!("cgroup_skb, connect, sendmsg and sock_release at {}{hook}", root.display()), left_out))
}

/// Attaches the program for sockets that are closed; kernels before 5.9 have no such hook.
fn release_hook(ebpf: &mut Ebpf, cgroup: &File) -> anyhow::Result<()> {
    const NAME: &str = "dns_socket_release";
    let program: &mut CgroupSock =
        ebpf.program_mut(NAME).with_context(|| format!("no program {NAME}"))?.try_into()?;
    program.load().with_context(|| format!("load {NAME}"))?;
    program
        .attach(cgroup, CgroupAttachMode::Single)
        .with_context(|| format!("attach {NAME} to the root cgroup"))?;
    Ok(())
}

fn skb_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut CgroupSkb> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// An address as packets carry it, in four words, IPv4 as `::ffff:a.b.c.d`.
fn words(address: &IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let (chunks, _) = octets.as_chunks::<4>();
    [0, 1, 2, 3].map(|n| u32::from_ne_bytes(chunks[n]))
}

fn add_https_resolvers(ebpf: &mut Ebpf, addresses: &[IpAddr]) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn settings_fill_the_global_of_the_probes() {
        let slow_over = Some(Duration::from_millis(200));
        let wanted =
            DnsProbeOptions { slow_over, sample: 7, ports: [53, 0, 0, 5353], ..DnsProbeOptions::default() };
        let expected = DnsConfig {
            ports: [53, 0, 0, 5353],
            answers: 0,
            slow_us: 200_000,
            sample: 7,
            interval_us: 2000,
            burst: 500,
            tables_max: tables_max(),
        };
        assert_eq!(config(Some(&wanted)), expected);
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
