//! Counters of a network namespace, read through a process in it: what happened to datagrams that no probe sees.
//!
//! Sources: `/proc/PID/net/snmp` and `snmp6` (RFC 4113), and `/proc/PID/net/stat/nf_conntrack`, which `conntrack -S`
//! prints.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use super::resolv_conf::NetworkView;

/// The time between two readings of the same namespace, if there is no timeout.
const EVERY_NS: u64 = 5_000_000_000;
/// The same at a timeout: one reading is enough for all timeouts of the same sweep.
const EVERY_AT_TIMEOUT_NS: u64 = 200_000_000;
/// Readings that are kept for each namespace: they reach back as far as a resolver waits at most.
const READINGS_MAX: usize = 8;
const VIEWS_MAX: usize = 1024;
/// Two readings that are closer together are not compared: nothing could have happened in between.
const WINDOW_MIN_NS: u64 = 100_000_000;

/// Counters by name.
pub type Counters = BTreeMap<String, u64>;

/// (the kernel's prefix, the kernel's name, our name). `Udp: InDatagrams` is `Udp6InDatagrams` in the file for IPv6.
const WANTED: [(&str, &str, &str); 9] = [
    ("Ip", "OutNoRoutes", "ip_out_no_routes"),
    ("Ip", "OutDiscards", "ip_out_discards"),
    ("Udp", "InDatagrams", "udp_in_datagrams"),
    ("Udp", "NoPorts", "udp_no_ports"),
    ("Udp", "InErrors", "udp_in_errors"),
    ("Udp", "RcvbufErrors", "udp_rcvbuf_errors"),
    ("Udp", "SndbufErrors", "udp_sndbuf_errors"),
    ("Udp", "InCsumErrors", "udp_in_csum_errors"),
    ("Udp", "MemErrors", "udp_mem_errors"),
];

/// The last readings of each namespace's counters.
#[derive(Debug)]
pub struct CounterHistory {
    proc_root: PathBuf,
    /// (boot clock, counters), oldest first.
    readings: HashMap<NetworkView, VecDeque<(u64, Counters)>>,
    /// In the order of the first reading.
    order: VecDeque<NetworkView>,
}

impl CounterHistory {
    pub fn new(proc_root: &Path) -> CounterHistory {
        CounterHistory { proc_root: proc_root.to_owned(), readings: HashMap::new(), order: VecDeque::new() }
    }

    /// Reads the counters, unless they were just read. `now_ns`: boot clock.
    pub fn sample(&mut self, view: NetworkView, pid: u32, now_ns: u64, timeout: bool) {
        let every = if timeout { EVERY_AT_TIMEOUT_NS } else { EVERY_NS };
        let last = self.readings.get(&view).and_then(|readings| readings.back()).map(|(time, _)| *time);
        if last.is_some_and(|last| now_ns < last.saturating_add(every)) {
            return;
        }
        let counters = read(&self.proc_root, pid);
        if counters.is_empty() {
            return;
        }
        if last.is_none() {
            if self.order.len() >= VIEWS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.readings.remove(&oldest);
            }
            self.order.push_back(view);
        }
        let readings = self.readings.entry(view).or_default();
        if readings.len() >= READINGS_MAX {
            readings.pop_front();
        }
        readings.push_back((now_ns, counters));
    }

    /// The counters before and after a lookup that started at `start_ns`, and the ns between both readings; None: there
    /// are no two readings.
    pub fn around(&self, view: NetworkView, start_ns: u64) -> Option<(&Counters, &Counters, u64)> {
        let readings = self.readings.get(&view)?;
        let before =
            readings.iter().rev().find(|(time, _)| *time <= start_ns).or_else(|| readings.front())?;
        let after = readings.back()?;
        let window = after.0.checked_sub(before.0).filter(|&window| window >= WINDOW_MIN_NS)?;
        Some((&before.1, &after.1, window))
    }
}

/// Reads the counters through a process; empty if the process is gone.
pub fn read(proc_root: &Path, pid: u32) -> Counters {
    let file = |pid: u32, name: &str| {
        std::fs::read_to_string(proc_root.join(pid.to_string()).join("net").join(name)).unwrap_or_default()
    };
    let mut out = snmp(&file(pid, "snmp"), &file(pid, "snmp6"));
    if out.is_empty() {
        return out;
    }
    out.extend(
        conntrack(&file(pid, "stat/nf_conntrack"))
            .into_iter()
            .map(|(name, n)| (format!("conntrack_{name}"), n)),
    );
    // Addresses of Services are translated in the node's own namespace, which is that of process 1.
    let node = conntrack(&file(1, "stat/nf_conntrack"));
    out.extend(node.into_iter().map(|(name, n)| (format!("node_conntrack_{name}"), n)));
    out
}

fn snmp(v4: &str, v6: &str) -> Counters {
    let mut out = Counters::new();
    let mut add = |prefix: &str, field: &str, value: &str| {
        let wanted = WANTED.iter().find(|(p, f, _)| *p == prefix && *f == field);
        if let (Some((.., name)), Ok(value)) = (wanted, value.parse::<u64>()) {
            let sum = out.entry((*name).to_owned()).or_insert(0);
            *sum = u64::saturating_add(*sum, value);
        }
    };
    // Two lines for each protocol: the names, then the values.
    let mut lines = v4.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let Some((prefix, names)) = names.split_once(':') else { continue };
        let values = values.split_once(':').map_or("", |(_, values)| values);
        for (field, value) in names.split_ascii_whitespace().zip(values.split_ascii_whitespace()) {
            add(prefix, field, value);
        }
    }
    for line in v6.lines() {
        let mut parts = line.split_ascii_whitespace();
        if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            for prefix in ["Ip", "Udp"] {
                if let Some(field) = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('6')) {
                    add(prefix, field, value);
                }
            }
        }
    }
    out
}

/// Parses a line of names, followed by a line of hexadecimal numbers for each CPU.
fn conntrack(text: &str) -> Vec<(&'static str, u64)> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split_ascii_whitespace().collect()).collect();
    ["insert_failed", "drop"]
        .into_iter()
        .filter_map(|wanted| {
            let column = names.iter().position(|name| *name == wanted)?;
            let count = |row: &Vec<&str>| u64::from_str_radix(row.get(column)?, 16).ok();
            Some((wanted, rows.iter().filter_map(count).sum()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_parsed() {
        let v4 = "Ip: Forwarding OutDiscards OutNoRoutes\nIp: 1 4 2\nUdp: InDatagrams NoPorts InErrors RcvbufErrors\nUdp: 10 1 3 3\n";
        let v6 = "Ip6OutNoRoutes 5\nUdp6InDatagrams 7\nUdpLite6InDatagrams 9\n";
        let read = snmp(v4, v6);
        assert_eq!(
            (read["udp_in_datagrams"], read["udp_rcvbuf_errors"], read["ip_out_no_routes"]),
            (17, 3, 7)
        );
        let stat = "entries  clashres found insert_failed drop\n00000010  00000000 00000001 0000000a 00000001\n00000010 0 0 00000006 0\n";
        assert_eq!(conntrack(stat), [("insert_failed", 16), ("drop", 1)]);
        assert!(snmp("garbage\n", "x").is_empty() && conntrack("").is_empty());
        assert!(self::read(Path::new("/proc"), std::process::id()).contains_key("udp_in_datagrams"));
        assert!(self::read(Path::new("/proc"), u32::MAX).is_empty());
    }

    #[test]
    fn readings_are_bounded_and_the_one_before_the_lookup_is_found() {
        let mut history = CounterHistory::new(Path::new("/proc"));
        let view = NetworkView::Container { cgroup: 1 };
        let me = std::process::id();
        let second = 1_000_000_000;
        for at in 0..20 {
            history.sample(view, me, at * 5 * second, false);
            history.sample(view, me, at * 5 * second + 1, false);
        }
        assert_eq!(history.readings[&view].len(), READINGS_MAX);
        assert_eq!(history.around(view, 92 * second).unwrap().2, 5 * second);
        assert_eq!(history.around(view, 3 * second).unwrap().2, 35 * second);
        history.sample(view, me, 95 * second + second / 2, true);
        assert_eq!(history.around(view, 95 * second).unwrap().2, second / 2);
        assert!(history.around(NetworkView::Container { cgroup: 2 }, 0).is_none());
    }
}
