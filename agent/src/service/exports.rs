//! Where events go besides stdout: settings → one courier a destination → what became of what they were offered.
//!
//! Must not know: how anything is written or sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::catch_up::{Cursors, catch_up};
use super::export_args::{Destinations, ExportArgs};
use super::kubernetes::Kubernetes;
use super::measures::Measures;
use crate::api::Pages;
use podopsy_deliver::kubernetes::Dropped;
use podopsy_deliver::loki::Loki;
use podopsy_deliver::otlp::Logs;
use podopsy_deliver::otlp_metrics::Metrics;
use podopsy_deliver::otlp_profiles::{self, Minute, Profiles};
use podopsy_deliver::pyroscope::{Pprof, Pyroscope};
use podopsy_deliver::queue::Weigh;
use podopsy_deliver::written::Written;
use podopsy_deliver::{self as deliver, Counts, Courier, Format, Inlet, Ledger, Progress, Route};
use podopsy_model::metric::Family;
use podopsy_model::{Event, Losses, PodIncident};
use podopsy_store::Reader;

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

/// A courier, whatever it takes there.
trait Runs {
    fn name(&self) -> &'static str;
    fn turn(&self, route: Route);
    fn ledger(&self) -> Ledger;
}

impl<T: Weigh + Send + 'static> Runs for Courier<T> {
    fn name(&self) -> &'static str {
        self.name()
    }

    fn turn(&self, route: Route) {
        self.turn(route);
    }

    fn ledger(&self) -> Ledger {
        self.ledger()
    }
}

/// None: nobody wants it.
fn courier<F: Format>(
    to: &mut Destinations,
    name: &'static str,
    format: F,
) -> anyhow::Result<Option<Courier<F::Item>>> {
    let Some(settings) = to.remove(name) else { return Ok(None) };
    let courier = Courier::start(name, settings, format)?;
    tracing::info!(destination = name, url = courier.url(), "exports");
    Ok(Some(courier))
}

impl Exports {
    /// An error says which setting cannot be; whether a destination is there shows later.
    pub fn start(args: &ExportArgs, node: &str) -> anyhow::Result<Exports> {
        let mut to = args.destinations()?;
        let events = [courier(&mut to, "loki", Loki)?, courier(&mut to, "otlp_logs", Logs)?];
        let measures = courier(&mut to, "otlp_metrics", Metrics)?;
        let kubernetes = courier(&mut to, "kubernetes_events", deliver::kubernetes::Kubernetes)?;
        let exports = Exports {
            events: events.into_iter().flatten().collect(),
            resuming: Vec::new(),
            measures: measures.map(|courier| Measures::new(courier, args.metrics_every(), node)),
            profiles: courier(&mut to, "pyroscope", Pyroscope)?,
            minutes: courier(&mut to, "otlp_profiles", Profiles)?,
            kubernetes: kubernetes.map(|courier| Kubernetes::new(courier, node)),
        };
        debug_assert!(to.is_empty(), "{to:?}");
        if exports.minutes.is_some() {
            tracing::info!(opentelemetry_proto = otlp_profiles::VERSION, "exports profiles by OTLP");
        }
        Ok(exports)
    }

    /// Reaches each destination as it is set now, with the certificates that there are now, and gives them; what is to
    /// come or to go takes a restart. An error: nothing has changed.
    pub fn reroute(&self, args: &ExportArgs) -> anyhow::Result<Vec<&'static str>> {
        let to = args.destinations()?.into_iter();
        let routes = to.map(|(name, settings)| Route::new(name, settings).map(|route| (name, route)));
        let mut routes: BTreeMap<_, _> = routes.collect::<anyhow::Result<_>>()?;
        let turn = |courier: &dyn Runs| {
            courier.turn(routes.remove(courier.name())?);
            Some(courier.name())
        };
        Ok(self.couriers().filter_map(turn).collect())
    }

    fn couriers(&self) -> impl Iterator<Item = &dyn Runs> {
        let events = self.events.iter().map(|courier| courier as &dyn Runs);
        let measures = self.measures.iter().map(|measures| &measures.courier as &dyn Runs);
        let profiles = self.profiles.iter().map(|courier| courier as &dyn Runs);
        let minutes = self.minutes.iter().map(|courier| courier as &dyn Runs);
        let kubernetes = self.kubernetes.iter().map(|kubernetes| kubernetes.courier() as &dyn Runs);
        events.chain(measures).chain(profiles).chain(minutes).chain(kubernetes)
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
        self.measures.iter_mut().for_each(|measures| measures.begin(pages.clone()));
    }

    pub fn ledgers(&self) -> Vec<Ledger> {
        self.couriers().map(Runs::ledger).collect()
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
        let mut closing: Vec<_> = self.events.into_iter().map(|courier| close(courier, time)).collect();
        closing.extend(self.kubernetes.map(|kubernetes| close(kubernetes.finish(), time)));
        closing.extend(self.profiles.map(|courier| close(courier, time)));
        closing.extend(self.minutes.map(|courier| close(courier, time)));
        closing.extend(self.measures.map(|measures| close(measures.end(last), time)));
        for (destination, closed) in closing {
            let Ok(counts) = closed.await else { continue };
            let lost: Vec<_> = counts.lost().into_iter().filter(|(_, count)| *count > 0).collect();
            tracing::info!(destination, delivered = counts.delivered, ?lost, "export closed");
        }
    }
}

fn close<T: Weigh + Send + 'static>(
    courier: Courier<T>,
    time: Duration,
) -> (&'static str, JoinHandle<Counts>) {
    (courier.name(), tokio::spawn(courier.close(time)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use podopsy_deliver::testing::collector::{Collector, Say, until};
    use podopsy_deliver::testing::lookup;

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
        exports.measures.as_ref().unwrap().offer(&[kills]);
        let mut pprof = Vec::new();
        podopsy_profiles::export::pprof::write(&podopsy_profiles::export::example::profile(), &mut pprof)
            .unwrap();
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

    #[tokio::test]
    async fn metrics_have_an_address_of_their_own_where_that_is_asked_for() {
        let start = |flags: &[&str]| {
            let flags = [""].into_iter().chain(flags.iter().copied());
            Exports::start(&Arguments::parse_from(flags).exports, "n1")
        };
        let destinations = |flags: &[&str]| {
            let exports = start(flags).unwrap();
            let measures = exports.measures.as_ref().map(|one| (one.courier.url(), one.every.as_secs()));
            (measures, exports.events.len())
        };
        let own = "--otlp-metrics-url=http://127.0.0.1:9/api/v1/otlp/v1/metrics";
        let there = |every| Some(("http://127.0.0.1:9/api/v1/otlp/v1/metrics".to_owned(), every));
        // Alone it sends no logs; beside others it is where metrics go, by HTTP whatever those speak.
        assert_eq!(destinations(&[own]), (there(60), 0));
        let beside =
            [own, "--otlp-url=http://127.0.0.1:8", "--otlp-protocol=grpc", "--otlp-metrics-every=5s"];
        assert_eq!(destinations(&beside), (there(5), 1));
        assert_eq!(destinations(&["--otlp-url=http://127.0.0.1:8"]), (None, 1));
        for (flags, said) in [
            (["--otlp-metrics-every=5s"].as_slice(), "neither otlp-url nor otlp-metrics-url"),
            (&["--otlp-metrics-header=a=b"], "otlp-metrics-header is set, and otlp-metrics-url is not"),
            (&["--otlp-metrics-url=ftp://x"], "otlp-metrics-url"),
        ] {
            let error = format!("{:#}", start(flags).err().unwrap());
            assert!(error.contains(said), "{error}");
        }
    }

    #[tokio::test]
    async fn destinations_that_are_there_are_reached_in_another_way() {
        let of =
            |flags: &[&str]| Arguments::parse_from([""].into_iter().chain(flags.iter().copied())).exports;
        let exports = ["--loki-url=http://127.0.0.1:9", "--otlp-url=http://127.0.0.1:8"];
        let exports = Exports::start(&of(&exports), "n1").unwrap();
        let urls = || exports.events.iter().map(Courier::url).collect::<Vec<_>>();
        let before = urls();
        let moved =
            ["--loki-url=http://127.0.0.1:7", "--otlp-url=http://127.0.0.1:8", "--export-ca=/nonexistent"];
        let error = format!("{:#}", exports.reroute(&of(&moved)).unwrap_err());
        assert!(error.contains("read /nonexistent") && urls() == before, "{error}");
        let moved = ["--loki-url=http://127.0.0.1:7", "--pyroscope-url=http://127.0.0.1:6"];
        assert_eq!(exports.reroute(&of(&moved)).unwrap(), ["loki"]);
        assert_eq!(urls(), ["http://127.0.0.1:7/loki/api/v1/push", "http://127.0.0.1:8/v1/logs"]);
    }
}
