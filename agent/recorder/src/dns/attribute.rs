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
    pub waiting: WaitingQueries,
}

impl DnsAttribution {
    pub fn new(options: &DnsOptions, pods: Arc<Pods>, openers: &Openers) -> DnsAttribution {
        let lookups = options.lookups.then(|| Lookups::new(options, pods.clone(), openers));
        DnsAttribution { lookups, waiting: WaitingQueries::new(pods) }
    }

    /// The event of a query whose owner is known.
    pub fn transaction(&mut self, context: &EventContext, query: DnsQuery, owner: Owner) -> Event {
        let DnsQuery { asker, time_ns, transaction, .. } = query;
        let kind = match transaction.outcome {
            Outcome::Noerror => EventKind::DnsAnswer,
            _ => EventKind::DnsFailure,
        };
        let event = context.event(time_ns, kind, owner, &asker, Detail::Dns(transaction));
        if let Some(lookups) = &mut self.lookups {
            lookups.add(&event, &asker, time_ns);
        }
        event
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
