//! Burns CPU with known shares: `price_options` 60 %, `discount_curve` 30 %, `round_ticks` 10 %.
//!
//! ```text
//! burner [--shares 60,30,10] [--threads N] [--busy PERCENT] [--for TIME]
//! ```
//!
//! Each function has its own caller (`quote_desk`, `risk_desk`, `feed_desk`: desks of a trading floor). The next slice
//! always goes to the function that is furthest behind its share of the thread's own CPU time, so the shares hold on
//! any machine and under any load. Slices are of 1 to 3 ms, at random: equal ones would repeat every 20 ms, and a
//! sampler at 199 Hz would hit nearly the same four places each time. Prints the shares so far every second.

use std::hint::black_box;
use std::time::{Duration, Instant};

use podopsy_victims::args::{Args, number, time};
use podopsy_victims::term::exit_on_sigterm;

const USAGE: &str = "burner [--shares 60,30,10] [--threads N] [--busy PERCENT] [--for TIME]";
const SLICE: Duration = Duration::from_millis(2);
const NAMES: [&str; 3] = ["price_options", "discount_curve", "round_ticks"];

/// Runs a function for a number of rounds.
type Caller = fn(u64) -> f64;

fn main() {
    exit_on_sigterm();
    let mut args = Args::new(USAGE);
    let shares = args.value("--shares", read_shares).unwrap_or([60.0, 30.0, 10.0]);
    let threads = args.value("--threads", number).unwrap_or(1);
    let busy = args.value("--busy", number).unwrap_or(100).clamp(1, 100) as u32;
    let until = args.value("--for", time).map(|time| Instant::now() + time);
    args.positional();

    let mut others = Vec::new();
    for _ in 1..threads {
        others.push(std::thread::spawn(move || trade(shares, busy, until, false)));
    }
    trade(shares, busy, until, true);
    for thread in others {
        let _ = thread.join();
    }
}

/// `60,30,10`, in percent.
fn read_shares(text: &str) -> Option<[f64; 3]> {
    let shares: Vec<f64> = text.split(',').filter_map(|part| part.parse().ok()).collect();
    shares.try_into().ok()
}

/// One thread's work: each slice goes to the function that is furthest behind its share.
#[inline(never)]
fn trade(shares: [f64; 3], busy: u32, until: Option<Instant>, prints: bool) {
    let callers: [Caller; 3] = [quote_desk, risk_desk, feed_desk];
    let total: f64 = shares.iter().sum();
    let mut spent = [0.0_f64; 3];
    let mut rounds = [1_000_u64; 3];
    let mut printed = Instant::now();
    // A generator with a fixed seed, so that every run is the same.
    let mut seed = 88_172_645_463_325_252_u64;
    while until.is_none_or(|until| Instant::now() < until) {
        let all: f64 = spent.iter().sum();
        let behind = |at: &usize| shares[*at] / total * all - spent[*at];
        let next = (0..3).max_by(|a, b| behind(a).total_cmp(&behind(b))).unwrap_or(0);

        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        // Of 512 to 1535 in 1024.
        let now = (rounds[next] * (512 + (seed >> 32) % 1024) / 1024).max(1);
        let start = thread_cpu_time();
        black_box(callers[next](now));
        let took = (thread_cpu_time() - start).as_secs_f64();
        spent[next] += took;
        // Half-way to the number of rounds that would have taken one slice: fast to learn, slow to jump.
        let wanted = now as f64 * (SLICE.as_secs_f64() / took.max(1e-6)).clamp(0.1, 10.0);
        rounds[next] = ((rounds[next] as f64 + wanted) / 2.0).max(1.0) as u64;

        if busy < 100 {
            std::thread::sleep(Duration::from_secs_f64(took * f64::from(100 - busy) / f64::from(busy)));
        }
        if prints && printed.elapsed() >= Duration::from_secs(1) {
            printed = Instant::now();
            let all: f64 = spent.iter().sum();
            let line: Vec<String> = NAMES
                .iter()
                .zip(spent)
                .map(|(name, spent)| format!("{name} {:.1} %", spent / all * 100.0))
                .collect();
            println!("burner: {} of {all:.1} s", line.join(", "));
        }
    }
}

#[inline(never)]
fn quote_desk(rounds: u64) -> f64 {
    // black_box after the call keeps it from becoming a tail call, which would hide this frame.
    black_box(price_options(rounds)) + 1.0
}

#[inline(never)]
fn risk_desk(rounds: u64) -> f64 {
    black_box(discount_curve(rounds)) + 2.0
}

#[inline(never)]
fn feed_desk(rounds: u64) -> f64 {
    black_box(round_ticks(rounds)) + 3.0
}

// The functions below use only operators and `while`: an iterator or a method would be an inlined frame of the standard
// library, and the flat profile would show that frame instead of the function.

/// A chain of two divisions.
#[inline(never)]
fn price_options(rounds: u64) -> f64 {
    let mut price = black_box(100.0_f64);
    let mut step = 0;
    while step < rounds {
        let drift = 1.0 + (step & 15) as f64 * 1e-4;
        price = (price + 3.0 / price) / drift;
        step += 1;
    }
    price
}

/// A chain of divisions.
#[inline(never)]
fn discount_curve(rounds: u64) -> f64 {
    let mut factor = black_box(1.0_f64);
    let mut year = 0;
    while year < rounds {
        factor = (factor + 1.0) / (1.03 + (year & 7) as f64 * 1e-3);
        year += 1;
    }
    factor
}

/// Integer mixing.
#[inline(never)]
fn round_ticks(rounds: u64) -> f64 {
    let mut tick = black_box(0x9e37_79b9_u64);
    let mut at = 0;
    while at < rounds {
        // 32 bits times 31 bits: no overflow.
        tick = ((tick ^ at) & 0xffff_ffff) * 0x7ed5_58cd;
        tick ^= tick >> 33;
        at += 1;
    }
    tick as f64
}

/// CPU time of this thread. Wall time would include the time that other processes ran on a busy machine.
fn thread_cpu_time() -> Duration {
    // SAFETY: an all-zero timespec is valid, and the call writes only to it.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now);
        now
    };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
