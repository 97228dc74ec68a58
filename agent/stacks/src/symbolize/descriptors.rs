//! Open descriptors of files, shared between all containers of an image.
//!
//! Each container has an overlay of its own, which shows the same lower file under another device and inode. A
//! descriptor for each would be thousands on a full node, and would keep the overlays of ended containers mounted.
//!
//! Must not depend on: processes, symbols, where a file is mapped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::maps::FilesystemKind;
use crate::StackLossReason;
use podopsy_worker::{FileDescription, FileHandle, FileStat};

/// Identifies an open file. Ids are not used twice.
pub(super) type DescriptorId = u64;

/// What overlays show of a lower file, as its own file system stores it.
///
/// A container cannot choose the change time (ctime): the kernel sets it whenever content, size or modification time
/// change. A file that a container has written to is a copy with a ctime of its own, under the inode number that it had
/// before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct LowerFile {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What an overlay shows of a lower file; none on any other file system.
fn lower_file(file: &FileHandle, filesystem: FilesystemKind) -> Option<LowerFile> {
    let FileStat { inode, size, modified, changed, .. } = file.stat;
    (filesystem == FilesystemKind::Overlay).then_some(LowerFile { inode, size, modified, changed })
}

#[derive(Debug)]
struct OpenFile {
    file: Arc<FileHandle>,
    /// None if the file is on no overlay, and so never shared.
    lower: Option<LowerFile>,
    described: Arc<FileDescription>,
    /// None if the file is pinned.
    last_used: Option<Instant>,
}

/// A reference to an open file. The file may have been closed since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    /// Equal for two entries that share the file.
    pub id: DescriptorId,
    /// True if the file was opened by the very device and inode that were asked for. While it is open, no other file
    /// can have them.
    pub is_exact: bool,
}

#[derive(Debug, Default)]
pub(super) struct Descriptors {
    open: HashMap<DescriptorId, OpenFile>,
    by_lower: HashMap<LowerFile, DescriptorId>,
    next: DescriptorId,
}

impl Descriptors {
    /// The descriptor of the lower file that `file` shows, if that is open by another overlay. If it has changed since, that
    /// is found when its content is read.
    pub fn shared(
        &mut self,
        file: &FileHandle,
        filesystem: FilesystemKind,
    ) -> Option<(Descriptor, Arc<FileDescription>)> {
        let lower = lower_file(file, filesystem)?;
        let id = *self.by_lower.get(&lower)?;
        let open = self.open.get_mut(&id)?;
        open.last_used = Some(Instant::now());
        Some((Descriptor { id, is_exact: false }, Arc::clone(&open.described)))
    }

    /// Holds `file` open.
    pub fn hold(
        &mut self,
        file: Arc<FileHandle>,
        described: Arc<FileDescription>,
        filesystem: FilesystemKind,
    ) -> Descriptor {
        let lower = lower_file(&file, filesystem);
        self.insert(OpenFile { file, lower, described, last_used: Some(Instant::now()) })
    }

    /// Holds a file that is never closed.
    pub fn pin(&mut self, file: Arc<FileHandle>, described: Arc<FileDescription>) -> Descriptor {
        self.insert(OpenFile { file, lower: None, described, last_used: None })
    }

    fn insert(&mut self, open: OpenFile) -> Descriptor {
        let id = self.next;
        self.next += 1;
        if let Some(lower) = open.lower {
            self.by_lower.insert(lower, id);
        }
        self.open.insert(id, open);
        Descriptor { id, is_exact: true }
    }

    /// True if the file is still open.
    pub fn is_open(&self, descriptor: Descriptor) -> bool {
        self.open.contains_key(&descriptor.id)
    }

    /// The file for reading its content, and whether it must not have changed since it was opened: a shared one must not.
    pub fn content(&self, descriptor: Descriptor) -> Result<(&FileHandle, bool), StackLossReason> {
        let open = self.open.get(&descriptor.id).ok_or(StackLossReason::FileEvicted)?;
        Ok((&open.file, !descriptor.is_exact))
    }

    /// Marks the file as used. Returns false if it is not open any more.
    pub fn touch(&mut self, descriptor: Descriptor) -> bool {
        let Some(open) = self.open.get_mut(&descriptor.id) else { return false };
        open.last_used = open.last_used.map(|_| Instant::now());
        true
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Closes the least recently used file, but not `newest` and no pinned one. Returns false if there is none.
    pub fn evict(&mut self, newest: Option<Descriptor>) -> bool {
        let others = self.open.iter().filter(|(id, _)| newest.is_none_or(|descriptor| descriptor.id != **id));
        let used = others.filter_map(|(&id, open)| Some((open.last_used?, id)));
        let Some((_, id)) = used.min() else { return false };
        self.close(id);
        true
    }

    /// Closes the files that were last used before `since`.
    pub fn close_unused_since(&mut self, since: Instant) {
        let is_unused = |open: &OpenFile| open.last_used.is_some_and(|used| used < since);
        let unused = self.open.iter().filter(|(_, open)| is_unused(open));
        let unused: Vec<DescriptorId> = unused.map(|(&id, _)| id).collect();
        for id in unused {
            self.close(id);
        }
    }

    fn close(&mut self, id: DescriptorId) {
        if let Some(lower) = self.open.remove(&id).and_then(|open| open.lower)
            && self.by_lower.get(&lower) == Some(&id)
        {
            self.by_lower.remove(&lower);
        }
    }
}
