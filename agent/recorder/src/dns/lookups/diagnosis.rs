//! Network counters around a timeout → diagnosis. Pure: [`crate::dns::network::counters`] reads the counters.

use std::collections::BTreeMap;

use std::net::{IpAddr, SocketAddr};

use podopsy_model::lookup::{Diagnosis, DiagnosisVerdict, LookupResult, LookupTransaction};
use podopsy_model::{Lookup, Outcome, TcpFailure};

/// Counters by name, as `network::counters` returns them.
pub type Counters = BTreeMap<String, u64>;

/// The kernel discarded packets before they left.
const NOT_SENT: [&str; 3] = ["ip_out_no_routes", "ip_out_discards", "udp_sndbuf_errors"];
/// A datagram arrived and no application received it.
const DROPPED: [&str; 3] = ["udp_rcvbuf_errors", "udp_in_csum_errors", "udp_mem_errors"];
/// Dropped because there was no connection tracking entry. Two sockets that race for one entry count as
/// `insert_failed`.
const CONNTRACK: [&str; 2] = ["conntrack_insert_failed", "conntrack_drop"];

/// The counters that rose from `before` to `after`, and by how much.
pub fn growth(before: &Counters, after: &Counters) -> Counters {
    let risen = after.iter().filter_map(|(name, now)| {
        let increase = now.checked_sub(*before.get(name)?)?;
        (increase > 0).then(|| (name.clone(), increase))
    });
    risen.collect()
}

/// What was seen of the queries of a lookup that failed.
#[derive(Clone, Debug, Default)]
pub struct SeenOfQueries {
    pub sends: u32,
    /// An answer came after the timeout.
    pub late: bool,
    /// An answer came while its socket's receive buffer was full.
    pub dropped_at_socket: bool,
    /// An answer came from this address, which is not the server's.
    pub answered_from: Option<IpAddr>,
    /// The client waited for so long, and closed its socket.
    pub closed_after_ns: Option<u64>,
    /// The last TCP connection that failed.
    pub tcp: Option<FailedTcp>,
}

/// A TCP connection that failed.
#[derive(Clone, Copy, Debug)]
pub struct FailedTcp {
    pub server: SocketAddr,
    pub failure: TcpFailure,
    pub after_ns: u64,
    /// An answer over UDP was truncated before.
    pub after_truncated: bool,
}

impl SeenOfQueries {
    pub fn new(lookup: &Lookup) -> SeenOfQueries {
        let steps = &lookup.transactions;
        let is_truncated = |step: &LookupTransaction| step.outcome == Outcome::Truncated;
        let tcp = steps.iter().rev().find_map(|step| {
            Some(FailedTcp {
                server: step.server,
                failure: step.facts.tcp_failure?,
                after_ns: step.latency_ns,
                after_truncated: steps.iter().any(is_truncated),
            })
        });
        let closed = steps.iter().filter(|step| step.facts.socket_closed && !step.facts.superseded);
        SeenOfQueries {
            sends: lookup.sends,
            late: lookup.result == LookupResult::Late,
            dropped_at_socket: steps.iter().any(|step| step.answer_dropped),
            answered_from: steps.iter().find_map(|step| step.facts.answered_from).map(|address| address.ip()),
            closed_after_ns: closed.map(|step| step.latency_ns).max(),
            tcp,
        }
    }
}

/// Diagnoses a lookup that failed without an answer.
///
/// `grown`: the time between two readings of the counters in ns, and what rose in it; None: there were no two readings.
pub fn diagnose(seen: &SeenOfQueries, grown: Option<(u64, Counters)>) -> Diagnosis {
    if let Some(tcp) = &seen.tcp {
        let verdict = DiagnosisVerdict::TcpFailed;
        return Diagnosis { verdict, text: describe_tcp(tcp), window_ns: None, counters: Counters::new() };
    }
    let sends = seen.sends;
    let (window_ns, counters) = match grown {
        Some((window_ns, counters)) => (Some(window_ns), counters),
        None => (None, Counters::new()),
    };
    let risen = |names: &[&str]| -> Vec<String> {
        let hits = counters.iter().filter(|(name, _)| {
            let plain = name.strip_prefix("node_").unwrap_or(name);
            names.contains(&plain)
        });
        hits.map(|(name, count)| format!("{name} +{count}")).collect()
    };
    let (not_sent, dropped, conntrack) = (risen(&NOT_SENT), risen(&DROPPED), risen(&CONNTRACK));
    let sent = if sends == 1 { "sent once".to_owned() } else { format!("sent {sends} times") };
    let (verdict, finding) = if seen.late {
        (DiagnosisVerdict::AnsweredLate, format!("{sent}, and answered late"))
    } else if let Some(address) = seen.answered_from {
        (DiagnosisVerdict::OtherAddress, format!("{sent}; an answer came from another address, {address}"))
    } else if seen.dropped_at_socket {
        let why = "an answer came and was dropped, because its socket's receive buffer was full";
        (DiagnosisVerdict::AnswerDropped, format!("{sent}; {why}"))
    } else if !dropped.is_empty() {
        (
            DiagnosisVerdict::AnswerDropped,
            format!(
                "{sent}; datagrams were dropped in the receiver's network namespace ({})",
                dropped.join(", ")
            ),
        )
    } else if !not_sent.is_empty() {
        (
            DiagnosisVerdict::NotSent,
            format!("the kernel discarded packets before they left ({})", not_sent.join(", ")),
        )
    } else if !conntrack.is_empty() {
        (
            DiagnosisVerdict::DroppedByConntrack,
            format!("{sent}; connection tracking dropped packets on this node ({})", conntrack.join(", ")),
        )
    } else {
        let until = seen.closed_after_ns.map_or_else(String::new, |after_ns| {
            format!(" in {}, until the client closed its socket", duration(after_ns))
        });
        (DiagnosisVerdict::Unanswered, format!("{sent}, and no answer was seen to come{until}"))
    };
    let traffic = match window_ns {
        Some(window_ns) => format!("; {}", describe_traffic(window_ns, &counters)),
        // The counters could have shown where the answer was lost. Any other verdict needs none.
        None if verdict == DiagnosisVerdict::Unanswered => {
            "; there was no earlier reading of the counters to compare with".to_owned()
        }
        None => String::new(),
    };
    Diagnosis { verdict, text: finding + &traffic, window_ns, counters }
}

/// `truncated over UDP; then TCP to 10.96.0.10:53 was refused after 9 ms`.
fn describe_tcp(tcp: &FailedTcp) -> String {
    let before = if tcp.after_truncated { "truncated over UDP; then " } else { "" };
    let (server, failure, after) = (tcp.server, tcp.failure.describe(), duration(tcp.after_ns));
    match tcp.failure {
        TcpFailure::Unanswered => format!("{before}TCP to {server} {failure} for {after}"),
        _ => format!("{before}TCP to {server} {failure} after {after}"),
    }
}

fn duration(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} µs", ns / 1000),
        1_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

/// What else arrived in the asker's network namespace in that time.
fn describe_traffic(window_ns: u64, counters: &Counters) -> String {
    let seconds = window_ns as f64 / 1e9;
    let arrived = counters.get("udp_in_datagrams").copied().unwrap_or(0);
    let closed = counters.get("udp_no_ports").copied().unwrap_or(0);
    let mut text = match arrived {
        0 => format!("in {seconds:.1} s no UDP datagram was delivered in its network namespace"),
        _ => {
            format!("in {seconds:.1} s {arrived} other UDP datagrams were delivered in its network namespace")
        }
    };
    if closed > 0 {
        text += &format!(", {closed} came to closed ports (like answers after the asker has given up)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(all: &[(&str, u64)]) -> Counters {
        all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    fn verdict(grown: &[(&str, u64)]) -> (DiagnosisVerdict, String) {
        let seen = SeenOfQueries { sends: 2, ..SeenOfQueries::default() };
        let it = diagnose(&seen, Some((5_000_000_000, counters(grown))));
        (it.verdict, it.text)
    }

    #[test]
    fn the_counters_that_rose_decide_and_are_named() {
        let (what, text) = verdict(&[]);
        assert_eq!(what, DiagnosisVerdict::Unanswered);
        assert_eq!(
            text,
            "sent 2 times, and no answer was seen to come; in 5.0 s no UDP datagram was delivered in its network namespace"
        );
        let (what, text) = verdict(&[("udp_rcvbuf_errors", 3), ("udp_in_datagrams", 9)]);
        assert!(
            what == DiagnosisVerdict::AnswerDropped
                && text.contains("udp_rcvbuf_errors +3")
                && text.contains("9 other UDP"),
            "{text}"
        );
        let (what, text) = verdict(&[("node_conntrack_insert_failed", 1), ("udp_no_ports", 2)]);
        assert!(
            what == DiagnosisVerdict::DroppedByConntrack
                && text.contains("insert_failed +1")
                && text.contains("2 came to closed"),
            "{text}"
        );
        assert_eq!(verdict(&[("ip_out_no_routes", 1)]).0, DiagnosisVerdict::NotSent);
    }

    #[test]
    fn without_an_earlier_reading_nothing_is_claimed() {
        let once = SeenOfQueries { sends: 1, ..SeenOfQueries::default() };
        let it = diagnose(&once, None);
        assert_eq!((it.verdict, it.window_ns), (DiagnosisVerdict::Unanswered, None));
        assert!(it.text.contains("sent once") && it.text.contains("no earlier reading"), "{}", it.text);
        // Counters would change nothing here, so their absence is not reported.
        let it = diagnose(&SeenOfQueries { late: true, ..once.clone() }, None);
        assert_eq!(
            (it.verdict, it.text.as_str()),
            (DiagnosisVerdict::AnsweredLate, "sent once, and answered late")
        );
        // The kernel side saw the drop, so no counter is needed.
        let it = diagnose(&SeenOfQueries { dropped_at_socket: true, ..once }, None);
        assert!(
            it.verdict == DiagnosisVerdict::AnswerDropped && it.text.ends_with("receive buffer was full"),
            "{it:?}"
        );
    }

    #[test]
    fn what_was_seen_of_the_queries_is_named() {
        let seen = SeenOfQueries { sends: 1, ..SeenOfQueries::default() };
        let other = SeenOfQueries { answered_from: Some(IpAddr::from([127, 0, 0, 5])), ..seen.clone() };
        let it = diagnose(&other, None);
        assert_eq!(it.verdict, DiagnosisVerdict::OtherAddress);
        assert!(
            it.text.starts_with("sent once; an answer came from another address, 127.0.0.5"),
            "{}",
            it.text
        );
        let closed = SeenOfQueries { closed_after_ns: Some(5_003_000_000), ..seen.clone() };
        let it = diagnose(&closed, None);
        let expected =
            "sent once, and no answer was seen to come in 5.0 s, until the client closed its socket; ";
        assert!(it.text.starts_with(expected), "{}", it.text);
        let tcp = |failure, after_ns| {
            let server = SocketAddr::from(([127, 0, 0, 1], 53));
            let tcp = FailedTcp { server, failure, after_ns, after_truncated: true };
            diagnose(&SeenOfQueries { tcp: Some(tcp), ..seen.clone() }, None).text
        };
        assert_eq!(
            tcp(TcpFailure::Refused, 9_400_000),
            "truncated over UDP; then TCP to 127.0.0.1:53 was refused after 9 ms"
        );
        assert_eq!(
            tcp(TcpFailure::Unanswered, 5_000_000_000),
            "truncated over UDP; then TCP to 127.0.0.1:53 was not answered for 5.0 s"
        );
    }

    #[test]
    fn a_counter_that_fell_is_not_growth() {
        let (before, after) = (counters(&[("a", 5), ("b", 1)]), counters(&[("a", 2), ("b", 3), ("c", 7)]));
        assert_eq!(growth(&before, &after), counters(&[("b", 2)]));
    }
}
