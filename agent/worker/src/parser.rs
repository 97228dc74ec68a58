//! The agent's end of a worker, for one thread: gives it jobs, and replaces it when it is late or dead.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use podopsy_helper::channel::{receive, send};
use podopsy_helper::{Activity, FileHandle, FileStat, HelperEnd, Tenant};
use podopsy_parse::StackLossReason;
use podopsy_parse::elf::Layout;
use podopsy_parse::names::{FoundNames, NameQuery};
use podopsy_parse::perf_map::PerfMapNames;
use podopsy_parse::unwind::FileRows;
use podopsy_system::clock;
use podopsy_system::sync::lock;
use serde::{Deserialize, Serialize};

use crate::bad_files::FileIdentity;
use crate::job::{Answer, FileDescription, FoundUnwind, Job, JobKind, JobOrder};
use crate::pool::Shared;

/// Wall-clock time of a job, in multiples of its CPU time: the machine may be busy, or the file system slow.
const PATIENCE: u32 = 5;
/// How often the agent looks whether a worker still works, in the CPU time of a job.
const LOOKS: u32 = 4;
/// If a worker has done nothing but wait in this many looks, the file system does not answer.
const MAX_IDLE_LOOKS: u32 = 8;
/// How often a job is given to a new worker after its worker was killed from outside.
const RETRIES: u32 = 2;

/// Why a job has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// It took more CPU time than a job may.
    TooSlow,
    /// It took more wall-clock time: the file system does not answer, or the machine is very busy.
    NoAnswer,
    /// The worker ran out of memory or of stack.
    OutOfMemory,
    /// The worker died of the file in another way, or its answer was not one.
    Died,
    /// Each of several workers was killed by SIGKILL: by the kernel for want of memory, or by an administrator.
    Killed,
    /// The container has used up the CPU time for its files.
    OverBudget,
    /// No worker could be started.
    Unavailable,
}

/// A job without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: FailureReason,
    /// The CPU time that the job could use.
    pub limit: Duration,
}

impl Failure {
    /// The counter of the loss.
    pub fn loss(self) -> StackLossReason {
        match self.reason {
            FailureReason::TooSlow => StackLossReason::ParserTooSlow,
            FailureReason::NoAnswer => StackLossReason::ParserNoAnswer,
            FailureReason::OutOfMemory => StackLossReason::ParserOutOfMemory,
            FailureReason::Died => StackLossReason::ParserDied,
            FailureReason::Killed => StackLossReason::ParserKilled,
            FailureReason::OverBudget => StackLossReason::ParserOverBudget,
            FailureReason::Unavailable => StackLossReason::ParserUnavailable,
        }
    }

    /// Whether the file is the reason, so that trying again does not help.
    pub fn is_permanent(self) -> bool {
        !matches!(self.reason, FailureReason::OverBudget | FailureReason::Unavailable)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            FailureReason::TooSlow => write!(f, "took more than {} s", self.limit.as_secs()),
            FailureReason::NoAnswer => f.write_str("reading it took too long"),
            FailureReason::OutOfMemory => f.write_str("needed too much memory"),
            FailureReason::Died => f.write_str("the parser died of it"),
            FailureReason::Killed => f.write_str("the parser was killed each time"),
            FailureReason::OverBudget => f.write_str("the files of this container took too much CPU time"),
            FailureReason::Unavailable => f.write_str("no parser could be started"),
        }
    }
}

/// A worker that was started for a container.
#[derive(Debug)]
struct Worker {
    pid: i32,
    socket: UnixStream,
    tenant: Tenant,
}

impl Worker {
    /// Gives the worker a job, and waits for the answer as long as it works on it.
    fn exchange(&mut self, order: &JobOrder, files: &[i32]) -> io::Result<(Answer, Duration)> {
        // An answer comes as a whole, or not at all: a worker that stalls within it is bounded by its timer.
        self.socket.set_read_timeout(Some(order.cpu / LOOKS))?;
        self.socket.set_write_timeout(Some(order.cpu * PATIENCE))?;
        send(&mut self.socket, order, files)?;
        let (mut before, mut idle_looks) = (None, 0);
        for _ in 1..PATIENCE * LOOKS {
            match receive::<(Answer, Duration)>(&mut self.socket) {
                Ok((answer, _)) => return Ok(answer),
                Err(error) if is_late(&error) => {}
                Err(error) => return Err(error),
            }
            let now = Activity::of(self.pid);
            let is_idle = now.is_some_and(|now| !now.is_runnable && Some(now.cpu_ticks) == before);
            idle_looks = if is_idle { idle_looks + 1 } else { 0 };
            before = now.map(|now| now.cpu_ticks);
            if idle_looks >= MAX_IDLE_LOOKS {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        receive::<(Answer, Duration)>(&mut self.socket).map(|(answer, _)| answer)
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The files that names are looked up in.
#[derive(Clone, Copy, Debug)]
pub struct NamedFiles<'a> {
    pub file: &'a FileHandle,
    /// It may be the separate debug file of `file`.
    pub debug_file: Option<&'a FileHandle>,
    /// If `file` was written to since it was opened, there are no names.
    pub must_be_unchanged: bool,
}

/// Gives jobs to a worker of its own.
#[derive(Debug)]
pub struct Parser {
    shared: Arc<Shared>,
    worker: Option<Worker>,
}

impl Drop for Parser {
    fn drop(&mut self) {
        self.rest();
    }
}

impl Parser {
    pub(crate) fn new(shared: Arc<Shared>) -> Parser {
        Parser { shared, worker: None }
    }

    /// Segments, build id and debug link of a file; none if it is not an ELF file of this kind of machine.
    pub fn describe(
        &mut self,
        tenant: Tenant,
        file: &FileHandle,
    ) -> Result<Option<FileDescription>, Failure> {
        self.run(tenant, Job::Describe, &[file], |answer| match answer {
            Answer::Described(found) => Some(found),
            _ => None,
        })
    }

    /// The names of offsets of a file, from debug information if that can be read, else from symbol tables.
    pub fn names(
        &mut self,
        tenant: Tenant,
        named: &NamedFiles<'_>,
        layout: &Layout,
        offsets: Vec<u64>,
    ) -> Result<Result<FoundNames, StackLossReason>, Failure> {
        let NamedFiles { file, debug_file, must_be_unchanged } = *named;
        let unchanged = must_be_unchanged.then_some(file.stat);
        let bounds = self.shared.options.bounds;
        let mut query = NameQuery { offsets, layout: layout.clone(), debug_info: true, bounds };
        let files: Vec<&FileHandle> = [file].into_iter().chain(debug_file).collect();
        let mut look_up = |query: NameQuery| {
            self.run_if_unchanged(tenant, Job::Names(query), &files, unchanged, |answer| match answer {
                Answer::Names(found) => Some(found),
                Answer::Changed => Some(Err(StackLossReason::FileChanged)),
                _ => None,
            })
        };
        match look_up(query.clone()) {
            // Symbol tables are smaller and simpler.
            Err(failure) if failure.is_permanent() => {
                query.debug_info = false;
                look_up(query).map(|found| with_loss(found, failure.loss()))
            }
            found => found,
        }
    }

    /// The names that a perf map has for addresses.
    pub fn perf_map(
        &mut self,
        tenant: Tenant,
        map: &FileHandle,
        addresses: Vec<u64>,
    ) -> Result<Result<PerfMapNames, StackLossReason>, Failure> {
        self.run(tenant, Job::PerfMap { addresses }, &[map], |answer| match answer {
            Answer::PerfMap(found) => Some(found),
            _ => None,
        })
    }

    /// Finds the unwind information of a file, of which no section may have more than `max_bytes`.
    pub fn find_unwind(
        &mut self,
        tenant: Tenant,
        file: &FileHandle,
        max_bytes: u64,
    ) -> Result<Result<FoundUnwind, StackLossReason>, Failure> {
        let job = Job::FindUnwind { max_bytes, key: self.shared.digest_key };
        self.run(tenant, job, &[file], |answer| match answer {
            Answer::Unwind(found) => Some(found),
            _ => None,
        })
    }

    /// The rows of the file of the last [`Parser::find_unwind`], which must be `file`.
    pub fn rows(
        &mut self,
        tenant: Tenant,
        file: &FileHandle,
    ) -> Result<Result<FileRows, StackLossReason>, Failure> {
        self.run(tenant, Job::ReadRows, &[file], |answer| match answer {
            Answer::Rows(found) => Some(found),
            _ => None,
        })
    }

    /// Ends the worker, which frees its memory. The next job starts another.
    pub fn rest(&mut self) {
        if let Some(worker) = self.worker.take() {
            drop(worker.socket);
            self.shared.end_worker(worker.pid, worker.tenant);
        }
    }

    /// Does what a container makes expensive (reading thousands of mappings) on this thread, and charges its CPU time to the
    /// container as if it were a job.
    ///
    /// # Errors
    /// [`FailureReason::OverBudget`], without a call of `work`, if the container has used up its time.
    pub fn spend<T>(&self, tenant: Tenant, work: impl FnOnce() -> T) -> Result<T, Failure> {
        let limit = self.shared.options.job;
        if self.left(tenant).is_zero() {
            return Err(Failure { reason: FailureReason::OverBudget, limit });
        }
        let begin = clock::thread_cpu();
        let done = work();
        self.charge(tenant, clock::thread_cpu().saturating_sub(begin));
        Ok(done)
    }

    /// Charges CPU time to a container that another process used for it.
    pub fn charge_used(&self, tenant: Tenant, used: Duration) {
        self.charge(tenant, used);
    }

    /// The CPU time that the files of a container have left.
    pub fn left(&self, tenant: Tenant) -> Duration {
        lock(&self.shared.budgets).left(tenant, Instant::now())
    }

    #[cfg(feature = "testing")]
    pub(crate) fn current_pid(&self) -> Option<i32> {
        self.worker.as_ref().map(|worker| worker.pid)
    }

    pub(crate) fn run<T>(
        &mut self,
        tenant: Tenant,
        job: Job,
        files: &[&FileHandle],
        of_kind: impl Fn(Answer) -> Option<T>,
    ) -> Result<T, Failure> {
        self.run_if_unchanged(tenant, job, files, None, of_kind)
    }

    fn run_if_unchanged<T>(
        &mut self,
        tenant: Tenant,
        job: Job,
        files: &[&FileHandle],
        unchanged: Option<FileStat>,
        of_kind: impl Fn(Answer) -> Option<T>,
    ) -> Result<T, Failure> {
        let limit = self.shared.options.job;
        let fail = |reason| Err(Failure { reason, limit });
        let kind = job.kind();
        let order = JobOrder { job, cpu: limit, unchanged };
        let identity = files.first().map(|file| FileIdentity::of(file));
        let bad = identity.and_then(|file| lock(&self.shared.bad_files).reason(file, kind));
        if let Some(reason) = bad {
            return fail(reason);
        }
        if self.shared.refuses(tenant) {
            return fail(FailureReason::NoAnswer);
        }
        if self.left(tenant) < limit / 20 {
            return fail(FailureReason::OverBudget);
        }
        for _ in 0..=RETRIES {
            match self.attempt(tenant, &order, files) {
                Ok((answer, used)) => {
                    self.charge(tenant, used.min(limit));
                    if let Some(answer) = of_kind(answer) {
                        return Ok(answer);
                    }
                    self.lose_worker();
                    self.remember(identity, kind, FailureReason::Died);
                    return fail(FailureReason::Died);
                }
                Err(Attempt::NotStarted) => return fail(FailureReason::Unavailable),
                // The file need not be the reason: an administrator, or the kernel for want of memory.
                Err(Attempt::KilledFromOutside) => {}
                Err(Attempt::Failed(reason)) => {
                    self.charge(tenant, limit);
                    self.remember(identity, kind, reason);
                    return fail(reason);
                }
            }
        }
        self.charge(tenant, limit);
        self.remember(identity, kind, FailureReason::Killed);
        fail(FailureReason::Killed)
    }

    /// Gives a job to the worker once. Returns the answer and the CPU time that it took.
    fn attempt(
        &mut self,
        tenant: Tenant,
        order: &JobOrder,
        files: &[&FileHandle],
    ) -> Result<(Answer, Duration), Attempt> {
        let worker = self.worker_for(tenant).map_err(|error| {
            tracing::debug!("start a parsing worker: {error}");
            Attempt::NotStarted
        })?;
        let descriptors: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
        let answered = worker.exchange(order, &descriptors);
        match answered {
            Ok((Answer::Panicked, _)) => {
                self.lose_worker();
                tracing::info!("a parsing worker panicked at {:?}", order.job.kind());
                Err(Attempt::Failed(FailureReason::Died))
            }
            Ok(answered) => Ok(answered),
            Err(error) => {
                let is_late = is_late(&error);
                let is_no_answer = error.kind() == io::ErrorKind::InvalidData;
                let end = self.lose_worker();
                // Bounded: a lost worker costs its container a third of its CPU time.
                tracing::info!("a parsing worker was lost at {:?}: {error}, {end:?}", order.job.kind());
                Err(Attempt::without_answer(end, is_late, is_no_answer))
            }
        }
    }

    /// The worker for the files of a container. A worker that served another one is ended.
    fn worker_for(&mut self, tenant: Tenant) -> io::Result<&mut Worker> {
        if self.worker.as_ref().is_some_and(|worker| worker.tenant != tenant) {
            self.rest();
        }
        match &mut self.worker {
            Some(worker) => Ok(worker),
            none => {
                let (pid, socket) = self.shared.start_worker()?;
                Ok(none.insert(Worker { pid, socket, tenant }))
            }
        }
    }

    fn lose_worker(&mut self) -> HelperEnd {
        self.shared.lost.fetch_add(1, Relaxed);
        match self.worker.take() {
            Some(worker) => self.shared.end_worker(worker.pid, worker.tenant),
            None => HelperEnd::Killed,
        }
    }

    fn charge(&self, tenant: Tenant, used: Duration) {
        lock(&self.shared.budgets).charge(tenant, used, Instant::now());
    }

    fn remember(&self, file: Option<FileIdentity>, kind: JobKind, reason: FailureReason) {
        let Some(file) = file else { return };
        if let Err(error) = lock(&self.shared.bad_files).add(file, kind, reason) {
            tracing::debug!("keep the list of unreadable files: {error}");
        }
    }
}

/// Why an attempt has no answer.
enum Attempt {
    NotStarted,
    KilledFromOutside,
    Failed(FailureReason),
}

impl Attempt {
    /// Of a worker that gave no answer.
    fn without_answer(end: HelperEnd, is_late: bool, is_no_answer: bool) -> Attempt {
        match end {
            HelperEnd::Signal(libc::SIGPROF) => Attempt::Failed(FailureReason::TooSlow),
            // Rust ends a program that is out of memory or out of stack by SIGABRT.
            HelperEnd::Signal(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS) => {
                Attempt::Failed(FailureReason::OutOfMemory)
            }
            HelperEnd::Signal(libc::SIGKILL) => Attempt::KilledFromOutside,
            _ if is_late => Attempt::Failed(FailureReason::NoAnswer),
            // The supervisor was lost, and with it the way in which the worker ended.
            HelperEnd::Killed if !is_no_answer => Attempt::KilledFromOutside,
            _ => Attempt::Failed(FailureReason::Died),
        }
    }
}

fn with_loss(
    found: Result<FoundNames, StackLossReason>,
    loss: StackLossReason,
) -> Result<FoundNames, StackLossReason> {
    found.map(|mut found| {
        found.left_out.push(loss);
        found
    })
}
