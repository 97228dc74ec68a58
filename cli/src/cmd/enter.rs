//! `podopsy enter`: a program of the host in namespaces of a pod.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus};
use std::thread;

use anyhow::{Context as _, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podopsy_doctor::capability::Capability;
use podopsy_model::text;
use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};

use crate::args::{EnterArgs, NamespaceKind};
use crate::context::Context;
use crate::exit::{AlreadyPrinted, CommandOutcome};
use crate::one_pod::{ChosenProcess, Wanted};
use crate::privilege;
use crate::terminal::note;

/// In the order in which they are entered: with the mount namespace, the others' files in /proc are out of sight.
const ORDER: [NamespaceKind; 6] = [
    NamespaceKind::Cgroup,
    NamespaceKind::Ipc,
    NamespaceKind::Uts,
    NamespaceKind::Net,
    NamespaceKind::Pid,
    NamespaceKind::Mnt,
];

/// As shells and env(1) report a program that cannot be started.
const NOT_FOUND: u8 = 127;
const NOT_STARTED: u8 = 126;

pub async fn run(context: &Context, args: EnterArgs) -> anyhow::Result<CommandOutcome> {
    privilege::require("enter", &[Capability::SysAdmin, Capability::SysPtrace])?;
    let pods = context.pods().await?;
    let wanted = if args.namespaces.iter().all(is_of_pod) { Wanted::Pod } else { Wanted::Container };
    let chosen = ChosenProcess::find(&pods, &args.target, wanted).await?;
    let namespaces = open(chosen.pid, &args.namespaces)?;
    // Before the program starts, so that no signal ends podopsy alone.
    let mut signals = Signals::catch()?;
    let child = match start(&namespaces, &args.command)? {
        Ok(child) => child,
        Err(error) => return Err(not_started(&args.command, &error).into()),
    };
    match code(signals.wait(child).await?) {
        0 => Ok(CommandOutcome::Success),
        code => Err(AlreadyPrinted(code).into()),
    }
}

/// The signals that podopsy survives while the program runs.
struct Signals {
    /// The terminal sends these to the program itself.
    of_terminal: [UnixSignal; 2],
    terminate: UnixSignal,
    hangup: UnixSignal,
}

impl Signals {
    fn catch() -> io::Result<Signals> {
        Ok(Signals {
            of_terminal: [signal(SignalKind::interrupt())?, signal(SignalKind::quit())?],
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the program's end, and hands signals on to it.
    async fn wait(&mut self, mut child: Child) -> anyhow::Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let mut ended = tokio::task::spawn_blocking(move || child.wait());
        let [interrupt, quit] = &mut self.of_terminal;
        loop {
            tokio::select! {
                status = &mut ended => return Ok(status??),
                _ = interrupt.recv() => {}
                _ = quit.recv() => {}
                _ = self.terminate.recv() => drop(kill(pid, Signal::SIGTERM)),
                _ = self.hangup.recv() => drop(kill(pid, Signal::SIGHUP)),
            }
        }
    }
}

/// Whether all containers of a pod share the namespace, unless the pod says otherwise.
fn is_of_pod(kind: &NamespaceKind) -> bool {
    matches!(kind, NamespaceKind::Net | NamespaceKind::Ipc | NamespaceKind::Uts)
}

fn open(pid: u32, kinds: &[NamespaceKind]) -> anyhow::Result<Vec<(NamespaceKind, File)>> {
    let wanted = ORDER.into_iter().filter(|kind| kinds.contains(kind));
    let open = |kind: NamespaceKind| {
        let path = format!("/proc/{pid}/ns/{}", name(kind));
        Ok((kind, File::open(&path).with_context(|| format!("cannot open the namespace {path}"))?))
    };
    wanted.map(open).collect()
}

/// Starts the program from a thread that has entered the namespaces, and ends then: podopsy itself stays where it is.
fn start(
    namespaces: &[(NamespaceKind, File)],
    command: &[OsString],
) -> anyhow::Result<Result<Child, io::Error>> {
    let [program, arguments @ ..] = command else { return Err(anyhow!("no program is given")) };
    let enter_and_start = || {
        for (kind, file) in namespaces {
            enter(*kind, file).with_context(|| format!("cannot enter the {} namespace", name(*kind)))?;
        }
        Ok(Command::new(program).args(arguments).spawn())
    };
    thread::scope(|scope| scope.spawn(enter_and_start).join())
        .unwrap_or_else(|_| Err(anyhow!("the thread that starts the program failed")))
}

fn enter(kind: NamespaceKind, file: &File) -> io::Result<()> {
    if kind == NamespaceKind::Mnt {
        // A thread that shares its root and folder with others cannot enter one.
        unshare(CloneFlags::CLONE_FS)?;
    }
    Ok(setns(file, flag(kind))?)
}

fn flag(kind: NamespaceKind) -> CloneFlags {
    match kind {
        NamespaceKind::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        NamespaceKind::Ipc => CloneFlags::CLONE_NEWIPC,
        NamespaceKind::Uts => CloneFlags::CLONE_NEWUTS,
        NamespaceKind::Net => CloneFlags::CLONE_NEWNET,
        NamespaceKind::Pid => CloneFlags::CLONE_NEWPID,
        NamespaceKind::Mnt => CloneFlags::CLONE_NEWNS,
    }
}

/// The name of the file in `/proc/PID/ns`.
fn name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Cgroup => "cgroup",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Uts => "uts",
        NamespaceKind::Net => "net",
        NamespaceKind::Pid => "pid",
        NamespaceKind::Mnt => "mnt",
    }
}

fn not_started(command: &[OsString], error: &io::Error) -> AlreadyPrinted {
    let program = command.first().map(|name| text::escape_bytes(name.as_encoded_bytes())).unwrap_or_default();
    note(&format!("podopsy: enter: cannot start {program}: {error}"));
    AlreadyPrinted(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_STARTED })
}

fn code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map_or(1, |signal| 128 + signal);
    u8::try_from(status.code().unwrap_or_else(signal)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_programs_own() {
        let run = |script: &str| {
            let command = ["sh", "-c", script].map(OsString::from);
            code(start(&[], &command).unwrap().unwrap().wait().unwrap())
        };
        assert_eq!((run("exit 0"), run("exit 7"), run("kill -9 $$")), (0, 7, 137));
        let missing = start(&[], &["/no/such/program".into()]).unwrap().unwrap_err();
        assert_eq!(not_started(&[], &missing).0, NOT_FOUND);
    }

    #[test]
    fn each_namespace_is_entered_once_and_the_mounts_last() {
        let all =
            open(std::process::id(), &[NamespaceKind::Mnt, NamespaceKind::Net, NamespaceKind::Mnt]).unwrap();
        let kinds: Vec<NamespaceKind> = all.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [NamespaceKind::Net, NamespaceKind::Mnt]);
    }
}
