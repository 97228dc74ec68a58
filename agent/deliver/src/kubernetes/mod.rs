//! Writes Kubernetes Events (`events.k8s.io/v1`) on the pod that they are about, where `kubectl describe pod` shows them.
//!
//! Data flows from an event or an incident to a [`PodNotice`], by [`SeriesTracker`] to an [`EventWrite`], and from there to
//! a POST or a PATCH, which are the only two requests that the service account is allowed. An Event that repeats is one
//! object whose `series` is updated, as in client-go's recorder; its note cannot change. Why not the `kube` crate: it brings
//! a second HTTP stack and all types of Kubernetes, while [`crate::Destination`] already has the queue, the retries and the
//! counters.

mod notice;
mod object;
mod rate_limit;
mod series;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tests;

use reqwest::{Method, StatusCode};
use serde_json::json;

pub use self::notice::{NoticeCount, PodNotice, notice_from_event, notices_from_incident};
pub use self::object::EventObject;
pub use self::series::{DroppedEvents, SeriesTracker};
use super::queue::QueueItem;
use super::{DeliveryRequest, DestinationFormat};

/// The API server as a destination.
#[derive(Debug, Default)]
pub struct KubernetesEvents;

/// The creation of an Event, or an update of its series.
#[derive(Clone, Debug, PartialEq)]
pub struct EventWrite {
    pub object: EventObject,
    pub is_update: bool,
}

impl QueueItem for EventWrite {
    fn bytes(&self) -> usize {
        size_of::<EventWrite>() + self.object.bytes()
    }
}

const JSON: &str = "application/json";

impl EventWrite {
    fn create(&self) -> anyhow::Result<DeliveryRequest> {
        let namespace = &self.object.metadata.namespace;
        Ok(DeliveryRequest {
            path: format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"),
            // The name is derived from the notice, so an Event with this name is this Event.
            duplicate_status: Some(StatusCode::CONFLICT),
            ..DeliveryRequest::post(JSON, serde_json::to_vec(&self.object)?)
        })
    }

    /// Patches the series, which is the only part that may change.
    fn update(&self) -> anyhow::Result<DeliveryRequest> {
        let create = self.create()?;
        let body = serde_json::to_vec(&json!({ "series": &self.object.series }))?;
        Ok(DeliveryRequest {
            method: Method::PATCH,
            path: format!("{}/{}", create.path, self.object.metadata.name),
            // The server deletes Events after an hour, and the request that creates the Event may have been dropped.
            fallback: Some((StatusCode::NOT_FOUND, Box::new(create))),
            ..DeliveryRequest::post("application/merge-patch+json", body)
        })
    }
}

impl DestinationFormat for KubernetesEvents {
    /// The API has no request for several Events, so a batch is one item.
    type Item = EventWrite;

    fn content_type(&self) -> &'static str {
        JSON
    }

    fn encode(&self, batch: &[EventWrite]) -> anyhow::Result<Vec<u8>> {
        Ok(self.request(batch)?.body.into())
    }

    fn request(&self, batch: &[EventWrite]) -> anyhow::Result<DeliveryRequest> {
        match batch {
            [write] if write.is_update => write.update(),
            [write] => write.create(),
            _ => anyhow::bail!("encode {} Events: the API takes one per request", batch.len()),
        }
    }

    fn is_retryable(&self, status: StatusCode) -> bool {
        status.is_server_error()
            || matches!(
                status,
                StatusCode::REQUEST_TIMEOUT
                    | StatusCode::TOO_MANY_REQUESTS
                    // The token is read again for each attempt, and the kubelet may write the new one late.
                    | StatusCode::UNAUTHORIZED
                    // The object was changed concurrently.
                    | StatusCode::CONFLICT
            )
    }

    fn remedy(&self, status: StatusCode, response: &[u8]) -> Option<&'static str> {
        let contains = |text: &str| response.windows(text.len()).any(|part| part == text.as_bytes());
        Some(match status {
            StatusCode::UNAUTHORIZED => {
                "the API server rejects the token: set --kubernetes-token to the file that the kubelet renews"
            }
            StatusCode::FORBIDDEN if contains("being terminated") => "the pod's namespace is being deleted",
            StatusCode::FORBIDDEN => {
                "the service account must not create events: apply manifests/components/kubernetes-events"
            }
            StatusCode::NOT_FOUND => {
                "the pod's namespace is gone, or --kubernetes-api is not an API server of Kubernetes 1.19 or newer"
            }
            StatusCode::UNPROCESSABLE_ENTITY => {
                "the API server rejects this Event as invalid: please report this message"
            }
            _ => return None,
        })
    }
}

/// Whether the API server accepts it as a namespace's name (DNS label), which is a part of a request's path.
fn is_label(name: &str) -> bool {
    name.len() <= 63 && has_label_syntax(name)
}

/// Whether the API server accepts it as a pod's name (DNS subdomain): labels with dots between them.
fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(has_label_syntax)
}

fn has_label_syntax(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(is_allowed) && !text.starts_with('-') && !text.ends_with('-')
}
