//! An event together with its JSON line, as events are stored in queues.

use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;

use super::queue::QueueItem;
use podopsy_model::Event;

/// An event and its JSON line. The line is encoded once for all destinations.
#[derive(Debug)]
pub struct EncodedEvent {
    pub event: Event,
    /// When the agent reported the event, which is after it happened.
    pub reported_at: Timestamp,
    /// One JSON object, without a line feed.
    pub line: String,
    /// Its id in the store. None: it is not in the store.
    pub id: Option<i64>,
}

impl EncodedEvent {
    pub fn new(event: Event, id: Option<i64>) -> anyhow::Result<Arc<EncodedEvent>> {
        let line = to_json_line(&event)?;
        Ok(Arc::new(EncodedEvent { event, reported_at: Timestamp::now(), line, id }))
    }
}

/// An event as one line of stdout, without the line feed.
pub fn to_json_line(event: &Event) -> anyhow::Result<String> {
    serde_json::to_string(event).context("encode an event as JSON")
}

impl QueueItem for Arc<EncodedEvent> {
    fn bytes(&self) -> usize {
        // The event's own strings are about as long as the line.
        2 * self.line.len() + size_of::<EncodedEvent>()
    }

    fn store_id(&self) -> Option<i64> {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{host_lookup, lookup};

    /// Users of Fluent Bit and Vector set labels from these fields of stdout's lines: they are part of the schema.
    #[test]
    fn the_fields_that_log_shippers_use_for_labels_stay_where_they_are() {
        let line: Value = serde_json::from_str(&lookup("a.example", 1).line).unwrap();
        for (pointer, value) in [
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
            assert_eq!(line.pointer(pointer), Some(&value), "{pointer} of {line}");
        }
        // The fields are present and null: a record accessor finds nothing below them, and sets no label.
        let host: Value = serde_json::from_str(&host_lookup(1).line).unwrap();
        assert_eq!((&host["pod"], &host["container"]), (&Value::Null, &Value::Null));
        assert!(!lookup("a\n\u{1b}b", 1).line.contains(['\n', '\u{1b}']), "one event is one line");
    }
}
