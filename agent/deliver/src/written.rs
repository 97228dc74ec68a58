//! An event as it is delivered.

use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;

use super::queue::Weigh;
use podopsy_model::Event;

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
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{lookup, of_the_host};

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
}
