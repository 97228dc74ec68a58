//! The flags of all exports, and the settings of each destination that follow from them. `agent/src/config` also reads them
//! from the environment and from the file.
//!
//! This module must not depend on how anything is encoded or sent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::destination_url::{LOGS, METRICS, OtlpProtocol, PROFILES, with_default_path};
use super::kubernetes::KubernetesArgs;
use podopsy_deliver::{DestinationSettings, ExportHeader};
use podopsy_model::{bytes, duration};

#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    next_help_heading = "Exports of events, metrics and profiles; a destination that is down affects nothing else (SIGHUP applies new URLs, headers and certificates; adding or removing a destination takes a restart)"
)]
pub struct ExportArgs {
    /// Push events to Grafana Loki (2.9 or newer): http://HOST:3100. Add the path if it is not /loki/api/v1/push
    #[arg(long, value_name = "URL")]
    loki_url: Option<String>,
    /// A header for Loki, NAME=VALUE, or NAME=@FILE for a password, read for each request. Separate headers by commas
    #[arg(long = "loki-header", value_name = "HEADER", hide_env_values = true)]
    loki_headers: Vec<String>,
    /// Send events as OpenTelemetry logs (OTLP): http://HOST:4318, to which /v1/logs is added; for gRPC http://HOST:4317
    #[arg(long, value_name = "URL")]
    otlp_url: Option<String>,
    /// The protocol of --otlp-url, by OpenTelemetry's names
    #[arg(long, value_enum, value_name = "PROTOCOL", default_value = "http/protobuf")]
    otlp_protocol: OtlpProtocol,
    /// A header for OTLP (metadata for gRPC), like --loki-header
    #[arg(long = "otlp-header", value_name = "HEADER", hide_env_values = true)]
    otlp_headers: Vec<String>,
    /// Also send the metrics of /metrics to --otlp-url at this interval (60s), by HTTP to /v1/metrics. For users who cannot
    /// scrape
    #[arg(long, value_name = "TIME", value_parser = duration::parse_interval)]
    otlp_metrics_every: Option<Duration>,
    /// Send the metrics to this URL instead, by HTTP, at --otlp-metrics-every or once a minute: Prometheus'
    /// http://HOST:9090/api/v1/otlp/v1/metrics, Mimir's http://HOST:8080/otlp/v1/metrics
    #[arg(long, value_name = "URL")]
    otlp_metrics_url: Option<String>,
    /// A header for --otlp-metrics-url, which does not get those of --otlp-header
    #[arg(long = "otlp-metrics-header", value_name = "HEADER", hide_env_values = true)]
    otlp_metrics_headers: Vec<String>,
    /// Also send the profiles of --profile-hz to --otlp-url, by HTTP to /v1development/profiles. OpenTelemetry still
    /// develops this signal: the receiver must support opentelemetry-proto 1.10 (a Collector needs the feature gate
    /// service.profilesSupport)
    #[arg(long)]
    otlp_profiles: bool,
    /// Push the profiles of --profile-hz to Grafana Pyroscope: http://HOST:4040. Add the path if it is not
    /// /push.v1.PusherService/Push
    #[arg(long, value_name = "URL")]
    pyroscope_url: Option<String>,
    /// A header for Pyroscope, like --loki-header
    #[arg(long = "pyroscope-header", value_name = "HEADER", hide_env_values = true)]
    pyroscope_headers: Vec<String>,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    /// The certificate authorities (PEM) for https:// destinations. The default are the system's, and the image has none
    #[arg(long, value_name = "FILE")]
    export_ca: Option<PathBuf>,
    /// The client certificate and its key (PEM, in one file) for destinations that ask for one. A changed file is read
    /// again, like that of --export-ca
    #[arg(long, value_name = "FILE")]
    export_identity: Option<PathBuf>,
    /// The size of the queue in memory for each destination. If it is full, the oldest items are dropped and counted
    #[arg(long, value_name = "BYTES", default_value = "8MiB", value_parser = bytes::parse_queue)]
    export_queue_bytes: u64,
    /// How long a batch is retried before it is dropped
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse_patience)]
    export_patience: Duration,
}

/// Bytes of pprof, which are several times as many when sent as OTLP. By default, collectors accept 4 MiB by gRPC.
const PROFILES_BATCH_BYTES: usize = 256 << 10;
/// The interval for `--otlp-metrics-url` without `--otlp-metrics-every`.
const DEFAULT_METRICS_EVERY: Duration = Duration::from_secs(60);

/// The settings of all configured destinations, by the destination's name in `/metrics`.
pub type SettingsByDestination = BTreeMap<&'static str, DestinationSettings>;

/// The destinations for which a setting can change while the agent runs; an empty list means all. None: it takes a restart.
pub fn destinations_changed_by(setting: &str) -> Option<&'static [&'static str]> {
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
    /// Fails if a setting is invalid.
    pub(super) fn settings_by_destination(&self) -> anyhow::Result<SettingsByDestination> {
        let mut all = SettingsByDestination::new();
        if let Some(loki) = self.settings("loki", self.loki_url.as_deref(), &self.loki_headers)? {
            all.insert("loki", with_default_path(loki, "/loki/api/v1/push").context("loki-url")?);
        }
        let otlp = self.settings("otlp", self.otlp_url.as_deref(), &self.otlp_headers)?;
        if let Some(metrics) = self.metrics(otlp.as_ref())? {
            all.insert("otlp_metrics", metrics);
        }
        ensure!(
            otlp.is_some() || !self.otlp_profiles,
            "otlp-profiles is set, and otlp-url is not: set both, or neither"
        );
        if let Some(otlp) = otlp {
            if let Some(warning) = self.otlp_protocol.port_warning(&otlp.url) {
                tracing::warn!("{warning}");
            }
            if self.otlp_profiles {
                let profiles = self.otlp_protocol.settings(&otlp, &PROFILES)?;
                all.insert(
                    "otlp_profiles",
                    DestinationSettings { batch_bytes: PROFILES_BATCH_BYTES, ..profiles },
                );
            }
            all.insert("otlp_logs", self.otlp_protocol.settings(&otlp, &LOGS)?);
        }
        let pyroscope = self.settings("pyroscope", self.pyroscope_url.as_deref(), &self.pyroscope_headers)?;
        if let Some(pyroscope) = pyroscope {
            let pyroscope =
                with_default_path(pyroscope, "/push.v1.PusherService/Push").context("pyroscope-url")?;
            all.insert("pyroscope", pyroscope);
        }
        if let Some(kubernetes) = self.kubernetes.settings(self.common(""))? {
            all.insert("kubernetes_events", kubernetes);
        }
        Ok(all)
    }

    /// The settings of the metrics' destination: their own URL, or that of `otlp`. None: metrics are not sent.
    fn metrics(&self, otlp: Option<&DestinationSettings>) -> anyhow::Result<Option<DestinationSettings>> {
        let url = self.otlp_metrics_url.as_deref();
        let own = self.settings("otlp-metrics", url, &self.otlp_metrics_headers)?;
        Ok(Some(match (own, self.otlp_metrics_every, otlp) {
            (None, None, _) => return Ok(None),
            (Some(own), _, _) => METRICS.own_url(own).context("otlp-metrics-url")?,
            (None, Some(_), Some(otlp)) => self.otlp_protocol.settings(otlp, &METRICS)?,
            (None, Some(_), None) => {
                bail!(
                    "otlp-metrics-every is set, and neither otlp-url nor otlp-metrics-url is: set one of them"
                )
            }
        }))
    }

    pub(super) fn metrics_every(&self) -> Duration {
        self.otlp_metrics_every.unwrap_or(DEFAULT_METRICS_EVERY)
    }

    /// Whether a destination for profiles is configured.
    pub fn takes_profiles(&self) -> bool {
        self.otlp_profiles || self.pyroscope_url.as_ref().is_some_and(|url| !url.is_empty())
    }

    /// The settings of one destination with a URL and headers. None: it is not configured.
    fn settings(
        &self,
        name: &str,
        url: Option<&str>,
        headers: &[String],
    ) -> anyhow::Result<Option<DestinationSettings>> {
        // A manifest can set the variable to an empty value to disable the destination.
        let Some(url) = url.filter(|url| !url.is_empty()) else {
            ensure!(headers.is_empty(), "{name}-header is set, and {name}-url is not: set both, or neither");
            return Ok(None);
        };
        let headers: Vec<ExportHeader> = headers
            .iter()
            .map(|header| ExportHeader::parse(header).with_context(|| format!("{name}-header")))
            .collect::<anyhow::Result<_>>()?;
        if url.starts_with("http://") && headers.iter().any(ExportHeader::is_secret) {
            tracing::warn!("sends {name}-header without encryption, because {name}-url is http://");
        }
        Ok(Some(DestinationSettings { headers, ..self.common(url) }))
    }

    /// The settings that are the same for all destinations.
    fn common(&self, url: &str) -> DestinationSettings {
        DestinationSettings {
            certificate_authority: self.export_ca.clone(),
            identity: self.export_identity.clone(),
            retry_for: self.export_patience,
            queue_bytes: usize::try_from(self.export_queue_bytes).unwrap_or(usize::MAX),
            ..DestinationSettings::new(url)
        }
    }
}
