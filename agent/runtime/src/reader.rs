//! The agent's end of a runtime reader: gives it questions, and replaces one that is late or lost.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use podopsy_helper::{Hangs, HelperEnd, HelperKind, Supervisors, Tenant};
use podopsy_system::sync::lock;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use crate::client::back_off;
use crate::frames::{ANSWER_MAX, Answered, Asked, QUESTION_MAX, encode, receive};
use crate::question::{Answer, CallError, ConnectionStatus, Question};
use crate::serve::arguments;

const KIND: HelperKind =
    HelperKind { name: "runtime reader", loss: "new pods are named by their log folders" };
/// Frames that wait for the reader to take them.
const MAX_WAITING: usize = 64;
/// A hang is remembered by container; a reader serves all of them.
const ALL_CONTAINERS: Tenant = 0;
/// What a reader may take beside its own time limits.
const MARGIN: Duration = Duration::from_secs(1);

/// How a [`RuntimeReader`] is started.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// The program that calls [`crate::run_if_asked`]; usually this one.
    pub program: OsString,
    /// The CRI v1 socket. None: probe the usual paths.
    pub socket: Option<PathBuf>,
    /// Where else paths are looked up: the root of the node's first process.
    pub node_root: Option<PathBuf>,
    /// The timeout of one CRI call.
    pub timeout: Duration,
}

/// Asks the runtime through a process of its own. A clone is the same.
#[derive(Clone, Debug)]
pub struct RuntimeReader(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: Duration,
    supervisors: Mutex<Supervisors>,
    /// Readers that were lost, and are not ended yet.
    to_end: Mutex<Vec<i32>>,
    hangs: Mutex<Hangs>,
    /// Held while a reader is started, so that many questions start one.
    starting: tokio::sync::Mutex<()>,
    link: Mutex<Option<Arc<Link>>>,
    state: Mutex<ReaderState>,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct ReaderState {
    /// As of the last answer.
    status: ConnectionStatus,
    /// The runtime is not asked before this time.
    not_before: Option<Instant>,
    /// Calls that had failed in readers that were lost, and questions that no reader answered.
    errors_before: u64,
    /// Why the last question was not answered by any reader.
    error: Option<String>,
    /// Readers that were lost since the last answer.
    failures: u32,
}

/// A reader, and who waits for its answers.
#[derive(Debug)]
struct Link {
    pid: i32,
    frames: mpsc::Sender<Vec<u8>>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next_id: u64,
    answers: HashMap<u64, oneshot::Sender<Box<Answered>>>,
    is_closed: bool,
}

impl RuntimeReader {
    /// Starts the supervisor. Must be called before the process gives up the right to start programs.
    pub fn start(options: &ReaderOptions) -> io::Result<RuntimeReader> {
        let supervisors = Supervisors::start(KIND, &options.program, &arguments(options))?;
        Ok(RuntimeReader(Arc::new(Shared {
            // A question may wait for a probe of the sockets, for a turn, and for the answer.
            limit: options.timeout * 3 + MARGIN,
            supervisors: Mutex::new(supervisors),
            to_end: Mutex::default(),
            hangs: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            link: Mutex::default(),
            state: Mutex::default(),
            lost: AtomicU64::new(0),
        })))
    }

    /// Asks a question. While the runtime or the reader backs off, the answer is the last error.
    pub async fn ask(&self, question: Question) -> Result<Answer, CallError> {
        if !self.is_ready() {
            return Err(CallError::Down(self.status().error.unwrap_or_default()));
        }
        let deadline = tokio::time::Instant::now() + self.0.limit;
        let mut error = io::Error::from(io::ErrorKind::NotConnected);
        // The second attempt is for a reader that was lost meanwhile: each question can be asked twice.
        for _ in 0..2 {
            let link = match timeout_at(deadline, self.0.link()).await {
                Ok(Ok(link)) => link,
                Ok(Err(error)) => return Err(self.0.unanswered(&format!("start a runtime reader: {error}"))),
                Err(_) => return Err(self.0.unanswered("no runtime reader was started in time")),
            };
            match timeout_at(deadline, link.exchange(question.clone())).await {
                Ok(Ok(answered)) => return self.0.settle(*answered),
                Ok(Err(lost)) => error = lost,
                Err(_) => {
                    self.0.lose(link.pid, "it does not answer");
                    return Err(self.0.unanswered("the runtime reader does not answer"));
                }
            }
        }
        Err(self.0.unanswered(&format!("the runtime reader was lost: {error}")))
    }

    /// The connection as of the last answer, and the last error.
    pub fn status(&self) -> ConnectionStatus {
        let state = lock(&self.0.state);
        let errors = state.errors_before + state.status.errors;
        let error = state.error.clone().or(state.status.error.clone());
        ConnectionStatus { error, errors, back_off: None, ..state.status.clone() }
    }

    /// The process that listens on the runtime's socket.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.0.state).status.pid
    }

    /// Whether a question would be asked.
    pub fn is_ready(&self) -> bool {
        lock(&self.0.state).not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// Readers that were lost, up to now.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Relaxed)
    }

    /// The steps of the jail that this machine does not permit, in words.
    pub fn weaknesses(&self) -> Vec<String> {
        lock(&self.0.supervisors).weaknesses()
    }
}

impl Shared {
    /// The reader, which is started if there is none.
    async fn link(self: &Arc<Self>) -> io::Result<Arc<Link>> {
        let _guard = self.starting.lock().await;
        if let Some(link) = lock(&self.link).clone() {
            return Ok(link);
        }
        let shared = Arc::clone(self);
        let started = tokio::task::spawn_blocking(move || shared.start_reader()).await;
        let (pid, socket) = started.unwrap_or_else(|panic| Err(io::Error::other(panic)))?;
        socket.set_nonblocking(true)?;
        let (answers, questions) = UnixStream::from_std(socket)?.into_split();
        let (frames, to_send) = mpsc::channel(MAX_WAITING);
        let link = Arc::new(Link { pid, frames, waiting: Mutex::default() });
        *lock(&self.link) = Some(Arc::clone(&link));
        tokio::spawn(send_frames(questions, to_send));
        tokio::spawn(take_answers(answers, Arc::downgrade(&link), Arc::downgrade(self)));
        Ok(link)
    }

    fn start_reader(&self) -> io::Result<(i32, StdStream)> {
        self.end_lost();
        let is_stuck = |pid| lock(&self.supervisors).is_stuck(pid);
        if lock(&self.hangs).refuses(ALL_CONTAINERS, Instant::now(), is_stuck) {
            return Err(io::Error::other("the last one waits in the kernel and cannot be killed"));
        }
        lock(&self.supervisors).start_helper()
    }

    /// Kills readers that were lost. One that cannot be killed is left alone.
    fn end_lost(&self) {
        let pids = std::mem::take(&mut *lock(&self.to_end));
        for pid in pids {
            if lock(&self.supervisors).end(pid) == HelperEnd::Stuck {
                lock(&self.hangs).add(ALL_CONTAINERS, Instant::now(), Some(pid));
            }
        }
    }

    /// Gives up a reader, once. What waits for its answers gets an error.
    fn lose(self: &Arc<Self>, pid: i32, why: &str) {
        let Some(link) = lock(&self.link).take_if(|link| link.pid == pid) else { return };
        link.close();
        lock(&self.to_end).push(pid);
        self.lost.fetch_add(1, Relaxed);
        let mut state = lock(&self.state);
        state.errors_before += std::mem::take(&mut state.status.errors);
        state.failures += 1;
        // The first one is replaced at once.
        let pause = state.failures.checked_sub(2).map(back_off);
        state.not_before = pause.map(|pause| Instant::now() + pause);
        drop(state);
        tracing::warn!(pid, "the runtime reader was lost ({why}); the next question starts another one");
        let shared = Arc::clone(self);
        tokio::task::spawn_blocking(move || shared.end_lost());
    }

    fn settle(&self, answered: Answered) -> Result<Answer, CallError> {
        let mut state = lock(&self.state);
        state.not_before = answered.status.back_off.map(|left| Instant::now() + left);
        state.status = answered.status;
        (state.failures, state.error) = (0, None);
        answered.answer
    }

    /// Counts a question that no reader answered.
    fn unanswered(&self, why: &str) -> CallError {
        let mut state = lock(&self.state);
        state.errors_before += 1;
        state.error = Some(why.to_owned());
        // A reader that cannot be started is not tried for each question.
        let pause = Instant::now() + back_off(state.failures);
        state.not_before = state.not_before.max(Some(pause));
        CallError::Down(why.to_owned())
    }
}

impl Link {
    async fn exchange(&self, question: Question) -> io::Result<Box<Answered>> {
        let closed = || io::Error::from(io::ErrorKind::ConnectionReset);
        let (sender, answer) = oneshot::channel();
        let id = self.wait_for(sender).ok_or_else(closed)?;
        let frame = encode(&Asked { id, question }, QUESTION_MAX)
            .map_err(|len| io::Error::other(format!("a question of {len} bytes exceeds the limit")))?;
        self.frames.send(frame).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())
    }

    /// None: the reader is gone.
    fn wait_for(&self, answer: oneshot::Sender<Box<Answered>>) -> Option<u64> {
        let mut waiting = lock(&self.waiting);
        if waiting.is_closed {
            return None;
        }
        waiting.next_id += 1;
        let id = waiting.next_id;
        waiting.answers.insert(id, answer);
        Some(id)
    }

    fn close(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.is_closed = true;
        waiting.answers.clear();
    }
}

/// Ends with the link.
async fn send_frames(mut questions: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if questions.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Hands answers to those who wait for them, until the reader ends or sends what is no answer.
async fn take_answers(mut answers: OwnedReadHalf, link: Weak<Link>, shared: Weak<Shared>) {
    let why = loop {
        match receive::<Answered>(&mut answers, ANSWER_MAX).await {
            Ok(Some(answered)) => {
                let Some(link) = link.upgrade() else { return };
                let waits = lock(&link.waiting).answers.remove(&answered.id);
                if let Some(waits) = waits {
                    // The caller may not wait any more.
                    let _ = waits.send(Box::new(answered));
                }
            }
            Ok(None) => break "it ended".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    if let (Some(link), Some(shared)) = (link.upgrade(), shared.upgrade()) {
        shared.lose(link.pid, &why);
    }
}
