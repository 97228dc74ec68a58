//! The frames of addresses in files, kept from one profile to the next: a node does much the same each minute, and a name
//! costs the reading of a file's symbols.
//!
//! Must not know: files, ELF, processes. A file's number is never given to another file.

use std::collections::HashMap;
use std::mem::size_of;
use std::sync::Arc;

use super::files::FileId;
use podopsy_model::profile::Frame;

/// Rounds that an entry stays without being asked for.
const KEEP: u32 = 10;
/// An entry beside its frames: the map's own, and the allocator's.
const OVERHEAD: usize = 96;

#[derive(Debug)]
struct Entry {
    frames: Arc<[Frame]>,
    /// Why there is no name: a counter's.
    lacks: Option<&'static str>,
    round: u32,
}

/// Bounded by bytes.
#[derive(Debug)]
pub(super) struct Cache {
    entries: HashMap<(FileId, u64), Entry>,
    bytes: usize,
    max_bytes: usize,
    round: u32,
}

impl Cache {
    pub fn with_limit(max_bytes: usize) -> Self {
        Self { entries: HashMap::new(), bytes: 0, max_bytes, round: 0 }
    }

    /// The frames; and why they have no name, where this round has not been told yet.
    pub fn get(&mut self, file: FileId, offset: u64) -> Option<(Arc<[Frame]>, Option<&'static str>)> {
        let entry = self.entries.get_mut(&(file, offset))?;
        let lacks = entry.lacks.filter(|_| entry.round != self.round);
        entry.round = self.round;
        Some((Arc::clone(&entry.frames), lacks))
    }

    /// Whether [`Cache::get`] would find it.
    pub fn knows(&self, file: FileId, offset: u64) -> bool {
        self.entries.contains_key(&(file, offset))
    }

    pub fn put(&mut self, file: FileId, offset: u64, frames: Arc<[Frame]>, lacks: Option<&'static str>) {
        let new = bytes(&frames);
        if self.bytes + new > self.max_bytes {
            // What this round has not asked for goes first; then all.
            let round = self.round;
            self.retain(|entry| entry.round == round);
            if self.bytes + new > self.max_bytes / 2 {
                self.retain(|_| false);
            }
        }
        self.bytes += new;
        let entry = Entry { frames, lacks, round: self.round };
        if let Some(old) = self.entries.insert((file, offset), entry) {
            self.bytes -= bytes(&old.frames);
        }
    }

    /// A profile is done: what was not asked for in the last ones goes, and what could not be looked at is tried again.
    /// `lasting`: of a reason, whether it is the file's own.
    pub fn turn(&mut self, lasting: impl Fn(&str) -> bool) {
        let round = self.round;
        self.retain(|entry| round.wrapping_sub(entry.round) < KEEP && entry.lacks.is_none_or(&lasting));
        self.entries.shrink_to_fit();
        self.round = self.round.wrapping_add(1);
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        let left = &mut self.bytes;
        self.entries.retain(|_, entry| {
            let keep = keep(entry);
            *left -= if keep { 0 } else { bytes(&entry.frames) };
            keep
        });
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

/// Names of files are shared, and not counted.
fn bytes(frames: &[Frame]) -> usize {
    let of = |frame: &Frame| {
        let source = frame.source.as_ref().map_or(0, |(path, _)| path.len() + 16);
        size_of::<Frame>() + frame.function.as_ref().map_or(0, |name| name.len() + 16) + source
    };
    OVERHEAD + frames.iter().map(of).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(name: &str) -> Arc<[Frame]> {
        Arc::from([Frame { function: Some(name.into()), ..Frame::default() }])
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes_after_some_rounds() {
        let mut cache = Cache::with_limit(1 << 20);
        cache.put(1, 1, frames("often"), None);
        cache.put(1, 2, frames("once"), None);
        for _ in 0..=KEEP {
            assert!(cache.get(1, 1).is_some());
            cache.turn(|_| true);
        }
        assert!(cache.knows(1, 1) && !cache.knows(1, 2) && cache.len() == 1);
        assert_eq!(cache.bytes, bytes(&frames("often")));
    }

    #[test]
    fn a_missing_name_is_told_once_a_round_and_what_may_come_is_looked_for_again() {
        let mut cache = Cache::with_limit(1 << 20);
        cache.put(1, 1, frames(""), Some("symbol_not_found"));
        cache.put(1, 2, frames(""), Some("file_evicted"));
        // Whoever put it in has told it.
        assert_eq!(cache.get(1, 1).unwrap().1, None);
        cache.turn(|reason| reason == "symbol_not_found");
        assert!(!cache.knows(1, 2));
        assert_eq!(cache.get(1, 1).unwrap().1, Some("symbol_not_found"));
        assert_eq!(cache.get(1, 1).unwrap().1, None);
    }

    #[test]
    fn it_holds_no_more_than_its_bytes_and_the_older_go_first() {
        let one = bytes(&frames("0000"));
        let mut cache = Cache::with_limit(100 * one);
        (0..40).for_each(|offset| cache.put(1, offset, frames("0000"), None));
        cache.turn(|_| true);
        (0..1000).for_each(|offset| {
            cache.put(2, offset, frames("0000"), None);
            assert!(cache.bytes <= 100 * one && cache.bytes == cache.len() * one);
            assert!(offset < 60 || !cache.knows(1, 0));
        });
    }
}
