//! What of DNS to watch and to ship.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::bail;
use podopsy_wire::DNS_PORTS_MAX;

/// The default server ports of DNS; 0 is an unused slot.
pub const DNS_PORTS: [u16; DNS_PORTS_MAX] = [53, 0, 0, 0];

/// After this time a query without an answer is a timeout, by default: as in the resolver itself (resolv.conf(5),
/// `timeout`).
pub const DNS_TIMEOUT: Duration = Duration::from_secs(5);

/// Public resolvers that serve DNS over HTTPS on their well-known addresses: Cloudflare, Google, Quad9, OpenDNS,
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

/// The bound on shipped records, for each container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Records a second; 0: no bound.
    pub a_second: u32,
    /// Records that may be shipped at once.
    pub burst: u32,
}

impl Default for Rate {
    /// A container's burst fills less than half of the ring.
    fn default() -> Self {
        Rate { a_second: 500, burst: 500 }
    }
}

impl Rate {
    /// The time that a record costs, in µs; 0: no bound.
    pub fn interval_us(&self) -> u32 {
        1_000_000u32.checked_div(self.a_second).map_or(0, |us| us.max(1))
    }
}

/// Which DNS records the kernel side ships.
#[derive(Clone, Debug)]
pub struct DnsProbeOptions {
    /// Ship answered queries, too.
    pub answers: bool,
    /// Ship answers that took longer than this.
    pub slow_over: Option<Duration>,
    /// Ship one success in this many; 0: none.
    pub sample: u32,
    /// Server ports that carry DNS.
    pub ports: [u16; DNS_PORTS_MAX],
    /// The bound for each container.
    pub rate: Rate,
    /// Resolvers whose port 443 is DNS over HTTPS; at most 64 ([`https_resolvers`]).
    pub https: Vec<IpAddr>,
}

impl Default for DnsProbeOptions {
    fn default() -> Self {
        DnsProbeOptions {
            answers: false,
            slow_over: None,
            sample: 0,
            ports: DNS_PORTS,
            rate: Rate::default(),
            https: HTTPS_RESOLVERS.to_vec(),
        }
    }
}

/// The ports to watch, in the form that the probes take: 53 if `wanted` is empty. Fails for more than four.
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

/// Resolvers that the map DNS_HTTPS holds.
pub(crate) const HTTPS_MAX: usize = 64;

/// [`HTTPS_RESOLVERS`] and `more`. Fails when there are more than the map holds.
pub fn https_resolvers(more: &[IpAddr]) -> anyhow::Result<Vec<IpAddr>> {
    let mut all = HTTPS_RESOLVERS.to_vec();
    for address in more {
        // Packets carry IPv4 addresses; a user may write one as IPv4-mapped IPv6.
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
}
