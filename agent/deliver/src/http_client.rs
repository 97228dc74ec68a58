//! Builds a destination's HTTP client, and describes its errors together with a remedy.

use std::error::Error as _;

use anyhow::{Context, ensure};
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use super::DestinationSettings;

pub const CLIENT_CERTIFICATE_REMEDY: &str = "the destination requires a client certificate that it trusts: set --export-identity to a PEM file with a certificate and its key";

/// Fails if the settings are invalid.
pub fn build(settings: &DestinationSettings) -> anyhow::Result<reqwest::Client> {
    let url = parse_url(&settings.url)?;
    // The first call installs the provider for the whole process; later calls fail, and there is only one provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("podopsy-agent/", env!("CARGO_PKG_VERSION")))
        .timeout(settings.timeout)
        // A destination must not redirect us, with our headers, to another one.
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(1);
    // Unlike with HTTP/1.1, all later calls would use a dead HTTP/2 connection, so keep-alive pings detect it. No pings
    // without a call in progress, because servers close connections that ping while idle.
    builder = match settings.method {
        None => builder.http1_only(),
        Some(_) => builder
            .http2_prior_knowledge()
            .http2_keep_alive_interval(settings.timeout / 3)
            .http2_keep_alive_timeout(settings.timeout / 3),
    };
    match &settings.certificate_authority {
        Some(path) => {
            let pem = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .with_context(|| format!("{} has no PEM certificates", path.display()))?;
            ensure!(!certificates.is_empty(), "{} has no PEM certificates", path.display());
            builder = builder.tls_certs_only(certificates);
        }
        // Do not load the system's authorities: an image built from scratch has none, and plain HTTP needs none.
        None if url.scheme() == "http" => builder = builder.tls_certs_only([]),
        None => {}
    }
    if let Some(path) = &settings.identity {
        let pem = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let identity = reqwest::Identity::from_pem(&pem)
            .with_context(|| format!("{} has no PEM certificate with its key", path.display()))?;
        builder = builder.identity(identity);
    }
    builder.build().context(
        "set up TLS; if the system has no certificate authorities, set --export-ca to a file with them",
    )
}

/// The error does not contain the URL if the URL may contain a password.
pub fn parse_url(text: &str) -> anyhow::Result<reqwest::Url> {
    // With a slash missing, a URL does not parse, and its password cannot be told from the rest.
    let shown = if text.contains('@') { "the value" } else { text };
    let Ok(url) = reqwest::Url::parse(text) else {
        anyhow::bail!("{shown:?} is no URL: use http://HOST:PORT or https://HOST:PORT")
    };
    ensure!(
        url.username().is_empty() && url.password().is_none(),
        "a URL is logged, so it must not have a user or a password: put them into a header, Authorization=@FILE"
    );
    ensure!(
        matches!(url.scheme(), "http" | "https") && url.host().is_some(),
        "{shown:?} must begin with http:// or https:// and a host"
    );
    Ok(url)
}

/// The error with all its causes, which its own `Display` omits, and a remedy if there is one.
pub fn describe_error(error: reqwest::Error) -> String {
    let remedy = remedy(&error);
    // Without the URL: the log line names the destination.
    let description = format!("{:#}", anyhow::Error::from(error.without_url()));
    match remedy {
        Some(remedy) => format!("{description}; {remedy}"),
        None => description,
    }
}

fn remedy(error: &reqwest::Error) -> Option<&'static str> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<TlsError>() {
            return tls_remedy(tls);
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(is_other_protocol) {
            return Some(
                "the server does not speak HTTP/1.1: a port for gRPC (4317) needs --otlp-protocol grpc",
            );
        }
        // `source` of an I/O error skips the error that it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// The server sent something that is not a response, or sent it before the request, as it does with HTTP/2's settings.
/// hyper has no predicate for the latter.
fn is_other_protocol(error: &hyper::Error) -> bool {
    error.is_parse() || error.to_string().contains("unexpected message")
}

fn tls_remedy(error: &TlsError) -> Option<&'static str> {
    match error {
        TlsError::InvalidCertificate(CertificateError::NotValidForName)
        | TlsError::InvalidCertificate(CertificateError::NotValidForNameContext { .. }) => {
            Some("the server's certificate is for another name: use that name in the URL")
        }
        TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Some("the server's certificate has expired: renew it, or correct this node's clock")
        }
        TlsError::InvalidCertificate(_) => {
            Some("set --export-ca to the PEM file of the authority that signed the server's certificate")
        }
        TlsError::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate,
        ) => Some(CLIENT_CERTIFICATE_REMEDY),
        TlsError::InvalidMessage(_) => Some("the server does not speak TLS: use http:// in the URL"),
        _ => None,
    }
}
