//! The executables that were seen. Each is held open from first sight, so that it can be read after its process has
//! ended.
//!
//! Descriptors, copies of symbols and entries are each bounded, and the least recently used goes first. The caller can
//! also close the files that have not been used for a while.
//!
//! Must not depend on: processes (beyond the mapping that a file was found by), kernel addresses, frames.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::debug_file;
use super::descriptors::{Descriptor, Descriptors};
use super::elf::{self, Layout};
use super::go::GoSymbols;
use super::maps::{Area, FilesystemKind};
use super::open;
use super::resolver::{Resolver, Symbol};
use super::symbol_copy::{self, FileAuthor, SymbolCopy};
use crate::{StackLossReason, StackLosses};
use podopsy_model::profile::Mapping;
use podopsy_model::text::escape_bytes;

/// Identifies a file while its entry is known. Ids are not used twice.
pub(super) type FileId = u32;

/// The `last_used` of a file that is never evicted.
const PINNED: u64 = u64::MAX;

/// Bounds of a [`FileTable`].
#[derive(Clone, Copy, Debug)]
pub(super) struct FileLimits {
    /// Entries (name, build id, segments).
    pub known: usize,
    /// Open descriptors.
    pub open: usize,
    /// Bytes of all copies together.
    pub copied_bytes: u64,
}

impl Default for FileLimits {
    fn default() -> Self {
        // The usual soft limit of RLIMIT_NOFILE is 1,024, and rings, sockets and the store need descriptors too.
        Self { known: 16_384, open: 512, copied_bytes: 256 << 20 }
    }
}

/// The state of a file's symbols.
#[derive(Debug)]
enum FileSymbols {
    NotRead,
    /// The file has none, or could not be read.
    Unavailable(StackLossReason),
    Copied {
        own: Option<SymbolCopy>,
        /// From the host's separate debug file.
        debug_file: Option<SymbolCopy>,
    },
}

#[derive(Debug)]
struct KnownFile {
    name: Arc<str>,
    build_id: Option<Arc<str>>,
    layout: Layout,
    /// None if the file was refused. The descriptor may have been closed since.
    descriptor: Option<Descriptor>,
    symbols: FileSymbols,
    /// Go's own tables; none until they are looked for.
    go: Option<Option<GoSymbols>>,
    /// Start, end and file offset of the first mapping.
    mapping: (u64, u64, u64),
    last_used: u64,
    key: FileKey,
}

/// Device and inode, as the kernel shows them for a mapping. While podopsy holds the file open by them, no other file
/// can get the same.
type FileKey = ((u32, u32), u64);

#[derive(Debug, Default)]
pub(super) struct FileTable {
    known: HashMap<FileId, KnownFile>,
    by_key: HashMap<FileKey, FileId>,
    descriptors: Descriptors,
    next: FileId,
    /// Counts uses, to find the least recently used file.
    clock: u64,
    limits: FileLimits,
}

/// A mapped file of a live process.
#[derive(Debug)]
pub(super) struct MappedFile<'a> {
    pub pid: u32,
    pub area: &'a Area,
    pub filesystem: FilesystemKind,
}

/// A file that was opened, or the reason why it was refused.
struct OpenedFile {
    descriptor: Option<Descriptor>,
    layout: Layout,
    symbols: FileSymbols,
}

impl OpenedFile {
    fn refused(reason: StackLossReason) -> Self {
        Self { descriptor: None, layout: Layout::default(), symbols: FileSymbols::Unavailable(reason) }
    }
}

impl FileTable {
    /// Holds at most `open` descriptors, and `copied_bytes` bytes of copies.
    pub fn with_limits(open: usize, copied_bytes: u64) -> Self {
        Self { limits: FileLimits { open, copied_bytes, ..FileLimits::default() }, ..Self::default() }
    }

    /// The entry of the file behind a mapping. Opens the file at first sight, if that is safe.
    pub fn add_mapped(
        &mut self,
        mapped: &MappedFile<'_>,
        resolver: &mut Resolver,
        losses: &mut StackLosses,
    ) -> FileId {
        let area = mapped.area;
        let key = (area.device, area.inode);
        self.clock += 1;
        // A shared descriptor does not keep this device and inode: they may belong to another file by now.
        if let Some(&id) = self.by_key.get(&key)
            && let Some(known) = self.known.get_mut(&id)
            && let Some(descriptor) = known.descriptor.filter(|descriptor| descriptor.is_exact)
            && self.descriptors.touch(descriptor)
        {
            known.last_used = self.clock;
            return id;
        }
        let opened = self.open_mapped(mapped, losses);
        let name: Arc<str> = escape_bytes(area.file_path()).into();
        // The file was evicted or refused before. If name and layout are the same, the entry is used again.
        if let Some(&id) = self.by_key.get(&key)
            && let Some(known) = self.known.get_mut(&id)
            && known.name == name
            && known.layout == opened.layout
        {
            known.last_used = self.clock;
            known.descriptor = opened.descriptor;
            if matches!(known.symbols, FileSymbols::Unavailable(_)) {
                known.symbols = opened.symbols;
            }
            self.keep_within_limits(id, resolver, losses);
            return id;
        }
        let OpenedFile { descriptor, layout, symbols } = opened;
        let id = self.next_id();
        let known = KnownFile {
            name,
            build_id: build_id_text(&layout),
            layout,
            descriptor,
            symbols,
            go: None,
            mapping: (area.start, area.end, area.offset),
            last_used: self.clock,
            key,
        };
        self.known.insert(id, known);
        self.by_key.insert(key, id);
        self.keep_within_limits(id, resolver, losses);
        id
    }

    fn open_mapped(&mut self, mapped: &MappedFile<'_>, losses: &mut StackLosses) -> OpenedFile {
        match open::mapped_file(mapped.pid, mapped.area, mapped.filesystem) {
            Ok(file) => match elf::layout(&file) {
                Some(layout) => OpenedFile {
                    descriptor: Some(self.descriptors.hold(file, &layout, mapped.filesystem)),
                    layout,
                    symbols: FileSymbols::NotRead,
                },
                None => OpenedFile::refused(StackLossReason::FileNotElf),
            },
            Err(reason) => {
                losses.add(reason, 1);
                OpenedFile::refused(reason)
            }
        }
    }

    /// Adds a file without a mapping of its own: the image of the vDSO. It is never evicted.
    pub fn add_image(&mut self, name: &str, file: File, mapping: (u64, u64, u64)) -> FileId {
        let layout = elf::layout(&file).unwrap_or_default();
        let id = self.next_id();
        let known = KnownFile {
            name: name.into(),
            build_id: build_id_text(&layout),
            descriptor: Some(self.descriptors.pin(file, &layout)),
            layout,
            symbols: FileSymbols::NotRead,
            go: None,
            mapping,
            last_used: PINNED,
            // No device has this number, so that no mapping is taken for the image.
            key: ((u32::MAX, u32::MAX), u64::from(id)),
        };
        self.known.insert(id, known);
        id
    }

    fn next_id(&mut self) -> FileId {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        id
    }

    /// Name and build id (hex) of a file.
    pub fn name(&self, id: FileId) -> Option<(Arc<str>, Option<Arc<str>>)> {
        self.known.get(&id).map(|known| (Arc::clone(&known.name), known.build_id.clone()))
    }

    /// The file with this build id; of several, one whose symbols are copied or that is open. `bpf_stack_build_id` has
    /// 20 bytes: shorter ids are padded with zeros.
    pub fn by_build_id(&self, build_id: &[u8; 20]) -> Option<FileId> {
        let is_same = |known: &KnownFile| {
            let id = &known.layout.build_id;
            let len = id.len().min(20);
            len > 0 && id[..len] == build_id[..len] && build_id[len..].iter().all(|&b| b == 0)
        };
        let matching = self.known.iter().filter(|(_, known)| is_same(known));
        let rank = |known: &KnownFile| (known.copied_bytes() > 0, self.is_open(known), known.last_used);
        matching.max_by_key(|(_, known)| rank(known)).map(|(&id, _)| id)
    }

    /// True if names can be had from the file: its symbols are copied, or it is open.
    pub fn is_held(&self, id: FileId) -> bool {
        self.known.get(&id).is_some_and(|known| known.copied_bytes() > 0 || self.is_open(known))
    }

    fn is_open(&self, known: &KnownFile) -> bool {
        known.descriptor.is_some_and(|descriptor| self.descriptors.file(descriptor).is_some())
    }

    /// Marks the file behind a mapping as used. Returns false if it is not open but could be opened.
    pub fn touch(&mut self, area: &Area) -> bool {
        let id = self.by_key.get(&(area.device, area.inode));
        let Some(known) = id.and_then(|id| self.known.get(id)) else { return false };
        known.descriptor.is_none_or(|descriptor| self.descriptors.touch(descriptor))
    }

    /// True if one more descriptor can be held without evicting another.
    pub fn has_capacity(&self) -> bool {
        self.descriptors.len() < self.limits.open
    }

    /// Closes the files that were last used before `since`. Their names stay known.
    pub fn close_unused_since(&mut self, since: Instant) {
        self.descriptors.close_unused_since(since);
    }

    /// Another entry for the same file whose symbols are copied already. Every container has its own device and inode
    /// for the same file of an image.
    fn twin(&self, id: FileId) -> Option<FileId> {
        let own = self.known.get(&id)?;
        if !matches!(own.symbols, FileSymbols::NotRead) || own.layout.build_id.is_empty() {
            return None;
        }
        let is_twin = |known: &KnownFile| known.copied_bytes() > 0 && known.layout == own.layout;
        self.known.iter().find(|(_, known)| is_twin(known)).map(|(&id, _)| id)
    }

    /// The mapping that each file was first seen by.
    pub fn mappings(&self) -> Vec<Mapping> {
        let mut files: Vec<(&FileId, &KnownFile)> = self.known.iter().collect();
        files.sort_unstable_by_key(|(id, _)| **id);
        let mapping = |(_, known): (&FileId, &KnownFile)| {
            let (start, end, file_offset) = known.mapping;
            let (name, build_id) = (Arc::clone(&known.name), known.build_id.clone());
            Mapping { name, build_id, start, end, file_offset }
        };
        files.into_iter().map(mapping).collect()
    }

    /// The symbol at a file offset, or the reason why there is none. Copies the file's symbols on first use.
    pub fn symbol(
        &mut self,
        id: FileId,
        offset: u64,
        resolver: &mut Resolver,
        losses: &mut StackLosses,
    ) -> Result<Symbol, StackLossReason> {
        self.mark_used(id)?;
        let id = self.twin(id).unwrap_or(id);
        self.mark_used(id)?;
        self.copy_symbols(id, resolver, losses)?;
        let known = self.known.get_mut(&id).ok_or(StackLossReason::FileForgotten)?;
        let file = known.descriptor.and_then(|descriptor| self.descriptors.content(descriptor).ok());
        known.symbol(file, offset, resolver)
    }

    fn mark_used(&mut self, id: FileId) -> Result<(), StackLossReason> {
        self.clock += 1;
        let known = self.known.get_mut(&id).ok_or(StackLossReason::FileForgotten)?;
        known.last_used = known.last_used.max(self.clock);
        Ok(())
    }

    /// Copies a file's symbols, unless that was done or tried before.
    fn copy_symbols(
        &mut self,
        id: FileId,
        resolver: &mut Resolver,
        losses: &mut StackLosses,
    ) -> Result<(), StackLossReason> {
        let known = self.known.get_mut(&id).ok_or(StackLossReason::FileForgotten)?;
        if !matches!(known.symbols, FileSymbols::NotRead) {
            return Ok(());
        }
        let content = known.descriptor.ok_or(StackLossReason::FileEvicted).and_then(|descriptor| {
            self.descriptors.touch(descriptor);
            self.descriptors.content(descriptor)
        });
        known.symbols = match content {
            Ok(file) => read_symbols(file, &known.layout, &known.name, losses),
            Err(reason) => FileSymbols::Unavailable(reason),
        };
        self.keep_within_limits(id, resolver, losses);
        Ok(())
    }

    /// Drops all copies, and the resolver's caches of them; the descriptors stay open.
    pub fn drop_copies(&mut self, resolver: &mut Resolver) {
        for known in self.known.values_mut() {
            known.drop_copy(resolver);
        }
    }

    fn keep_within_limits(&mut self, newest: FileId, resolver: &mut Resolver, losses: &mut StackLosses) {
        while self.known.values().map(KnownFile::copied_bytes).sum::<u64>() > self.limits.copied_bytes {
            let Some(id) = self.oldest(|known| known.copied_bytes() > 0, newest) else { break };
            if let Some(known) = self.known.get_mut(&id) {
                known.drop_copy(resolver);
            }
            losses.add(StackLossReason::SymbolsEvicted, 1);
        }
        let newest_descriptor = self.known.get(&newest).and_then(|known| known.descriptor);
        while self.descriptors.len() > self.limits.open && self.descriptors.evict(newest_descriptor) {
            losses.add(StackLossReason::FilesEvicted, 1);
        }
        while self.known.len() > self.limits.known {
            let Some(id) = self.oldest(|_| true, newest) else { break };
            if let Some(mut known) = self.known.remove(&id) {
                known.drop_copy(resolver);
                if self.by_key.get(&known.key) == Some(&id) {
                    self.by_key.remove(&known.key);
                }
            }
            losses.add(StackLossReason::FileEntriesForgotten, 1);
        }
    }

    /// The least recently used file that `is_candidate` accepts, but not `except` and not a pinned file.
    fn oldest(&self, is_candidate: impl Fn(&KnownFile) -> bool, except: FileId) -> Option<FileId> {
        let candidates = self
            .known
            .iter()
            .filter(|(id, known)| **id != except && known.last_used != PINNED && is_candidate(known));
        candidates.min_by_key(|(_, known)| known.last_used).map(|(&id, _)| id)
    }
}

#[cfg(test)]
impl FileTable {
    pub fn from_limits(limits: FileLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The number of files whose symbols are copied.
    pub fn copies(&self) -> usize {
        self.known.values().filter(|known| known.copied_bytes() > 0).count()
    }

    /// The number of open descriptors.
    pub fn open(&self) -> usize {
        self.descriptors.len()
    }
}

impl KnownFile {
    /// The symbol at a file offset, from the copies or from Go's own tables in `file`.
    fn symbol(
        &mut self,
        file: Option<&File>,
        offset: u64,
        resolver: &mut Resolver,
    ) -> Result<Symbol, StackLossReason> {
        let address = self.layout.address_of(offset).ok_or(StackLossReason::OffsetOutsideSegments)?;
        let (own, debug_file) = match &self.symbols {
            FileSymbols::NotRead => return Err(StackLossReason::FileEvicted),
            FileSymbols::Unavailable(reason) => {
                let reason = *reason;
                return self.go_symbol(file, address).ok_or(reason);
            }
            FileSymbols::Copied { own, debug_file } => (own, debug_file),
        };
        // First debug information from either file, because it has lines. Then Go's own tables, which have lines too.
        // Then symbol tables.
        let paths = |has_debug_info| {
            let copies = debug_file.iter().chain(own);
            let matching = copies.filter(move |copy| copy.has_debug_info == has_debug_info);
            matching.map(|copy| descriptor_path(&copy.memory)).collect::<Vec<_>>()
        };
        for (has_debug_info, paths) in [(true, paths(true)), (false, paths(false))] {
            if !has_debug_info && let Some(symbol) = self.go_symbol(file, address) {
                return Ok(symbol);
            }
            for path in paths {
                match resolver.resolve(&path, has_debug_info, address) {
                    Ok(Some(symbol)) => return Ok(symbol),
                    Ok(None) => {}
                    Err(reason) => {
                        self.symbols = FileSymbols::Unavailable(reason);
                        return Err(reason);
                    }
                }
            }
        }
        Err(StackLossReason::SymbolNotFound)
    }

    /// The symbol from Go's own tables, while the file is open.
    fn go_symbol(&mut self, file: Option<&File>, address: u64) -> Option<Symbol> {
        let (file, layout) = (file?, &self.layout);
        let go = self.go.get_or_insert_with(|| GoSymbols::find(file, layout)).as_ref()?;
        go.symbol(file, layout, address)
    }

    fn copied_bytes(&self) -> u64 {
        match &self.symbols {
            FileSymbols::Copied { own, debug_file } => {
                own.iter().chain(debug_file).map(|copy| copy.bytes).sum()
            }
            _ => 0,
        }
    }

    fn drop_copy(&mut self, resolver: &mut Resolver) {
        if let FileSymbols::Copied { own, debug_file } = &self.symbols {
            for copy in own.iter().chain(debug_file) {
                resolver.forget(&descriptor_path(&copy.memory));
            }
            self.symbols = FileSymbols::NotRead;
        }
    }
}

fn read_symbols(file: &File, layout: &Layout, name: &str, losses: &mut StackLosses) -> FileSymbols {
    // The file belongs to a container, which may have overwritten it after its segments were read.
    if elf::layout(file).as_ref() != Some(layout) {
        return FileSymbols::Unavailable(StackLossReason::FileChanged);
    }
    let Ok(own) = symbol_copy::copy_symbols(file, FileAuthor::Container) else {
        return FileSymbols::Unavailable(StackLossReason::FileChanged);
    };
    let debug_file = match &own {
        Some(own) if own.has_debug_info => None,
        _ => debug_file::find(file, layout, name)
            .and_then(|file| symbol_copy::copy_symbols(&file, FileAuthor::Host).ok()?),
    };
    for reason in [&own, &debug_file].into_iter().flatten().filter_map(|copy| copy.loss) {
        losses.add(reason, 1);
    }
    match (own, debug_file) {
        (None, None) => FileSymbols::Unavailable(StackLossReason::FileWithoutSymbols),
        (own, debug_file) => FileSymbols::Copied { own, debug_file },
    }
}

fn descriptor_path(file: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn build_id_text(layout: &Layout) -> Option<Arc<str>> {
    (!layout.build_id.is_empty()).then(|| Arc::from(hex(&layout.build_id)))
}
