//! Destinations behind TLS, with authorities of the tests' own: who is believed, who we say that we are, and what is said
//! when it is somebody else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::grpc::Grpc;
use super::loki::Loki;
use super::trust::{client, said};
use super::worker::Answer;
use super::{Courier, Route, Settings};
use crate::testing::collector::{Collector, Say};
use crate::testing::lookup;

/// An authority, and what it has signed.
struct Authority {
    file: PathBuf,
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        let file = dir.join(format!("{name}.pem"));
        std::fs::write(&file, certificate.pem()).unwrap();
        Authority { file, certificate, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, name: &str, years: (i32, i32)) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }
}

const NOW: (i32, i32) = (2020, 4000);

/// What accepts whoever it believes.
fn acceptor(
    signed: (rcgen::Certificate, KeyPair),
    clients: Option<&Authority>,
    alpn: &[&[u8]],
) -> TlsAcceptor {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signed.1.serialize_der()));
    let builder = ServerConfig::builder();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.certificate.der().clone()).unwrap();
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
        }
    };
    let mut config = builder.with_single_cert(vec![signed.0.der().clone()], key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A destination that says 204 to whoever it believes; the URL's host is `localhost`.
async fn destination(signed: (rcgen::Certificate, KeyPair), clients: Option<&Authority>) -> String {
    // Both: a post stays what it was before there was gRPC.
    let acceptor = acceptor(signed, clients, &[b"h2", b"http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/push", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut asked = [0; 4096];
                if matches!(stream.read(&mut asked).await, Ok(length) if length > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    url
}

/// What a request comes to: a status, or what is said of it.
async fn post(settings: Settings) -> Result<u16, String> {
    let url = settings.url.clone();
    let settings = Settings { timeout: Duration::from_secs(60), ..settings };
    let answer = client(&settings).unwrap().post(url).body("x").send().await;
    answer.map(|answer| answer.status().as_u16()).map_err(said)
}

fn by(url: &str, authority: &Authority) -> Settings {
    Settings { certificate_authority: Some(authority.file.clone()), ..Settings::new(url) }
}

#[tokio::test]
async fn the_right_authority_is_believed_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "other"));
    let url = destination(ours.sign("localhost", NOW), None).await;
    assert_eq!(post(by(&url, &ours)).await, Ok(204));
    // A bundle has many.
    let bundle = dir.path().join("bundle.pem");
    let text = [&other.file, &ours.file].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    std::fs::write(&bundle, text).unwrap();
    let settings = Settings { certificate_authority: Some(bundle), ..Settings::new(&url) };
    assert_eq!(post(settings).await, Ok(204));

    let wrong = post(by(&url, &other)).await.unwrap_err();
    assert!(wrong.contains("UnknownIssuer") && wrong.contains("--export-ca names the PEM file"), "{wrong}");
    assert!(!wrong.contains("localhost"), "the URL may have a password: {wrong}");
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_with_what_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new(dir.path(), "ours");
    let elsewhere = destination(ours.sign("loki.example", NOW), None).await;
    let wrong = post(by(&elsewhere, &ours)).await.unwrap_err();
    assert!(wrong.contains("use that name in the URL"), "{wrong}");
    let expired = destination(ours.sign("localhost", (2001, 2002)), None).await;
    let wrong = post(by(&expired, &ours)).await.unwrap_err();
    assert!(wrong.contains("has to be renewed"), "{wrong}");
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", plain.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let wrong = post(by(&url, &ours)).await.unwrap_err();
    assert!(wrong.contains("is http:// meant?"), "{wrong}");
}

#[tokio::test]
async fn a_destination_that_asks_is_told_who_we_are() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "other"));
    let url = destination(ours.sign("localhost", NOW), Some(&ours)).await;
    let identity = |authority: &Authority| {
        let (certificate, key) = authority.sign("node-1", NOW);
        let file = dir.path().join("identity.pem");
        std::fs::write(&file, format!("{}{}", certificate.pem(), key.serialize_pem())).unwrap();
        Some(file)
    };
    let settings = Settings { identity: identity(&ours), ..by(&url, &ours) };
    assert_eq!(post(settings).await, Ok(204));
    for nobody in [None, identity(&other)] {
        let wrong = post(Settings { identity: nobody, ..by(&url, &ours) }).await.unwrap_err();
        assert!(wrong.contains("--export-identity names a PEM file"), "{wrong}");
    }
}

/// Secrets and authorities of pods are exchanged under them.
#[tokio::test]
async fn certificates_that_are_exchanged_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "other"));
    let url = destination(ours.sign("localhost", NOW), None).await;
    let file = dir.path().join("ca.pem");
    let exchange = |text: &str| {
        let new = dir.path().join("new.pem");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    exchange(&other.certificate.pem());
    let settings = Settings { certificate_authority: Some(file.clone()), ..Settings::new(&url) };
    let route = Arc::new(Route::new("test", settings).unwrap());
    let believed = async |route: &Route| {
        let answer = route.client.post(&url).body("x").send().await;
        answer.is_ok_and(|answer| answer.status() == 204)
    };
    assert!(!believed(&route).await);
    assert!(route.renewed("test").await.is_none(), "nothing has changed");
    exchange("half of one");
    assert!(route.renewed("test").await.is_none(), "it cannot be used");
    exchange(&ours.certificate.pem());
    let renewed = route.renewed("test").await.expect("it has changed");
    assert!(believed(&renewed).await);
    assert!(Arc::new(renewed).renewed("test").await.is_none());

    // Whoever waits for it delivers.
    exchange(&other.certificate.pem());
    let settings = Settings {
        certificate_authority: Some(file.clone()),
        linger: Duration::from_millis(20),
        ..Settings::new(&url)
    };
    let courier = Courier::start("test", settings, Loki).unwrap();
    courier.offer(lookup("a.example", 1));
    while courier.ledger().counts().retries == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    exchange(&ours.certificate.pem());
    let delivered = async {
        while courier.ledger().counts().delivered == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), delivered).await.expect("it goes by the old one");
}

/// A collector by gRPC behind TLS.
async fn collector(signed: (rcgen::Certificate, KeyPair), clients: Option<&Authority>) -> Collector {
    let acceptor = acceptor(signed, clients, &[b"h2"]);
    let (listener, collector) = Collector::bind("https://localhost", &[Say::Take]).await;
    let it = collector.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, it) = (acceptor.clone(), it.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    it.serve(stream).await;
                }
            });
        }
    });
    collector
}

/// What a call comes to.
async fn call(settings: Settings) -> Result<(), String> {
    let method = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    let settings = Settings { timeout: Duration::from_secs(60), method: Some(method), ..settings };
    let grpc = Grpc::new(client(&settings).unwrap(), &settings, method).unwrap();
    match grpc.call(HeaderMap::new(), Bytes::new()).await {
        Ok(_) => Ok(()),
        Err(Answer::Later(said, _)) => Err(said),
        Err(_) => unreachable!("what is wrong with a certificate may be mended"),
    }
}

#[tokio::test]
async fn a_collector_by_grpc_is_believed_by_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "other"));
    let open = collector(ours.sign("localhost", NOW), None).await;
    assert_eq!(call(by(&open.url, &ours)).await, Ok(()));
    let wrong = call(by(&open.url, &other)).await.unwrap_err();
    assert!(wrong.contains("--export-ca names the PEM file") && !wrong.contains("localhost"), "{wrong}");
    let asks = collector(ours.sign("localhost", NOW), Some(&ours)).await;
    let (certificate, key) = ours.sign("node-1", NOW);
    let file = dir.path().join("identity.pem");
    std::fs::write(&file, format!("{}{}", certificate.pem(), key.serialize_pem())).unwrap();
    assert_eq!(call(Settings { identity: Some(file), ..by(&asks.url, &ours) }).await, Ok(()));
    let wrong = call(by(&asks.url, &ours)).await.unwrap_err();
    assert!(wrong.contains("--export-identity names a PEM file"), "{wrong}");
    assert_eq!((open.logs().len(), asks.logs().len()), (1, 1));
}
