//! Allocates extents of words in slabs: first fit, with neighbours merged when they are released.
//!
//! Must not depend on: the content of the slabs.

use podopsy_wire::SLAB_WORDS;

/// A run of words in one slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub slab: usize,
    pub first: usize,
    pub len: usize,
}

#[derive(Debug, Default)]
pub(super) struct SlabArena {
    /// Ascending by slab and place; no two are adjacent.
    free: Vec<Extent>,
    slabs: usize,
}

impl SlabArena {
    pub fn slabs(&self) -> usize {
        self.slabs
    }

    /// Adds one slab.
    pub fn add_slab(&mut self) {
        self.free.push(Extent { slab: self.slabs, first: 0, len: SLAB_WORDS });
        self.slabs += 1;
    }

    /// Takes `len` words at an even place, because directories consist of u64. None if no free extent is large enough.
    pub fn allocate(&mut self, len: usize) -> Option<Extent> {
        let len = len.next_multiple_of(2);
        let index = self.free.iter().position(|extent| extent.len >= len)?;
        let from = &mut self.free[index];
        let allocated = Extent { len, ..*from };
        (from.first, from.len) = (from.first + len, from.len - len);
        if from.len == 0 {
            self.free.remove(index);
        }
        Some(allocated)
    }

    pub fn release(&mut self, extent: Extent) {
        let at = self.free.partition_point(|other| (other.slab, other.first) < (extent.slab, extent.first));
        self.free.insert(at, extent);
        for index in [at + 1, at] {
            if index == 0 || index >= self.free.len() {
                continue;
            }
            let (before, after) = (self.free[index - 1], self.free[index]);
            if before.slab == after.slab && before.first + before.len == after.first {
                self.free[index - 1].len += after.len;
                self.free.remove(index);
            }
        }
    }

    /// Words that are allocated.
    pub fn used_words(&self) -> usize {
        self.slabs * SLAB_WORDS - self.free.iter().map(|extent| extent.len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_extents_are_merged() {
        let mut arena = SlabArena::default();
        assert_eq!(arena.allocate(2), None);
        arena.add_slab();
        arena.add_slab();
        let extents: Vec<_> = (1..150).map(|len| arena.allocate(len * 7).unwrap()).collect();
        assert!(extents.iter().all(|extent| extent.first % 2 == 0));
        let used = extents.iter().map(|extent| extent.len).sum::<usize>();
        assert_eq!(arena.used_words(), used);
        // No two extents overlap.
        let mut sorted = extents.clone();
        sorted.sort_by_key(|extent| (extent.slab, extent.first));
        assert!(
            sorted
                .windows(2)
                .all(|two| two[0].slab < two[1].slab || two[0].first + two[0].len <= two[1].first)
        );
        // They are released in another order than they were allocated.
        let (odd, even): (Vec<_>, Vec<_>) = extents.into_iter().partition(|extent| extent.len % 4 == 0);
        for extent in odd.into_iter().rev().chain(even) {
            arena.release(extent);
        }
        assert_eq!(arena.free.len(), 2);
        assert_eq!(
            (arena.used_words(), arena.allocate(SLAB_WORDS).map(|extent| extent.len)),
            (0, Some(SLAB_WORDS))
        );
    }
}
