//! Assigns queries to open lookups, and closes a lookup when no more of its queries can come.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use super::judge;
use super::search::{self, ResolvConf};
use podopsy_model::event::Protocol;
use podopsy_model::lookup::SeenOutcomes;
use podopsy_model::{DnsTransaction, Lookup, Outcome};

/// The longest time between an outcome and the next query of the same lookup. A resolver takes microseconds, on a busy
/// node longer.
const GAP_NS: u64 = 1_000_000_000;
/// The longest time between an answer and a query that a resolver sends at once, as glibc's next one with a larger buffer:
/// microseconds, on a busy node more.
const AT_ONCE_NS: u64 = 100_000_000;
/// Queries of a lookup at most: 32 search domains, A and AAAA. Further queries start another lookup.
const QUERIES_MAX: usize = 64;

/// How many lookups may be open.
#[derive(Clone, Copy, Debug)]
pub struct LookupLimits {
    pub total: usize,
    pub per_container: usize,
}

impl Default for LookupLimits {
    /// 16 MiB, at 2 KiB for each lookup.
    fn default() -> Self {
        LookupLimits { total: 8192, per_container: 1024 }
    }
}

/// Identifies a process even after its pid is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    pub pid: u32,
    pub start_ns: u64,
}

/// A DNS transaction with its times (boot clock).
#[derive(Clone, Debug)]
pub struct LookupQuery {
    /// In lower case: DNS names ignore case.
    pub name: String,
    pub sent_ns: u64,
    /// When its outcome was known.
    pub done_ns: u64,
    pub transaction: DnsTransaction,
}

impl LookupQuery {
    /// None: the transaction belongs to no lookup; it has no name or no type, for example.
    pub fn new(transaction: DnsTransaction, done_ns: u64) -> Option<LookupQuery> {
        // Other operation codes than QUERY look nothing up.
        if transaction.facts.opcode.is_some() {
            return None;
        }
        let name = transaction.name.as_ref()?.to_ascii_lowercase();
        transaction.qtype.as_ref()?;
        Some(LookupQuery {
            name,
            sent_ns: done_ns.saturating_sub(transaction.latency_ns),
            done_ns,
            transaction,
        })
    }

    pub fn is_same_question(&self, other: &LookupQuery) -> bool {
        self.name == other.name && self.has_same_type(other)
    }

    fn has_same_type(&self, other: &LookupQuery) -> bool {
        self.transaction.qtype == other.transaction.qtype
    }

    /// Whether a domain was appended to the other name.
    fn extends(&self, other: &LookupQuery) -> bool {
        self.name.strip_prefix(other.name.as_str()).is_some_and(|rest| rest.starts_with('.'))
    }

    /// Whether the resolver does not ask this question again.
    fn is_final(&self) -> bool {
        matches!(self.transaction.outcome, Outcome::Noerror | Outcome::Nxdomain | Outcome::Nodata)
    }

    fn is_answered(&self) -> bool {
        self.transaction.outcome == Outcome::Noerror
    }

    fn first_label(&self) -> String {
        self.name.split('.').next().unwrap_or_default().to_owned()
    }
}

/// A complete lookup.
#[derive(Debug)]
pub struct ClosedLookup<C> {
    pub context: C,
    pub process: ProcessKey,
    /// When the first query was sent (boot clock).
    pub start_ns: u64,
    /// When the application got its result (boot clock).
    pub end_ns: u64,
    pub lookup: Lookup,
}

/// A lookup that may get more queries.
#[derive(Debug)]
pub(super) struct OpenLookup<C> {
    context: C,
    process: ProcessKey,
    container: u64,
    pub queries: Vec<LookupQuery>,
    pub start_ns: u64,
    end_ns: u64,
    due_ns: u64,
    pub resolv: Option<Arc<ResolvConf>>,
}

/// Builds lookups from queries. `C` is the caller's context of a lookup, which is returned with it.
#[derive(Debug)]
pub struct LookupBuilder<C> {
    /// How long a lookup is held after its last outcome.
    hold_ns: u64,
    saw: SeenOutcomes,
    limits: LookupLimits,
    wall: fn(u64) -> Timestamp,
    next_id: u64,
    open: HashMap<u64, OpenLookup<C>>,
    /// The ids of open lookups by first label: all names of a lookup begin with the same label.
    by_label: HashMap<(ProcessKey, String), Vec<u64>>,
    /// (due time, lookup id) of all open lookups, and of each container's.
    due: BTreeSet<(u64, u64)>,
    due_by_container: HashMap<u64, BTreeSet<(u64, u64)>>,
    /// Lookups that were closed early and have not been taken yet.
    closed_early: Vec<ClosedLookup<C>>,
    evicted: u64,
}

impl<C> LookupBuilder<C> {
    /// `timeout_ns`: after which time a query without an answer is a timeout. `wall`: converts boot time to wall time.
    pub fn new(
        timeout_ns: u64,
        saw: SeenOutcomes,
        limits: LookupLimits,
        wall: fn(u64) -> Timestamp,
    ) -> LookupBuilder<C> {
        LookupBuilder {
            hold_ns: timeout_ns.saturating_add(GAP_NS),
            saw,
            limits,
            wall,
            next_id: 0,
            open: HashMap::new(),
            by_label: HashMap::new(),
            due: BTreeSet::new(),
            due_by_container: HashMap::new(),
            closed_early: Vec::new(),
            evicted: 0,
        }
    }

    /// Adds a query to its lookup, or opens a new lookup. `container`: whose share of [`LookupLimits`] it uses.
    pub fn add(
        &mut self,
        process: ProcessKey,
        container: u64,
        query: LookupQuery,
        resolv: Option<Arc<ResolvConf>>,
        context: impl FnOnce() -> C,
    ) {
        let key = (process, query.first_label());
        let ids = self.by_label.get(&key).map(Vec::as_slice).unwrap_or_default();
        let accepts =
            |id: &&u64| self.open.get(id).is_some_and(|open| open.accepts(&query, resolv.as_deref()));
        if let Some(&id) = ids.iter().rev().find(accepts) {
            self.add_to(id, query, resolv);
            return;
        }
        // The timeout of this query was reported long ago, and with it the lookup.
        if query.transaction.outcome == Outcome::Late {
            return;
        }
        self.evict_if_full(container);
        let id = self.next_id;
        self.next_id += 1;
        self.by_label.entry(key).or_default().push(id);
        let (start_ns, end_ns) = (query.sent_ns, query.done_ns);
        let (queries, due_ns) = (vec![query], 0);
        let mut open =
            OpenLookup { context: context(), process, container, queries, start_ns, end_ns, due_ns, resolv };
        open.due_ns = open.held_until(self.hold_ns);
        self.due.insert((open.due_ns, id));
        self.due_by_container.entry(container).or_default().insert((open.due_ns, id));
        self.open.insert(id, open);
    }

    fn add_to(&mut self, id: u64, query: LookupQuery, resolv: Option<Arc<ResolvConf>>) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let before = (open.due_ns, id);
        open.insert(query, resolv);
        open.due_ns = open.held_until(self.hold_ns);
        let after = (open.due_ns, id);
        self.due.remove(&before);
        self.due.insert(after);
        let of_container = self.due_by_container.entry(open.container).or_default();
        of_container.remove(&before);
        of_container.insert(after);
    }

    /// Closes the lookup that is due first, if its container or all containers together have reached their limit.
    fn evict_if_full(&mut self, container: u64) {
        let of_container = self.due_by_container.get(&container);
        let oldest = match of_container.filter(|due| due.len() >= self.limits.per_container) {
            Some(due) => due.first(),
            None if self.open.len() >= self.limits.total => self.due.first(),
            None => None,
        };
        let Some(&oldest) = oldest else { return };
        if let Some(open) = self.remove(oldest) {
            self.evicted += 1;
            let mut closed = self.close(open);
            closed.lookup.cut_short = true;
            self.closed_early.push(closed);
        }
    }

    fn remove(&mut self, due: (u64, u64)) -> Option<OpenLookup<C>> {
        self.due.remove(&due);
        let open = self.open.remove(&due.1)?;
        if let Some(of_container) = self.due_by_container.get_mut(&open.container) {
            of_container.remove(&due);
            if of_container.is_empty() {
                self.due_by_container.remove(&open.container);
            }
        }
        let key = (open.process, open.queries.first().map(LookupQuery::first_label).unwrap_or_default());
        if let Some(ids) = self.by_label.get_mut(&key) {
            ids.retain(|&id| id != due.1);
            if ids.is_empty() {
                self.by_label.remove(&key);
            }
        }
        Some(open)
    }

    fn close(&self, mut open: OpenLookup<C>) -> ClosedLookup<C> {
        open.queries.sort_by_key(|query| (query.sent_ns, query.done_ns));
        let start = (self.wall)(open.start_ns);
        let lookup = judge::lookup(&open.queries, open.resolv.as_deref(), self.saw, start);
        let end_ns = open.start_ns.saturating_add(lookup.wait_ns);
        ClosedLookup { context: open.context, process: open.process, start_ns: open.start_ns, end_ns, lookup }
    }

    /// When the next lookup is due (boot clock).
    pub fn due(&self) -> Option<u64> {
        if self.closed_early.is_empty() { self.due.first().map(|due| due.0) } else { Some(0) }
    }

    /// Removes and returns the lookups that are due; with `all`, every open lookup. `resolv` is called once more for
    /// the lookups whose resolv.conf was not known yet.
    pub fn take_due(
        &mut self,
        now_ns: u64,
        all: bool,
        mut resolv: impl FnMut(&C) -> Option<Arc<ResolvConf>>,
    ) -> Vec<ClosedLookup<C>> {
        let mut out = std::mem::take(&mut self.closed_early);
        while let Some(&due) = self.due.first() {
            if !all && due.0 > now_ns {
                break;
            }
            let Some(mut open) = self.remove(due) else { continue };
            if open.resolv.is_none() {
                open.resolv = resolv(&open.context);
            }
            out.push(self.close(open));
        }
        out
    }

    /// How many lookups were closed early because the limit was reached.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl<C> OpenLookup<C> {
    fn insert(&mut self, query: LookupQuery, resolv: Option<Arc<ResolvConf>>) {
        self.resolv = self.resolv.take().or(resolv);
        self.start_ns = self.start_ns.min(query.sent_ns);
        self.end_ns = self.end_ns.max(query.done_ns);
        // A query can come twice: as a timeout and later with its answer, or with its answer and later with the news
        // that the answer was dropped.
        let is_update_of = |before: &LookupQuery| match query.transaction.outcome {
            Outcome::Late => before.transaction.outcome == Outcome::Timeout,
            _ => query.transaction.answer_dropped,
        };
        let is_same_query = |before: &&mut LookupQuery| {
            is_update_of(before)
                && before.sent_ns == query.sent_ns
                && (before.transaction.id, before.transaction.server)
                    == (query.transaction.id, query.transaction.server)
                && before.is_same_question(&query)
        };
        match self.queries.iter_mut().find(is_same_query) {
            Some(before) => *before = query,
            None => self.queries.push(query),
        }
    }

    /// Until when more queries can come. A query that is sent again with the same id times out that much later.
    /// Therefore a lookup with an open question is also held for the client's further attempts.
    fn held_until(&self, hold_ns: u64) -> u64 {
        let usual = self.end_ns.saturating_add(hold_ns);
        let mut queries: Vec<&LookupQuery> = self.queries.iter().collect();
        queries.sort_by_key(|query| query.sent_ns);
        let mut names: Vec<&str> = Vec::new();
        for query in &queries {
            if !names.contains(&query.name.as_str()) {
                names.push(&query.name);
            }
        }
        let resolv = self.resolv.as_deref();
        let answered = self.queries.iter().any(LookupQuery::is_answered);
        let at_the_end =
            answered || resolv.and_then(|resolv| resolv.explain(&names)).is_some_and(|(_, last)| last);
        let last = names.last().copied().unwrap_or_default();
        let asked = |qtype: &str| {
            self.queries
                .iter()
                .any(|query| query.name == last && query.transaction.qtype.as_deref() == Some(qtype))
        };
        if at_the_end && asked("A") == asked("AAAA") {
            return usual;
        }
        let resolv = resolv.cloned().unwrap_or_default();
        let tries = u64::from(resolv.attempts) * resolv.nameservers.len().max(1) as u64;
        usual.saturating_add((tries - 1) * u64::from(resolv.timeout) * 1_000_000_000)
    }

    /// Whether a query belongs to this lookup. The rules are in the documentation of [`super`].
    fn accepts(&self, query: &LookupQuery, resolv: Option<&ResolvConf>) -> bool {
        let is_near = query.sent_ns <= self.end_ns.saturating_add(GAP_NS)
            && self.start_ns <= query.done_ns.saturating_add(GAP_NS);
        let is_late = query.transaction.outcome == Outcome::Late;
        if self.queries.len() >= QUERIES_MAX || !(is_near || is_late) {
            return false;
        }
        let resolv = self.resolv.as_deref().or(resolv);
        self.queries.iter().all(|other| can_share_lookup(query, other))
            && (self.is_for_a_larger_buffer(query)
                || !(self.is_asked_again(query)
                    || self.is_over_attempts(query, resolv)
                    || self.is_a_later_try(query, resolv)))
            && self.is_one_search(query, resolv)
    }

    /// When an answer does not fit into its buffer, glibc at once asks for everything again with twice the buffer. Such
    /// an answer was truncated, and has been or is about to be fetched by TCP.
    fn is_for_a_larger_buffer(&self, query: &LookupQuery) -> bool {
        let has_tcp_answer = self.queries.iter().any(|other| {
            other.transaction.protocol == Protocol::Tcp && other.is_answered() && other.name == query.name
        });
        let before = self.queries.iter().map(|other| other.done_ns).filter(|&done| done <= query.sent_ns);
        has_tcp_answer
            && self.was_truncated(query.sent_ns)
            && before.max().is_some_and(|last| query.sent_ns - last <= AT_ONCE_NS)
    }

    fn was_truncated(&self, before_ns: u64) -> bool {
        let truncated =
            |it: &LookupQuery| it.transaction.outcome == Outcome::Truncated && it.done_ns <= before_ns;
        self.queries.iter().any(truncated)
    }

    /// Whether the question had already been answered when this query was sent, so that it starts another lookup.
    ///
    /// Within one lookup, glibc does that in two cases: the other type got no answer (it asks for both again, one after
    /// the other), or the other type's answer was truncated (it asks for both by TCP).
    fn is_asked_again(&self, query: &LookupQuery) -> bool {
        let got_no_answer = |other: &LookupQuery| {
            other.name == query.name
                && matches!(
                    other.transaction.outcome,
                    Outcome::Timeout | Outcome::Abandoned | Outcome::Malformed
                )
        };
        self.queries.iter().any(|other| {
            let after = other.is_final() && other.done_ns <= query.sent_ns;
            let before = query.is_final() && query.done_ns <= other.sent_ns;
            let (first, second) = if after { (other, query) } else { (query, other) };
            let by_tcp = (first.transaction.protocol, second.transaction.protocol)
                == (Protocol::Udp, Protocol::Tcp)
                && self.was_truncated(second.sent_ns);
            // musl asks all servers with one id, and the first one may answer before it has asked the next one.
            let by_next_server = first.transaction.id == second.transaction.id
                && first.transaction.server != second.transaction.server;
            other.is_same_question(query) && (after || before) && !by_tcp && !by_next_server
        }) && !self.queries.iter().any(got_no_answer)
    }

    /// Whether a resolver would not ask this server so often: then the application has tried again, which is the next
    /// lookup.
    ///
    /// glibc, musl and c-ares ask again with the same id, Go with a new id each time. So a new id after a repeated one
    /// means that the application has tried again.
    fn is_over_attempts(&self, query: &LookupQuery, resolv: Option<&ResolvConf>) -> bool {
        if query.transaction.outcome == Outcome::Late || query.is_final() {
            return false;
        }
        let attempts = resolv.map_or(ResolvConf::default().attempts, |resolv| resolv.attempts) as usize;
        let same: Vec<&LookupQuery> = self.same_questions(query).collect();
        let ids: BTreeSet<u16> = same.iter().map(|other| other.transaction.id).collect();
        let repeats = ids.len() < same.len() || same.iter().any(|other| other.transaction.sends > 1);
        !ids.contains(&query.transaction.id) && (repeats || ids.len() >= attempts)
    }

    /// Whether the question was asked again with a new id although nothing of this lookup was under way: a resolver
    /// with one server does that at once. With several servers, a timeout of another one may not be known yet.
    fn is_a_later_try(&self, query: &LookupQuery, resolv: Option<&ResolvConf>) -> bool {
        resolv.is_some_and(|resolv| resolv.nameservers.len() == 1)
            && self.same_questions(query).any(|other| other.transaction.id != query.transaction.id)
            && self.end_ns.saturating_add(AT_ONCE_NS) < query.sent_ns
    }

    /// The queries with the same question to the same server.
    fn same_questions<'a>(&'a self, query: &'a LookupQuery) -> impl Iterator<Item = &'a LookupQuery> {
        self.queries.iter().filter(|other| {
            other.is_same_question(query)
                && other.transaction.server == query.transaction.server
                && other.transaction.protocol == query.transaction.protocol
        })
    }

    /// Whether one name explains this query and the others. A resolver asks for the names of its search list in order:
    /// a query for an earlier one starts the next lookup.
    fn is_one_search(&self, query: &LookupQuery, resolv: Option<&ResolvConf>) -> bool {
        let Some(resolv) = resolv else {
            let mut names = self.queries.iter().map(|other| other.name.as_str());
            return names.all(|name| search::are_nested(name, &query.name)) && !self.is_past_the_end(query);
        };
        resolv.bases(&query.name).iter().any(|base| {
            let own = resolv.place(base, &query.name);
            self.queries.iter().all(|other| {
                let Some(place) = resolv.place(base, &other.name) else { return false };
                let (place, sent) = (Some(place).cmp(&own), other.sent_ns.cmp(&query.sent_ns));
                sent.is_eq() || place != sent.reverse() || !other.has_same_type(query)
            })
        })
    }

    /// Whether the name without a search domain was asked for last, so that this query starts the next lookup. For askers
    /// whose search list is not known.
    fn is_past_the_end(&self, query: &LookupQuery) -> bool {
        let mut last = self.queries.iter().filter(|it| it.sent_ns < query.sent_ns && query.extends(it));
        last.any(|last| {
            last.has_same_type(query)
                && self.queries.iter().any(|first| first.sent_ns < last.sent_ns && first.extends(last))
        })
    }
}

/// Whether two queries can belong to one lookup: the resolver goes on to the next name only after a failure.
fn can_share_lookup(one: &LookupQuery, other: &LookupQuery) -> bool {
    let after =
        |first: &LookupQuery, second: &LookupQuery| first.is_answered() && first.done_ns <= second.sent_ns;
    one.name == other.name || !(after(one, other) || after(other, one))
}
