//! The URL and the protocol of each destination.
//!
//! This module must not depend on what is sent.

use anyhow::{Context, ensure};

use podopsy_deliver::{DestinationSettings, parse_url};

/// The values of OTEL_EXPORTER_OTLP_PROTOCOL that podopsy supports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OtlpProtocol {
    /// Protobuf over HTTP/1.1, port 4318
    #[default]
    #[value(name = "http/protobuf")]
    Http,
    /// gRPC over HTTP/2, port 4317
    #[value(name = "grpc")]
    Grpc,
}

/// One of OTLP's signals: logs, metrics or profiles.
pub struct OtlpSignal {
    path: &'static str,
    method: &'static str,
}

pub const LOGS: OtlpSignal =
    OtlpSignal { path: "/v1/logs", method: "/opentelemetry.proto.collector.logs.v1.LogsService/Export" };
pub const METRICS: OtlpSignal = OtlpSignal {
    path: "/v1/metrics",
    method: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
};
pub const PROFILES: OtlpSignal = OtlpSignal {
    path: "/v1development/profiles",
    method: "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
};

impl OtlpSignal {
    /// Settings with a URL for this signal alone. Its path is used unchanged, because a receiver of one signal can have any
    /// path; the signal's path is only the default.
    pub fn own_url(&self, settings: DestinationSettings) -> anyhow::Result<DestinationSettings> {
        with_default_path(settings, self.path)
    }
}

impl OtlpProtocol {
    /// The settings for one signal at the common OTLP URL.
    pub fn settings(
        self,
        settings: &DestinationSettings,
        signal: &OtlpSignal,
    ) -> anyhow::Result<DestinationSettings> {
        let settings = settings.clone();
        let settings = match self {
            OtlpProtocol::Http => with_appended_path(settings, signal.path),
            OtlpProtocol::Grpc => Ok(DestinationSettings { method: Some(signal.method), ..settings }),
        };
        settings.context("otlp-url")
    }

    /// A warning if the URL has the usual port of the other protocol, which would otherwise only show as failing requests.
    pub fn port_warning(self, url: &str) -> Option<&'static str> {
        match (self, parse_url(url).ok()?.port()?) {
            (OtlpProtocol::Http, 4317) => {
                Some("otlp-url has port 4317, which is gRPC's by convention: is otlp-protocol grpc meant?")
            }
            (OtlpProtocol::Grpc, 4318) => Some(
                "otlp-url has port 4318, which is HTTP's by convention: is otlp-protocol http/protobuf meant?",
            ),
            _ => None,
        }
    }
}

/// Uses the URL's own path, or `default_path` if it has none.
pub fn with_default_path(
    settings: DestinationSettings,
    default_path: &str,
) -> anyhow::Result<DestinationSettings> {
    with_path(settings, |own| if own.is_empty() { default_path.to_owned() } else { own.to_owned() })
}

/// Appends `path` to the URL's own path.
fn with_appended_path(settings: DestinationSettings, path: &str) -> anyhow::Result<DestinationSettings> {
    // Some users set the full URL of logs. The other signals are beside it.
    with_path(settings, |own| format!("{}{path}", own.strip_suffix("/v1/logs").unwrap_or(own)))
}

/// Replaces the URL's path by `path` of it. A slash at its end is ignored.
fn with_path(
    settings: DestinationSettings,
    path: impl Fn(&str) -> String,
) -> anyhow::Result<DestinationSettings> {
    let mut url = parse_url(&settings.url)?;
    ensure!(url.fragment().is_none(), "a URL of a destination must not have a fragment (#)");
    let path = path(url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(DestinationSettings { url: url.into(), ..settings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destinations_url_has_the_expected_path() {
        let default = |url: &str, path| with_default_path(DestinationSettings::new(url), path).unwrap().url;
        let appended = |url: &str, path| with_appended_path(DestinationSettings::new(url), path).unwrap().url;
        for (url, loki) in [
            ("http://loki:3100", "http://loki:3100/loki/api/v1/push"),
            ("http://loki:3100/", "http://loki:3100/loki/api/v1/push"),
            ("https://gw/a/push?tenant=b", "https://gw/a/push?tenant=b"),
        ] {
            assert_eq!(default(url, "/loki/api/v1/push"), loki);
        }
        for (url, otlp) in [
            ("http://c:4318", "http://c:4318/v1/logs"),
            ("https://c/otlp/", "https://c/otlp/v1/logs"),
            ("https://c/otlp/v1/logs", "https://c/otlp/v1/logs"),
        ] {
            assert_eq!(appended(url, "/v1/logs"), otlp);
        }
        assert_eq!(appended("https://c/otlp/v1/logs", "/v1/metrics"), "https://c/otlp/v1/metrics");
        let profiles = appended("http://c:4318", PROFILES.path);
        assert_eq!(profiles, "http://c:4318/v1development/profiles");
        for (url, own) in [
            ("http://p:9090/api/v1/otlp/v1/metrics", "http://p:9090/api/v1/otlp/v1/metrics"),
            ("http://v:8428/opentelemetry/v1/metrics/", "http://v:8428/opentelemetry/v1/metrics"),
            ("http://c:4318", "http://c:4318/v1/metrics"),
        ] {
            assert_eq!(METRICS.own_url(DestinationSettings::new(url)).unwrap().url, own);
        }
        assert!(with_appended_path(DestinationSettings::new("http://c/#x"), "/v1/logs").is_err());
    }

    #[test]
    fn the_usual_port_of_the_other_protocol_causes_a_warning() {
        let (http, grpc) = (OtlpProtocol::Http, OtlpProtocol::Grpc);
        assert!(http.port_warning("http://c:4317").is_some() && grpc.port_warning("http://c:4318").is_some());
        assert!(http.port_warning("http://c:4318").is_none() && grpc.port_warning("http://c:4317").is_none());
        assert!(http.port_warning("https://c").is_none() && grpc.port_warning("https://c").is_none());
    }
}
