//! The event pipeline: probes → ring → decode → attribute → event.
//!
//! Two tasks: one empties the rings and must never wait; one attributes, and may wait for the
//! runtime. The queue between them is bounded, and what does not fit is counted.

pub mod cpu;
pub mod dns;
pub mod growth;
pub mod incidents;
pub mod kernel_log;
pub mod memory;
pub mod oom;
pub mod shed;
pub mod sigkill;

mod collect;
mod progress;
mod record;
mod scraper;
mod stacks;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::oom::IncidentBuilder;
use crate::oom::checkpoint::boot_id;
use crate::oom::reconcile::KillReconciler;
use crate::oom::recover::MissedKills;
use crate::shed::Shed;
use collect::Collector;
use dns::counts::{Counts, Places};
use dns::flight::Flight;
pub use growth::sampling::GrowthMode;
use podopsy_model::{DnsCounts, Event, Losses};
use podopsy_pods::Pods;
use podopsy_probes::{DNS_PORTS, DNS_TIMEOUT, DnsWanted, HTTPS_RESOLVERS, Rate, Wanted};
pub use progress::Progress;
use progress::Saver;
use record::Attribution;
pub use scraper::{Scrape, Scraper};
use stacks::Stacks;

/// Records between the two tasks.
const RECORDS: usize = 16_384;
/// Events that the listener has not taken yet.
const EVENTS: usize = 1024;
/// How long a stop waits for records under way to become events.
const DRAIN: Duration = Duration::from_secs(5);

/// Where DNS is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsHook {
    /// At the root cgroup; where that is out of reach, by a packet socket.
    #[default]
    Auto,
    /// The node's lookups, by BPF at the root of the v2 hierarchy, or not at all.
    Cgroup,
    /// This network namespace's, by a packet socket.
    Socket,
}

/// What of DNS to record.
#[derive(Clone, Debug)]
pub struct DnsOptions {
    /// Ship answered queries too, not only failures.
    pub answers: bool,
    /// Put queries together to lookups, too (`dns.lookup`): all of them with `answers`, else those that failed.
    pub lookups: bool,
    /// A query without an answer for this long is a timeout.
    pub timeout: Duration,
    /// Ship answers that took longer than this, too; they are `slow`.
    pub slow_over: Option<Duration>,
    /// Ship one answered query in so many, too; 0: none.
    pub sample: u32,
    /// Server ports that carry DNS, at most four; 0 is an unused slot.
    pub ports: [u16; 4],
    /// Resolvers whose port 443 is DNS over HTTPS ([`podopsy_probes::https_resolvers`]).
    pub https: Vec<IpAddr>,
    pub hook: DnsHook,
}

impl Default for DnsOptions {
    /// Failures of queries to port 53.
    fn default() -> Self {
        DnsOptions {
            answers: false,
            lookups: false,
            timeout: DNS_TIMEOUT,
            slow_over: None,
            sample: 0,
            ports: DNS_PORTS,
            https: HTTPS_RESOLVERS.to_vec(),
            hook: DnsHook::Auto,
        }
    }
}

/// What to record.
#[derive(Clone, Debug)]
pub struct Options {
    pub oom: bool,
    /// SIGKILLs that no OOM killer sent.
    pub sigkill: sigkill::SigkillScope,
    /// None: DNS is not recorded.
    pub dns: Option<DnsOptions>,
    /// The node's name in events.
    pub node: String,
    /// Where to keep how far this run came, so that the next one knows what it missed; None: it does not.
    pub state_dir: Option<PathBuf>,
    /// Whether to sample which code the memory of suspects grows by.
    pub growth: GrowthMode,
}

impl Options {
    /// Whether a packet socket may stand in for the dns probe.
    fn may_tap(&self) -> bool {
        self.dns.as_ref().is_some_and(|dns| dns.hook == DnsHook::Auto)
    }

    /// The probes; `dns`: unless something else stands in for that one.
    fn wanted(&self, dns: bool) -> Wanted {
        Wanted {
            oom: self.oom,
            sigkill: self.sigkill != sigkill::SigkillScope::None,
            dns: self.dns.as_ref().filter(|_| dns).map(|dns| DnsWanted {
                answers: dns.answers,
                slow_over: dns.slow_over,
                sample: dns.sample,
                ports: dns.ports,
                rate: Rate::default(),
                https: dns.https.clone(),
            }),
            oncpu: None,
        }
    }
}

/// A running recorder; probes detach when it is dropped.
#[derive(Debug)]
pub struct Recorder {
    sums: Scraper,
    dns_seen: Option<String>,
    degraded: Vec<String>,
    attached: Vec<(&'static str, bool)>,
    progress: Arc<Progress>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    collect: JoinHandle<anyhow::Result<()>>,
}

impl Recorder {
    /// Loads and attaches; an error says which probe and what would mend it.
    pub async fn start(
        options: Options,
        pods: Arc<Pods>,
    ) -> anyhow::Result<(Recorder, mpsc::Receiver<Event>)> {
        // Where DNS is not recorded, nothing of it is looked at but the defaults.
        let dns = options.dns.clone().unwrap_or_default();
        let mut tapped = match options.dns {
            Some(_) => dns::tap::choose(&dns)?,
            None => None,
        };
        let others = options.oom || options.sigkill != sigkill::SigkillScope::None;
        let loaded = match others || tapped.is_none() {
            true => match growth::sampling::load(&options.wanted(tapped.is_none()), options.growth) {
                Err(error) if tapped.is_none() && options.may_tap() => {
                    tapped = Some(dns::tap::instead(&dns, error)?);
                    match others {
                        true => Some(growth::sampling::load(&options.wanted(false), options.growth)?),
                        false => None,
                    }
                }
                loaded => Some(loaded?),
            },
            false => None,
        };
        let mut degraded = loaded.as_ref().map(|(probes, _)| probes.degraded.clone()).unwrap_or_default();
        let mut attached = loaded.as_ref().map(|(probes, _)| probes.attached.clone()).unwrap_or_default();
        attached.extend(tapped.is_some().then_some(("dns", true)));
        let room = oom::instruments::room(&options, &pods)?;
        degraded.extend(room.degraded);
        let (records_in, records) = mpsc::channel(RECORDS);
        let (events_in, events) = mpsc::channel(EVENTS);
        let losses = Arc::new(Mutex::new(Losses::new()));
        let stacks_unnamed = Arc::new(AtomicU64::new(0));
        let own_kills = Arc::new(AtomicU64::new(0));
        let sigkills =
            sigkill::SigkillCorrelator::new(options.sigkill, &options.node, &boot_id(), pods.clone());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let shed = Arc::new(Shed::default());
        let lookups_evicted = Arc::new(AtomicU64::new(0));
        let dns_seen = tapped.as_ref().map(|tapped| tapped.seen.clone());
        let alone = loaded.is_none();
        let tap_losses = if alone { losses.clone() } else { Arc::default() };
        let mut tap = match tapped {
            Some(tapped) => {
                let around = dns::tap::Around {
                    pods: pods.clone(),
                    records: records_in.clone(),
                    losses: tap_losses.clone(),
                    lookups_evicted: alone.then(|| lookups_evicted.clone()),
                };
                Some(dns::tap::start(tapped, &dns, around)?)
            }
            None => None,
        };
        let mut counts = tap.as_ref().map(|tap| tap.counts.clone());
        let mut growth = None;
        let collector = match loaded {
            Some((mut probes, instruments)) => {
                let kernel = Places::Kernel(probes.dns_counts()?);
                let kernel = Arc::new(Mutex::new(Counts::new(kernel, Rate::default())));
                counts.get_or_insert(kernel.clone());
                let mut collector = Collector {
                    lookups_evicted: lookups_evicted.clone(),
                    oom: probes.ring("OOM_EVENTS")?,
                    execs: probes.ring("EXECS")?,
                    dns: probes.ring("DNS_EVENTS")?,
                    signals: probes.ring("SIGNAL_EVENTS")?,
                    kernel_kills: probes.kernel_kills()?,
                    sigkills: sigkills.clone(),
                    own_kills: own_kills.clone(),
                    kernel_losses: probes.losses()?,
                    flight: Flight::new(probes.in_flight()?, dns.timeout),
                    stacks: Stacks::start()?,
                    records: records_in,
                    bad_records: 0,
                    queue_full: 0,
                    stacks_unnamed: stacks_unnamed.clone(),
                    files_not_held: 0,
                    counts: kernel,
                    sweeps: 0,
                    pods: pods.clone(),
                    losses: losses.clone(),
                    kills: 0,
                    tally: KillReconciler::new(room.kills_at_start),
                    missed_unknown: room.missed.as_ref().map_or(0, MissedKills::unknown),
                    examiner: room.examiner.clone(),
                    growth: None,
                    tap_losses,
                    shed: shed.clone(),
                };
                if let Some(log) = probes.log()? {
                    tokio::spawn(log.forward());
                }
                let probes = Arc::new(Mutex::new(probes));
                if let Some(instruments) = instruments {
                    let started = instruments.start(Arc::downgrade(&probes), &pods, &room.examiner, &shed);
                    growth = Some(started.await?);
                }
                collector.growth = growth.clone();
                Some((collector, probes))
            }
            None => None,
        };
        let counts = counts.context("neither probes nor a packet socket were asked for")?;
        let sums = Scraper {
            losses: losses.clone(),
            own_kills,
            counts,
            pods: pods.clone(),
            examiner: room.examiner.clone(),
            shed,
        };
        let lookups = dns::gather::Lookups::new(&dns, pods.clone());
        let progress = Arc::new(Progress::default());
        let attribution = Attribution {
            lookups_evicted: lookups_evicted.clone(),
            lookups: dns.lookups.then_some(lookups),
            node: options.node,
            pods,
            losses: losses.clone(),
            stacks_unnamed,
            examiner: room.examiner,
            incident_builder: IncidentBuilder::new(&boot_id()),
            sigkills,
            growth,
            saver: options.state_dir.map(|dir| Saver::new(dir, progress.clone(), room.missed.is_none())),
            progress: progress.clone(),
        };
        tokio::spawn(attribution.run(room.missed, records, events_in));
        let collect = tokio::spawn(async move {
            let result = match (collector, &mut tap) {
                (Some((collector, probes)), _) => {
                    let result = collector.run(stopped).await;
                    drop(probes);
                    result
                }
                (None, Some(tap)) => tokio::select! {
                    _ = stopped => Ok(()),
                    ended = tap.done() => return ended,
                },
                (None, None) => Ok(()),
            };
            match tap {
                Some(tap) => tap.end().await.and(result),
                None => result,
            }
        });
        let recorder = Recorder { sums, dns_seen, degraded, attached, progress, stop: Some(stop), collect };
        Ok((recorder, events))
    }

    /// How DNS is seen, in words, where that is not by the node's root cgroup.
    pub fn dns_seen(&self) -> Option<&str> {
        self.dns_seen.as_deref()
    }

    /// What this kernel or this machine does not allow, in words: the rest is recorded.
    pub fn degraded(&self) -> &[String] {
        &self.degraded
    }

    /// The probes that were wanted, by name, and whether they are attached.
    pub fn attached(&self) -> &[(&'static str, bool)] {
        &self.attached
    }

    /// Losses of all stages since the start, by counter name.
    pub fn losses(&self) -> Losses {
        self.sums.losses()
    }

    /// SIGKILLs that processes of one container (or of one cgroup of the host) sent each other: counted, not told.
    pub fn own_kills(&self) -> u64 {
        self.sums.own_kills()
    }

    /// What each container's DNS queries came to since the start, successes included, with their owners: exact whether
    /// they became events or not. Waits for the container runtime like any attribution; nothing is held up meanwhile.
    /// A timeout is counted when it is told. Empty if DNS is not recorded.
    pub async fn dns_counts(&self) -> Vec<DnsCounts> {
        self.sums.dns_counts().await
    }

    /// What to leave out, for whoever keeps to a budget.
    pub fn shed(&self) -> Arc<Shed> {
        self.sums.shed.clone()
    }

    /// For whoever keeps events, so that a restart tells those again that are not kept.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// For whoever serves metrics.
    pub fn scraper(&self) -> Scraper {
        self.sums.clone()
    }

    /// Empties the rings, detaches, and gives the final losses. The receiver ends after what was under way:
    /// receive on until it does.
    pub async fn stop(mut self) -> anyhow::Result<Losses> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        match tokio::time::timeout(DRAIN, &mut self.collect).await {
            Ok(joined) => joined??,
            Err(_) => {
                self.collect.abort();
                anyhow::bail!("the recorder did not stop within {DRAIN:?}")
            }
        }
        Ok(self.losses())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Without a stop: the task holds the probes, so ending it detaches them.
        if self.stop.is_some() {
            self.collect.abort();
        }
    }
}
