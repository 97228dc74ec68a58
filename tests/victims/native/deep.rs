//! Twenty frames deep in Rust, through trait objects and iterators.

use std::hint::black_box;

trait Step {
    fn step(&self, depth: u64) -> u64;
}

struct Down;

impl Step for Down {
    #[inline(never)]
    fn step(&self, depth: u64) -> u64 {
        let room = black_box([depth; 7]);
        let below = if depth == 0 { work() } else { black_box(self as &dyn Step).step(depth - 1) };
        below.wrapping_add(room.iter().sum())
    }
}

#[inline(never)]
fn work() -> u64 {
    (0..100_000u64).fold(black_box(1), |x, i| black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i)))
}

fn main() {
    loop {
        black_box(Down.step(20));
    }
}
