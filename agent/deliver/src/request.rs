//! A batch as it is sent.

use bytes::Bytes;
use reqwest::{Method, StatusCode};

/// What most destinations want is [`Request::post`].
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// Comes after the destination's URL.
    pub path: String,
    pub content_type: &'static str,
    pub body: Bytes,
    /// An answer with this status says that the destination has it already: the answer to the first try was lost.
    pub there_by: Option<StatusCode>,
    /// What is sent in its place, once an answer has this status.
    pub otherwise: Option<(StatusCode, Box<Request>)>,
}

impl Request {
    /// To the destination's own address.
    pub fn post(content_type: &'static str, body: impl Into<Bytes>) -> Request {
        let (method, path) = (Method::POST, String::new());
        Request { method, path, content_type, body: body.into(), there_by: None, otherwise: None }
    }
}
