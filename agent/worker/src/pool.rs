//! What the parsers of a process share: the supervisor, the bad files, the budgets, and the counters.

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podopsy_parse::names::NameBounds;
use podopsy_system::sync::lock;

use crate::bad_files::BadFiles;
use crate::budget::Budgets;
use crate::parser::Parser;
use crate::supervisor::{Supervisor, WorkerEnd};

/// How a [`ParserPool`] is started.
#[derive(Clone, Debug)]
pub struct ParserOptions {
    /// The program that calls [`crate::run_if_asked`]; usually this one.
    pub program: OsString,
    /// Bytes of address space of a worker.
    pub memory: u64,
    /// What a worker may read of a file for names. Must fit into `memory`.
    pub bounds: NameBounds,
    /// CPU time of one job.
    pub job: Duration,
    /// CPU time that the files of one container may take at once.
    pub container: Duration,
    /// Where the list of bad files is kept.
    pub state_dir: Option<PathBuf>,
}

impl ParserOptions {
    /// For the agent, whose container has a memory limit of 256 MiB.
    pub fn agent(state_dir: Option<PathBuf>) -> ParserOptions {
        ParserOptions {
            program: "/proc/self/exe".into(),
            memory: 144 << 20,
            bounds: NameBounds::SMALL,
            job: Duration::from_secs(2),
            container: Duration::from_secs(6),
            state_dir,
        }
    }

    /// For a command that a person waits for.
    pub fn command() -> ParserOptions {
        ParserOptions {
            memory: 1 << 30,
            bounds: NameBounds::LARGE,
            job: Duration::from_secs(5),
            container: Duration::from_secs(30),
            ..ParserOptions::agent(None)
        }
    }
}

/// Makes parsers. A clone is the same pool.
#[derive(Clone, Debug)]
pub struct ParserPool(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    source: Mutex<WorkerSource>,
    pub bad_files: Mutex<BadFiles>,
    pub budgets: Mutex<Budgets>,
    pub options: ParserOptions,
    /// The key of digests of unwind information.
    pub digest_key: [u64; 2],
    /// Workers that were started.
    started: AtomicU64,
    /// Workers that were lost in a job.
    pub lost: AtomicU64,
}

/// Where workers come from.
#[derive(Debug)]
enum WorkerSource {
    Supervisors {
        current: Supervisor,
        reserve: Option<Supervisor>,
    },
    /// Threads of this process: for tests of what is above this crate.
    #[cfg(feature = "testing")]
    Threads,
    /// The first job starts the supervisor.
    NotStarted,
    /// There is none any more.
    Lost,
}

impl ParserPool {
    /// Starts a supervisor. Must be called before the process gives up the right to start programs.
    pub fn start(options: ParserOptions) -> io::Result<ParserPool> {
        Ok(Self::new(WorkerSource::start(&options)?, options))
    }

    /// Starts the supervisor with the first job: for a command that may have none, and that keeps its rights.
    pub fn on_demand(options: ParserOptions) -> ParserPool {
        Self::new(WorkerSource::NotStarted, options)
    }

    /// Workers are threads of this process, without a jail and without bounds.
    #[cfg(feature = "testing")]
    pub fn in_threads() -> ParserPool {
        Self::new(WorkerSource::Threads, ParserOptions::command())
    }

    fn new(source: WorkerSource, options: ParserOptions) -> ParserPool {
        let random = || RandomState::new().hash_one(0);
        ParserPool(Arc::new(Shared {
            source: Mutex::new(source),
            bad_files: Mutex::new(BadFiles::load(options.state_dir.as_deref())),
            budgets: Mutex::new(Budgets::new(options.container)),
            digest_key: [random(), random()],
            options,
            started: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }))
    }

    /// A parser for one thread. Its worker is started with the first job.
    pub fn parser(&self) -> Parser {
        Parser::new(Arc::clone(&self.0))
    }

    /// The steps of the jail that this machine does not permit, in words.
    pub fn weaknesses(&self) -> Vec<String> {
        match &*lock(&self.0.source) {
            WorkerSource::Supervisors { current, .. } => current.failed.clone(),
            _ => Vec::new(),
        }
    }

    /// Workers that were started, and those that were lost in a job, up to now.
    pub fn workers(&self) -> (u64, u64) {
        (self.0.started.load(Relaxed), self.0.lost.load(Relaxed))
    }
}

impl Shared {
    /// A new worker: its pid and its socket. A supervisor that is lost is replaced by the reserve.
    pub fn start_worker(&self) -> io::Result<(i32, UnixStream)> {
        let started = lock(&self.source).start_worker(&self.options)?;
        self.started.fetch_add(1, Relaxed);
        Ok(started)
    }

    /// Ends a worker, and returns how it had ended.
    pub fn end_worker(&self, pid: i32) -> WorkerEnd {
        match &mut *lock(&self.source) {
            WorkerSource::Supervisors { current, .. } => current.end(pid).unwrap_or(WorkerEnd::Killed),
            _ => WorkerEnd::Killed,
        }
    }
}

impl WorkerSource {
    fn start(options: &ParserOptions) -> io::Result<WorkerSource> {
        let mut current = Supervisor::start(&options.program, options.memory)?;
        if !current.failed.is_empty() {
            tracing::warn!("the jail of the parsing worker is incomplete: {}", current.failed.join("; "));
        }
        let reserve = current.fork().ok();
        Ok(WorkerSource::Supervisors { current, reserve })
    }

    fn start_worker(&mut self, options: &ParserOptions) -> io::Result<(i32, UnixStream)> {
        if matches!(self, WorkerSource::NotStarted) {
            *self = WorkerSource::start(options)?;
        }
        match self {
            WorkerSource::Supervisors { current, .. } => match current.worker() {
                Ok(worker) => Ok(worker),
                Err(error) => {
                    self.promote_reserve(&error)?;
                    match self {
                        WorkerSource::Supervisors { current, .. } => current.worker(),
                        _ => Err(error),
                    }
                }
            },
            #[cfg(feature = "testing")]
            WorkerSource::Threads => {
                let (own, theirs) = UnixStream::pair()?;
                std::thread::spawn(move || crate::serve::serve(theirs, &crate::serve::NoClock));
                Ok((0, own))
            }
            WorkerSource::NotStarted | WorkerSource::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn promote_reserve(&mut self, error: &io::Error) -> io::Result<()> {
        let WorkerSource::Supervisors { current, reserve } = self else { return Ok(()) };
        let Some(mut next) = reserve.take() else {
            tracing::error!(
                "the parsing worker's supervisor is lost ({error}): stacks have no names until podopsy is started again"
            );
            *self = WorkerSource::Lost;
            return Err(io::ErrorKind::NotConnected.into());
        };
        tracing::warn!("the parsing worker's supervisor is lost ({error}); the one in reserve goes on");
        next.failed.clone_from(&current.failed);
        *reserve = next.fork().ok();
        *current = next;
        Ok(())
    }
}
