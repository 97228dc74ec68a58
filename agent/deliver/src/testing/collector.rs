//! OpenTelemetry collectors by gRPC for tests: tonic's server with opentelemetry-proto's services, and servers that break
//! the protocol below it.

use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::profiles::v1development::profiles_service_server::{
    ProfilesService, ProfilesServiceServer,
};
use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesServiceRequest, ExportProfilesServiceResponse,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::Service;

/// How a collector replies to a call. A collector has a list: one reply for each call, and the last one for all others.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    Accept,
    /// Accept the batch, and report this number of items as rejected.
    AcceptBut(i64),
    /// This status, with a retry delay or without.
    Reject(Code, Option<Duration>),
    Hang,
    AcceptAfter(Duration),
    /// Begin a response, and reset the stream.
    ResetStream,
    /// Begin a response, and never end it.
    Stall,
    /// Send messages without an end.
    Endless,
    /// This HTTP status, as a proxy would send it.
    HttpStatus(u16),
    /// A success without a gRPC status.
    NoStatus,
    ResetConnection,
    /// Reply by HTTP/1.1.
    Http1,
}

#[derive(Default)]
struct Received {
    logs: Mutex<Vec<(MetadataMap, ExportLogsServiceRequest)>>,
    metrics: Mutex<Vec<ExportMetricsServiceRequest>>,
    profiles: Mutex<Vec<ExportProfilesServiceRequest>>,
    calls: AtomicUsize,
}

#[derive(Clone)]
pub struct Collector {
    pub url: String,
    replies: &'static [Reply],
    received: Arc<Received>,
}

impl Collector {
    pub async fn start(replies: &'static [Reply]) -> Collector {
        let (listener, collector) = Collector::bind("http://127.0.0.1", replies).await;
        let shared = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(shared.clone().connection(stream));
            }
        });
        collector
    }

    /// A collector at a port that refuses connections.
    pub async fn refusing() -> Collector {
        Collector::bind("http://127.0.0.1", &[]).await.1
    }

    /// The caller accepts connections and passes them to [`Collector::serve`]. `host` includes the scheme.
    pub async fn bind(host: &str, replies: &'static [Reply]) -> (TcpListener, Collector) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{host}:{}", listener.local_addr().unwrap().port());
        (listener, Collector { url, replies, received: Arc::default() })
    }

    pub fn logs(&self) -> MutexGuard<'_, Vec<(MetadataMap, ExportLogsServiceRequest)>> {
        self.received.logs.lock().unwrap()
    }

    pub fn metrics(&self) -> MutexGuard<'_, Vec<ExportMetricsServiceRequest>> {
        self.received.metrics.lock().unwrap()
    }

    pub fn profiles(&self) -> MutexGuard<'_, Vec<ExportProfilesServiceRequest>> {
        self.received.profiles.lock().unwrap()
    }

    pub fn calls(&self) -> usize {
        self.received.calls.load(Relaxed)
    }

    async fn connection(self, mut stream: TcpStream) {
        match self.replies {
            [Reply::ResetConnection] => drop(stream.set_zero_linger()),
            [Reply::Http1] => {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
                pending::<()>().await;
            }
            _ => self.serve(stream).await,
        }
    }

    pub async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let service = service_fn(move |request| self.clone().answer(request));
        let server = http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        self,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<ResponseBody>, Infallible> {
        let nth = self.received.calls.fetch_add(1, Relaxed);
        let reply = self.replies[nth.min(self.replies.len() - 1)];
        let grpc = |body: ResponseBody| {
            let answer = http::Response::builder().header("content-type", "application/grpc");
            Ok(answer.body(body).unwrap())
        };
        match reply {
            Reply::ResetStream | Reply::Stall | Reply::Endless => {
                grpc(BrokenBody(reply, true).boxed_unsync())
            }
            Reply::HttpStatus(status) => {
                let body = Full::new(Bytes::from("<html>busy</html>")).map_err(|never| match never {});
                Ok(http::Response::builder().status(status).body(body.boxed_unsync()).unwrap())
            }
            Reply::NoStatus => {
                let body = Full::new(Bytes::from_static(&[0; 5])).map_err(|never| match never {});
                grpc(body.boxed_unsync())
            }
            _ => {
                let service = CollectorService { reply, received: self.received.clone() };
                let path = request.uri().path().to_owned();
                let response = match path.split('.').nth(3) {
                    Some("logs") => LogsServiceServer::new(service).call(request).await?,
                    Some("metrics") => MetricsServiceServer::new(service).call(request).await?,
                    _ => ProfilesServiceServer::new(service).call(request).await?,
                };
                Ok(response.map(|body| body.map_err(std::io::Error::other).boxed_unsync()))
            }
        }
    }
}

type ResponseBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// Half a message, followed by an error or by nothing; or complete messages without an end.
struct BrokenBody(Reply, bool);

impl Body for BrokenBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let first = std::mem::take(&mut self.1);
        match self.0 {
            Reply::Endless => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 4000]))))),
            _ if first => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0, 0, 0, 0, 9, 1]))))),
            Reply::ResetStream => Poll::Ready(Some(Err(std::io::Error::other("reset")))),
            _ => Poll::Pending,
        }
    }
}

struct CollectorService {
    reply: Reply,
    received: Arc<Received>,
}

impl CollectorService {
    async fn decide(&self) -> Result<Option<i64>, Status> {
        match self.reply {
            Reply::AcceptBut(rejected) => return Ok(Some(rejected)),
            Reply::Reject(code, delay) => {
                let details = delay.map(|delay| ErrorDetails::with_retry_info(Some(delay)));
                return Err(match details {
                    Some(details) => Status::with_error_details(code, "not\u{1b}now", details),
                    None => Status::new(code, "no\u{1b}"),
                });
            }
            Reply::Hang => pending().await,
            Reply::AcceptAfter(time) => tokio::time::sleep(time).await,
            _ => {}
        }
        Ok(None)
    }
}

#[tonic::async_trait]
impl LogsService for CollectorService {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let rejected = self.decide().await?;
        let (metadata, _, request) = request.into_parts();
        self.received.logs.lock().unwrap().push((metadata, request));
        let partial_success = rejected.map(|rejected_log_records| ExportLogsPartialSuccess {
            rejected_log_records,
            error_message: "too old".to_owned(),
        });
        Ok(Response::new(ExportLogsServiceResponse { partial_success }))
    }
}

#[tonic::async_trait]
impl MetricsService for CollectorService {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.decide().await?;
        self.received.metrics.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl ProfilesService for CollectorService {
    async fn export(
        &self,
        request: Request<ExportProfilesServiceRequest>,
    ) -> Result<Response<ExportProfilesServiceResponse>, Status> {
        self.decide().await?;
        self.received.profiles.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportProfilesServiceResponse::default()))
    }
}
