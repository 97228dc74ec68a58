//! Transactions → events, and the lookups that are made of them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use podopsy_model::{Detail, Event, EventKind, Outcome, Owner};
use podopsy_opener::Openers;
use podopsy_pods::Pods;
use tokio::time::Instant;

use super::gather::Lookups;
use super::waiting::WaitingQueries;
use crate::attribute::{DnsQuery, EventContext};
use crate::options::DnsOptions;

pub(crate) struct DnsAttribution {
    /// None: lookups are not wanted.
    lookups: Option<Lookups>,
    answers: bool,
    aaaa_nodata: bool,
    pub waiting: WaitingQueries,
}

impl DnsAttribution {
    pub fn new(options: &DnsOptions, pods: Arc<Pods>, openers: &Openers) -> DnsAttribution {
        let lookups = options.lookups.then(|| Lookups::new(options, pods.clone(), openers));
        let DnsOptions { answers, aaaa_nodata, .. } = *options;
        DnsAttribution { lookups, answers, aaaa_nodata, waiting: WaitingQueries::new(pods) }
    }

    /// The event of a query whose owner is known; None: it is not wanted.
    pub fn transaction(&mut self, context: &EventContext, query: DnsQuery, owner: Owner) -> Option<Event> {
        let DnsQuery { asker, time_ns, transaction, .. } = query;
        let (outcome, superseded) = (transaction.outcome, transaction.facts.superseded);
        let is_failure = transaction.is_failure() || (self.aaaa_nodata && outcome == Outcome::Nodata);
        let is_wanted = is_failure || self.answers || transaction.slow || outcome == Outcome::Noerror;
        let kind = if is_failure { EventKind::DnsFailure } else { EventKind::DnsAnswer };
        let event = context.event(time_ns, kind, owner, &asker, Detail::Dns(transaction));
        // Where answers are not recorded, a lookup would have the query that was superseded, and not the one that was answered.
        if let Some(lookups) = self.lookups.as_mut().filter(|_| self.answers || !superseded) {
            lookups.add(&event, &asker, time_ns);
        }
        is_wanted.then_some(event)
    }

    /// When the next lookup is complete.
    pub fn due(&self) -> Option<Instant> {
        self.lookups.as_ref().and_then(Lookups::due)
    }

    /// The lookups that are complete, or all.
    pub fn lookups(&mut self, context: &EventContext, all: bool) -> Vec<Event> {
        let Some(lookups) = &mut self.lookups else { return Vec::new() };
        let events = lookups.take_due(all, &context.node, &context.losses());
        context.totals.lookups_evicted.store(lookups.evicted(), Relaxed);
        events
    }
}
