//! Destinations behind TLS, with the tests' own authorities: which servers are trusted, which client certificate is sent,
//! and how errors are described.

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
use super::http_client;
use super::loki::Loki;
use super::worker::SendOutcome;
use super::{Destination, DestinationClient, DestinationSettings};
use crate::testing::collector::{Collector, Reply};
use crate::testing::lookup;

/// A certificate authority that can sign certificates.
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

/// A TLS acceptor that trusts client certificates of `clients`.
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

/// A destination that answers 204 to clients that it trusts. The URL's host is `localhost`.
async fn destination(signed: (rcgen::Certificate, KeyPair), clients: Option<&Authority>) -> String {
    // The server offers both protocols; a POST must still use HTTP/1.1.
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

/// Sends a request. Returns its status, or the description of the error.
async fn post(settings: DestinationSettings) -> Result<u16, String> {
    let url = settings.url.clone();
    let settings = DestinationSettings { timeout: Duration::from_secs(60), ..settings };
    let answer = http_client::build(&settings).unwrap().post(url).body("x").send().await;
    answer.map(|answer| answer.status().as_u16()).map_err(http_client::describe_error)
}

fn settings_with_authority(url: &str, authority: &Authority) -> DestinationSettings {
    DestinationSettings {
        certificate_authority: Some(authority.file.clone()),
        ..DestinationSettings::new(url)
    }
}

#[tokio::test]
async fn only_the_configured_authority_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "other"));
    let url = destination(ours.sign("localhost", NOW), None).await;
    assert_eq!(post(settings_with_authority(&url, &ours)).await, Ok(204));
    // A bundle with several authorities.
    let bundle = dir.path().join("bundle.pem");
    let text = [&other.file, &ours.file].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    std::fs::write(&bundle, text).unwrap();
    let settings =
        DestinationSettings { certificate_authority: Some(bundle), ..DestinationSettings::new(&url) };
    assert_eq!(post(settings).await, Ok(204));

    let wrong = post(settings_with_authority(&url, &other)).await.unwrap_err();
    assert!(wrong.contains("UnknownIssuer") && wrong.contains("set --export-ca to the PEM file"), "{wrong}");
    assert!(!wrong.contains("localhost"), "the URL may have a password: {wrong}");
}

#[tokio::test]
async fn the_description_of_a_certificate_error_has_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new(dir.path(), "ours");
    let elsewhere = destination(ours.sign("loki.example", NOW), None).await;
    let wrong = post(settings_with_authority(&elsewhere, &ours)).await.unwrap_err();
    assert!(wrong.contains("use that name in the URL"), "{wrong}");
    let expired = destination(ours.sign("localhost", (2001, 2002)), None).await;
    let wrong = post(settings_with_authority(&expired, &ours)).await.unwrap_err();
    assert!(wrong.contains("has expired: renew it"), "{wrong}");
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", plain.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let wrong = post(settings_with_authority(&url, &ours)).await.unwrap_err();
    assert!(wrong.contains("use http:// in the URL"), "{wrong}");
}

#[tokio::test]
async fn a_destination_that_asks_gets_our_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "other"));
    let url = destination(ours.sign("localhost", NOW), Some(&ours)).await;
    let identity = |authority: &Authority| {
        let (certificate, key) = authority.sign("node-1", NOW);
        let file = dir.path().join("identity.pem");
        std::fs::write(&file, format!("{}{}", certificate.pem(), key.serialize_pem())).unwrap();
        Some(file)
    };
    let settings = DestinationSettings { identity: identity(&ours), ..settings_with_authority(&url, &ours) };
    assert_eq!(post(settings).await, Ok(204));
    for untrusted in [None, identity(&other)] {
        let wrong = post(DestinationSettings { identity: untrusted, ..settings_with_authority(&url, &ours) })
            .await
            .unwrap_err();
        assert!(wrong.contains("set --export-identity to a PEM file"), "{wrong}");
    }
}

/// Kubernetes replaces the secrets and authorities of pods while they run.
#[tokio::test]
async fn replaced_certificates_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "other"));
    let url = destination(ours.sign("localhost", NOW), None).await;
    let file = dir.path().join("ca.pem");
    let replace_file = |text: &str| {
        let new = dir.path().join("new.pem");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    replace_file(&other.certificate.pem());
    let settings =
        DestinationSettings { certificate_authority: Some(file.clone()), ..DestinationSettings::new(&url) };
    let client = Arc::new(DestinationClient::new("test", settings).unwrap());
    let is_trusted = async |client: &DestinationClient| {
        let answer = client.http.post(&url).body("x").send().await;
        answer.is_ok_and(|answer| answer.status() == 204)
    };
    assert!(!is_trusted(&client).await);
    assert!(client.renewed("test").await.is_none(), "nothing has changed");
    replace_file("half of one");
    assert!(client.renewed("test").await.is_none(), "the new certificate is unusable");
    replace_file(&ours.certificate.pem());
    let renewed = client.renewed("test").await.expect("it has changed");
    assert!(is_trusted(&renewed).await);
    assert!(Arc::new(renewed).renewed("test").await.is_none());

    // A destination that waits for the new certificate delivers.
    replace_file(&other.certificate.pem());
    let settings = DestinationSettings {
        certificate_authority: Some(file.clone()),
        linger: Duration::from_millis(20),
        ..DestinationSettings::new(&url)
    };
    let destination = Destination::start("test", settings, Loki).unwrap();
    destination.offer(lookup("a.example", 1));
    while destination.stats().counts().retries == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    replace_file(&ours.certificate.pem());
    let delivered = async {
        while destination.stats().counts().delivered == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), delivered)
        .await
        .expect("delivery still uses the old certificate");
}

/// A gRPC collector behind TLS.
async fn collector(signed: (rcgen::Certificate, KeyPair), clients: Option<&Authority>) -> Collector {
    let acceptor = acceptor(signed, clients, &[b"h2"]);
    let (listener, collector) = Collector::bind("https://localhost", &[Reply::Accept]).await;
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

/// Makes one call. The error is its description.
async fn call(settings: DestinationSettings) -> Result<(), String> {
    let method = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    let settings = DestinationSettings { timeout: Duration::from_secs(60), method: Some(method), ..settings };
    let grpc = Grpc::new(http_client::build(&settings).unwrap(), &settings, method).unwrap();
    match grpc.call(HeaderMap::new(), Bytes::new()).await {
        Ok(_) => Ok(()),
        Err(SendOutcome::Retry(reason, _)) => Err(reason),
        Err(_) => unreachable!("a certificate error is retryable"),
    }
}

#[tokio::test]
async fn grpc_uses_the_same_authority_and_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "other"));
    let open = collector(ours.sign("localhost", NOW), None).await;
    assert_eq!(call(settings_with_authority(&open.url, &ours)).await, Ok(()));
    let wrong = call(settings_with_authority(&open.url, &other)).await.unwrap_err();
    assert!(wrong.contains("set --export-ca to the PEM file") && !wrong.contains("localhost"), "{wrong}");
    let asks = collector(ours.sign("localhost", NOW), Some(&ours)).await;
    let (certificate, key) = ours.sign("node-1", NOW);
    let file = dir.path().join("identity.pem");
    std::fs::write(&file, format!("{}{}", certificate.pem(), key.serialize_pem())).unwrap();
    assert_eq!(
        call(DestinationSettings { identity: Some(file), ..settings_with_authority(&asks.url, &ours) }).await,
        Ok(())
    );
    let wrong = call(settings_with_authority(&asks.url, &ours)).await.unwrap_err();
    assert!(wrong.contains("set --export-identity to a PEM file"), "{wrong}");
    assert_eq!((open.logs().len(), asks.logs().len()), (1, 1));
}
