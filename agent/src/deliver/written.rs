//! An event as it is delivered.

use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;

use super::queue::Weigh;
use crate::model::Event;

/// An event and the line that it is written as; made once, whatever number of destinations there are.
#[derive(Debug)]
pub struct Written {
    pub event: Event,
    /// When it was told; it happened before.
    pub told: Timestamp,
    /// One JSON object, without a line feed.
    pub line: String,
    /// Its number in the store; None: it could not be kept.
    pub id: Option<i64>,
}

impl Written {
    pub fn new(event: Event, id: Option<i64>) -> anyhow::Result<Arc<Written>> {
        let line = line(&event)?;
        Ok(Arc::new(Written { event, told: Timestamp::now(), line, id }))
    }
}

/// An event as it stands on stdout, without the line feed.
pub fn line(event: &Event) -> anyhow::Result<String> {
    serde_json::to_string(event).context("write an event as JSON")
}

impl Weigh for Arc<Written> {
    fn bytes(&self) -> usize {
        // The event's own strings are about as long as the line.
        2 * self.line.len() + size_of::<Written>()
    }

    fn id(&self) -> Option<i64> {
        self.id
    }
}

#[cfg(test)]
pub mod tests {
    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::Losses;
    use crate::model::event::{Detail, Kind, ProcessRef};
    use crate::model::lookup::{Futile, Lookup, LookupResult, NameKnownBy, Saw};
    use crate::model::owner::{ContainerRef, KnownBy, Owner, PodRef};

    /// A lookup of `shop/basket` that timed out.
    pub fn lookup(name: &str, second: i64) -> Arc<Written> {
        let labels = [("app".to_owned(), "shop".to_owned())].into();
        let pod = PodRef { namespace: "shop".into(), name: "basket".into(), uid: "uid-1".into(), labels };
        let container =
            ContainerRef { name: "api".into(), id: "c1".into(), image: "shop:1".into(), attempt: 4 };
        let owner =
            Owner { pod: Some(pod), container: Some(container), known_by: KnownBy::Cri, ..Owner::default() };
        written(owner, name, second)
    }

    pub fn of_the_host(second: i64) -> Arc<Written> {
        written(Owner { known_by: KnownBy::Host, ..Owner::default() }, "host.example", second)
    }

    /// Fluent Bit and Vector label by these places in stdout's lines: they are part of the schema.
    #[test]
    fn what_others_label_by_stays_where_it_is() {
        let line: Value = serde_json::from_str(&lookup("a.example", 1).line).unwrap();
        for (place, value) in [
            ("/schema", json!(1)),
            ("/time", json!("1970-01-01T00:00:01Z")),
            ("/kind", json!("dns.lookup")),
            ("/node", json!("n1")),
            ("/pod/namespace", json!("shop")),
            ("/pod/name", json!("basket")),
            ("/pod/uid", json!("uid-1")),
            ("/pod/labels/app", json!("shop")),
            ("/container/name", json!("api")),
            ("/container/id", json!("c1")),
            ("/container/image", json!("shop:1")),
            ("/known_by", json!("cri")),
            ("/process/pid", json!(77)),
            ("/process/comm", json!("checkout")),
            ("/lookup/name", json!("a.example")),
        ] {
            assert_eq!(line.pointer(place), Some(&value), "{place} of {line}");
        }
        // There, and null: a record accessor finds nothing below it, and sets no label.
        let host: Value = serde_json::from_str(&of_the_host(1).line).unwrap();
        assert_eq!((&host["pod"], &host["container"]), (&Value::Null, &Value::Null));
        assert!(!lookup("a\n\u{1b}b", 1).line.contains(['\n', '\u{1b}']), "one event is one line");
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
            futile: Futile::default(),
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
}
