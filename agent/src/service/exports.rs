//! Where events go besides stdout: settings → one courier a destination → what became of what they were offered.
//!
//! Must not know: how anything is written or sent.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::catch_up::{Cursors, catch_up};
use super::endpoint::{LOGS, METRICS, OtlpProtocol, PROFILES, at};
use crate::api::Pages;
use crate::deliver::kubernetes::Dropped;
use crate::deliver::loki::Loki;
use crate::deliver::otlp::Logs;
use crate::deliver::otlp_profiles::{Minute, Profiles};
use crate::deliver::pyroscope::{Pprof, Pyroscope};
use crate::deliver::written::Written;
use crate::deliver::{Courier, Header, Inlet, Ledger, Progress, Settings, otlp_metrics, otlp_profiles};
use crate::metrics::family::Family;
use crate::model::{Event, Losses, PodIncident};
use crate::store::Reader;
use crate::{bytes, duration};

use super::kubernetes::{Kubernetes, KubernetesArgs};

/// Settings; `agent/src/config` has them from the environment and the file, too.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    next_help_heading = "Exports: every event, once it is stored, and profiles; a destination that is down costs nothing else (SIGHUP does not change them)"
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
    /// Who we are, for destinations that ask: PEM, the certificate and its key in one file
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

/// Couriers that run.
#[derive(Default)]
pub struct Exports {
    pub(super) events: Vec<Courier<Arc<Written>>>,
    /// What still reads from the store.
    resuming: Vec<JoinHandle<()>>,
    measures: Option<Measures>,
    profiles: Option<Courier<Pprof>>,
    kubernetes: Option<Kubernetes>,
    minutes: Option<Courier<Minute>>,
}

/// Metrics, each so often.
struct Measures {
    courier: Courier<otlp_metrics::Page>,
    every: Duration,
    since: Timestamp,
    node: String,
    task: Option<JoinHandle<()>>,
}

impl Exports {
    /// An error says which setting cannot be; whether a destination is there shows later.
    pub fn start(args: &ExportArgs, node: &str) -> anyhow::Result<Exports> {
        let mut exports = Exports::default();
        if let Some(settings) = args.settings("loki", args.loki_url.as_deref(), &args.loki_headers)? {
            let settings = at(settings, "/loki/api/v1/push", false).context("loki-url")?;
            exports.events.push(Courier::start("loki", settings, Loki)?);
        }
        let otlp = args.settings("otlp", args.otlp_url.as_deref(), &args.otlp_headers)?;
        let no_url = "otlp-profiles is set, and otlp-url is not: set both, or neither";
        ensure!(otlp.is_some() || !args.otlp_profiles, no_url);
        let no_url = "otlp-metrics-every is set, and otlp-url is not: set both, or neither";
        ensure!(otlp.is_some() || args.otlp_metrics_every.is_none(), no_url);
        if let Some(settings) = otlp {
            if let Some(doubt) = args.otlp_protocol.doubt(&settings.url) {
                tracing::warn!("{doubt}");
            }
            if let Some(every) = args.otlp_metrics_every {
                let settings = args.otlp_protocol.at(&settings, &METRICS)?;
                let courier = Courier::start("otlp_metrics", settings, otlp_metrics::Metrics)?;
                tracing::info!(destination = courier.name(), url = courier.url(), "exports metrics");
                let (since, node) = (Timestamp::now(), node.to_owned());
                exports.measures = Some(Measures { courier, every, since, node, task: None });
            }
            if args.otlp_profiles {
                let settings = args.otlp_protocol.at(&settings, &PROFILES)?;
                let settings = Settings { batch_bytes: PROFILES_BATCH, ..settings };
                let courier = Courier::start("otlp_profiles", settings, Profiles)?;
                let (destination, url, version) = (courier.name(), courier.url(), otlp_profiles::VERSION);
                tracing::info!(destination, url, opentelemetry_proto = version, "exports profiles");
                exports.minutes = Some(courier);
            }
            let settings = args.otlp_protocol.at(&settings, &LOGS)?;
            exports.events.push(Courier::start("otlp_logs", settings, Logs)?);
        }
        let pyroscope = args.settings("pyroscope", args.pyroscope_url.as_deref(), &args.pyroscope_headers)?;
        if let Some(settings) = pyroscope {
            let settings = at(settings, "/push.v1.PusherService/Push", false).context("pyroscope-url")?;
            let courier = Courier::start("pyroscope", settings, Pyroscope)?;
            tracing::info!(destination = courier.name(), url = courier.url(), "exports profiles");
            exports.profiles = Some(courier);
        }
        exports.kubernetes = Kubernetes::start(&args.kubernetes, args.common(""), node)?;
        for courier in &exports.events {
            tracing::info!(destination = courier.name(), url = courier.url(), "exports events");
        }
        Ok(exports)
    }

    /// Nothing is configured: an event need not be written for anyone.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Where profiles go, if anywhere.
    pub fn profiles(&self) -> (Option<Inlet<Pprof>>, Option<Inlet<Minute>>) {
        (self.profiles.as_ref().map(Courier::inlet), self.minutes.as_ref().map(Courier::inlet))
    }

    /// How far each destination of events has come in the store.
    pub fn progress(&self) -> Vec<(&'static str, Arc<Progress>)> {
        self.events.iter().map(|courier| (courier.name(), courier.progress())).collect()
    }

    /// Sends each destination what the run before had not. Call before anything is offered.
    pub fn resume(&mut self, from: &Cursors, reader: &Reader) {
        for courier in &self.events {
            if let Some(done) = from.before(courier.name()) {
                let resume = courier.resume(done);
                self.resuming.push(tokio::spawn(catch_up(courier.name(), resume, reader.clone())));
            }
        }
    }

    /// Never waits.
    pub fn offer(&self, event: &Arc<Written>) {
        self.events.iter().for_each(|courier| courier.offer(event.clone()));
    }

    /// Whether pods' incidents are wanted, though nothing keeps them.
    pub fn takes_incidents(&self) -> bool {
        self.kubernetes.is_some()
    }

    /// An event was told: whether its pod is told, too, is decided there. Never waits.
    pub fn told(&mut self, event: &Event) {
        self.kubernetes.iter_mut().for_each(|kubernetes| kubernetes.event(event));
    }

    /// What has changed of pods' incidents, each second.
    pub fn round(&mut self, changed: &[PodIncident]) {
        let Some(kubernetes) = &mut self.kubernetes else { return };
        changed.iter().for_each(|incident| kubernetes.incident(incident));
        kubernetes.round();
    }

    /// Kubernetes Events that are not made.
    pub fn dropped(&self) -> Option<Arc<Dropped>> {
        self.kubernetes.as_ref().map(Kubernetes::dropped)
    }

    /// From here on what is counted is sent, each so often.
    pub fn measure(&mut self, pages: Arc<Pages>) {
        let Some(measures) = &mut self.measures else { return };
        let (inlet, since, node) = (measures.courier.inlet(), measures.since, measures.node.clone());
        let mut round = tokio::time::interval(measures.every);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        measures.task = Some(tokio::spawn(async move {
            loop {
                round.tick().await;
                let families = pages.families().await;
                inlet.offer(otlp_metrics::Page::new(&node, &families, since, Timestamp::now()));
            }
        }));
    }

    pub fn ledgers(&self) -> Vec<Ledger> {
        let measures = self.measures.iter().map(|measures| measures.courier.ledger());
        let profiles = self.profiles.iter().map(Courier::ledger);
        let minutes = self.minutes.iter().map(Courier::ledger);
        let kubernetes = self.kubernetes.iter().map(|kubernetes| kubernetes.courier().ledger());
        let events = self.events.iter().map(Courier::ledger);
        events.chain(measures).chain(profiles).chain(minutes).chain(kubernetes).collect()
    }

    /// What is missing elsewhere, in the events themselves: who reads there has no other way to know.
    pub fn losses(&self) -> Losses {
        let lost = self.events.iter().map(|courier| courier.ledger().loss());
        let kubernetes = self.kubernetes.iter().flat_map(Kubernetes::losses);
        lost.filter(|(_, count)| *count > 0).chain(kubernetes).collect()
    }

    /// Tries to deliver what waits, to all at once, for so long; `last`: what was counted in the end.
    pub async fn close(self, time: Duration, last: &[Family]) {
        // What they have not read is for the next start.
        self.resuming.iter().for_each(JoinHandle::abort);
        let mut closing: Vec<_> = self
            .events
            .into_iter()
            .map(|courier| (courier.name(), tokio::spawn(courier.close(time))))
            .collect();
        if let Some(courier) = self.kubernetes.map(Kubernetes::finish) {
            closing.push((courier.name(), tokio::spawn(courier.close(time))));
        }
        if let Some(courier) = self.profiles {
            closing.push((courier.name(), tokio::spawn(courier.close(time))));
        }
        if let Some(courier) = self.minutes {
            closing.push((courier.name(), tokio::spawn(courier.close(time))));
        }
        if let Some(Measures { courier, since, node, task, .. }) = self.measures {
            if let Some(task) = task {
                task.abort();
                courier.offer(otlp_metrics::Page::new(&node, last, since, Timestamp::now()));
            }
            closing.push((courier.name(), tokio::spawn(courier.close(time))));
        }
        for (destination, closed) in closing {
            let Ok(counts) = closed.await else { continue };
            let lost: Vec<_> = counts.lost().into_iter().filter(|(_, count)| *count > 0).collect();
            tracing::info!(destination, delivered = counts.delivered, ?lost, "export closed");
        }
    }
}

impl ExportArgs {
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::deliver::collector::{Collector, Say, until};
    use crate::deliver::written::tests::lookup;

    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        exports: ExportArgs,
    }

    #[tokio::test]
    async fn otlp_goes_by_grpc_where_that_is_asked_for() {
        let collector = Collector::start(&[Say::Take]).await;
        let url = format!("--otlp-url={}", collector.url);
        let flags = ["", &url, "--otlp-protocol=grpc", "--otlp-metrics-every=1s", "--otlp-profiles"];
        let arguments = Arguments::parse_from(flags).exports;
        assert!(arguments.takes_profiles());
        let exports = Exports::start(&arguments, "n1").unwrap();
        exports.offer(&lookup("a.example", 1));
        let kills = Family::counter("podopsy_oom_kills", "Kills.").single(3.0);
        let measures = exports.measures.as_ref().unwrap();
        measures.courier.offer(otlp_metrics::Page::new("n1", &[kills], measures.since, Timestamp::now()));
        let mut pprof = Vec::new();
        crate::export::pprof::write(&crate::export::example::profile(), &mut pprof).unwrap();
        exports.profiles().1.unwrap().offer(Minute::new("n1", &Default::default(), pprof));
        until("there", || !collector.logs().is_empty() && !collector.metrics().is_empty()).await;
        until("there, too", || !collector.profiles().is_empty()).await;
        assert_eq!(collector.profiles()[0].resource_profiles[0].scope_profiles[0].profiles.len(), 1);
        let names: Vec<_> = exports.ledgers().iter().map(|ledger| ledger.destination).collect();
        assert_eq!(names, ["otlp_logs", "otlp_metrics", "otlp_profiles"]);
        let metric = collector.metrics()[0].resource_metrics[0].scope_metrics[0].metrics[0].clone();
        assert_eq!(metric.name, "podopsy_oom_kills");
        exports.close(Duration::from_secs(60), &[]).await;
        assert!(Arguments::try_parse_from(["", "--otlp-protocol", "http/json"]).is_err());
        let alone =
            Exports::start(&Arguments::parse_from(["", "--otlp-profiles"]).exports, "n1").err().unwrap();
        assert!(alone.to_string().contains("otlp-profiles is set, and otlp-url is not"), "{alone}");
    }
}
