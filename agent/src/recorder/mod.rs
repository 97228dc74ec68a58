//! The event pipeline: probes → ring → decode → attribute → event.
//!
//! Two tasks: one empties the rings and must never wait; one attributes, and may wait for the
//! runtime. The queue between them is bounded, and what does not fit is counted.

mod autopsy;
mod collect;
mod counts;
mod flight;
mod growth;
mod lookups;
mod record;
mod stacks;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::attach::{DnsWanted, HTTPS_RESOLVERS, Rate, Wanted};
use crate::metrics::Scrape;
use crate::model::{DnsCounts, Event, Losses, Owner};
use crate::oom::recover::Missed;
use crate::oom::state::boot_id;
use crate::oom::tally::Tally;
use crate::oom::{Desk, Examiner};
use crate::pods::Pods;
use crate::sigkill;
use collect::Collector;
use counts::Counts;
use flight::Flight;
pub use growth::GrowthMode;
use record::Attribution;
use stacks::Stacks;

/// Records between the two tasks.
const RECORDS: usize = 16_384;
/// Events that the listener has not taken yet.
const EVENTS: usize = 1024;
/// How long a stop waits for records under way to become events.
const DRAIN: Duration = Duration::from_secs(5);

/// What to record.
#[derive(Clone, Debug)]
pub struct Options {
    pub oom: bool,
    /// SIGKILLs that no OOM killer sent.
    pub sigkill: sigkill::Scope,
    pub dns: bool,
    /// Ship answered queries too, not only failures.
    pub dns_answers: bool,
    /// Put queries together to lookups, too (`dns.lookup`): all of them with `dns_answers`, else those that failed.
    pub dns_lookups: bool,
    /// A query without an answer for this long is a timeout.
    pub dns_timeout: Duration,
    /// Ship answers that took longer than this, too; they are `slow`.
    pub dns_slow_over: Option<Duration>,
    /// Ship one answered query in so many, too; 0: none.
    pub dns_sample: u32,
    /// Server ports that carry DNS, at most four; 0 is an unused slot.
    pub dns_ports: [u16; 4],
    /// The node's name in events.
    pub node: String,
    /// Where to keep how far this run came, so that the next one knows what it missed; None: it does not.
    pub state_dir: Option<PathBuf>,
    /// Whether to sample which code the memory of suspects grows by.
    pub growth: GrowthMode,
}

/// A running recorder; probes detach when it is dropped.
#[derive(Debug)]
pub struct Recorder {
    losses: Arc<Mutex<Losses>>,
    own_kills: Arc<AtomicU64>,
    counts: counts::Shared,
    pods: Arc<Pods>,
    examiner: Arc<Examiner>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    collect: JoinHandle<anyhow::Result<()>>,
}

impl Recorder {
    /// Loads and attaches; an error says which probe and what would mend it.
    pub async fn start(
        options: Options,
        pods: Arc<Pods>,
    ) -> anyhow::Result<(Recorder, mpsc::Receiver<Event>)> {
        let wanted = Wanted {
            oom: options.oom,
            sigkill: options.sigkill != sigkill::Scope::None,
            dns: options.dns.then(|| DnsWanted {
                answers: options.dns_answers,
                slow_over: options.dns_slow_over,
                sample: options.dns_sample,
                ports: options.dns_ports,
                rate: Rate::default(),
                https: HTTPS_RESOLVERS.to_vec(),
            }),
            oncpu: None,
        };
        let (mut probes, instruments) = growth::load(&wanted, options.growth)?;
        let room = autopsy::room(&options, &pods)?;
        let (records_in, records) = mpsc::channel(RECORDS);
        let (events_in, events) = mpsc::channel(EVENTS);
        let losses = Arc::new(Mutex::new(Losses::new()));
        let stacks_unnamed = Arc::new(AtomicU64::new(0));
        let own_kills = Arc::new(AtomicU64::new(0));
        let sigkills = sigkill::Desk::new(options.sigkill, &options.node, &boot_id(), pods.clone());
        let counts = Arc::new(Mutex::new(Counts::new(probes.dns_counts()?, Rate::default())));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let lookups_evicted = Arc::new(AtomicU64::new(0));
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
            flight: Flight::new(probes.in_flight()?, options.dns_timeout),
            stacks: Stacks::start()?,
            records: records_in,
            bad_records: 0,
            queue_full: 0,
            stacks_unnamed: stacks_unnamed.clone(),
            files_not_held: 0,
            counts: counts.clone(),
            sweeps: 0,
            pods: pods.clone(),
            losses: losses.clone(),
            kills: 0,
            tally: Tally::new(room.kills_at_start),
            missed_unknown: room.missed.as_ref().map_or(0, Missed::unknown),
            examiner: room.examiner.clone(),
            growth: None,
        };
        if let Some(log) = probes.log()? {
            tokio::spawn(log.forward());
        }
        let probes = Arc::new(Mutex::new(probes));
        let growth = match instruments {
            Some(instruments) => {
                Some(instruments.start(Arc::downgrade(&probes), &pods, &room.examiner).await?)
            }
            None => None,
        };
        collector.growth = growth.clone();
        let (asked, counts_of, examiner) = (pods.clone(), counts, room.examiner.clone());
        let lookups = lookups::Lookups::new(&options, pods.clone());
        let attribution = Attribution {
            lookups_evicted: lookups_evicted.clone(),
            lookups: options.dns_lookups.then_some(lookups),
            node: options.node,
            pods,
            losses: losses.clone(),
            stacks_unnamed,
            examiner: room.examiner,
            desk: Desk::new(&boot_id()),
            sigkills,
            growth,
            state_dir: options.state_dir,
        };
        tokio::spawn(attribution.run(room.missed, records, events_in));
        let collect = tokio::spawn(async move {
            let result = collector.run(stopped).await;
            drop(probes);
            result
        });
        let recorder = Recorder {
            losses,
            own_kills,
            counts: counts_of,
            pods: asked,
            examiner,
            stop: Some(stop),
            collect,
        };
        Ok((recorder, events))
    }

    /// Losses of all stages since the start, by counter name.
    pub fn losses(&self) -> Losses {
        self.losses.lock().map(|losses| losses.clone()).unwrap_or_default()
    }

    /// SIGKILLs that processes of one container (or of one cgroup of the host) sent each other: counted, not told.
    pub fn own_kills(&self) -> u64 {
        self.own_kills.load(Relaxed)
    }

    /// What each container's DNS queries came to since the start, successes included, with their owners: exact whether
    /// they became events or not. Waits for the container runtime like any attribution; nothing is held up meanwhile.
    /// A timeout is counted when it is told. Empty if DNS is not recorded.
    pub async fn dns_counts(&self) -> Vec<DnsCounts> {
        counts::attributed(&self.counts, &self.pods).await
    }

    /// What metrics need to know beside the events. Waits as [`Recorder::dns_counts`] does.
    pub async fn scrape(&self) -> Scrape {
        let alive = self.pods.living();
        let growth =
            |owner: &Owner| Some((owner.clone(), self.examiner.trend(owner.cgroup.id)?.bytes_per_second));
        Scrape {
            growth: alive.iter().filter_map(growth).collect(),
            alive,
            dns: self.dns_counts().await,
            losses: self.losses(),
            own_kills: self.own_kills(),
        }
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
