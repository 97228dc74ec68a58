//! The request that carries a batch.

use bytes::Bytes;
use reqwest::{Method, StatusCode};

/// One HTTP request to a destination. Most destinations need no more than [`DeliveryRequest::post`].
#[derive(Clone, Debug)]
pub struct DeliveryRequest {
    pub method: Method,
    /// Appended to the destination's URL.
    pub path: String,
    pub content_type: &'static str,
    pub body: Bytes,
    /// A response with this status means that the destination has the batch already: the response to an earlier attempt
    /// was lost.
    pub duplicate_status: Option<StatusCode>,
    /// The request that replaces this one after a response with this status.
    pub fallback: Option<(StatusCode, Box<DeliveryRequest>)>,
}

impl DeliveryRequest {
    /// A POST to the destination's own URL.
    pub fn post(content_type: &'static str, body: impl Into<Bytes>) -> DeliveryRequest {
        DeliveryRequest {
            method: Method::POST,
            path: String::new(),
            content_type,
            body: body.into(),
            duplicate_status: None,
            fallback: None,
        }
    }
}
