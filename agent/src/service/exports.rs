//! Builds the destinations from the settings, and passes events, incidents, metrics and profiles to them.
//!
//! This module must not depend on how anything is encoded or sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::catch_up::{ExportCheckpoints, catch_up};
use super::export_args::{ExportArgs, SettingsByDestination};
use super::kubernetes::KubernetesExport;
use super::metrics_export::MetricsExport;
use crate::api::MetricsPage;
use podopsy_deliver::kubernetes::{DroppedEvents, KubernetesEvents};
use podopsy_deliver::loki::Loki;
use podopsy_deliver::otlp::OtlpLogs;
use podopsy_deliver::otlp_metrics::OtlpMetrics;
use podopsy_deliver::otlp_profiles::{self, OtlpProfile, OtlpProfiles};
use podopsy_deliver::pyroscope::{Pyroscope, PyroscopeProfile};
use podopsy_deliver::queue::QueueItem;
use podopsy_deliver::{
    DeliveryCheckpoint, DeliveryCounts, Destination, DestinationClient, DestinationFormat, DestinationStats,
    EncodedEvent, QueueSender,
};
use podopsy_model::metric::MetricFamily;
use podopsy_model::{Event, Losses, PodIncident};
use podopsy_store::Reader;

/// All running destinations.
#[derive(Default)]
pub struct Exports {
    pub(super) events: Vec<Destination<Arc<EncodedEvent>>>,
    /// The tasks that read unsent events from the store.
    catching_up: Vec<JoinHandle<()>>,
    metrics: Option<MetricsExport>,
    pyroscope: Option<Destination<PyroscopeProfile>>,
    otlp_profiles: Option<Destination<OtlpProfile>>,
    kubernetes: Option<KubernetesExport>,
}

/// A destination for any type of item.
trait AnyDestination {
    fn name(&self) -> &'static str;
    fn replace_client(&self, client: DestinationClient);
    fn stats(&self) -> DestinationStats;
}

impl<T: QueueItem + Send + 'static> AnyDestination for Destination<T> {
    fn name(&self) -> &'static str {
        self.name()
    }

    fn replace_client(&self, client: DestinationClient) {
        self.replace_client(client);
    }

    fn stats(&self) -> DestinationStats {
        self.stats()
    }
}

/// Removes a destination's settings and starts it. None: it is not configured.
fn start_destination<F: DestinationFormat>(
    settings: &mut SettingsByDestination,
    name: &'static str,
    format: F,
) -> anyhow::Result<Option<Destination<F::Item>>> {
    let Some(settings) = settings.remove(name) else { return Ok(None) };
    let destination = Destination::start(name, settings, format)?;
    tracing::info!(destination = name, url = destination.url(), "exports");
    Ok(Some(destination))
}

impl Exports {
    /// Fails if a setting is invalid. Whether a destination can be reached shows later.
    pub fn start(args: &ExportArgs, node: &str) -> anyhow::Result<Exports> {
        let mut settings = args.settings_by_destination()?;
        let loki = start_destination(&mut settings, "loki", Loki)?;
        let otlp_logs = start_destination(&mut settings, "otlp_logs", OtlpLogs)?;
        let metrics = start_destination(&mut settings, "otlp_metrics", OtlpMetrics)?;
        let kubernetes = start_destination(&mut settings, "kubernetes_events", KubernetesEvents)?;
        let exports = Exports {
            events: loki.into_iter().chain(otlp_logs).collect(),
            catching_up: Vec::new(),
            metrics: metrics.map(|destination| MetricsExport::new(destination, args.metrics_every(), node)),
            pyroscope: start_destination(&mut settings, "pyroscope", Pyroscope)?,
            otlp_profiles: start_destination(&mut settings, "otlp_profiles", OtlpProfiles)?,
            kubernetes: kubernetes.map(|destination| KubernetesExport::new(destination, node)),
        };
        debug_assert!(settings.is_empty(), "{settings:?}");
        if exports.otlp_profiles.is_some() {
            tracing::info!(opentelemetry_proto = otlp_profiles::VERSION, "exports profiles by OTLP");
        }
        Ok(exports)
    }

    /// Applies new settings, and the certificates as they are now, to the running destinations. Returns their names.
    ///
    /// To add or to remove a destination takes a restart. After an error, nothing has changed.
    pub fn reconfigure(&self, args: &ExportArgs) -> anyhow::Result<Vec<&'static str>> {
        let settings = args.settings_by_destination()?.into_iter();
        let clients = settings.map(|(name, settings)| Ok((name, DestinationClient::new(name, settings)?)));
        let mut clients: BTreeMap<_, _> = clients.collect::<anyhow::Result<_>>()?;
        let replace_client = |destination: &dyn AnyDestination| {
            destination.replace_client(clients.remove(destination.name())?);
            Some(destination.name())
        };
        Ok(self.destinations().filter_map(replace_client).collect())
    }

    fn destinations(&self) -> impl Iterator<Item = &dyn AnyDestination> {
        let events = self.events.iter().map(|destination| destination as &dyn AnyDestination);
        let metrics = self.metrics.iter().map(|metrics| &metrics.destination as &dyn AnyDestination);
        let pyroscope = self.pyroscope.iter().map(|destination| destination as &dyn AnyDestination);
        let otlp_profiles = self.otlp_profiles.iter().map(|destination| destination as &dyn AnyDestination);
        let kubernetes =
            self.kubernetes.iter().map(|kubernetes| kubernetes.destination() as &dyn AnyDestination);
        events.chain(metrics).chain(pyroscope).chain(otlp_profiles).chain(kubernetes)
    }

    /// Whether events must be encoded for [`Exports::offer`].
    pub fn has_event_destinations(&self) -> bool {
        !self.events.is_empty()
    }

    /// The queues for profiles.
    pub fn profile_senders(
        &self,
    ) -> (Option<QueueSender<PyroscopeProfile>>, Option<QueueSender<OtlpProfile>>) {
        let pyroscope = self.pyroscope.as_ref().map(Destination::sender);
        let otlp = self.otlp_profiles.as_ref().map(Destination::sender);
        (pyroscope, otlp)
    }

    /// How much of the store each destination of events has finished.
    pub fn checkpoints(&self) -> Vec<(&'static str, Arc<DeliveryCheckpoint>)> {
        self.events.iter().map(|destination| (destination.name(), destination.checkpoint())).collect()
    }

    /// Sends each destination the events that the previous run had not sent. Call this before the first [`Self::offer`].
    pub fn catch_up(&mut self, checkpoints: &ExportCheckpoints, reader: &Reader) {
        for destination in &self.events {
            if let Some(done) = checkpoints.saved_id(destination.name()) {
                let task = catch_up(destination.name(), destination.catch_up(done), reader.clone());
                self.catching_up.push(tokio::spawn(task));
            }
        }
    }

    /// Never waits.
    pub fn offer(&self, event: &Arc<EncodedEvent>) {
        self.events.iter().for_each(|destination| destination.offer(event.clone()));
    }

    /// Whether pod incidents are needed even if there is no store for them.
    pub fn takes_incidents(&self) -> bool {
        self.kubernetes.is_some()
    }

    /// Writes a Kubernetes Event on the event's pod, if the event calls for one. Never waits.
    pub fn notify_pod(&mut self, event: &Event) {
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.offer_event(event);
        }
    }

    /// Call this once a second, with the pod incidents that have changed.
    pub fn tick(&mut self, changed: &[PodIncident]) {
        let Some(kubernetes) = &mut self.kubernetes else { return };
        changed.iter().for_each(|incident| kubernetes.offer_incident(incident));
        kubernetes.tick();
    }

    /// The counters of Kubernetes Events that were not written.
    pub fn dropped(&self) -> Option<Arc<DroppedEvents>> {
        self.kubernetes.as_ref().map(KubernetesExport::dropped)
    }

    /// Sends the metrics at their interval from now on.
    pub fn begin_metrics(&mut self, pages: Arc<MetricsPage>) {
        if let Some(metrics) = &mut self.metrics {
            metrics.begin(pages);
        }
    }

    pub fn stats(&self) -> Vec<DestinationStats> {
        self.destinations().map(AnyDestination::stats).collect()
    }

    /// The losses that events carry, because a reader at one destination cannot see them otherwise.
    pub fn losses(&self) -> Losses {
        let lost = self.events.iter().map(|destination| destination.stats().loss());
        let kubernetes = self.kubernetes.iter().flat_map(KubernetesExport::losses);
        lost.filter(|(_, count)| *count > 0).chain(kubernetes).collect()
    }

    /// Tries to deliver the items that wait, to all destinations at the same time, within `time`. `final_families` are the
    /// last metrics.
    pub async fn close(self, time: Duration, final_families: &[MetricFamily]) {
        // The next run sends what they have not read.
        self.catching_up.iter().for_each(JoinHandle::abort);
        let mut closing: Vec<_> =
            self.events.into_iter().map(|destination| close(destination, time)).collect();
        closing.extend(self.kubernetes.map(|kubernetes| close(kubernetes.finish(), time)));
        closing.extend(self.pyroscope.map(|destination| close(destination, time)));
        closing.extend(self.otlp_profiles.map(|destination| close(destination, time)));
        closing.extend(self.metrics.map(|metrics| close(metrics.end(final_families), time)));
        for (destination, closed) in closing {
            let Ok(counts) = closed.await else { continue };
            let lost = counts.lost().into_iter().filter(|(_, count)| *count > 0);
            let lost: Vec<_> = lost.map(|(reason, count)| (reason.as_str(), count)).collect();
            tracing::info!(destination, delivered = counts.delivered, ?lost, "export closed");
        }
    }
}

fn close<T: QueueItem + Send + 'static>(
    destination: Destination<T>,
    time: Duration,
) -> (&'static str, JoinHandle<DeliveryCounts>) {
    (destination.name(), tokio::spawn(destination.close(time)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use podopsy_deliver::testing::collector::{Collector, Reply};
    use podopsy_deliver::testing::{lookup, wait_until};

    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        exports: ExportArgs,
    }

    #[tokio::test]
    async fn otlp_is_sent_by_grpc_if_that_is_set() {
        let collector = Collector::start(&[Reply::Accept]).await;
        let url = format!("--otlp-url={}", collector.url);
        let flags = ["", &url, "--otlp-protocol=grpc", "--otlp-metrics-every=1s", "--otlp-profiles"];
        let arguments = Arguments::parse_from(flags).exports;
        assert!(arguments.takes_profiles());
        let exports = Exports::start(&arguments, "n1").unwrap();
        exports.offer(&lookup("a.example", 1));
        let kills = MetricFamily::counter("podopsy_oom_kills", "Kills.").single(3.0);
        exports.metrics.as_ref().unwrap().offer(&[kills]);
        let mut pprof = Vec::new();
        podopsy_profiles::export::pprof::write(&podopsy_profiles::export::example::profile(), &mut pprof)
            .unwrap();
        exports.profile_senders().1.unwrap().offer(OtlpProfile::new("n1", &Default::default(), pprof));
        wait_until("logs and metrics have arrived", || {
            !collector.logs().is_empty() && !collector.metrics().is_empty()
        })
        .await;
        wait_until("a profile has arrived", || !collector.profiles().is_empty()).await;
        assert_eq!(collector.profiles()[0].resource_profiles[0].scope_profiles[0].profiles.len(), 1);
        let names: Vec<_> = exports.stats().iter().map(|stats| stats.destination).collect();
        assert_eq!(names, ["otlp_logs", "otlp_metrics", "otlp_profiles"]);
        let metric = collector.metrics()[0].resource_metrics[0].scope_metrics[0].metrics[0].clone();
        assert_eq!(metric.name, "podopsy_oom_kills");
        exports.close(Duration::from_secs(60), &[]).await;
        assert!(Arguments::try_parse_from(["", "--otlp-protocol", "http/json"]).is_err());
        let alone =
            Exports::start(&Arguments::parse_from(["", "--otlp-profiles"]).exports, "n1").err().unwrap();
        assert!(alone.to_string().contains("otlp-profiles is set, and otlp-url is not"), "{alone}");
    }

    #[tokio::test]
    async fn metrics_can_have_an_address_of_their_own() {
        let start = |flags: &[&str]| {
            let flags = [""].into_iter().chain(flags.iter().copied());
            Exports::start(&Arguments::parse_from(flags).exports, "n1")
        };
        let destinations = |flags: &[&str]| {
            let exports = start(flags).unwrap();
            let metrics = exports.metrics.as_ref().map(|one| (one.destination.url(), one.every.as_secs()));
            (metrics, exports.events.len())
        };
        let own = "--otlp-metrics-url=http://127.0.0.1:9/api/v1/otlp/v1/metrics";
        let there = |every| Some(("http://127.0.0.1:9/api/v1/otlp/v1/metrics".to_owned(), every));
        // Alone it sends no logs. With --otlp-url, metrics go there instead, by HTTP with any --otlp-protocol.
        assert_eq!(destinations(&[own]), (there(60), 0));
        let beside =
            [own, "--otlp-url=http://127.0.0.1:8", "--otlp-protocol=grpc", "--otlp-metrics-every=5s"];
        assert_eq!(destinations(&beside), (there(5), 1));
        assert_eq!(destinations(&["--otlp-url=http://127.0.0.1:8"]), (None, 1));
        for (flags, message) in [
            (["--otlp-metrics-every=5s"].as_slice(), "neither otlp-url nor otlp-metrics-url"),
            (&["--otlp-metrics-header=a=b"], "otlp-metrics-header is set, and otlp-metrics-url is not"),
            (&["--otlp-metrics-url=ftp://x"], "otlp-metrics-url"),
        ] {
            let error = format!("{:#}", start(flags).err().unwrap());
            assert!(error.contains(message), "{error}");
        }
    }

    #[tokio::test]
    async fn running_destinations_can_be_reconfigured() {
        let of =
            |flags: &[&str]| Arguments::parse_from([""].into_iter().chain(flags.iter().copied())).exports;
        let exports = ["--loki-url=http://127.0.0.1:9", "--otlp-url=http://127.0.0.1:8"];
        let exports = Exports::start(&of(&exports), "n1").unwrap();
        let urls = || exports.events.iter().map(Destination::url).collect::<Vec<_>>();
        let before = urls();
        let moved =
            ["--loki-url=http://127.0.0.1:7", "--otlp-url=http://127.0.0.1:8", "--export-ca=/nonexistent"];
        let error = format!("{:#}", exports.reconfigure(&of(&moved)).unwrap_err());
        assert!(error.contains("read /nonexistent") && urls() == before, "{error}");
        let moved = ["--loki-url=http://127.0.0.1:7", "--pyroscope-url=http://127.0.0.1:6"];
        assert_eq!(exports.reconfigure(&of(&moved)).unwrap(), ["loki"]);
        assert_eq!(urls(), ["http://127.0.0.1:7/loki/api/v1/push", "http://127.0.0.1:8/v1/logs"]);
    }
}
