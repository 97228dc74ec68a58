//! Descriptors of files, one for all containers of an image.
//!
//! Must not know: processes, symbols, where a file is mapped.
//!
//! Each container has an overlay of its own, and so another device and inode for a file that is one file below all of them.
//! A descriptor for each would be some thousands on a full node, and would keep the overlays of the dead.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use super::elf::Layout;
use super::maps::Ground;

/// Names a descriptor for as long as it is open, and no other after it.
type Number = u64;

/// What overlays show of a file as the file system below has it. Nobody in a container chooses the time of a change
/// (ctime): the kernel sets it, whatever is done to content, size or time of modification. A file that a container has
/// written to is a copy with a ctime of its own, under the inode number that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Below {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Below {
    fn of(file: &File) -> io::Result<Below> {
        let meta = file.metadata()?;
        Ok(Below {
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

#[derive(Debug)]
struct Held {
    file: File,
    /// None: it is on no overlay, and nobody's twin.
    below: Option<Below>,
    layout: Layout,
    /// None: for good.
    used: Option<Instant>,
}

/// One who holds a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    number: Number,
    /// It is held by the very device and inode that it was asked for by: while it is, nothing else can have them.
    pub own: bool,
}

#[derive(Debug, Default)]
pub(super) struct Descriptors {
    open: HashMap<Number, Held>,
    by_below: HashMap<Below, Number>,
    next: Number,
}

impl Descriptors {
    /// Keeps `file`, or closes it and shares what is open: the same file below two overlays, not changed meanwhile.
    pub fn hold(&mut self, file: File, layout: &Layout, ground: Ground) -> Hold {
        let below = (ground == Ground::Overlay).then(|| Below::of(&file).ok()).flatten();
        if let Some(below) = below
            && let Some(&number) = self.by_below.get(&below)
            && let Some(held) = self.open.get_mut(&number)
            && held.layout == *layout
            && Below::of(&held.file).is_ok_and(|now| now == below)
        {
            held.used = Some(Instant::now());
            return Hold { number, own: false };
        }
        self.keep(Held { file, below, layout: layout.clone(), used: Some(Instant::now()) })
    }

    /// Keeps a file that is never let go of.
    pub fn pin(&mut self, file: File, layout: &Layout) -> Hold {
        self.keep(Held { file, below: None, layout: layout.clone(), used: None })
    }

    fn keep(&mut self, held: Held) -> Hold {
        let number = self.next;
        self.next += 1;
        if let Some(below) = held.below {
            self.by_below.insert(below, number);
        }
        self.open.insert(number, held);
        Hold { number, own: true }
    }

    /// The file, if it is still open.
    pub fn file(&self, hold: Hold) -> Option<&File> {
        self.open.get(&hold.number).map(|held| &held.file)
    }

    /// The same, where its content is asked for: of a file that is shared, as long as nobody has changed it.
    pub fn content(&self, hold: Hold) -> Result<&File, &'static str> {
        let held = self.open.get(&hold.number).ok_or("file_evicted")?;
        let same = hold.own || Below::of(&held.file).is_ok_and(|now| Some(now) == held.below);
        if same { Ok(&held.file) } else { Err("file_changed") }
    }

    /// It is wanted still; false: it is not open any more.
    pub fn touch(&mut self, hold: Hold) -> bool {
        let held = self.open.get_mut(&hold.number);
        held.map(|held| held.used = held.used.map(|_| Instant::now())).is_some()
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Closes the one that nobody has wanted for the longest, but not `newest`; false: there is none.
    pub fn evict(&mut self, newest: Option<Hold>) -> bool {
        let others = self.open.iter().filter(|(number, _)| newest.is_none_or(|hold| hold.number != **number));
        let used = others.filter_map(|(&number, held)| Some((held.used?, number)));
        let Some((_, number)) = used.min() else { return false };
        self.close(number);
        true
    }

    /// Closes what nobody has wanted since.
    pub fn let_go(&mut self, since: Instant) {
        let open = self.open.iter();
        let unused = open.filter(|(_, held)| held.used.is_some_and(|used| used < since));
        let unused: Vec<Number> = unused.map(|(&number, _)| number).collect();
        unused.into_iter().for_each(|number| self.close(number));
    }

    fn close(&mut self, number: Number) {
        if let Some(below) = self.open.remove(&number).and_then(|held| held.below)
            && self.by_below.get(&below) == Some(&number)
        {
            self.by_below.remove(&below);
        }
    }
}
