//! The lookups that are open, and which of them a query belongs to.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use super::judge;
use super::search::{self, ResolvConf};
use podopsy_model::event::Protocol;
use podopsy_model::lookup::Saw;
use podopsy_model::{DnsTransaction, Lookup, Outcome};

/// Between an outcome and the next query of the same lookup. A resolver takes microseconds; a busy node takes longer.
const GAP_NS: u64 = 1_000_000_000;
/// Between an answer and the next query of the same call of glibc's: microseconds, and more on a busy node.
const AT_ONCE_NS: u64 = 100_000_000;
/// More queries than that are another lookup: 32 search domains, A and AAAA.
const QUERIES_MAX: usize = 64;

/// How many lookups are open at most.
#[derive(Clone, Copy, Debug)]
pub struct LookupLimits {
    pub all: usize,
    pub per_container: usize,
}

impl Default for LookupLimits {
    /// At 2 KiB each, 16 MiB.
    fn default() -> Self {
        LookupLimits { all: 8192, per_container: 1024 }
    }
}

/// One process for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    pub pid: u32,
    pub start_ns: u64,
}

/// A transaction and its times.
#[derive(Clone, Debug)]
pub struct LookupQuery {
    /// In lower case: case makes no other name.
    pub name: String,
    pub sent_ns: u64,
    pub done_ns: u64,
    pub transaction: DnsTransaction,
}

impl LookupQuery {
    /// None: there is no name in it, so that it belongs to no lookup.
    pub fn new(transaction: DnsTransaction, done_ns: u64) -> Option<LookupQuery> {
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
        self.name == other.name && self.transaction.qtype == other.transaction.qtype
    }

    /// The resolver asks this question no more.
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

/// A lookup that is told.
#[derive(Debug)]
pub struct ClosedLookup<W> {
    pub context: W,
    pub process: ProcessKey,
    /// When the first query was sent (boot clock).
    pub start_ns: u64,
    /// When the application got its result.
    pub end_ns: u64,
    pub lookup: Lookup,
}

/// A lookup under way.
#[derive(Debug)]
pub(super) struct OpenLookup<W> {
    context: W,
    process: ProcessKey,
    container: u64,
    pub queries: Vec<LookupQuery>,
    pub start_ns: u64,
    end_ns: u64,
    due_ns: u64,
    pub resolv: Option<Arc<ResolvConf>>,
}

/// All lookups under way. `W` is whatever the caller wants to have back with a lookup.
#[derive(Debug)]
pub struct LookupBuilder<W> {
    hold_ns: u64,
    saw: Saw,
    limits: LookupLimits,
    wall: fn(u64) -> Timestamp,
    next: u64,
    open: HashMap<u64, OpenLookup<W>>,
    /// All names of a lookup begin with the same label.
    by_label: HashMap<(ProcessKey, String), Vec<u64>>,
    due: BTreeSet<(u64, u64)>,
    due_of: HashMap<u64, BTreeSet<(u64, u64)>>,
    full: Vec<ClosedLookup<W>>,
    evicted: u64,
}

impl<W> LookupBuilder<W> {
    /// `timeout_ns`: how long a query waits until it is a timeout. `wall`: the boot clock's time as a wall clock's.
    pub fn new(
        timeout_ns: u64,
        saw: Saw,
        limits: LookupLimits,
        wall: fn(u64) -> Timestamp,
    ) -> LookupBuilder<W> {
        LookupBuilder {
            hold_ns: timeout_ns.saturating_add(GAP_NS),
            saw,
            limits,
            wall,
            next: 0,
            open: HashMap::new(),
            by_label: HashMap::new(),
            due: BTreeSet::new(),
            due_of: HashMap::new(),
            full: Vec::new(),
            evicted: 0,
        }
    }

    /// Puts a query to its lookup, or opens one. `container` is whose share of the room it takes.
    pub fn add(
        &mut self,
        process: ProcessKey,
        container: u64,
        query: LookupQuery,
        resolv: Option<Arc<ResolvConf>>,
        context: impl FnOnce() -> W,
    ) {
        let key = (process, query.first_label());
        let ids = self.by_label.get(&key).map(Vec::as_slice).unwrap_or_default();
        let fits = |id: &&u64| self.open.get(id).is_some_and(|open| open.takes(&query, resolv.as_deref()));
        if let Some(&id) = ids.iter().rev().find(fits) {
            let hold = self.hold_ns;
            let Some(open) = self.open.get_mut(&id) else { return };
            let (before, container) = ((open.due_ns, id), open.container);
            open.put(query, resolv);
            open.due_ns = open.held_until(hold);
            let after = (open.due_ns, id);
            self.due.remove(&before);
            self.due.insert(after);
            let of = self.due_of.entry(container).or_default();
            of.remove(&before);
            of.insert(after);
            return;
        }
        // Its timeout has been told long ago, as has the lookup that it ended.
        if query.transaction.outcome == Outcome::Late {
            return;
        }
        self.make_room(container);
        let id = self.next;
        self.next += 1;
        self.by_label.entry(key).or_default().push(id);
        let (start_ns, end_ns) = (query.sent_ns, query.done_ns);
        let (queries, due_ns) = (vec![query], 0);
        let mut open =
            OpenLookup { context: context(), process, container, queries, start_ns, end_ns, due_ns, resolv };
        open.due_ns = open.held_until(self.hold_ns);
        self.due.insert((open.due_ns, id));
        self.due_of.entry(container).or_default().insert((open.due_ns, id));
        self.open.insert(id, open);
    }

    fn make_room(&mut self, container: u64) {
        let crowded = self.due_of.get(&container).filter(|of| of.len() >= self.limits.per_container);
        let oldest = match crowded {
            Some(of) => of.first(),
            None if self.open.len() >= self.limits.all => self.due.first(),
            None => None,
        };
        let Some(&oldest) = oldest else { return };
        if let Some(open) = self.take(oldest) {
            self.evicted += 1;
            let mut closed = self.close(open);
            closed.lookup.cut_short = true;
            self.full.push(closed);
        }
    }

    fn take(&mut self, due: (u64, u64)) -> Option<OpenLookup<W>> {
        self.due.remove(&due);
        let open = self.open.remove(&due.1)?;
        if let Some(of) = self.due_of.get_mut(&open.container) {
            of.remove(&due);
            if of.is_empty() {
                self.due_of.remove(&open.container);
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

    fn close(&self, mut open: OpenLookup<W>) -> ClosedLookup<W> {
        open.queries.sort_by_key(|query| (query.sent_ns, query.done_ns));
        let judged =
            judge::lookup(&open.queries, open.resolv.as_deref(), self.saw, (self.wall)(open.start_ns));
        let end_ns = open.start_ns.saturating_add(judged.wait_ns);
        ClosedLookup {
            context: open.context,
            process: open.process,
            start_ns: open.start_ns,
            end_ns,
            lookup: judged,
        }
    }

    /// When the next lookup is to be told (boot clock).
    pub fn due(&self) -> Option<u64> {
        if self.full.is_empty() { self.due.first().map(|due| due.0) } else { Some(0) }
    }

    /// Those to be told at `now`, or all. `resolv` is asked once more for those whose search list was not known yet.
    pub fn take_due(
        &mut self,
        now_ns: u64,
        all: bool,
        mut resolv: impl FnMut(&W) -> Option<Arc<ResolvConf>>,
    ) -> Vec<ClosedLookup<W>> {
        let mut out = std::mem::take(&mut self.full);
        while let Some(&due) = self.due.first() {
            if !all && due.0 > now_ns {
                break;
            }
            let Some(mut open) = self.take(due) else { continue };
            if open.resolv.is_none() {
                open.resolv = resolv(&open.context);
            }
            out.push(self.close(open));
        }
        out
    }

    /// How many were told early to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl<W> OpenLookup<W> {
    fn put(&mut self, query: LookupQuery, resolv: Option<Arc<ResolvConf>>) {
        self.resolv = self.resolv.take().or(resolv);
        self.start_ns = self.start_ns.min(query.sent_ns);
        self.end_ns = self.end_ns.max(query.done_ns);
        // One query, told twice: its timeout, and now its answer; or its answer, and that this was dropped.
        let again = |before: &LookupQuery| match query.transaction.outcome {
            Outcome::Late => before.transaction.outcome == Outcome::Timeout,
            _ => query.transaction.answer_dropped,
        };
        let told = |before: &&mut LookupQuery| {
            again(before)
                && before.sent_ns == query.sent_ns
                && (before.transaction.id, before.transaction.server)
                    == (query.transaction.id, query.transaction.server)
                && before.is_same_question(&query)
        };
        match self.queries.iter_mut().find(told) {
            Some(before) => *before = query,
            None => self.queries.push(query),
        }
    }

    /// Until when more can come. A query that is sent again with its id times out that much later, so that a lookup with a
    /// question open is held for a client's further attempts, too.
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
            answered || resolv.and_then(|resolv| resolv.asked(&names)).is_some_and(|(_, last)| last);
        let last = names.last().copied().unwrap_or_default();
        let asked = |qtype: &str| {
            self.queries
                .iter()
                .any(|query| query.name == last && query.transaction.qtype.as_deref() == Some(qtype))
        };
        if at_the_end && asked("A") == asked("AAAA") {
            return usual;
        }
        let of = resolv.cloned().unwrap_or_default();
        let further = u64::from(of.attempts.saturating_sub(1)) * u64::from(of.timeout) * 1_000_000_000;
        usual.saturating_add(further)
    }

    /// Does this query belong here? The module's docs have the rules.
    fn takes(&self, query: &LookupQuery, resolv: Option<&ResolvConf>) -> bool {
        let near = query.sent_ns <= self.end_ns.saturating_add(GAP_NS)
            && self.start_ns <= query.done_ns.saturating_add(GAP_NS);
        let is_late = query.transaction.outcome == Outcome::Late;
        if self.queries.len() >= QUERIES_MAX || !(near || is_late) {
            return false;
        }
        let resolv = self.resolv.as_deref().or(resolv);
        self.queries.iter().all(|other| goes_with(query, other))
            && (self.is_for_a_larger_buffer(query)
                || !(self.is_asked_anew(query) || self.is_over_attempts(query, resolv)))
            && self.has_common_name(query, resolv)
    }

    /// glibc asks for everything once more, at once, with twice the buffer, when an answer does not fit in it: one that was
    /// truncated and fetched by TCP, or is about to be.
    fn is_for_a_larger_buffer(&self, query: &LookupQuery) -> bool {
        let large = self.queries.iter().any(|other| {
            other.transaction.protocol == Protocol::Tcp && other.is_answered() && other.name == query.name
        });
        let before = self.queries.iter().map(|other| other.done_ns).filter(|&done| done <= query.sent_ns);
        large
            && self.was_truncated(query.sent_ns)
            && before.max().is_some_and(|last| query.sent_ns - last <= AT_ONCE_NS)
    }

    fn was_truncated(&self, before_ns: u64) -> bool {
        let truncated =
            |it: &LookupQuery| it.transaction.outcome == Outcome::Truncated && it.done_ns <= before_ns;
        self.queries.iter().any(truncated)
    }

    /// The question had been answered when it was sent. glibc does that when the other type stays silent (it asks for
    /// both again, one after the other), and when the other's answer was truncated (it asks for both by TCP).
    fn is_asked_anew(&self, query: &LookupQuery) -> bool {
        let silent = |other: &LookupQuery| {
            other.name == query.name
                && matches!(other.transaction.outcome, Outcome::Timeout | Outcome::Malformed)
        };
        self.queries.iter().any(|other| {
            let after = other.is_final() && other.done_ns <= query.sent_ns;
            let before = query.is_final() && query.done_ns <= other.sent_ns;
            let (first, second) = if after { (other, query) } else { (query, other) };
            let by_tcp = (first.transaction.protocol, second.transaction.protocol)
                == (Protocol::Udp, Protocol::Tcp)
                && self.was_truncated(second.sent_ns);
            other.is_same_question(query) && (after || before) && !by_tcp
        }) && !self.queries.iter().any(silent)
    }

    /// Nobody asks a server more often than that: an application that tries again at once makes the next lookup.
    ///
    /// glibc and musl ask again with the same id, Go with a new one each time: a new id after a repeated one is the
    /// application's doing.
    fn is_over_attempts(&self, query: &LookupQuery, resolv: Option<&ResolvConf>) -> bool {
        if query.transaction.outcome == Outcome::Late || query.is_final() {
            return false;
        }
        let attempts = resolv.map_or(ResolvConf::default().attempts, |resolv| resolv.attempts) as usize;
        // c-ares waits for three.
        let most = if query.transaction.outcome == Outcome::Timeout { attempts.max(3) } else { attempts };
        let same = self.queries.iter().filter(|other| {
            other.is_same_question(query)
                && other.transaction.server == query.transaction.server
                && other.transaction.protocol == query.transaction.protocol
        });
        let ids: Vec<u16> = same.map(|other| other.transaction.id).collect();
        let distinct: BTreeSet<u16> = ids.iter().copied().collect();
        let repeats = distinct.len() < ids.len();
        !distinct.contains(&query.transaction.id) && (repeats || distinct.len() >= most)
    }

    fn has_common_name(&self, query: &LookupQuery, resolv: Option<&ResolvConf>) -> bool {
        let mut names = self.queries.iter().map(|other| other.name.as_str());
        match resolv {
            Some(resolv) => {
                let mut bases = resolv.bases(&query.name);
                names.all(|name| {
                    let of = resolv.bases(name);
                    bases.retain(|base| of.contains(base));
                    !bases.is_empty()
                })
            }
            None => names.all(|name| search::nest(name, &query.name)),
        }
    }
}

/// The search goes on to the next name only after a failure.
fn goes_with(one: &LookupQuery, other: &LookupQuery) -> bool {
    let after =
        |first: &LookupQuery, second: &LookupQuery| first.is_answered() && first.done_ns <= second.sent_ns;
    one.name == other.name || !(after(one, other) || after(other, one))
}
