//! Caches the frames of addresses in files from one profile to the next. A node runs much the same code each minute,
//! and a name costs the reading of a file's symbols.
//!
//! Must not depend on: files, ELF, processes. The id of a file is never given to another file.

use std::collections::HashMap;
use std::mem::size_of;
use std::sync::Arc;

use super::files::FileId;
use crate::StackLossReason;
use podopsy_model::profile::Frame;

/// Rounds (profiles) after which an unused entry is removed.
const MAX_IDLE_ROUNDS: u32 = 10;
/// Bytes of an entry besides its frames: for the map and the allocator.
const OVERHEAD: usize = 96;

#[derive(Debug)]
struct CachedFrames {
    frames: Arc<[Frame]>,
    /// Why there is no name.
    missing: Option<StackLossReason>,
    /// The round of the last use.
    round: u32,
}

/// Frames by file and offset, bounded by bytes.
#[derive(Debug)]
pub(super) struct FrameCache {
    entries: HashMap<(FileId, u64), CachedFrames>,
    bytes: usize,
    max_bytes: usize,
    round: u32,
}

impl FrameCache {
    pub fn with_limit(max_bytes: usize) -> Self {
        Self { entries: HashMap::new(), bytes: 0, max_bytes, round: 0 }
    }

    /// The frames at an offset. The reason for a missing name comes with the first use in a round, so that it is
    /// counted once per round.
    pub fn get(&mut self, file: FileId, offset: u64) -> Option<(Arc<[Frame]>, Option<StackLossReason>)> {
        let entry = self.entries.get_mut(&(file, offset))?;
        let missing = entry.missing.filter(|_| entry.round != self.round);
        entry.round = self.round;
        Some((Arc::clone(&entry.frames), missing))
    }

    /// True if [`FrameCache::get`] would find the offset.
    pub fn contains(&self, file: FileId, offset: u64) -> bool {
        self.entries.contains_key(&(file, offset))
    }

    pub fn insert(
        &mut self,
        file: FileId,
        offset: u64,
        frames: Arc<[Frame]>,
        missing: Option<StackLossReason>,
    ) {
        let new_bytes = bytes(&frames);
        if self.bytes + new_bytes > self.max_bytes {
            // Entries that were not used in this round are removed first, and then all.
            let round = self.round;
            self.retain(|entry| entry.round == round);
            if self.bytes + new_bytes > self.max_bytes / 2 {
                self.retain(|_| false);
            }
        }
        self.bytes += new_bytes;
        let entry = CachedFrames { frames, missing, round: self.round };
        if let Some(old) = self.entries.insert((file, offset), entry) {
            self.bytes -= bytes(&old.frames);
        }
    }

    /// Ends a round, after a profile. Removes entries that were not used in the last rounds, and those without a name
    /// whose reason is not `permanent`, so that they are looked up again.
    pub fn end_round(&mut self, is_permanent: impl Fn(StackLossReason) -> bool) {
        let round = self.round;
        self.retain(|entry| {
            round.wrapping_sub(entry.round) < MAX_IDLE_ROUNDS && entry.missing.is_none_or(&is_permanent)
        });
        self.entries.shrink_to_fit();
        self.round = self.round.wrapping_add(1);
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        self.entries = HashMap::new();
        self.bytes = 0;
    }

    fn retain(&mut self, keep: impl Fn(&CachedFrames) -> bool) {
        let left = &mut self.bytes;
        self.entries.retain(|_, entry| {
            let is_kept = keep(entry);
            if !is_kept {
                *left -= bytes(&entry.frames);
            }
            is_kept
        });
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

/// The bytes of an entry. Names of files are shared, and not counted.
fn bytes(frames: &[Frame]) -> usize {
    let frame_bytes = |frame: &Frame| {
        let source = frame.source.as_ref().map_or(0, |(path, _)| path.len() + 16);
        size_of::<Frame>() + frame.function.as_ref().map_or(0, |name| name.len() + 16) + source
    };
    OVERHEAD + frames.iter().map(frame_bytes).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(name: &str) -> Arc<[Frame]> {
        Arc::from([Frame { function: Some(name.into()), ..Frame::default() }])
    }

    #[test]
    fn used_entries_stay_and_unused_ones_are_removed_after_some_rounds() {
        let mut cache = FrameCache::with_limit(1 << 20);
        cache.insert(1, 1, frames("often"), None);
        cache.insert(1, 2, frames("once"), None);
        for _ in 0..=MAX_IDLE_ROUNDS {
            assert!(cache.get(1, 1).is_some());
            cache.end_round(|_| true);
        }
        assert!(cache.contains(1, 1) && !cache.contains(1, 2) && cache.len() == 1);
        assert_eq!(cache.bytes, bytes(&frames("often")));
    }

    #[test]
    fn a_missing_name_is_reported_once_a_round_and_looked_up_again_if_it_may_come() {
        let mut cache = FrameCache::with_limit(1 << 20);
        cache.insert(1, 1, frames(""), Some(StackLossReason::SymbolNotFound));
        cache.insert(1, 2, frames(""), Some(StackLossReason::FileEvicted));
        // The caller of `insert` has counted it.
        assert_eq!(cache.get(1, 1).unwrap().1, None);
        cache.end_round(|reason| reason == StackLossReason::SymbolNotFound);
        assert!(!cache.contains(1, 2));
        assert_eq!(cache.get(1, 1).unwrap().1, Some(StackLossReason::SymbolNotFound));
        assert_eq!(cache.get(1, 1).unwrap().1, None);
    }

    #[test]
    fn the_cache_stays_within_its_bytes_and_older_entries_go_first() {
        let one = bytes(&frames("0000"));
        let mut cache = FrameCache::with_limit(100 * one);
        for offset in 0..40 {
            cache.insert(1, offset, frames("0000"), None);
        }
        cache.end_round(|_| true);
        for offset in 0..1000 {
            cache.insert(2, offset, frames("0000"), None);
            assert!(cache.bytes <= 100 * one && cache.bytes == cache.len() * one);
            assert!(offset < 60 || !cache.contains(1, 0));
        }
    }
}
