//! Exits with a given code after a given time: a crash loop, or a job that succeeds.
//!
//! ```text
//! exits [--after MS] [--code N] [--signal N]
//! ```
//!
//! `--signal` raises a signal instead: SIGKILL (9) is a kill without the OOM killer. PID 1 is immune to its own
//! signals, so a child raises it and this program exits with 128 + N.

use podopsy_victims::args::{Args, number, time};
use podopsy_victims::term::exit_on_sigterm;

const USAGE: &str = "exits [--after MS] [--code N] [--signal N]";

fn main() {
    exit_on_sigterm();
    let mut args = Args::new(USAGE);
    let after = args.value("--after", time).unwrap_or_default();
    let code = args.value("--code", number).unwrap_or(0);
    let signal = args.value("--signal", number);
    args.positional();
    std::thread::sleep(after);
    let Some(signal) = signal else { std::process::exit(code as i32) };
    // SAFETY: one thread, so the child's copy of the process is whole; it only signals itself and exits.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::kill(libc::getpid(), signal as i32);
            libc::_exit(0);
        }
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    std::process::exit(128 + signal as i32);
}
