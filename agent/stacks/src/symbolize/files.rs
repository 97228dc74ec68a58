//! The executables that were seen, each held open from first sight, so that the dead can be symbolized.
//!
//! Must not know: processes beyond the mapping that a file was found by, kernel addresses, frames.
//!
//! Descriptors, copies and entries are each bounded, and the least recently used goes first; what nobody has wanted for long
//! goes before that, when whoever runs this says so.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::elf::{self, Layout};
use super::go::Go;
use super::held::{Descriptors, Hold};
use super::losses::Losses;
use super::maps::{Area, Ground};
use super::open;
use super::resolver::{Resolver, Symbol};
use super::separate;
use super::snapshot::{self, Author, Snapshot};
use podopsy_model::profile::Mapping;
use podopsy_model::text::escape_bytes;

/// Names a file for as long as it is known.
pub(super) type FileId = u32;

/// How much to hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Files remembered (name, build id, segments).
    pub known: usize,
    /// Descriptors.
    pub held: usize,
    /// Bytes of all copies together.
    pub copied: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // RLIMIT_NOFILE's usual soft limit is 1,024, and rings, sockets and the store need theirs.
        Self { known: 16_384, held: 512, copied: 256 << 20 }
    }
}

/// Where a file's symbols are.
#[derive(Debug)]
enum Symbols {
    NotLooked,
    /// It has none, or could not be read: the counter's name.
    None(&'static str),
    Here {
        copy: Option<Snapshot>,
        separate: Option<Snapshot>,
    },
}

#[derive(Debug)]
struct Known {
    name: Arc<str>,
    build_id: Option<Arc<str>>,
    layout: Layout,
    /// None: it was refused. What is held may have been closed since.
    held: Option<Hold>,
    symbols: Symbols,
    /// Go's own tables; none: not looked for.
    go: Option<Option<Go>>,
    mapping: (u64, u64, u64),
    used: u64,
    key: Key,
}

/// What the kernel shows of a mapping's file: device and inode. While we hold the file by them, nothing else can have them.
type Key = ((u32, u32), u64);

#[derive(Debug, Default)]
pub(super) struct Files {
    known: HashMap<FileId, Known>,
    by_key: HashMap<Key, FileId>,
    descriptors: Descriptors,
    next: FileId,
    clock: u64,
    limits: Limits,
}

impl Files {
    #[cfg(test)]
    pub fn with_limits(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Holds no more than so many descriptors, and bytes of copies.
    pub fn holding(held: usize, copied: u64) -> Self {
        Self { limits: Limits { held, copied, ..Limits::default() }, ..Self::default() }
    }

    /// The file behind a mapping; opens it at first sight, where that is wise.
    pub fn see(
        &mut self,
        pid: u32,
        area: &Area,
        ground: Ground,
        resolver: &mut Resolver,
        losses: &mut Losses,
    ) -> FileId {
        let key = (area.device, area.inode);
        self.clock += 1;
        // One that is shared says nothing of these numbers: they may be another file's by now.
        if let Some(&id) = self.by_key.get(&key)
            && let Some(known) = self.known.get_mut(&id)
            && let Some(hold) = known.held.filter(|hold| hold.own)
            && self.descriptors.touch(hold)
        {
            known.used = self.clock;
            return id;
        }
        let (held, layout, symbols) = match open::mapped_file(pid, area, ground) {
            Ok(file) => match elf::layout(&file) {
                Some(layout) => {
                    (Some(self.descriptors.hold(file, &layout, ground)), layout, Symbols::NotLooked)
                }
                None => (None, Layout::default(), Symbols::None("file_not_elf")),
            },
            Err(reason) => {
                losses.add(reason.as_str());
                (None, Layout::default(), Symbols::None(reason.as_str()))
            }
        };
        let name: Arc<str> = escape_bytes(area.file_path()).into();
        // Evicted, or refused before, and the same as far as can be seen: the same entry again.
        if let Some(&id) = self.by_key.get(&key)
            && let Some(known) = self.known.get_mut(&id)
            && known.name == name
            && known.layout == layout
        {
            known.used = self.clock;
            known.held = held;
            if matches!(known.symbols, Symbols::None(_)) {
                known.symbols = symbols;
            }
            self.keep_within_limits(id, resolver, losses);
            return id;
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let build_id = (!layout.build_id.is_empty()).then(|| Arc::from(hex(&layout.build_id)));
        let known = Known {
            name,
            build_id,
            layout,
            held,
            symbols,
            go: None,
            mapping: (area.start, area.end, area.offset),
            used: self.clock,
            key,
        };
        self.known.insert(id, known);
        self.by_key.insert(key, id);
        self.keep_within_limits(id, resolver, losses);
        id
    }

    /// Adds a file that is no mapping's: the vDSO's image.
    pub fn add(&mut self, name: &str, file: File, mapping: (u64, u64, u64)) -> FileId {
        let layout = elf::layout(&file).unwrap_or_default();
        let (id, build_id) =
            (self.next, (!layout.build_id.is_empty()).then(|| Arc::from(hex(&layout.build_id))));
        self.next = self.next.wrapping_add(1);
        // No device has this number, so that no mapping is taken for it; it is never evicted (used last, for ever).
        let key = ((u32::MAX, u32::MAX), u64::from(id));
        let (held, symbols) = (self.descriptors.pin(file, &layout), Symbols::NotLooked);
        let known = Known {
            name: name.into(),
            build_id,
            layout,
            held: Some(held),
            symbols,
            go: None,
            mapping,
            used: u64::MAX,
            key,
        };
        self.known.insert(id, known);
        id
    }

    #[cfg(test)]
    pub fn copies(&self) -> usize {
        self.known.values().filter(|known| copied(known) > 0).count()
    }

    pub fn name(&self, id: FileId) -> Option<(Arc<str>, Option<Arc<str>>)> {
        self.known.get(&id).map(|known| (Arc::clone(&known.name), known.build_id.clone()))
    }

    /// The file with this build id, held open if any of them is. `bpf_stack_build_id` has 20 bytes: shorter ids are
    /// padded with zeros.
    pub fn by_build_id(&self, build_id: &[u8; 20]) -> Option<FileId> {
        let same = |known: &Known| {
            let id = &known.layout.build_id;
            let len = id.len().min(20);
            len > 0 && id[..len] == build_id[..len] && build_id[len..].iter().all(|&b| b == 0)
        };
        let matching = self.known.iter().filter(|(_, known)| same(known));
        let rank = |known: &Known| (copied(known) > 0, self.is_open(known), known.used);
        matching.max_by_key(|(_, known)| rank(known)).map(|(&id, _)| id)
    }

    /// Names can be had from it: its symbols are here, or the file is.
    pub fn is_held(&self, id: FileId) -> bool {
        self.known.get(&id).is_some_and(|known| copied(known) > 0 || self.is_open(known))
    }

    fn is_open(&self, known: &Known) -> bool {
        known.held.is_some_and(|hold| self.descriptors.file(hold).is_some())
    }

    /// Somebody still has this mapped; false: it is not held, and could be.
    pub fn touch(&mut self, area: &Area) -> bool {
        let id = self.by_key.get(&(area.device, area.inode));
        let Some(known) = id.and_then(|id| self.known.get(id)) else { return false };
        known.held.is_none_or(|hold| self.descriptors.touch(hold))
    }

    pub fn has_room(&self) -> bool {
        self.descriptors.len() < self.limits.held
    }

    /// Closes what nobody has asked for or been seen to map since. What it is called stays known.
    pub fn let_go(&mut self, since: Instant) {
        self.descriptors.let_go(since);
    }

    #[cfg(test)]
    pub fn open(&self) -> usize {
        self.descriptors.len()
    }

    /// The same file under another name, if its symbols are there already: every container has its own device and inode
    /// for one file of one image.
    fn twin(&self, id: FileId) -> Option<FileId> {
        let own = self.known.get(&id)?;
        if !matches!(own.symbols, Symbols::NotLooked) || own.layout.build_id.is_empty() {
            return None;
        }
        let is_twin = |known: &Known| copied(known) > 0 && known.layout == own.layout;
        self.known.iter().find(|(_, known)| is_twin(known)).map(|(&id, _)| id)
    }

    pub fn mappings(&self) -> Vec<Mapping> {
        let mut ids: Vec<_> = self.known.keys().copied().collect();
        ids.sort_unstable();
        ids.iter()
            .map(|id| {
                let Known { name, build_id, mapping: (start, end, file_offset), .. } = &self.known[id];
                let (start, end, file_offset) = (*start, *end, *file_offset);
                Mapping { name: Arc::clone(name), build_id: build_id.clone(), start, end, file_offset }
            })
            .collect()
    }

    /// The symbol at a file offset, or the counter's name for why there is none.
    pub fn symbol(
        &mut self,
        id: FileId,
        offset: u64,
        resolver: &mut Resolver,
        losses: &mut Losses,
    ) -> Result<Symbol, &'static str> {
        self.clock += 1;
        let clock = self.clock;
        let known = self.known.get_mut(&id).ok_or("file_forgotten")?;
        known.used = known.used.max(clock);
        let id = self.twin(id).unwrap_or(id);
        let known = self.known.get_mut(&id).ok_or("file_forgotten")?;
        known.used = known.used.max(clock);
        if matches!(known.symbols, Symbols::NotLooked) {
            let held = known.held.ok_or("file_evicted").and_then(|hold| {
                self.descriptors.touch(hold);
                self.descriptors.content(hold)
            });
            known.symbols = match held {
                Ok(file) => look(file, &known.layout, &known.name, losses),
                Err(reason) => Symbols::None(reason),
            };
            self.keep_within_limits(id, resolver, losses);
        }
        let known = self.known.get_mut(&id).ok_or("file_forgotten")?;
        let file = known.held.and_then(|hold| self.descriptors.content(hold).ok());
        let address = known.layout.address_of(offset).ok_or("offset_outside_segments")?;
        let (copy, separate) = match &known.symbols {
            Symbols::NotLooked => return Err("file_evicted"),
            Symbols::None(reason) => {
                let reason = *reason;
                return known.go_symbol(file, address).ok_or(reason);
            }
            Symbols::Here { copy, separate } => (copy, separate),
        };
        // Lines first, wherever they are; then Go's own tables, which have lines too; then any symbol.
        let sources = || separate.iter().chain(copy);
        let paths = |debug| {
            let of_kind = sources().filter(move |source| source.has_debug_info == debug);
            of_kind.map(|source| path_of(&source.memory)).collect::<Vec<_>>()
        };
        for (debug, paths) in [(true, paths(true)), (false, paths(false))] {
            if !debug && let Some(symbol) = known.go_symbol(file, address) {
                return Ok(symbol);
            }
            for path in paths {
                match resolver.elf(&path, debug, address) {
                    Ok(Some(symbol)) => return Ok(symbol),
                    Ok(None) => {}
                    Err(reason) => {
                        known.symbols = Symbols::None(reason);
                        return Err(reason);
                    }
                }
            }
        }
        Err("symbol_not_found")
    }

    /// Drops the copies, and what the resolver made of them; the descriptors stay.
    pub fn forget_copies(&mut self, resolver: &mut Resolver) {
        self.known.values_mut().for_each(|known| drop_copy(Some(known), resolver));
    }

    fn keep_within_limits(&mut self, newest: FileId, resolver: &mut Resolver, losses: &mut Losses) {
        while self.known.values().map(copied).sum::<u64>() > self.limits.copied {
            let Some(id) = self.oldest(|known| copied(known) > 0, newest) else { break };
            let known = self.known.get_mut(&id);
            drop_copy(known, resolver);
            losses.add("symbols_evicted");
        }
        let newest_held = self.known.get(&newest).and_then(|known| known.held);
        while self.descriptors.len() > self.limits.held && self.descriptors.evict(newest_held) {
            losses.add("files_evicted");
        }
        while self.known.len() > self.limits.known {
            let Some(id) = self.oldest(|_| true, newest) else { break };
            drop_copy(self.known.get_mut(&id), resolver);
            if let Some(known) = self.known.remove(&id)
                && self.by_key.get(&known.key) == Some(&id)
            {
                self.by_key.remove(&known.key);
            }
            losses.add("files_forgotten");
        }
    }

    fn oldest(&self, which: impl Fn(&Known) -> bool, but: FileId) -> Option<FileId> {
        let candidates =
            self.known.iter().filter(|(id, known)| **id != but && known.used != u64::MAX && which(known));
        candidates.min_by_key(|(_, known)| known.used).map(|(&id, _)| id)
    }
}

impl Known {
    /// By Go's own tables, while the file is held open.
    fn go_symbol(&mut self, file: Option<&File>, address: u64) -> Option<Symbol> {
        let (file, layout) = (file?, &self.layout);
        let go = self.go.get_or_insert_with(|| Go::find(file, layout)).as_ref()?;
        go.symbol(file, layout, address)
    }
}

fn copied(known: &Known) -> u64 {
    match &known.symbols {
        Symbols::Here { copy, separate } => copy.iter().chain(separate).map(|snapshot| snapshot.bytes).sum(),
        _ => 0,
    }
}

fn drop_copy(known: Option<&mut Known>, resolver: &mut Resolver) {
    let Some(known) = known else { return };
    if let Symbols::Here { copy, separate } = &known.symbols {
        for snapshot in copy.iter().chain(separate) {
            resolver.forget(&path_of(&snapshot.memory));
        }
        known.symbols = Symbols::NotLooked;
    }
}

fn look(file: &File, layout: &Layout, name: &str, losses: &mut Losses) -> Symbols {
    // The file is the container's: it may have been written over since we read its segments.
    if elf::layout(file).as_ref() != Some(layout) {
        return Symbols::None("file_changed");
    }
    let Ok(copy) = snapshot::take(file, Author::Container) else { return Symbols::None("file_changed") };
    let separate = match &copy {
        Some(copy) if copy.has_debug_info => None,
        _ => separate::find(file, layout, name).and_then(|file| snapshot::take(&file, Author::Host).ok()?),
    };
    for lost in [&copy, &separate].into_iter().flatten().filter_map(|snapshot| snapshot.lost) {
        losses.add(lost);
    }
    match (copy, separate) {
        (None, None) => Symbols::None("file_without_symbols"),
        (copy, separate) => Symbols::Here { copy, separate },
    }
}

fn path_of(file: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
