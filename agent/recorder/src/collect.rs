//! Empties the rings, and makes timeouts of silence. Never waits for anything but the rings.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podopsy_wire::Loss;
use tokio::sync::mpsc;

use super::record::Record;
use super::stacks::{Stacks, Unnamed};
use crate::dns::counts;
use crate::dns::flight::{Ended, Flight};
use crate::growth::sampling::Growth;
use crate::oom::OomExaminer;
use crate::oom::reconcile::KillReconciler;
use crate::shed::{Shed, Step};
use crate::sigkill;
use podopsy_decode::{self as decode, dns::DnsMessage};
use podopsy_model::{Losses, Outcome};
use podopsy_pods::Pods;
use podopsy_probes::KernelKills;
use podopsy_probes::ring;
use podopsy_system::clock::boot_now_ns;

/// How often queries in flight are looked at: the error of a timeout's time.
const SWEEP: Duration = Duration::from_millis(100);

/// A record of each ring, or why it is none.
type Kill = Result<decode::OomDecoded, decode::BadRecord>;
type Message = Result<DnsMessage, decode::BadRecord>;
type Signal = Result<decode::SigkillDecoded, decode::BadRecord>;

/// Empties the rings. Never waits for anything but them.
pub struct Collector {
    pub lookups_evicted: Arc<AtomicU64>,
    pub oom: ring::Ring,
    pub execs: ring::Ring,
    pub dns: ring::Ring,
    pub signals: ring::Ring,
    pub kernel_kills: KernelKills,
    pub sigkills: Arc<sigkill::SigkillCorrelator>,
    pub own_kills: Arc<AtomicU64>,
    pub kernel_losses: ring::Losses,
    pub flight: Flight,
    pub stacks: Stacks,
    pub records: mpsc::Sender<Record>,
    pub bad_records: u64,
    pub queue_full: u64,
    pub stacks_unnamed: Arc<AtomicU64>,
    pub files_not_held: u64,
    pub counts: counts::Shared,
    /// Ticks of the sweep.
    pub sweeps: u32,
    pub pods: Arc<Pods>,
    pub losses: Arc<Mutex<Losses>>,
    /// Victims that the probe saw.
    pub kills: u64,
    pub tally: KillReconciler,
    /// Kills while the recorder was down, of which only the number is known.
    pub missed_unknown: u64,
    pub examiner: Arc<OomExaminer>,
    pub growth: Option<Growth>,
    /// Losses of the packet socket, where that stands in for the dns probe.
    pub tap_losses: Arc<Mutex<Losses>>,
    pub shed: Arc<Shed>,
}

impl Collector {
    /// Until it is told to stop; then once more all that is there.
    pub async fn run(mut self, mut stopped: tokio::sync::oneshot::Receiver<()>) -> anyhow::Result<()> {
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
                    self.tally.update(self.kills, self.examiner.known_differences(), false);
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
        self.tally.update(self.kills, self.examiner.known_differences(), true);
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
                let step = match (transaction.outcome, transaction.slow) {
                    (Outcome::Noerror, false) => Step::DnsAnswers,
                    (Outcome::Noerror, true) => Step::DnsSlow,
                    _ => Step::DnsFailures,
                };
                if self.is_shed(step) {
                    return;
                }
                self.pass_on(Record::Dns {
                    asker: record.pending.asker,
                    owner: None,
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
            if !may_pass || self.is_shed(Step::DnsFailures) {
                continue;
            }
            self.pass_on(Record::Dns {
                asker: ended.pending.asker,
                owner: None,
                time_ns: ended.time_ns,
                transaction: ended.transaction,
            });
        }
    }

    /// Whether an event that is due is left out.
    fn is_shed(&self, step: Step) -> bool {
        self.shed.offered();
        self.shed.leaves_out(step)
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
        sum.extend(self.shed.losses());
        let own = [
            ("oom_missed_while_down", self.missed_unknown),
            ("bad_records", self.bad_records),
            ("recorder_queue", self.queue_full),
            ("lookups_evicted", self.lookups_evicted.load(Relaxed)),
            ("oom_stacks_unnamed", self.stacks_unnamed.load(Relaxed)),
            ("oom_files_not_held", self.files_not_held),
        ];
        sum.extend(own.map(|(name, count)| (name.to_owned(), count)));
        if let Ok(tap) = self.tap_losses.lock() {
            tap.iter().for_each(|(name, count)| *sum.entry(name.clone()).or_default() += count);
        }
        sum.retain(|_, count| *count > 0);
        if let Ok(mut losses) = self.losses.lock() {
            *losses = sum;
        }
    }
}
