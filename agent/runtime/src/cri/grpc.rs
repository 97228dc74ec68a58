//! Unary gRPC calls over HTTP/2 on a Unix socket, as in gRPC's PROTOCOL-HTTP2.md. CRI needs no more of gRPC: no streams, no
//! TLS, no compression. A call has no time limit of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::StatusCode;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, TE, USER_AGENT};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::status::{GrpcCode, GrpcStatus};

/// Size limit of one response message, in bytes. The usual 4 MiB is too small for a node full of pods with long annotations.
const MESSAGE_MAX: usize = 16 << 20;
/// The compression flag, and the message's length as 32 bits, big-endian.
const PREFIX_LEN: usize = 5;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error("connect")]
    Connect(#[source] std::io::Error),
    #[error("HTTP/2")]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Status(#[from] GrpcStatus),
}

/// One connection to a socket, shared by all clones. It is made at the first call, and again after it has failed.
#[derive(Clone, Debug)]
pub struct Channel(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    socket: PathBuf,
    /// Held while connecting, so that concurrent calls make one connection.
    sender: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Channel {
    pub fn new(socket: &Path) -> Self {
        Self(Arc::new(Connection { socket: socket.to_owned(), sender: Mutex::default() }))
    }

    /// Calls `method` (`/package.Service/Method`).
    pub async fn unary<Request, Response>(
        &self,
        method: &str,
        request: &Request,
    ) -> Result<Response, GrpcError>
    where
        Request: prost::Message,
        Response: prost::Message + Default,
    {
        let request = hyper::Request::post(format!("http://cri.invalid{method}"))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header(USER_AGENT, concat!("podopsy/", env!("CARGO_PKG_VERSION")))
            .body(Full::from(frame(&request.encode_to_vec())?))
            .map_err(|error| GrpcStatus::new(GrpcCode::INTERNAL, error.to_string()))?;
        let mut sender = self.sender().await?;
        let result = async { read_message(sender.send_request(request).await?).await }.await;
        if let Err(GrpcError::Http(_)) = result {
            // hyper may mark the connection as closed only after it has failed the call. Other calls on it go on.
            *self.0.sender.lock().await = None;
        }
        let undecodable = |error: prost::DecodeError| GrpcStatus::new(GrpcCode::INTERNAL, error.to_string());
        Ok(Response::decode(result?).map_err(undecodable)?)
    }

    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, GrpcError> {
        let mut current = self.0.sender.lock().await;
        if let Some(sender) = current.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = UnixStream::connect(&self.0.socket).await.map_err(GrpcError::Connect)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // Ends with the connection or, when the channel is dropped, after the last call. Calls report its errors.
        tokio::spawn(connection);
        Ok(current.insert(sender).clone())
    }
}

/// A message with its prefix.
fn frame(message: &[u8]) -> Result<Vec<u8>, GrpcStatus> {
    let len = u32::try_from(message.len())
        .map_err(|_| GrpcStatus::new(GrpcCode::OUT_OF_RANGE, "the request is longer than 4 GiB"))?;
    Ok([&[0], &len.to_be_bytes()[..], message].concat())
}

/// The message's length according to its prefix, once the prefix is complete.
fn message_len(received: &[u8]) -> Result<Option<usize>, GrpcStatus> {
    let Some((&[flag, a, b, c, d], message)) = received.split_first_chunk::<PREFIX_LEN>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if flag != 0 {
        return Err(GrpcStatus::protocol("the message is compressed"));
    }
    if len > MESSAGE_MAX {
        let text = format!("a response of {len} bytes exceeds the limit of {MESSAGE_MAX} bytes");
        return Err(GrpcStatus::new(GrpcCode::OUT_OF_RANGE, text));
    }
    if message.len() > len {
        return Err(GrpcStatus::protocol("the response is longer than its message"));
    }
    Ok(Some(len))
}

async fn read_message(response: hyper::Response<Incoming>) -> Result<Bytes, GrpcError> {
    let (head, mut body) = response.into_parts();
    let mut status = GrpcStatus::from_headers(&head.headers);
    if status.is_none() && head.status != StatusCode::OK {
        let text = format!("HTTP status {}", head.status);
        return Err(GrpcStatus::new(GrpcCode::from_http(head.status), text).into());
    }
    if let Some(status) = status.take_if(|status| status.code != GrpcCode::OK) {
        return Err(status.into());
    }
    let mut received = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                received.extend_from_slice(&data);
                message_len(&received)?;
            }
            Err(frame) => status = frame.trailers_ref().and_then(GrpcStatus::from_headers),
        }
    }
    match (status, message_len(&received)?) {
        (Some(status), _) if status.code != GrpcCode::OK => Err(status.into()),
        (Some(_), Some(len)) if received.len() == PREFIX_LEN + len => {
            Ok(Bytes::from(received).slice(PREFIX_LEN..))
        }
        (Some(_), _) => Err(GrpcStatus::protocol("the message is incomplete").into()),
        (None, _) => Err(GrpcStatus::new(GrpcCode::UNKNOWN, "the response has no gRPC status").into()),
    }
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
