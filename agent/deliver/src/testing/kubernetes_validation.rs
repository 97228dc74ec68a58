//! What the API server's validation says of an Event: the rules of `pkg/apis/core/validation/events.go` of Kubernetes 1.34
//! for events.k8s.io/v1, for stubs of it. Debian 12 has no kube-apiserver.

use serde_json::Value;

/// What is wrong with an Event that is to be made in this namespace; empty: nothing.
pub fn of_new(event: &Value, namespace: &str) -> Vec<String> {
    let text = |place: &str| event.pointer(place).and_then(Value::as_str).unwrap_or_default();
    let mut wrong = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            wrong.push(what.to_owned());
        }
    };
    must(text("/apiVersion") == "events.k8s.io/v1" && text("/kind") == "Event", "apiVersion and kind");
    must(text("/metadata/namespace") == namespace, "metadata.namespace is not the path's");
    must(text("/regarding/namespace") == namespace, "regarding.namespace does not match event.namespace");
    let name = text("/metadata/name");
    must(name.len() <= 253 && name.split('.').all(is_word), "metadata.name is no DNS subdomain");
    must(namespace.len() <= 63 && is_word(namespace), "namespace is no DNS label");
    must(is_micro_time(text("/eventTime")), "eventTime: required, and a MicroTime");
    // IsQualifiedName, without the optional prefix that we do not use.
    let controller = text("/reportingController");
    must((1..=63).contains(&controller.len()) && is_word(controller), "reportingController");
    for (place, most) in [("/reportingInstance", 128), ("/action", 128), ("/reason", 128)] {
        must((1..=most).contains(&text(place).len()), place);
    }
    must(text("/note").len() <= 1024, "note can have at most 1024 characters");
    must(matches!(text("/type"), "Normal" | "Warning"), "type");
    for unset in
        ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount", "deprecatedSource"]
    {
        must(event.get(unset).is_none(), unset);
    }
    must(event.pointer("/metadata/resourceVersion").is_none(), "resourceVersion should not be set");
    wrong.extend(of_series(event));
    let known = [
        "apiVersion",
        "kind",
        "metadata",
        "eventTime",
        "series",
        "reportingController",
        "reportingInstance",
        "action",
        "reason",
        "regarding",
        "related",
        "note",
        "type",
    ];
    let unknown = event.as_object().into_iter().flatten().filter(|(name, _)| !known.contains(&name.as_str()));
    wrong.extend(unknown.map(|(name, _)| format!("unknown field {name}")));
    wrong
}

/// What is wrong with a change of one: all but `series` and metadata cannot change.
pub fn of_patch(patch: &Value) -> Vec<String> {
    let fields = patch.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let fixed = fields.filter(|name| *name != "series").map(|name| format!("{name}: field is immutable"));
    let none = patch.get("series").is_none().then(|| "it changes nothing".to_owned());
    fixed.chain(none).chain(of_series(patch)).collect()
}

fn of_series(event: &Value) -> Vec<String> {
    let Some(series) = event.get("series") else { return Vec::new() };
    let mut wrong = Vec::new();
    if series["count"].as_i64().is_none_or(|count| count < 2) {
        wrong.push("series.count: should be at least 2".to_owned());
    }
    if !is_micro_time(series["lastObservedTime"].as_str().unwrap_or_default()) {
        wrong.push("series.lastObservedTime: required, and a MicroTime".to_owned());
    }
    wrong
}

fn is_word(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(known) && !text.starts_with('-') && !text.ends_with('-')
}

/// `2006-01-02T15:04:05.000000Z`: Go reads no other number of digits.
fn is_micro_time(text: &str) -> bool {
    let shape = b"0000-00-00T00:00:00.000000Z";
    let fits = |(byte, like): (u8, &u8)| if *like == b'0' { byte.is_ascii_digit() } else { byte == *like };
    text.len() == shape.len() && text.bytes().zip(shape).all(fits)
}
