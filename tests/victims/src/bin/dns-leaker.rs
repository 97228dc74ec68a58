//! A payment client with a realistic bug: each failed lookup keeps its request for a retry that never comes, so that a
//! DNS failure ends in an OOM kill minutes later.
//!
//! ```text
//! dns-leaker [--name NAME] [--every MS] [--leak BYTES] [--worker]
//! ```
//!
//! `--worker` does so in a child that is started again whenever it ends, as prefork servers do: where the OOM killer takes
//! single processes, PID 1 lives on, and Kubernetes shows Running without a restart.

use std::hint::black_box;
use std::time::Duration;

use podopsy_victims::args::{Args, bytes, time};
use podopsy_victims::lookup::resolve;
use podopsy_victims::term::exit_on_sigterm;

const USAGE: &str = "dns-leaker [--name NAME] [--every MS] [--leak BYTES] [--worker]";
const PAGE: usize = 4096;

/// Requests that wait for a retry.
#[derive(Default)]
struct RetryQueue {
    requests: Vec<Box<[u8]>>,
}

fn main() {
    exit_on_sigterm();
    let mut args = Args::new(USAGE);
    let name = args
        .value("--name", |text| Some(text.to_owned()))
        .unwrap_or_else(|| "payments.finance.svc.cluster.local".to_owned());
    let every = args.value("--every", time).unwrap_or(Duration::from_millis(200));
    let leak = args.value("--leak", bytes).unwrap_or(1 << 20);
    let worker = args.switch("--worker");
    args.positional();
    if worker {
        become_worker();
    }

    let mut queue = RetryQueue::default();
    loop {
        charge_card(&mut queue, &name, leak);
        std::thread::sleep(every);
    }
}

/// Returns in a new child, again and again; the parent only waits for each.
fn become_worker() {
    loop {
        // SAFETY: this process has one thread, so the child's copy of it is whole.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            return;
        }
        let mut status = 0;
        // SAFETY: `status` is ours to write.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        println!("worker {pid} ended by signal {}", libc::WTERMSIG(status));
        // Without a child (fork failed), too: no busy loop.
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// One payment: finds the payment service, or keeps the request for a retry.
#[inline(never)]
fn charge_card(queue: &mut RetryQueue, name: &str, leak: usize) {
    match resolve(name) {
        Ok(addresses) => println!("charged through {addresses:?}"),
        Err(error) => {
            let waiting = schedule_retry(queue, leak);
            println!("{name}: {error}; {waiting} requests wait for a retry");
        }
    }
}

#[inline(never)]
fn schedule_retry(queue: &mut RetryQueue, leak: usize) -> usize {
    let request = copy_request(leak);
    queue.requests.push(request);
    black_box(queue.requests.len())
}

/// The leaked memory: a whole request, every page of it touched.
#[inline(never)]
fn copy_request(size: usize) -> Box<[u8]> {
    let mut request = vec![0_u8; size].into_boxed_slice();
    for page in request.chunks_mut(PAGE) {
        page[0] = 1;
    }
    black_box(request)
}
