//! gRPC (unary calls) over the client that posts, too: one trust, one time limit and the same headers, as metadata.
//!
//! tonic frames messages and reads statuses; its own channel is not used, because it would have certificates, time limits
//! and words for what went wrong of its own. Must not know: what a message says.

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

use super::worker::{ANSWER, Answer, SHOWN};
use super::{Settings, trust};
use podopsy_model::text;

/// Calls one method at one destination.
pub struct Grpc {
    inner: tonic::client::Grpc<Transport>,
    method: PathAndQuery,
    timeout: Duration,
}

impl Grpc {
    /// `method`: `/PACKAGE.SERVICE/METHOD`. An error says what of the settings cannot be.
    pub fn new(client: reqwest::Client, settings: &Settings, method: &'static str) -> anyhow::Result<Grpc> {
        let url = trust::url(&settings.url)?;
        ensure!(
            url.path() == "/" && url.query().is_none(),
            "a gRPC address has no path: it is {}, or --otlp-protocol is http/protobuf",
            url.origin().ascii_serialization()
        );
        let origin: Uri = url.as_str().parse()?;
        let inner = tonic::client::Grpc::with_origin(Transport(client), origin);
        let inner = inner.max_decoding_message_size(ANSWER);
        Ok(Grpc { inner, method: PathAndQuery::from_static(method), timeout: settings.timeout })
    }

    /// One attempt; what a success answered is its message's bytes.
    pub async fn call(&self, headers: HeaderMap, message: Bytes) -> Result<Bytes, Answer> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        // Whoever is slow may as well stop when nobody waits any more.
        request.set_timeout(self.timeout);
        let mut inner = self.inner.clone();
        let call = inner.unary(request, self.method.clone(), Raw);
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(answer(&status)),
            Err(_) => Err(Answer::Later(format!("no answer within {:?}", self.timeout), None)),
        }
    }
}

/// OTLP 1.x, "Failures": which codes may pass. RESOURCE_EXHAUSTED does if it says when.
fn answer(status: &Status) -> Answer {
    if status.source().is_some_and(|error| error.is::<OnTheWay>()) {
        return Answer::Later(status.message().to_owned(), None);
    }
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let message = status.message().as_bytes();
    let shown = text::escape_bytes(&message[..message.len().min(SHOWN)]);
    let said = format!("{:?}: {shown}", status.code());
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Answer::Later(said, asked),
        Code::ResourceExhausted if asked.is_some() => Answer::Later(said, asked),
        Code::Unimplemented => {
            Answer::Never(format!("{said}; it may lack this signal, or a proxy before it may not know gRPC"))
        }
        _ => Answer::Never(format!("{said}; its address and its headers are in the configuration")),
    }
}

/// reqwest's client as tonic wants one. What fails on the way is UNAVAILABLE: the server has said nothing.
#[derive(Clone)]
struct Transport(reqwest::Client);

type Answered = http::Response<UnsyncBoxBody<Bytes, Status>>;

impl Service<http::Request<Body>> for Transport {
    type Response = Answered;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Answered, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let client = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            // One message, in memory already.
            let body = body.collect().await?.to_bytes();
            let request =
                reqwest::Request::try_from(http::Request::from_parts(head, body)).map_err(failed)?;
            let response = client.execute(request).await.map_err(failed)?;
            let status = response.status();
            if status != StatusCode::OK {
                return Err(Status::new(of_http(status), format!("HTTP {status}, as a proxy says it")));
            }
            let response: http::Response<reqwest::Body> = response.into();
            Ok(response.map(|body| body.map_err(failed).boxed_unsync()))
        })
    }
}

/// No server's word.
#[derive(Debug, thiserror::Error)]
#[error("on the way")]
struct OnTheWay;

fn failed(error: reqwest::Error) -> Status {
    let said = trust::said(error);
    let hint = hint(&said).map_or_else(String::new, |hint| format!("; {hint}"));
    let mut status = Status::unavailable(said + &hint);
    status.set_source(Arc::new(OnTheWay));
    status
}

/// HTTP/2 keeps of an error below it no more than its words.
fn hint(said: &str) -> Option<&'static str> {
    // "HTTP" in the place of a frame's length.
    if said.contains("frame with invalid size") {
        return Some(
            "it does not speak HTTP/2 there: a port for HTTP (4318) wants --otlp-protocol http/protobuf",
        );
    }
    let alerts = ["CertificateRequired", "HandshakeFailure", "UnknownCA", "BadCertificate"];
    let asks = alerts.iter().any(|alert| said.ends_with(&format!("fatal alert: {alert}")));
    asks.then_some(trust::WHO_ARE_WE)
}

/// gRPC's own table ("HTTP to gRPC Status Code Mapping").
fn of_http(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// Messages are written before, and read after.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
