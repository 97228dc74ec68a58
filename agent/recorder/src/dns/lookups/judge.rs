//! The queries of one lookup → the lookup's name, result, wait time and search-path misses. Pure: no I/O.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::builder::LookupQuery;
use super::search::{self, ResolvConf};
use podopsy_model::lookup::{LookupResult, LookupTransaction, NameKnownBy, SearchPathMisses, SeenOutcomes};
use podopsy_model::{Lookup, Outcome};

const STEPS_MAX: usize = 32;
const NAMES_MAX: usize = 16;
const SERVERS_MAX: usize = 8;
/// Name servers that a resolver takes from its file (MAXNS in glibc's `resolv.h` and in musl).
const NAME_SERVERS_MAX: usize = 3;

/// The result of one question (name and type).
struct Question<'a> {
    name: &'a str,
    qtype: &'a str,
    result: LookupResult,
    done_ns: u64,
    /// All its queries were superseded.
    is_superseded: bool,
    /// The client did not wait for it, because the query for A had ended.
    is_beside_a: bool,
}

/// Makes the lookup. `queries`: at least one, in the order in which they were sent.
pub fn lookup(
    queries: &[LookupQuery],
    resolv: Option<&ResolvConf>,
    saw: SeenOutcomes,
    start: Timestamp,
) -> Lookup {
    let names = distinct(queries.iter().map(|query| query.name.as_str()));
    let (mut name, mut name_known_by, at_the_end) = asked_for(&names, resolv);
    let questions = questions(queries);
    let answered = questions.iter().find(|question| question.result == LookupResult::Answered);
    let answered = answered.map(|question| question.name);
    let is_waited_for = |it: &&Question| !it.is_superseded;
    let is_deciding = |it: &&Question| is_waited_for(it) && !it.is_beside_a;
    let is_any_deciding = questions.iter().any(|question| is_deciding(&question));
    let worst = questions.iter().filter(|it| !is_any_deciding || is_deciding(it)).map(|it| it.result).max();
    let seen = match answered {
        Some(_) => LookupResult::Answered,
        None => worst.unwrap_or(LookupResult::Other),
    };
    let result = match saw {
        SeenOutcomes::Failures
            if !is_sure(seen, &questions, at_the_end, |name| are_tries_used_up(name, queries, resolv)) =>
        {
            LookupResult::Unseen
        }
        _ => seen,
    };
    // A relative name would have been looked for with other domains, too, by most resolvers, and would most likely have
    // failed there.
    if saw == SeenOutcomes::Failures && is_error(result) && !at_the_end && names.len() == 1 {
        (name, name_known_by) = (names[0].to_owned(), NameKnownBy::Query);
    }
    let start_ns = queries.first().map_or(0, |query| query.sent_ns);
    // An answered lookup ends when all questions for the answering name have their results; the application does not
    // wait for other names.
    let deciding = questions.iter().filter(|it| !is_any_deciding || is_waited_for(it));
    let deciding = deciding.filter(|question| answered.is_none_or(|name| question.name == name));
    let end_ns = deciding.map(|question| question.done_ns).max().unwrap_or(start_ns);
    let is_search_path_miss = |query: &&LookupQuery| {
        let is_wanted = query.name == name || answered == Some(query.name.as_str());
        let is_negative = matches!(query.transaction.outcome, Outcome::Nxdomain | Outcome::Nodata);
        !is_wanted && (is_negative || answered.is_some())
    };
    let misses: Vec<&LookupQuery> = queries.iter().filter(is_search_path_miss).collect();
    let mut missed_names = distinct(misses.iter().map(|query| query.name.as_str()));
    missed_names.truncate(NAMES_MAX);
    let mut resolvers = Vec::new();
    for query in queries {
        if !resolvers.contains(&query.transaction.server) && resolvers.len() < SERVERS_MAX {
            resolvers.push(query.transaction.server);
        }
    }
    Lookup {
        name: as_written(queries, &name),
        name_known_by,
        types: distinct(questions.iter().map(|question| question.qtype))
            .into_iter()
            .map(str::to_owned)
            .collect(),
        result,
        wait_ns: end_ns.saturating_sub(start_ns),
        start,
        queries: queries.len() as u32,
        sends: queries.iter().map(|query| query.transaction.sends.max(1)).sum(),
        search_path_misses: SearchPathMisses {
            queries: misses.len() as u32,
            names: missed_names.into_iter().map(str::to_owned).collect(),
        },
        resolvers,
        transactions: queries.iter().take(STEPS_MAX).map(|query| step(query, start_ns)).collect(),
        search: resolv.map(ResolvConf::to_search),
        saw,
        diagnosis: None,
        cut_short: false,
    }
}

/// The name that was looked up, how it is known, and whether the resolver has no other name to try.
fn asked_for(names: &[&str], resolv: Option<&ResolvConf>) -> (String, NameKnownBy, bool) {
    if let Some((name, last)) = resolv.and_then(|resolv| resolv.explain(names)) {
        return (name, NameKnownBy::ResolvConf, last);
    }
    let (name, known_by) = search::infer_name(names);
    let last = known_by == NameKnownBy::Inferred && names.last().is_some_and(|last| *last == name);
    (name, known_by, last)
}

/// Whether a failure is the end of a lookup, although answers are not recorded. NXDOMAIN and NODATA end it only at the
/// last name. NODATA for one address family is no failure as long as the other family's question was not seen to fail,
/// and a client may not wait for one family once it has the other.
fn is_sure(
    seen: LookupResult,
    questions: &[Question],
    at_the_end: bool,
    are_tries_used_up: impl Fn(&str) -> bool,
) -> bool {
    let has =
        |name: &str, qtype: &str| questions.iter().any(|other| other.name == name && other.qtype == qtype);
    let is_one_family_missing = questions.iter().any(|question| {
        matches!(question.result, LookupResult::Nodata | LookupResult::Abandoned)
            && has(question.name, "A") != has(question.name, "AAAA")
    });
    match seen {
        LookupResult::Nodata => at_the_end && !is_one_family_missing,
        LookupResult::Nxdomain => at_the_end,
        LookupResult::Servfail | LookupResult::Refused => {
            at_the_end || name_with_the_only_error(questions).is_some_and(are_tries_used_up)
        }
        LookupResult::Abandoned => !is_one_family_missing,
        LookupResult::Answered => false,
        // A query by TCP follows, and it is not recorded if it is answered.
        LookupResult::Truncated => false,
        _ => true,
    }
}

/// The first name with an error, if no other name was asked for after it. musl ends its search there, and so does each
/// resolver if the name is absolute. A client that goes on after an error was answered if the last name is not seen.
fn name_with_the_only_error<'a>(questions: &[Question<'a>]) -> Option<&'a str> {
    let with_errors = distinct(questions.iter().filter(|it| is_error(it.result)).map(|it| it.name));
    let last = questions.last().map(|question| question.name);
    with_errors.first().copied().filter(|name| with_errors.len() == 1 && last == Some(name))
}

/// Whether each name server gave an error for a name, and the name was asked for again where the resolver does that: otherwise
/// the next try may have been answered, which is not recorded.
fn are_tries_used_up(name: &str, queries: &[LookupQuery], resolv: Option<&ResolvConf>) -> bool {
    let usual = ResolvConf::default();
    let resolv = resolv.unwrap_or(&usual);
    let asked = queries.iter().filter(|query| query.name == name);
    let mut tries: BTreeMap<Option<&str>, u32> = BTreeMap::new();
    let mut servers = BTreeSet::new();
    for LookupQuery { transaction, .. } in asked {
        servers.insert(transaction.server);
        *tries.entry(transaction.qtype.as_deref()).or_default() += transaction.sends.max(1);
    }
    let all_servers = resolv.nameservers.len().clamp(1, NAME_SERVERS_MAX);
    let is_repeated = resolv.attempts > 1 || all_servers > 1;
    servers.len() >= all_servers && tries.values().any(|&count| count > u32::from(is_repeated))
}

fn is_error(result: LookupResult) -> bool {
    matches!(result, LookupResult::Servfail | LookupResult::Refused)
}

/// The result of each question: an answer if there is one, else a negative answer, else the error of the last attempt.
fn questions(queries: &[LookupQuery]) -> Vec<Question<'_>> {
    let mut out: Vec<Question> = Vec::new();
    for query in queries {
        let result = LookupResult::from(query.transaction.outcome);
        let qtype = query.transaction.qtype.as_deref().unwrap_or_default();
        let is_superseded = query.transaction.facts.superseded;
        let is_beside_a = result == LookupResult::Abandoned && query.transaction.facts.beside_a;
        let done_ns = query.done_ns;
        let new = Question { name: &query.name, qtype, result, done_ns, is_superseded, is_beside_a };
        match out.iter_mut().find(|known| known.name == new.name && known.qtype == qtype) {
            Some(known) => {
                let (old, latest) = (rank(known.result), rank(result));
                if is_superseded {
                    continue;
                }
                let is_earlier = old == latest && latest < 2 && new.done_ns < known.done_ns;
                if known.is_superseded || latest < old || is_earlier || (old == 2 && latest == 2) {
                    *known = new;
                }
            }
            None => out.push(new),
        }
    }
    out
}

/// The smaller, the more it decides: an answer, a negative answer, an error.
fn rank(result: LookupResult) -> u8 {
    match result {
        LookupResult::Answered => 0,
        LookupResult::Nxdomain | LookupResult::Nodata => 1,
        _ => 2,
    }
}

/// The name in the spelling that the application used, if one of the queries shows it.
fn as_written(queries: &[LookupQuery], name: &str) -> String {
    queries
        .iter()
        .filter_map(|query| query.transaction.name.as_deref()?.get(..name.len()))
        .find(|written| written.eq_ignore_ascii_case(name))
        .unwrap_or(name)
        .to_owned()
}

fn step(query: &LookupQuery, start_ns: u64) -> LookupTransaction {
    let transaction = &query.transaction;
    LookupTransaction {
        name: transaction.name.clone().unwrap_or_default(),
        qtype: transaction.qtype.clone().unwrap_or_default(),
        server: transaction.server,
        protocol: transaction.protocol,
        outcome: transaction.outcome,
        rcode: transaction.rcode,
        sent_after_ns: query.sent_ns.saturating_sub(start_ns),
        latency_ns: transaction.latency_ns,
        sends: transaction.sends,
        answer_dropped: transaction.answer_dropped,
        facts: transaction.facts.clone(),
    }
}

/// Without duplicates, in the order of first appearance.
fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut out = Vec::new();
    for text in all {
        if !out.contains(&text) {
            out.push(text);
        }
    }
    out
}
