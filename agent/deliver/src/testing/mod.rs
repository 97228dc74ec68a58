//! Destinations and examples, for the tests of this crate and of others (feature `testing`).

pub mod collector;
pub mod hostile;
pub mod kubernetes_stub;
pub mod kubernetes_validation;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use podopsy_model::event::{Detail, Event, Kind, ProcessRef};
use podopsy_model::lookup::{Lookup, LookupResult, NameKnownBy, Saw, SearchPathMisses};
use podopsy_model::owner::{ContainerRef, KnownBy, Owner, PodRef};
use podopsy_model::{Incident, Losses};

use crate::written::Written;

/// A lookup of `shop/basket` that timed out.
pub fn lookup(name: &str, second: i64) -> Arc<Written> {
    let labels = [("app".to_owned(), "shop".to_owned())].into();
    let pod = PodRef { namespace: "shop".into(), name: "basket".into(), uid: "uid-1".into(), labels };
    let container = ContainerRef { name: "api".into(), id: "c1".into(), image: "shop:1".into(), attempt: 4 };
    let owner =
        Owner { pod: Some(pod), container: Some(container), known_by: KnownBy::Cri, ..Owner::default() };
    written(owner, name, second)
}

pub fn of_the_host(second: i64) -> Arc<Written> {
    written(Owner { known_by: KnownBy::Host, ..Owner::default() }, "host.example", second)
}

/// An OOM incident of `shop/basket`, changed by `change`.
pub fn oom(second: i64, change: impl FnOnce(&mut Incident)) -> Event {
    let mut event = lookup("a", 1).event.clone();
    let mut incident = podopsy_model::testing::incident();
    change(&mut incident);
    (event.kind, event.time, event.pod) = (
        Kind::OomIncident,
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second),
        lookup("a", 1).event.pod.clone(),
    );
    event.incident = Some(Box::new(incident));
    event
}

fn written(owner: Owner, name: &str, second: i64) -> Arc<Written> {
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
        saw: Saw::Failures,
        diagnosis: None,
        cut_short: false,
    };
    let process = ProcessRef { pid: 77, comm: "checkout".into(), start_time: None };
    let detail = Detail::Lookup(Box::new(lookup));
    let event = Event::new(time, Kind::DnsLookup, "n1", owner, process, detail, Losses::new());
    Written::new(event, None).unwrap()
}
