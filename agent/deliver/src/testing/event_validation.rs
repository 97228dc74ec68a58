//! The API server's validation of Events: the rules of `pkg/apis/core/validation/events.go` of Kubernetes 1.34 for
//! events.k8s.io/v1, for the stub.

use serde_json::Value;

/// The errors in an Event that is to be created in this namespace.
pub fn errors_in_new(event: &Value, namespace: &str) -> Vec<String> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let mut errors = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            errors.push(what.to_owned());
        }
    };
    must(text("/apiVersion") == "events.k8s.io/v1" && text("/kind") == "Event", "apiVersion and kind");
    must(text("/metadata/namespace") == namespace, "metadata.namespace is not the path's");
    must(text("/regarding/namespace") == namespace, "regarding.namespace does not match event.namespace");
    let name = text("/metadata/name");
    must(name.len() <= 253 && name.split('.').all(has_label_syntax), "metadata.name is no DNS subdomain");
    must(namespace.len() <= 63 && has_label_syntax(namespace), "namespace is no DNS label");
    must(is_micro_time(text("/eventTime")), "eventTime: required, and a MicroTime");
    // IsQualifiedName, without the optional prefix, which podopsy does not use.
    let controller = text("/reportingController");
    must((1..=63).contains(&controller.len()) && has_label_syntax(controller), "reportingController");
    for field in ["/reportingInstance", "/action", "/reason"] {
        must((1..=128).contains(&text(field).len()), field);
    }
    must(text("/note").len() <= 1024, "note can have at most 1024 characters");
    must(matches!(text("/type"), "Normal" | "Warning"), "type");
    for unset in
        ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount", "deprecatedSource"]
    {
        must(event.get(unset).is_none(), unset);
    }
    must(event.pointer("/metadata/resourceVersion").is_none(), "resourceVersion should not be set");
    errors.extend(errors_in_series(event));
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
    errors.extend(unknown.map(|(name, _)| format!("unknown field {name}")));
    errors
}

/// The errors in a patch: nothing but `series` and metadata can change.
pub fn errors_in_patch(patch: &Value) -> Vec<String> {
    let fields = patch.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let fixed = fields.filter(|name| *name != "series").map(|name| format!("{name}: field is immutable"));
    let empty = patch.get("series").is_none().then(|| "the patch changes nothing".to_owned());
    fixed.chain(empty).chain(errors_in_series(patch)).collect()
}

fn errors_in_series(event: &Value) -> Vec<String> {
    let Some(series) = event.get("series") else { return Vec::new() };
    let mut errors = Vec::new();
    if series["count"].as_i64().is_none_or(|count| count < 2) {
        errors.push("series.count: should be at least 2".to_owned());
    }
    if !is_micro_time(series["lastObservedTime"].as_str().unwrap_or_default()) {
        errors.push("series.lastObservedTime: required, and a MicroTime".to_owned());
    }
    errors
}

fn has_label_syntax(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(known) && !text.starts_with('-') && !text.ends_with('-')
}

/// `2006-01-02T15:04:05.000000Z`. Go's parser accepts no other number of digits.
fn is_micro_time(text: &str) -> bool {
    let shape = b"0000-00-00T00:00:00.000000Z";
    let fits = |(byte, like): (u8, &u8)| if *like == b'0' { byte.is_ascii_digit() } else { byte == *like };
    text.len() == shape.len() && text.bytes().zip(shape).all(fits)
}
