//! What the parsers of a process share: the supervisor, the bad files, the budgets, and the counters.

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podopsy_helper::{Hangs, HelperEnd, HelperKind, Supervisors, Tenant};
use podopsy_parse::names::NameBounds;
use podopsy_system::sync::lock;

use crate::bad_files::BadFiles;
use crate::budget::Budgets;
use crate::parser::Parser;

/// The first argument of a program that is to be the supervisor.
pub(crate) const ARGUMENT: &str = "--parsing-worker";
const KIND: HelperKind = HelperKind { name: "parsing worker", loss: "stacks have no names" };

/// Bytes of address space of a command's worker, where its cgroup has no limit.
const COMMAND_MEMORY: u64 = 1 << 30;

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

    /// For a command that a person waits for. `limit`: bytes of memory that its cgroup may have, of which a worker may use half.
    pub fn command(limit: Option<u64>) -> ParserOptions {
        let memory = limit.map_or(COMMAND_MEMORY, |limit| COMMAND_MEMORY.min(limit / 2));
        ParserOptions {
            memory,
            bounds: if memory < COMMAND_MEMORY / 2 { NameBounds::SMALL } else { NameBounds::LARGE },
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
    /// Containers whose files a worker waits for that cannot be killed.
    hangs: Mutex<Hangs>,
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
    Supervisors(Supervisors),
    /// Threads of this process: for tests of what is above this crate.
    #[cfg(feature = "testing")]
    Threads,
    /// The first job starts the supervisor.
    NotStarted,
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
        Self::new(WorkerSource::Threads, ParserOptions::command(None))
    }

    fn new(source: WorkerSource, options: ParserOptions) -> ParserPool {
        let random = || RandomState::new().hash_one(0);
        ParserPool(Arc::new(Shared {
            source: Mutex::new(source),
            bad_files: Mutex::new(BadFiles::load(options.state_dir.as_deref())),
            hangs: Mutex::default(),
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
            WorkerSource::Supervisors(supervisors) => supervisors.weaknesses(),
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

    /// Ends a worker, and returns how it had ended. One that cannot be killed is left alone.
    pub fn end_worker(&self, pid: i32, tenant: Tenant) -> HelperEnd {
        let end = match &mut *lock(&self.source) {
            WorkerSource::Supervisors(supervisors) => supervisors.end(pid),
            _ => HelperEnd::Killed,
        };
        if end == HelperEnd::Stuck {
            let pause = lock(&self.hangs).add(tenant, Instant::now(), Some(pid));
            tracing::warn!(
                pid,
                "a parsing worker waits for a file system and cannot be killed: no file of its container is read for {} s",
                pause.as_secs()
            );
        }
        end
    }

    /// Whether no worker is risked for a container.
    pub fn refuses(&self, tenant: Tenant) -> bool {
        lock(&self.hangs).refuses(tenant, Instant::now(), |pid| match &mut *lock(&self.source) {
            WorkerSource::Supervisors(supervisors) => supervisors.is_stuck(pid),
            _ => false,
        })
    }
}

impl WorkerSource {
    fn start(options: &ParserOptions) -> io::Result<WorkerSource> {
        let arguments = [ARGUMENT.into(), options.memory.to_string().into()];
        Supervisors::start(KIND, &options.program, &arguments).map(WorkerSource::Supervisors)
    }

    fn start_worker(&mut self, options: &ParserOptions) -> io::Result<(i32, UnixStream)> {
        if matches!(self, WorkerSource::NotStarted) {
            *self = WorkerSource::start(options)?;
        }
        match self {
            WorkerSource::Supervisors(supervisors) => supervisors.start_helper(),
            #[cfg(feature = "testing")]
            WorkerSource::Threads => {
                let (own, theirs) = UnixStream::pair()?;
                std::thread::spawn(move || crate::serve::serve(theirs, &crate::serve::NoClock));
                Ok((0, own))
            }
            WorkerSource::NotStarted => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}
