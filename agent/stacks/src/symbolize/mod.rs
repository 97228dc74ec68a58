//! Finds the function at an address, for processes that live and for those that have ended.
//!
//! ```text
//! pid, address ─ processes (mappings) ─→ file, offset ─ files (descriptor) ─→ copy of symbols ─ resolver ─→ frames
//! ```
//!
//! An executable is opened (`open`) when its process is first seen, and held open, so that its symbols can be read
//! after the process has ended. The file belongs to a container and may be hostile. Its symbols are copied
//! (`symbol_copy`) when the first address in it is looked up.
//!
//! [`Symbolizer`] is `Send`, and blocks: for milliseconds on files, and up to seconds at the first address in a large
//! file. Use it from `spawn_blocking` or a thread, not from an async task.
//!
//! Must not depend on: aya, CRI, pods, Kubernetes. Reads /proc and ELF files.

mod cache;
mod debug_file;
mod depth;
mod descriptors;
pub mod elf;
mod files;
pub mod go;
mod kernel;
pub mod maps;
pub mod open;
mod perf_map;
mod processes;
mod resolver;
mod symbol_copy;
#[cfg(test)]
mod tests;
mod vdso;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use cache::FrameCache;
use files::{FileId, FileTable};
use kernel::KernelSymbols;
use podopsy_model::profile::{Frame, Mapping};
use processes::{FileOpener, ProcessTable};
use resolver::{Resolver, Symbol, SymbolFunction};

use crate::{StackLossReason, StackLosses};

/// Bytes of cached frames: some 65,000 addresses of C++.
const CACHED_BYTES: usize = 32 << 20;
/// The same for a recorder that always runs.
const CACHED_BYTES_ALWAYS_ON: usize = 6 << 20;

/// A user-space address in a process, before symbolization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserAddress {
    /// Process id in the host's pid namespace.
    pub pid: u32,
    pub address: u64,
    /// False for the innermost frame of an interrupted stack, true for return addresses (looked up at address - 1).
    pub is_return: bool,
}

/// The address to look up for an address of a stack. A return address can be the first one of the next function, while
/// the call stands before it.
pub fn lookup_address(address: u64, is_return: bool) -> u64 {
    address.saturating_sub(u64::from(is_return))
}

/// Where an address lies in its process. It can be symbolized later, without the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeLocation {
    /// In a file that the symbolizer knows.
    File {
        id: u32,
        offset: u64,
    },
    Vdso {
        offset: u64,
    },
    /// In executable memory without a file: code made at run time.
    Anonymous {
        pid: u32,
        address: u64,
    },
    /// In no known executable mapping.
    Unmapped {
        address: u64,
        reason: StackLossReason,
    },
}

/// Symbolizes addresses. Remembers each process's mappings, and holds its files open from first sight.
#[derive(Debug)]
pub struct Symbolizer {
    processes: ProcessTable,
    files: FileTable,
    resolver: Resolver,
    kernel: KernelSymbols,
    vdso: vdso::Vdso,
    cache: FrameCache,
    losses: StackLosses,
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::from_parts(FileTable::default(), CACHED_BYTES)
    }
}

impl Symbolizer {
    pub fn new() -> Self {
        Self::default()
    }

    /// For a recorder that always runs. Holds at most `files` files open at a time, and `bytes` bytes of their symbols
    /// and debug information. A single file may need more, while it is the only one.
    pub fn with_limits(files: usize, bytes: u64) -> Self {
        Self::from_parts(FileTable::with_limits(files, bytes), CACHED_BYTES_ALWAYS_ON)
    }

    fn from_parts(files: FileTable, cached_bytes: usize) -> Self {
        Self {
            processes: ProcessTable::default(),
            files,
            resolver: Resolver::default(),
            kernel: KernelSymbols::default(),
            vdso: vdso::Vdso::default(),
            cache: FrameCache::with_limit(cached_bytes),
            losses: StackLosses::default(),
        }
    }

    /// Reads a process's mappings and opens its executables while it lives. Call on first sight of a process, and when
    /// it has exec'd (its comm changed). A pid with another start time than before is a new process.
    pub fn add_process(&mut self, pid: u32) {
        let (processes, mut opener) = self.processes_and_opener();
        processes.add(pid, &mut opener);
    }

    /// Opens the executables of a process without remembering its mappings: for [`Symbolizer::build_id_frames`], which
    /// works after the process has ended.
    pub fn hold_files(&mut self, pid: u32) {
        let (_, mut opener) = self.processes_and_opener();
        ProcessTable::hold_files(pid, &mut opener);
    }

    /// Marks the executables of a known process as used. See [`Symbolizer::close_unused_since`].
    pub fn refresh_files(&mut self, pid: u32) {
        let (_, mut opener) = self.processes_and_opener();
        ProcessTable::refresh_files(pid, &mut opener);
    }

    /// Closes files that were last used before `since`, by a live process or by a lookup. A file is opened again when
    /// it is next seen.
    pub fn close_unused_since(&mut self, since: Instant) {
        self.files.close_unused_since(since);
    }

    /// Reads the mappings again if one of `addresses` is in none of them (dlopen), rate-limited per process. Call with
    /// each new stack while the process may still live.
    pub fn refresh_mappings(&mut self, pid: u32, addresses: &[u64]) {
        let (processes, mut opener) = self.processes_and_opener();
        processes.refresh(pid, addresses, &mut opener);
    }

    /// The frames at an address, innermost first: at least one, and several where functions were inlined.
    ///
    /// [`Frame::offset`] is the offset that was looked up: for a return address, the last byte of the call.
    pub fn user_frames(&mut self, address: UserAddress) -> Arc<[Frame]> {
        self.refresh_mappings(address.pid, &[lookup_address(address.address, address.is_return)]);
        let location = self.locate(address);
        self.frames_at(location)
    }

    /// Where an address lies by the mappings that are known now. The location can be symbolized later, when the process
    /// may have ended and its pid may belong to another.
    pub fn locate(&mut self, address: UserAddress) -> CodeLocation {
        self.processes.find(address.pid, lookup_address(address.address, address.is_return))
    }

    /// The frames at a location that [`Symbolizer::locate`] found.
    pub fn frames_at(&mut self, location: CodeLocation) -> Arc<[Frame]> {
        match location {
            CodeLocation::File { id, offset } => self.file_frames(id, offset),
            CodeLocation::Vdso { offset } => match self.vdso.file(&mut self.files) {
                Some(id) => self.file_frames(id, offset),
                None => {
                    self.losses.add(StackLossReason::VdsoUnreadable, 1);
                    unnamed(Some("[vdso]"), offset)
                }
            },
            CodeLocation::Anonymous { pid, address } => {
                if let Some(name) = self.processes.anonymous_name(pid, address) {
                    let (function, module) = (Some(name.into()), Some(Arc::from("[anonymous]")));
                    return Arc::from([Frame { function, module, offset: address, ..Frame::default() }]);
                }
                self.losses.add(StackLossReason::AnonymousCode, 1);
                unnamed(Some("[anonymous]"), address)
            }
            CodeLocation::Unmapped { address, reason } => {
                self.losses.add(reason, 1);
                unnamed(None, address)
            }
        }
    }

    /// Looks up many addresses: first those of the kernel, then the others file by file, so that only one file's
    /// symbols are in memory at a time. The results are cached for [`Symbolizer::user_frames`] and
    /// [`Symbolizer::kernel_frames`].
    pub fn look_up_all(
        &mut self,
        kernel: impl IntoIterator<Item = (u64, bool)>,
        user: impl IntoIterator<Item = UserAddress>,
    ) {
        self.look_up_kernel(kernel);
        let mut offsets: BTreeMap<FileId, BTreeSet<u64>> = BTreeMap::new();
        for address in user {
            self.refresh_mappings(address.pid, &[lookup_address(address.address, address.is_return)]);
            if let CodeLocation::File { id, offset } = self.locate(address)
                && !self.cache.contains(id, offset)
            {
                offsets.entry(id).or_default().insert(offset);
            }
        }
        // Sorted by build id, so that several entries of the same file follow each other and its symbols are read once.
        let mut files: Vec<(Option<Arc<str>>, FileId, BTreeSet<u64>)> = offsets
            .into_iter()
            .map(|(id, offsets)| (self.files.name(id).and_then(|(_, build_id)| build_id), id, offsets))
            .collect();
        files.sort_unstable();
        let mut previous: Option<Arc<str>> = None;
        for (build_id, id, offsets) in files {
            if build_id.is_none() || build_id != previous {
                self.files.drop_copies(&mut self.resolver);
            }
            for offset in offsets {
                self.file_frames(id, offset);
            }
            previous = build_id;
        }
        self.files.drop_copies(&mut self.resolver);
    }

    /// Looks up many kernel addresses (address, is it a return address) with one pass over the kernel's table.
    pub fn look_up_kernel(&mut self, addresses: impl IntoIterator<Item = (u64, bool)>) {
        let addresses = addresses.into_iter().map(|(address, is_return)| lookup_address(address, is_return));
        self.kernel.look_up(addresses.collect(), &mut self.losses);
    }

    /// Adds names that the kernel itself printed for addresses: `name`, or `name [module]`.
    pub fn add_kernel_names(&mut self, names: impl IntoIterator<Item = (u64, Vec<u8>)>) {
        self.kernel.add_names(names);
    }

    /// The frame at a kernel address.
    pub fn kernel_frames(&mut self, address: u64, is_return: bool) -> Arc<[Frame]> {
        self.kernel.frames(lookup_address(address, is_return), &mut self.losses)
    }

    /// True if names can be had from a file with this build id.
    pub fn holds_build_id(&self, build_id: &[u8; 20]) -> bool {
        self.files.by_build_id(build_id).is_some_and(|id| self.files.is_held(id))
    }

    /// The frames at an offset of the file with a build id, if that file is held open (`bpf_stack_build_id` in
    /// `<linux/bpf.h>`).
    pub fn build_id_frames(&mut self, build_id: &[u8; 20], offset: u64, is_return: bool) -> Arc<[Frame]> {
        let offset = lookup_address(offset, is_return);
        match self.files.by_build_id(build_id) {
            Some(id) => self.file_frames(id, offset),
            None => {
                self.losses.add(StackLossReason::BuildIdUnknown, 1);
                Arc::from([Frame { build_id: Some(files::hex(build_id).into()), offset, ..Frame::default() }])
            }
        }
    }

    /// The executable mappings seen so far, one per file.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.files.mappings()
    }

    /// Why addresses have no name, by counter name. While its frames are cached, an address counts once between two
    /// calls of [`Symbolizer::trim`], and not once per sample.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        self.losses.by_name()
    }

    /// Frees symbol tables and debug information. Open files, known processes and the names of recent profiles stay. A
    /// recorder that always runs calls it between two profiles.
    pub fn trim(&mut self) {
        self.resolver.reset();
        self.files.drop_copies(&mut self.resolver);
        // The other reasons can be temporary: a file that is not open now is opened when it is next seen.
        self.cache.end_round(|reason| reason == StackLossReason::SymbolNotFound);
        self.kernel.trim();
        self.processes.trim();
    }

    fn processes_and_opener(&mut self) -> (&mut ProcessTable, FileOpener<'_>) {
        let Self { processes, files, resolver, losses, .. } = self;
        (processes, FileOpener { files, resolver, losses })
    }

    fn file_frames(&mut self, id: FileId, offset: u64) -> Arc<[Frame]> {
        if let Some((frames, missing)) = self.cache.get(id, offset) {
            if let Some(reason) = missing {
                self.losses.add(reason, 1);
            }
            return frames;
        }
        let symbol = self.files.symbol(id, offset, &mut self.resolver, &mut self.losses);
        let (module, build_id) = match self.files.name(id) {
            Some((name, build_id)) => (Some(name), build_id),
            None => (None, None),
        };
        // A source line without a name is shown, but the name counts as missing.
        let missing = match &symbol {
            Err(reason) => Some(*reason),
            Ok(symbol) if !symbol.has_name() => Some(StackLossReason::SymbolNotFound),
            Ok(_) => None,
        };
        if let Some(reason) = missing {
            self.losses.add(reason, 1);
        }
        let frames = to_frames(symbol.ok(), &Frame { module, build_id, offset, ..Frame::default() });
        self.cache.insert(id, offset, Arc::clone(&frames), missing);
        frames
    }
}

/// A frame without a function.
fn unnamed(module: Option<&str>, offset: u64) -> Arc<[Frame]> {
    Arc::from([Frame { module: module.map(Arc::from), offset, ..Frame::default() }])
}

/// A symbol's functions as frames, all at the location of `at`; without a symbol, `at` itself.
fn to_frames(symbol: Option<Symbol>, at: &Frame) -> Arc<[Frame]> {
    let Some(symbol) = symbol else { return Arc::from([at.clone()]) };
    let last = symbol.functions.len().saturating_sub(1);
    let frame = |(index, function): (usize, SymbolFunction)| Frame {
        function: (!function.name.is_empty()).then(|| function.name.into()),
        source: function.source,
        inlined: index < last,
        ..at.clone()
    };
    symbol.functions.into_iter().enumerate().map(frame).collect()
}
