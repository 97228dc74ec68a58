//! Loki's push API, as JSON: `POST /loki/api/v1/push` (Grafana Loki 2.9 or newer, for structured metadata).
//!
//! Labels are few and of few values (node, namespace, kind), because each combination is a stream; all else that one
//! would filter by is structured metadata; the line is the event as it stands on stdout.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use reqwest::StatusCode;
use serde::Serialize;

use super::Format;
use super::written::Written;
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
    /// Nanoseconds since the epoch as a string, the line, its metadata.
    values: Vec<(String, &'a str, BTreeMap<&'static str, String>)>,
}

impl Format for Loki {
    type Item = Arc<Written>;

    fn content_type(&self) -> &'static str {
        "application/json"
    }

    fn body(&self, batch: &[Arc<Written>]) -> anyhow::Result<Vec<u8>> {
        let mut streams: BTreeMap<BTreeMap<&'static str, &str>, Vec<_>> = BTreeMap::new();
        for written in batch {
            let event = &written.event;
            let value = (event.time.as_nanosecond().to_string(), written.line.as_str(), metadata(event));
            streams.entry(labels(event)).or_default().push(value);
        }
        let streams = streams.into_iter().map(|(stream, values)| Stream { stream, values }).collect();
        serde_json::to_vec(&Push { streams }).context("write events for Loki")
    }

    /// Loki keeps the entries that it finds valid, and answers 400 for the others (too old, too long, out of order), with
    /// words that differ from release to release and name some of them. Sending fewer would not tell which: what it has
    /// would be there twice.
    fn takes_some(&self, status: StatusCode) -> bool {
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
    // Loki refuses a stream for an empty value.
    labels.retain(|_, value| !value.is_empty());
    labels
}

fn metadata(event: &Event) -> BTreeMap<&'static str, String> {
    let mut metadata = BTreeMap::new();
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
    use crate::testing::collector::until;
    use crate::testing::hostile::{Act, Server};
    use crate::testing::{lookup, of_the_host};
    use crate::{Courier, Header, Settings};

    #[tokio::test]
    async fn a_batch_of_which_loki_took_some_is_counted_as_that() {
        const TOO_OLD: Act = Act::Say(
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 60\r\n\r\n\
             1 errors like: entry for stream '{kind=\"x\"}' has too old time",
        );
        for (events, wanted) in [(3, (0, 3)), (1, (1, 0))] {
            let server = Server::start(&[TOO_OLD]).await;
            let settings = Settings {
                headers: vec![Header::parse("X-Scope-OrgID=shop").unwrap()],
                linger: Duration::from_millis(20),
                ..Settings::new(&server.url)
            };
            let courier = Courier::start("loki", settings, Loki).unwrap();
            (0..events).for_each(|n| courier.offer(lookup("a.example", n)));
            until("settled", || courier.ledger().counts().waiting == 0).await;
            let counts = courier.close(Duration::from_secs(60)).await;
            assert_eq!((counts.refused, counts.refused_in_part), wanted, "{counts:?}");
            assert_eq!(
                (counts.offered, counts.lost_sum(), counts.delivered),
                (events as u64, events as u64, 0)
            );
            assert_eq!(server.requests(), 1, "it is not sent again");
        }
        assert!(!Loki.takes_some(StatusCode::UNAUTHORIZED));
    }

    #[test]
    fn labels_are_few_and_the_rest_is_metadata() {
        let (first, second) = (lookup("a.example", 1), lookup("b\"\n.example", 2));
        let batch = [first.clone(), second, of_the_host(3)];
        let body: Value = serde_json::from_slice(&Loki.body(&batch).unwrap()).unwrap();
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
        assert_eq!(values[1][2]["dns_name"], "b\"\n.example");
        let host = streams.iter().find(|stream| stream["stream"].get("namespace").is_none()).unwrap();
        assert!(host["values"][0][2].get("pod").is_none(), "{host}");
        // Whoever reads the line gets the event back.
        let line = values[0][1].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Event>(line).unwrap(), first.event);
    }
}
