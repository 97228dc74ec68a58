//! Stops all threads of a process by ptrace, once, and lets them go on when it is dropped.
//!
//! A thread is seized (which does not stop it), interrupted, and waited for. If podopsy is killed, the kernel detaches and the
//! threads go on, too. A signal that was about to be delivered is handed on.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;

use crate::{CoreError, check, read_error};

/// How long a thread may take to stop, while the others wait for it.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_micros(50);
/// Rounds in which new threads are looked for: a thread that was not seized yet can start others.
const ROUNDS: usize = 100;
/// `PTRACE_EVENT_STOP` (`<linux/ptrace.h>`): a stop by an interrupt, or with the group.
const EVENT_STOP: libc::c_int = 128;

/// A process whose threads are stopped.
#[derive(Debug)]
pub struct StoppedProcess {
    pid: u32,
    threads: Vec<TracedThread>,
}

#[derive(Debug)]
struct TracedThread {
    tid: i32,
    is_stopped: bool,
    /// The signal that it was about to get.
    signal: libc::c_int,
}

impl StoppedProcess {
    pub fn stop(pid: u32, cancelled: &AtomicBool) -> Result<StoppedProcess, CoreError> {
        let mut stopped = StoppedProcess { pid, threads: Vec::new() };
        let mut seen = HashSet::new();
        for _ in 0..ROUNDS {
            if !stopped.seize_new(&mut seen)? {
                break;
            }
        }
        stopped.wait(cancelled)?;
        // Threads that ended before they stopped.
        stopped.threads.retain(|thread| thread.is_stopped);
        stopped.threads.sort_by_key(|thread| (thread.tid != pid as i32, thread.tid));
        if stopped.threads.is_empty() { Err(CoreError::Gone(pid)) } else { Ok(stopped) }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A thread that is alive; the main thread, unless it has ended before the others.
    pub fn first(&self) -> i32 {
        self.threads.first().map_or(self.pid as i32, |thread| thread.tid)
    }

    pub fn tids(&self) -> impl ExactSizeIterator<Item = i32> {
        self.threads.iter().map(|thread| thread.tid)
    }

    /// A register set of a thread, as the kernel has it; None: this processor has none of that kind.
    pub fn registers(&self, tid: i32, kind: u32) -> io::Result<Option<Vec<u8>>> {
        register_set(tid, kind)
    }

    /// Seizes and interrupts threads that are not seized yet. Whether there were any.
    fn seize_new(&mut self, seen: &mut HashSet<i32>) -> Result<bool, CoreError> {
        let folder = format!("/proc/{}/task", self.pid);
        let listed = fs::read_dir(folder).map_err(read_error(self.pid, "the threads"))?;
        let tids = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let mut has_new = false;
        for tid in tids.collect::<Vec<_>>() {
            if !seen.insert(tid) {
                continue;
            }
            match ptrace::seize(Pid::from_raw(tid), ptrace::Options::empty()) {
                Ok(()) => {}
                Err(Errno::ESRCH) => continue,
                Err(_) if state(self.pid, tid).is_none_or(|state| "ZX".contains(state)) => continue,
                Err(_) => return Err(self.refused(tid)),
            }
            self.threads.push(TracedThread { tid, is_stopped: false, signal: 0 });
            // It fails if the thread has just ended, which the wait reports.
            let _ = ptrace::interrupt(Pid::from_raw(tid));
            has_new = true;
        }
        Ok(has_new)
    }

    fn refused(&self, tid: i32) -> CoreError {
        let status = fs::read_to_string(format!("/proc/{}/task/{tid}/status", self.pid)).unwrap_or_default();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).map(str::trim);
        let tracer = match tracer.filter(|pid| *pid != "0") {
            Some(pid) => format!(": process {pid} traces it already"),
            None => ": CAP_SYS_PTRACE is missing, or a security module forbids it".to_owned(),
        };
        CoreError::Refused { pid: self.pid, tid, tracer }
    }

    fn wait(&mut self, cancelled: &AtomicBool) -> Result<(), CoreError> {
        let end = Instant::now() + STOP_TIMEOUT;
        let pid = self.pid;
        let mut index = 0;
        while let Some(thread) = self.threads.get_mut(index) {
            match wait_status(thread.tid) {
                Ok(Some(status)) if libc::WIFSTOPPED(status) => {
                    thread.is_stopped = true;
                    let is_event = status >> 16 == EVENT_STOP;
                    thread.signal = if is_event { 0 } else { libc::WSTOPSIG(status) };
                    index += 1;
                }
                Ok(None) => {
                    check(cancelled)?;
                    if Instant::now() > end {
                        let state = state(pid, thread.tid).unwrap_or('?');
                        return Err(CoreError::DoesNotStop { pid, tid: thread.tid, state });
                    }
                    sleep(POLL);
                }
                // It has ended.
                Ok(Some(_)) | Err(_) => index += 1,
            }
        }
        Ok(())
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        for thread in &self.threads {
            if thread.is_stopped {
                detach(thread.tid, thread.signal);
            } else {
                detach_running(thread.tid);
            }
        }
    }
}

/// A thread has to be stopped to be detached. One that does not stop stays seized until this tracer's thread ends, and then
/// goes on undisturbed.
fn detach_running(tid: i32) {
    for _ in 0..100 {
        match wait_status(tid) {
            Ok(Some(status)) if libc::WIFSTOPPED(status) => {
                let is_event = status >> 16 == EVENT_STOP;
                return detach(tid, if is_event { 0 } else { libc::WSTOPSIG(status) });
            }
            Ok(None) => sleep(POLL),
            _ => return,
        }
    }
}

/// The state of a thread: a letter of proc(5).
fn state(pid: u32, tid: i32) -> Option<char> {
    let stat = fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // Behind the name in parentheses, which may hold parentheses of its own.
    let at = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(at + 2).map(|byte| char::from(*byte))
}

/// The next stop or end of a traced thread, if there is one. Not by nix: it refuses statuses with real-time signals.
fn wait_status(tid: i32) -> io::Result<Option<libc::c_int>> {
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    match unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) } {
        0 => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(Some(status)),
    }
}

/// Lets a stopped thread go on, with a signal or 0. Not by nix, for the same reason.
fn detach(tid: i32, signal: libc::c_int) {
    // SAFETY: this request reads no memory of ours. It fails if the thread was killed, which is no loss.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, 0, libc::c_long::from(signal)) };
}

fn register_set(tid: i32, kind: u32) -> io::Result<Option<Vec<u8>>> {
    // The largest, of AVX-512 and AMX, has 11 KiB.
    let mut bytes = vec![0_u8; 32 << 10];
    let mut area = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: `area` describes `bytes`, both of which are valid for the call.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, libc::c_long::from(kind), &mut area) };
    if result == 0 {
        bytes.truncate(area.iov_len);
        return Ok(Some(bytes));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENODEV | libc::EIO) => Ok(None),
        _ => Err(error),
    }
}
