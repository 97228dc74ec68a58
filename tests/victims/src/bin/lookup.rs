//! Looks names up by getaddrinfo and prints each result.
//!
//! ```text
//! lookup NAME… [--times N] [--every MS]
//! ```
//!
//! Without `--times` it never ends. After the last round it exits with the number of names that failed in it (at most
//! 100).

use std::time::{Duration, Instant};

use podopsy_victims::args::{Args, number, time};
use podopsy_victims::lookup::resolve;
use podopsy_victims::term::exit_on_sigterm;

const USAGE: &str = "lookup NAME… [--times N] [--every MS]";

fn main() {
    exit_on_sigterm();
    let mut args = Args::new(USAGE);
    let times = args.value("--times", number);
    let every = args.value("--every", time).unwrap_or(Duration::from_secs(1));
    let names = args.positional();
    let mut round = 0;
    let failed = loop {
        let failed = names.iter().filter(|name| !look_up(name)).count();
        round += 1;
        if times.is_some_and(|times| round >= times) {
            break failed;
        }
        std::thread::sleep(every);
    };
    std::process::exit(failed.min(100) as i32);
}

/// One lookup, one line; true if it gave an address.
#[inline(never)]
fn look_up(name: &str) -> bool {
    let start = Instant::now();
    let result = resolve(name);
    let latency = start.elapsed().as_millis();
    match &result {
        Ok(addresses) => println!("{name}: {addresses:?} after {latency} ms"),
        Err(error) => println!("{name}: {error} after {latency} ms"),
    }
    result.is_ok()
}
