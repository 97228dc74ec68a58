//! The object: `events.k8s.io/v1`, of which the fields that its validation wants, and those that `kubectl` shows.

use jiff::Timestamp;
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub metadata: Metadata,
    pub event_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<Series>,
    pub reporting_controller: &'static str,
    pub reporting_instance: String,
    pub action: &'static str,
    pub reason: &'static str,
    pub regarding: Regarding,
    pub note: String,
    pub r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metadata {
    pub name: String,
    pub namespace: String,
}

/// From the second time on.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    pub count: u64,
    pub last_observed_time: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Regarding {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field_path: Option<String>,
}

impl Object {
    /// About.
    pub fn bytes(&self) -> usize {
        let regarding = &self.regarding;
        let field = regarding.field_path.as_ref().map_or(0, String::len);
        let names = 2 * (regarding.namespace.len() + regarding.name.len()) + regarding.uid.len() + field;
        names + self.note.len() + self.reporting_instance.len() + 100
    }
}

/// As Kubernetes' MicroTime is read: six digits, neither more nor fewer.
pub fn micro(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// At most so many bytes of it, and no half character.
pub fn bounded(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most.saturating_sub(ELLIPSIS.len())).rev().find(|at| text.is_char_boundary(*at));
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
    fn a_time_has_six_digits() {
        let time = |text: &str| micro(text.parse().unwrap());
        assert_eq!(time("2026-01-02T03:04:05.123456789Z"), "2026-01-02T03:04:05.123456Z");
        assert_eq!(time("2026-01-02T03:04:05Z"), "2026-01-02T03:04:05.000000Z");
    }

    #[test]
    fn a_note_ends_within_its_bytes_at_a_character() {
        assert_eq!(bounded("abc".into(), 3), "abc");
        assert_eq!(bounded("abcdefgh".into(), 6), "abc…");
        let long = bounded("é".repeat(600), 1024);
        assert!(long.len() <= 1024 && long.ends_with("é…"), "{}", long.len());
    }
}
