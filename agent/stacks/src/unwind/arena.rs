//! Room in slabs: extents of words, first fit, given back in pieces and merged again.
//!
//! Must not know: what is in them.

use podopsy_wire::SLAB_WORDS;

/// A run of words in one slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub slab: usize,
    pub first: usize,
    pub len: usize,
}

/// What is free, ascending by slab and place.
#[derive(Debug, Default)]
pub(super) struct Arena {
    free: Vec<Extent>,
    slabs: usize,
}

impl Arena {
    pub fn slabs(&self) -> usize {
        self.slabs
    }

    /// One more slab is there.
    pub fn grow(&mut self) {
        self.free.push(Extent { slab: self.slabs, first: 0, len: SLAB_WORDS });
        self.slabs += 1;
    }

    /// `len` words, at an even place: directories are of u64.
    pub fn take(&mut self, len: usize) -> Option<Extent> {
        let len = len.next_multiple_of(2);
        let index = self.free.iter().position(|extent| extent.len >= len)?;
        let from = &mut self.free[index];
        let taken = Extent { len, ..*from };
        (from.first, from.len) = (from.first + len, from.len - len);
        if from.len == 0 {
            self.free.remove(index);
        }
        Some(taken)
    }

    pub fn give_back(&mut self, extent: Extent) {
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

    /// Words in use.
    pub fn used(&self) -> usize {
        self.slabs * SLAB_WORDS - self.free.iter().map(|extent| extent.len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_one_piece_again() {
        let mut arena = Arena::default();
        assert_eq!(arena.take(2), None);
        arena.grow();
        arena.grow();
        let taken: Vec<_> = (1..150).map(|len| arena.take(len * 7).unwrap()).collect();
        assert!(taken.iter().all(|extent| extent.first % 2 == 0));
        let used = taken.iter().map(|extent| extent.len).sum::<usize>();
        assert_eq!(arena.used(), used);
        // No two overlap.
        let mut sorted = taken.clone();
        sorted.sort_by_key(|extent| (extent.slab, extent.first));
        assert!(
            sorted
                .windows(2)
                .all(|two| two[0].slab < two[1].slab || two[0].first + two[0].len <= two[1].first)
        );
        // Back in an order of its own.
        let (odd, even): (Vec<_>, Vec<_>) = taken.into_iter().partition(|extent| extent.len % 4 == 0);
        odd.into_iter().rev().chain(even).for_each(|extent| arena.give_back(extent));
        assert_eq!(arena.free.len(), 2);
        assert_eq!((arena.used(), arena.take(SLAB_WORDS).map(|extent| extent.len)), (0, Some(SLAB_WORDS)));
    }
}
