//! Unary gRPC calls over the same HTTP client that sends POSTs: the same certificates, the same timeout, and the same
//! headers, as metadata.
//!
//! tonic frames the messages and reads the statuses. Its own channel is not used, because it has its own handling of
//! certificates, timeouts and errors. This module must not depend on the content of a message.

use std::error::Error as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::ensure;
use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use http::{HeaderMap, StatusCode, Uri};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::Service;

use super::worker::{MAX_LOGGED_BYTES, MAX_RESPONSE_BYTES, SendOutcome};
use super::{DestinationSettings, http_client};
use podopsy_model::text;

/// Calls one method at one destination.
pub struct Grpc {
    inner: tonic::client::Grpc<Transport>,
    method: PathAndQuery,
    timeout: Duration,
}

impl Grpc {
    /// `method` is `/PACKAGE.SERVICE/METHOD`. Fails if the URL is invalid.
    pub fn new(
        client: reqwest::Client,
        settings: &DestinationSettings,
        method: &'static str,
    ) -> anyhow::Result<Grpc> {
        let url = http_client::parse_url(&settings.url)?;
        ensure!(
            url.path() == "/" && url.query().is_none(),
            "a gRPC URL has no path: use {}, or set --otlp-protocol to http/protobuf",
            url.origin().ascii_serialization()
        );
        let origin: Uri = url.as_str().parse()?;
        let inner = tonic::client::Grpc::with_origin(Transport(client), origin);
        let inner = inner.max_decoding_message_size(MAX_RESPONSE_BYTES);
        Ok(Grpc { inner, method: PathAndQuery::from_static(method), timeout: settings.timeout })
    }

    /// Makes one attempt. Returns the bytes of the response message.
    pub async fn call(&self, headers: HeaderMap, message: Bytes) -> Result<Bytes, SendOutcome> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        // Sent to the server, so that it can stop when we no longer wait.
        request.set_timeout(self.timeout);
        let mut inner = self.inner.clone();
        let call = inner.unary(request, self.method.clone(), RawCodec);
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(outcome(&status)),
            Err(_) => Err(SendOutcome::Retry(format!("no answer within {:?}", self.timeout), None)),
        }
    }
}

/// OTLP 1.x, "Failures", lists the retryable codes. RESOURCE_EXHAUSTED is retryable only with a retry delay.
fn outcome(status: &Status) -> SendOutcome {
    if status.source().is_some_and(|error| error.is::<TransportFailed>()) {
        return SendOutcome::Retry(status.message().to_owned(), None);
    }
    let requested_delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let message = status.message().as_bytes();
    let shown = text::escape_bytes(&message[..message.len().min(MAX_LOGGED_BYTES)]);
    let description = format!("{:?}: {shown}", status.code());
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => SendOutcome::Retry(description, requested_delay),
        Code::ResourceExhausted if requested_delay.is_some() => {
            SendOutcome::Retry(description, requested_delay)
        }
        Code::Unimplemented => SendOutcome::Refused(format!(
            "{description}; the server may not support this signal, or a proxy in front of it may not support gRPC"
        )),
        _ => SendOutcome::Refused(format!(
            "{description}; check the destination's URL and headers in the configuration"
        )),
    }
}

/// Adapts reqwest's client for tonic. A transport error becomes UNAVAILABLE, marked as [`TransportFailed`].
#[derive(Clone)]
struct Transport(reqwest::Client);

type HttpResponse = http::Response<UnsyncBoxBody<Bytes, Status>>;

impl Service<http::Request<Body>> for Transport {
    type Response = HttpResponse;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let client = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            // A unary call has one message, which is in memory already.
            let body = body.collect().await?.to_bytes();
            let request = reqwest::Request::try_from(http::Request::from_parts(head, body))
                .map_err(transport_failed)?;
            let response = client.execute(request).await.map_err(transport_failed)?;
            let status = response.status();
            if status != StatusCode::OK {
                return Err(Status::new(
                    code_of_http_status(status),
                    format!("HTTP {status}, probably from a proxy"),
                ));
            }
            let response: http::Response<reqwest::Body> = response.into();
            Ok(response.map(|body| body.map_err(transport_failed).boxed_unsync()))
        })
    }
}

/// Marks a status that did not come from the server.
#[derive(Debug, thiserror::Error)]
#[error("the transport failed")]
struct TransportFailed;

fn transport_failed(error: reqwest::Error) -> Status {
    let description = http_client::describe_error(error);
    let remedy = remedy(&description).map_or_else(String::new, |remedy| format!("; {remedy}"));
    let mut status = Status::unavailable(description + &remedy);
    status.set_source(Arc::new(TransportFailed));
    status
}

/// Goes by the error's text: the HTTP/2 layer keeps only the text of an error from below.
fn remedy(description: &str) -> Option<&'static str> {
    // An HTTP/1.1 response begins with "HTTP", which is read as the length of a frame.
    if description.contains("frame with invalid size") {
        return Some(
            "the server does not speak HTTP/2: a port for HTTP (4318) needs --otlp-protocol http/protobuf",
        );
    }
    let alerts = ["CertificateRequired", "HandshakeFailure", "UnknownCA", "BadCertificate"];
    let is_alert = alerts.iter().any(|alert| description.ends_with(&format!("fatal alert: {alert}")));
    is_alert.then_some(http_client::CLIENT_CERTIFICATE_REMEDY)
}

/// gRPC's documentation, "HTTP to gRPC Status Code Mapping".
fn code_of_http_status(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// A codec that passes bytes through: the caller encodes and decodes the messages.
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
