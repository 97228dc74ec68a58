//! Transactions → events, and the lookups that are made of them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use podopsy_model::{Detail, DnsTransaction, Event, EventKind, Outcome, Owner};
use podopsy_pods::Pods;
use podopsy_wire::Task;
use tokio::time::Instant;

use super::gather::Lookups;
use crate::attribute::EventContext;
use crate::options::DnsOptions;

pub(crate) struct DnsAttribution {
    /// None: lookups are not wanted.
    lookups: Option<Lookups>,
}

impl DnsAttribution {
    pub fn new(options: &DnsOptions, pods: Arc<Pods>) -> DnsAttribution {
        DnsAttribution { lookups: options.lookups.then(|| Lookups::new(options, pods)) }
    }

    pub async fn transaction(
        &mut self,
        context: &EventContext,
        asker: &Task,
        owner: Option<Box<Owner>>,
        time_ns: u64,
        transaction: DnsTransaction,
    ) -> Event {
        let owner = match owner {
            Some(owner) => *owner,
            None => context.owner(asker).await,
        };
        let kind = match transaction.outcome {
            Outcome::Noerror => EventKind::DnsAnswer,
            _ => EventKind::DnsFailure,
        };
        let event = context.event(time_ns, kind, owner, asker, Detail::Dns(transaction));
        if let Some(lookups) = &mut self.lookups {
            lookups.add(&event, asker, time_ns);
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
