//! Capabilities of every thread: the kernel lets each change only its own, so each is asked by a signal.
//!
//! libcap's psx does the same. A thread that is started meanwhile has what its parent had at that moment, so that the list of
//! threads is read again until nobody is left over, twice in a row.

use std::fs;
use std::mem;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// A thread in an uninterruptible wait answers when that is over.
const WITHIN: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(2);
/// `_LINUX_CAPABILITY_VERSION_3` (`<linux/capability.h>`).
const VERSION: u32 = 0x2008_0522;

/// What the signal leaves to a thread.
static KEEP: AtomicU64 = AtomicU64::new(0);
/// One at a time: there is one [`KEEP`], and one handler.
static NARROWING: Mutex<()> = Mutex::new(());

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Leaves `keep` to every thread, permitted and effective; nothing is inherited. Returns when all are so.
pub fn narrow(keep: u64) -> anyhow::Result<()> {
    let _one = NARROWING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    KEEP.store(keep, SeqCst);
    let number = libc::SIGRTMAX() - 1;
    handle(number, on_signal as *const () as libc::sighandler_t, libc::SA_RESTART)?;
    ask_all(number, keep)?;
    // A thread that was asked again before it had come to answer has more of them in line, and may come to those later. What
    // was in place before us, the default, would end the process then.
    handle(number, libc::SIG_IGN, 0)
}

fn ask_all(number: libc::c_int, keep: u64) -> anyhow::Result<()> {
    let (end, mut clean) = (Instant::now() + WITHIN, 0);
    while clean < 2 {
        let left: Vec<i32> = threads()?
            .into_iter()
            .filter(|tid| state(*tid).is_some_and(|is| is != [0, keep, keep]))
            .collect();
        clean = if left.is_empty() { clean + 1 } else { 0 };
        ensure!(Instant::now() < end, "{} threads still have others after {WITHIN:?}", left.len());
        for tid in &left {
            // SAFETY: tgkill takes three integers; a thread of ours that has ended is an error, and no other's.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), *tid, number) };
        }
        if !left.is_empty() {
            std::thread::sleep(AGAIN);
        }
    }
    Ok(())
}

fn threads() -> anyhow::Result<Vec<i32>> {
    let entries = fs::read_dir("/proc/self/task").context("list the threads")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Inheritable, permitted and effective set of a thread; None: it has ended.
fn state(tid: i32) -> Option<[u64; 3]> {
    let status = fs::read_to_string(format!("/proc/self/task/{tid}/status")).ok()?;
    let field = |name: &str| {
        let digits = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(digits.trim(), 16).ok()
    };
    Some([field("CapInh:")?, field("CapPrm:")?, field("CapEff:")?])
}

/// Puts a handler in place.
fn handle(number: libc::c_int, handler: libc::sighandler_t, flags: libc::c_int) -> anyhow::Result<()> {
    // SAFETY: all zeros is a sigaction without a handler, an empty mask and no flags.
    let mut new: libc::sigaction = unsafe { mem::zeroed() };
    new.sa_sigaction = handler;
    new.sa_flags = flags;
    // SAFETY: it lives over the call, and the handler calls nothing that a signal handler may not.
    if unsafe { libc::sigaction(number, &raw const new, ptr::null_mut()) } != 0 {
        bail!("handle signal {number}: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// In the thread itself: one system call, no allocation, no lock. What it comes to is read from /proc.
extern "C" fn on_signal(_: libc::c_int) {
    let keep = KEEP.load(SeqCst);
    let half = |bits: u64| Data { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let (header, data) = (Header { version: VERSION, pid: 0 }, [half(keep), half(keep >> 32)]);
    // SAFETY: errno is this thread's own, and is put back for the code that was interrupted; capset reads the two
    // structures, which are the kernel's and live over the call.
    unsafe {
        let errno = libc::__errno_location();
        let before = ptr::read(errno);
        libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr());
        ptr::write(errno, before);
    }
}
