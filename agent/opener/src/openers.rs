//! The agent's end of openers: gives them requests, and replaces one that is late or dead.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podopsy_helper::channel::{receive, send};
use podopsy_helper::{Activity, FileHandle, Hangs, HelperEnd, HelperKind, Supervisors, Tenant};
use podopsy_system::pressure;
use podopsy_system::sync::lock;

use crate::lateness::{Lateness, PATIENCE};
use crate::request::{MappedArea, OpenError, Reply, Request};
use crate::turns::{Turn, Turns};

/// The first argument of a program that is to be the supervisor.
pub(crate) const ARGUMENT: &str = "--opener";
const KIND: HelperKind = HelperKind { name: "opener", loss: "stacks have no names" };
/// Openers that wait for a request. More are started while several threads open files, and are ended then.
const MAX_IDLE: usize = 2;
/// Openers that could not be killed, each of another container. Beyond it, files that may hang are refused.
const MAX_STUCK: usize = 8;
/// Beyond this many, every file is refused.
const MAX_STUCK_AT_ALL: usize = 32;
/// How long an opener that was killed may take to end, until it is left alone.
const END_TIMEOUT: Duration = Duration::from_millis(50);

/// How [`Openers`] are started.
#[derive(Clone, Debug)]
pub struct OpenerOptions {
    /// The program that calls [`crate::run_if_asked`]; usually this one.
    pub program: OsString,
    /// The time limit of a file that may hang.
    pub remote_limit: Duration,
    /// The time limit of a file on a disk of this node, which an opener gets up to four times ([`crate::lateness`]). On a node
    /// that is short of memory, the disk is busy.
    pub local_limit: Duration,
}

impl Default for OpenerOptions {
    fn default() -> OpenerOptions {
        OpenerOptions {
            program: "/proc/self/exe".into(),
            remote_limit: Duration::from_millis(500),
            local_limit: Duration::from_secs(2),
        }
    }
}

/// Whose file is opened.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub tenant: Tenant,
    pub pid: u32,
    /// By the process's mounts, the file may lie on a file system that another process or another machine serves.
    pub may_hang: bool,
}

/// Opens the files of containers. A clone is the same.
#[derive(Clone, Debug)]
pub struct Openers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: OpenerOptions,
    source: Mutex<OpenerSource>,
    idle: Mutex<Vec<Opener>>,
    /// By files, and by what `/proc` has of processes: a container without its files still has its mappings.
    file_hangs: Mutex<Hangs>,
    process_hangs: Mutex<Hangs>,
    turns: Arc<Turns>,
    /// Requests that got no answer in time.
    late: AtomicU64,
}

/// Where openers come from.
#[derive(Debug)]
enum OpenerSource {
    Supervisors(Supervisors),
    /// Threads of this process: for tests of what is above this crate.
    #[cfg(feature = "testing")]
    Threads,
    /// The first request starts the supervisor.
    NotStarted,
}

#[derive(Debug)]
struct Opener {
    pid: i32,
    socket: UnixStream,
    /// None: it is idle.
    turn: Option<Turn>,
}

impl Openers {
    /// Starts a supervisor. Must be called before the process gives up the right to start programs.
    pub fn start(options: OpenerOptions) -> io::Result<Openers> {
        Ok(Self::new(OpenerSource::start(&options)?, options))
    }

    /// Starts the supervisor with the first request: for a command that may have none, and that keeps its rights.
    pub fn on_demand(options: OpenerOptions) -> Openers {
        Self::new(OpenerSource::NotStarted, options)
    }

    /// Openers are threads of this process, without a jail.
    #[cfg(feature = "testing")]
    pub fn in_threads() -> Openers {
        Self::new(OpenerSource::Threads, OpenerOptions::default())
    }

    fn new(source: OpenerSource, options: OpenerOptions) -> Openers {
        Openers(Arc::new(Shared {
            options,
            source: Mutex::new(source),
            idle: Mutex::default(),
            file_hangs: Mutex::default(),
            process_hangs: Mutex::default(),
            turns: Arc::default(),
            late: AtomicU64::new(0),
        }))
    }

    /// Opens the very inode behind a mapping.
    pub fn mapped_file(&self, target: Target, area: MappedArea) -> Result<FileHandle, OpenError> {
        self.open(target, &Request::Mapped { pid: target.pid, area })
    }

    /// Opens a file below the root of a process.
    pub fn file_in_root(&self, target: Target, path: &[u8]) -> Result<FileHandle, OpenError> {
        self.open(target, &Request::InRoot { pid: target.pid, path: path.to_vec() })
    }

    /// Reads a file below the root of a process, which may have `max_bytes`.
    pub fn content_in_root(&self, target: Target, path: &[u8], max_bytes: u64) -> Result<Vec<u8>, OpenError> {
        let request = Request::Content { pid: target.pid, path: path.to_vec(), max_bytes };
        match self.request(target, &request, None)? {
            (Reply::Content(content), _) => Ok(content),
            (Reply::Failed(error), _) => Err(error),
            _ => Err(OpenError::Unavailable),
        }
    }

    /// The steps of the jail that this machine does not permit, in words.
    pub fn weaknesses(&self) -> Vec<String> {
        match &*lock(&self.0.source) {
            OpenerSource::Supervisors(supervisors) => supervisors.weaknesses(),
            _ => Vec::new(),
        }
    }

    /// Requests that got no answer in time, and openers that could not be killed since, up to now.
    pub fn hangs(&self) -> (u64, usize) {
        (self.0.late.load(Relaxed), self.0.stuck())
    }

    fn open(&self, target: Target, request: &Request) -> Result<FileHandle, OpenError> {
        match self.request(target, request, None)? {
            (Reply::Opened(stat), Some(sealed)) => Ok(FileHandle::from_sealed(sealed, stat)),
            (Reply::Failed(error), _) => Err(error),
            _ => Err(OpenError::Unavailable),
        }
    }

    /// Opens the memory of a process for [`Openers::read_memory`]. The handle stays with the address space that is current
    /// now: after an exec, it does not show the new program's memory.
    pub fn open_memory(&self, target: Target) -> Result<FileHandle, OpenError> {
        self.open(target, &Request::OpenMemory { pid: target.pid })
    }

    /// Reads parts of a memory: address and length. A part may be shorter, and empty if the process has ended; none if it cannot
    /// be read. A page that lies on a file may have to be read from its file system.
    pub fn read_memory(
        &self,
        target: Target,
        memory: &FileHandle,
        parts: Vec<(u64, u32)>,
    ) -> Result<Vec<Option<Vec<u8>>>, OpenError> {
        let wanted = parts.len();
        match self.request(target, &Request::ReadMemory { parts }, Some(memory))? {
            (Reply::Memory(parts), _) if parts.len() == wanted => Ok(parts),
            (Reply::Failed(error), _) => Err(error),
            _ => Err(OpenError::Unavailable),
        }
    }

    /// `/proc/PID/maps`, to be read from beginning to end.
    pub fn maps(&self, target: Target) -> Result<MapsReader, OpenError> {
        let (opener, (reply, stream)) = self.exchange(target, &Request::Maps { pid: target.pid }, None)?;
        match (reply, stream) {
            (Reply::Streaming, Some(stream)) => {
                let end = Instant::now() + self.0.limit(target) * PATIENCE;
                let (openers, stream) = (self.clone(), UnixStream::from(stream));
                let begin = Instant::now();
                Ok(MapsReader { openers, target, opener: Some(opener), stream, begin, end, cpu_time: None })
            }
            (Reply::Failed(error), _) => {
                self.0.give_back(opener);
                Err(error)
            }
            _ => Err(OpenError::Unavailable),
        }
    }

    fn request(
        &self,
        target: Target,
        request: &Request,
        file: Option<&FileHandle>,
    ) -> Result<(Reply, Option<OwnedFd>), OpenError> {
        let (opener, answer) = self.exchange(target, request, file)?;
        self.0.give_back(opener);
        Ok(answer)
    }

    /// Gives a request to an opener, and returns that opener with the answer.
    fn exchange(
        &self,
        target: Target,
        request: &Request,
        file: Option<&FileHandle>,
    ) -> Result<(Opener, (Reply, Option<OwnedFd>)), OpenError> {
        let limit = self.0.limit(target);
        let turn = self.0.turns.take(target.tenant, limit * PATIENCE).ok_or(OpenError::NoAnswer)?;
        if self.0.refuses(target, request.is_of_file()) {
            return Err(OpenError::NoAnswer);
        }
        let mut turn = Some(turn);
        // The second attempt is for an opener that was lost since it was last used.
        for _ in 0..2 {
            let mut opener = self.0.take().map_err(|error| {
                tracing::debug!("start an opener: {error}");
                OpenError::Unavailable
            })?;
            let lateness = Lateness::new(target.may_hang || !request.is_of_file());
            match opener.exchange(request, file, limit, lateness) {
                Ok(answer) => {
                    opener.turn = turn.take();
                    return Ok((opener, answer));
                }
                Err(error) if is_late(&error) => {
                    self.0.leave(&opener, target, request.is_of_file());
                    return Err(OpenError::NoAnswer);
                }
                Err(_) => drop(self.0.end(&opener)),
            }
        }
        Err(OpenError::Unavailable)
    }

    /// Has an opener hang, or end, instead of opening a file.
    #[cfg(feature = "testing")]
    pub fn misbehave(&self, target: Target, dies: bool) -> OpenError {
        let request = if dies { Request::Die } else { Request::Hang };
        self.request(target, &request, None).err().unwrap_or(OpenError::OutOfReach)
    }

    /// Has an opener wait so many times, each time for so long, before it answers.
    #[cfg(feature = "testing")]
    pub fn delay(&self, target: Target, waits: u32, each: Duration) -> Result<(), OpenError> {
        self.request(target, &Request::Delay { waits, each }, None).map(drop)
    }
}

impl Shared {
    /// Whether no opener is risked for a file.
    fn refuses(&self, target: Target, is_of_file: bool) -> bool {
        let is_stuck = |pid| self.is_stuck(pid);
        let bound = if target.may_hang { MAX_STUCK } else { MAX_STUCK_AT_ALL };
        if self.stuck() >= bound {
            lock(&self.file_hangs).refresh(is_stuck);
            lock(&self.process_hangs).refresh(is_stuck);
        }
        self.stuck() >= bound || lock(self.hangs(is_of_file)).refuses(target.tenant, Instant::now(), is_stuck)
    }

    fn hangs(&self, is_of_file: bool) -> &Mutex<Hangs> {
        if is_of_file { &self.file_hangs } else { &self.process_hangs }
    }

    /// Openers that could not be killed.
    fn stuck(&self) -> usize {
        lock(&self.file_hangs).stuck() + lock(&self.process_hangs).stuck()
    }

    fn limit(&self, target: Target) -> Duration {
        if target.may_hang { self.options.remote_limit } else { self.options.local_limit }
    }

    fn take(&self) -> io::Result<Opener> {
        if let Some(opener) = lock(&self.idle).pop() {
            return Ok(opener);
        }
        let (pid, socket) = lock(&self.source).start_opener(&self.options)?;
        Ok(Opener { pid, socket, turn: None })
    }

    fn give_back(&self, mut opener: Opener) {
        opener.turn = None;
        let mut idle = lock(&self.idle);
        if idle.len() < MAX_IDLE {
            return idle.push(opener);
        }
        drop(idle);
        let Opener { pid, socket, .. } = opener;
        drop(socket);
        if let OpenerSource::Supervisors(supervisors) = &mut *lock(&self.source) {
            supervisors.end(pid);
        }
    }

    /// Kills an opener that hangs. If that is not possible, it is left alone, and never waited for again.
    fn leave(&self, opener: &Opener, target: Target, is_of_file: bool) {
        self.late.fetch_add(1, Relaxed);
        let stuck = (self.end(opener) == HelperEnd::Stuck).then_some(opener.pid);
        let pause = lock(self.hangs(is_of_file)).add(target.tenant, Instant::now(), stuck);
        let (what, refused) = match is_of_file {
            true => ("the file system of a process's file does", "file"),
            false => ("a process's memory or its list of mappings does", "memory and no list"),
        };
        tracing::warn!(
            pid = target.pid,
            "{what} not answer: no {refused} of its container is read for {} s",
            pause.as_secs()
        );
    }

    fn end(&self, opener: &Opener) -> HelperEnd {
        match &mut *lock(&self.source) {
            OpenerSource::Supervisors(supervisors) => supervisors.end_within(opener.pid, END_TIMEOUT),
            _ => HelperEnd::Killed,
        }
    }

    fn is_stuck(&self, pid: i32) -> bool {
        match &mut *lock(&self.source) {
            OpenerSource::Supervisors(supervisors) => supervisors.is_stuck(pid),
            _ => false,
        }
    }
}

impl OpenerSource {
    fn start(options: &OpenerOptions) -> io::Result<OpenerSource> {
        Supervisors::start(KIND, &options.program, &[ARGUMENT.into()]).map(OpenerSource::Supervisors)
    }

    fn start_opener(&mut self, options: &OpenerOptions) -> io::Result<(i32, UnixStream)> {
        if matches!(self, OpenerSource::NotStarted) {
            *self = OpenerSource::start(options)?;
        }
        match self {
            OpenerSource::Supervisors(supervisors) => supervisors.start_helper(),
            #[cfg(feature = "testing")]
            OpenerSource::Threads => {
                let (own, theirs) = UnixStream::pair()?;
                std::thread::spawn(move || crate::serve::serve(theirs));
                Ok((0, own))
            }
            OpenerSource::NotStarted => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Opener {
    /// Gives the opener a request, and waits for the answer until the limit, or longer if it is only slow.
    fn exchange(
        &mut self,
        request: &Request,
        file: Option<&FileHandle>,
        limit: Duration,
        mut lateness: Lateness,
    ) -> io::Result<(Reply, Option<OwnedFd>)> {
        self.socket.set_read_timeout(Some(limit))?;
        self.socket.set_write_timeout(Some(limit))?;
        let files: Vec<_> = file.iter().map(|file| file.as_raw_fd()).collect();
        send(&mut self.socket, request, &files)?;
        loop {
            match receive(&mut self.socket) {
                Ok((reply, mut files)) => return Ok((reply, files.pop().map(OwnedFd::from))),
                Err(error) if is_late(&error) && self.is_only_slow(&mut lateness) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether an opener that is late is waited for once more.
    fn is_only_slow(&self, lateness: &mut Lateness) -> bool {
        lateness.waits_on(Activity::of(self.pid), pressure::is_overloaded)
    }

    fn has_no_cpu(&self) -> bool {
        Activity::of(self.pid).is_some_and(|activity| activity.is_runnable)
    }
}

/// A file of /proc that an opener reads.
#[derive(Debug)]
pub struct MapsReader {
    openers: Openers,
    target: Target,
    /// None: it has hung.
    opener: Option<Opener>,
    stream: UnixStream,
    begin: Instant,
    end: Instant,
    /// What the opener reported at the end of the content.
    cpu_time: Option<Duration>,
}

impl MapsReader {
    /// The CPU time that the opener took, or the time that has passed if the content was not read to its end.
    pub fn cpu_time(&self) -> Duration {
        self.cpu_time.unwrap_or_else(|| self.begin.elapsed())
    }

    fn finish(&mut self) -> io::Result<()> {
        let Some(mut opener) = self.opener.take() else { return Ok(()) };
        match receive(&mut opener.socket) {
            Ok((Reply::Streamed(cpu_time), _)) => {
                self.cpu_time = Some(cpu_time);
                self.openers.0.give_back(opener);
                Ok(())
            }
            ended => {
                self.openers.0.end(&opener);
                Err(ended.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into()))
            }
        }
    }
}

impl Read for MapsReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = self.openers.0.limit(self.target);
        loop {
            let left = self.end.saturating_duration_since(Instant::now()).min(limit);
            let Some(opener) = self.opener.as_ref().filter(|_| !left.is_zero()) else { break };
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(buffer) {
                Ok(0) => {
                    self.finish()?;
                    return Ok(0);
                }
                Err(error) if is_late(&error) && opener.has_no_cpu() => {}
                Err(error) if is_late(&error) => break,
                read => return read,
            }
        }
        if let Some(opener) = self.opener.take() {
            self.openers.0.leave(&opener, self.target, false);
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Drop for MapsReader {
    fn drop(&mut self) {
        // Not read to the end: the opener is still at it.
        if let Some(opener) = self.opener.take() {
            self.openers.0.end(&opener);
        }
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
