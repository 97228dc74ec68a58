//! A stub of the API server: TLS with its own authority, a token, and events.k8s.io/v1 with upstream's validation.
//!
//! It is a stub because the real one takes 11 CPU-minutes to compile (`cargo xtask cluster up`), and cannot be made to fail on
//! demand. The kernel tests use it, too.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use podopsy_system::sync::lock;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::event_validation as validation;

/// What to do with a request instead of the right thing.
#[derive(Clone, Copy, Debug)]
pub enum StubAction {
    /// Answer with this status and a `Status` object.
    Respond(u16),
    /// Do what was requested, and close the connection without a response.
    LoseResponse,
}

#[derive(Debug, Default)]
pub struct StubState {
    pub token: String,
    pub namespaces: Vec<String>,
    /// By namespace and name.
    pub events: BTreeMap<(String, String), Value>,
    pub next: VecDeque<StubAction>,
    /// Method and status of each request.
    pub log: Vec<(String, u16)>,
}

pub struct ApiServerStub {
    pub url: String,
    /// PEM.
    pub authority: PathBuf,
    /// The file from which a client reads its token.
    pub token: PathBuf,
    state: Arc<Mutex<StubState>>,
}

impl ApiServerStub {
    /// Starts a stub with one namespace, `shop`, and its files in `dir`.
    pub async fn start(dir: &Path) -> ApiServerStub {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let (authority, token) = (dir.join("kube-ca.crt"), dir.join("kube-token"));
        std::fs::write(&authority, signed.cert.pem()).expect("write the authority");
        std::fs::write(&token, "first-token").expect("write the token");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der()));
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![signed.cert.der().clone()], key).expect("a key that fits");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://localhost:{}", listener.local_addr().expect("its number").port());
        let known = StubState {
            token: "first-token".into(),
            namespaces: vec!["shop".into()],
            ..StubState::default()
        };
        let state = Arc::new(Mutex::new(known));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let mut stream = BufReader::new(stream);
                    while let Some(request) = request(&mut stream).await {
                        let action = lock(&state).next.pop_front();
                        let (status, body) = match action {
                            Some(StubAction::Respond(status)) => (
                                status,
                                json!({"kind": "Status", "message": "requested by the test", "code": status}),
                            ),
                            _ => answer(&mut lock(&state), &request),
                        };
                        lock(&state).log.push((request.method, status));
                        if matches!(action, Some(StubAction::LoseResponse)) {
                            return;
                        }
                        let (body, again) =
                            (body.to_string(), if status == 429 { "Retry-After: 0\r\n" } else { "" });
                        let head =
                            format!("HTTP/1.1 {status} X\r\n{again}Content-Length: {}\r\n\r\n", body.len());
                        let _ = stream.get_mut().write_all(format!("{head}{body}").as_bytes()).await;
                    }
                });
            }
        });
        ApiServerStub { url, authority, token, state }
    }

    pub fn state(&self) -> MutexGuard<'_, StubState> {
        lock(&self.state)
    }
}

struct Request {
    method: String,
    path: String,
    token: String,
    content_type: String,
    body: Value,
}

/// None: the connection was closed.
async fn request(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Request> {
    let (mut first, mut headers) = (String::new(), BTreeMap::new());
    stream.read_line(&mut first).await.ok().filter(|read| *read > 0)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    stream.read_exact(&mut body).await.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let mut header = |name: &str| headers.remove(name).unwrap_or_default();
    Some(Request {
        method: words.next()?,
        path: words.next()?,
        token: header("authorization"),
        content_type: header("content-type"),
        body: serde_json::from_slice(&body).ok()?,
    })
}

/// Does what the API server does with a request. Returns the status and the body of its response.
fn answer(state: &mut StubState, request: &Request) -> (u16, Value) {
    let error =
        |code: u16, message: String| (code, json!({"kind": "Status", "message": message, "code": code}));
    if request.token != format!("Bearer {}", state.token) {
        return error(401, "Unauthorized".to_owned());
    }
    let rest = request.path.strip_prefix("/apis/events.k8s.io/v1/namespaces/").unwrap_or_default();
    let parts: Vec<&str> = rest.split('/').collect();
    let (namespace, name) = match parts.as_slice() {
        [namespace, "events"] => (*namespace, None),
        [namespace, "events", name] => (*namespace, Some(*name)),
        _ => return error(404, "404 page not found".to_owned()),
    };
    if !state.namespaces.iter().any(|known| known == namespace) {
        return error(404, format!("namespaces \"{namespace}\" not found"));
    }
    match (request.method.as_str(), name, request.content_type.as_str()) {
        ("POST", None, "application/json") => {
            let errors = validation::errors_in_new(&request.body, namespace);
            if !errors.is_empty() {
                return error(422, errors.join(", "));
            }
            let name = request.body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let key = (namespace.to_owned(), name);
            if state.events.contains_key(&key) {
                return error(409, format!("events.events.k8s.io \"{}\" already exists", key.1));
            }
            state.events.insert(key, request.body.clone());
            (201, request.body.clone())
        }
        ("PATCH", Some(name), "application/merge-patch+json") => {
            let errors = validation::errors_in_patch(&request.body);
            if !errors.is_empty() {
                return error(422, errors.join(", "));
            }
            let Some(event) = state.events.get_mut(&(namespace.to_owned(), name.to_owned())) else {
                return error(404, format!("events.events.k8s.io \"{name}\" not found"));
            };
            event["series"] = request.body["series"].clone();
            (200, event.clone())
        }
        _ => error(405, format!("{} {}", request.method, request.content_type)),
    }
}
