//! One command: its pipes, its terminal, its signals.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::stage::Stage;
use super::table::Situation;

/// The width of the narrow terminal.
pub const COLUMNS: u16 = 40;
/// After this a command hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command printed, and its exit code as a shell has it. None: it had to be killed.
pub struct Seen {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The reading end of an output, in a thread of its own.
struct Output {
    thread: JoinHandle<Vec<u8>>,
}

impl Output {
    /// Sends once when the first byte has come.
    fn read(mut from: impl std::io::Read + Send + 'static, first: Sender<()>) -> Output {
        let thread = std::thread::spawn(move || {
            let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
            // A terminal ends with an error.
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                all.extend_from_slice(&buffer[..length]);
                let _ = first.send(());
            }
            all
        });
        Output { thread }
    }

    fn text(self) -> String {
        String::from_utf8_lossy(&self.thread.join().expect("the reader")).into_owned()
    }
}

/// Runs podopsy with these arguments.
pub fn run(stage: &Stage, situation: Situation, args: &[String], until_interrupted: Duration) -> Seen {
    let (first, comes) = channel();
    let mut command = stage.command(situation);
    command.args(args).stdin(Stdio::null()).process_group(0);
    let outputs = match situation {
        Situation::Narrow => terminals(&mut command, first),
        _ => pipes(&mut command, first, situation == Situation::ClosedPipe),
    };
    let child = command.spawn().expect("start podopsy");
    // Its own ends of the outputs would keep the readers waiting.
    drop(command);
    let interrupted = (situation == Situation::Interrupted).then_some((&comes, until_interrupted));
    let code = end(child, interrupted);
    let [stdout, stderr] = outputs.map(|output| output.map(Output::text).unwrap_or_default());
    match situation {
        Situation::Narrow => Seen { code, stdout: plain(&stdout, "m"), stderr: plain(&stderr, "mKABGJhl") },
        _ => Seen { code, stdout, stderr },
    }
}

fn pipes(command: &mut Command, first: Sender<()>, is_closed: bool) -> [Option<Output>; 2] {
    let (stdout, to_stdout): (PipeReader, PipeWriter) = pipe().expect("a pipe");
    let (stderr, to_stderr) = pipe().expect("a pipe");
    command.stdout(to_stdout).stderr(to_stderr);
    let stdout = (!is_closed).then(|| Output::read(stdout, first.clone()));
    [stdout, Some(Output::read(stderr, first))]
}

/// A terminal for each output, so that what is laid out and what is said stay separate.
fn terminals(command: &mut Command, first: Sender<()>) -> [Option<Output>; 2] {
    let size = Winsize { ws_row: 24, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = || openpty(Some(&size), None).expect("a pseudoterminal");
    let (stdout, stderr) = (terminal(), terminal());
    command.stdout(Stdio::from(stdout.slave)).stderr(Stdio::from(stderr.slave)).env("TERM", "xterm-256color");
    let read = |master: OwnedFd| Some(Output::read(File::from(master), first.clone()));
    [read(stdout.master), read(stderr.master)]
}

/// Waits for the end; or sends Ctrl-C to its process group, a time after its first output.
fn end(mut child: Child, interrupted: Option<(&Receiver<()>, Duration)>) -> Option<i32> {
    let group = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    let began = Instant::now();
    if let Some((first, then)) = interrupted
        && first.recv_timeout(PATIENCE).is_ok()
    {
        std::thread::sleep(then);
        let _ = killpg(group, Signal::SIGINT);
    }
    while began.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().expect("its status") {
            return Some(code(status));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
    None
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The text without podopsy's own control sequences, those that end in one of `finals` (ECMA-48 §5.4), and without the returns
/// that a terminal adds. Those in front of a line that is drawn again stay.
fn plain(text: &str, finals: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit() && !matches!(c, ';' | '?')).unwrap_or(part.len());
        match part[end..].chars().next() {
            Some(last) if finals.contains(last) => out.push_str(&part[end + last.len_utf8()..]),
            _ => {
                out.push_str("\x1b[");
                out.push_str(part);
            }
        }
    }
    out.replace("\r\n", "\n")
}
