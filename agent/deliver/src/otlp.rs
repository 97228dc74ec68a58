//! OpenTelemetry: events as log records, OTLP by HTTP (`POST /v1/logs`) or gRPC (`LogsService`), the same bytes.
//!
//! Attributes have OpenTelemetry's names where it has any (`k8s.*`, `container.*`, `process.*`, `dns.*`); what is ours is
//! `podopsy.*`. Pod and container are the resource, as in other exporters, so that a backend puts the events beside that
//! pod's own logs.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use reqwest::StatusCode;

use super::Format;
use super::written::Written;
use podopsy_model::event::Protocol;
use podopsy_model::owner::{ContainerRef, PodRef};
use podopsy_model::{Detail, Event, Kind};

/// Log records for an OpenTelemetry collector, or anything that speaks as one.
#[derive(Debug, Default)]
pub struct Logs;

/// What a resource is told apart by: node, pod uid, container id.
type Whose<'a> = (&'a str, &'a str, &'a str);

impl Format for Logs {
    type Item = Arc<Written>;

    fn content_type(&self) -> &'static str {
        "application/x-protobuf"
    }

    fn body(&self, batch: &[Arc<Written>]) -> anyhow::Result<Vec<u8>> {
        let mut resources: BTreeMap<Whose, ResourceLogs> = BTreeMap::new();
        for written in batch {
            let event = &written.event;
            let logs = resources.entry(whose(event)).or_insert_with(|| ResourceLogs {
                resource: Some(resource(&event.node, event.pod.as_ref(), event.container.as_ref())),
                scope_logs: vec![ScopeLogs { scope: Some(scope()), ..ScopeLogs::default() }],
                schema_url: String::new(),
            });
            if let Some(scope) = logs.scope_logs.first_mut() {
                scope.log_records.push(record(written));
            }
        }
        Ok(ExportLogsServiceRequest { resource_logs: resources.into_values().collect() }.encode_to_vec())
    }

    fn refused(&self, answer: &[u8]) -> u64 {
        let partial =
            ExportLogsServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
        partial.and_then(|partial| u64::try_from(partial.rejected_log_records).ok()).unwrap_or(0)
    }

    fn passes(&self, status: StatusCode) -> bool {
        passes(status)
    }
}

/// OTLP 1.x, "Retryable response codes": these four, and no other.
pub(super) fn passes(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502..=504)
}

fn whose(event: &Event) -> Whose<'_> {
    let pod = event.pod.as_ref().map_or("", |pod| &pod.uid);
    (&event.node, pod, event.container.as_ref().map_or("", |container| &container.id))
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "podopsy".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// Semantic conventions: resource/k8s, resource/container.
pub(super) fn resource(node: &str, pod: Option<&PodRef>, container: Option<&ContainerRef>) -> Resource {
    let mut attributes = vec![text("service.name", "podopsy"), text("k8s.node.name", node)];
    if let Some(pod) = pod {
        attributes.push(text("k8s.namespace.name", &pod.namespace));
        attributes.push(text("k8s.pod.name", &pod.name));
        attributes.push(text("k8s.pod.uid", &pod.uid));
        let labels = pod.labels.iter();
        attributes.extend(labels.map(|(key, value)| text(&format!("k8s.pod.label.{key}"), value)));
    }
    if let Some(container) = container {
        attributes.push(text("k8s.container.name", &container.name));
        attributes.push(number("k8s.container.restart_count", container.attempt.into()));
        attributes.push(text("container.id", &container.id));
        attributes.extend(image(&container.image));
    }
    Resource { attributes, ..Resource::default() }
}

/// `NAME:TAG`, `NAME@DIGEST` or both; the conventions have them apart.
fn image(image: &str) -> Vec<KeyValue> {
    let list = |key: &str, value: &str| pair(key, texts([value]));
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    // A colon before the last slash is a registry's port.
    let tagged = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
    let (name, tag) = tagged.map_or((name, None), |(name, tag)| (name, Some(tag)));
    let mut attributes = vec![text("container.image.name", name)];
    attributes.extend(tag.map(|tag| list("container.image.tags", tag)));
    attributes.extend(digest.map(|digest| list("container.image.repo_digests", &format!("{name}@{digest}"))));
    attributes
}

fn record(written: &Written) -> LogRecord {
    let event = &written.event;
    let nanoseconds = |time: Timestamp| u64::try_from(time.as_nanosecond()).unwrap_or(0);
    let (severity, word) = severity(event);
    LogRecord {
        time_unix_nano: nanoseconds(event.time),
        observed_time_unix_nano: nanoseconds(written.told),
        severity_number: severity.into(),
        severity_text: word.to_owned(),
        event_name: format!("podopsy.{}", event.kind.as_str()),
        body: Some(AnyValue { value: Some(Value::StringValue(written.line.clone())) }),
        attributes: attributes(event),
        ..LogRecord::default()
    }
}

fn severity(event: &Event) -> (SeverityNumber, &'static str) {
    match event.kind {
        Kind::OomKill | Kind::OomIncident => (SeverityNumber::Error, "ERROR"),
        Kind::Sigkill | Kind::DnsFailure => (SeverityNumber::Warn, "WARN"),
        Kind::DnsLookup => match &event.detail {
            Detail::Lookup(lookup) if lookup.result.is_failure() => (SeverityNumber::Warn, "WARN"),
            _ => (SeverityNumber::Info, "INFO"),
        },
        Kind::DnsAnswer => (SeverityNumber::Info, "INFO"),
    }
}

/// Semantic conventions: process, dns, error, server, network. How long it took is ours: `dns.lookup.duration` names a metric.
fn attributes(event: &Event) -> Vec<KeyValue> {
    let mut attributes = Vec::new();
    if event.process.pid != 0 {
        attributes.push(number("process.pid", event.process.pid.into()));
        // Not process.executable.name: that is the file's, and a process names itself as it likes.
        attributes.push(text("process.title", &event.process.comm));
        let started = event.process.start_time;
        attributes.extend(started.map(|time| text("process.creation.time", &time.to_string())));
    }
    match &event.detail {
        Detail::Oom(kill) => {
            attributes.extend(kill.incident.as_deref().map(|id| text("podopsy.incident.id", id)));
            attributes.push(text("podopsy.oom.trigger", &kill.trigger.comm));
        }
        Detail::Sigkill(sigkill) => attributes.push(text("podopsy.sigkill.sender", sigkill.by.as_str())),
        Detail::Dns(dns) => {
            attributes.extend(dns.name.as_deref().map(|name| text("dns.question.name", name)));
            attributes.push(text("server.address", &dns.server.ip().to_string()));
            attributes.push(number("server.port", dns.server.port().into()));
            let transport = match dns.protocol {
                Protocol::Udp => "udp",
                Protocol::Tcp => "tcp",
            };
            attributes.push(text("network.transport", transport));
            attributes.push(double("podopsy.dns.duration", dns.latency_ns as f64 / 1e9));
            if event.kind == Kind::DnsFailure {
                attributes.push(text("error.type", dns.outcome.as_str()));
            }
        }
        Detail::Lookup(lookup) => {
            attributes.push(text("dns.question.name", &lookup.name));
            attributes.push(double("podopsy.dns.duration", lookup.wait_ns as f64 / 1e9));
            attributes.push(number("podopsy.dns.queries", lookup.queries.into()));
            if lookup.result.is_failure() {
                attributes.push(text("error.type", lookup.result.as_str()));
            }
        }
    }
    attributes
}

/// An array of them.
pub(super) fn texts<'a>(all: impl IntoIterator<Item = &'a str>) -> Value {
    let value = |text: &str| AnyValue { value: Some(Value::StringValue(text.to_owned())) };
    Value::ArrayValue(ArrayValue { values: all.into_iter().map(value).collect() })
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    pair(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    pair(key, Value::IntValue(value))
}

fn double(key: &str, value: f64) -> KeyValue {
    pair(key, Value::DoubleValue(value))
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsPartialSuccess;

    use super::*;
    use crate::testing::{lookup, of_the_host};

    fn find<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
        attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.as_ref()
    }

    #[test]
    fn a_pod_is_a_resource_and_an_event_a_record() {
        let batch = [lookup("a.example", 1), of_the_host(2), lookup("b.example", 3)];
        let request = ExportLogsServiceRequest::decode(Logs.body(&batch).unwrap().as_slice()).unwrap();
        assert_eq!(request.resource_logs.len(), 2);
        let of = |logs: &ResourceLogs, key| find(&logs.resource.as_ref().unwrap().attributes, key).cloned();
        let pod = request.resource_logs.iter().find(|logs| of(logs, "k8s.pod.uid").is_some()).unwrap();
        let string = |text: &str| Some(Value::StringValue(text.to_owned()));
        assert_eq!(of(pod, "k8s.pod.name"), string("basket"));
        assert_eq!(of(pod, "k8s.pod.label.app"), string("shop"));
        assert_eq!(of(pod, "k8s.node.name"), string("n1"));
        assert_eq!(of(pod, "k8s.container.restart_count"), Some(Value::IntValue(4)));
        let records = &pod.scope_logs[0].log_records;
        assert_eq!(records.len(), 2);
        assert_eq!((records[0].time_unix_nano, records[1].time_unix_nano), (1_000_000_000, 3_000_000_000));
        assert_eq!(records[0].event_name, "podopsy.dns.lookup");
        assert_eq!(records[0].severity_number(), SeverityNumber::Warn);
        assert_eq!(find(&records[0].attributes, "error.type").cloned(), string("timeout"));
        assert_eq!(find(&records[0].attributes, "podopsy.dns.duration"), Some(&Value::DoubleValue(5.0)));
        assert_eq!(find(&records[0].attributes, "process.pid"), Some(&Value::IntValue(77)));
        assert_eq!(find(&records[0].attributes, "process.title").cloned(), string("checkout"));
        assert!(records[0].observed_time_unix_nano > records[0].time_unix_nano);
        assert_eq!(of(pod, "container.image.name"), string("shop"));
    }

    #[test]
    fn an_image_is_a_name_a_tag_and_a_digest() {
        let of = |text: &str| {
            let list = |key| match find(&image(text), key) {
                Some(Value::ArrayValue(list)) => format!("{:?}", list.values[0].value),
                _ => String::new(),
            };
            let name = find(&image(text), "container.image.name").cloned();
            let Some(Value::StringValue(name)) = name else { unreachable!("each image has a name") };
            let short = |text: String| {
                text.trim_start_matches("Some(StringValue(\"").trim_end_matches("\"))").to_owned()
            };
            (name, short(list("container.image.tags")), short(list("container.image.repo_digests")))
        };
        let is = |name: &str, tag: &str, digest: &str| (name.to_owned(), tag.to_owned(), digest.to_owned());
        assert_eq!(of("r.example:5000/shop/api:2.0"), is("r.example:5000/shop/api", "2.0", ""));
        assert_eq!(of("r.example:5000/shop/api"), is("r.example:5000/shop/api", "", ""));
        assert_eq!(of("api@sha256:ab"), is("api", "", "api@sha256:ab"));
        assert_eq!(of("api:1@sha256:ab"), is("api", "1", "api@sha256:ab"));
        assert_eq!(of(""), is("", "", ""));
    }

    #[test]
    fn what_a_collector_rejects_is_read_from_its_answer() {
        let partial = ExportLogsPartialSuccess { rejected_log_records: 3, error_message: "old".into() };
        let answer = ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        assert_eq!(Logs.refused(&answer), 3);
        assert_eq!((Logs.refused(b""), Logs.refused(b"{\"json\":1}")), (0, 0));
    }
}
