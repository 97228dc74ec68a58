//! Queries in flight: what stays too long becomes a timeout, what the network refused becomes unreachable.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use podopsy_wire::{
    DnsCounters, DnsKey, DnsPending, STATE_TIMED_OUT, STATE_WAITING, SocketError, in_flight, in_flight_share,
};

use podopsy_decode::dns::unanswered;
use podopsy_model::{DnsTransaction, Outcome};
use podopsy_probes::InFlight;
use podopsy_system::clock::boot_now_ns;

use crate::fair::fair_level;

/// How long an answer may come after its timeout and still be called late.
const LATE: Duration = Duration::from_secs(30);
/// Socket errors that have not been matched with a query; more are counted as lost.
const ERRORS_MAX: usize = 1024;

/// A query that ended without an answer.
pub(crate) struct EndedQuery {
    pub pending: DnsPending,
    pub time_ns: u64,
    pub transaction: DnsTransaction,
}

/// Finds timeouts and unreachable servers among the queries in flight.
pub(crate) struct QueriesInFlight {
    map: InFlight,
    timeout_ns: u64,
    errors: VecDeque<SocketError>,
    usage: Usage,
    /// Timed-out queries that were removed early: a late answer to them is not seen.
    evicted: u64,
    /// Waiting queries that were removed, so that their outcome is not seen: of all cgroups since the start, and of each
    /// since the last call of `take_untracked`.
    untracked_all: u64,
    untracked: HashMap<u64, u64>,
    errors_lost: u64,
    /// An outage fills the map: sweeps take a tenth of the time at most.
    not_before: Instant,
}

/// One part in this many of the time goes to sweeps.
const SWEEP_SHARE: u32 = 10;
/// One part in this many of the map is kept free for new queries.
const KEPT_FREE: u64 = 4;

impl QueriesInFlight {
    pub fn new(map: InFlight, timeout: Duration) -> QueriesInFlight {
        let timeout_ns = timeout.as_nanos().min(u128::from(u64::MAX)) as u64;
        QueriesInFlight {
            map,
            timeout_ns,
            errors: VecDeque::new(),
            usage: Usage::default(),
            evicted: 0,
            untracked_all: 0,
            untracked: HashMap::new(),
            errors_lost: 0,
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
        if in_flight(self.map.inserted_and_not_removed(), 0, self.usage.swept_all) == 0 {
            self.errors.clear();
            return Vec::new();
        }
        let entries = self.map.entries();
        let mut seen = HashSet::with_capacity(entries.len());
        let (mut waiting, mut timed_out) = (QueriesByCgroup::default(), QueriesByCgroup::default());
        let mut ended = Vec::new();
        let now = boot_now_ns();
        for (key, pending) in entries {
            if !seen.insert(key) {
                continue;
            }
            let cgroup_id = pending.asker.cgroup_id;
            self.usage.add(cgroup_id);
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
        self.errors.clear();
        self.evict_timed_out(timed_out);
        self.evict_waiting(waiting);
        self.map.publish_swept(self.usage.changed(), self.usage.swept_all);
        ended
    }

    /// Removes timed-out queries of the cgroups that use more than half of their share, the oldest first: they are kept
    /// only to recognise late answers, and a new query needs the place more.
    fn evict_timed_out(&mut self, timed_out: QueriesByCgroup) {
        let allowed = in_flight_share(self.usage.present_all, self.map.max()) / 2;
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
        let Some(level) = fair_level(present, (self.map.max() - self.map.max() / KEPT_FREE) as f64) else {
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

    fn judge(&mut self, key: &DnsKey, pending: &DnsPending, now: u64) -> Verdict {
        // The kernel side is filling this entry.
        if pending.last_sent_ns == 0 {
            return Verdict::BeingFilled;
        }
        let age = now.saturating_sub(pending.last_sent_ns);
        if pending.state == STATE_TIMED_OUT {
            let is_over = age > self.timeout_ns + LATE.as_nanos() as u64;
            let is_removed = is_over && self.map.remove(key);
            return if is_removed { Verdict::Removed(None) } else { Verdict::TimedOut };
        }
        if pending.state != STATE_WAITING {
            return Verdict::Waits;
        }
        let refused = self
            .errors
            .iter()
            .find(|e| e.cookie == key.cookie && e.time_ns >= pending.first_sent_ns)
            .copied();
        let end = |outcome, time_ns| {
            let transaction = unanswered(key, pending, outcome, time_ns);
            EndedQuery { pending: *pending, time_ns, transaction }
        };
        match refused {
            Some(error) if self.map.remove(key) => {
                Verdict::Removed(Some(end(Outcome::Unreachable, error.time_ns)))
            }
            None if age >= self.timeout_ns && self.map.mark_timed_out(*key, *pending) => {
                Verdict::TimesOutNow(end(Outcome::Timeout, now))
            }
            _ => Verdict::Waits,
        }
    }

    /// Corrects each cgroup's number of queries in flight, from the counters of all cgroups that have some.
    pub fn correct(&mut self, counters: &[(u64, DnsCounters)]) {
        for cgroup_id in self.usage.forget_except(counters) {
            self.map.forget_swept(cgroup_id);
        }
        let corrected = self.usage.correct(counters);
        self.map.publish_swept(corrected, self.usage.swept_all);
    }

    /// Losses of the map, by counter name.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let all = [
            ("dns_in_flight_evicted", self.evicted),
            ("dns_over_share", self.untracked_all),
            ("dns_socket_errors", self.errors_lost),
        ];
        all.into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect()
    }
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

/// How many queries of each cgroup are in the map, and how many user space has removed.
#[derive(Default)]
struct Usage {
    /// By the last sweep.
    present: HashMap<u64, u64>,
    present_all: u64,
    /// Removed by user space since the start, as the kernel side subtracts it: see [`in_flight`].
    swept: HashMap<u64, u64>,
    swept_all: u64,
    changed: HashSet<u64>,
    /// Insertions and removals of the kernel side at the last correction, and whether there was a sweep since.
    before: HashMap<u64, (u64, u64)>,
    has_swept: bool,
}

impl Usage {
    fn begin_sweep(&mut self) {
        self.present.clear();
        self.present_all = 0;
        self.has_swept = true;
    }

    fn add(&mut self, cgroup_id: u64) {
        *self.present.entry(cgroup_id).or_default() += 1;
        self.present_all += 1;
    }

    /// A query was removed by user space.
    fn remove(&mut self, cgroup_id: u64) {
        if let Some(present) = self.present.get_mut(&cgroup_id) {
            *present = present.saturating_sub(1);
        }
        self.present_all = self.present_all.saturating_sub(1);
        let swept = self.swept.entry(cgroup_id).or_default();
        *swept = swept.wrapping_add(1);
        self.swept_all += 1;
        self.changed.insert(cgroup_id);
    }

    fn present(&self, cgroup_id: u64) -> u64 {
        self.present.get(&cgroup_id).copied().unwrap_or(0)
    }

    /// The sums of user space that have changed since the last call.
    fn changed(&mut self) -> Vec<(u64, u64)> {
        self.changed.drain().map(|id| (id, self.swept.get(&id).copied().unwrap_or(0))).collect()
    }

    /// Forgets the cgroups that have no counters; returns those with a sum.
    fn forget_except(&mut self, counters: &[(u64, DnsCounters)]) -> Vec<u64> {
        let known: HashSet<u64> = counters.iter().map(|(id, _)| *id).collect();
        let gone: Vec<u64> = self.swept.keys().copied().filter(|id| !known.contains(id)).collect();
        for id in &gone {
            self.swept.remove(id);
        }
        gone
    }

    /// Returns the corrected sums of user space, where a cgroup's count does not agree with what is in the map. Only a
    /// cgroup whose counters are the same as at the last call is compared: the kernel side changes those of others during
    /// the sweep. Their difference comes from counters that were removed while queries were in flight.
    fn correct(&mut self, counters: &[(u64, DnsCounters)]) -> Vec<(u64, u64)> {
        let mut corrected = Vec::new();
        let mut before = HashMap::with_capacity(counters.len());
        for (id, counters) in counters {
            let now = (counters.inserted, counters.removed);
            let is_quiet = self.has_swept && self.before.get(id) == Some(&now);
            before.insert(*id, now);
            let swept = self.swept.get(id).copied().unwrap_or(0);
            let should_be = now.0.wrapping_sub(now.1).wrapping_sub(self.present(*id));
            if is_quiet && swept != should_be {
                self.swept.insert(*id, should_be);
                corrected.push((*id, should_be));
            }
        }
        (self.before, self.has_swept) = (before, false);
        corrected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(inserted: u64, removed: u64) -> DnsCounters {
        DnsCounters { inserted, removed, ..DnsCounters::EMPTY }
    }

    fn swept_queries(usage: &mut Usage, cgroup_id: u64, present: u64) {
        usage.begin_sweep();
        (0..present).for_each(|_| usage.add(cgroup_id));
    }

    #[test]
    fn what_user_space_removes_is_published_once() {
        let mut usage = Usage::default();
        swept_queries(&mut usage, 7, 5);
        usage.remove(7);
        usage.remove(7);
        assert_eq!((usage.present(7), usage.present_all, usage.swept_all), (3, 3, 2));
        assert_eq!((usage.changed(), usage.changed()), (vec![(7, 2)], vec![]));
    }

    #[test]
    fn the_count_of_a_quiet_cgroup_is_corrected_and_that_of_a_busy_one_is_not() {
        let mut usage = Usage::default();
        swept_queries(&mut usage, 7, 2);
        // The counters were removed while two queries were in flight, and count from 0 again.
        assert_eq!(
            usage.correct(&[(7, counters(1, 1))]),
            [],
            "the first time there is nothing to compare with"
        );
        swept_queries(&mut usage, 7, 2);
        assert_eq!(usage.correct(&[(7, counters(4, 1))]), [], "its counters have changed");
        assert_eq!(usage.correct(&[(7, counters(4, 1))]), [], "no sweep since");
        swept_queries(&mut usage, 7, 2);
        assert_eq!(usage.correct(&[(7, counters(4, 1))]), [(7, 1)]);
        swept_queries(&mut usage, 7, 2);
        assert_eq!(usage.correct(&[(7, counters(4, 1))]), [], "it agrees now");
        // Fewer were inserted than are there: the sum wraps, and so does the difference.
        swept_queries(&mut usage, 8, 3);
        usage.correct(&[(8, counters(0, 1))]);
        swept_queries(&mut usage, 8, 3);
        let [(8, swept)] = usage.correct(&[(8, counters(0, 1))])[..] else { panic!("it is corrected") };
        assert_eq!(in_flight(0, 1, swept), 3);
    }

    #[test]
    fn a_cgroup_without_counters_is_forgotten() {
        let mut usage = Usage::default();
        swept_queries(&mut usage, 7, 2);
        usage.add(8);
        usage.remove(7);
        usage.remove(8);
        assert_eq!(usage.forget_except(&[(8, counters(1, 0))]), [7]);
        assert!(usage.forget_except(&[(8, counters(1, 0))]).is_empty());
    }
}
