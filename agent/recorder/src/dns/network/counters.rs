//! Counters of a network namespace, by way of a process in it: what became of datagrams that no probe sees.
//!
//! `/proc/PID/net/snmp` and `snmp6` (RFC 4113), `/proc/PID/net/stat/nf_conntrack` (what `conntrack -S` prints).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use super::resolv_conf::NetworkView;

/// Between two looks at the same namespace, but for a timeout.
const EVERY_NS: u64 = 5_000_000_000;
/// At a timeout: one look serves all those of the same sweep.
const AT_ONCE_NS: u64 = 200_000_000;
/// CounterHistory kept for each: as far back as a resolver's longest wait.
const LOOKS_MAX: usize = 8;
const KEYS_MAX: usize = 1024;
/// Below that, nothing could have happened in between.
const WINDOW_MIN_NS: u64 = 100_000_000;

/// Counters by name.
pub type Counters = BTreeMap<String, u64>;

/// (the kernel's prefix, its word, our name); the IPv6 file says `Udp6InDatagrams` for `Udp: InDatagrams`.
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

/// The last looks at each namespace.
#[derive(Debug)]
pub struct CounterHistory {
    proc_root: PathBuf,
    looks: HashMap<NetworkView, VecDeque<(u64, Counters)>>,
    order: VecDeque<NetworkView>,
}

impl CounterHistory {
    pub fn new(proc_root: &Path) -> CounterHistory {
        CounterHistory { proc_root: proc_root.to_owned(), looks: HashMap::new(), order: VecDeque::new() }
    }

    /// CounterHistory at the counters, unless that was just done. `now_ns`: boot clock.
    pub fn sample(&mut self, of: NetworkView, pid: u32, now_ns: u64, timeout: bool) {
        let every = if timeout { AT_ONCE_NS } else { EVERY_NS };
        let last = self.looks.get(&of).and_then(|looks| looks.back()).map(|look| look.0);
        if last.is_some_and(|last| now_ns < last.saturating_add(every)) {
            return;
        }
        let counters = read(&self.proc_root, pid);
        if counters.is_empty() {
            return;
        }
        if last.is_none() {
            if self.order.len() >= KEYS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.looks.remove(&oldest);
            }
            self.order.push_back(of);
        }
        let looks = self.looks.entry(of).or_default();
        if looks.len() >= LOOKS_MAX {
            looks.pop_front();
        }
        looks.push_back((now_ns, counters));
    }

    /// (Before, after, ns between them) a lookup that was under way from `start_ns` on; None: there are no two looks.
    pub fn around(&self, of: NetworkView, start_ns: u64) -> Option<(&Counters, &Counters, u64)> {
        let looks = self.looks.get(&of)?;
        let before = looks.iter().rev().find(|look| look.0 <= start_ns).or_else(|| looks.front())?;
        let after = looks.back()?;
        let window = after.0.checked_sub(before.0).filter(|&window| window >= WINDOW_MIN_NS)?;
        Some((&before.1, &after.1, window))
    }
}

/// Empty: the process is gone.
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
            .map(|(word, n)| (format!("conntrack_{word}"), n)),
    );
    // Service addresses are translated in the node's own namespace: that is the first process's.
    let node = conntrack(&file(1, "stat/nf_conntrack"));
    out.extend(node.into_iter().map(|(word, n)| (format!("node_conntrack_{word}"), n)));
    out
}

fn snmp(v4: &str, v6: &str) -> Counters {
    let mut out = Counters::new();
    let mut add = |prefix: &str, word: &str, value: &str| {
        let wanted = WANTED.iter().find(|(p, w, _)| *p == prefix && *w == word);
        if let (Some((.., name)), Ok(value)) = (wanted, value.parse::<u64>()) {
            let sum = out.entry((*name).to_owned()).or_insert(0);
            *sum = u64::saturating_add(*sum, value);
        }
    };
    // Two lines each: the words, and then the values.
    let mut lines = v4.lines();
    while let (Some(words), Some(values)) = (lines.next(), lines.next()) {
        let Some((prefix, words)) = words.split_once(':') else { continue };
        let values = values.split_once(':').map_or("", |(_, values)| values);
        for (word, value) in words.split_ascii_whitespace().zip(values.split_ascii_whitespace()) {
            add(prefix, word, value);
        }
    }
    for line in v6.lines() {
        let mut parts = line.split_ascii_whitespace();
        if let (Some(word), Some(value)) = (parts.next(), parts.next()) {
            for prefix in ["Ip", "Udp"] {
                if let Some(word) = word.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('6')) {
                    add(prefix, word, value);
                }
            }
        }
    }
    out
}

/// A line of words, then for each CPU a line of hexadecimal numbers.
fn conntrack(text: &str) -> Vec<(&'static str, u64)> {
    let mut lines = text.lines();
    let words: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split_ascii_whitespace().collect()).collect();
    ["insert_failed", "drop"]
        .into_iter()
        .filter_map(|wanted| {
            let column = words.iter().position(|word| *word == wanted)?;
            let of_cpu = |row: &Vec<&str>| u64::from_str_radix(row.get(column)?, 16).ok();
            Some((wanted, rows.iter().filter_map(of_cpu).sum()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
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
    fn looks_are_bounded_and_the_one_before_is_found() {
        let mut looks = CounterHistory::new(Path::new("/proc"));
        let of = NetworkView::Container { cgroup: 1 };
        let me = std::process::id();
        let second = 1_000_000_000;
        for at in 0..20 {
            looks.sample(of, me, at * 5 * second, false);
            looks.sample(of, me, at * 5 * second + 1, false);
        }
        assert_eq!(looks.looks[&of].len(), LOOKS_MAX);
        assert_eq!(looks.around(of, 92 * second).unwrap().2, 5 * second);
        assert_eq!(looks.around(of, 3 * second).unwrap().2, 35 * second);
        looks.sample(of, me, 95 * second + second / 2, true);
        assert_eq!(looks.around(of, 95 * second).unwrap().2, second / 2);
        assert!(looks.around(NetworkView::Container { cgroup: 2 }, 0).is_none());
    }
}
