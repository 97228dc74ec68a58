//! The `dns` probe: cgroup_skb and connect hooks at the v2 root, and the map of queries in flight.

use std::fs::File;

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, KProbe};
use podopsy_wire::{DnsKey, DnsPending, STATE_TIMED_OUT};

/// Attaches; returns the hooks, in words, and what this kernel made us leave out.
pub fn attach(ebpf: &mut Ebpf) -> anyhow::Result<(String, Option<String>)> {
    let root = super::cgroup2_root()?;
    let cgroup = File::open(&root).with_context(|| format!("open {}", root.display()))?;
    for (name, direction) in
        [("dns_egress", CgroupSkbAttachType::Egress), ("dns_ingress", CgroupSkbAttachType::Ingress)]
    {
        let program: &mut CgroupSkb =
            ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
        program.load().with_context(|| format!("load {name}"))?;
        // `Single` is "no flags": a link at a cgroup shares it with others as it is, and refuses flags.
        program
            .attach(&cgroup, direction, CgroupAttachMode::Single)
            .with_context(|| format!("attach {name} to {}", root.display()))?;
    }
    for name in ["dns_connect4", "dns_connect6"] {
        let program: &mut CgroupSockAddr =
            ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
        program.load().with_context(|| format!("load {name}"))?;
        program
            .attach(&cgroup, CgroupAttachMode::Single)
            .with_context(|| format!("attach {name} to {}", root.display()))?;
    }
    let hooks = format!("cgroup_skb and connect at {}", root.display());
    // The tracepoint is of 5.13. Before, a kprobe does as well, where the kernel has them.
    let tracepoint = super::oom::raw_tracepoint(ebpf, "dns_socket_error", "inet_sk_error_report");
    let Err(first) = tracepoint else {
        return Ok((format!("{hooks}; raw tracepoint inet_sk_error_report"), None));
    };
    let Err(second) = kprobe(ebpf, "dns_socket_error_probe", "sock_def_error_report") else {
        return Ok((format!("{hooks}; kprobe sock_def_error_report"), None));
    };
    Ok((hooks, Some(format!("unreachable servers show as timeouts ({first:#}; and {second:#})"))))
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
}

// The orphan rule: aya's `Pod` cannot be put on the wire's types from here.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Key(DnsKey);
// SAFETY: `#[repr(C)]`, integers only, no padding (asserted in the wire crate).
unsafe impl aya::Pod for Key {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Pending(DnsPending);
// SAFETY: as above.
unsafe impl aya::Pod for Pending {}

impl InFlight {
    pub(super) fn new(map: Map) -> anyhow::Result<InFlight> {
        Ok(InFlight { map: HashMap::try_from(map).context("DNS_IN_FLIGHT is no hash map")? })
    }

    /// Everything in the map. The kernel side writes meanwhile: an entry may be missed in one sweep
    /// and is found in the next.
    pub fn entries(&self) -> Vec<(DnsKey, DnsPending)> {
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
