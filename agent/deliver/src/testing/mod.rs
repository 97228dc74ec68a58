//! Test destinations and example events, for the tests of this crate and of others (feature `testing`).

pub mod api_server_stub;
pub mod collector;
pub mod event_validation;
pub mod hostile_server;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use podopsy_model::event::{Detail, Event, EventKind, ProcessRef};
use podopsy_model::lookup::{Lookup, LookupResult, NameKnownBy, SearchPathMisses, SeenOutcomes};
use podopsy_model::owner::{ContainerRef, KnownBy, Owner, PodRef};
use podopsy_model::{Losses, OomIncident};

use crate::EncodedEvent;

/// A lookup of `shop/basket` that timed out.
pub fn lookup(name: &str, second: i64) -> Arc<EncodedEvent> {
    let labels = [("app".to_owned(), "shop".to_owned())].into();
    let pod = PodRef { namespace: "shop".into(), name: "basket".into(), uid: "uid-1".into(), labels };
    let container = ContainerRef { name: "api".into(), id: "c1".into(), image: "shop:1".into(), attempt: 4 };
    let owner =
        Owner { pod: Some(pod), container: Some(container), known_by: KnownBy::Cri, ..Owner::default() };
    encode_lookup(owner, name, second)
}

/// A lookup of a host process that timed out.
pub fn host_lookup(second: i64) -> Arc<EncodedEvent> {
    encode_lookup(Owner { known_by: KnownBy::Host, ..Owner::default() }, "host.example", second)
}

/// The event of an OOM incident of `shop/basket`, modified by `change`, so many seconds after 2027-01-15T08:00:00Z.
pub fn oom_incident(second: i64, change: impl FnOnce(&mut OomIncident)) -> Event {
    let mut event = lookup("a", 1).event.clone();
    let mut incident = podopsy_model::testing::incident();
    change(&mut incident);
    event.kind = EventKind::OomIncident;
    event.time = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_800_000_000 + second);
    event.pod = Some(PodRef {
        namespace: "shop".into(),
        name: "basket".into(),
        uid: "uid-basket".into(),
        labels: [].into(),
    });
    event.incident = Some(Box::new(incident));
    event
}

fn encode_lookup(owner: Owner, name: &str, second: i64) -> Arc<EncodedEvent> {
    let time = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second);
    let lookup = Lookup {
        name: name.to_owned(),
        name_known_by: NameKnownBy::Query,
        types: vec!["A".into()],
        result: LookupResult::Timeout,
        wait_ns: 5_000_000_000,
        start: time,
        queries: 2,
        sends: 4,
        search_path_misses: SearchPathMisses::default(),
        resolvers: Vec::new(),
        transactions: Vec::new(),
        search: None,
        saw: SeenOutcomes::Failures,
        diagnosis: None,
        cut_short: false,
    };
    let process = ProcessRef { pid: 77, comm: "checkout".into(), start_time: None };
    let detail = Detail::Lookup(Box::new(lookup));
    let event = Event::new(time, EventKind::DnsLookup, "n1", owner, process, detail, Losses::new());
    EncodedEvent::new(event, None).unwrap()
}

/// Waits until `condition` holds. Panics after a minute.
pub async fn wait_until(description: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
    waited.unwrap_or_else(|_| panic!("waited a minute until {description}"));
}
