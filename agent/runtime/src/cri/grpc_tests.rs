//! The gRPC client against a server by hyper that sends valid and broken responses. tonic encodes the statuses.

use std::convert::Infallible;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Empty, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio_stream::{StreamExt, iter};

use super::*;
use crate::cri::messages::{VERSION, VersionRequest, VersionResponse};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A server on a socket: its connections so far, and how to close the present one.
struct Server {
    dir: tempfile::TempDir,
    connections: Arc<AtomicUsize>,
    close: Arc<Notify>,
}

impl Server {
    /// `answer` gets the number of the connection, from 0. Without an answer the server closes the connection.
    fn start(answer: impl Fn(usize) -> Option<Answer> + Clone + Send + 'static) -> Server {
        let (connections, close) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let server = Server { dir: tempfile::tempdir().unwrap(), connections, close };
        let listener = UnixListener::bind(server.socket()).unwrap();
        let (connections, close) = (server.connections.clone(), server.close.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = connections.fetch_add(1, Relaxed);
                let (answer, close) = (answer.clone(), close.clone());
                let hang_up = close.clone();
                let service = service_fn(move |request: hyper::Request<Incoming>| {
                    let (answer, hang_up) = (answer.clone(), hang_up.clone());
                    async move {
                        let header = |name| request.headers()[name].as_bytes();
                        assert_eq!(
                            (header("content-type"), header("te")),
                            (&b"application/grpc"[..], &b"trailers"[..])
                        );
                        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", VERSION));
                        let sent = request.into_body().collect().await.unwrap().to_bytes();
                        assert_eq!(sent, frame(&self::request().encode_to_vec()).unwrap());
                        match answer(number) {
                            Some(answer) => Ok::<_, Infallible>(answer),
                            None => {
                                hang_up.notify_one();
                                pending().await
                            }
                        }
                    }
                });
                let connection = server::Builder::new(TokioExecutor::new());
                let connection = connection.serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    tokio::select! { _ = connection => {}, () = close.notified() => {} }
                });
            }
        });
        server
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("cri.sock")
    }

    fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

fn request() -> VersionRequest {
    VersionRequest { version: "v1".into() }
}

async fn call(channel: &Channel) -> Result<VersionResponse, GrpcError> {
    let request = request();
    let call = channel.unary(VERSION, &request);
    tokio::time::timeout(Duration::from_secs(10), call).await.expect("the call returns")
}

/// The status of a call to a server that sends `answer`.
async fn status_of(answer: impl Fn() -> Answer + Clone + Send + 'static) -> GrpcStatus {
    let server = Server::start(move |_| Some(answer()));
    match call(&Channel::new(&server.socket())).await {
        Err(GrpcError::Status(status)) => status,
        other => panic!("{other:?}"),
    }
}

fn trailers(status: &tonic::Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers).unwrap();
    trailers
}

/// A response of these bytes in two parts, and these trailers.
fn answer(body: &[u8], trailers: Option<HeaderMap>) -> Answer {
    let (first, second) = body.split_at(body.len().min(3));
    let data = [first, second].map(|part| Frame::data(Bytes::copy_from_slice(part)));
    let frames: Vec<_> = data.into_iter().chain(trailers.map(Frame::trailers)).map(Ok).collect();
    Response::new(StreamBody::new(iter(frames)).boxed_unsync())
}

fn version(name: &str) -> Answer {
    let message = VersionResponse { runtime_name: name.into(), ..Default::default() };
    answer(&frame(&message.encode_to_vec()).unwrap(), Some(trailers(&tonic::Status::ok(""))))
}

#[tokio::test]
async fn a_status_in_the_trailers_is_returned_even_after_a_message() {
    for body in [&b""[..], &[0; PREFIX_LEN]] {
        let status =
            status_of(move || answer(body, Some(trailers(&tonic::Status::not_found("no such"))))).await;
        assert_eq!(status, GrpcStatus::new(GrpcCode::NOT_FOUND, "no such"));
    }
}

#[tokio::test]
async fn a_status_in_the_headers_ends_the_call() {
    let text = "größe 100 %\n\x1b[2J";
    let status = status_of(move || {
        let (head, ()) = tonic::Status::unknown(text).into_http::<()>().into_parts();
        // The body never ends.
        Response::from_parts(head, StreamBody::new(tokio_stream::pending()).boxed_unsync())
    });
    let status = status.await;
    assert_eq!(status, GrpcStatus::new(GrpcCode::UNKNOWN, text));
    assert_eq!(status.to_string(), "unknown: größe 100 %\\x0a\\x1b[2J");
}

#[tokio::test]
async fn a_large_answer_is_returned_and_one_over_the_limit_is_refused_by_its_prefix() {
    // Larger than HTTP/2's flow-control windows.
    let server = Server::start(|_| Some(version(&"x".repeat(MESSAGE_MAX - 5))));
    let response = call(&Channel::new(&server.socket())).await.unwrap();
    assert_eq!(response.runtime_name.len(), MESSAGE_MAX - 5);

    let status = status_of(|| {
        let prefix = [&[0], &(MESSAGE_MAX as u32 + 1).to_be_bytes()[..]].concat();
        let frames = iter([Ok(Frame::data(prefix.into()))]).chain(tokio_stream::pending());
        Response::new(StreamBody::new(frames).boxed_unsync())
    });
    let status = status.await;
    assert_eq!(status.code, GrpcCode::OUT_OF_RANGE);
    assert!(status.message.contains("16777217 bytes exceeds"), "{status}");
}

#[tokio::test]
async fn responses_that_break_the_protocol_are_errors() {
    let ok = || Some(trailers(&tonic::Status::ok("")));
    let undefined =
        |code| Some(HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(code))]));
    type Case = (&'static [u8], Option<HeaderMap>, GrpcCode, &'static str);
    let cases: [Case; 10] = [
        (b"", ok(), GrpcCode::INTERNAL, "incomplete"),
        (b"\0\0\0", ok(), GrpcCode::INTERNAL, "incomplete"),
        (b"\0\0\0\0\x02x", ok(), GrpcCode::INTERNAL, "incomplete"),
        (b"\0\0\0\0\0\0\0\0\0\0", ok(), GrpcCode::INTERNAL, "longer"),
        (b"\x01\0\0\0\0", ok(), GrpcCode::INTERNAL, "compressed"),
        (b"\0\0\0\0\x02\xff\xff", ok(), GrpcCode::INTERNAL, "decode"),
        (b"\0\0\0\0\0", None, GrpcCode::UNKNOWN, "no gRPC status"),
        (b"\0\0\0\0\0", Some(HeaderMap::new()), GrpcCode::UNKNOWN, "no gRPC status"),
        (b"\0\0\0\0\0", undefined("17"), GrpcCode::UNKNOWN, ""),
        (b"\0\0\0\0\0", undefined("x"), GrpcCode::UNKNOWN, ""),
    ];
    for (body, trailers, code, text) in cases {
        let status = status_of(move || answer(body, trailers.clone())).await;
        assert_eq!(status.code, code, "{body:?}: {status}");
        assert!(status.message.contains(text), "{body:?}: {status}");
    }
    for (http, code) in
        [(404, GrpcCode::UNIMPLEMENTED), (503, GrpcCode::UNAVAILABLE), (500, GrpcCode::UNKNOWN)]
    {
        let page = move || Response::builder().status(http).body(Empty::new().boxed_unsync()).unwrap();
        assert_eq!(status_of(page).await.code, code);
    }
}

#[tokio::test]
async fn calls_share_one_connection() {
    let server = Server::start(|_| Some(version("x")));
    let channel = Channel::new(&server.socket());
    let clone = channel.clone();
    let (a, b) = tokio::join!(call(&channel), call(&clone));
    assert_eq!((a.unwrap().runtime_name, b.unwrap().runtime_name), ("x".to_owned(), "x".to_owned()));
    call(&channel).await.unwrap();
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_ends_during_a_call_fails_it_and_is_made_again() {
    let server = Server::start(|connection| (connection > 0).then(|| version("x")));
    let channel = Channel::new(&server.socket());
    let error = call(&channel).await.unwrap_err();
    assert!(matches!(error, GrpcError::Http(_)), "{error:?}");
    assert_eq!(call(&channel).await.unwrap().runtime_name, "x");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_connection_that_ends_between_calls_is_made_again() {
    let server = Server::start(|_| Some(version("x")));
    let channel = Channel::new(&server.socket());
    call(&channel).await.unwrap();
    server.close.notify_one();
    while channel.0.sender.lock().await.as_ref().is_some_and(|sender| !sender.is_closed()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    call(&channel).await.unwrap();
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_missing_socket_fails_the_call_at_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let error = call(&Channel::new(&dir.path().join("none"))).await.unwrap_err();
    assert!(matches!(error, GrpcError::Connect(_)), "{error:?}");
}
