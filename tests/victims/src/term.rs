//! Exit at SIGTERM. The kernel drops signals to PID 1 of a container that have no handler.

/// Exits with 143 (128 + SIGTERM, what a shell would report) at SIGTERM or SIGINT.
pub fn exit_on_sigterm() {
    extern "C" fn exit(_signal: libc::c_int) {
        // SAFETY: _exit is async-signal-safe and runs no destructors.
        unsafe { libc::_exit(143) }
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler is a function of the right type that lives forever and calls only _exit.
        unsafe { libc::signal(signal, exit as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}
