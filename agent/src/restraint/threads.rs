//! Reduces the capabilities of every thread. The kernel lets a thread change only its own, so each one does it in a signal
//! handler.
//!
//! libcap's psx does the same. A thread that starts meanwhile has the capabilities that its parent had at that moment. So
//! the list of threads is read until every thread is done, twice in a row.

use std::fs;
use std::mem;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
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
/// Serializes calls of [`narrow`]: there is one [`KEEP`] and one signal handler.
static NARROWING: Mutex<()> = Mutex::new(());

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

/// Reduces the permitted and effective sets of every thread to `keep` and empties the inheritable set. Returns when every
/// thread is done.
pub fn narrow(keep: u64) -> anyhow::Result<()> {
    let _guard = lock(&NARROWING);
    KEEP.store(keep, SeqCst);
    let number = libc::SIGRTMAX() - 1;
    set_handler(number, on_signal as *const () as libc::sighandler_t, libc::SA_RESTART)?;
    signal_all(number, keep)?;
    // A thread that got the signal again before it handled the first one has more of them pending, and may handle those
    // later. The previous disposition, the default, would then end the process.
    set_handler(number, libc::SIG_IGN, 0)
}

fn signal_all(number: libc::c_int, keep: u64) -> anyhow::Result<()> {
    let end = Instant::now() + WITHIN;
    let mut clean = 0;
    while clean < 2 {
        let left: Vec<i32> = threads()?
            .into_iter()
            .filter(|tid| capability_sets(*tid).is_some_and(|sets| sets != [0, keep, keep]))
            .collect();
        clean = if left.is_empty() { clean + 1 } else { 0 };
        ensure!(
            Instant::now() < end,
            "{} threads still have other capabilities after {WITHIN:?}",
            left.len()
        );
        for tid in &left {
            // SAFETY: tgkill takes three integers; if the thread has ended, the call fails; it never reaches
            // another process.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), *tid, number) };
        }
        if !left.is_empty() {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
    Ok(())
}

fn threads() -> anyhow::Result<Vec<i32>> {
    let entries = fs::read_dir("/proc/self/task").context("list the threads")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Inheritable, permitted and effective set of a thread; None: it has ended.
fn capability_sets(tid: i32) -> Option<[u64; 3]> {
    let status = fs::read_to_string(format!("/proc/self/task/{tid}/status")).ok()?;
    let field = |name: &str| {
        let digits = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(digits.trim(), 16).ok()
    };
    Some([field("CapInh:")?, field("CapPrm:")?, field("CapEff:")?])
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

/// Runs in each thread: one system call, no allocation, no lock. The result is read from /proc.
extern "C" fn on_signal(_: libc::c_int) {
    let keep = KEEP.load(SeqCst);
    let half = |bits: u64| CapUserData { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let (header, data) = (CapUserHeader { version: VERSION, pid: 0 }, [half(keep), half(keep >> 32)]);
    // SAFETY: errno is thread-local and is restored for the interrupted code. capset reads the two structures, which have
    // the kernel's layout and live until the call returns.
    unsafe {
        let errno = libc::__errno_location();
        let before = ptr::read(errno);
        libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr());
        ptr::write(errno, before);
    }
}
