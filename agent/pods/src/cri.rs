//! CRI v1 over a Unix socket (k8s.io/cri-api, `runtime/v1/api.proto`): the calls and fields podopsy uses.
//!
//! The messages are written manually with prost's derive: it is a dozen messages of a 2,000-line API, no `protoc` is
//! needed to build, and unknown fields are skipped, as protobuf defines.

pub mod messages;

use std::path::Path;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};

/// The largest answer, in bytes. tonic's default is 4 MiB, which a node full of pods with long annotations exceeds.
const MESSAGE_MAX: usize = 16 << 20;

/// A channel to the runtime's socket. It connects on first use, and again after the runtime restarts.
pub fn channel(socket: &Path) -> Channel {
    let path = socket.to_owned();
    Endpoint::from_static("http://cri.invalid").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        },
    ))
}

/// One unary call, e.g. `unary(channel, "/runtime.v1.RuntimeService/Version", request)`.
pub async fn unary<Request, Response>(
    channel: &Channel,
    method: &'static str,
    request: Request,
) -> anyhow::Result<Response>
where
    Request: prost::Message + 'static,
    Response: prost::Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX);
    grpc.ready().await.with_context(|| format!("CRI {method}: connect"))?;
    let codec = tonic_prost::ProstCodec::<Request, Response>::default();
    let response = grpc
        .unary(tonic::Request::new(request), PathAndQuery::from_static(method), codec)
        .await
        .with_context(|| format!("CRI {method}"))?;
    Ok(response.into_inner())
}
