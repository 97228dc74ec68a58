//! The supervisor: started by the agent before it restrains itself, in the same jail as its workers, with the one right to
//! fork them and to end them.
//!
//! A second supervisor, forked by the first, waits in reserve: if the first is lost, the agent goes on with the other one.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use serde::{Deserialize, Serialize};

use crate::channel::{receive, send};
use crate::jail::{self, WorkerLimits};
use crate::serve::{CpuTimer, serve};

/// The first argument of a program that is to be the supervisor.
const ARGUMENT: &str = "--parsing-worker";
const NAME: &std::ffi::CStr = c"podopsy-parser";
/// How long a worker that was killed may take to end. One that waits for a file system may take for ever.
const END_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Answer: [`Reply::Started`], with the socket.
    Worker,
    /// Another supervisor. Answer: [`Reply::Started`], with its control socket.
    Supervisor,
    /// Kill a worker. Answer: [`Reply::Ended`].
    End { pid: i32 },
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// The first message: the steps of the jail that failed.
    Ready {
        failed: Vec<String>,
    },
    Started {
        pid: i32,
    },
    Ended(WorkerEnd),
    Refused {
        errno: i32,
    },
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WorkerEnd {
    /// It had ended by itself, with a code.
    Exit(i32),
    /// A signal had ended it before it was to be ended.
    Signal(i32),
    /// It had to be killed, or its end is not known.
    Killed,
    /// It does not end: it waits in the kernel, for a file system.
    Stuck,
}

/// Makes this process the supervisor if it was started as one, and returns its exit code at the end. To be called first of
/// all in `main`.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let memory = (arguments.next()? == *OsStr::new(ARGUMENT)).then(|| arguments.next())??;
    let memory = memory.to_str()?.parse().ok()?;
    Some(match run(WorkerLimits { memory }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn run(limits: WorkerLimits) -> io::Result<()> {
    // The agent's end is the supervisor's: its socket is closed.
    let _ = prctl::set_name(NAME);
    let failed = jail::enter();
    // SAFETY: standard input is the control socket, and nothing else in this process uses it.
    let mut control = unsafe { UnixStream::from_raw_fd(0) };
    send(&mut control, &Reply::Ready { failed }, &[])?;
    supervise(control, &limits)
}

/// Carries out orders until the agent closes the socket.
fn supervise(mut control: UnixStream, limits: &WorkerLimits) -> io::Result<()> {
    // Children that the agent does not ask about again: reserves, and workers that did not end in time.
    let mut left: Vec<Pid> = Vec::new();
    loop {
        let (order, _) = match receive::<Order>(&mut control) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            received => received?,
        };
        let (reply, socket) = match order {
            Order::End { pid } => {
                let end = end(Pid::from_raw(pid));
                if end == WorkerEnd::Stuck {
                    left.push(Pid::from_raw(pid));
                }
                (Reply::Ended(end), None)
            }
            Order::Worker | Order::Supervisor => {
                let (own, theirs) = UnixStream::pair()?;
                // SAFETY: this process has one thread, so that the child may go on as it is.
                match unsafe { fork() } {
                    Ok(ForkResult::Child) => {
                        // A child must not speak for its parent, and must see when the agent closes its socket.
                        drop((control, theirs));
                        return match order {
                            Order::Supervisor => supervise(own, limits),
                            _ => work(own, limits),
                        };
                    }
                    Ok(ForkResult::Parent { child }) => {
                        if matches!(order, Order::Supervisor) {
                            left.push(child);
                        }
                        (Reply::Started { pid: child.as_raw() }, Some(theirs))
                    }
                    Err(error) => (Reply::Refused { errno: error as i32 }, None),
                }
            }
        };
        let sockets: Vec<_> = socket.iter().map(|socket| socket.as_raw_fd()).collect();
        send(&mut control, &reply, &sockets)?;
        left.retain(|pid| matches!(waitpid(*pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)));
    }
}

/// Makes this process, which was just forked, a worker.
fn work(socket: UnixStream, limits: &WorkerLimits) -> io::Result<()> {
    // Narrowed before the first byte of a container is read.
    jail::narrow(limits)?;
    serve(socket, &CpuTimer::default())
}

/// Ends a worker. Its end is waited for as long as [`END_TIMEOUT`].
fn end(pid: Pid) -> WorkerEnd {
    let mut was_killed = false;
    let begin = Instant::now();
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return WorkerEnd::Exit(code),
            // A worker that is ending has closed its socket already: the kill then changes nothing.
            Ok(WaitStatus::Signaled(_, signal, _)) if !(was_killed && signal == Signal::SIGKILL) => {
                return WorkerEnd::Signal(signal as i32);
            }
            Ok(WaitStatus::StillAlive) if !was_killed => {
                // It fails if the worker has ended just now, and the next round sees that.
                let _ = kill(pid, Signal::SIGKILL);
                was_killed = true;
            }
            Ok(WaitStatus::StillAlive) if begin.elapsed() > END_TIMEOUT => return WorkerEnd::Stuck,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_micros(200)),
            _ => return WorkerEnd::Killed,
        }
    }
}

/// The agent's end of a supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    control: UnixStream,
    /// The steps of the jail that failed.
    pub failed: Vec<String>,
}

/// How long a supervisor may take for an order, and for its start.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Starts the running program once more, as a supervisor.
    pub fn start(program: &OsStr, memory: u64) -> io::Result<Supervisor> {
        let (own, theirs) = UnixStream::pair()?;
        own.set_read_timeout(Some(ORDER_TIMEOUT))?;
        let mut command = Command::new(program);
        command.arg(ARGUMENT).arg(memory.to_string()).stdin(OwnedFd::from(theirs));
        command.stdout(Stdio::null()).stderr(Stdio::null()).env_clear();
        // Ctrl-C on a terminal ends the sampling of a command, which then needs the names.
        command.process_group(0);
        // Not waited for: it ends with the agent.
        command.spawn()?;
        let mut supervisor = Supervisor { control: own, failed: Vec::new() };
        match receive(&mut supervisor.control)? {
            (Reply::Ready { failed }, _) => supervisor.failed = failed,
            _ => return Err(io::Error::other("the parsing worker's supervisor did not start")),
        }
        Ok(supervisor)
    }

    /// A supervisor in reserve.
    pub fn fork(&mut self) -> io::Result<Supervisor> {
        let (_, control) = self.order_start(&Order::Supervisor)?;
        control.set_read_timeout(Some(ORDER_TIMEOUT))?;
        Ok(Supervisor { control, failed: Vec::new() })
    }

    /// A new worker: its pid and its socket.
    pub fn worker(&mut self) -> io::Result<(i32, UnixStream)> {
        self.order_start(&Order::Worker)
    }

    /// Ends a worker, and returns how it had ended.
    pub fn end(&mut self, pid: i32) -> io::Result<WorkerEnd> {
        send(&mut self.control, &Order::End { pid }, &[])?;
        match receive(&mut self.control)? {
            (Reply::Ended(end), _) => Ok(end),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn order_start(&mut self, order: &Order) -> io::Result<(i32, UnixStream)> {
        send(&mut self.control, order, &[])?;
        match receive(&mut self.control)? {
            (Reply::Started { pid }, mut files) if files.len() == 1 => {
                Ok((pid, UnixStream::from(OwnedFd::from(files.remove(0)))))
            }
            (Reply::Refused { errno }, _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
