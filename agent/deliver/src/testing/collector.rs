//! OpenTelemetry collectors by gRPC, for tests: tonic's own server side with opentelemetry-proto's services, and servers
//! that go wrong below it.

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

/// What to do with the nth call (from 0); the last one goes on.
#[derive(Clone, Copy, Debug)]
pub enum Say {
    Take,
    /// Take all but so many.
    TakeBut(i64),
    No(Code, Option<Duration>),
    Hang,
    /// Take it after a while.
    Slowly(Duration),
    /// Begin an answer, and reset the stream.
    Reset,
    /// Begin an answer, and never end it.
    Stall,
    /// Messages without an end.
    Endless,
    /// A proxy's word.
    Http(u16),
    /// A success without a status.
    Wordless,
    /// Reset the connection.
    Cut,
    /// Another protocol.
    Http1,
}

#[derive(Default)]
struct Taken {
    logs: Mutex<Vec<(MetadataMap, ExportLogsServiceRequest)>>,
    metrics: Mutex<Vec<ExportMetricsServiceRequest>>,
    profiles: Mutex<Vec<ExportProfilesServiceRequest>>,
    calls: AtomicUsize,
}

#[derive(Clone)]
pub struct Collector {
    pub url: String,
    says: &'static [Say],
    taken: Arc<Taken>,
}

impl Collector {
    pub async fn start(says: &'static [Say]) -> Collector {
        let (listener, collector) = Collector::bind("http://127.0.0.1", says).await;
        let it = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(it.clone().connection(stream));
            }
        });
        collector
    }

    /// Nobody listens there.
    pub async fn refusing() -> Collector {
        Collector::bind("http://127.0.0.1", &[]).await.1
    }

    /// Whoever accepts hands its connections to `serve`; `host`: with the scheme.
    pub async fn bind(host: &str, says: &'static [Say]) -> (TcpListener, Collector) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{host}:{}", listener.local_addr().unwrap().port());
        (listener, Collector { url, says, taken: Arc::default() })
    }

    pub fn logs(&self) -> MutexGuard<'_, Vec<(MetadataMap, ExportLogsServiceRequest)>> {
        self.taken.logs.lock().unwrap()
    }

    pub fn metrics(&self) -> MutexGuard<'_, Vec<ExportMetricsServiceRequest>> {
        self.taken.metrics.lock().unwrap()
    }

    pub fn profiles(&self) -> MutexGuard<'_, Vec<ExportProfilesServiceRequest>> {
        self.taken.profiles.lock().unwrap()
    }

    pub fn calls(&self) -> usize {
        self.taken.calls.load(Relaxed)
    }

    async fn connection(self, mut stream: TcpStream) {
        match self.says {
            [Say::Cut] => drop(stream.set_zero_linger()),
            [Say::Http1] => {
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

    async fn answer(self, request: http::Request<Incoming>) -> Result<http::Response<Sent>, Infallible> {
        let nth = self.taken.calls.fetch_add(1, Relaxed);
        let say = self.says[nth.min(self.says.len() - 1)];
        let grpc = |body: Sent| {
            let answer = http::Response::builder().header("content-type", "application/grpc");
            Ok(answer.body(body).unwrap())
        };
        match say {
            Say::Reset | Say::Stall | Say::Endless => grpc(Ragged(say, true).boxed_unsync()),
            Say::Http(status) => {
                let body = Full::new(Bytes::from("<html>busy</html>")).map_err(|never| match never {});
                Ok(http::Response::builder().status(status).body(body.boxed_unsync()).unwrap())
            }
            Say::Wordless => {
                let body = Full::new(Bytes::from_static(&[0; 5])).map_err(|never| match never {});
                grpc(body.boxed_unsync())
            }
            _ => {
                let said = Said { say, taken: self.taken.clone() };
                let path = request.uri().path().to_owned();
                let response = match path.split('.').nth(3) {
                    Some("logs") => LogsServiceServer::new(said).call(request).await?,
                    Some("metrics") => MetricsServiceServer::new(said).call(request).await?,
                    _ => ProfilesServiceServer::new(said).call(request).await?,
                };
                Ok(response.map(|body| body.map_err(std::io::Error::other).boxed_unsync()))
            }
        }
    }
}

type Sent = UnsyncBoxBody<Bytes, std::io::Error>;

/// Half a message, and then; or whole ones without an end.
struct Ragged(Say, bool);

impl Body for Ragged {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let first = std::mem::take(&mut self.1);
        match self.0 {
            Say::Endless => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 4000]))))),
            _ if first => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0, 0, 0, 0, 9, 1]))))),
            Say::Reset => Poll::Ready(Some(Err(std::io::Error::other("reset")))),
            _ => Poll::Pending,
        }
    }
}

struct Said {
    say: Say,
    taken: Arc<Taken>,
}

impl Said {
    async fn decide(&self) -> Result<Option<i64>, Status> {
        match self.say {
            Say::TakeBut(few) => return Ok(Some(few)),
            Say::No(code, delay) => {
                let details = delay.map(|delay| ErrorDetails::with_retry_info(Some(delay)));
                return Err(match details {
                    Some(details) => Status::with_error_details(code, "not\u{1b}now", details),
                    None => Status::new(code, "no\u{1b}"),
                });
            }
            Say::Hang => pending().await,
            Say::Slowly(time) => tokio::time::sleep(time).await,
            _ => {}
        }
        Ok(None)
    }
}

#[tonic::async_trait]
impl LogsService for Said {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let few = self.decide().await?;
        let (metadata, _, request) = request.into_parts();
        self.taken.logs.lock().unwrap().push((metadata, request));
        let partial_success = few.map(|rejected_log_records| ExportLogsPartialSuccess {
            rejected_log_records,
            error_message: "too old".to_owned(),
        });
        Ok(Response::new(ExportLogsServiceResponse { partial_success }))
    }
}

#[tonic::async_trait]
impl MetricsService for Said {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.decide().await?;
        self.taken.metrics.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl ProfilesService for Said {
    async fn export(
        &self,
        request: Request<ExportProfilesServiceRequest>,
    ) -> Result<Response<ExportProfilesServiceResponse>, Status> {
        self.decide().await?;
        self.taken.profiles.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportProfilesServiceResponse::default()))
    }
}

/// Until it holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("not {what}"));
}
