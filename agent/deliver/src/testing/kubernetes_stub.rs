//! A stub of the API server: TLS by an authority of its own, a token, and events.k8s.io/v1 with upstream's validation. A
//! stub, because no kube-apiserver is in Debian 12 (only etcd is); the kernel tests have it, too.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::kubernetes_validation as validation;

/// What to do with a request in the place of what is right.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// This status, with a body of Kubernetes' kind.
    Say(u16),
    /// Do it, and reset before anyone is told.
    LoseTheAnswer,
}

#[derive(Debug, Default)]
pub struct State {
    pub token: String,
    pub namespaces: Vec<String>,
    /// By namespace and name.
    pub events: BTreeMap<(String, String), Value>,
    pub next: VecDeque<Act>,
    /// Method and status of each request.
    pub log: Vec<(String, u16)>,
}

pub struct Stub {
    pub url: String,
    /// PEM.
    pub authority: PathBuf,
    /// What a client reads its token from.
    pub token: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Stub {
    /// With one namespace, `shop`; its files are in `dir`.
    pub async fn start(dir: &Path) -> Stub {
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
        let known =
            State { token: "first-token".into(), namespaces: vec!["shop".into()], ..State::default() };
        let state = Arc::new(Mutex::new(known));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let mut stream = BufReader::new(stream);
                    while let Some(request) = request(&mut stream).await {
                        let act = locked(&state).next.pop_front();
                        let (status, body) = match act {
                            Some(Act::Say(status)) => {
                                (status, json!({"kind": "Status", "message": "as told", "code": status}))
                            }
                            _ => answer(&mut locked(&state), &request),
                        };
                        locked(&state).log.push((request.method, status));
                        if matches!(act, Some(Act::LoseTheAnswer)) {
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
        Stub { url, authority, token, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Request {
    method: String,
    path: String,
    token: String,
    kind: String,
    body: Value,
}

/// None: the connection is over.
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
        kind: header("content-type"),
        body: serde_json::from_slice(&body).ok()?,
    })
}

/// What the API server does, and says.
fn answer(state: &mut State, request: &Request) -> (u16, Value) {
    let no = |code: u16, message: String| (code, json!({"kind": "Status", "message": message, "code": code}));
    if request.token != format!("Bearer {}", state.token) {
        return no(401, "Unauthorized".to_owned());
    }
    let rest = request.path.strip_prefix("/apis/events.k8s.io/v1/namespaces/").unwrap_or_default();
    let parts: Vec<&str> = rest.split('/').collect();
    let (namespace, name) = match parts.as_slice() {
        [namespace, "events"] => (*namespace, None),
        [namespace, "events", name] => (*namespace, Some(*name)),
        _ => return no(404, "404 page not found".to_owned()),
    };
    if !state.namespaces.iter().any(|known| known == namespace) {
        return no(404, format!("namespaces \"{namespace}\" not found"));
    }
    match (request.method.as_str(), name, request.kind.as_str()) {
        ("POST", None, "application/json") => {
            let wrong = validation::of_new(&request.body, namespace);
            if !wrong.is_empty() {
                return no(422, wrong.join(", "));
            }
            let name = request.body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let key = (namespace.to_owned(), name);
            if state.events.contains_key(&key) {
                return no(409, format!("events.events.k8s.io \"{}\" already exists", key.1));
            }
            state.events.insert(key, request.body.clone());
            (201, request.body.clone())
        }
        ("PATCH", Some(name), "application/merge-patch+json") => {
            let wrong = validation::of_patch(&request.body);
            if !wrong.is_empty() {
                return no(422, wrong.join(", "));
            }
            let Some(event) = state.events.get_mut(&(namespace.to_owned(), name.to_owned())) else {
                return no(404, format!("events.events.k8s.io \"{name}\" not found"));
            };
            event["series"] = request.body["series"].clone();
            (200, event.clone())
        }
        _ => no(405, format!("{} {}", request.method, request.kind)),
    }
}
