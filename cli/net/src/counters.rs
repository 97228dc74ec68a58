//! Counters of the namespace since it was created, from `/proc/thread-self/net/netstat`.

use std::fs;

use serde::Serialize;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TcpCounters {
    /// Connections that were not accepted because an accept queue was full.
    pub listen_overflows: u64,
    /// Connections that a listener lost for any reason.
    pub listen_drops: u64,
    /// Timeouts after which TCP sent again.
    pub timeouts: u64,
}

impl TcpCounters {
    pub(crate) fn read() -> TcpCounters {
        TcpCounters::parse(&fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default())
    }

    /// A line of names is followed by one of values, both behind `TcpExt:`.
    fn parse(text: &str) -> TcpCounters {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let names = lines.next().unwrap_or_default().split_whitespace();
        let values = lines.next().unwrap_or_default().split_whitespace();
        let mut counters = TcpCounters::default();
        for (name, value) in names.zip(values.filter_map(|value| value.parse().ok())) {
            match name {
                "ListenOverflows" => counters.listen_overflows = value,
                "ListenDrops" => counters.listen_drops = value,
                "TCPTimeouts" => counters.timeouts = value,
                _ => {}
            }
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPTimeouts New\nTcpExt: 1 2 3 4 5\nIpExt: A\nIpExt: 9\n";
        let expected = TcpCounters { listen_overflows: 2, listen_drops: 3, timeouts: 4 };
        assert_eq!(TcpCounters::parse(text), expected);
        assert_eq!(TcpCounters::parse("TcpExt: A"), TcpCounters::default());
    }
}
