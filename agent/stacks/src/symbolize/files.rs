//! The executables that were seen. Each is held open from first sight, so that it can be read after its process has
//! ended.
//!
//! Descriptors and entries are each bounded, and the least recently used goes first. The caller can also close the files
//! that have not been used for a while. What is in a file is read by the parsing worker.
//!
//! Must not depend on: processes (beyond the mapping that a file was found by), kernel addresses, frames.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use podopsy_opener::Openers;
use podopsy_wire::FileKey;
use podopsy_worker::{
    Failure, FileDescription, FileHandle, Layout, NamedFiles, Nameless, Parser, Symbol, Tenant,
};

use super::descriptors::{Descriptor, DescriptorId, Descriptors};
use super::maps::{Area, FilesystemKind};
use super::{debug_file, hex, open};
use crate::unwind::file_key;
use crate::{StackLossReason, StackLosses};
use podopsy_model::profile::Mapping;
use podopsy_model::text::escape_bytes;

/// Identifies a file while its entry is known. Ids are not used twice.
pub(super) type FileId = u32;

/// The `last_used` of a file that is never evicted.
const PINNED: u64 = u64::MAX;
/// Bytes of a file's name that are kept.
const MAX_NAME: usize = 512;
/// Offsets that are looked up in one job.
const MAX_OFFSETS: usize = 16_384;

/// Bounds of a [`FileTable`].
#[derive(Clone, Copy, Debug)]
pub(super) struct FileLimits {
    /// Entries (name, build id, segments).
    pub known: usize,
    /// Open descriptors.
    pub open: usize,
}

impl Default for FileLimits {
    fn default() -> Self {
        // The usual soft limit of RLIMIT_NOFILE is 1,024, and rings, sockets and the store need descriptors too.
        Self { known: 16_384, open: 512 }
    }
}

/// Why an address in a file has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unnamed {
    Lost(StackLossReason),
    /// The function has no name, but its start is known: an offset in the file.
    InFunction {
        reason: StackLossReason,
        start: u64,
    },
    /// The parser gave up on the file.
    GaveUp(Failure),
}

impl Unnamed {
    pub fn loss(self) -> StackLossReason {
        match self {
            Unnamed::Lost(reason) | Unnamed::InFunction { reason, .. } => reason,
            Unnamed::GaveUp(failure) => failure.loss(),
        }
    }

    /// Whether looking up the same file again cannot help.
    fn is_permanent(self) -> bool {
        match self {
            Unnamed::Lost(_) | Unnamed::InFunction { .. } => true,
            Unnamed::GaveUp(failure) => failure.is_permanent(),
        }
    }
}

impl From<Nameless> for Unnamed {
    fn from(Nameless { reason, function_start }: Nameless) -> Unnamed {
        match function_start {
            Some(start) => Unnamed::InFunction { reason, start },
            None => Unnamed::Lost(reason),
        }
    }
}

/// An opened file, or the reason why it was refused.
#[derive(Clone, Debug)]
enum Opened {
    Held(Descriptor),
    Refused(Unnamed),
}

#[derive(Debug)]
struct KnownFile {
    name: Arc<str>,
    build_id: Option<Arc<str>>,
    described: Arc<FileDescription>,
    /// The descriptor may have been closed since.
    opened: Opened,
    /// No address of the file has a name, for this reason.
    unnamed: Option<Unnamed>,
    /// The container that the file was first seen in.
    tenant: Tenant,
    /// Start, end and file offset of the first mapping.
    mapping: (u64, u64, u64),
    last_used: u64,
    key: MappedKey,
    /// The file as the kernel side knows it, unless it lies below an overlay.
    kernel_key: Option<FileKey>,
}

/// Device and inode, as the kernel shows them for a mapping. While podopsy holds the file open by them, no other file
/// can get the same.
type MappedKey = ((u32, u32), u64);

#[derive(Debug, Default)]
pub(super) struct FileTable {
    known: HashMap<FileId, KnownFile>,
    by_key: HashMap<MappedKey, FileId>,
    by_kernel_key: HashMap<FileKey, FileId>,
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
    pub tenant: Tenant,
    pub area: &'a Area,
    pub filesystem: FilesystemKind,
}

/// The helpers that open and read files.
#[derive(Debug)]
pub(super) struct FileHelpers<'a> {
    pub openers: &'a Openers,
    pub parser: &'a mut Parser,
}

impl FileTable {
    /// Holds at most `open` descriptors.
    pub fn with_limit(open: usize) -> Self {
        Self::from_limits(FileLimits { open, known: open * 8 })
    }

    pub fn from_limits(limits: FileLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The entry of the file behind a mapping. Opens the file at first sight, if that is safe.
    pub fn add_mapped(
        &mut self,
        mapped: &MappedFile<'_>,
        helpers: &mut FileHelpers<'_>,
        losses: &mut StackLosses,
    ) -> FileId {
        let area = mapped.area;
        self.clock += 1;
        if let Some(id) = self.open_entry(area) {
            return id;
        }
        let process = (mapped.pid, mapped.tenant);
        match open::mapped_file(helpers.openers, process, area, mapped.filesystem) {
            Ok(file) => self.hold(mapped, Arc::new(file), helpers, losses),
            Err(reason) => {
                losses.add(reason, 1);
                self.insert_refused(mapped, reason, losses)
            }
        }
    }

    /// The entry of a file that another thread could not open, and has counted.
    pub fn add_refused(
        &mut self,
        mapped: &MappedFile<'_>,
        reason: StackLossReason,
        losses: &mut StackLosses,
    ) -> FileId {
        self.clock += 1;
        match self.open_entry(mapped.area) {
            Some(id) => id,
            None => self.insert_refused(mapped, reason, losses),
        }
    }

    fn insert_refused(
        &mut self,
        mapped: &MappedFile<'_>,
        reason: StackLossReason,
        losses: &mut StackLosses,
    ) -> FileId {
        self.insert(mapped, (Opened::Refused(Unnamed::Lost(reason)), Arc::default()), losses)
    }

    /// The entry of a file that another thread has opened by its mapping.
    pub fn add_opened(
        &mut self,
        mapped: &MappedFile<'_>,
        file: Arc<FileHandle>,
        helpers: &mut FileHelpers<'_>,
        losses: &mut StackLosses,
    ) -> FileId {
        self.clock += 1;
        if let Some(id) = self.open_entry(mapped.area) {
            return id;
        }
        self.hold(mapped, file, helpers, losses)
    }

    fn hold(
        &mut self,
        mapped: &MappedFile<'_>,
        file: Arc<FileHandle>,
        helpers: &mut FileHelpers<'_>,
        losses: &mut StackLosses,
    ) -> FileId {
        let kernel_key = file_key(&file, mapped.area);
        let opened = self.describe(mapped, file, helpers, losses);
        let id = self.insert(mapped, opened, losses);
        self.set_kernel_key(id, kernel_key);
        id
    }

    fn set_kernel_key(&mut self, id: FileId, key: FileKey) {
        let Some(known) = self.known.get_mut(&id) else { return };
        if let Some(before) = known.kernel_key.replace(key)
            && self.by_kernel_key.get(&before) == Some(&id)
        {
            self.by_kernel_key.remove(&before);
        }
        self.by_kernel_key.insert(key, id);
    }

    /// The entry of a file as the kernel side knows it.
    pub fn by_kernel_key(&self, key: &FileKey) -> Option<FileId> {
        self.by_kernel_key.get(key).copied()
    }

    /// Whether the entry has not been forgotten.
    pub fn is_known(&self, id: FileId) -> bool {
        self.known.contains_key(&id)
    }

    /// The entry that holds the very file behind a mapping open.
    fn open_entry(&mut self, area: &Area) -> Option<FileId> {
        let id = *self.by_key.get(&(area.device, area.inode))?;
        let known = self.known.get_mut(&id)?;
        let Opened::Held(descriptor) = known.opened else { return None };
        // A shared descriptor does not keep this device and inode: they may belong to another file by now.
        if !descriptor.is_exact || !self.descriptors.touch(descriptor) {
            return None;
        }
        known.last_used = self.clock;
        Some(id)
    }

    fn insert(
        &mut self,
        mapped: &MappedFile<'_>,
        (opened, described): (Opened, Arc<FileDescription>),
        losses: &mut StackLosses,
    ) -> FileId {
        let area = mapped.area;
        let key = (area.device, area.inode);
        let name = file_name(area.file_path());
        // The file was evicted or refused before. If name and layout are the same, the entry is used again.
        if let Some(&id) = self.by_key.get(&key)
            && let Some(known) = self.known.get_mut(&id)
            && known.name == name
            && known.described == described
        {
            known.last_used = self.clock;
            known.opened = opened;
            self.keep_within_limits(id, losses);
            return id;
        }
        let id = self.next_id();
        let known = KnownFile {
            name,
            build_id: build_id_text(&described.layout),
            described,
            opened,
            unnamed: None,
            tenant: mapped.tenant,
            mapping: (area.start, area.end, area.offset),
            last_used: self.clock,
            key,
            kernel_key: None,
        };
        self.known.insert(id, known);
        self.by_key.insert(key, id);
        self.keep_within_limits(id, losses);
        id
    }

    /// Holds an opened file, with what its headers contain.
    fn describe(
        &mut self,
        mapped: &MappedFile<'_>,
        file: Arc<FileHandle>,
        helpers: &mut FileHelpers<'_>,
        losses: &mut StackLosses,
    ) -> (Opened, Arc<FileDescription>) {
        let refused = |unnamed| (Opened::Refused(unnamed), Arc::default());
        if let Some((descriptor, described)) = self.descriptors.shared(&file, mapped.filesystem) {
            return (Opened::Held(descriptor), described);
        }
        match helpers.parser.describe(mapped.tenant, &file) {
            Ok(Some(described)) => {
                let described = Arc::new(described);
                let held = self.descriptors.hold(file, Arc::clone(&described), mapped.filesystem);
                (Opened::Held(held), described)
            }
            Ok(None) => refused(Unnamed::Lost(StackLossReason::FileNotElf)),
            Err(failure) => {
                losses.add(failure.loss(), 1);
                refused(Unnamed::GaveUp(failure))
            }
        }
    }

    /// Adds a file without a mapping of its own: the image of the vDSO. It is never evicted.
    pub fn add_image(
        &mut self,
        name: &str,
        file: FileHandle,
        mapping: (u64, u64, u64),
        parser: &mut Parser,
    ) -> FileId {
        let described = Arc::new(parser.describe(0, &file).ok().flatten().unwrap_or_default());
        let id = self.next_id();
        let known = KnownFile {
            name: name.into(),
            build_id: build_id_text(&described.layout),
            opened: Opened::Held(self.descriptors.pin(Arc::new(file), Arc::clone(&described))),
            described,
            unnamed: None,
            tenant: 0,
            mapping,
            last_used: PINNED,
            // No device has this number, so that no mapping is taken for the image.
            key: ((u32::MAX, u32::MAX), u64::from(id)),
            kernel_key: None,
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

    /// The container whose files are looked up together, and what two entries have in common that show the same file.
    pub fn lookup_group(&self, id: FileId) -> (Tenant, Result<DescriptorId, FileId>) {
        let Some(known) = self.known.get(&id) else { return (0, Err(id)) };
        let shared = match known.opened {
            Opened::Held(descriptor) => Ok(descriptor.id),
            Opened::Refused(_) => Err(id),
        };
        (known.tenant, shared)
    }

    /// The file with this build id; of several, one that is open. `bpf_stack_build_id` has 20 bytes: shorter ids are padded
    /// with zeros.
    pub fn by_build_id(&self, build_id: &[u8; 20]) -> Option<FileId> {
        let is_same = |known: &KnownFile| is_build_id(&known.described.layout.build_id, build_id);
        let matching = self.known.iter().filter(|(_, known)| is_same(known));
        matching.max_by_key(|(_, known)| (self.is_open(known), known.last_used)).map(|(&id, _)| id)
    }

    /// Whether a file has this build id.
    pub fn has_build_id(&self, id: FileId, build_id: &[u8; 20]) -> bool {
        self.known.get(&id).is_some_and(|known| is_build_id(&known.described.layout.build_id, build_id))
    }

    /// True if names can be had from the file: it is open.
    pub fn is_held(&self, id: FileId) -> bool {
        self.known.get(&id).is_some_and(|known| self.is_open(known))
    }

    fn is_open(&self, known: &KnownFile) -> bool {
        matches!(known.opened, Opened::Held(descriptor) if self.descriptors.is_open(descriptor))
    }

    /// Marks the file behind a mapping as used. Returns false if it is not open but could be opened.
    pub fn touch(&mut self, area: &Area) -> bool {
        let id = self.by_key.get(&(area.device, area.inode));
        let Some(known) = id.and_then(|id| self.known.get(id)) else { return false };
        match known.opened {
            Opened::Held(descriptor) => self.descriptors.touch(descriptor),
            Opened::Refused(_) => true,
        }
    }

    /// True if one more descriptor can be held without evicting another.
    pub fn has_capacity(&self) -> bool {
        self.descriptors.len() < self.limits.open
    }

    /// Closes the files that were last used before `since`. Their names stay known.
    pub fn close_unused_since(&mut self, since: Instant) {
        self.descriptors.close_unused_since(since);
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

    /// The symbols at file offsets, each or the reason why there is none, in the order of `offsets`.
    pub fn symbols(
        &mut self,
        id: FileId,
        offsets: &[u64],
        helpers: &mut FileHelpers<'_>,
        losses: &mut StackLosses,
    ) -> Vec<Result<Symbol, Unnamed>> {
        let mut symbols = Vec::with_capacity(offsets.len());
        for some in offsets.chunks(MAX_OFFSETS) {
            match self.look_up(id, some, helpers, losses) {
                Ok(found) => symbols.extend(found),
                Err(unnamed) => symbols.extend(some.iter().map(|_| Err(unnamed))),
            }
        }
        symbols
    }

    fn look_up(
        &mut self,
        id: FileId,
        offsets: &[u64],
        helpers: &mut FileHelpers<'_>,
        losses: &mut StackLosses,
    ) -> Result<Vec<Result<Symbol, Unnamed>>, Unnamed> {
        self.clock += 1;
        let known = self.known.get_mut(&id).ok_or(Unnamed::Lost(StackLossReason::FileForgotten))?;
        known.last_used = known.last_used.max(self.clock);
        if let Some(unnamed) = known.unnamed {
            return Err(unnamed);
        }
        let descriptor = match known.opened {
            Opened::Held(descriptor) => descriptor,
            Opened::Refused(unnamed) => return Err(unnamed),
        };
        self.descriptors.touch(descriptor);
        let (file, must_be_unchanged) = self.descriptors.content(descriptor).map_err(Unnamed::Lost)?;
        let debug_file = debug_file::open(helpers.openers, &known.described, &known.name);
        let files = NamedFiles { file, debug_file: debug_file.as_ref(), must_be_unchanged };
        let (layout, tenant) = (&known.described.layout, known.tenant);
        let found = match helpers.parser.names(tenant, &files, layout, offsets.to_vec()) {
            // The parser may have been taken over by the file: it promises one symbol for each offset.
            Ok(Ok(found)) if found.symbols.len() == offsets.len() => Ok(found),
            Ok(Ok(_)) => Err(Unnamed::Lost(StackLossReason::ParserDied)),
            Ok(Err(reason)) => Err(Unnamed::Lost(reason)),
            Err(failure) => Err(Unnamed::GaveUp(failure)),
        };
        known.unnamed = found.as_ref().err().copied().filter(|unnamed| unnamed.is_permanent());
        let found = found?;
        found.left_out.iter().for_each(|&reason| losses.add(reason, 1));
        Ok(found.symbols.into_iter().map(|symbol| symbol.map_err(Unnamed::from)).collect())
    }

    fn forget(&mut self, id: FileId) {
        let Some(known) = self.known.remove(&id) else { return };
        if self.by_key.get(&known.key) == Some(&id) {
            self.by_key.remove(&known.key);
        }
        if let Some(key) = known.kernel_key
            && self.by_kernel_key.get(&key) == Some(&id)
        {
            self.by_kernel_key.remove(&key);
        }
    }

    fn keep_within_limits(&mut self, newest: FileId, losses: &mut StackLosses) {
        let newest_descriptor = self.known.get(&newest).and_then(|known| match known.opened {
            Opened::Held(descriptor) => Some(descriptor),
            Opened::Refused(_) => None,
        });
        while self.descriptors.len() > self.limits.open && self.descriptors.evict(newest_descriptor) {
            losses.add(StackLossReason::FilesEvicted, 1);
        }
        while self.known.len() > self.limits.known {
            let others = self.known.iter().filter(|(id, known)| **id != newest && known.last_used != PINNED);
            let Some((&id, _)) = others.min_by_key(|(_, known)| known.last_used) else { break };
            self.forget(id);
            losses.add(StackLossReason::FileEntriesForgotten, 1);
        }
    }
}

#[cfg(test)]
impl FileTable {
    /// The number of open descriptors.
    pub fn open(&self) -> usize {
        self.descriptors.len()
    }
}

/// A path as it is shown: escaped, and cut.
fn file_name(path: &[u8]) -> Arc<str> {
    let mut name = escape_bytes(&path[..path.len().min(MAX_NAME + 1)]);
    if name.len() > MAX_NAME {
        name.truncate(name.floor_char_boundary(MAX_NAME));
        name.push('…');
    }
    name.into()
}

fn is_build_id(id: &[u8], wanted: &[u8; 20]) -> bool {
    let len = id.len().min(20);
    len > 0 && id[..len] == wanted[..len] && wanted[len..].iter().all(|&b| b == 0)
}

fn build_id_text(layout: &Layout) -> Option<Arc<str>> {
    (!layout.build_id.is_empty()).then(|| Arc::from(hex(&layout.build_id)))
}
