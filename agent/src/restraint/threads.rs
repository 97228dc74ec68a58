//! Reduces the capabilities of every thread, and installs the filter of system calls there. The kernel lets a thread change
//! only its own capabilities, so each one does it in a signal handler. The kernel could install a filter on all threads at
//! once (TSYNC), but the threads that write files have another one.
//!
//! libcap's psx does the same. A thread that starts meanwhile has the capabilities and the filter that its parent had at
//! that moment. So the list of threads is read until every thread is done, twice in a row.

use std::cell::Cell;
use std::fs;
use std::io;
use std::mem;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use podopsy_system::sync::lock;

/// How long all threads may take. A thread in an uninterruptible wait handles the signal only after the wait.
const WITHIN: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// `_LINUX_CAPABILITY_VERSION_3` (`<linux/capability.h>`).
const VERSION: u32 = 0x2008_0522;

/// The capabilities that the signal handler keeps.
static KEEP: AtomicU64 = AtomicU64::new(0);
/// The filter that the signal handler installs. Null: none.
static FILTER: AtomicPtr<libc::sock_fprog> = AtomicPtr::new(ptr::null_mut());
/// Serializes calls of [`narrow`]: there is one [`KEEP`] and one signal handler.
static NARROWING: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether this thread has handled the signal. It has a constant initial value and no destructor, so that the signal
    /// handler can use it.
    static IS_DONE: Cell<bool> = const { Cell::new(false) };
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapUserHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapUserData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// What every thread has in the end.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// The capabilities of a thread that records.
    pub keep: u64,
    /// The capabilities of a thread that writes files. It has its own filter already. None: there is no such thread.
    pub state: Option<u64>,
}

/// What [`narrow`] reached.
pub struct Narrowed {
    pub capabilities: anyhow::Result<()>,
    pub filter: anyhow::Result<()>,
}

/// Reduces the permitted and effective sets of every thread to those of the goal, empties the inheritable set, and installs
/// a filter, which has to live for ever. Returns when every thread is done.
pub fn narrow(goal: Goal, filter: Option<&'static libc::sock_fprog>) -> anyhow::Result<Narrowed> {
    let _guard = lock(&NARROWING);
    KEEP.store(goal.keep, SeqCst);
    FILTER.store(filter.map_or(ptr::null_mut(), |filter| ptr::from_ref(filter).cast_mut()), SeqCst);
    let filters = status("self").and_then(|own| own.filters);
    let wanted = filters.filter(|_| filter.is_some()).map_or(0, |before| before + 1);
    let number = libc::SIGRTMAX() - 1;
    set_handler(number, on_signal as *const () as libc::sighandler_t, libc::SA_RESTART)?;
    let narrowed = signal_all(number, goal, wanted)?;
    // A thread that got the signal again before it handled the first one has more of them pending, and may handle those
    // later. The previous disposition, the default, would then end the process.
    set_handler(number, libc::SIG_IGN, 0)?;
    Ok(narrowed)
}

fn signal_all(number: libc::c_int, goal: Goal, filters: u32) -> anyhow::Result<Narrowed> {
    let has_sets = |status: &ThreadStatus| {
        let set = [Some(goal.keep), goal.state];
        set.into_iter().flatten().any(|set| status.sets == [0, set, set])
    };
    let has_filter = |status: &ThreadStatus| status.filters.unwrap_or_default() >= filters;
    let end = Instant::now() + WITHIN;
    let mut clean = 0;
    loop {
        let all: Vec<(i32, ThreadStatus)> =
            threads()?.into_iter().filter_map(|tid| Some((tid, status(&tid.to_string())?))).collect();
        let left: Vec<i32> =
            all.iter().filter(|(_, one)| !(has_sets(one) && has_filter(one))).map(|(tid, _)| *tid).collect();
        clean = if left.is_empty() { clean + 1 } else { 0 };
        if clean == 2 || Instant::now() >= end {
            let without =
                |has: &dyn Fn(&ThreadStatus) -> bool| all.iter().filter(|(_, one)| !has(one)).count();
            let outcome = |count: usize, what: &str| {
                ensure!(count == 0, "{count} threads still have {what} after {WITHIN:?}");
                Ok(())
            };
            return Ok(Narrowed {
                capabilities: outcome(without(&has_sets), "other capabilities"),
                filter: outcome(without(&has_filter), "no filter"),
            });
        }
        for tid in &left {
            // SAFETY: tgkill takes three integers; if the thread has ended, the call fails; it never reaches
            // another process.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), *tid, number) };
        }
        if !left.is_empty() {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

fn threads() -> anyhow::Result<Vec<i32>> {
    let entries = fs::read_dir("/proc/self/task").context("list the threads")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

struct ThreadStatus {
    /// The inheritable, permitted and effective set.
    sets: [u64; 3],
    /// How many filters of system calls it has. None: the kernel does not show it (before Linux 5.9).
    filters: Option<u32>,
}

/// The status of a thread, `self` is the calling one. None: it has ended.
fn status(tid: &str) -> Option<ThreadStatus> {
    let path = if tid == "self" {
        "/proc/thread-self/status".to_owned()
    } else {
        format!("/proc/self/task/{tid}/status")
    };
    let status = fs::read_to_string(path).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let set = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
    Some(ThreadStatus {
        sets: [set("CapInh:")?, set("CapPrm:")?, set("CapEff:")?],
        filters: field("Seccomp_filters:").and_then(|count| count.parse().ok()),
    })
}

/// The inheritable, permitted and effective set of this thread.
pub fn own_sets() -> Option<[u64; 3]> {
    status("self").map(|own| own.sets)
}

/// Whether the kernel shows how many filters a thread has. Only then can they be installed thread by thread.
pub fn counts_filters() -> bool {
    status("self").is_some_and(|own| own.filters.is_some())
}

/// Installs a signal handler.
fn set_handler(number: libc::c_int, handler: libc::sighandler_t, flags: libc::c_int) -> anyhow::Result<()> {
    // SAFETY: all zeros is a sigaction without a handler, an empty mask and no flags.
    let mut new: libc::sigaction = unsafe { mem::zeroed() };
    new.sa_sigaction = handler;
    new.sa_flags = flags;
    // SAFETY: `new` lives until the call returns, and the handler is async-signal-safe.
    if unsafe { libc::sigaction(number, &raw const new, ptr::null_mut()) } != 0 {
        bail!("install a handler for signal {number}: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the permitted and effective sets of this thread, and empties the inheritable set.
pub fn set_own(keep: u64) -> io::Result<()> {
    if capset(keep) == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One system call, no allocation, no lock.
fn capset(keep: u64) -> libc::c_long {
    let half = |bits: u64| CapUserData { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let (header, data) = (CapUserHeader { version: VERSION, pid: 0 }, [half(keep), half(keep >> 32)]);
    // SAFETY: capset reads the two structures, which have the kernel's layout and live until the call returns.
    unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }
}

/// Runs in each thread: a few system calls, no allocation, no lock. The result is read from /proc.
extern "C" fn on_signal(_: libc::c_int) {
    if IS_DONE.replace(true) {
        return;
    }
    // SAFETY: errno is thread-local and is restored for the interrupted code. The filter lives for ever.
    unsafe {
        let errno = libc::__errno_location();
        let before = ptr::read(errno);
        capset(KEEP.load(SeqCst));
        let filter = FILTER.load(SeqCst).cast_const();
        if !filter.is_null() {
            // Without no-new-privs the kernel requires CAP_SYS_ADMIN to install a filter.
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            let flags = libc::SECCOMP_FILTER_FLAG_LOG;
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, filter);
        }
        ptr::write(errno, before);
    }
}
