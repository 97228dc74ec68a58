//! Openers in their jail, and what becomes of those that do not answer. Run as root: only then is the jail complete.
//!
//! The program is its own supervisor, so its `main` is not that of the usual test harness.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use podopsy_opener::{FileHandle, MappedArea, OpenError, OpenerOptions, Openers, Target};

fn main() -> ExitCode {
    if let Some(code) = podopsy_opener::run_if_asked() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    // They look at the children of this process.
    arguments.test_threads = Some(1);
    let tests: &[(&str, fn())] = &[
        ("an_opener_holds_the_capabilities_of_opening_alone_and_no_network", an_opener_holds_few_rights),
        ("a_mapped_file_of_another_user_is_opened_and_read", a_mapped_file_is_opened),
        ("a_file_below_a_root_is_opened_or_read_within_its_bound", a_file_below_a_root_is_opened),
        ("mappings_are_read_to_the_end_or_not_at_all", mappings_are_read),
        ("parts_of_a_memory_are_read_and_none_of_another_address_space", parts_of_a_memory_are_read),
        ("an_opener_that_hangs_costs_its_container_its_files_and_no_other", a_hang_costs_its_container),
        ("a_slow_disk_is_waited_for_and_one_that_hangs_costs_its_container", a_slow_disk_is_waited_for),
        ("a_file_that_may_hang_gets_no_more_time_for_slow_answers", a_slow_server_is_not_waited_for),
        ("an_opener_that_dies_is_replaced", an_opener_that_dies_is_replaced),
        ("one_opener_serves_many_requests", one_opener_serves_many_requests),
    ];
    let trial = |(name, run): &(&str, fn())| {
        let run = *run;
        Trial::test(*name, move || std::panic::catch_unwind(run).map_err(|_| Failed::without_message()))
    };
    libtest_mimic::run(&arguments, tests.iter().map(trial).collect()).exit_code()
}

/// The time limit of every file.
const LIMIT: Duration = Duration::from_millis(300);

fn openers() -> Openers {
    Openers::start(OpenerOptions { remote_limit: LIMIT, local_limit: LIMIT, ..OpenerOptions::default() })
        .unwrap()
}

fn own(tenant: u64) -> Target {
    Target { tenant, pid: std::process::id(), may_hang: false }
}

/// As [`own`], with a file whose file system may hang.
fn own_remote(tenant: u64) -> Target {
    Target { may_hang: true, ..own(tenant) }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The content of a handle, as a helper reads it.
fn content(handle: &FileHandle) -> Vec<u8> {
    // SAFETY: the copy belongs to this function alone.
    let copy = unsafe { OwnedFd::from_raw_fd(libc::fcntl(handle.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0)) };
    let file = podopsy_helper::open_sealed(File::from(copy)).unwrap();
    let mut bytes = vec![0; 64];
    let len = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(len);
    bytes
}

/// The first executable mapping of a file in a process.
fn first_area(pid: u32) -> MappedArea {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|line| line.contains(" r-xp ") && line.contains('/')).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let (start, end) = fields[0].split_once('-').unwrap();
    let (major, minor) = fields[3].split_once(':').unwrap();
    MappedArea {
        start: hex(start),
        end: hex(end),
        device: (hex(major) as u32, hex(minor) as u32),
        inode: fields[4].parse().unwrap(),
        path: fields[5].as_bytes().to_vec(),
    }
}

fn status_field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    field.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The openers and supervisors below this process.
fn descendants(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = list.split_whitespace().map(|child| child.parse().unwrap());
    children.flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}

fn an_opener_holds_few_rights() {
    let openers = openers();
    openers.mapped_file(own(1), first_area(std::process::id())).unwrap();
    let all = descendants(std::process::id() as i32);
    assert!(all.len() >= 3, "a supervisor, its reserve, an opener: {all:?}");
    for pid in all {
        assert_eq!(
            (status_field(pid, "Seccomp:"), status_field(pid, "NoNewPrivs:")),
            ("2".into(), "1".into())
        );
        assert_eq!(status_field(pid, "CapInh:"), "0000000000000000");
        if !is_root() {
            continue;
        }
        // CAP_DAC_READ_SEARCH (2), CAP_SYS_PTRACE (19), CAP_CHECKPOINT_RESTORE (40).
        for set in ["CapPrm:", "CapEff:"] {
            assert_eq!(status_field(pid, set), format!("{:016x}", 1u64 << 2 | 1 << 19 | 1 << 40), "{set}");
        }
        assert_eq!(status_field(pid, "Uid:"), "64996 64996 64996 64996");
        assert_eq!(status_field(pid, "Groups:"), "");
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(network(&pid.to_string()), network("self"));
    }
    if is_root() {
        assert_eq!(openers.weaknesses(), [""; 0]);
    }
}

fn a_mapped_file_is_opened() {
    let openers = openers();
    let pid = std::process::id();
    let handle = openers.mapped_file(own(1), first_area(pid)).unwrap();
    assert_eq!(&content(&handle)[..4], b"\x7fELF");
    let meta = fs::metadata("/proc/self/exe").unwrap();
    assert_eq!(handle.stat, (&meta).into());
    // By map_files, also when the path is gone.
    let deleted = MappedArea { path: b"/no/such/file".to_vec(), ..first_area(pid) };
    assert_eq!(openers.mapped_file(own(1), deleted).is_ok(), is_root());
    let gone = Target { pid: 0x3fff_ffff, ..own(1) };
    assert_eq!(openers.mapped_file(gone, first_area(pid)).unwrap_err(), OpenError::OutOfReach);
    if is_root() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "of root alone").unwrap();
        let handle = openers.file_in_root(own(1), file.path().as_os_str().as_encoded_bytes()).unwrap();
        assert_eq!(content(&handle), b"of root alone");
    }
}

fn a_file_below_a_root_is_opened() {
    let openers = openers();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    fs::write(&path, "search inside.test\n").unwrap();
    let path = path.as_os_str().as_encoded_bytes();
    assert_eq!(openers.content_in_root(own(1), path, 64).unwrap(), b"search inside.test\n");
    assert_eq!(openers.content_in_root(own(1), path, 4), Err(OpenError::TooLarge));
    assert_eq!(openers.content_in_root(own(1), b"/dev/zero", 64), Err(OpenError::NotRegular));
    assert_eq!(openers.file_in_root(own(1), b"/no/such/file").unwrap_err(), OpenError::OutOfReach);
    assert_eq!(content(&openers.file_in_root(own(1), path).unwrap()), b"search inside.test\n");
}

fn mappings_are_read() {
    let openers = openers();
    let read = |pid| {
        let mut text = String::new();
        openers.maps(Target { pid, ..own(1) }).map(|mut maps| maps.read_to_string(&mut text).unwrap())?;
        Ok::<_, OpenError>(text)
    };
    assert!(read(std::process::id()).unwrap().contains("[stack]"));
    assert_eq!(read(0x3fff_ffff), Err(OpenError::OutOfReach));
    // Nothing of a reader that was given up reaches the next one.
    for _ in 0..20 {
        let mut beginning = [0; 16];
        openers.maps(own(1)).unwrap().read_exact(&mut beginning).unwrap();
        assert!(read(std::process::id()).unwrap().starts_with(std::str::from_utf8(&beginning).unwrap()));
    }
    openers.mapped_file(own(1), first_area(std::process::id())).unwrap();
}

fn parts_of_a_memory_are_read() {
    let openers = openers();
    let text = String::from("in the memory of this process");
    let memory = openers.open_memory(own(1)).unwrap();
    let parts = vec![(text.as_ptr() as u64, 6), (8, 6), (text.as_ptr() as u64 + 7, 3)];
    let read = openers.read_memory(own(1), &memory, parts).unwrap();
    assert_eq!(read, [Some(b"in the".to_vec()), None, Some(b"mem".to_vec())]);
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let target = Target { pid: other.id(), ..own(1) };
    let memory = openers.open_memory(target).unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    let read = openers.read_memory(target, &memory, vec![(text.as_ptr() as u64, 6)]).unwrap();
    assert_eq!(read, [Some(Vec::new())], "it has ended");
    assert_eq!(openers.open_memory(target).unwrap_err(), OpenError::OutOfReach);
}

fn a_hang_costs_its_container() {
    let openers = openers();
    let area = first_area(std::process::id());
    let begin = Instant::now();
    assert_eq!(openers.misbehave(own_remote(7), false), OpenError::NoAnswer);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let begin = Instant::now();
    assert_eq!(openers.mapped_file(own(7), area.clone()).unwrap_err(), OpenError::NoAnswer);
    assert!(
        begin.elapsed() < Duration::from_millis(100),
        "refused without an attempt: {:?}",
        begin.elapsed()
    );
    openers.mapped_file(own(8), area).unwrap();
    // Its mappings are not on that file system.
    openers.maps(own(7)).unwrap();
    // It could be killed, so that none is left.
    assert_eq!(openers.hangs(), (1, 0));
}

/// Waits as for the blocks of a slow disk: twice the time limit in all.
fn delay(openers: &Openers, target: Target) -> Result<(), OpenError> {
    openers.delay(target, 30, LIMIT / 15)
}

fn a_slow_disk_is_waited_for() {
    let openers = openers();
    assert_eq!(delay(&openers, own(7)), Ok(()));
    openers.mapped_file(own(7), first_area(std::process::id())).unwrap();
    assert_eq!(openers.hangs(), (0, 0));
    let begin = Instant::now();
    assert_eq!(openers.misbehave(own(7), false), OpenError::NoAnswer);
    // On an overloaded machine four time limits, on others two.
    assert!(begin.elapsed() >= LIMIT * 2, "{:?}", begin.elapsed());
    assert_eq!(delay(&openers, own(7)), Err(OpenError::NoAnswer), "refused without an attempt");
    assert_eq!(openers.hangs(), (1, 0));
}

fn a_slow_server_is_not_waited_for() {
    let openers = openers();
    assert_eq!(delay(&openers, own_remote(7)), Err(OpenError::NoAnswer));
    assert_eq!(openers.hangs(), (1, 0));
    assert_eq!(delay(&openers, own(8)), Ok(()), "of another container");
}

fn an_opener_that_dies_is_replaced() {
    let openers = openers();
    assert_eq!(openers.misbehave(own(1), true), OpenError::Unavailable);
    openers.mapped_file(own(1), first_area(std::process::id())).unwrap();
    // The supervisor, too.
    for _ in 0..3 {
        let all = descendants(std::process::id() as i32);
        for pid in all.iter().filter(|pid| status_field(**pid, "PPid:") == std::process::id().to_string()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL);
        }
        openers.misbehave(own(1), true);
        openers.mapped_file(own(1), first_area(std::process::id())).unwrap();
    }
}

fn one_opener_serves_many_requests() {
    let openers = openers();
    let area = first_area(std::process::id());
    let begin = Instant::now();
    for _ in 0..2000 {
        openers.mapped_file(own(1), area.clone()).unwrap();
    }
    eprintln!("a mapped file was opened in {:?}", begin.elapsed() / 2000);
}
