//! Where events, metrics and profiles are to go, as flags have it; `agent/src/config` has it from the environment and the
//! file, too.
//!
//! Must not know: how anything is written or sent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::endpoint::{LOGS, METRICS, OtlpProtocol, PROFILES, at};
use super::kubernetes::KubernetesArgs;
use podopsy_deliver::{Header, Settings};
use podopsy_model::{bytes, duration};

#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    next_help_heading = "Exports: every event, once it is stored, and profiles; a destination that is down costs nothing else (SIGHUP changes where they go, with what headers and certificates; which there are takes a restart)"
)]
pub struct ExportArgs {
    /// Push events to Grafana Loki (2.9 or newer): http://HOST:3100; a path other than /loki/api/v1/push stands in the URL
    #[arg(long, value_name = "URL")]
    loki_url: Option<String>,
    /// A header for Loki, NAME=VALUE; NAME=@FILE for a password, read again for each request. Commas part headers
    #[arg(long = "loki-header", value_name = "HEADER", hide_env_values = true)]
    loki_headers: Vec<String>,
    /// Send events as OpenTelemetry logs (OTLP): http://HOST:4318, and /v1/logs is added; for gRPC http://HOST:4317
    #[arg(long, value_name = "URL")]
    otlp_url: Option<String>,
    /// What --otlp-url speaks, by OpenTelemetry's names
    #[arg(long, value_enum, value_name = "PROTOCOL", default_value = "http/protobuf")]
    otlp_protocol: OtlpProtocol,
    /// A header for OTLP (metadata, for gRPC), as --loki-header
    #[arg(long = "otlp-header", value_name = "HEADER", hide_env_values = true)]
    otlp_headers: Vec<String>,
    /// Send what /metrics has to --otlp-url, too, each so often (60s), by HTTP to /v1/metrics. For who cannot scrape
    #[arg(long, value_name = "TIME", value_parser = duration::parse_interval)]
    otlp_metrics_every: Option<Duration>,
    /// Send that elsewhere, each minute unless --otlp-metrics-every says otherwise, by HTTP to this very address: Prometheus'
    /// http://HOST:9090/api/v1/otlp/v1/metrics, Mimir's http://HOST:8080/otlp/v1/metrics
    #[arg(long, value_name = "URL")]
    otlp_metrics_url: Option<String>,
    /// A header for --otlp-metrics-url, which those of --otlp-header do not go to
    #[arg(long = "otlp-metrics-header", value_name = "HEADER", hide_env_values = true)]
    otlp_metrics_headers: Vec<String>,
    /// Send the profiles of --profile-hz to --otlp-url, too, by HTTP to /v1development/profiles. In OpenTelemetry this signal
    /// is still in development: the receiver must speak opentelemetry-proto 1.10 (a Collector needs its feature gate
    /// service.profilesSupport)
    #[arg(long)]
    otlp_profiles: bool,
    /// Push the profiles of --profile-hz to Grafana Pyroscope: http://HOST:4040; a path other than
    /// /push.v1.PusherService/Push stands in the URL
    #[arg(long, value_name = "URL")]
    pyroscope_url: Option<String>,
    /// A header for Pyroscope, as --loki-header
    #[arg(long = "pyroscope-header", value_name = "HEADER", hide_env_values = true)]
    pyroscope_headers: Vec<String>,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    /// The certificate authorities (PEM) that https:// destinations are believed by; the system's otherwise. The image has
    /// none
    #[arg(long, value_name = "FILE")]
    export_ca: Option<PathBuf>,
    /// Who we are, for destinations that ask: PEM, the certificate and its key in one file; read again when it has changed, as
    /// is --export-ca
    #[arg(long, value_name = "FILE")]
    export_identity: Option<PathBuf>,
    /// What may wait for each destination, in memory; the oldest leave first, and are counted
    #[arg(long, value_name = "BYTES", default_value = "8MiB", value_parser = bytes::parse_queue)]
    export_queue_bytes: u64,
    /// How long a batch is tried again before it is given up
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse_patience)]
    export_patience: Duration,
}

/// Of pprof, which is several times as much when it is sent; collectors take 4 MiB by gRPC unless told otherwise.
const PROFILES_BATCH: usize = 256 << 10;
/// How often metrics go to an address of their own, unless that is said.
const METRICS_EVERY: Duration = Duration::from_secs(60);

/// How each destination that is wanted is reached, by its name in /metrics.
pub type Destinations = BTreeMap<&'static str, Settings>;

/// The destinations that a setting may change while the agent runs (none: all of them); None: it takes a restart.
pub fn changes(setting: &str) -> Option<&'static [&'static str]> {
    let destinations: &[&str] = match setting {
        "loki-url" | "loki-header" => &["loki"],
        "otlp-url" | "otlp-header" | "otlp-protocol" => &["otlp_logs", "otlp_metrics", "otlp_profiles"],
        "otlp-metrics-url" | "otlp-metrics-header" => &["otlp_metrics"],
        "pyroscope-url" | "pyroscope-header" => &["pyroscope"],
        "kubernetes-api" | "kubernetes-token" | "kubernetes-ca" => &["kubernetes_events"],
        "export-ca" | "export-identity" | "export-patience" => &[],
        _ => return None,
    };
    Some(destinations)
}

impl ExportArgs {
    /// An error says which setting cannot be.
    pub(super) fn destinations(&self) -> anyhow::Result<Destinations> {
        let mut to = Destinations::new();
        if let Some(loki) = self.settings("loki", self.loki_url.as_deref(), &self.loki_headers)? {
            to.insert("loki", at(loki, "/loki/api/v1/push", false).context("loki-url")?);
        }
        let otlp = self.settings("otlp", self.otlp_url.as_deref(), &self.otlp_headers)?;
        if let Some(metrics) = self.metrics(otlp.as_ref())? {
            to.insert("otlp_metrics", metrics);
        }
        let no_url = "otlp-profiles is set, and otlp-url is not: set both, or neither";
        ensure!(otlp.is_some() || !self.otlp_profiles, no_url);
        if let Some(otlp) = otlp {
            if let Some(doubt) = self.otlp_protocol.doubt(&otlp.url) {
                tracing::warn!("{doubt}");
            }
            if self.otlp_profiles {
                let profiles = self.otlp_protocol.at(&otlp, &PROFILES)?;
                to.insert("otlp_profiles", Settings { batch_bytes: PROFILES_BATCH, ..profiles });
            }
            to.insert("otlp_logs", self.otlp_protocol.at(&otlp, &LOGS)?);
        }
        let pyroscope = self.settings("pyroscope", self.pyroscope_url.as_deref(), &self.pyroscope_headers)?;
        if let Some(pyroscope) = pyroscope {
            let pyroscope = at(pyroscope, "/push.v1.PusherService/Push", false).context("pyroscope-url")?;
            to.insert("pyroscope", pyroscope);
        }
        if let Some(kubernetes) = self.kubernetes.settings(self.common(""))? {
            to.insert("kubernetes_events", kubernetes);
        }
        Ok(to)
    }

    /// An address of their own, or that of logs (`otlp`); None: nobody wants them.
    fn metrics(&self, otlp: Option<&Settings>) -> anyhow::Result<Option<Settings>> {
        let url = self.otlp_metrics_url.as_deref();
        let own = self.settings("otlp-metrics", url, &self.otlp_metrics_headers)?;
        Ok(Some(match (own, self.otlp_metrics_every, otlp) {
            (None, None, _) => return Ok(None),
            (Some(own), _, _) => METRICS.alone(own).context("otlp-metrics-url")?,
            (None, Some(_), Some(otlp)) => self.otlp_protocol.at(otlp, &METRICS)?,
            (None, Some(_), None) => {
                bail!("otlp-metrics-every is set, and neither otlp-url nor otlp-metrics-url is: where to?")
            }
        }))
    }

    pub(super) fn metrics_every(&self) -> Duration {
        self.otlp_metrics_every.unwrap_or(METRICS_EVERY)
    }

    /// Some destination wants profiles.
    pub fn takes_profiles(&self) -> bool {
        self.otlp_profiles || self.pyroscope_url.as_ref().is_some_and(|url| !url.is_empty())
    }

    /// None: no such destination is wanted.
    fn settings(
        &self,
        name: &str,
        url: Option<&str>,
        headers: &[String],
    ) -> anyhow::Result<Option<Settings>> {
        // An empty variable is how a pod's manifest says no.
        let Some(url) = url.filter(|url| !url.is_empty()) else {
            ensure!(headers.is_empty(), "{name}-header is set, and {name}-url is not: set both, or neither");
            return Ok(None);
        };
        let headers: Vec<Header> = headers
            .iter()
            .map(|header| Header::parse(header).with_context(|| format!("{name}-header")))
            .collect::<anyhow::Result<_>>()?;
        if url.starts_with("http://") && headers.iter().any(Header::is_secret) {
            tracing::warn!("{name}-header goes over the network in the clear: {name}-url is http://");
        }
        Ok(Some(Settings { headers, ..self.common(url) }))
    }

    /// What holds for each destination.
    fn common(&self, url: &str) -> Settings {
        Settings {
            certificate_authority: self.export_ca.clone(),
            identity: self.export_identity.clone(),
            patience: self.export_patience,
            queue_bytes: usize::try_from(self.export_queue_bytes).unwrap_or(usize::MAX),
            ..Settings::new(url)
        }
    }
}
