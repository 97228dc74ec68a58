//! Sends events as OpenTelemetry log records: OTLP by HTTP (`POST /v1/logs`) or by gRPC (`LogsService`), with the same
//! bytes.
//!
//! Attributes use OpenTelemetry's semantic conventions where there are any (`k8s.*`, `container.*`, `process.*`, `dns.*`);
//! the others are `podopsy.*`. Pod and container are the resource, as in other exporters, so that a backend shows the
//! events beside the pod's own logs.

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

use super::DestinationFormat;
use super::EncodedEvent;
use podopsy_model::event::{Protocol, Severity};
use podopsy_model::owner::{ContainerRef, PodRef};
use podopsy_model::{Detail, Event, EventKind, Workload, workloads};

/// Log records for an OpenTelemetry Collector, or any other OTLP receiver.
#[derive(Debug, Default)]
pub struct OtlpLogs;

/// Identifies a resource: node, pod uid, container id.
type ResourceKey<'a> = (&'a str, &'a str, &'a str);

impl DestinationFormat for OtlpLogs {
    type Item = Arc<EncodedEvent>;

    fn content_type(&self) -> &'static str {
        "application/x-protobuf"
    }

    fn encode(&self, batch: &[Arc<EncodedEvent>]) -> anyhow::Result<Vec<u8>> {
        let mut resources: BTreeMap<ResourceKey, ResourceLogs> = BTreeMap::new();
        for encoded in batch {
            let event = &encoded.event;
            let logs = resources.entry(resource_key(event)).or_insert_with(|| ResourceLogs {
                resource: Some(resource(&event.node, event.pod.as_ref(), event.container.as_ref())),
                scope_logs: vec![ScopeLogs { scope: Some(scope()), ..ScopeLogs::default() }],
                schema_url: String::new(),
            });
            if let Some(scope) = logs.scope_logs.first_mut() {
                scope.log_records.push(record(encoded));
            }
        }
        Ok(ExportLogsServiceRequest { resource_logs: resources.into_values().collect() }.encode_to_vec())
    }

    fn rejected(&self, answer: &[u8]) -> u64 {
        let partial =
            ExportLogsServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
        partial.and_then(|partial| u64::try_from(partial.rejected_log_records).ok()).unwrap_or(0)
    }

    fn is_retryable(&self, status: StatusCode) -> bool {
        is_retryable(status)
    }
}

/// OTLP 1.x, "Retryable response codes", lists exactly these four.
pub(super) fn is_retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502..=504)
}

fn resource_key(event: &Event) -> ResourceKey<'_> {
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

/// Follows the semantic conventions resource/k8s and resource/container.
pub(super) fn resource(node: &str, pod: Option<&PodRef>, container: Option<&ContainerRef>) -> Resource {
    let mut attributes =
        vec![string_attribute("service.name", "podopsy"), string_attribute("k8s.node.name", node)];
    if let Some(pod) = pod {
        attributes.push(string_attribute("k8s.namespace.name", &pod.namespace));
        attributes.push(string_attribute("k8s.pod.name", &pod.name));
        attributes.push(string_attribute("k8s.pod.uid", &pod.uid));
        attributes.extend(workloads(pod).iter().map(workload_attribute));
        let labels = pod.labels.iter();
        attributes
            .extend(labels.map(|(key, value)| string_attribute(&format!("k8s.pod.label.{key}"), value)));
    }
    if let Some(container) = container {
        attributes.push(string_attribute("k8s.container.name", &container.name));
        attributes.push(int_attribute("k8s.container.restart_count", container.attempt.into()));
        attributes.push(string_attribute("container.id", &container.id));
        attributes.extend(image_attributes(&container.image));
    }
    Resource { attributes, ..Resource::default() }
}

/// The controller's name, as it is inferred from the pod's labels and name: `k8s.deployment.name`.
fn workload_attribute(workload: &Workload) -> KeyValue {
    string_attribute(&format!("k8s.{}.name", workload.kind.as_str().to_ascii_lowercase()), &workload.name)
}

/// Splits `NAME:TAG`, `NAME@DIGEST` or `NAME:TAG@DIGEST`, because the conventions have an attribute for each part.
fn image_attributes(image: &str) -> Vec<KeyValue> {
    let list = |key: &str, value: &str| attribute(key, string_array([value]));
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    // A colon before the last slash is a registry's port.
    let tagged = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
    let (name, tag) = tagged.map_or((name, None), |(name, tag)| (name, Some(tag)));
    let mut attributes = vec![string_attribute("container.image.name", name)];
    attributes.extend(tag.map(|tag| list("container.image.tags", tag)));
    attributes.extend(digest.map(|digest| list("container.image.repo_digests", &format!("{name}@{digest}"))));
    attributes
}

fn record(encoded: &EncodedEvent) -> LogRecord {
    let event = &encoded.event;
    let nanoseconds = |time: Timestamp| u64::try_from(time.as_nanosecond()).unwrap_or(0);
    let (severity, severity_text) = severity(event);
    LogRecord {
        time_unix_nano: nanoseconds(event.time),
        observed_time_unix_nano: nanoseconds(encoded.reported_at),
        severity_number: severity.into(),
        severity_text: severity_text.to_owned(),
        event_name: format!("podopsy.{}", event.kind.as_str()),
        body: Some(AnyValue { value: Some(Value::StringValue(encoded.line.clone())) }),
        attributes: attributes(event),
        ..LogRecord::default()
    }
}

fn severity(event: &Event) -> (SeverityNumber, &'static str) {
    match event.severity() {
        Severity::Info => (SeverityNumber::Info, "INFO"),
        Severity::Warn => (SeverityNumber::Warn, "WARN"),
        Severity::Error => (SeverityNumber::Error, "ERROR"),
    }
}

/// Follows the semantic conventions process, dns, error, server and network. The duration is a `podopsy.*` attribute,
/// because `dns.lookup.duration` is the name of a metric.
fn attributes(event: &Event) -> Vec<KeyValue> {
    let mut attributes = Vec::new();
    if event.process.pid != 0 {
        attributes.push(int_attribute("process.pid", event.process.pid.into()));
        // Not process.executable.name: that is the file's name, while a process can set its comm to anything.
        attributes.push(string_attribute("process.title", &event.process.comm));
        let started = event.process.start_time;
        attributes.extend(started.map(|time| string_attribute("process.creation.time", &time.to_string())));
    }
    match &event.detail {
        Detail::Oom(kill) => {
            attributes.extend(kill.incident.as_deref().map(|id| string_attribute("podopsy.incident.id", id)));
            attributes.push(string_attribute("podopsy.oom.trigger", &kill.trigger.comm));
        }
        Detail::Sigkill(sigkill) => {
            attributes.push(string_attribute("podopsy.sigkill.sender", sigkill.by.as_str()))
        }
        Detail::Dns(dns) => {
            attributes.extend(dns.name.as_deref().map(|name| string_attribute("dns.question.name", name)));
            attributes.push(string_attribute("server.address", &dns.server.ip().to_string()));
            attributes.push(int_attribute("server.port", dns.server.port().into()));
            let transport = match dns.protocol {
                Protocol::Udp => "udp",
                Protocol::Tcp => "tcp",
            };
            attributes.push(string_attribute("network.transport", transport));
            attributes.push(double_attribute("podopsy.dns.duration", dns.latency_ns as f64 / 1e9));
            if event.kind == EventKind::DnsFailure {
                attributes.push(string_attribute("error.type", dns.outcome.as_str()));
            }
        }
        Detail::Lookup(lookup) => {
            attributes.push(string_attribute("dns.question.name", &lookup.name));
            attributes.push(double_attribute("podopsy.dns.duration", lookup.wait_ns as f64 / 1e9));
            attributes.push(int_attribute("podopsy.dns.queries", lookup.queries.into()));
            if lookup.result.is_failure() {
                attributes.push(string_attribute("error.type", lookup.result.as_str()));
            }
        }
    }
    attributes
}

/// An attribute value that is an array of strings.
pub(super) fn string_array<'a>(strings: impl IntoIterator<Item = &'a str>) -> Value {
    let value = |text: &str| AnyValue { value: Some(Value::StringValue(text.to_owned())) };
    Value::ArrayValue(ArrayValue { values: strings.into_iter().map(value).collect() })
}

pub(super) fn string_attribute(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn int_attribute(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn double_attribute(key: &str, value: f64) -> KeyValue {
    attribute(key, Value::DoubleValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsPartialSuccess;

    use super::*;
    use crate::testing::{host_lookup, lookup};

    fn find<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
        attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.as_ref()
    }

    #[test]
    fn a_pods_workloads_are_attributes_of_the_resource() {
        let labels = [("pod-template-hash".to_owned(), "7d9c5b6f4".to_owned())].into();
        let (namespace, name) = ("shop".to_owned(), "orders-7d9c5b6f4-x2v8p".to_owned());
        let pod = PodRef { namespace, name, uid: "u".to_owned(), labels };
        let attributes = resource("n1", Some(&pod), None).attributes;
        let string = |text: &str| Value::StringValue(text.to_owned());
        assert_eq!(find(&attributes, "k8s.deployment.name"), Some(&string("orders")));
        assert_eq!(find(&attributes, "k8s.replicaset.name"), Some(&string("orders-7d9c5b6f4")));
    }

    #[test]
    fn a_container_is_a_resource_and_an_event_is_a_log_record() {
        let batch = [lookup("a.example", 1), host_lookup(2), lookup("b.example", 3)];
        let request = ExportLogsServiceRequest::decode(OtlpLogs.encode(&batch).unwrap().as_slice()).unwrap();
        assert_eq!(request.resource_logs.len(), 2);
        let of = |logs: &ResourceLogs, key| find(&logs.resource.as_ref().unwrap().attributes, key).cloned();
        let pod = request.resource_logs.iter().find(|logs| of(logs, "k8s.pod.uid").is_some()).unwrap();
        let string = |text: &str| Some(Value::StringValue(text.to_owned()));
        assert_eq!(of(pod, "k8s.pod.name"), string("basket"));
        assert_eq!(of(pod, "k8s.pod.label.app"), string("shop"));
        assert_eq!(of(pod, "k8s.node.name"), string("n1"));
        assert_eq!(of(pod, "k8s.deployment.name"), None, "its name does not show one");
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
    fn an_image_is_split_into_a_name_a_tag_and_a_digest() {
        let of = |text: &str| {
            let list = |key| match find(&image_attributes(text), key) {
                Some(Value::ArrayValue(list)) => format!("{:?}", list.values[0].value),
                _ => String::new(),
            };
            let name = find(&image_attributes(text), "container.image.name").cloned();
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
    fn the_number_of_rejected_records_is_read_from_the_response() {
        let partial = ExportLogsPartialSuccess { rejected_log_records: 3, error_message: "old".into() };
        let answer = ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        assert_eq!(OtlpLogs.rejected(&answer), 3);
        assert_eq!((OtlpLogs.rejected(b""), OtlpLogs.rejected(b"{\"json\":1}")), (0, 0));
    }
}
