//! Where on a destination something goes, by whatever protocol.
//!
//! Must not know: what goes there.

use anyhow::{Context, ensure};

use podopsy_deliver::Settings;

/// As OTEL_EXPORTER_OTLP_PROTOCOL has them.
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

/// One kind of what OTLP carries.
pub struct Signal {
    path: &'static str,
    method: &'static str,
}

pub const LOGS: Signal =
    Signal { path: "/v1/logs", method: "/opentelemetry.proto.collector.logs.v1.LogsService/Export" };
pub const METRICS: Signal =
    Signal { path: "/v1/metrics", method: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" };

pub const PROFILES: Signal = Signal {
    path: "/v1development/profiles",
    method: "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
};

impl Signal {
    /// At an address of its own, which is the whole of it: what takes one signal has it wherever it likes.
    pub fn alone(&self, settings: Settings) -> anyhow::Result<Settings> {
        at(settings, self.path, false)
    }
}

impl OtlpProtocol {
    /// Where a signal goes.
    pub fn at(self, settings: &Settings, signal: &Signal) -> anyhow::Result<Settings> {
        let settings = settings.clone();
        let settings = match self {
            OtlpProtocol::Http => at(settings, signal.path, true),
            OtlpProtocol::Grpc => Ok(Settings { method: Some(signal.method), ..settings }),
        };
        settings.context("otlp-url")
    }

    /// What would only show as a destination that never answers well.
    pub fn doubt(self, url: &str) -> Option<&'static str> {
        match (self, podopsy_deliver::url(url).ok()?.port()?) {
            (OtlpProtocol::Http, 4317) => {
                Some("otlp-url has port 4317, gRPC's by convention: is otlp-protocol grpc meant?")
            }
            (OtlpProtocol::Grpc, 4318) => {
                Some("otlp-url has port 4318, HTTP's by convention: is otlp-protocol http/protobuf meant?")
            }
            _ => None,
        }
    }
}

/// The address of one endpoint: `path` where the URL has none, or below the URL's own if that is a base.
pub fn at(settings: Settings, path: &str, base: bool) -> anyhow::Result<Settings> {
    let mut url = podopsy_deliver::url(&settings.url)?;
    ensure!(url.fragment().is_none(), "a URL with a # names a part of a page, not an address to send to");
    let own = url.path().trim_end_matches('/');
    // Whoever set the address of logs in full means metrics beside them.
    let own = if base { own.strip_suffix("/v1/logs").unwrap_or(own) } else { own }.to_owned();
    match own.as_str() {
        "" => url.set_path(path),
        own if base => url.set_path(&format!("{own}{path}")),
        own => url.set_path(own),
    }
    Ok(Settings { url: url.into(), ..settings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_where_its_users_expect_it() {
        let of = |url: &str, path, base| at(Settings::new(url), path, base).unwrap().url;
        for (url, loki) in [
            ("http://loki:3100", "http://loki:3100/loki/api/v1/push"),
            ("http://loki:3100/", "http://loki:3100/loki/api/v1/push"),
            ("https://gw/a/push?tenant=b", "https://gw/a/push?tenant=b"),
        ] {
            assert_eq!(of(url, "/loki/api/v1/push", false), loki);
        }
        for (url, otlp) in [
            ("http://c:4318", "http://c:4318/v1/logs"),
            ("https://c/otlp/", "https://c/otlp/v1/logs"),
            ("https://c/otlp/v1/logs", "https://c/otlp/v1/logs"),
        ] {
            assert_eq!(of(url, "/v1/logs", true), otlp);
        }
        assert_eq!(of("https://c/otlp/v1/logs", "/v1/metrics", true), "https://c/otlp/v1/metrics");
        let profiles = of("http://c:4318", PROFILES.path, true);
        assert_eq!(profiles, "http://c:4318/v1development/profiles");
        for (url, alone) in [
            ("http://p:9090/api/v1/otlp/v1/metrics", "http://p:9090/api/v1/otlp/v1/metrics"),
            ("http://v:8428/opentelemetry/v1/metrics/", "http://v:8428/opentelemetry/v1/metrics"),
            ("http://c:4318", "http://c:4318/v1/metrics"),
        ] {
            assert_eq!(METRICS.alone(Settings::new(url)).unwrap().url, alone);
        }
        assert!(at(Settings::new("http://c/#x"), "/v1/logs", true).is_err());
    }

    #[test]
    fn a_port_of_the_other_protocol_is_doubted() {
        let (http, grpc) = (OtlpProtocol::Http, OtlpProtocol::Grpc);
        assert!(http.doubt("http://c:4317").is_some() && grpc.doubt("http://c:4318").is_some());
        assert!(http.doubt("http://c:4318").is_none() && grpc.doubt("http://c:4317").is_none());
        assert!(http.doubt("https://c").is_none() && grpc.doubt("https://c").is_none());
    }
}
