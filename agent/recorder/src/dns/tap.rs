//! DNS without BPF: a thread between the packet socket and the queue of records.
//!
//! It replaces rings, in-flight map and counters where they are out of reach; after the queue everything is the same. It
//! is a thread because it reads /proc: meanwhile the kernel buffers frames, and counts those that it drops.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use podopsy_decode::dns::{answered, unanswered};
use podopsy_model::{Losses, Outcome, Owner};
use podopsy_packets::asker::AskerFinder;
use podopsy_packets::parse::{Flow, Packet, parse};
use podopsy_packets::socket::PacketSocket;
use podopsy_packets::stream::Streams;
use podopsy_packets::table::{AnswerSettings, QueryTable, SeenMessage};
use podopsy_packets::{PacketLosses, SCOPE, SharedCounters};
use podopsy_pods::Pods;
use podopsy_pods::inside::OwnPod;
use podopsy_probes::Rate;
use podopsy_system::clock::boot_now_ns;
use podopsy_system::sync::lock;
use podopsy_wire::{DNS_CONTAINERS_MAX, DnsKey, DnsPending, DnsRecord, Task, TokenBucket, WHY_REASONS};
use tokio::sync::{mpsc, oneshot};

use super::counts::{ContainerCounts, CounterSource, InsideOwners, SharedCounts};
use crate::attribute::Record;
use crate::collect::{TICK, add};
use crate::options::{DnsHook, DnsOptions};
use crate::totals::Totals;

/// Frames between two looks at the clock.
const BATCH: usize = 256;
/// Processes whose container is remembered.
const PROCESSES_MAX: usize = 1024;

/// Losses of the thread, by counter name.
pub(crate) type TapLosses = Arc<Mutex<Losses>>;

/// An open socket, and why it is used.
pub(crate) struct OpenTap {
    socket: PacketSocket,
    pub description: String,
}

/// Opens the socket if it is wanted, or if the cgroup hook is known to be out of reach.
pub(crate) fn choose(options: &DnsOptions) -> anyhow::Result<Option<OpenTap>> {
    match options.hook {
        DnsHook::Cgroup => Ok(None),
        DnsHook::Socket => open(options, "as --dns-hook says").map(Some),
        DnsHook::Auto => match podopsy_doctor::dns_out_of_reach() {
            Some(why) => open(options, &why).map(Some),
            None => Ok(None),
        },
    }
}

/// Opens the socket after the probe could not be attached; `error` says why.
pub(crate) fn instead_of_probe(options: &DnsOptions, error: anyhow::Error) -> anyhow::Result<OpenTap> {
    let why = format!("the probe cannot: {error:#}");
    open(options, &why)
        .map_err(|second| error.context(format!("a packet socket cannot replace it: {second:#}")))
}

fn open(options: &DnsOptions, why: &str) -> anyhow::Result<OpenTap> {
    let socket = PacketSocket::open(&options.ports)
        .with_context(|| format!("DNS is not seen by the root cgroup ({why}), nor by a packet socket"))?;
    Ok(OpenTap { socket, description: format!("{SCOPE} ({why})") })
}

/// Where the thread's records and losses go.
pub(crate) struct TapContext {
    pub pods: Arc<Pods>,
    pub records: mpsc::Sender<Record>,
    pub losses: TapLosses,
    /// Set where there are no probes, and so no collector that sums the losses of other stages.
    pub totals: Option<Arc<Totals>>,
}

/// The running thread, which ends when this is dropped.
pub(crate) struct TapHandle {
    stop: Arc<AtomicBool>,
    done: oneshot::Receiver<anyhow::Result<()>>,
    pub counts: SharedCounts,
}

impl TapHandle {
    /// Ends the thread after it has read what is in the socket.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Relaxed);
        self.done().await
    }

    /// Waits until the thread ends by itself, which happens only after an error.
    pub async fn done(&mut self) -> anyhow::Result<()> {
        (&mut self.done).await.unwrap_or_else(|_| Err(anyhow::anyhow!("the thread that reads packets ended")))
    }
}

impl Drop for TapHandle {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// Starts the thread, which stays in the calling thread's network namespace.
pub(crate) fn start(open: OpenTap, options: &DnsOptions, context: TapContext) -> anyhow::Result<TapHandle> {
    let rate = Rate::default();
    let counters = SharedCounters::default();
    let owners = InsideOwners::default();
    let inside = context.pods.inside().cloned();
    let source = CounterSource::PacketSocket(counters.clone(), inside.is_some().then(|| owners.clone()));
    let counts = Arc::new(Mutex::new(ContainerCounts::new(source, rate)));
    let mut tap = Tap {
        socket: open.socket,
        ports: options.ports,
        table: QueryTable::new(settings(options, rate), counters),
        streams: Streams::default(),
        outlet: Outlet {
            owners: SocketOwners {
                askers: AskerFinder::new(Path::new("/proc")),
                inside,
                owners,
                numbers: HashMap::new(),
                pods: context.pods.clone(),
            },
            context,
            counts: counts.clone(),
            queue_full: 0,
        },
        losses: PacketLosses::default(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let (done_in, done) = oneshot::channel();
    std::thread::Builder::new()
        .name("dns packets".into())
        // The receiver may be gone; dropping the result is correct.
        .spawn(move || _ = done_in.send(tap.run(&stopped)))
        .context("start the thread that reads packets")?;
    Ok(TapHandle { stop, done, counts })
}

fn settings(options: &DnsOptions, rate: Rate) -> AnswerSettings {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    AnswerSettings {
        answers: options.answers,
        slow_ns: options.slow_over.map_or(0, |over| nanos(over).max(1)),
        sample: options.sample,
        bucket: TokenBucket::new(rate.interval_us(), rate.burst.max(1)),
        timeout_ns: nanos(options.timeout),
    }
}

struct Tap {
    socket: PacketSocket,
    ports: [u16; 4],
    table: QueryTable,
    streams: Streams,
    outlet: Outlet,
    losses: PacketLosses,
}

impl Tap {
    fn run(&mut self, stopped: &AtomicBool) -> anyhow::Result<()> {
        let mut next_sweep = Instant::now() + TICK;
        loop {
            let is_last = stopped.load(Relaxed);
            if !is_last {
                self.socket.wait(next_sweep.saturating_duration_since(Instant::now()))?;
            }
            let may_have_more = self.read()?;
            if Instant::now() >= next_sweep || is_last {
                self.sweep();
                self.outlet.sum_losses(&self.losses);
                next_sweep = Instant::now() + TICK;
            }
            if is_last && !may_have_more {
                return Ok(());
            }
        }
    }

    /// Reads a batch of frames at most; false: the socket is empty.
    fn read(&mut self) -> anyhow::Result<bool> {
        for _ in 0..BATCH {
            let Some(frame) = self.socket.frame()? else { return Ok(false) };
            let is_outgoing = frame.is_outgoing;
            let time_ns = frame.time_ns;
            match parse(&frame, &self.ports, &mut self.losses) {
                None => {}
                Some(Packet::Datagram { flow, message, size }) => {
                    let message = SeenMessage { flow, is_outgoing, size, bytes: message, time_ns };
                    let asker = || self.outlet.owners.asker(&flow);
                    let record = self.table.handle(&message, asker, &mut self.losses);
                    self.outlet.answered(record);
                }
                Some(Packet::Segment(segment)) => {
                    let flow = segment.flow;
                    for found in self.streams.add(&segment, &mut self.losses) {
                        let (size, bytes) = (found.size, found.bytes.as_slice());
                        let message = SeenMessage { flow, is_outgoing, size, bytes, time_ns };
                        let asker = || self.outlet.owners.asker(&flow);
                        let record = self.table.handle(&message, asker, &mut self.losses);
                        self.outlet.answered(record);
                    }
                }
                Some(Packet::Unreachable { flow }) => {
                    for ended in self.table.unreachable(&flow) {
                        self.outlet.unanswered(ended, Outcome::Unreachable, time_ns);
                    }
                }
            }
        }
        Ok(true)
    }

    fn sweep(&mut self) {
        let dropped = self.socket.dropped();
        if dropped > 0 {
            self.losses.frames += dropped;
            self.table.drop_waiting(&mut self.losses);
        }
        let now = boot_now_ns();
        for ended in self.table.sweep(now) {
            self.outlet.unanswered(ended, Outcome::Timeout, now);
        }
    }
}

/// Makes records of what the table finds, counts them, and passes them on.
struct Outlet {
    owners: SocketOwners,
    context: TapContext,
    counts: SharedCounts,
    queue_full: u64,
}

impl Outlet {
    fn answered(&mut self, record: Option<Box<DnsRecord>>) {
        let Some(record) = record else { return };
        let transaction = answered(&record);
        // As in the reader of the probe: some records turn out to be a plain success.
        if transaction.outcome == Outcome::Noerror && record.why & WHY_REASONS == 0 {
            return;
        }
        let asker = record.pending.asker;
        let owner = self.owners.owner(&asker);
        self.pass_on(Record::Dns { asker, owner, time_ns: record.time_ns, transaction });
    }

    fn unanswered(&mut self, (key, pending): (DnsKey, DnsPending), outcome: Outcome, time_ns: u64) {
        let asker = pending.asker;
        if !lock(&self.counts).unanswered(asker.cgroup_id, outcome, time_ns, 1) {
            return;
        }
        let transaction = unanswered(&key, &pending, outcome, time_ns);
        let owner = self.owners.owner(&asker);
        self.pass_on(Record::Dns { asker, owner, time_ns, transaction });
    }

    fn pass_on(&mut self, record: Record) {
        self.queue_full += u64::from(self.context.records.try_send(record).is_err());
    }

    fn sum_losses(&self, losses: &PacketLosses) {
        let mut sum: Losses = losses.by_name().map(|(name, count)| (name.to_owned(), count)).into();
        add(&mut sum, lock(&self.counts).losses());
        add(&mut sum, [("recorder_queue".to_owned(), self.queue_full)]);
        if let Some(totals) = &self.context.totals {
            add(&mut sum, totals.attribution_losses());
            add(&mut sum, self.context.pods.status().losses);
        }
        sum.retain(|_, count| *count > 0);
        *lock(&self.context.losses) = sum;
    }
}

/// Finds the process of a socket, and the container of the process.
struct SocketOwners {
    askers: AskerFinder,
    /// None: host processes are visible, and the pods crate finds their containers.
    inside: Option<Arc<OwnPod>>,
    owners: InsideOwners,
    /// (pid, start time) → the container's number.
    numbers: HashMap<(u32, u64), u64>,
    pods: Arc<Pods>,
}

impl SocketOwners {
    /// The process that asked, with the id of its memory cgroup, or the number that stands for it inside a pod.
    fn asker(&mut self, flow: &Flow) -> Task {
        let task = self.askers.find(flow);
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
        let mut owners = lock(&self.owners);
        if owners.len() < DNS_CONTAINERS_MAX as usize {
            owners.entry(number).or_insert(owner);
        }
        if self.numbers.len() >= PROCESSES_MAX {
            self.numbers.clear();
        }
        self.numbers.insert(process, number);
        Task { cgroup_id: number, ..task }
    }

    /// The owner that is known from inside the pod; None: the pods crate finds it.
    fn owner(&self, asker: &Task) -> Option<Box<Owner>> {
        let inside = self.inside.as_ref()?;
        let owners = lock(&self.owners);
        let known = owners.get(&asker.cgroup_id).cloned();
        Some(Box::new(known.unwrap_or_else(|| inside.unknown_process())))
    }
}
