//! Kubernetes Events on the pod that something happened to, where `kubectl describe pod` shows them: `events.k8s.io/v1`.
//!
//! Two requests, POST and PATCH, which is all that the service account may do. An Event that repeats is one object whose
//! `series` grows, as client-go's recorder has it; its note cannot change any more. Not the `kube` crate: it brings a
//! second HTTP stack and every type of Kubernetes, and the queue, the retries and the tally are the courier's anyway.

mod bucket;
mod object;
mod recorder;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tests;
mod words;

use reqwest::{Method, StatusCode};
use serde_json::json;

pub use self::object::Object;
use self::object::micro;
pub use self::recorder::{Dropped, Recorder};
pub use self::words::{Count, Saying, of_event, of_incident};
use super::queue::Weigh;
use super::{Format, Request};

/// How the API server is spoken to.
#[derive(Debug, Default)]
pub struct Kubernetes;

/// An Event to be made, or one that happened again.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub object: Object,
    pub again: bool,
}

impl Weigh for Call {
    fn bytes(&self) -> usize {
        size_of::<Call>() + self.object.bytes()
    }
}

const JSON: &str = "application/json";

impl Call {
    fn create(&self) -> anyhow::Result<Request> {
        let namespace = &self.object.metadata.namespace;
        Ok(Request {
            path: format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"),
            // Its name is made of what happened: nobody else has taken it.
            there_by: Some(StatusCode::CONFLICT),
            ..Request::post(JSON, serde_json::to_vec(&self.object)?)
        })
    }

    /// Of the object, what may change.
    fn repeat(&self) -> anyhow::Result<Request> {
        let create = self.create()?;
        let body = serde_json::to_vec(&json!({ "series": &self.object.series }))?;
        Ok(Request {
            method: Method::PATCH,
            path: format!("{}/{}", create.path, self.object.metadata.name),
            // The server forgets Events after an hour, and its first request may have been given up.
            otherwise: Some((StatusCode::NOT_FOUND, Box::new(create))),
            ..Request::post("application/merge-patch+json", body)
        })
    }
}

impl Format for Kubernetes {
    /// One at a time: there is no request for many.
    type Item = Call;

    fn content_type(&self) -> &'static str {
        JSON
    }

    fn body(&self, batch: &[Call]) -> anyhow::Result<Vec<u8>> {
        Ok(self.request(batch)?.body.into())
    }

    fn request(&self, batch: &[Call]) -> anyhow::Result<Request> {
        match batch {
            [one] if one.again => one.repeat(),
            [one] => one.create(),
            _ => anyhow::bail!("{} Events at once: the API takes one", batch.len()),
        }
    }

    fn passes(&self, status: StatusCode) -> bool {
        status.is_server_error()
            || matches!(
                status,
                StatusCode::REQUEST_TIMEOUT
                    | StatusCode::TOO_MANY_REQUESTS
                    // The token is read again for each try, and the kubelet may have been late with a new one.
                    | StatusCode::UNAUTHORIZED
                    // Somebody changed the object in the same moment.
                    | StatusCode::CONFLICT
            )
    }

    fn mends(&self, status: StatusCode, answer: &[u8]) -> Option<&'static str> {
        let says = |words: &str| answer.windows(words.len()).any(|part| part == words.as_bytes());
        Some(match status {
            StatusCode::UNAUTHORIZED => {
                "the API server does not know the token: --kubernetes-token names the file that the kubelet keeps fresh"
            }
            StatusCode::FORBIDDEN if says("being terminated") => "the pod's namespace is being deleted",
            StatusCode::FORBIDDEN => {
                "the service account may not create events: apply manifests/components/kubernetes-events"
            }
            StatusCode::NOT_FOUND => {
                "the pod's namespace is gone, or --kubernetes-api is no API server of Kubernetes 1.19 or newer"
            }
            StatusCode::UNPROCESSABLE_ENTITY => {
                "the API server takes no such Event: please report this with the words above"
            }
            _ => return None,
        })
    }
}

/// What the API server takes as a namespace's name: it stands in the path of a request.
fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_word(name)
}

/// And as a pod's: words with dots between them.
fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_word)
}

fn is_word(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(known) && !text.starts_with('-') && !text.ends_with('-')
}
