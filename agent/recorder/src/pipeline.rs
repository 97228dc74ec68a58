//! Puts the stages together: probes (or a packet socket) → readers → attribution → events.
//!
//! Two tasks: the collector empties the rings and must never wait; attribution starts a task for each record that has to
//! wait, for example for the container runtime. The queue between them is bounded, and what does not fit is counted.

use std::sync::{Arc, Mutex};

use anyhow::Context;
use podopsy_model::Event;
use podopsy_pods::Pods;
use podopsy_probes::{Probes, Rate};
use podopsy_stacks::Helpers;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::attribute::{Attribution, EventContext, Record};
use crate::collect::{Collector, LossSources};
use crate::confirm::{CheckpointSaver, Confirmations};
use crate::dns::attribute::DnsAttribution;
use crate::dns::counts::{ContainerCounts, CounterSource, SharedCounts};
use crate::dns::flight::QueriesInFlight;
use crate::dns::held::HeldAnswers;
use crate::dns::reader::DnsReader;
use crate::dns::shares::EventShares;
use crate::dns::tables::OwnedTable;
use crate::dns::tap::{self, OpenTap, TapContext, TapHandle, TapLosses};
use crate::growth::sampling::{self, Growth, GrowthMaps};
use crate::oom::IncidentBuilder;
use crate::oom::attribute::OomAttribution;
use crate::oom::checkpoint::boot_id;
use crate::oom::instruments::OomInstruments;
use crate::oom::reader::OomReader;
use crate::options::{DnsOptions, RecorderOptions};
use crate::reader::Outbox;
use crate::recorder::Recorder;
use crate::scrape::Scraper;
use crate::sigkill::SigkillCorrelator;
use crate::sigkill::reader::SigkillReader;
use crate::totals::Totals;

/// Records between the collector and attribution.
const RECORDS: usize = 16_384;
/// Events that the receiver has not taken yet.
const EVENTS: usize = 1024;

pub(crate) async fn start(
    options: RecorderOptions,
    pods: Arc<Pods>,
) -> anyhow::Result<(Recorder, mpsc::Receiver<Event>)> {
    let dns = options.dns.clone().unwrap_or_default();
    let sources = Sources::open(&options, &dns)?;
    let mut degraded = sources.degraded();
    let attached = sources.attached();
    let dns_hook = sources.tap.as_ref().map(|tap| tap.description.clone());
    // With the probes attached: kills from now on are theirs, earlier ones are read from the log.
    let mut instruments = OomInstruments::prepare(&options, &pods)?;
    degraded.extend(instruments.degraded.take());

    let (records_in, records) = mpsc::channel(RECORDS);
    let (events_in, events) = mpsc::channel(EVENTS);
    let shared = Shared {
        sigkills: SigkillCorrelator::new(options.sigkill, &options.node, &boot_id(), pods.clone()),
        totals: Arc::default(),
        pods: pods.clone(),
        records: records_in,
        helpers: options.helpers.clone(),
    };
    let Stages { collector, probes, tap, counts, growth } =
        Stages::start(sources, &dns, &instruments, &shared).await?;

    let confirmations = Arc::new(Confirmations::default());
    let saver = options
        .state_dir
        .map(|dir| CheckpointSaver::new(dir, confirmations.clone(), instruments.missed.is_none()));
    let examiner = instruments.examiner;
    let attribution = Attribution {
        context: Arc::new(EventContext {
            node: options.node,
            pods: pods.clone(),
            totals: shared.totals.clone(),
        }),
        oom: OomAttribution {
            examiner: examiner.clone(),
            incident_builder: IncidentBuilder::new(&boot_id()),
            growth,
            confirmations: confirmations.clone(),
            examining: JoinSet::new(),
        },
        dns: DnsAttribution::new(&dns, pods.clone(), &shared.helpers.openers),
        sigkills: shared.sigkills.clone(),
        saver,
        confirmations: confirmations.clone(),
    };
    tokio::spawn(attribution.run(instruments.missed, records, events_in));
    let (stop, stopped) = oneshot::channel();
    let totals = shared.totals.clone();
    // The collector's end ends attribution: no other sender may be left.
    drop(shared);
    let collect = tokio::spawn(collect(collector, probes, tap, stopped));
    let scraper = Scraper { totals, counts, pods, examiner };
    Ok((Recorder { scraper, dns_hook, degraded, attached, confirmations, stop: Some(stop), collect }, events))
}

/// Where records come from: probes, a packet socket in place of the dns probe, or both.
struct Sources {
    probes: Option<(Probes, Option<GrowthMaps>)>,
    tap: Option<OpenTap>,
}

impl Sources {
    fn open(options: &RecorderOptions, dns: &DnsOptions) -> anyhow::Result<Sources> {
        let load = |with_dns| sampling::load(&options.probes(with_dns), options.growth);
        let load_others = || options.has_other_probes().then(|| load(false)).transpose();
        if options.dns.is_some()
            && let Some(tap) = tap::choose(dns)?
        {
            return Ok(Sources { probes: load_others()?, tap: Some(tap) });
        }
        match load(true) {
            Ok(probes) => Ok(Sources { probes: Some(probes), tap: None }),
            Err(error) if options.may_use_socket() => {
                let tap = tap::instead_of_probe(dns, error)?;
                Ok(Sources { probes: load_others()?, tap: Some(tap) })
            }
            Err(error) => Err(error),
        }
    }

    fn degraded(&self) -> Vec<String> {
        self.probes.as_ref().map(|(probes, _)| probes.degraded.clone()).unwrap_or_default()
    }

    fn attached(&self) -> Vec<(&'static str, bool)> {
        let mut attached =
            self.probes.as_ref().map(|(probes, _)| probes.attached.clone()).unwrap_or_default();
        if self.tap.is_some() {
            attached.push(("dns", true));
        }
        attached
    }
}

/// What all stages share.
struct Shared {
    totals: Arc<Totals>,
    pods: Arc<Pods>,
    records: mpsc::Sender<Record>,
    sigkills: Arc<SigkillCorrelator>,
    helpers: Helpers,
}

/// The stages that read, started.
struct Stages {
    collector: Option<Collector>,
    /// Attached as long as this lives.
    probes: Option<Arc<Mutex<Probes>>>,
    tap: Option<TapHandle>,
    counts: SharedCounts,
    growth: Option<Growth>,
}

impl Stages {
    async fn start(
        sources: Sources,
        dns: &DnsOptions,
        instruments: &OomInstruments,
        shared: &Shared,
    ) -> anyhow::Result<Stages> {
        let has_probes = sources.probes.is_some();
        // Without a collector nothing else sums losses: the packet socket's thread does.
        let tap_losses = if has_probes { TapLosses::default() } else { shared.totals.losses.clone() };
        let tap = match sources.tap {
            Some(open) => {
                let context = TapContext {
                    pods: shared.pods.clone(),
                    records: shared.records.clone(),
                    losses: tap_losses.clone(),
                    totals: (!has_probes).then(|| shared.totals.clone()),
                };
                Some(tap::start(open, dns, context)?)
            }
            None => None,
        };
        let tap_counts = tap.as_ref().map(|tap| tap.counts.clone());
        let Some((probes, growth_maps)) = sources.probes else {
            let counts = tap_counts.context("neither probes nor a packet socket were asked for")?;
            return Ok(Stages { collector: None, probes: None, tap, counts, growth: None });
        };
        let (mut collector, probe_counts, probes) =
            read_probes(probes, dns, instruments, shared, tap_losses)?;
        let probes = Arc::new(Mutex::new(probes));
        if let Some(maps) = growth_maps {
            let (examiner, shed) = (&instruments.examiner, &shared.totals.shed);
            let growth =
                maps.start(Arc::downgrade(&probes), &shared.pods, examiner, shed, &shared.helpers).await?;
            collector.losses.growth = Some(growth);
        }
        let growth = collector.losses.growth.clone();
        let counts = tap_counts.unwrap_or(probe_counts);
        Ok(Stages { collector: Some(collector), probes: Some(probes), tap, counts, growth })
    }
}

/// One reader a probe.
fn read_probes(
    mut probes: Probes,
    dns: &DnsOptions,
    instruments: &OomInstruments,
    shared: &Shared,
    tap: TapLosses,
) -> anyhow::Result<(Collector, SharedCounts, Probes)> {
    let kernel = Arc::new(probes.losses()?);
    let out = Outbox::new(shared.records.clone());
    let dns_maps = probes.dns_maps()?;
    let source = CounterSource::Kernel(dns_maps.counts);
    let counts = Arc::new(Mutex::new(ContainerCounts::new(source, Rate::default())));
    let a_names = Arc::new(dns_maps.a_names);
    let oom = OomReader::new(
        probes.oom_maps()?,
        instruments,
        out.clone(),
        shared.totals.clone(),
        &shared.helpers,
        shared.pods.clone(),
    )?;
    let dns = DnsReader {
        events: dns_maps.events,
        in_flight: QueriesInFlight::new(
            dns_maps.in_flight,
            dns_maps.shares,
            vec![OwnedTable::connections(dns_maps.connections), OwnedTable::senders(dns_maps.senders)],
            a_names.clone(),
            dns.timeout,
        ),
        counts: counts.clone(),
        shed: shared.totals.shed.clone(),
        shares: EventShares::default(),
        truncated: Default::default(),
        held: HeldAnswers::new(a_names),
        out: out.clone(),
        messages: Vec::new(),
        ticks: 0,
    };
    let sigkill = SigkillReader {
        maps: probes.sigkill_maps()?,
        correlator: shared.sigkills.clone(),
        kernel: kernel.clone(),
        out: out.clone(),
        signals: Vec::new(),
    };
    if let Some(log) = probes.log()? {
        tokio::spawn(log.forward());
    }
    let (pods, totals) = (shared.pods.clone(), shared.totals.clone());
    let losses = LossSources { kernel, outbox: out, pods, growth: None, tap, totals };
    Ok((Collector { oom, dns, sigkill, losses }, counts, probes))
}

/// Runs until `stopped`, or until a reader fails; the probes detach at the end.
async fn collect(
    collector: Option<Collector>,
    probes: Option<Arc<Mutex<Probes>>>,
    tap: Option<TapHandle>,
    stopped: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let Some(collector) = collector else {
        let Some(mut tap) = tap else { return Ok(()) };
        return tokio::select! {
            _ = stopped => tap.end().await,
            ended = tap.done() => ended,
        };
    };
    let result = collector.run(stopped).await;
    drop(probes);
    match tap {
        Some(tap) => tap.end().await.and(result),
        None => result,
    }
}
