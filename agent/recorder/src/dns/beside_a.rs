//! AAAA queries that were abandoned beside a query for the A records of the same name. Pure.
//!
//! A client may close its socket as soon as it has the A records. The kernel side counts answers and keeps no names, so an
//! answer to A is known by two facts: the process has just asked for A, and that query is no longer in flight. If A failed, its
//! own failure is reported.

use std::collections::HashSet;

use podopsy_model::Outcome;
use podopsy_wire::{DnsKey, DnsPending, TYPE_A, TYPE_AAAA};

use super::flight::EndedQuery;

/// Marks them. `in_flight`: all queries in flight at the beginning of this sweep; `asked_for_a`: whether the process of a query
/// has just asked for the A records of the same name.
pub(super) fn mark_beside_a(
    ended: &mut [EndedQuery],
    in_flight: &[(DnsKey, DnsPending)],
    asked_for_a: impl Fn(&DnsPending) -> bool,
) {
    let mut candidates: Vec<&mut EndedQuery> = ended.iter_mut().filter(|ended| is_candidate(ended)).collect();
    if candidates.is_empty() {
        return;
    }
    let open: HashSet<(u32, u32)> = in_flight
        .iter()
        .filter(|(_, pending)| pending.qtype == TYPE_A)
        .map(|(_, pending)| question(pending))
        .collect();
    for EndedQuery { pending, transaction, .. } in &mut candidates {
        transaction.facts.beside_a = !open.contains(&question(pending)) && asked_for_a(pending);
    }
}

fn is_candidate(EndedQuery { pending, transaction, .. }: &EndedQuery) -> bool {
    let is_abandoned = transaction.outcome == Outcome::Abandoned && !transaction.facts.superseded;
    is_abandoned && pending.qtype == TYPE_AAAA && pending.asker.pid != 0
}

/// The process and the name.
fn question(pending: &DnsPending) -> (u32, u32) {
    (pending.asker.pid, pending.name_hash)
}

#[cfg(test)]
mod tests {
    use podopsy_decode::dns::unanswered;
    use podopsy_wire::Task;

    use super::*;

    const KEY: DnsKey = DnsKey { cookie: 1, server: [0; 4], port: 53, id: 1, protocol: 17 };

    fn pending(pid: u32, name_hash: u32, qtype: u16) -> DnsPending {
        let asker = Task { pid, ..Task::UNKNOWN };
        DnsPending { asker, name_hash, qtype, ..DnsPending::EMPTY }
    }

    /// An AAAA query of process 1 that ended without an answer.
    fn ended(outcome: Outcome) -> EndedQuery {
        let pending = pending(1, 7, TYPE_AAAA);
        let transaction = unanswered(&KEY, &pending, outcome, 0);
        EndedQuery { pending, time_ns: 0, transaction }
    }

    /// Whether it is marked beside these queries in flight.
    fn is_marked(outcome: Outcome, in_flight: &[DnsPending], asked_for_a: bool) -> bool {
        let mut ended = [ended(outcome)];
        let in_flight: Vec<_> = in_flight.iter().map(|pending| (KEY, *pending)).collect();
        mark_beside_a(&mut ended, &in_flight, |_| asked_for_a);
        ended[0].transaction.facts.beside_a
    }

    #[test]
    fn aaaa_is_beside_a_if_a_was_asked_for_and_is_not_in_flight() {
        let of_others = [pending(1, 7, TYPE_AAAA), pending(1, 8, TYPE_A), pending(2, 7, TYPE_A)];
        assert!(is_marked(Outcome::Abandoned, &of_others, true));
        assert!(!is_marked(Outcome::Abandoned, &of_others, false), "A was not asked for");
        assert!(!is_marked(Outcome::Abandoned, &[pending(1, 7, TYPE_A)], true), "A has no answer yet");
    }

    #[test]
    fn only_abandoned_queries_of_known_processes_are_marked() {
        assert!(!is_marked(Outcome::Timeout, &[], true));
        let mut superseded = [ended(Outcome::Abandoned)];
        superseded[0].transaction.facts.superseded = true;
        let mut of_unknown = [ended(Outcome::Abandoned)];
        of_unknown[0].pending.asker.pid = 0;
        for mut ended in [superseded, of_unknown] {
            mark_beside_a(&mut ended, &[], |_| true);
            assert!(!ended[0].transaction.facts.beside_a);
        }
    }

    #[test]
    fn an_abandoned_query_beside_a_is_no_failure() {
        let mut ended = [ended(Outcome::Abandoned)];
        assert!(ended[0].transaction.is_failure());
        mark_beside_a(&mut ended, &[], |_| true);
        assert!(!ended[0].transaction.is_failure());
    }
}
