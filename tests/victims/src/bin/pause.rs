//! PID 1 of a pod's sandbox: keeps its namespaces open, reaps orphaned processes, exits at SIGTERM.

fn main() {
    // SAFETY: an all-zero sigset_t is valid storage for sigemptyset.
    let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours and lives through these calls; the signals are valid. They are blocked, so that
    // sigwait below takes them one at a time and no handler is needed.
    unsafe {
        libc::sigemptyset(&mut signals);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
            libc::sigaddset(&mut signals, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
    }
    loop {
        let mut signal = 0;
        // SAFETY: the set is initialised and `signal` is ours to write.
        let failed = unsafe { libc::sigwait(&signals, &mut signal) } != 0;
        if failed {
            continue;
        }
        if signal != libc::SIGCHLD {
            return;
        }
        // One SIGCHLD may stand for many children.
        // SAFETY: waitpid with a null status pointer only reaps.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
    }
}
