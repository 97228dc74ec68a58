//! The event pipeline: probes → ring → decode → attribute → event.
//!
//! Two tasks: one empties the rings and must never wait; one attributes, and may wait for the
//! runtime. The queue between them is bounded, and what does not fit is counted.

mod autopsy;
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

use podopsy_wire::Loss;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::attach::{DnsWanted, HTTPS_RESOLVERS, KernelKills, Rate, Wanted};
use crate::clock::boot_now_ns;
use crate::decode::{self, dns::DnsMessage};
use crate::model::{DnsCounts, Event, Losses, Outcome};
use crate::oom::recover::Missed;
use crate::oom::state::boot_id;
use crate::oom::tally::Tally;
use crate::oom::{Desk, Examiner};
use crate::pods::Pods;
use crate::ring;
use crate::sigkill;
use counts::Counts;
use flight::{Ended, Flight};
use growth::Growth;
pub use growth::GrowthMode;
use record::{Attribution, Record};
use stacks::{Stacks, Unnamed};

/// Records between the two tasks.
const RECORDS: usize = 16_384;
/// Events that the listener has not taken yet.
const EVENTS: usize = 1024;
/// How often queries in flight are looked at: the error of a timeout's time.
const SWEEP: Duration = Duration::from_millis(100);
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
        let (asked, counts_of) = (pods.clone(), counts);
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
        let recorder =
            Recorder { losses, own_kills, counts: counts_of, pods: asked, stop: Some(stop), collect };
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

/// A record of each ring, or why it is none.
type Kill = Result<decode::OomDecoded, decode::BadRecord>;
type Message = Result<DnsMessage, decode::BadRecord>;
type Signal = Result<decode::SigkillDecoded, decode::BadRecord>;

/// Empties the rings. Never waits for anything but them.
struct Collector {
    lookups_evicted: Arc<AtomicU64>,
    oom: ring::Ring,
    execs: ring::Ring,
    dns: ring::Ring,
    signals: ring::Ring,
    kernel_kills: KernelKills,
    sigkills: Arc<sigkill::Desk>,
    own_kills: Arc<AtomicU64>,
    kernel_losses: ring::Losses,
    flight: Flight,
    stacks: Stacks,
    records: mpsc::Sender<Record>,
    bad_records: u64,
    queue_full: u64,
    stacks_unnamed: Arc<AtomicU64>,
    files_not_held: u64,
    counts: counts::Shared,
    /// Ticks of the sweep.
    sweeps: u32,
    pods: Arc<Pods>,
    losses: Arc<Mutex<Losses>>,
    /// Victims that the probe saw.
    kills: u64,
    tally: Tally,
    /// Kills while the recorder was down, of which only the number is known.
    missed_unknown: u64,
    examiner: Arc<Examiner>,
    growth: Option<Growth>,
}

impl Collector {
    async fn run(mut self, mut stopped: tokio::sync::oneshot::Receiver<()>) -> anyhow::Result<()> {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut oom, mut execs, mut dns, mut signals) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        loop {
            tokio::select! {
                drained = self.execs.drain(|bytes| execs.push(decode::exec(bytes))) => drained?,
                drained = self.oom.drain(|bytes| oom.push(decode::oom(bytes))) => drained?,
                drained = self.dns.drain(|bytes| dns.push(decode::dns::record(bytes))) => drained?,
                drained = self.signals.drain(|bytes| signals.push(decode::sigkill(bytes))) => drained?,
                _ = sweep.tick() => {
                    self.kernel_kills();
                    let ended = self.flight.sweep(&self.kernel_losses);
                    self.end(ended);
                    self.look_at_counts();
                    self.tally.look(self.kills, self.examiner.known_differences(), false);
                    self.sum_losses();
                }
                _ = &mut stopped => break,
            }
            execs.drain(..).for_each(|pid| self.hold(pid));
            signals.drain(..).for_each(|signal| self.sigkill(signal));
            self.hand_over(&mut oom, &mut dns);
        }
        self.oom.drain_now(|bytes| oom.push(decode::oom(bytes)));
        self.dns.drain_now(|bytes| dns.push(decode::dns::record(bytes)));
        self.signals.drain_now(|bytes| signals.push(decode::sigkill(bytes)));
        signals.drain(..).for_each(|signal| self.sigkill(signal));
        self.hand_over(&mut oom, &mut dns);
        self.kernel_kills();
        let ended = self.flight.look(&self.kernel_losses);
        self.end(ended);
        self.tally.look(self.kills, self.examiner.known_differences(), true);
        self.sum_losses();
        Ok(())
    }

    /// Passes on what was drained. Kills carry losses of this very moment, summed once for all of them.
    fn hand_over(&mut self, oom: &mut Vec<Kill>, dns: &mut Vec<Message>) {
        if !oom.is_empty() {
            self.sum_losses();
        }
        oom.drain(..).for_each(|kill| self.oom(kill));
        dns.drain(..).for_each(|message| self.dns(message));
    }

    fn hold(&mut self, pid: Result<u32, decode::BadRecord>) {
        match pid {
            Ok(pid) => self.files_not_held += u64::from(!self.stacks.hold(pid)),
            Err(_) => self.bad_records += 1,
        }
    }

    fn oom(&mut self, kill: Kill) {
        let Ok(mut kill) = kill else {
            self.bad_records += 1;
            return;
        };
        self.kills += 1;
        let unnamed = Unnamed {
            pid: kill.trigger.pid,
            kernel: std::mem::take(&mut kill.kernel),
            user: std::mem::take(&mut kill.user),
        };
        let named = self.stacks.ask(unnamed);
        self.stacks_unnamed.fetch_add(u64::from(named.is_none()), Relaxed);
        self.pass_on(Record::Oom(Box::new(kill), named));
    }

    fn dns(&mut self, message: Message) {
        match message {
            Ok(DnsMessage::Answered(record)) => {
                let transaction = decode::dns::answered(&record);
                // The kernel side ships what it is not sure of: some of it turns out to be fine.
                if transaction.outcome == Outcome::Noerror && record.why == 0 {
                    return;
                }
                self.pass_on(Record::Dns {
                    asker: record.pending.asker,
                    time_ns: record.time_ns,
                    transaction,
                });
            }
            Ok(DnsMessage::SocketError(error)) => self.flight.socket_error(error),
            Err(_) => self.bad_records += 1,
        }
    }

    fn sigkill(&mut self, signal: Signal) {
        match signal {
            Ok(signal) if self.sigkills.admits(&signal) => self.pass_on(Record::Sigkill(Box::new(signal))),
            Ok(_) => {}
            Err(_) => self.bad_records += 1,
        }
    }

    /// What the OOM killer has not claimed by now was sent by another part of the kernel.
    fn kernel_kills(&mut self) {
        for signal in self.kernel_kills.take(boot_now_ns()) {
            self.sigkill(Ok(decode::sigkill_record(&signal)));
        }
    }

    fn end(&mut self, ended: Vec<Ended>) {
        for ended in ended {
            let cgroup_id = ended.pending.asker.cgroup_id;
            let may_pass = self.counts.lock().is_ok_and(|mut counts| {
                counts.unanswered(cgroup_id, ended.transaction.outcome, ended.time_ns)
            });
            if !may_pass {
                continue;
            }
            self.pass_on(Record::Dns {
                asker: ended.pending.asker,
                time_ns: ended.time_ns,
                transaction: ended.transaction,
            });
        }
    }

    /// Once a second: counts of a cgroup whose place the kernel side needs must not wait for someone who asks.
    fn look_at_counts(&mut self) {
        self.sweeps += 1;
        if self.sweeps.is_multiple_of(10)
            && let Ok(mut counts) = self.counts.lock()
        {
            counts.look();
        }
    }

    fn pass_on(&mut self, record: Record) {
        if self.records.try_send(record).is_err() {
            self.queue_full += 1;
        }
    }

    /// Losses of every stage, where events and the summary find them.
    fn sum_losses(&self) {
        let mut sum = self.kernel_losses.read();
        sum.extend(self.flight.losses());
        if let Ok(counts) = self.counts.lock() {
            sum.extend(counts.losses());
            *sum.entry("dns_throttled".to_owned()).or_default() += counts.throttled();
        }
        sum.extend(self.pods.status().losses);
        sum.extend(self.examiner.losses());
        sum.extend(self.tally.losses());
        sum.extend(self.sigkills.losses());
        self.own_kills.store(self.kernel_losses.get(Loss::SigkillOwn) + self.sigkills.own(), Relaxed);
        sum.extend(self.growth.as_ref().map(Growth::losses).unwrap_or_default());
        let own = [
            ("oom_missed_while_down", self.missed_unknown),
            ("bad_records", self.bad_records),
            ("recorder_queue", self.queue_full),
            ("lookups_evicted", self.lookups_evicted.load(Relaxed)),
            ("oom_stacks_unnamed", self.stacks_unnamed.load(Relaxed)),
            ("oom_files_not_held", self.files_not_held),
        ];
        sum.extend(own.map(|(name, count)| (name.to_owned(), count)));
        sum.retain(|_, count| *count > 0);
        if let Ok(mut losses) = self.losses.lock() {
            *losses = sum;
        }
    }
}
