//! Who is on the other end of a connection, and what is said when it is not who it should be.

use std::error::Error as _;

use anyhow::{Context, ensure};
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use super::Settings;

pub const WHO_ARE_WE: &str =
    "it wants to know who we are: --export-identity names a PEM file with a certificate and its key";

/// A client of a destination; an error says what of the settings cannot be.
pub fn client(settings: &Settings) -> anyhow::Result<reqwest::Client> {
    let url = url(&settings.url)?;
    // The first to come chooses for the process, and there is one to choose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("podopsy-agent/", env!("CARGO_PKG_VERSION")))
        .timeout(settings.timeout)
        // A destination does not choose another one for us.
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(1);
    // A dead connection takes all calls that follow with it, unlike a posted request's: it has to be noticed. Nothing is
    // sent where no call is under way, because servers hang up on who does.
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
            let all = reqwest::Certificate::from_pem_bundle(&pem)
                .with_context(|| format!("{} has no PEM certificates", path.display()))?;
            ensure!(!all.is_empty(), "{} has no PEM certificates", path.display());
            builder = builder.tls_certs_only(all);
        }
        // Nobody's: an image from scratch has none, and that is no error where none is asked for.
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
        "set up TLS; where the system has no certificate authorities, --export-ca names a file of them",
    )
}

/// An error does not have what may be a password.
pub fn url(text: &str) -> anyhow::Result<reqwest::Url> {
    // Whoever forgot a slash may have written a password.
    let shown = if text.contains('@') { "what is set" } else { text };
    let Ok(url) = reqwest::Url::parse(text) else {
        anyhow::bail!("{shown:?} is no URL: it is http://HOST:PORT or https://HOST:PORT")
    };
    ensure!(
        url.username().is_empty() && url.password().is_none(),
        "a URL is shown in logs: a user and a password go into a header, Authorization=@FILE"
    );
    ensure!(
        matches!(url.scheme(), "http" | "https") && url.host().is_some(),
        "{shown:?} must begin with http:// or https:// and a host"
    );
    Ok(url)
}

/// Its own words lack the reason; what would mend it is ours to say.
pub fn said(error: reqwest::Error) -> String {
    let hint = hint(&error);
    // Without the URL: the log says which destination it is.
    let said = format!("{:#}", anyhow::Error::from(error.without_url()));
    match hint {
        Some(hint) => format!("{said}; {hint}"),
        None => said,
    }
}

fn hint(error: &reqwest::Error) -> Option<&'static str> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<TlsError>() {
            return of_tls(tls);
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(other_protocol) {
            return Some(
                "it does not speak HTTP/1.1 there: a port for gRPC (4317) wants --otlp-protocol grpc",
            );
        }
        // An I/O error is not the source of itself: what it holds is passed over by `source`.
        let held = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        next = match held {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

/// What came was no answer, or came before there was a question, as HTTP/2's settings do; hyper has no word for the latter.
fn other_protocol(error: &hyper::Error) -> bool {
    error.is_parse() || error.to_string().contains("unexpected message")
}

fn of_tls(error: &TlsError) -> Option<&'static str> {
    match error {
        TlsError::InvalidCertificate(CertificateError::NotValidForName)
        | TlsError::InvalidCertificate(CertificateError::NotValidForNameContext { .. }) => {
            Some("its certificate is for another name: use that name in the URL")
        }
        TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Some("its certificate has to be renewed, or this node's clock is wrong")
        }
        TlsError::InvalidCertificate(_) => {
            Some("--export-ca names the PEM file of the authority that signed its certificate")
        }
        TlsError::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate,
        ) => Some(WHO_ARE_WE),
        TlsError::InvalidMessage(_) => Some("it does not speak TLS there: is http:// meant?"),
        _ => None,
    }
}
