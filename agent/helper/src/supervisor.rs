//! The supervisor: started by the agent before it restrains itself, in the same jail as its helpers, with the one right to
//! fork them and to end them. It never touches a file of a container.
//!
//! A second supervisor, forked by the first, waits in reserve: if the first is lost, the agent goes on with the other one.

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use serde::{Deserialize, Serialize};

use crate::channel::{receive, send};

/// How long a helper that was killed may take to end. One that waits for a file system may take for ever.
const END_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a supervisor may take for an order, and for its start.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the end of a supervisor is waited for.
const DROP_TIMEOUT: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Answer: [`Reply::Started`], with the socket.
    Helper,
    /// Another supervisor. Answer: [`Reply::Started`], with its control socket.
    Supervisor,
    /// Kill a helper, and wait for its end for so long. Answer: [`Reply::Ended`].
    End { pid: i32, wait: Duration },
    /// Whether a helper that was killed is still there. Answer: [`Reply::Stuck`].
    IsStuck { pid: i32 },
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
    Ended(HelperEnd),
    Stuck(bool),
    Refused {
        errno: i32,
    },
}

/// How a helper ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelperEnd {
    /// It had ended by itself, with a code.
    Exit(i32),
    /// A signal had ended it before it was to be ended.
    Signal(i32),
    /// It had to be killed, or its end is not known.
    Killed,
    /// It does not end: it waits in the kernel, for a file system.
    Stuck,
}

/// What a program that was started as a supervisor does: it enters a jail, and its helpers work.
pub fn run(name: &CStr, enter: impl FnOnce() -> Vec<String>, work: &Work<'_>) -> ExitCode {
    let _ = prctl::set_name(name);
    let failed = enter();
    // SAFETY: standard input is the control socket, and nothing else in this process uses it.
    let mut control = unsafe { UnixStream::from_raw_fd(0) };
    // If the agent's end is closed, the supervisor ends.
    let ended = send(&mut control, &Reply::Ready { failed }, &[]).and_then(|()| supervise(control, work));
    if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a helper does, in a process of its own, until the socket is closed.
pub type Work<'a> = dyn Fn(UnixStream) -> io::Result<()> + 'a;

/// Carries out orders until the agent closes the socket.
fn supervise(mut control: UnixStream, work: &Work<'_>) -> io::Result<()> {
    // Children that are not waited for: reserves, and helpers that did not end in time.
    let mut left: Vec<Pid> = Vec::new();
    loop {
        let (order, _) = match receive::<Order>(&mut control) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            received => received?,
        };
        left.retain(|pid| matches!(waitpid(*pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)));
        let (reply, socket) = match order {
            Order::End { pid, wait } => {
                let pid = Pid::from_raw(pid);
                let end = end(pid, wait);
                if end == HelperEnd::Stuck {
                    left.push(pid);
                }
                (Reply::Ended(end), None)
            }
            Order::IsStuck { pid } => (Reply::Stuck(left.contains(&Pid::from_raw(pid))), None),
            Order::Helper | Order::Supervisor => {
                let (own, theirs) = UnixStream::pair()?;
                // SAFETY: this process has one thread, so that the child may go on as it is.
                match unsafe { fork() } {
                    Ok(ForkResult::Child) => {
                        // A child must not speak for its parent, and must see when the agent closes its socket.
                        drop((control, theirs));
                        let own = to_standard_input(own)?;
                        return match order {
                            Order::Supervisor => supervise(own, work),
                            _ => work(own),
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
    }
}

/// Moves a socket to the number of standard input, which no other descriptor of a helper can get.
fn to_standard_input(socket: UnixStream) -> io::Result<UnixStream> {
    // SAFETY: the control socket, which had the number, was closed by the caller.
    unsafe {
        if libc::dup3(socket.as_raw_fd(), 0, libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(UnixStream::from_raw_fd(0))
    }
}

/// Ends a helper. Its end is waited for as long as `wait`.
fn end(pid: Pid, wait: Duration) -> HelperEnd {
    let mut was_killed = false;
    let begin = Instant::now();
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return HelperEnd::Exit(code),
            // A helper that is ending has closed its socket already: the kill then changes nothing.
            Ok(WaitStatus::Signaled(_, signal, _)) if !(was_killed && signal == Signal::SIGKILL) => {
                return HelperEnd::Signal(signal as i32);
            }
            Ok(WaitStatus::StillAlive) if !was_killed => {
                // It fails if the helper has ended just now, and the next round sees that.
                let _ = kill(pid, Signal::SIGKILL);
                was_killed = true;
            }
            Ok(WaitStatus::StillAlive) if begin.elapsed() > wait => return HelperEnd::Stuck,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_micros(200)),
            _ => return HelperEnd::Killed,
        }
    }
}

/// The agent's end of a supervisor.
#[derive(Debug)]
struct Supervisor {
    control: UnixStream,
    /// The steps of the jail that failed.
    failed: Vec<String>,
    /// None: another supervisor forked it.
    process: Option<Child>,
}

/// Waits for the end of the supervisor, so that the CPU time of its helpers is part of this process's (`cutime`). It does not
/// wait for long: the supervisor may wait for a helper that does not end.
impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.control.shutdown(Shutdown::Both);
        let Some(process) = &mut self.process else { return };
        let begin = Instant::now();
        while begin.elapsed() < DROP_TIMEOUT && matches!(process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Supervisor {
    /// Starts the running program once more, as a supervisor.
    fn start(program: &OsStr, arguments: &[OsString]) -> io::Result<Supervisor> {
        let (own, theirs) = UnixStream::pair()?;
        own.set_read_timeout(Some(ORDER_TIMEOUT))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(OwnedFd::from(theirs));
        command.stdout(Stdio::null()).stderr(Stdio::null()).env_clear();
        // Ctrl-C on a terminal ends the sampling of a command, which then needs the names.
        command.process_group(0);
        let process = Some(command.spawn()?);
        let mut supervisor = Supervisor { control: own, failed: Vec::new(), process };
        match receive(&mut supervisor.control)? {
            (Reply::Ready { failed }, _) => supervisor.failed = failed,
            _ => return Err(io::Error::other("the supervisor did not start")),
        }
        Ok(supervisor)
    }

    /// A supervisor in reserve.
    fn fork(&mut self) -> io::Result<Supervisor> {
        let (_, control) = self.order_start(&Order::Supervisor)?;
        control.set_read_timeout(Some(ORDER_TIMEOUT))?;
        Ok(Supervisor { control, failed: self.failed.clone(), process: None })
    }

    fn order(&mut self, order: &Order) -> io::Result<Reply> {
        send(&mut self.control, order, &[])?;
        receive(&mut self.control).map(|(reply, _)| reply)
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

/// A kind of helper, in the words of the log.
#[derive(Clone, Copy, Debug)]
pub struct HelperKind {
    /// As in "the supervisor of the parsing worker".
    pub name: &'static str,
    /// What the agent has to do without, if there is none any more.
    pub loss: &'static str,
}

/// The supervisor of one kind of helper, and the one in reserve.
#[derive(Debug)]
pub struct Supervisors {
    kind: HelperKind,
    /// None: it is lost, and there was none in reserve.
    current: Option<Supervisor>,
    reserve: Option<Supervisor>,
}

impl Supervisors {
    /// Starts `program` with arguments that have it call [`run`].
    pub fn start(kind: HelperKind, program: &OsStr, arguments: &[OsString]) -> io::Result<Supervisors> {
        let mut current = Supervisor::start(program, arguments)?;
        if !current.failed.is_empty() {
            tracing::warn!("the jail of the {} is incomplete: {}", kind.name, current.failed.join("; "));
        }
        let reserve = current.fork().ok();
        Ok(Supervisors { kind, current: Some(current), reserve })
    }

    /// The steps of the jail that this machine does not permit, in words.
    pub fn weaknesses(&self) -> Vec<String> {
        self.current.as_ref().map(|current| current.failed.clone()).unwrap_or_default()
    }

    /// A new helper: its pid and its socket. A supervisor that is lost is replaced by the reserve.
    pub fn start_helper(&mut self) -> io::Result<(i32, UnixStream)> {
        let lost = || io::Error::from(io::ErrorKind::NotConnected);
        let current = self.current.as_mut().ok_or_else(lost)?;
        match current.order_start(&Order::Helper) {
            Ok(helper) => Ok(helper),
            Err(error) => {
                self.promote_reserve(&error);
                self.current.as_mut().ok_or_else(lost)?.order_start(&Order::Helper)
            }
        }
    }

    /// Ends a helper, and returns how it had ended.
    pub fn end(&mut self, pid: i32) -> HelperEnd {
        self.end_within(pid, END_TIMEOUT)
    }

    /// As [`Supervisors::end`], with another limit for a helper that does not end.
    pub fn end_within(&mut self, pid: i32, wait: Duration) -> HelperEnd {
        match self.current.as_mut().map(|current| current.order(&Order::End { pid, wait })) {
            Some(Ok(Reply::Ended(end))) => end,
            _ => HelperEnd::Killed,
        }
    }

    /// Whether a helper whose end was [`HelperEnd::Stuck`] is still there.
    pub fn is_stuck(&mut self, pid: i32) -> bool {
        let asked = self.current.as_mut().map(|current| current.order(&Order::IsStuck { pid }));
        matches!(asked, Some(Ok(Reply::Stuck(true))))
    }

    fn promote_reserve(&mut self, error: &io::Error) {
        let HelperKind { name, loss } = self.kind;
        self.current = self.reserve.take();
        let Some(current) = &mut self.current else {
            return tracing::error!(
                "the supervisor of the {name} is lost ({error}): {loss} until podopsy is started again"
            );
        };
        tracing::warn!("the supervisor of the {name} is lost ({error}); the one in reserve goes on");
        self.reserve = current.fork().ok();
    }
}
