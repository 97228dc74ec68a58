//! Queries in flight: what stays too long becomes a timeout, what the network refused becomes unreachable.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use podopsy_wire::{DnsKey, DnsPending, Loss, STATE_TIMED_OUT, STATE_WAITING, SocketError};

use podopsy_decode::dns::unanswered;
use podopsy_model::{DnsTransaction, Outcome};
use podopsy_probes::InFlight;
use podopsy_probes::ring::LossCounters;
use podopsy_system::clock::boot_now_ns;

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
    removed: u64,
    evicted: u64,
    errors_lost: u64,
    /// An outage fills the map: sweeps take a tenth of the time at most.
    not_before: Instant,
}

/// One part in this many of the time goes to sweeps.
const SWEEP_SHARE: u32 = 10;

impl QueriesInFlight {
    pub fn new(map: InFlight, timeout: Duration) -> QueriesInFlight {
        let timeout_ns = timeout.as_nanos().min(u128::from(u64::MAX)) as u64;
        let errors = VecDeque::new();
        QueriesInFlight {
            map,
            timeout_ns,
            errors,
            removed: 0,
            evicted: 0,
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

    /// Reads the map once, unless the last sweep was long and recent. Reads only a counter when no query is in flight.
    pub fn sweep(&mut self, losses: &LossCounters) -> Vec<EndedQuery> {
        let start = Instant::now();
        if start < self.not_before {
            return Vec::new();
        }
        let ended = self.look(losses);
        self.not_before = start + start.elapsed() * SWEEP_SHARE;
        ended
    }

    /// Reads the map, however long it takes.
    pub fn look(&mut self, losses: &LossCounters) -> Vec<EndedQuery> {
        // Read before the map: a query that is inserted meanwhile then counts as present, never as evicted.
        let inserted = losses.get(Loss::DnsInserted);
        let gone = losses.get(Loss::DnsRemoved) + self.removed + self.evicted;
        if inserted == gone {
            self.errors.clear();
            return Vec::new();
        }
        let entries = self.map.entries();
        let mut seen = HashSet::new();
        let mut ended = Vec::new();
        let now = boot_now_ns();
        let mut removed_now = 0;
        for (key, pending) in entries {
            if !seen.insert(key) {
                continue;
            }
            if let Some(end) = self.judge(&key, &pending, now, &mut removed_now) {
                ended.push(end);
            }
        }
        self.errors.clear();
        // Read after the map, for the same reason.
        let gone = losses.get(Loss::DnsRemoved) + self.removed + seen.len() as u64;
        self.evicted = self.evicted.max(inserted.saturating_sub(gone));
        self.removed += removed_now;
        ended
    }

    fn judge(
        &mut self,
        key: &DnsKey,
        pending: &DnsPending,
        now: u64,
        removed: &mut u64,
    ) -> Option<EndedQuery> {
        // The kernel side is filling this entry.
        if pending.last_sent_ns == 0 {
            return None;
        }
        let age = now.saturating_sub(pending.last_sent_ns);
        if pending.state == STATE_TIMED_OUT {
            if age > self.timeout_ns + LATE.as_nanos() as u64 && self.map.remove(key) {
                *removed += 1;
            }
            return None;
        }
        if pending.state != STATE_WAITING {
            return None;
        }
        let refused = self
            .errors
            .iter()
            .find(|e| e.cookie == key.cookie && e.time_ns >= pending.first_sent_ns)
            .copied();
        let (outcome, time_ns) = match refused {
            Some(error) => {
                if !self.map.remove(key) {
                    return None;
                }
                *removed += 1;
                (Outcome::Unreachable, error.time_ns)
            }
            None if age >= self.timeout_ns => {
                if !self.map.mark_timed_out(*key, *pending) {
                    return None;
                }
                (Outcome::Timeout, now)
            }
            None => return None,
        };
        let transaction = unanswered(key, pending, outcome, time_ns);
        Some(EndedQuery { pending: *pending, time_ns, transaction })
    }

    /// Losses of the map, by counter name.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        [("dns_in_flight_evicted", self.evicted), ("dns_socket_errors", self.errors_lost)]
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect()
    }
}
