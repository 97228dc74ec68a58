//! DNS without BPF: a thread between the packet socket and the queue of records.
//!
//! Stands in for rings, in-flight map and counters where they are out of reach; from the queue on all is the same. It may
//! wait for /proc, which is why it is a thread: meanwhile the kernel's buffer holds what comes, and counts what does not fit.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use podopsy_wire::{DNS_CONTAINERS_MAX, DnsKey, DnsPending, Task};
use tokio::sync::{mpsc, oneshot};

use super::counts::{self, Counts, Owners, Places};
use crate::record::Record;
use crate::{DnsHook, DnsOptions};
use podopsy_decode::dns::{answered, unanswered};
use podopsy_model::{Losses, Outcome, Owner};
use podopsy_packets::asker::Askers;
use podopsy_packets::parse::{self, Ends, Packet};
use podopsy_packets::socket::Socket;
use podopsy_packets::stream::Streams;
use podopsy_packets::table::{Passed, Settings, Table};
use podopsy_packets::{Lost, SCOPE};
use podopsy_pods::Pods;
use podopsy_pods::inside::Inside;
use podopsy_probes::Rate;
use podopsy_system::clock::boot_now_ns;
use {podopsy_doctor as doctor, podopsy_packets as packets};

/// How often queries in flight are looked at: the error of a timeout's time.
const SWEEP: Duration = Duration::from_millis(100);
/// Frames between two looks at the clock.
const BATCH: usize = 256;
/// Processes whose container is remembered.
const PROCESSES_MAX: usize = 1024;

/// A socket that is open, and why there is one.
pub struct Tapped {
    socket: Socket,
    pub seen: String,
}

/// Opens the socket if it is wanted, or if the cgroup hook is known to be out of reach.
pub fn choose(options: &DnsOptions) -> anyhow::Result<Option<Tapped>> {
    match options.hook {
        DnsHook::Cgroup => Ok(None),
        DnsHook::Socket => open(options, "as --dns-hook says").map(Some),
        DnsHook::Auto => match doctor::dns_out_of_reach() {
            Some(why) => open(options, &why).map(Some),
            None => Ok(None),
        },
    }
}

/// The second way, after the probe could not be attached.
pub fn instead(options: &DnsOptions, error: anyhow::Error) -> anyhow::Result<Tapped> {
    let why = format!("the probe cannot: {error:#}");
    open(options, &why)
        .map_err(|second| error.context(format!("a packet socket cannot stand in: {second:#}")))
}

fn open(options: &DnsOptions, why: &str) -> anyhow::Result<Tapped> {
    let socket = Socket::open(&options.ports)
        .with_context(|| format!("DNS is not seen by the root cgroup ({why}), nor by a packet socket"))?;
    Ok(Tapped { socket, seen: format!("{SCOPE} ({why})") })
}

/// What goes with the thread's records.
pub struct Around {
    pub pods: Arc<Pods>,
    pub records: mpsc::Sender<Record>,
    pub losses: Arc<Mutex<Losses>>,
    /// Losses of stages that nobody else sums up: there are no probes.
    pub lookups_evicted: Option<Arc<AtomicU64>>,
}

/// The running thread, which ends when this is dropped.
pub struct Handle {
    stop: Arc<AtomicBool>,
    done: oneshot::Receiver<anyhow::Result<()>>,
    pub counts: counts::Shared,
}

impl Handle {
    /// Ends the thread after what is in the socket by now.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Relaxed);
        self.done().await
    }

    /// Waits until it ends by itself, which it does for an error alone.
    pub async fn done(&mut self) -> anyhow::Result<()> {
        (&mut self.done).await.unwrap_or_else(|_| Err(anyhow::anyhow!("the thread that reads packets ended")))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

struct Tap {
    socket: Socket,
    ports: [u16; 4],
    table: Table,
    streams: Streams,
    whose: Whose,
    around: Around,
    counts: counts::Shared,
    lost: Lost,
    queue_full: u64,
}

/// Starts the thread, which stays in the calling thread's network namespace.
pub fn start(tapped: Tapped, options: &DnsOptions, around: Around) -> anyhow::Result<Handle> {
    let rate = Rate::default();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let settings = Settings {
        answers: options.answers,
        slow_ns: options.slow_over.map_or(0, |over| nanos(over).max(1)),
        sample: options.sample,
        interval_ns: u64::from(rate.interval_us()) * 1000,
        burst: rate.burst.max(1).into(),
        timeout_ns: nanos(options.timeout),
    };
    let (counters, owners) = (packets::Counters::default(), Owners::default());
    let inside = Inside::here();
    let places = Places::Here(counters.clone(), inside.is_some().then(|| owners.clone()));
    let counts = Arc::new(Mutex::new(Counts::new(places, rate)));
    let askers = Askers::new(Path::new("/proc"));
    let mut tap = Tap {
        socket: tapped.socket,
        ports: options.ports,
        table: Table::new(settings, counters),
        streams: Streams::default(),
        whose: Whose { askers, inside, owners, numbers: HashMap::new(), pods: around.pods.clone() },
        around,
        counts: counts.clone(),
        lost: Lost::default(),
        queue_full: 0,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let (done_in, done) = oneshot::channel();
    let stopped = stop.clone();
    std::thread::Builder::new()
        .name("dns packets".into())
        // Whoever waits for the end may have gone.
        .spawn(move || _ = done_in.send(tap.run(&stopped)))
        .context("start the thread that reads packets")?;
    Ok(Handle { stop, done, counts })
}

impl Tap {
    fn run(&mut self, stopped: &AtomicBool) -> anyhow::Result<()> {
        let mut next_sweep = Instant::now() + SWEEP;
        loop {
            let is_last = stopped.load(Relaxed);
            if !is_last {
                self.socket.wait(next_sweep.saturating_duration_since(Instant::now()))?;
            }
            let there_may_be_more = self.read()?;
            if Instant::now() >= next_sweep || is_last {
                self.sweep();
                self.sum_losses();
                next_sweep = Instant::now() + SWEEP;
            }
            if is_last && !there_may_be_more {
                return Ok(());
            }
        }
    }

    /// Frames that are there, a batch at most; false: there are no more.
    fn read(&mut self) -> anyhow::Result<bool> {
        for _ in 0..BATCH {
            let Some(frame) = self.socket.frame()? else { return Ok(false) };
            let (is_outgoing, time_ns) = (frame.is_outgoing, frame.time_ns);
            match parse::packet(&frame, &self.ports, &mut self.lost) {
                None => {}
                Some(Packet::Datagram { ends, message, size }) => {
                    let passed = Passed { ends, is_outgoing, size, bytes: message, time_ns };
                    let record = self.table.see(&passed, || self.whose.asker(&ends), &mut self.lost);
                    pass_on(record, &self.whose, &self.around, &mut self.queue_full);
                }
                Some(Packet::Segment { ends, sequence, is_first, bytes, len }) => {
                    let place = (sequence, is_first);
                    let found = self.streams.segment(ends, is_outgoing, place, bytes, len, &mut self.lost);
                    for message in found {
                        let passed =
                            Passed { ends, is_outgoing, size: message.size, bytes: &message.bytes, time_ns };
                        let record = self.table.see(&passed, || self.whose.asker(&ends), &mut self.lost);
                        pass_on(record, &self.whose, &self.around, &mut self.queue_full);
                    }
                }
                Some(Packet::Unreachable { ends }) => {
                    for ended in self.table.unreachable(&ends) {
                        end(
                            ended,
                            Outcome::Unreachable,
                            time_ns,
                            &self.counts,
                            &self.whose,
                            &self.around,
                            &mut self.queue_full,
                        );
                    }
                }
            }
        }
        Ok(true)
    }

    fn sweep(&mut self) {
        let dropped = self.socket.dropped();
        if dropped > 0 {
            self.lost.frames += dropped;
            self.table.doubt(&mut self.lost);
        }
        let now = boot_now_ns();
        for ended in self.table.sweep(now) {
            end(ended, Outcome::Timeout, now, &self.counts, &self.whose, &self.around, &mut self.queue_full);
        }
    }

    fn sum_losses(&self) {
        let mut sum: Losses = self.lost.named().map(|(name, count)| (name.to_owned(), count)).into();
        if let Ok(counts) = self.counts.lock() {
            sum.extend(counts.losses());
            *sum.entry("dns_throttled".to_owned()).or_default() += counts.throttled();
        }
        sum.insert("recorder_queue".to_owned(), self.queue_full);
        if let Some(evicted) = &self.around.lookups_evicted {
            sum.insert("lookups_evicted".to_owned(), evicted.load(Relaxed));
            sum.extend(self.around.pods.status().losses);
        }
        sum.retain(|_, count| *count > 0);
        if let Ok(mut losses) = self.around.losses.lock() {
            *losses = sum;
        }
    }
}

fn pass_on(
    record: Option<Box<podopsy_wire::DnsRecord>>,
    whose: &Whose,
    around: &Around,
    queue_full: &mut u64,
) {
    let Some(record) = record else { return };
    let transaction = answered(&record);
    // As in the collector: some of what is shipped to be judged turns out to be fine.
    if transaction.outcome == Outcome::Noerror && record.why == 0 {
        return;
    }
    let asker = record.pending.asker;
    let record = Record::Dns { asker, owner: whose.owner(&asker), time_ns: record.time_ns, transaction };
    *queue_full += u64::from(around.records.try_send(record).is_err());
}

fn end(
    (key, pending): (DnsKey, DnsPending),
    outcome: Outcome,
    time_ns: u64,
    counts: &counts::Shared,
    whose: &Whose,
    around: &Around,
    queue_full: &mut u64,
) {
    let asker = pending.asker;
    let may_pass = counts.lock().is_ok_and(|mut counts| counts.unanswered(asker.cgroup_id, outcome, time_ns));
    if may_pass {
        let transaction = unanswered(&key, &pending, outcome, time_ns);
        let record = Record::Dns { asker, owner: whose.owner(&asker), time_ns, transaction };
        *queue_full += u64::from(around.records.try_send(record).is_err());
    }
}

/// Sockets to processes to containers.
struct Whose {
    askers: Askers,
    /// None: the processes of the host are seen, and the pods are asked whose they are.
    inside: Option<Inside>,
    owners: Owners,
    /// (pid, start) → the container's number.
    numbers: HashMap<(u32, u64), u64>,
    pods: Arc<Pods>,
}

impl Whose {
    /// The process, with its memory cgroup's id or what stands for it.
    fn asker(&mut self, ends: &Ends) -> Task {
        let task = self.askers.find(ends);
        if task.pid == 0 {
            return task;
        }
        let Some(inside) = &self.inside else {
            return Task { cgroup_id: self.pods.cgroup_of_pid(task.pid).unwrap_or(0), ..task };
        };
        let process = (task.pid, task.start_ns);
        if let Some(number) = self.numbers.get(&process) {
            return Task { cgroup_id: *number, ..task };
        }
        let (number, owner) = inside.owner(task.pid);
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.len() < DNS_CONTAINERS_MAX as usize {
            owners.entry(number).or_insert(owner);
        }
        if self.numbers.len() >= PROCESSES_MAX {
            self.numbers.clear();
        }
        self.numbers.insert(process, number);
        Task { cgroup_id: number, ..task }
    }

    /// What is known from inside the pod; None: ask the pods.
    fn owner(&self, asker: &Task) -> Option<Box<Owner>> {
        let inside = self.inside.as_ref()?;
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let known = owners.get(&asker.cgroup_id).cloned();
        Some(Box::new(known.unwrap_or_else(|| inside.nobody())))
    }
}
