//! The queries that real clients send, and the lookup that they must make.

use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;

use super::builder::LookupLimits;
use super::*;
use podopsy_model::event::Protocol;
use podopsy_model::lookup::{LookupResult, NameKnownBy, SeenOutcomes};
use podopsy_model::{DnsTransaction, Lookup, Outcome};

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const ONE: ProcessKey = ProcessKey { pid: 7, start_ns: 1 };

fn cluster() -> Option<Arc<ResolvConf>> {
    Some(Arc::new(ResolvConf::parse(
        b"nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
    )))
}

fn server(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 96, 0, last], 53))
}

/// A query that was sent at `sent` and had its outcome after `latency`.
fn query(name: &str, qtype: &str, sent: u64, latency: u64, outcome: Outcome) -> LookupQuery {
    let transaction = DnsTransaction {
        name: Some(name.to_owned()),
        qtype: Some(qtype.to_owned()),
        server: server(10),
        protocol: Protocol::Udp,
        id: 1,
        latency_ns: latency,
        outcome,
        rcode: None,
        sends: 1,
        malformed: None,
        slow: false,
        answer_dropped: false,
        facts: Default::default(),
    };
    LookupQuery::new(transaction, sent + latency).unwrap()
}

fn at_server(mut query: LookupQuery, last: u8) -> LookupQuery {
    query.transaction.server = server(last);
    query
}

/// A and AAAA together.
fn both(name: &str, sent: u64, outcome: Outcome) -> Vec<LookupQuery> {
    let aaaa = if outcome == Outcome::Noerror { Outcome::Nodata } else { outcome };
    vec![query(name, "A", sent, MS, outcome), query(name, "AAAA", sent, MS + 10, aaaa)]
}

fn new(saw: SeenOutcomes) -> LookupBuilder<()> {
    LookupBuilder::new(5 * S, saw, LookupLimits::default(), |_| Timestamp::UNIX_EPOCH)
}

/// All lookups that these queries make, added in the order in which their outcomes were known.
fn lookups_with(
    saw: SeenOutcomes,
    resolv: Option<Arc<ResolvConf>>,
    mut queries: Vec<LookupQuery>,
) -> Vec<Lookup> {
    queries.sort_by_key(|query| query.done_ns);
    let mut builder = new(saw);
    for query in queries {
        builder.add(ONE, 1, query, resolv.clone(), || ());
    }
    builder.take_due(0, true, |_| None).into_iter().map(|closed| closed.lookup).collect()
}

fn lookups(queries: Vec<LookupQuery>) -> Vec<Lookup> {
    lookups_with(SeenOutcomes::All, cluster(), queries)
}

fn one(queries: Vec<LookupQuery>) -> Lookup {
    let mut all = lookups(queries);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

const EXPANDED: [&str; 3] = [
    "api.example.com.shop.svc.cluster.local",
    "api.example.com.svc.cluster.local",
    "api.example.com.cluster.local",
];

/// What glibc and c-ares send for `api.example.com` with Kubernetes' resolv.conf.
fn external(last: Outcome) -> Vec<LookupQuery> {
    let mut all: Vec<LookupQuery> =
        (0..3).flat_map(|i| both(EXPANDED[i], i as u64 * 2 * MS, Outcome::Nxdomain)).collect();
    all.extend(both("api.example.com", 6 * MS, last));
    all
}

#[test]
fn glibcs_external_name_is_one_lookup_with_six_search_path_misses() {
    let it = one(external(Outcome::Noerror));
    assert_eq!((it.name.as_str(), it.name_known_by), ("api.example.com", NameKnownBy::ResolvConf));
    assert_eq!((it.result, it.queries, it.search_path_misses.queries), (LookupResult::Answered, 8, 6));
    assert_eq!(
        (it.types, it.search_path_misses.names),
        (vec!["A".to_owned(), "AAAA".to_owned()], EXPANDED.map(str::to_owned).to_vec())
    );
    assert_eq!((it.wait_ns, it.transactions.len(), it.resolvers), (7 * MS + 10, 8, vec![server(10)]));
}

#[test]
fn a_search_that_fails_at_every_name_is_one_failure() {
    let it = one(external(Outcome::Nxdomain));
    assert_eq!((it.name.as_str(), it.result), ("api.example.com", LookupResult::Nxdomain));
    assert_eq!((it.queries, it.search_path_misses.queries), (8, 6));
    // If one name has other records, glibc returns NODATA in the end.
    let mut queries = external(Outcome::Nxdomain);
    queries[2].transaction.outcome = Outcome::Nodata;
    assert_eq!(one(queries).result, LookupResult::Nodata);
}

#[test]
fn without_the_search_list_the_name_is_inferred() {
    let all = lookups_with(SeenOutcomes::All, None, external(Outcome::Noerror));
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!((all[0].name.as_str(), all[0].name_known_by), ("api.example.com", NameKnownBy::Inferred));
    assert_eq!(
        (all[0].result, all[0].search_path_misses.queries, &all[0].search),
        (LookupResult::Answered, 6, &None)
    );
}

#[test]
fn a_service_found_by_the_first_domain_has_the_name_that_was_asked_for() {
    let it = one(both("cart.shop.svc.cluster.local", 0, Outcome::Noerror));
    assert_eq!(
        (it.name.as_str(), it.search_path_misses.queries, it.result),
        ("cart", 0, LookupResult::Answered)
    );
    let mut queries = both("Cart.Pay.shop.svc.cluster.local", 0, Outcome::Nxdomain);
    queries.extend(both("Cart.Pay.svc.cluster.local", 2 * MS, Outcome::Noerror));
    let it = one(queries);
    assert_eq!((it.name.as_str(), it.search_path_misses.queries), ("Cart.Pay", 2));
}

#[test]
fn musl_asks_all_servers_at_once_and_the_first_answer_counts() {
    let mut queries = both("cart.shop.svc.cluster.local", 0, Outcome::Noerror);
    queries.extend(both("cart.shop.svc.cluster.local", 10, Outcome::Noerror).into_iter().map(|mut query| {
        query.done_ns += 300 * MS;
        query.transaction.latency_ns += 300 * MS;
        at_server(query, 11)
    }));
    let it = one(queries);
    assert_eq!(
        (it.result, it.queries, it.resolvers),
        (LookupResult::Answered, 4, vec![server(10), server(11)])
    );
    assert!(it.wait_ns < 2 * MS, "{}", it.wait_ns);
}

#[test]
fn a_query_that_was_superseded_decides_nothing() {
    let name = "cart.shop.svc.cluster.local";
    let mut dropped = at_server(query(name, "A", 0, 3 * MS, Outcome::Abandoned), 11);
    dropped.transaction.facts.superseded = true;
    let it = one(vec![dropped, query(name, "A", 10, 2 * MS, Outcome::Noerror)]);
    assert_eq!((it.result, it.queries, it.wait_ns), (LookupResult::Answered, 2, 2 * MS + 10));
}

#[test]
fn a_server_that_answers_before_the_next_one_is_asked_makes_one_lookup() {
    let name = "cart.shop.svc.cluster.local";
    for outcome in [Outcome::Abandoned, Outcome::Noerror] {
        let mut second = at_server(query(name, "A", 2 * MS, 3 * MS, outcome), 11);
        second.transaction.facts.superseded = outcome == Outcome::Abandoned;
        let it = one(vec![query(name, "A", 0, MS, Outcome::Noerror), second]);
        assert_eq!((it.result, it.queries, it.wait_ns), (LookupResult::Answered, 2, MS), "{outcome:?}");
    }
}

#[test]
fn a_question_whose_queries_were_all_superseded_decides_nothing() {
    // As glibc: the answer to A was truncated, so that it closes the socket, and TCP is refused.
    let name = "a.b.c.d.e.com";
    let mut dropped = query(name, "AAAA", 0, MS, Outcome::Abandoned);
    dropped.transaction.facts.superseded = true;
    // The truncated answer came before AAAA was sent.
    let mut beside_a = query(name, "AAAA", 10, MS, Outcome::Abandoned);
    beside_a.transaction.facts.beside_a = true;
    let mut refused = query(name, "A", 2 * MS, MS, Outcome::Unreachable);
    refused.transaction.protocol = Protocol::Tcp;
    for aaaa in [dropped, beside_a] {
        let it = one(vec![query(name, "A", 0, MS, Outcome::Truncated), aaaa.clone(), refused.clone()]);
        assert_eq!((it.result, it.queries, it.types.len()), (LookupResult::Unreachable, 3, 2));
        assert_eq!(one(vec![aaaa]).result, LookupResult::Abandoned, "nothing else is known");
    }
}

#[test]
fn an_update_is_no_lookup() {
    let mut update = query("example.com", "SOA", 0, MS, Outcome::Refused);
    update.transaction.facts.opcode = Some("UPDATE".to_owned());
    assert!(LookupQuery::new(update.transaction, MS).is_none());
}

#[test]
fn go_asks_again_with_a_new_id_and_the_timeout_comes_last() {
    let mut again = query("a.b.c.d.e.com", "A", 5 * S, MS, Outcome::Noerror);
    again.transaction.id = 2;
    let it = one(vec![query("a.b.c.d.e.com", "A", 0, 5 * S + 100 * MS, Outcome::Timeout), again]);
    assert_eq!((it.result, it.queries, it.wait_ns), (LookupResult::Answered, 2, 5 * S + MS));
    // The client's own timeout is shorter than `--dns-timeout`: the second query's answer is known before the timeout.
    let it = one(vec![
        query("a.b.c.d.e.com", "A", 0, 5 * S, Outcome::Timeout),
        at_server(query("a.b.c.d.e.com", "A", 2 * S, MS, Outcome::Noerror), 11),
    ]);
    assert_eq!((it.result, it.wait_ns, it.resolvers.len()), (LookupResult::Answered, 2 * S + MS, 2));
}

#[test]
fn two_servers_in_turn_without_an_answer_are_one_timeout() {
    let mut queries = Vec::new();
    for qtype in ["A", "AAAA"] {
        queries.push(query("a.b.c.d.e.com", qtype, 0, 5 * S, Outcome::Timeout));
        queries.push(at_server(query("a.b.c.d.e.com", qtype, 5 * S, 5 * S, Outcome::Timeout), 11));
    }
    queries[0].transaction.sends = 2;
    let it = one(queries);
    assert_eq!((it.result, it.wait_ns, it.queries, it.sends), (LookupResult::Timeout, 10 * S, 4, 5));
}

#[test]
fn a_truncated_answer_and_the_query_by_tcp_are_one_lookup() {
    let mut tcp = query("big.a.b.c.d.com", "TXT", 2 * MS, MS, Outcome::Noerror);
    tcp.transaction.protocol = Protocol::Tcp;
    let it = one(vec![query("big.a.b.c.d.com", "TXT", 0, MS, Outcome::Truncated), tcp]);
    assert_eq!((it.result, it.queries, it.wait_ns), (LookupResult::Answered, 2, 3 * MS));
    let alone = one(vec![query("big.a.b.c.d.com", "TXT", 0, MS, Outcome::Truncated)]);
    assert_eq!(alone.result, LookupResult::Truncated);
}

#[test]
fn glibc_asks_for_both_by_tcp_and_again_until_its_buffer_is_large_enough() {
    let tcp = |mut query: LookupQuery| {
        query.transaction.protocol = Protocol::Tcp;
        query
    };
    let name = "big.a.b.c.d.com";
    // As recorded from Python, for a headless Service with 90 pods.
    let round = |at: u64, id: u16| {
        let mut all = vec![
            query(name, "A", at, MS, Outcome::Truncated),
            query(name, "AAAA", at, MS + 10, Outcome::Nodata),
            tcp(query(name, "A", at + 2 * MS, MS, Outcome::Noerror)),
            tcp(query(name, "AAAA", at + 2 * MS, MS + 10, Outcome::Nodata)),
        ];
        all.iter_mut().for_each(|query| query.transaction.id = id);
        all
    };
    let rounds = |every: u64| (0..4).flat_map(|n| round(n * every, n as u16)).collect::<Vec<_>>();
    let it = one(rounds(4 * MS));
    assert_eq!((it.result, it.queries, it.name.as_str()), (LookupResult::Answered, 16, name));
    let it = one(round(0, 1));
    assert_eq!((it.result, it.queries, it.wait_ns), (LookupResult::Answered, 4, 3 * MS));
    // An application that looks the name up again later.
    let counts: Vec<u32> = lookups(rounds(200 * MS)).iter().map(|it| it.queries).collect();
    assert_eq!(counts, [4, 4, 4, 4]);
    // Without a truncated answer, the next query for the same name is another lookup, too.
    let small = |at| tcp(query(name, "A", at, MS, Outcome::Noerror));
    assert_eq!(lookups(vec![small(0), small(2 * MS)]).len(), 2);
}

#[test]
fn a_late_answer_replaces_the_timeout_of_its_query() {
    let late = query("a.b.c.d.e.com", "A", 0, 8 * S, Outcome::Late);
    let it = one(vec![query("a.b.c.d.e.com", "A", 0, 5 * S, Outcome::Timeout), late.clone()]);
    assert_eq!((it.result, it.queries, it.wait_ns), (LookupResult::Late, 1, 8 * S));
    // The lookup has been reported already: a late answer alone makes no lookup.
    assert!(lookups(vec![late]).is_empty());
}

#[test]
fn an_answer_that_the_full_socket_dropped_is_no_answer() {
    let name = "a.b.c.d.e.com";
    let mut dropped = query(name, "A", 0, 5 * S, Outcome::Timeout);
    dropped.transaction.answer_dropped = true;
    let it = one(vec![query(name, "A", 0, MS, Outcome::Noerror), dropped]);
    assert_eq!((it.result, it.queries, it.wait_ns), (LookupResult::Timeout, 1, 5 * S));
    assert!(it.transactions[0].answer_dropped);
}

#[test]
fn a_search_without_an_answer_is_held_for_the_clients_further_attempts() {
    let mut builder = new(SeenOutcomes::All);
    let mut queries = external(Outcome::Timeout);
    for query in &mut queries[6..] {
        // Sent again after five seconds, with the same id.
        query.transaction.sends = 2;
        query.done_ns += 10 * S;
        query.transaction.latency_ns += 10 * S;
    }
    for query in queries {
        let due = builder.take_due(query.done_ns, false, |_| None);
        assert!(due.is_empty(), "{due:#?}");
        builder.add(ONE, 1, query, cluster(), || ());
    }
    let it = &builder.take_due(0, true, |_| None)[0].lookup;
    assert_eq!(
        (it.result, it.queries, it.sends, it.search_path_misses.queries),
        (LookupResult::Timeout, 8, 10, 6)
    );
}

#[test]
fn after_servfail_the_next_server_is_asked_in_the_same_lookup() {
    let it = one(vec![
        query("a.b.c.d.e.com", "A", 0, MS, Outcome::Servfail),
        at_server(query("a.b.c.d.e.com", "A", 2 * MS, MS, Outcome::Noerror), 11),
    ]);
    assert_eq!((it.result, it.wait_ns), (LookupResult::Answered, 3 * MS));
    // glibc's two attempts, then an application that tries again at once: two lookups.
    // Go uses a new id for each attempt; musl asks three times with one id.
    for (ids, expected) in [([1, 1, 2, 2], &[2, 2][..]), ([1, 2, 3, 4], &[2, 2]), ([1, 1, 1, 1], &[4])] {
        let again = |i: usize| {
            let mut query = query("a.b.c.d.e.com", "A", i as u64 * 2 * MS, MS, Outcome::Servfail);
            query.transaction.id = ids[i];
            query
        };
        let queries: Vec<u32> = lookups((0..4).map(again).collect()).iter().map(|it| it.queries).collect();
        assert_eq!(queries, expected);
    }
}

#[test]
fn an_application_that_tries_again_a_moment_later_starts_the_next_lookup() {
    for (pause, expected) in [(2 * MS, &[2][..]), (150 * MS, &[1, 1])] {
        let first = query("a.b.c.d.e.com", "A", 0, MS, Outcome::Formerr);
        let mut second = query("a.b.c.d.e.com", "A", MS + pause, MS, Outcome::Formerr);
        second.transaction.id = 2;
        let queries: Vec<u32> = lookups(vec![first, second]).iter().map(|it| it.queries).collect();
        assert_eq!(queries, expected);
    }
}

#[test]
fn glibc_asks_for_both_types_again_when_one_gets_no_answer() {
    let name = "a.b.c.d.e.com";
    let it = one(vec![
        query(name, "A", 0, MS, Outcome::Noerror),
        query(name, "AAAA", 0, 5 * S, Outcome::Timeout),
        query(name, "A", 5 * S + MS, MS, Outcome::Noerror),
        query(name, "AAAA", 5 * S + 3 * MS, MS, Outcome::Noerror),
    ]);
    assert_eq!((it.result, it.queries, it.wait_ns), (LookupResult::Answered, 4, 5 * S + 4 * MS));
}

#[test]
fn other_names_of_the_same_process_are_other_lookups() {
    let mut queries = external(Outcome::Noerror);
    queries.extend(both("api.finance.svc.cluster.local", 3 * MS, Outcome::Noerror));
    queries.extend(both("www.example.org.shop.svc.cluster.local", 3 * MS, Outcome::Nxdomain));
    queries.extend(both("api.example.org", 3 * MS, Outcome::Noerror));
    let mut all = lookups(queries);
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<(&str, u32)> = all.iter().map(|it| (it.name.as_str(), it.queries)).collect();
    assert_eq!(
        names,
        [
            ("api.example.com", 8),
            ("api.example.org", 2),
            // `api.finance` would have been looked for in the first domain before.
            ("api.finance.svc.cluster.local", 2),
            ("www.example.org", 2)
        ]
    );
}

#[test]
fn the_same_name_again_is_the_next_lookup_and_two_threads_at_once_make_one() {
    let mut queries = external(Outcome::Noerror);
    queries.extend(external(Outcome::Noerror).into_iter().map(|mut query| {
        query.sent_ns += 20 * MS;
        query.done_ns += 20 * MS;
        query
    }));
    let counts: Vec<u32> = lookups(queries).iter().map(|it| it.queries).collect();
    assert_eq!(counts, [8, 8]);
    let mut at_once = external(Outcome::Noerror);
    at_once.extend(external(Outcome::Noerror));
    let it = one(at_once);
    assert_eq!((it.queries, it.search_path_misses.queries), (16, 12));
}

#[test]
fn another_process_is_another_lookup() {
    let mut builder = new(SeenOutcomes::All);
    for pid in 1..=3 {
        let process = ProcessKey { pid, start_ns: 9 };
        builder.add(process, 1, query("a.org", "A", 0, MS, Outcome::Nxdomain), cluster(), || ());
    }
    assert_eq!(builder.take_due(0, true, |_| None).len(), 3);
}

#[test]
fn if_only_failures_are_recorded_only_certain_failures_are_reported() {
    let failures = |queries: Vec<LookupQuery>| -> Vec<LookupResult> {
        let only =
            queries.into_iter().filter(|query| query.transaction.outcome != Outcome::Noerror).collect();
        lookups_with(SeenOutcomes::Failures, cluster(), only).iter().map(|it| it.result).collect()
    };
    assert_eq!(failures(external(Outcome::Noerror)), [LookupResult::Unseen]);
    assert_eq!(failures(external(Outcome::Nxdomain)), [LookupResult::Nxdomain]);
    assert_eq!(failures(both("cart.shop.svc.cluster.local", 0, Outcome::Noerror)), [LookupResult::Unseen]);
    assert_eq!(failures(external(Outcome::Timeout)), [LookupResult::Timeout]);
    // The client may have had A, and closed its socket before AAAA came.
    let abandoned = |qtype| query("a.b.c.d.e.com", qtype, 0, 20 * MS, Outcome::Abandoned);
    assert_eq!(failures(vec![abandoned("AAAA")]), [LookupResult::Unseen]);
    assert_eq!(failures(vec![abandoned("A"), abandoned("AAAA")]), [LookupResult::Abandoned]);
}

#[test]
fn an_error_at_the_first_name_after_which_another_try_may_have_been_answered_is_no_failure() {
    let results = |servers: &str, errors: Vec<LookupQuery>| -> Vec<LookupResult> {
        let text = format!("{servers}search shop.svc.cluster.local svc.cluster.local\noptions ndots:5\n");
        let resolv = Some(Arc::new(ResolvConf::parse(text.as_bytes())));
        lookups_with(SeenOutcomes::Failures, resolv, errors).iter().map(|it| it.result).collect()
    };
    let (one, two) = ("nameserver 10.96.0.10\n", "nameserver 10.96.0.10\nnameserver 10.96.0.11\n");
    let name = "cart.shop.svc.cluster.local";
    let errors = |sent: u64, last: u8| {
        both(name, sent, Outcome::Servfail).into_iter().map(move |query| at_server(query, last))
    };
    // The other server, or the second try, was answered, which is not recorded.
    assert_eq!(results(two, errors(0, 10).collect()), [LookupResult::Unseen]);
    assert_eq!(results(one, errors(0, 10).collect()), [LookupResult::Unseen]);
    // Each server, or each try, gave an error.
    assert_eq!(results(two, errors(0, 10).chain(errors(2 * MS, 11)).collect()), [LookupResult::Servfail]);
    assert_eq!(results(one, errors(0, 10).chain(errors(2 * MS, 10)).collect()), [LookupResult::Servfail]);
}

#[test]
fn lookups_are_held_until_a_timeout_would_be_known() {
    let mut builder = new(SeenOutcomes::All);
    for (qtype, due) in [("A", 12), ("AAAA", 7)] {
        // After A alone, AAAA may still be in flight for another attempt of five seconds.
        builder.add(ONE, 1, query("a.org", qtype, 0, S, Outcome::Noerror), None, || ());
        assert_eq!(builder.due(), Some(due * S));
    }
    assert!(builder.take_due(7 * S - 1, false, |_| None).is_empty());
    assert_eq!(
        builder.take_due(7 * S, false, |_| cluster())[0].lookup.name_known_by,
        NameKnownBy::ResolvConf
    );
    assert_eq!(builder.due(), None);
}

#[test]
fn a_flood_evicts_its_own_containers_lookups_first_and_is_counted() {
    let limits = LookupLimits { total: 60, per_container: 50 };
    let mut builder: LookupBuilder<u64> =
        LookupBuilder::new(5 * S, SeenOutcomes::All, limits, |_| Timestamp::UNIX_EPOCH);
    builder.add(ONE, 1, query("quiet.org", "A", 0, MS, Outcome::Nxdomain), None, || 1);
    for i in 0..1000 {
        let flood = query(&format!("x{i}.org"), "A", i * MS, MS, Outcome::Nxdomain);
        builder.add(ONE, 2, flood, None, || 2);
    }
    assert_eq!((builder.evicted(), builder.due()), (950, Some(0)));
    let all = builder.take_due(0, true, |_| None);
    assert_eq!(all.iter().filter(|closed| closed.lookup.cut_short).count(), 950);
    assert_eq!((all.len(), all.iter().filter(|closed| closed.context == 1).count()), (1001, 1));
}

#[test]
fn the_size_of_a_lookup_is_bounded() {
    let many: Vec<LookupQuery> = (0..500)
        .map(|i| at_server(query("a.b.c.d.e.com", "A", i * 1000, S, Outcome::Timeout), (i % 250) as u8))
        .collect();
    let all = lookups(many);
    assert!(all.len() > 5 && all.iter().all(|it| it.transactions.len() <= 32 && it.resolvers.len() <= 8));
    assert_eq!(all.iter().map(|it| it.queries).sum::<u32>(), 500);
}

#[test]
fn search_path_misses_are_summed_up_with_advice() {
    let mut statistics = summary::LookupStatistics::default();
    for _ in 0..10 {
        statistics.add_lookup("shop/api", &one(external(Outcome::Noerror)));
    }
    statistics.add_lookup("shop/api", &one(both("cart.shop.svc.cluster.local", 0, Outcome::Timeout)));
    let of_pod = &statistics.summary(10).pods[0];
    assert_eq!((of_pod.lookups, of_pod.queries, of_pod.search_path_misses), (11, 82, 60));
    assert_eq!(of_pod.failed, [("timeout", 1)].into());
    assert_eq!(
        of_pod.advice.as_deref(),
        Some(
            "60 of 82 queries of shop/api were search-path misses: ndots:5 and 3 search domains; \
             a trailing dot or ndots:2 would have saved them"
        )
    );
    assert_eq!(statistics.summary(10).names[0].name, "cart");
}
