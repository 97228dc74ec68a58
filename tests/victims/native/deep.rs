//! Twenty frames deep in Rust, through trait objects and iterators.

use std::hint::black_box;

trait Step {
    fn step(&self, depth: u64) -> u64;
}

struct Down;

impl Step for Down {
    #[inline(never)]
    fn step(&self, depth: u64) -> u64 {
        let space = black_box([depth; 7]);
        let below = if depth == 0 { leaf_a() ^ leaf_b() } else { black_box(self as &dyn Step).step(depth - 1) };
        below.wrapping_add(space.iter().sum())
    }
}

/// One loop for both leaves, so that it is equally fast in both.
#[inline(never)]
fn work(rounds: u64) -> u64 {
    (0..rounds).fold(black_box(1), |x, i| black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i)))
}

#[inline(never)]
fn leaf_a() -> u64 {
    black_box(work(60_000))
}

#[inline(never)]
fn leaf_b() -> u64 {
    black_box(work(40_000))
}

fn main() {
    loop {
        black_box(Down.step(20));
    }
}
