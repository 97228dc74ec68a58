//! Leaks memory until the OOM killer ends it: `handle_order` → `append_history` → `keep` is the path that allocates.
//!
//! ```text
//! leak [--step BYTES] [--every MS] [--wait MS] [--when FILE] [--up-to BYTES] [--hold BYTES] [--fast] [--deaf] [--child
//! [--times N]]
//! ```
//!
//! `--wait` delays the leak, and `--when` holds it back until the file exists. `--fast` leaks in steps of 8 MiB without
//! a pause. `--child` forks a child that leaks while PID 1 keeps running, and Kubernetes shows Running. With `--times
//! N`, N children leak one after the other, and then the program exits. `--up-to` stops growing at that size and keeps
//! the memory. `--hold` allocates that much at the start, so that a child under a tight limit runs for milliseconds.
//! `--deaf` installs no handler for SIGTERM, which PID 1 of a container then ignores.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

use podopsy_victims::args::{Args, bytes, number, time};
use podopsy_victims::term::exit_on_sigterm;

const USAGE: &str = "leak [--step BYTES] [--every MS] [--wait MS] [--when FILE] [--up-to BYTES] [--hold BYTES] [--fast] [--deaf] [--child [--times N]]";
const PAGE: usize = 4096;

/// How to leak.
struct Plan {
    step: usize,
    every: Duration,
    up_to: usize,
}

fn main() {
    let mut args = Args::new(USAGE);
    if !args.switch("--deaf") {
        exit_on_sigterm();
    }
    let fast = args.switch("--fast");
    let child = args.switch("--child");
    let (step, every) = if fast { (8 << 20, 0) } else { (1 << 20, 50) };
    let plan = Plan {
        step: args.value("--step", bytes).unwrap_or(step),
        every: args.value("--every", time).unwrap_or(Duration::from_millis(every)),
        up_to: args.value("--up-to", bytes).unwrap_or(usize::MAX),
    };
    let wait = args.value("--wait", time).unwrap_or_default();
    let gate = args.value("--when", |text| Some(PathBuf::from(text)));
    let times = args.value("--times", number);
    let mut held = vec![0_u8; args.value("--hold", bytes).unwrap_or(0)];
    args.positional();
    keep(&mut held);
    std::thread::sleep(wait);
    while gate.as_ref().is_some_and(|gate| !gate.exists()) {
        std::thread::sleep(Duration::from_millis(10));
    }

    if child {
        for _ in 0..times.unwrap_or(1) {
            watch_child(&plan);
        }
        if times.is_some() {
            return;
        }
    } else {
        serve_orders(&plan);
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Forks a child that leaks, and prints how it ended.
fn watch_child(plan: &Plan) {
    // SAFETY: this process has one thread, so the child's copy of it is whole.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        serve_orders(plan);
        // SAFETY: _exit ends the child without running the parent's destructors a second time.
        unsafe { libc::_exit(0) };
    }
    println!("leak: child {pid}");
    let mut status = 0;
    // SAFETY: `status` is ours to write.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    if libc::WIFSIGNALED(status) {
        println!("leak: child {pid} ended by signal {}", libc::WTERMSIG(status));
    } else {
        println!("leak: child {pid} exited with {}", libc::WEXITSTATUS(status));
    }
}

/// The service's loop: one order per `every`, until `up_to` bytes are held.
#[inline(never)]
fn serve_orders(plan: &Plan) {
    let mut history = Vec::new();
    let mut held = 0;
    while held < plan.up_to {
        held += handle_order(&mut history, plan.step);
        if !plan.every.is_zero() {
            println!("leak: {} KiB", held / 1024);
            std::thread::sleep(plan.every);
        }
    }
    // Never freed: that is the leak.
    std::mem::forget(black_box(history));
}

#[inline(never)]
fn handle_order(history: &mut Vec<Box<[u8]>>, step: usize) -> usize {
    let size = append_history(history, step);
    black_box(size)
}

#[inline(never)]
fn append_history(history: &mut Vec<Box<[u8]>>, step: usize) -> usize {
    let mut buffer = vec![0_u8; step].into_boxed_slice();
    keep(&mut buffer);
    history.push(buffer);
    black_box(step)
}

/// Touches every page: memory that is only reserved counts against no limit.
#[inline(never)]
fn keep(buffer: &mut [u8]) {
    for page in buffer.chunks_mut(PAGE) {
        page[0] = 1;
    }
    black_box(&buffer);
}
