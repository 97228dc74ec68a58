//! Queries in flight: what stays too long becomes a timeout, what the network refused becomes unreachable.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podopsy_wire::{
    DnsCounters, DnsKey, DnsPending, STATE_TIMED_OUT, STATE_WAITING, SocketClosed, SocketError, StrayAnswer,
    TABLE_QUERIES, fold_address, in_flight, in_flight_share,
};

use podopsy_decode::dns::{socket_address, unanswered};
use podopsy_model::{DnsTransaction, Outcome, TcpFailure};
use podopsy_probes::{ANames, InFlight, TableShares};
use podopsy_system::clock::boot_now_ns;

use super::beside_a::mark_beside_a;
use super::closed::ClosedQuery;
use super::tables::OwnedTable;
use super::usage::Usage;
use crate::fair::fair_level;

/// IPPROTO_TCP.
const TCP: u32 = 6;
/// How long an answer may come after its timeout and still be called late.
const LATE: Duration = Duration::from_secs(30);
/// Socket errors that have not been matched with a query; more are counted as lost.
const ERRORS_MAX: usize = 1024;
/// Closed sockets, and answers without a query, that are held until a sweep; more are counted as lost.
const CLOSED_MAX: usize = 65_536;
const STRAYS_MAX: usize = 1024;
/// Sweeps that see each of these: one may miss a query that the kernel side writes meanwhile.
const SWEEPS: u8 = 2;

/// A query that ended without an answer.
pub(crate) struct EndedQuery {
    pub pending: DnsPending,
    pub time_ns: u64,
    pub transaction: DnsTransaction,
}

/// Finds timeouts and unreachable servers among the queries in flight.
pub(crate) struct QueriesInFlight {
    map: InFlight,
    shares: TableShares,
    /// The other tables that cgroups share.
    tables: Vec<OwnedTable>,
    a_names: Arc<ANames>,
    timeout_ns: u64,
    errors: VecDeque<SocketError>,
    /// By socket cookie, with the number of sweeps that are still to see it.
    closed: HashMap<u64, (SocketClosed, u8)>,
    strays: VecDeque<(StrayAnswer, u8)>,
    /// Queries in flight that another address answered: when each was sent, and that address.
    other_address: HashMap<DnsKey, (u64, SocketAddr)>,
    usage: Usage,
    /// Timed-out queries that were removed early: a late answer to them is not seen.
    evicted: u64,
    /// Waiting queries that were removed, so that their outcome is not seen: of all cgroups since the start, and of each
    /// since the last call of `take_untracked`.
    untracked_all: u64,
    untracked: HashMap<u64, u64>,
    errors_lost: u64,
    closed_lost: u64,
    strays_lost: u64,
    /// An outage fills the map: sweeps take a tenth of the time at most.
    not_before: Instant,
}

/// One part in this many of the time goes to sweeps.
const SWEEP_SHARE: u32 = 10;
/// One part in this many of the map is kept free for new queries.
pub(super) const KEPT_FREE: u64 = 4;

impl QueriesInFlight {
    pub fn new(
        map: InFlight,
        shares: TableShares,
        tables: Vec<OwnedTable>,
        a_names: Arc<ANames>,
        timeout: Duration,
    ) -> QueriesInFlight {
        let timeout_ns = timeout.as_nanos().min(u128::from(u64::MAX)) as u64;
        QueriesInFlight {
            map,
            shares,
            tables,
            a_names,
            timeout_ns,
            errors: VecDeque::new(),
            closed: HashMap::new(),
            strays: VecDeque::new(),
            other_address: HashMap::new(),
            usage: Usage::new(|counters| (counters.inserted, counters.removed)),
            evicted: 0,
            untracked_all: 0,
            untracked: HashMap::new(),
            errors_lost: 0,
            closed_lost: 0,
            strays_lost: 0,
            not_before: Instant::now(),
        }
    }

    /// A socket has an error: its server cannot be reached. The next sweep finds the queries.
    pub fn socket_error(&mut self, error: SocketError) {
        if self.errors.len() >= ERRORS_MAX {
            self.errors_lost += 1;
            return;
        }
        self.errors.push_back(error);
    }

    /// A socket was closed. The next sweep finds its queries.
    pub fn socket_closed(&mut self, closed: SocketClosed) {
        if self.closed.len() >= CLOSED_MAX {
            self.closed_lost += 1;
            return;
        }
        self.closed.insert(closed.cookie, (closed, SWEEPS));
    }

    /// An answer came that belongs to no query of its socket. The next sweep finds the query that it may be meant for.
    pub fn stray_answer(&mut self, stray: StrayAnswer) {
        if self.strays.len() >= STRAYS_MAX {
            self.strays_lost += 1;
            return;
        }
        self.strays.push_back((stray, SWEEPS));
    }

    pub fn timeout_ns(&self) -> u64 {
        self.timeout_ns
    }

    /// Reads the map once, unless the last sweep was long and recent. Reads only counters when no query is in flight.
    pub fn sweep(&mut self) -> Vec<EndedQuery> {
        let start = Instant::now();
        if start < self.not_before {
            return Vec::new();
        }
        let ended = self.look();
        self.not_before = start + start.elapsed() * SWEEP_SHARE;
        ended
    }

    /// Reads the map, however long it takes.
    pub fn look(&mut self) -> Vec<EndedQuery> {
        self.usage.begin_sweep();
        let inserted = self.shares.inserted_and_not_removed(TABLE_QUERIES);
        if in_flight(inserted, 0, self.usage.swept_all) == 0 {
            self.errors.clear();
            self.closed.clear();
            self.strays.clear();
            self.other_address.clear();
            return Vec::new();
        }
        let entries = self.map.entries();
        let mut seen = HashSet::with_capacity(entries.len());
        let (mut waiting, mut timed_out) = (QueriesByCgroup::default(), QueriesByCgroup::default());
        let mut ended = Vec::new();
        let now = boot_now_ns();
        for &(key, pending) in &entries {
            if !seen.insert(key) {
                continue;
            }
            let cgroup_id = pending.asker.cgroup_id;
            self.usage.add(cgroup_id);
            self.match_strays(&key, &pending);
            match self.judge(&key, &pending, now) {
                Verdict::Waits => waiting.add(cgroup_id, pending.last_sent_ns, key),
                Verdict::BeingFilled => {}
                Verdict::TimedOut => timed_out.add(cgroup_id, pending.last_sent_ns, key),
                Verdict::TimesOutNow(end) => {
                    timed_out.add(cgroup_id, pending.last_sent_ns, key);
                    ended.push(end);
                }
                Verdict::Removed(end) => {
                    self.usage.remove(cgroup_id);
                    ended.extend(end);
                }
            }
        }
        mark_beside_a(&mut ended, &entries, |pending| self.a_names.has(pending, now));
        self.errors.clear();
        self.closed.retain(|_, (_, sweeps)| count_down(sweeps));
        self.strays.retain_mut(|(_, sweeps)| count_down(sweeps));
        self.other_address.retain(|key, _| seen.contains(key));
        self.evict_timed_out(timed_out);
        self.evict_waiting(waiting);
        self.shares.publish_swept(TABLE_QUERIES, self.usage.changed(), self.usage.swept_all);
        ended
    }

    /// Removes timed-out queries of the cgroups that use more than half of their share, the oldest first: they are kept
    /// only to recognise late answers, and a new query needs the place more.
    fn evict_timed_out(&mut self, timed_out: QueriesByCgroup) {
        let allowed = in_flight_share(self.usage.present_all, self.max()) / 2;
        for (cgroup_id, mut queries) in timed_out.by_cgroup {
            let excess = self.usage.present(cgroup_id).saturating_sub(allowed) as usize;
            if excess == 0 {
                continue;
            }
            queries.sort_unstable_by_key(|(sent_ns, _)| *sent_ns);
            for (_, key) in queries.into_iter().take(excess) {
                if self.map.remove(&key) {
                    self.usage.remove(cgroup_id);
                    self.evicted += 1;
                }
            }
        }
    }

    /// Keeps a part of the map free for new queries of other cgroups: the cgroups with the most queries lose those that they
    /// have sent last. The kernel side cannot take back what a cgroup has, and many cgroups that come one after the other
    /// would leave too little for the next one.
    fn evict_waiting(&mut self, waiting: QueriesByCgroup) {
        let present = self.usage.present.values().map(|count| *count as f64);
        let Some(level) = fair_level(present, (self.max() - self.max() / KEPT_FREE) as f64) else {
            return;
        };
        for (cgroup_id, mut queries) in waiting.by_cgroup {
            let excess = self.usage.present(cgroup_id).saturating_sub(level as u64) as usize;
            if excess == 0 {
                continue;
            }
            queries.sort_unstable_by_key(|(sent_ns, _)| Reverse(*sent_ns));
            for (_, key) in queries.into_iter().take(excess) {
                if self.map.remove(&key) {
                    self.usage.remove(cgroup_id);
                    self.untracked_all += 1;
                    *self.untracked.entry(cgroup_id).or_default() += 1;
                }
            }
        }
    }

    /// The queries that were removed before their outcome was seen, by cgroup, since the last call.
    pub fn take_untracked(&mut self) -> HashMap<u64, u64> {
        std::mem::take(&mut self.untracked)
    }

    /// Notes that an answer to this query came from another address.
    fn match_strays(&mut self, key: &DnsKey, pending: &DnsPending) {
        if pending.state != STATE_WAITING {
            return;
        }
        if let Some((stray, _)) = self.strays.iter().find(|(stray, _)| is_answer_to(stray, key, pending)) {
            let address = socket_address(stray.server, stray.port);
            self.other_address.insert(*key, (pending.first_sent_ns, address));
        }
    }

    fn judge(&mut self, key: &DnsKey, pending: &DnsPending, now: u64) -> Verdict {
        // The kernel side is filling this entry.
        if pending.last_sent_ns == 0 {
            return Verdict::BeingFilled;
        }
        let age = now.saturating_sub(pending.last_sent_ns);
        let closed = self.closed.get(&key.cookie).map(|(closed, _)| *closed);
        let closed = closed.filter(|closed| closed.time_ns >= pending.last_sent_ns);
        if pending.state == STATE_TIMED_OUT {
            // No late answer reaches a closed socket.
            let is_over = age > self.timeout_ns + LATE.as_nanos() as u64 || closed.is_some();
            let is_removed = is_over && self.map.remove(key);
            return if is_removed { Verdict::Removed(None) } else { Verdict::TimedOut };
        }
        match pending.state {
            STATE_WAITING => self.judge_waiting(key, pending, closed, now),
            _ => Verdict::Waits,
        }
    }

    /// `closed`: the query's socket was closed.
    fn judge_waiting(
        &mut self,
        key: &DnsKey,
        pending: &DnsPending,
        closed: Option<SocketClosed>,
        now: u64,
    ) -> Verdict {
        let refused = self
            .errors
            .iter()
            .find(|e| e.cookie == key.cookie && e.time_ns >= pending.first_sent_ns)
            .copied();
        let other_address =
            self.other_address.get(key).filter(|(sent_ns, _)| *sent_ns == pending.first_sent_ns);
        let answered_from = other_address.map(|(_, address)| *address);
        let end = |outcome, time_ns| {
            let mut transaction = unanswered(key, pending, outcome, time_ns);
            transaction.facts.answered_from = answered_from;
            EndedQuery { pending: *pending, time_ns, transaction }
        };
        match (refused, closed) {
            (Some(error), _) if self.map.remove(key) => {
                let mut end = end(Outcome::Unreachable, error.time_ns);
                end.transaction.facts.tcp_failure =
                    (key.protocol == TCP).then(|| TcpFailure::from_errno(error.errno)).flatten();
                Verdict::Removed(Some(end))
            }
            (None, Some(closed)) if self.map.remove(key) => {
                let became = ClosedQuery::new(&closed, key.id, pending.first_sent_ns, self.timeout_ns);
                let mut end = end(became.outcome, closed.time_ns);
                end.transaction.facts.socket_closed = true;
                end.transaction.facts.superseded = became.superseded;
                end.transaction.facts.tcp_failure = became.tcp_failure;
                Verdict::Removed(Some(end))
            }
            (None, None) if now.saturating_sub(pending.last_sent_ns) >= self.timeout_ns => {
                match self.map.mark_timed_out(*key, *pending) {
                    true => Verdict::TimesOutNow(end(Outcome::Timeout, now)),
                    false => Verdict::Waits,
                }
            }
            _ => Verdict::Waits,
        }
    }

    /// How many queries the map can hold.
    fn max(&self) -> u64 {
        self.shares.max(TABLE_QUERIES)
    }

    /// Removes what no cgroup should have of the other tables.
    pub fn sweep_tables(&mut self) {
        let now = boot_now_ns();
        for table in &mut self.tables {
            table.sweep(&mut self.shares, now);
        }
    }

    /// Corrects each cgroup's number of entries, from the counters of all cgroups that have some.
    pub fn correct(&mut self, counters: &[(u64, DnsCounters)]) {
        publish_corrected(&mut self.shares, TABLE_QUERIES, &mut self.usage, counters);
        for table in &mut self.tables {
            let number = table.number();
            publish_corrected(&mut self.shares, number, &mut table.usage, counters);
        }
    }

    /// Losses of the map, by counter name.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let all = [
            ("dns_closed", self.closed_lost),
            ("dns_in_flight_evicted", self.evicted),
            ("dns_over_share", self.untracked_all),
            ("dns_socket_errors", self.errors_lost),
            ("dns_stray", self.strays_lost),
        ];
        all.into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect()
    }
}

/// Whether there is another sweep to see something.
fn count_down(sweeps: &mut u8) -> bool {
    *sweeps -= 1;
    *sweeps > 0
}

/// Whether an answer has the socket and the id of this query, and comes from another address than the query went to.
fn is_answer_to(stray: &StrayAnswer, key: &DnsKey, pending: &DnsPending) -> bool {
    let is_socket = match stray.cookie {
        0 => pending.local_port != 0 && stray.local_port == pending.local_port,
        cookie => key.cookie == cookie,
    };
    let is_query = is_socket && key.protocol != TCP && stray.id == key.id;
    is_query
        && stray.time_ns >= pending.first_sent_ns
        && (stray.server, stray.port) != (pending.server, pending.port)
        && fold_address(&stray.server, stray.port) != pending.went_to
}

fn publish_corrected(
    shares: &mut TableShares,
    table: u32,
    usage: &mut Usage,
    counters: &[(u64, DnsCounters)],
) {
    for cgroup_id in usage.forget_except(counters) {
        shares.forget_swept(table, cgroup_id);
    }
    let corrected = usage.correct(counters);
    shares.publish_swept(table, corrected, usage.swept_all);
}

/// What a sweep found of a query.
enum Verdict {
    BeingFilled,
    Waits,
    /// It stays, to recognise a late answer.
    TimedOut,
    TimesOutNow(EndedQuery),
    /// It is no longer in the map.
    Removed(Option<EndedQuery>),
}

/// Queries of a sweep: when each was last sent, and its key.
#[derive(Default)]
struct QueriesByCgroup {
    by_cgroup: HashMap<u64, Vec<(u64, DnsKey)>>,
}

impl QueriesByCgroup {
    fn add(&mut self, cgroup_id: u64, sent_ns: u64, key: DnsKey) {
        self.by_cgroup.entry(cgroup_id).or_default().push((sent_ns, key));
    }
}
