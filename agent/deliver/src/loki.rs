//! Sends events to Loki's push API as JSON: `POST /loki/api/v1/push` (Grafana Loki 2.9 or newer, for structured metadata).
//!
//! Each combination of labels is a stream, so there are few labels with few values (node, namespace, kind). The other
//! fields that users filter by are structured metadata. The log line is the event's JSON line, as on stdout.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use reqwest::StatusCode;
use serde::Serialize;

use super::DestinationFormat;
use super::EncodedEvent;
use podopsy_model::{Detail, Event};

#[derive(Debug, Default)]
pub struct Loki;

#[derive(Serialize)]
struct Push<'a> {
    streams: Vec<Stream<'a>>,
}

#[derive(Serialize)]
struct Stream<'a> {
    stream: BTreeMap<&'static str, &'a str>,
    /// Nanoseconds since the epoch as a string, the log line, its metadata.
    values: Vec<(String, &'a str, BTreeMap<&'static str, String>)>,
}

impl DestinationFormat for Loki {
    type Item = Arc<EncodedEvent>;

    fn content_type(&self) -> &'static str {
        "application/json"
    }

    fn encode(&self, batch: &[Arc<EncodedEvent>]) -> anyhow::Result<Vec<u8>> {
        let mut streams: BTreeMap<BTreeMap<&'static str, &str>, Vec<_>> = BTreeMap::new();
        for encoded in batch {
            let event = &encoded.event;
            let value = (event.time.as_nanosecond().to_string(), encoded.line.as_str(), metadata(event));
            streams.entry(labels(event)).or_default().push(value);
        }
        let streams = streams.into_iter().map(|(stream, values)| Stream { stream, values }).collect();
        serde_json::to_vec(&Push { streams }).context("encode events for Loki")
    }

    /// Loki keeps the entries that it finds valid, and answers 400 for the others (too old, too long, out of order). The
    /// message names some of them, in a form that differs between releases. Smaller batches would not help to find them:
    /// the entries that Loki has already would be duplicated.
    fn may_accept_part(&self, status: StatusCode) -> bool {
        status == StatusCode::BAD_REQUEST
    }
}

fn labels(event: &Event) -> BTreeMap<&'static str, &str> {
    let mut labels = BTreeMap::from([
        ("service_name", "podopsy"),
        ("node", event.node.as_str()),
        ("kind", event.kind.as_str()),
    ]);
    if let Some(pod) = &event.pod {
        labels.insert("namespace", &pod.namespace);
    }
    // Loki rejects a stream with an empty label value.
    labels.retain(|_, value| !value.is_empty());
    labels
}

fn metadata(event: &Event) -> BTreeMap<&'static str, String> {
    // Loki looks for a level in the metadata first. Without one it adds `detected_level="unknown"`.
    let mut metadata = BTreeMap::from([("level", event.severity().as_str().to_owned())]);
    if let Some(pod) = &event.pod {
        metadata.insert("pod", pod.name.clone());
        metadata.insert("pod_uid", pod.uid.clone());
    }
    if let Some(container) = &event.container {
        metadata.insert("container", container.name.clone());
        metadata.insert("container_id", container.id.clone());
        metadata.insert("image", container.image.clone());
    }
    if event.process.pid != 0 {
        metadata.insert("pid", event.process.pid.to_string());
        metadata.insert("comm", event.process.comm.clone());
    }
    match &event.detail {
        Detail::Oom(kill) => metadata.extend(kill.incident.clone().map(|id| ("incident", id))),
        Detail::Sigkill(sigkill) => {
            metadata.insert("sender", sigkill.by.as_str().to_owned());
        }
        Detail::Dns(dns) => {
            metadata.insert("outcome", dns.outcome.as_str().to_owned());
            metadata.extend(dns.name.clone().map(|name| ("dns_name", name)));
        }
        Detail::Lookup(lookup) => {
            metadata.insert("outcome", lookup.result.as_str().to_owned());
            metadata.insert("dns_name", lookup.name.clone());
        }
    }
    metadata.retain(|_, value| !value.is_empty());
    metadata
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::testing::hostile_server::{Behavior, HostileServer};
    use crate::testing::wait_until;
    use crate::testing::{host_lookup, lookup};
    use crate::{Destination, DestinationSettings, ExportHeader};

    #[tokio::test]
    async fn a_batch_that_loki_accepts_in_part_is_counted_as_refused_in_part() {
        const TOO_OLD: Behavior = Behavior::Respond(
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 60\r\n\r\n\
             1 errors like: entry for stream '{kind=\"x\"}' has too old time",
        );
        for (events, wanted) in [(3, (0, 3)), (1, (1, 0))] {
            let server = HostileServer::start(&[TOO_OLD]).await;
            let settings = DestinationSettings {
                headers: vec![ExportHeader::parse("X-Scope-OrgID=shop").unwrap()],
                linger: Duration::from_millis(20),
                ..DestinationSettings::new(&server.url)
            };
            let destination = Destination::start("loki", settings, Loki).unwrap();
            (0..events).for_each(|n| destination.offer(lookup("a.example", n)));
            wait_until("every event has an outcome", || destination.stats().counts().waiting == 0).await;
            let counts = destination.close(Duration::from_secs(60)).await;
            assert_eq!((counts.refused, counts.refused_in_part), wanted, "{counts:?}");
            assert_eq!(
                (counts.offered, counts.lost_sum(), counts.delivered),
                (events as u64, events as u64, 0)
            );
            assert_eq!(server.requests(), 1, "it is not sent again");
        }
        assert!(!Loki.may_accept_part(StatusCode::UNAUTHORIZED));
    }

    #[test]
    fn node_namespace_and_kind_are_labels_and_the_other_fields_are_metadata() {
        let (first, second) = (lookup("a.example", 1), lookup("b\"\n.example", 2));
        let batch = [first.clone(), second, host_lookup(3)];
        let body: Value = serde_json::from_slice(&Loki.encode(&batch).unwrap()).unwrap();
        let streams = body["streams"].as_array().unwrap();
        assert_eq!(streams.len(), 2, "{body}");
        let pod = streams.iter().find(|stream| stream["stream"]["namespace"] == "shop").unwrap();
        let labels =
            json!({"service_name": "podopsy", "node": "n1", "kind": "dns.lookup", "namespace": "shop"});
        assert_eq!(pod["stream"], labels);
        let values = pod["values"].as_array().unwrap();
        assert_eq!(values.len(), 2);
        assert_eq!(values[0][0], "1000000000");
        assert_eq!(values[0][1], first.line.as_str());
        assert_eq!(values[0][2]["pod"], "basket");
        assert_eq!(values[0][2]["outcome"], "timeout");
        assert_eq!(values[0][2]["level"], "warn", "a failed lookup");
        assert_eq!(values[1][2]["dns_name"], "b\"\n.example");
        let host = streams.iter().find(|stream| stream["stream"].get("namespace").is_none()).unwrap();
        assert!(host["values"][0][2].get("pod").is_none(), "{host}");
        assert!(pod["stream"].get("level").is_none(), "a label of its own would make more streams");
        // The line decodes to the same event.
        let line = values[0][1].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Event>(line).unwrap(), first.event);
    }
}
