//! CRI v1 over a Unix socket (k8s.io/cri-api, `runtime/v1/api.proto`): the calls and fields that podopsy uses.
//!
//! The messages are written manually with prost's derive: it is a dozen messages of a 2,000-line API, no `protoc` is
//! needed to build, and unknown fields are skipped, as protobuf defines.

pub mod grpc;
pub mod messages;
pub mod status;

use std::path::Path;

use anyhow::Context;

pub use grpc::Channel;

/// A channel to the runtime's socket. It connects at the first call, and again after the runtime has restarted.
pub fn channel(socket: &Path) -> Channel {
    Channel::new(socket)
}

/// One unary call, e.g. `unary(channel, "/runtime.v1.RuntimeService/Version", request)`. It fails with a
/// [`grpc::GrpcError`] in its context.
pub async fn unary<Request, Response>(
    channel: &Channel,
    method: &'static str,
    request: Request,
) -> anyhow::Result<Response>
where
    Request: prost::Message + 'static,
    Response: prost::Message + Default + 'static,
{
    channel.unary(method, &request).await.with_context(|| format!("CRI {method}"))
}
