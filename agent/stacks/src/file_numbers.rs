//! The numbers of files in the frames of samples ([`podopsy_wire::FrameWord`]), and the files behind them.
//!
//! ```text
//! table builder ─ opens the file, gives its number to the kernel side ─→ FileNumbers ─ number, open file ─→ symbolizer
//! kernel side ─ frames with the number ─→ samples ─→ symbolizer
//! ```
//!
//! A file that a sample met before its table was requested has its number from the sample. So the file of a frame is
//! known whatever its process has mapped since, and after the process has ended.
//!
//! Must not depend on: processes, tables, names.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use podopsy_system::sync::lock;
use podopsy_wire::{FileKey, FrameWord, VDSO_NUMBER};
use podopsy_worker::{FileHandle, Tenant};

use crate::StackLossReason;
use crate::symbolize::maps::{Area, FilesystemKind};

/// Files whose number is known by their key. The kernel side knows 4,096 at a time.
const MAX_KEYS: usize = 32 << 10;
/// Opened files that wait for a sample to meet them. Of more, the oldest are left out: most are of processes that still run,
/// whose files the symbolizer opens itself.
const MAX_WAITING: usize = 128;

/// A file that has a number, as it was opened for its table, or why it could not be.
#[derive(Clone, Debug)]
pub(crate) struct NumberedFile {
    pub number: u32,
    pub file: Result<Arc<FileHandle>, StackLossReason>,
    pub pid: u32,
    pub tenant: Tenant,
    pub area: Area,
    pub filesystem: FilesystemKind,
}

/// The numbers of one kernel side. A clone is the same ones.
#[derive(Clone, Debug, Default)]
pub struct FileNumbers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    by_key: HashMap<FileKey, u32>,
    by_number: HashMap<u32, FileKey>,
    /// The keys in the order in which they were added.
    keys: VecDeque<FileKey>,
    last: u32,
    opened: VecDeque<NumberedFile>,
}

impl FileNumbers {
    /// The file's number; a new one at first sight.
    pub(crate) fn number(&self, key: &FileKey) -> u32 {
        if *key == FileKey::VDSO {
            return VDSO_NUMBER;
        }
        lock(&self.0).number(key)
    }

    /// The file with a number; none if the number is of long ago.
    pub(crate) fn key(&self, number: u32) -> Option<FileKey> {
        lock(&self.0).by_number.get(&number).copied()
    }

    /// The same frame, with the number of `file` if it has none.
    pub(crate) fn with_number(&self, word: u64, file: &FileKey) -> u64 {
        match FrameWord::from_word(word) {
            FrameWord::File { number: 0, offset } => FrameWord::file(self.number(file), offset),
            _ => word,
        }
    }

    /// Passes a file to the symbolizer that was opened, or could not be.
    pub(crate) fn add_opened(&self, file: NumberedFile) {
        let mut state = lock(&self.0);
        if state.opened.len() >= MAX_WAITING {
            state.opened.pop_front();
        }
        state.opened.push_back(file);
    }

    /// The file with a number, if it was opened for its table and waits.
    pub(crate) fn take_opened(&self, number: u32) -> Option<NumberedFile> {
        let mut state = lock(&self.0);
        let newest = state.opened.iter().rposition(|opened| opened.number == number)?;
        let opened = state.opened.remove(newest);
        state.opened.retain(|opened| opened.number != number);
        opened
    }
}

impl State {
    fn number(&mut self, key: &FileKey) -> u32 {
        if let Some(&number) = self.by_key.get(key) {
            return number;
        }
        // After eight million files numbers come again; the samples that they were in have been named long since.
        self.last =
            if self.last >= FrameWord::NUMBER_MAX { VDSO_NUMBER + 1 } else { self.last.max(VDSO_NUMBER) + 1 };
        if self.keys.len() >= MAX_KEYS
            && let Some(oldest) = self.keys.pop_front()
        {
            let number = self.by_key.remove(&oldest);
            number.map(|number| self.by_number.remove(&number));
        }
        self.keys.push_back(*key);
        self.by_number.insert(self.last, *key);
        self.by_key.insert(*key, self.last);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inode: u64) -> FileKey {
        FileKey { inode, size: 1, device: 1, changed: 1 }
    }

    #[test]
    fn a_file_has_one_number_and_no_other_file_has_it() {
        let numbers = FileNumbers::default();
        let first = numbers.number(&key(1));
        assert_ne!(first, numbers.number(&key(2)));
        assert_ne!(first, numbers.number(&FileKey { changed: 2, ..key(1) }));
        assert_eq!((first, numbers.number(&FileKey::VDSO)), (numbers.number(&key(1)), VDSO_NUMBER));
        let word = numbers.with_number(FrameWord::file(0, 0x1234), &key(1));
        assert_eq!(FrameWord::from_word(word), FrameWord::File { number: first, offset: 0x1234 });
        let known = FrameWord::file(77, 5);
        assert_eq!((numbers.with_number(known, &key(1)), numbers.with_number(9, &key(1))), (known, 9));
    }

    #[test]
    fn the_number_of_known_files_is_bounded() {
        let numbers = FileNumbers::default();
        let first = numbers.number(&key(0));
        (1..=MAX_KEYS as u64).for_each(|inode| _ = numbers.number(&key(inode)));
        let state = lock(&numbers.0);
        assert_eq!((state.by_key.len(), state.by_number.len()), (MAX_KEYS, MAX_KEYS));
        drop(state);
        assert_eq!((numbers.key(first), numbers.key(first + 1)), (None, Some(key(1))));
        assert_ne!(numbers.number(&key(0)), first, "a number is not used twice");
    }
}
