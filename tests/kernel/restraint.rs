//! The capabilities and system calls that the agent gives up: by the kernel's status of each thread, by what is refused
//! from then on, and by what still works.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, openat2};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, setuid};
use podopsy_agent::restraint::{self, Confinement, KeptCapability, Needs, WrittenFolders};
use podopsy_client::AgentClient;
use podopsy_harness::{ContainerSpec, PodSpec};
use podopsy_model::EventKind;
use podopsy_system::{small_file, state_thread};
use serde_json::Value;
use support::agent::{Agent, get, until};
use support::{MemoryCgroup, VICTIMS_IMAGE, node, require_root};

const MIB: i64 = 1 << 20;

/// A field of /proc/PID/task/TID/status of each thread, with the thread's name.
fn of_threads(pid: u32, field: &str) -> Vec<(String, String)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let line = |text: &str, field: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_default().trim().to_owned()
    };
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    statuses.map(|status| (line(&status, "Name"), line(&status, field))).collect()
}

fn mask(kept: &[KeptCapability]) -> String {
    format!("{:016x}", kept.iter().fold(0u64, |all, kept| all | 1 << kept.capability as u32))
}

/// Asserts that the process has several threads and that the field of each has this value.
fn all_have(pid: u32, field: &str, wanted: &str) {
    let threads = of_threads(pid, field);
    assert!(threads.len() > 2, "{threads:?}");
    let others: Vec<_> = threads.iter().filter(|(_, value)| value != wanted).collect();
    assert!(others.is_empty(), "{field} is not {wanted}: {others:?}");
}

/// The names of threads that write files. They hold no capability.
const WRITERS: [&str; 2] = [state_thread::NAME, "store"];

fn is_restrained(pid: u32, kept: &[KeptCapability]) {
    let (held, nothing) = (mask(kept), "0".repeat(16));
    for field in ["CapEff", "CapPrm"] {
        let threads = of_threads(pid, field);
        let (writers, others): (Vec<_>, Vec<_>) =
            threads.into_iter().partition(|(name, _)| WRITERS.contains(&name.as_str()));
        assert!(!writers.is_empty() && others.len() > 1, "{writers:?} {others:?}");
        assert!(writers.iter().all(|(_, value)| *value == nothing), "{field}: {writers:?}");
        assert!(others.iter().all(|(_, value)| *value == held), "{field} is not {held}: {others:?}");
    }
    all_have(pid, "CapInh", &nothing);
    all_have(pid, "CapAmb", &nothing);
    all_have(pid, "NoNewPrivs", "1");
    all_have(pid, "Seccomp", "2");
}

/// `enum bpf_cmd`.
const MAP_LOOKUP_ELEM: i64 = 1;
const PROG_LOAD: i64 = 5;

/// Calls bpf(2) with attributes that the kernel rejects.
fn bpf(command: i64) -> nix::Result<i64> {
    let attributes = [0xffu8; 32];
    // SAFETY: bpf(2) reads so many bytes, which live over the call, and refuses them.
    Errno::result(unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), attributes.len()) })
}

/// Runs `work` in a child process, this program again, because a restraint cannot be undone. It gets a folder, which it
/// could not remove.
fn in_a_process_of_its_own(test: &str, work: impl FnOnce(&Path)) {
    const INSIDE: &str = "PODOPSY_RESTRAINED";
    require_root();
    if let Some(folder) = std::env::var_os(INSIDE) {
        return work(Path::new(&folder));
    }
    let me = std::env::current_exe().expect("this program");
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(me);
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, folder.path());
    let done = command.output().expect("run it");
    let output = [done.stdout, done.stderr].concat();
    assert!(done.status.success(), "{}: {}", done.status, String::from_utf8_lossy(&output));
}

/// What was tried, and how it ended.
type Attempts = Vec<(&'static str, Result<(), Errno>)>;

fn attempt<T>(what: &'static str, result: io::Result<T>) -> (&'static str, Result<(), Errno>) {
    let errno = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or_default());
    (what, result.map(drop).map_err(errno))
}

/// Opens files so that they could be written. `file` is the test's; the others are not changed by it.
fn opens(other: u32, file: &Path) -> Attempts {
    let open = |path: &str| fs::File::options().write(true).open(path);
    let create = |options: &mut fs::OpenOptions, path: &Path| options.write(true).open(path);
    let folder = file.parent().expect("a folder");
    vec![
        attempt("open the memory of a process", open(&format!("/proc/{other}/mem"))),
        attempt("open core_pattern", open("/proc/sys/kernel/core_pattern")),
        attempt("open core_pattern by /proc/1/root", open("/proc/1/root/proc/sys/kernel/core_pattern")),
        attempt("open a file of root", open("/etc/passwd")),
        attempt("create", create(fs::File::options().create_new(true), &file.with_extension("new"))),
        attempt("create without a name", create(fs::File::options().custom_flags(libc::O_TMPFILE), folder)),
    ]
}

/// Opens a file for reading, by which it is emptied.
fn empties(file: &Path) -> Attempts {
    let path = std::ffi::CString::new(file.to_str().expect("text")).expect("no zero");
    // SAFETY: open reads the path, which lives over the call.
    let opened = Errno::result(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_TRUNC) });
    vec![attempt("open and empty", opened.map_err(io::Error::from))]
}

/// Changes what is known of a file, and links to it.
fn attributes(file: &Path) -> Attempts {
    let (other, mode) = (file.with_extension("link"), fs::Permissions::from_mode(0o4755));
    let open = || fs::File::open(file).expect("reading is permitted");
    vec![
        attempt("chmod", fs::set_permissions(file, mode.clone())),
        attempt("fchmod", open().set_permissions(mode)),
        attempt("chown", std::os::unix::fs::chown(file, Some(0), Some(0))),
        attempt("utimensat", open().set_modified(std::time::SystemTime::UNIX_EPOCH)),
        attempt("truncate", nix::unistd::truncate(file, 0).map_err(io::Error::from)),
        attempt("link", fs::hard_link(file, &other)),
        attempt("symlink", symlink(file, &other)),
    ]
}

/// Changes the entries of a folder.
fn names(file: &Path) -> Attempts {
    let other = file.with_extension("other");
    vec![
        attempt("mkdir", fs::create_dir(&other)),
        attempt("rmdir", fs::remove_dir(file.parent().expect("a folder"))),
        attempt("rename", fs::rename(file, &other)),
        attempt("unlink", fs::remove_file(&other)),
        attempt("unlink", fs::remove_file(file)),
    ]
}

/// In the threads that record, by the filter: without it, root gets another error or none.
fn no_file_can_be_changed(thread: &str, other: u32, file: &Path) {
    let tried = [opens(other, file), empties(file), attributes(file), names(file)].concat();
    for (what, result) in tried {
        assert_eq!(result, Err(Errno::EPERM), "{what} in {thread}");
    }
    let how = OpenHow::new().flags(OFlag::O_PATH);
    assert_eq!(openat2(AT_FDCWD, file, how).map(drop), Err(Errno::EPERM), "openat2 in {thread}");
}

/// Tries to reach a listener, which is root's. What existed before the restraint is connected already, and stays so.
fn unix_sockets(listener: &Path) -> Attempts {
    let socket = |domain, kind| {
        // SAFETY: socket takes three integers, and the descriptor is closed with the process.
        Errno::result(unsafe { libc::socket(domain, kind, 0) }).map_err(io::Error::from)
    };
    let abstract_name = SocketAddr::from_abstract_name("podopsy-test").expect("a name");
    vec![
        attempt("connect to a Unix socket", UnixStream::connect(listener)),
        attempt("connect to an abstract socket", UnixStream::connect_addr(&abstract_name)),
        attempt("send to a Unix socket", UnixDatagram::unbound()),
        attempt("listen on a Unix socket", UnixListener::bind(listener.with_extension("new"))),
        attempt("a seqpacket socket", socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC)),
        attempt("a pair of datagram sockets", UnixDatagram::pair()),
        attempt("the hypervisor's socket", socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
        attempt("a packet socket", socket(libc::AF_PACKET, libc::SOCK_RAW)),
    ]
}

/// Connects the socket of a pair to a listener.
fn connect_again(pair: &UnixStream, listener: &Path) -> Result<(), Errno> {
    let address = nix::sys::socket::UnixAddr::new(listener).expect("an address");
    nix::sys::socket::connect(pair.as_raw_fd(), &address)
}

fn no_unix_socket_can_be_reached(thread: &str, listener: &Path) {
    for (what, result) in unix_sockets(listener) {
        assert_eq!(result, Err(Errno::EPERM), "{what} in {thread}");
    }
    let (one, other) = UnixStream::pair().expect("a pair is permitted");
    assert_eq!(connect_again(&one, listener), Err(Errno::EISCONN), "in {thread}");
    drop(other);
    assert_eq!(connect_again(&one, listener), Err(Errno::EISCONN), "in {thread}, without the other end");
}

/// In the threads that write: by Landlock outside of the state folder, and by the filter where Landlock does not look.
fn no_file_outside_can_be_changed(other: u32, outside: &Path, inside: &Path, confinement: Confinement) {
    let (file, kept) = (outside.to_owned(), inside.to_owned());
    let by_filter =
        state_thread::run(move || [empties(&file), attributes(&file), attributes(&kept)].concat());
    for (what, result) in by_filter.expect("a thread") {
        assert_eq!(result, Err(Errno::EPERM), "{what} in a thread that writes");
    }
    if confinement == Confinement::NotInThisKernel {
        return eprintln!("this kernel has no Landlock");
    }
    let file = outside.to_owned();
    let by_landlock = state_thread::run(move || [opens(other, &file), names(&file)].concat());
    for (what, result) in by_landlock.expect("a thread") {
        // There is nothing at the name to which the file could not be renamed.
        let is_refused =
            matches!(result, Err(Errno::EACCES)) || (what, result) == ("unlink", Err(Errno::ENOENT));
        assert!(is_refused, "{what} in a thread that writes: {result:?}");
    }
    assert_eq!(fs::read_to_string(outside).expect("it is there"), "text");
}

#[test]
fn every_thread_is_refused_what_the_agent_never_needs() {
    in_a_process_of_its_own(full_name!("every_thread_is_refused_what_the_agent_never_needs"), |folder| {
        let (state, outside) = (folder.join("state"), folder.join("outside"));
        fs::create_dir(&outside).expect("make a folder");
        let file = outside.join("file");
        fs::write(&file, "text").expect("write a file");
        // As the owner of a delegated cgroup can close it.
        let closed = folder.join("closed");
        fs::create_dir_all(closed.join("leaf")).expect("make a folder");
        std::os::unix::fs::chown(&closed, Some(65534), Some(65534)).expect("give it away");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("close it");
        let socket = outside.join("runtime.sock");
        let listener = UnixListener::bind(&socket).expect("listen");
        UnixStream::connect(&socket).expect("before the restraint, it is reached");
        // It ends when our end of the pipe is closed: from here on, this process may not kill it.
        let mut cat = Command::new("cat");
        let mut other = cat.uid(65534).stdin(Stdio::piped()).spawn().expect("another user's process");
        let begun = restraint::begin(&WrittenFolders { state: Some(state.clone()), socket: None });
        assert_eq!(begun.failed, [""; 0]);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        // Threads of every kind: idle workers, one that blocks in the kernel, one that is always busy.
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let (answer, answered) = std::sync::mpsc::channel();
        let (pid, path, runtime_socket) = (other.id(), file.clone(), socket.clone());
        std::thread::spawn(move || {
            let _ = asked.recv();
            no_file_can_be_changed("a thread that existed before", pid, &path);
            no_unix_socket_can_be_reached("a thread that existed before", &runtime_socket);
            answer.send(Command::new("/bin/true").status().map_err(|error| error.kind()))
        });
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
        std::thread::spawn(|| {
            // Threads that start and end meanwhile.
            loop {
                let _ = std::thread::spawn(|| ()).join();
            }
        });
        // A thread that gets many signals and has handled one when the last was sent: sigsuspend takes a single signal.
        let (blocked, is_blocked) = std::sync::mpsc::channel();
        let (finished, is_finished) = std::sync::mpsc::channel::<()>();
        let slow = std::thread::spawn(move || {
            SigSet::all().thread_block().expect("block signals");
            blocked.send(()).expect("it is waited for");
            std::thread::sleep(Duration::from_millis(100));
            SigSet::empty().suspend().expect("take one");
            let _ = is_finished.recv();
            SigSet::all().thread_unblock().expect("take the others");
        });
        is_blocked.recv().expect("it blocks signals");
        let needs = Needs { samples: true };
        let wanted = restraint::kept(&needs);
        let done = restraint::finish(&needs);
        assert!(done.filtered && done.failed.is_empty(), "{done:?}");
        assert_eq!(done.kept, wanted);
        is_restrained(std::process::id(), &wanted);
        finished.send(()).expect("it waits");
        slow.join().expect("it lives");
        // The test harness's thread existed before.
        let bounding = of_threads(std::process::id(), "CapBnd");
        let whole = bounding.iter().filter(|(_, set)| *set != "0".repeat(16)).count();
        assert!(whole <= 1, "{bounding:?}");

        // A thread that existed before, and one that starts later.
        ask.send(()).expect("it waits");
        let refused = Err(ErrorKind::PermissionDenied);
        assert_eq!(answered.recv().expect("its answer"), refused);
        let (path, runtime_socket) = (file.clone(), socket.clone());
        let later = std::thread::spawn(move || {
            no_file_can_be_changed("a thread that started later", pid, &path);
            no_unix_socket_can_be_reached("a thread that started later", &runtime_socket);
            Command::new("/bin/true").status().map_err(|error| error.kind())
        });
        assert_eq!(later.join().expect("it ends"), refused);

        // By the filter, and not by a missing capability: without the filter, each call returns a different error.
        let (nothing, nowhere) = (None::<&str>, "/nonexistent/podopsy");
        assert_eq!(
            mount(Some("tmpfs"), nowhere, Some("tmpfs"), MsFlags::empty(), nothing),
            Err(Errno::EPERM)
        );
        assert_eq!(unshare(CloneFlags::CLONE_FS), Err(Errno::EPERM));
        assert_eq!(bpf(PROG_LOAD), Err(Errno::EPERM));
        assert_eq!(bpf(MAP_LOOKUP_ELEM), Err(Errno::EINVAL));
        assert_eq!(kill(Pid::from_raw(1), None), Err(Errno::EPERM));
        assert_eq!(setuid(nix::unistd::getuid()), Err(Errno::EPERM));
        // No probe can be loaded any more.
        let probes = runtime.block_on(podopsy_probes::check());
        assert!(!probes.is_empty() && probes.iter().all(|probe| probe.outcome.is_err()), "{probes:#?}");
        // What the agent needs still works. Files are written in the state folder, by threads of their own.
        for text in ["first", "second"] {
            small_file::replace(&state, "store.db", text.as_bytes()).expect("write a file");
        }
        assert_eq!(fs::read_to_string(state.join("store.db")).expect("read it"), "second");
        no_file_outside_can_be_changed(pid, &file, &state.join("store.db"), begun.confinement);
        let has_landlock = podopsy_system::landlock_version().is_some();
        assert_eq!(begun.confinement == Confinement::Landlock, has_landlock, "{begun:?}");
        let runtime_socket = socket.clone();
        state_thread::run(move || no_unix_socket_can_be_reached("a thread that writes", &runtime_socket))
            .expect("a thread");
        // A socket that listens cannot be connected either.
        let address = nix::sys::socket::UnixAddr::new(&socket).expect("an address");
        assert_eq!(nix::sys::socket::connect(listener.as_raw_fd(), &address), Err(Errno::EINVAL));
        std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        std::net::UdpSocket::bind("[::1]:0").expect("a socket for DNS");
        let its = format!("/proc/{}", other.id());
        assert!(!fs::read(format!("{its}/environ")).expect("another user's environment").is_empty());
        assert!(!fs::read(format!("{its}/maps")).expect("its mappings").is_empty());
        let mut mapped = fs::read_dir(format!("{its}/map_files")).expect("its files").flatten();
        // The openers do that.
        let opened = fs::File::open(mapped.next().expect("a mapping").path());
        assert_eq!(opened.map(drop).map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied));
        assert!(fs::metadata(format!("{its}/ns/user")).is_ok());
        assert_eq!(fs::read_dir(&closed).expect("another user's closed folder").count(), 1);
        assert!(fs::metadata(format!("{its}/root/bin/sh")).is_ok());
        drop(other.stdin.take());
        other.wait().expect("it ends");
    });
}

/// The capabilities in the systemd unit that ships.
fn unit_s_rights() -> String {
    let unit = include_str!("../../manifests/systemd/podopsy-agent.service");
    let names = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a set");
    let added = names.split(' ').map(|name| name.strip_prefix("CAP_").expect(name).to_lowercase());
    added.fold("--bounding-set=-all".to_owned(), |set, name| format!("{set},+{name}"))
}

#[test]
fn the_agent_names_kills_lookups_and_growth_with_what_it_keeps() {
    let (node, _) = node();
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().display().to_string();
    let arguments = ["--state-dir", &state, "--cpu-budget", "0"];
    let by = ["setpriv", "--no-new-privs", &unit_s_rights()];
    let agent = Agent::start_by(&by, node.directory(), node.cri_socket(), &arguments);
    let log = agent.log();
    assert!(log.contains("holds from now on: CAP_BPF (") && !log.contains("could not give up"), "{log}");
    let wanted = restraint::kept(&Needs { samples: true });
    is_restrained(agent.pid(), &wanted);
    all_have(agent.pid(), "CapBnd", &"0".repeat(16));

    let leaker = ContainerSpec::new("api", VICTIMS_IMAGE)
        .command(["leak", "--step", "524288", "--every", "50"])
        .memory_limit(32 * MIB);
    let pod = node.run_pod(PodSpec::new("shop", "basket").container(leaker)).expect("run the pod");
    // After the first kill it is a growth candidate, for which maps are filled and perf events opened.
    let _keeper = node.keep_running(&pod);
    let incident = until("incident with a growth profile", || {
        let events = agent.events().into_iter();
        events.rev().filter(|event| event.kind == EventKind::OomIncident).find_map(|event| {
            let growth = event.incident.as_ref()?.growth.clone()?;
            (growth.samples > 0).then_some((event, growth))
        })
    });
    let (event, growth) = incident;
    assert_eq!(event.pod.expect("a name").name, "basket");
    // Unwound by tables, with names from a file inside the container.
    let names = growth.paths.iter().flat_map(|path| &path.frames).map(|frame| frame.function.as_str());
    let names: Vec<&str> = names.collect();
    assert!(names.iter().any(|name| name.contains("append_history")), "{names:?}");
    assert!(growth.complete * 2 > growth.samples, "{growth:#?}");
    let log = agent.log();
    assert!(!log.contains("lack the growth profile") && !log.contains("not permitted"), "{log}");
    // Threads have started and ended meanwhile; none has more capabilities.
    is_restrained(agent.pid(), &wanted);
}

/// The kills in the history, by the agent's API.
fn stored_kills(socket: &Path) -> Result<Vec<Value>, String> {
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    let query = vec![("kind", "oom.kill".to_owned())];
    let page = runtime.block_on(AgentClient::new(socket).json("/api/v1/events", &query));
    let page: Value = page.map_err(|error| error.to_string())?;
    Ok(page["events"].as_array().expect("a list").clone())
}

#[test]
fn the_restrained_agent_keeps_and_answers_its_history_also_after_a_quarantine() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let (state, socket) = (folder.path().join("state"), folder.path().join("agent.sock"));
    let nowhere = Path::new("/nonexistent/podopsy-test.sock");
    let arguments = ["--state-dir", state.to_str().expect("text"), "--growth", "off"];
    let mut agent = Agent::start_in(folder.path(), nowhere, &arguments);
    until("restraint", || agent.log().contains("holds from now on: ").then_some(()));
    is_restrained(agent.pid(), &restraint::kept(&Needs { samples: false }));
    let restrained = jiff::Timestamp::now();
    let kill_in = |name: &str| {
        let cgroup = MemoryCgroup::new(name, 16 << 20);
        let _ = cgroup.command("head -c 64m /dev/zero | tail").status();
        until("kill in the history", || {
            let kills = stored_kills(&socket).ok()?;
            kills.iter().any(|kill| kill["cgroup"]["id"] == cgroup.id()).then_some(())
        });
    };
    kill_in("stored");
    // A change by another process makes the writer read the file again, which it then finds damaged and replaces.
    let other = rusqlite::Connection::open(state.join("store.db")).expect("open the store");
    other.execute_batch("UPDATE run SET alive_ns = alive_ns + 1").expect("change it");
    for name in ["store.db", "store.db-wal"] {
        let file = state.join(name);
        let length = fs::metadata(&file).expect("it exists").len() as usize;
        let open = fs::File::options().write(true).open(&file).expect("open it");
        std::os::unix::fs::FileExt::write_all_at(&open, &vec![0xff; length], 0).expect("damage it");
    }
    until("new store", || {
        let _ = stored_kills(&socket);
        agent.log().contains("and created a new one").then_some(())
    });
    kill_in("stored-again");
    let kept = fs::read_dir(&state).expect("the state folder").flatten();
    let quarantined = kept.filter(|entry| entry.file_name().to_string_lossy().contains(".aside-"));
    assert!(quarantined.count() > 0);
    let pid = Pid::from_raw(i32::try_from(agent.pid()).expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("end the agent");
    assert!(agent.process.0.wait().expect("it ends").success(), "{}", agent.log());
    let log = agent.log();
    assert!(!log.contains("ermission denied") && !log.contains("not permitted"), "{log}");
    let checkpoint = fs::read(state.join("state.json")).expect("the checkpoint");
    let checkpoint: Value = serde_json::from_slice(&checkpoint).expect("JSON");
    let saved: jiff::Timestamp = checkpoint["saved_at"].as_str().expect("a time").parse().expect("a time");
    assert!(saved > restrained, "{checkpoint}");
    assert!(!socket.exists());
}

/// Capabilities that DNS at the root cgroup needs, and OOM kills do not.
const NO_DNS: &str = "--bounding-set=-sys_admin,-net_admin";

#[test]
fn a_probe_that_cannot_attach_is_reported_and_the_others_record() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = Path::new("/nonexistent/podopsy-test.sock");
    let agent = Agent::start_by(&["setpriv", NO_DNS], folder.path(), nowhere, &["--growth", "off"]);
    // It is in the log, in the readiness response, and in the metrics.
    let log = agent.log();
    assert!(log.contains("WARN") && log.contains("no DNS query is seen: "), "{log}");
    // There is no container runtime here, which may start later; a probe is not retried.
    let (_, ready) = get(&agent.address, "/readyz", "*/*").expect("an answer");
    let ready: serde_json::Value = serde_json::from_str(&ready).expect("JSON");
    assert!(!ready["waiting_for"].to_string().contains("probes"), "{ready}");
    let degraded = ready["degraded"].as_array().expect("a list");
    assert!(
        degraded.iter().any(|one| one.as_str().is_some_and(|one| one.starts_with("no DNS query is seen")))
    );
    let (_, page) = get(&agent.address, "/metrics", "text/plain").expect("a page");
    let has = |line: &str| page.lines().any(|one| one == line);
    assert!(has(&format!("podopsy_degraded {}.0", degraded.len())), "{ready} {page}");
    assert!(has("podopsy_probe_attached{probe=\"dns\"} 0"), "{page}");
    assert!(has("podopsy_probe_attached{probe=\"oom\"} 1"), "{page}");
    // A kill is still reported.
    let cgroup = MemoryCgroup::new("degraded", 16 << 20);
    let _ = cgroup.command("head -c 64m /dev/zero | tail").status();
    let kill = until("kill, reported without DNS", || {
        agent.events().into_iter().find(|event| event.kind == EventKind::OomKill)
    });
    assert_eq!(kill.cgroup.id, cgroup.id());
}
