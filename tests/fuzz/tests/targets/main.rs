//! One target for each parser of bytes that others chose: a container's owner, the network, the container runtime, a user.
//!
//! A target is a test. It replays its corpus and earlier findings (`__fuzz__/NAME/corpus`, `__fuzz__/NAME/crashes`), and
//! then tries random bytes and damaged copies of the corpus for `PODOPSY_FUZZ_SECONDS` (0.5). Under `cargo bolero` the
//! same target is libFuzzer's, which is guided by coverage:
//!
//! ```text
//! cargo bolero test -p podopsy-fuzz elf::fuzz::eh_frame --sanitizer NONE
//! ```
//!
//! No input may cause a panic, or take more than [`Bounds::SMALL`]. What else must hold is in each target.

mod corpus;
mod elf;
mod files;
mod network;
mod process;

use std::path::PathBuf;
use std::time::Duration;

use podopsy_fuzz::{Bounds, CountingAllocator, mutants};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Makes a test of each of these functions, in a module of its own.
macro_rules! targets {
    ($($name:ident,)+) => {
        mod fuzz {$(
            #[test]
            fn $name() {
                let time = crate::time_for_search();
                let check = bolero::check!(name = stringify!($name)).with_max_len(4096);
                let check = if time.is_zero() {
                    check.with_iterations(0)
                } else {
                    // Damaged copies find more than random bytes.
                    check.with_test_time(time / 8)
                };
                check.for_each(|input: &[u8]| podopsy_fuzz::Bounds::SMALL.run(super::$name, input));
                crate::run_mutants(stringify!($name), super::$name, time);
            }
        )+}

        /// The names of the targets.
        pub const NAMES: &[&str] = &[$(stringify!($name)),+];
    };
}
pub(crate) use targets;

/// How long a target searches for new inputs. 0 is for a replay of the known ones alone.
fn time_for_search() -> Duration {
    let seconds = std::env::var("PODOPSY_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::try_from_secs_f64(seconds.unwrap_or(0.5)).expect("PODOPSY_FUZZ_SECONDS is a number of seconds")
}

fn run_mutants(name: &str, target: fn(&[u8]), time: Duration) {
    let report = mutants(&corpus_of(name), target, Bounds::SMALL, time);
    println!("{name}: {} inputs in the corpus, {} damaged copies", report.valid, report.runs);
}

/// The folder of a target's corpus.
fn corpus_of(name: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/targets/__fuzz__");
    [root, name, "corpus"].iter().collect()
}

/// Fails if a text could deceive a reader or a terminal.
fn assert_printable(text: &str) {
    let is_plain = |c: char| matches!(c, ' '..='~' | '…') || (!c.is_ascii() && c.is_alphanumeric());
    assert!(text.chars().all(is_plain), "not printable: {text:?}");
}

/// Cuts an input into `N` parts: the lengths of all but the last, of two bytes each, stand before them.
fn parts<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let (lengths, mut rest) = input.split_at(input.len().min(2 * (N - 1)));
    let mut parts = [&[][..]; N];
    for (part, length) in parts.iter_mut().zip(lengths.chunks_exact(2)) {
        let len = usize::from(u16::from_le_bytes([length[0], length[1]])).min(rest.len());
        (*part, rest) = rest.split_at(len);
    }
    parts[N - 1] = rest;
    parts
}

/// The reverse of [`parts`].
fn joined<const N: usize>(parts: [&[u8]; N]) -> Vec<u8> {
    let lengths = parts[..N - 1].iter().flat_map(|part| (part.len() as u16).to_le_bytes());
    lengths.chain(parts.concat()).collect()
}

#[test]
fn parts_are_what_was_joined() {
    assert_eq!(parts(&joined([b"one", b"", b"three"])), [&b"one"[..], b"", b"three"]);
    assert_eq!(parts::<3>(&[0xff]), [&b""[..]; 3]);
    assert_eq!(parts::<2>(&[0xff, 0xff, 1]), [&[1][..], &[]]);
}
