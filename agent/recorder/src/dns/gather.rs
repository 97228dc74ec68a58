//! Attributed queries → lookups: reads what the pure builder needs (resolv.conf, counters, the clock).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use podopsy_wire::Task;
use tokio::time::Instant;

use crate::dns::lookups::diagnosis::{SeenOfQueries, diagnose, growth};
use crate::dns::lookups::{ClosedLookup, LookupBuilder, LookupQuery, ProcessKey};
use crate::dns::network::counters::CounterHistory;
use crate::dns::network::resolv_conf::{NetworkView, ResolvConfCache};
use crate::options::DnsOptions;
use podopsy_model::lookup::{LookupResult, SeenOutcomes};
use podopsy_model::{Detail, Event, EventKind, KnownBy, Losses, Outcome, Owner, ProcessRef};
use podopsy_opener::Openers;
use podopsy_pods::Pods;
use podopsy_system::clock;

/// What the builder returns with a lookup.
struct LookupContext {
    owner: Owner,
    process: ProcessRef,
    of: NetworkView,
}

/// Lookups that are not complete yet.
pub struct Lookups {
    builder: LookupBuilder<LookupContext>,
    resolv: ResolvConfCache,
    counters: CounterHistory,
    pods: Arc<Pods>,
    saw: SeenOutcomes,
}

impl Lookups {
    pub fn new(options: &DnsOptions, pods: Arc<Pods>, openers: &Openers) -> Lookups {
        let saw = if options.answers { SeenOutcomes::All } else { SeenOutcomes::Failures };
        let timeout_ns = options.timeout.as_nanos().min(u128::from(u64::MAX)) as u64;
        let proc_root = Path::new("/proc");
        Lookups {
            builder: LookupBuilder::new(timeout_ns, saw, Default::default(), clock::wall),
            resolv: ResolvConfCache::new(proc_root, openers),
            counters: CounterHistory::new(proc_root),
            pods,
            saw,
        }
    }

    /// Adds a query by its event.
    pub fn add(&mut self, event: &Event, asker: &Task, time_ns: u64) {
        let Detail::Dns(transaction) = &event.detail else { return };
        let Some(query) = LookupQuery::new(transaction.clone(), time_ns) else { return };
        let process = ProcessKey { pid: asker.pid, start_ns: asker.start_ns };
        let of = match (&event.container, event.known_by) {
            (None, KnownBy::Host | KnownBy::Unknown) => {
                NetworkView::Process { pid: asker.pid, start_ns: asker.start_ns }
            }
            _ => NetworkView::Container { cgroup: asker.cgroup_id },
        };
        // Inside a pod, all containers have our resolv.conf and our network.
        let pid = match (asker.pid, event.known_by) {
            (0, KnownBy::Inside) => std::process::id(),
            (pid, _) => pid,
        };
        let is_unanswered = matches!(transaction.outcome, Outcome::Timeout | Outcome::Abandoned);
        self.counters.sample(of, pid, clock::boot_now_ns(), is_unanswered);
        let others = || match of {
            NetworkView::Container { cgroup } => self.pods.pids(cgroup),
            NetworkView::Process { .. } => Vec::new(),
        };
        let resolv = self.resolv.get(of, pid, asker.start_ns, others);
        let context = || LookupContext { owner: event.owner(), process: event.process.clone(), of };
        // Host processes share a cgroup; each has a share of its own, because one of them may ask without end.
        let share = match of {
            NetworkView::Container { cgroup } => cgroup,
            NetworkView::Process { pid, .. } => 1 << 63 | u64::from(pid),
        };
        self.builder.add(process, share, query, resolv, context);
    }

    /// When the next lookup is complete.
    pub fn due(&self) -> Option<Instant> {
        let delay = self.builder.due()?.saturating_sub(clock::boot_now_ns());
        Some(Instant::now() + Duration::from_nanos(delay))
    }

    /// Lookups that are complete, or all.
    pub fn take_due(&mut self, all: bool, node: &str, losses: &Losses) -> Vec<Event> {
        let resolv = &self.resolv;
        let known = |context: &LookupContext| resolv.get(context.of, context.process.pid, 0, Vec::new);
        let closed = self.builder.take_due(clock::boot_now_ns(), all, known);
        let reported = closed
            .into_iter()
            .filter(|closed| self.saw == SeenOutcomes::All || closed.lookup.result.is_failure());
        reported.map(|closed| self.event(closed, node, losses)).collect()
    }

    pub fn evicted(&self) -> u64 {
        self.builder.evicted()
    }

    fn event(&self, closed: ClosedLookup<LookupContext>, node: &str, losses: &Losses) -> Event {
        let ClosedLookup { context, process: _, start_ns, end_ns, mut lookup } = closed;
        let seen = SeenOfQueries::new(&lookup);
        let is_unanswered =
            matches!(lookup.result, LookupResult::Timeout | LookupResult::Late | LookupResult::Abandoned);
        if is_unanswered || (lookup.result == LookupResult::Unreachable && seen.tcp.is_some()) {
            let around = self.counters.around(context.of, start_ns);
            let grown = around.map(|(before, after, window)| (window, growth(before, after)));
            lookup.diagnosis = Some(diagnose(&seen, grown));
        }
        let detail = Detail::Lookup(Box::new(lookup));
        let time = clock::wall(end_ns);
        Event::new(time, EventKind::DnsLookup, node, context.owner, context.process, detail, losses.clone())
    }
}
