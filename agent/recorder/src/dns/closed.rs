//! Sockets that were closed before an answer came → what became of their queries. Pure.
//!
//! | what is known | outcome |
//! |---|---|
//! | another server answered a query with the same id on the same socket (musl asks all at once) | abandoned, superseded |
//! | less than a second before, a truncated answer or an error came on that socket: the client asks elsewhere (glibc) | abandoned, superseded |
//! | the TCP connection has an error | unreachable, with the error |
//! | the client waited as long as resolvers do | timeout, with the real wait |
//! | otherwise (a deadline, the end of the process) | abandoned |
//!
//! A superseded query is no failure, and neither is AAAA that was abandoned beside an answered A ([`super::beside_a`]).

use podopsy_decode::dns::socket_address;
use podopsy_model::event::{Protocol, QueryFacts};
use podopsy_model::{DnsTransaction, Outcome, TcpFailure};
use podopsy_wire::{ANSWER_TRUNCATED, SocketClosed, is_accepted};

/// The shortest time that resolv.conf can set as a resolver's timeout (`options timeout:1`), less 50 ms: Go sets its deadline
/// before it sends, and may lose its CPU in between.
const RESOLVER_WAIT_NS: u64 = 950_000_000;
/// The longest time from an answer to the close that it causes: microseconds, on a busy node longer.
const CAUSED_WITHIN_NS: u64 = 1_000_000_000;
/// A resolver sends several queries at once, and the first one may be answered before the next one is sent.
const SENT_AT_ONCE_NS: u64 = 10_000_000;

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClosedQuery {
    pub outcome: Outcome,
    pub superseded: bool,
    pub tcp_failure: Option<TcpFailure>,
}

impl ClosedQuery {
    /// `id` and `first_sent_ns`: of the query. `timeout_ns`: after which time a query without an answer is a timeout.
    pub fn new(closed: &SocketClosed, id: u16, first_sent_ns: u64, timeout_ns: u64) -> ClosedQuery {
        if is_superseded(closed, id, first_sent_ns) {
            return ClosedQuery { outcome: Outcome::Abandoned, superseded: true, tcp_failure: None };
        }
        let wait_ns = closed.time_ns.saturating_sub(first_sent_ns);
        ClosedQuery::without_answer(closed.errno, wait_ns, timeout_ns)
    }

    fn without_answer(errno: u32, wait_ns: u64, timeout_ns: u64) -> ClosedQuery {
        let tcp_failure = TcpFailure::from_errno(errno);
        let outcome = match tcp_failure {
            Some(TcpFailure::Unanswered) => Outcome::Timeout,
            Some(_) => Outcome::Unreachable,
            None if wait_ns >= RESOLVER_WAIT_NS.min(timeout_ns) => Outcome::Timeout,
            None => Outcome::Abandoned,
        };
        ClosedQuery { outcome, superseded: false, tcp_failure }
    }
}

fn is_superseded(closed: &SocketClosed, id: u16, first_sent_ns: u64) -> bool {
    // No answer is known that came while the query waited, or while the queries beside it were sent.
    if closed.answered_ns.saturating_add(SENT_AT_ONCE_NS) < first_sent_ns || closed.answered_ns == 0 {
        return false;
    }
    let ids = [0, 16, 32, 48].map(|shift| (closed.answered_ids >> shift) as u16);
    // Empty places are 0.
    if id != 0 && ids.contains(&id) {
        return true;
    }
    let class = closed.answered_class as usize;
    let asks_elsewhere = class == ANSWER_TRUNCATED || !is_accepted(class);
    asks_elsewhere && closed.time_ns.saturating_sub(closed.answered_ns) <= CAUSED_WITHIN_NS
}

/// The transaction of a TCP connection that was never established, so that no query could be sent. `truncated`: the answer over
/// UDP that made the client ask by TCP, if one was seen.
pub(super) fn failed_connection(
    closed: &SocketClosed,
    timeout_ns: u64,
    truncated: Option<DnsTransaction>,
) -> DnsTransaction {
    let latency_ns = closed.time_ns.saturating_sub(closed.opened_ns);
    let became = ClosedQuery::without_answer(closed.errno, latency_ns, timeout_ns);
    let unanswered = became.outcome == Outcome::Timeout;
    DnsTransaction {
        name: truncated.as_ref().and_then(|it| it.name.clone()),
        qtype: truncated.as_ref().and_then(|it| it.qtype.clone()),
        server: socket_address(closed.server, closed.port as u16),
        protocol: Protocol::Tcp,
        id: truncated.as_ref().map_or(0, |it| it.id),
        latency_ns,
        outcome: became.outcome,
        rcode: None,
        sends: 0,
        malformed: None,
        slow: false,
        answer_dropped: false,
        facts: Box::new(QueryFacts {
            socket_closed: closed.errno == 0,
            tcp_failure: became.tcp_failure.or(unanswered.then_some(TcpFailure::Unanswered)),
            after_truncated: truncated.is_some(),
            ..QueryFacts::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use podopsy_wire::{ANSWER_NOERROR, ANSWER_SERVFAIL};

    use super::*;

    const MS: u64 = 1_000_000;
    const TIMEOUT: u64 = 5000 * MS;

    /// A socket that was closed at this time, with its last answer.
    fn closed(at_ms: u64, answered_ms: u64, ids: u64, class: usize) -> SocketClosed {
        SocketClosed {
            time_ns: at_ms * MS,
            answered_ns: answered_ms * MS,
            answered_ids: ids,
            answered_class: class as u32,
            ..SocketClosed::EMPTY
        }
    }

    /// The outcome of query 7, which was sent at 1 ms.
    fn of(closed: &SocketClosed) -> (Outcome, bool) {
        let it = ClosedQuery::new(closed, 7, MS, TIMEOUT);
        (it.outcome, it.superseded)
    }

    #[test]
    fn a_query_that_another_server_answered_is_superseded() {
        assert_eq!(of(&closed(4, 3, 7, ANSWER_NOERROR)), (Outcome::Abandoned, true));
        assert_eq!(of(&closed(4, 3, 7 << 32 | 8 << 16 | 9, ANSWER_NOERROR)), (Outcome::Abandoned, true));
        // The client waited for an answer to this query, and only others were answered.
        assert_eq!(of(&closed(2500, 3, 8, ANSWER_NOERROR)), (Outcome::Timeout, false));
    }

    #[test]
    fn a_query_beside_a_truncated_answer_or_an_error_is_superseded_for_a_moment() {
        for class in [ANSWER_TRUNCATED, ANSWER_SERVFAIL] {
            assert_eq!(of(&closed(4, 3, 8, class)), (Outcome::Abandoned, true));
            assert_eq!(of(&closed(5000, 3, 8, class)), (Outcome::Timeout, false), "the client waited");
        }
        assert_eq!(of(&closed(4, 3, 8, ANSWER_NOERROR)), (Outcome::Abandoned, false));
    }

    #[test]
    fn an_answer_from_before_the_query_proves_nothing() {
        assert_eq!(of(&closed(4, 0, 7, ANSWER_TRUNCATED)), (Outcome::Abandoned, false));
        let before = ClosedQuery::new(&closed(30, 10, 7, ANSWER_TRUNCATED), 7, 21 * MS, TIMEOUT);
        assert_eq!((before.outcome, before.superseded), (Outcome::Abandoned, false));
    }

    #[test]
    fn an_answer_may_come_before_the_next_of_several_queries_is_sent() {
        // glibc's AAAA beside a truncated A, and musl's query to the next server.
        for (id, class) in [(8, ANSWER_TRUNCATED), (7, ANSWER_NOERROR)] {
            let it = ClosedQuery::new(&closed(30, 10, id, class), 7, 11 * MS, TIMEOUT);
            assert_eq!((it.outcome, it.superseded), (Outcome::Abandoned, true));
        }
    }

    #[test]
    fn who_waited_as_long_as_resolvers_do_had_a_timeout() {
        assert_eq!(of(&closed(950, 0, 0, 0)), (Outcome::Abandoned, false));
        // Go, with a deadline of a second.
        assert_eq!(of(&closed(999, 0, 0, 0)), (Outcome::Timeout, false));
        assert_eq!(of(&closed(1001, 0, 0, 0)), (Outcome::Timeout, false));
        let short = ClosedQuery::new(&closed(301, 0, 0, 0), 7, MS, 300 * MS);
        assert_eq!(short.outcome, Outcome::Timeout, "--dns-timeout 300ms");
    }

    #[test]
    fn id_0_is_not_taken_for_an_empty_place() {
        let it = ClosedQuery::new(&closed(4, 3, 8, ANSWER_NOERROR), 0, MS, TIMEOUT);
        assert!(!it.superseded);
    }

    #[test]
    fn a_failed_connection_names_its_error_and_its_time() {
        let failed = |errno, ms| {
            let closed = SocketClosed { errno, opened_ns: MS, ..closed(ms, 0, 0, 0) };
            let it = failed_connection(&closed, TIMEOUT, None);
            (it.outcome, it.facts.tcp_failure, it.latency_ns / MS)
        };
        assert_eq!(failed(111, 10), (Outcome::Unreachable, Some(TcpFailure::Refused), 9));
        assert_eq!(failed(113, 10), (Outcome::Unreachable, Some(TcpFailure::Unreachable), 9));
        assert_eq!(failed(110, 9000), (Outcome::Timeout, Some(TcpFailure::Unanswered), 8999));
        assert_eq!(failed(0, 5001), (Outcome::Timeout, Some(TcpFailure::Unanswered), 5000));
        assert_eq!(failed(0, 20), (Outcome::Abandoned, None, 19));
    }
}
