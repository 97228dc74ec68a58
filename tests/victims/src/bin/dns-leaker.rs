//! A payment client with a realistic bug: each failed lookup keeps its request for a retry that never comes, so that a
//! DNS failure ends in an OOM kill minutes later.
//!
//! ```text
//! dns-leaker [--name NAME] [--every MS] [--leak BYTES]
//! ```

use std::hint::black_box;
use std::time::Duration;

use podopsy_victims::args::{Args, bytes, time};
use podopsy_victims::lookup::resolve;
use podopsy_victims::term::exit_on_sigterm;

const USAGE: &str = "dns-leaker [--name NAME] [--every MS] [--leak BYTES]";
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
    args.positional();

    let mut queue = RetryQueue::default();
    loop {
        charge_card(&mut queue, &name, leak);
        std::thread::sleep(every);
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
