//! Threads that may write files. The agent restrains itself so that no other thread can open a file for writing.
//!
//! What a thread may do is inherited by the threads that it starts. So one thread enters the restrictions, and from then
//! on starts a thread for each piece of work. A process that does not restrain itself starts no such thread, and the work
//! runs in the caller's.
//!
//! Must not depend on what the restrictions are, and on what is written.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

/// The name of the thread that starts the others, and of those that have no name of their own.
pub const NAME: &str = "state";

struct Job {
    name: &'static str,
    work: Box<dyn FnOnce() + Send>,
}

static JOBS: OnceLock<Sender<Job>> = OnceLock::new();

thread_local! {
    static IS_STATE_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Starts the thread that starts the others, and returns what `enter` returned there. To be called once in a process,
/// before the caller gives up the right to open files for writing.
pub fn start<T: Send + 'static>(enter: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (jobs, queue) = mpsc::channel::<Job>();
    let (entered, outcome) = mpsc::channel();
    thread::Builder::new().name(NAME.to_owned()).spawn(move || {
        let _ = entered.send(enter());
        for job in queue {
            // The thread may fail to start; the job is then dropped, and its owner sees that.
            let _ = thread::Builder::new().name(job.name.to_owned()).spawn(job.work);
        }
    })?;
    let entered = outcome.recv().map_err(|_| lost())?;
    JOBS.set(jobs).map_err(|_| io::ErrorKind::AlreadyExists)?;
    Ok(entered)
}

/// Runs `work` in a thread that may write files, and waits for it. A panic goes on in the caller.
pub fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let Some(jobs) = JOBS.get().filter(|_| !IS_STATE_THREAD.get()) else { return Ok(work()) };
    let (done, outcome) = mpsc::channel();
    let work = move || {
        IS_STATE_THREAD.set(true);
        let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
    };
    jobs.send(Job { name: NAME, work: Box::new(work) }).map_err(|_| lost())?;
    match outcome.recv().map_err(|_| lost())? {
        Ok(value) => Ok(value),
        Err(panic) => resume_unwind(panic),
    }
}

/// A thread that [`spawn`] started.
#[derive(Debug)]
pub struct StateThread {
    ended: Receiver<()>,
}

impl StateThread {
    /// Waits for the end of the thread, and no longer than `limit`.
    pub fn wait(&self, limit: Duration) {
        let _ = self.ended.recv_timeout(limit);
    }
}

/// Starts a thread that may write files.
pub fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<StateThread> {
    let (end, ended) = mpsc::channel::<()>();
    let work = move || {
        let _end = end;
        IS_STATE_THREAD.set(true);
        work();
    };
    match JOBS.get() {
        Some(jobs) => jobs.send(Job { name, work: Box::new(work) }).map_err(|_| lost())?,
        None => drop(thread::Builder::new().name(name.to_owned()).spawn(work)?),
    }
    Ok(StateThread { ended })
}

fn lost() -> io::Error {
    io::Error::other("the thread that may write files did not start")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread_name() -> String {
        thread::current().name().unwrap_or_default().to_owned()
    }

    /// One test, because a process starts the thread once.
    #[test]
    fn work_runs_in_threads_that_entered_the_restrictions_once_there_are_some() {
        assert_eq!(run(thread_name).unwrap(), thread_name());
        assert_eq!(start(thread_name).unwrap(), NAME);
        assert!(start(|| ()).is_err());
        assert_eq!(run(thread_name).unwrap(), NAME);
        // Work that is nested stays in its thread.
        let nested = run(|| (thread::current().id(), run(|| thread::current().id()).unwrap())).unwrap();
        assert_eq!(nested.0, nested.1);
        let (send, name) = mpsc::channel();
        let thread = spawn("store", move || send.send(thread_name()).unwrap()).unwrap();
        thread.wait(Duration::from_secs(60));
        assert_eq!(name.recv().unwrap(), "store");
        let panicked = catch_unwind(|| run(|| -> () { panic!("expected by the test") }));
        assert!(panicked.is_err());
        assert_eq!(run(|| 1).unwrap(), 1);
    }
}
