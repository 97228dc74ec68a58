//! The JSON of an `events.k8s.io/v1` Event: the fields that its validation requires, and those that `kubectl` shows.

use jiff::Timestamp;
use serde::Serialize;

/// An Event of the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventObject {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub metadata: ObjectMeta,
    pub event_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<EventSeries>,
    pub reporting_controller: &'static str,
    pub reporting_instance: String,
    pub action: &'static str,
    pub reason: &'static str,
    pub regarding: ObjectReference,
    pub note: String,
    pub r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ObjectMeta {
    pub name: String,
    pub namespace: String,
}

/// Present from the second occurrence on.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventSeries {
    pub count: u64,
    pub last_observed_time: String,
}

/// The object that an Event is about: a pod, or a container of it by `field_path`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field_path: Option<String>,
}

impl EventObject {
    /// The approximate number of bytes of its strings.
    pub fn bytes(&self) -> usize {
        let regarding = &self.regarding;
        let field = regarding.field_path.as_ref().map_or(0, String::len);
        let names = 2 * (regarding.namespace.len() + regarding.name.len()) + regarding.uid.len() + field;
        names + self.note.len() + self.reporting_instance.len() + 100
    }
}

/// Kubernetes' MicroTime, which must have exactly six digits after the point.
pub fn micro_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Shortens `text` to at most `max_bytes`, at a character's boundary and with an ellipsis.
pub fn truncate(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        let end = (0..=max_bytes.saturating_sub(ELLIPSIS.len())).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str(ELLIPSIS);
    }
    text
}

const ELLIPSIS: &str = "…";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_micro_time_has_six_digits() {
        let time = |text: &str| micro_time(text.parse().unwrap());
        assert_eq!(time("2026-01-02T03:04:05.123456789Z"), "2026-01-02T03:04:05.123456Z");
        assert_eq!(time("2026-01-02T03:04:05Z"), "2026-01-02T03:04:05.000000Z");
    }

    #[test]
    fn a_long_note_is_truncated_at_a_characters_boundary() {
        assert_eq!(truncate("abc".into(), 3), "abc");
        assert_eq!(truncate("abcdefgh".into(), 6), "abc…");
        let long = truncate("é".repeat(600), 1024);
        assert!(long.len() <= 1024 && long.ends_with("é…"), "{}", long.len());
    }
}
