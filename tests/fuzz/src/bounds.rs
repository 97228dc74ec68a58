//! The time and the memory that one input may take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Once;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

thread_local! {
    static USED: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts the bytes that each thread has allocated and their highest number.
#[derive(Debug)]
pub struct CountingAllocator;

impl CountingAllocator {
    fn add(bytes: usize) {
        // Both fail only in a thread that ends.
        let _ = USED.try_with(|used| {
            used.set(used.get().wrapping_add(bytes));
            let _ = PEAK.try_with(|peak| peak.set(peak.get().max(used.get())));
        });
    }

    fn remove(bytes: usize) {
        // What another thread allocated may be freed here.
        let _ = USED.try_with(|used| used.set(used.get().saturating_sub(bytes)));
    }
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Self::remove(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::remove(layout.size());
        Self::add(size);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What one input may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// CPU time: a busy machine is no finding.
    pub time: Duration,
    /// Bytes that are allocated at the same time.
    pub memory: usize,
}

impl Bounds {
    /// Inputs have a few KiB. The parsing worker gives up a file of hundreds of megabytes after two seconds.
    pub const SMALL: Bounds = Bounds { time: Duration::from_secs(2), memory: 32 << 20 };

    /// Runs a target with one input. Panics if it takes more.
    pub fn run(self, target: fn(&[u8]), input: &[u8]) {
        // A backtrace would take more memory than the target, also of a panic that the target catches.
        static WITHOUT_BACKTRACES: Once = Once::new();
        WITHOUT_BACKTRACES.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
        let (time, used) = (thread_time(), USED.get());
        PEAK.set(used);
        target(input);
        let (took, peak) = (thread_time().saturating_sub(time), PEAK.get().saturating_sub(used));
        assert!(took <= self.time, "an input of {} bytes took {took:?} of CPU time", input.len());
        assert!(peak <= self.memory, "an input of {} bytes took {} KiB of memory", input.len(), peak >> 10);
    }
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    const TIGHT: Bounds = Bounds { time: Duration::from_millis(50), memory: 1 << 20 };

    #[test]
    #[should_panic(expected = "of memory")]
    fn an_input_that_takes_too_much_memory_is_a_finding() {
        TIGHT.run(|input| drop(std::hint::black_box(vec![1_u8; input.len() << 20])), b"12");
    }

    #[test]
    #[should_panic(expected = "of CPU time")]
    fn an_input_that_takes_too_long_is_a_finding() {
        let busy = |_: &[u8]| {
            let start = thread_time();
            while thread_time() - start < Duration::from_millis(100) {}
        };
        TIGHT.run(busy, b"");
    }

    #[test]
    fn memory_that_is_freed_does_not_add_up() {
        TIGHT.run(|_| (0..100).for_each(|_| drop(std::hint::black_box(vec![1_u8; 100 << 10]))), b"");
    }
}
