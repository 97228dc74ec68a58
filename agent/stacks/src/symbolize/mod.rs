//! Finds the function at an address, for processes that live and for those that have ended.
//!
//! ```text
//! pid, address ─ processes (mappings) ─→ file, offset ─ files (descriptor) ─ parsing worker ─→ frames ─ cache
//! ```
//!
//! An executable is opened (`open`) when its process is first seen, and held open, so that its symbols can be read
//! after the process has ended. The file belongs to a container and may be hostile: it is opened by an opener, and read by
//! the parsing worker, which is asked for all addresses of a file together.
//!
//! [`Symbolizer`] is `Send`, and blocks: for milliseconds on files, and up to seconds in a large file. Use it from
//! `spawn_blocking` or a thread, not from an async task.
//!
//! Must not depend on: parsers, aya, CRI, pods, Kubernetes. Reads /proc, and has ELF files opened.

mod cache;
mod debug_file;
mod descriptors;
mod files;
mod frames;
mod kernel;
pub mod maps;
pub(crate) mod open;
mod perf_map;
mod processes;
mod program_image;
#[cfg(test)]
mod tests;
pub(crate) mod vdso;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use cache::FrameCache;
use descriptors::DescriptorId;
use files::{FileHelpers, FileId, FileTable, MappedFile, Unnamed};
use frames::{gave_up, mark_by_build_id, to_frames, unlocated, unnamed};
use kernel::KernelSymbols;
use podopsy_model::profile::{Frame, Mapping};
use podopsy_opener::Openers;
use podopsy_wire::{FileKey, FrameWord, VDSO_NUMBER};
use podopsy_worker::{Parser, Symbol, Tenant};
use processes::{FileOpener, ProcessTable, UnplacedFrame};
pub use program_image::ProgramImage;

use crate::file_numbers::NumberedFile;
use crate::{FileNumbers, Helpers, StackLossReason, StackLosses};

/// Numbers whose files are remembered; more than there are files.
const MAX_NUMBERS: usize = 32 << 10;
/// Bytes of cached frames: some 65,000 addresses of C++.
const CACHED_BYTES: usize = 32 << 20;
/// The same for a recorder that always runs.
const CACHED_BYTES_ALWAYS_ON: usize = 6 << 20;

/// A user frame of a sample, before symbolization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserAddress {
    /// Process id in the host's pid namespace.
    pub pid: u32,
    pub image: ProgramImage,
    /// A word of [`FrameWord`]; an address is one, too.
    pub address: u64,
    /// For an address: false for the innermost frame of an interrupted stack, true for return addresses (looked up at
    /// address - 1).
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
        image: ProgramImage,
        address: u64,
    },
    /// In no known executable mapping, or in a file that was never opened.
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
    numbers: FileNumbers,
    by_number: HashMap<u32, FileId>,
    openers: Openers,
    parser: Parser,
    kernel: KernelSymbols,
    vdso: vdso::Vdso,
    cache: FrameCache,
    losses: StackLosses,
}

impl Symbolizer {
    pub fn new(helpers: &Helpers) -> Self {
        Self::from_parts(helpers, FileTable::default(), CACHED_BYTES)
    }

    /// For a recorder that always runs. Holds at most `files` files open at a time.
    pub fn with_limit(helpers: &Helpers, files: usize) -> Self {
        Self::from_parts(helpers, FileTable::with_limit(files), CACHED_BYTES_ALWAYS_ON)
    }

    fn from_parts(helpers: &Helpers, files: FileTable, cached_bytes: usize) -> Self {
        Self {
            processes: ProcessTable::default(),
            files,
            numbers: FileNumbers::default(),
            by_number: HashMap::new(),
            openers: helpers.openers.clone(),
            parser: helpers.parsers.parser(),
            kernel: KernelSymbols::default(),
            vdso: vdso::Vdso::default(),
            cache: FrameCache::with_limit(cached_bytes),
            losses: StackLosses::default(),
        }
    }

    /// For frames whose files have numbers from `numbers`.
    pub fn with_numbers(self, numbers: FileNumbers) -> Self {
        Self { numbers, ..self }
    }

    /// The same frame, with the number of `file` if it has none.
    pub fn with_number(&self, word: u64, file: &FileKey) -> u64 {
        self.numbers.with_number(word, file)
    }

    /// Holds the files of frames open. Call with each new stack: the process may end or unmap them.
    pub fn hold_files_of(&mut self, frames: &[u64]) {
        for &word in frames {
            if let FrameWord::File { number, .. } = FrameWord::from_word(word) {
                self.file_of_number(number);
            }
        }
    }

    fn set_number(&mut self, number: u32, id: FileId) {
        if self.by_number.len() >= MAX_NUMBERS {
            self.by_number.retain(|_, id| self.files.is_known(*id));
        }
        self.by_number.insert(number, id);
    }

    /// The file with a number in frames; none if no one has tried to open it.
    fn file_of_number(&mut self, number: u32) -> Option<FileId> {
        let known = self.by_number.get(&number).copied().filter(|id| self.files.is_known(*id));
        if known.is_some_and(|id| self.files.is_held(id)) {
            return known;
        }
        // Its process may have been looked at before, so that it is open already.
        let by_key = self.numbers.key(number).and_then(|key| self.files.by_kernel_key(&key));
        let opened = self.numbers.take_opened(number);
        let id = match (by_key.filter(|id| self.files.is_held(*id)), opened) {
            (Some(id), _) => id,
            (None, Some(opened)) => self.hold_opened(opened),
            (None, None) => known.or(by_key)?,
        };
        self.set_number(number, id);
        Some(id)
    }

    fn hold_opened(&mut self, opened: NumberedFile) -> FileId {
        let NumberedFile { file, pid, tenant, ref area, filesystem, .. } = opened;
        let mapped = MappedFile { pid, tenant, area, filesystem };
        let Self { files, openers, parser, losses, .. } = self;
        match file {
            Ok(file) => files.add_opened(&mapped, file, &mut FileHelpers { openers, parser }, losses),
            Err(reason) => files.add_refused(&mapped, reason, losses),
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
        let (processes, mut opener) = self.processes_and_opener();
        processes.hold_files(pid, &mut opener);
    }

    /// Marks the executables of a known process as used. See [`Symbolizer::close_unused_since`].
    pub fn refresh_files(&mut self, pid: u32) {
        let (processes, mut opener) = self.processes_and_opener();
        processes.refresh_files(pid, &mut opener);
    }

    /// Closes files that were last used before `since`, by a live process or by a lookup. A file is opened again when
    /// it is next seen.
    pub fn close_unused_since(&mut self, since: Instant) {
        self.files.close_unused_since(since);
    }

    /// Reads the mappings again if one of `frames` needs them and is in none of them (dlopen, a JIT's memory), rate-limited
    /// per process. Call with each new stack while the process may still live.
    pub fn refresh_mappings(&mut self, pid: u32, image: ProgramImage, frames: &[u64]) {
        let unplaced = |&word: &u64| match FrameWord::from_word(word) {
            FrameWord::Address(address) => Some(UnplacedFrame { address, is_anonymous: false }),
            FrameWord::Anonymous(address) => Some(UnplacedFrame { address, is_anonymous: true }),
            FrameWord::File { .. } => None,
        };
        let unplaced: Vec<UnplacedFrame> = frames.iter().filter_map(unplaced).collect();
        if !unplaced.is_empty() {
            let (processes, mut opener) = self.processes_and_opener();
            processes.refresh(pid, image, &unplaced, &mut opener);
        }
    }

    fn refresh_mappings_for(&mut self, frame: UserAddress) {
        let UserAddress { pid, image, address, is_return } = frame;
        let word = match FrameWord::from_word(address) {
            FrameWord::Address(address) => lookup_address(address, is_return),
            _ => address,
        };
        self.refresh_mappings(pid, image, &[word]);
    }

    /// The frames at an address, innermost first: at least one, and several where functions were inlined.
    ///
    /// [`Frame::offset`] is the offset that was looked up: for a return address, the last byte of the call.
    pub fn user_frames(&mut self, address: UserAddress) -> Arc<[Frame]> {
        self.refresh_mappings_for(address);
        let location = self.locate(address);
        self.frames_at(location)
    }

    /// Where a frame lies: by its file, or else by the mappings that are known now. The location can be symbolized later, when the process
    /// may have ended and its pid may belong to another.
    pub fn locate(&mut self, address: UserAddress) -> CodeLocation {
        let UserAddress { pid, image, address, is_return } = address;
        match FrameWord::from_word(address) {
            FrameWord::File { number: VDSO_NUMBER, offset } => CodeLocation::Vdso { offset },
            FrameWord::File { number, offset } => match self.file_of_number(number) {
                Some(id) => CodeLocation::File { id, offset },
                None => CodeLocation::Unmapped { address: offset, reason: StackLossReason::FileOutOfReach },
            },
            FrameWord::Anonymous(address) => {
                let in_place = self.processes.find_in_place((pid, image), address);
                in_place.unwrap_or(CodeLocation::Anonymous { pid, image, address })
            }
            FrameWord::Address(address) => {
                self.processes.find((pid, image), lookup_address(address, is_return))
            }
        }
    }

    /// The frames at a location that [`Symbolizer::locate`] found.
    pub fn frames_at(&mut self, location: CodeLocation) -> Arc<[Frame]> {
        match location {
            CodeLocation::File { id, offset } => self.file_frames(id, offset),
            CodeLocation::Vdso { offset } => match self.vdso_file() {
                Some(id) => self.file_frames(id, offset),
                None => {
                    self.losses.add(StackLossReason::VdsoUnreadable, 1);
                    unnamed(Some("[vdso]"), offset)
                }
            },
            CodeLocation::Anonymous { pid, image, address } => self.anonymous_frames((pid, image), address),
            CodeLocation::Unmapped { reason, .. } => {
                self.losses.add(reason, 1);
                unlocated(reason)
            }
        }
    }

    /// Looks up many addresses: first those of the kernel, then the others. The results are cached for
    /// [`Symbolizer::user_frames`] and [`Symbolizer::kernel_frames`].
    pub fn look_up_all(
        &mut self,
        kernel: impl IntoIterator<Item = (u64, bool)>,
        user: impl IntoIterator<Item = UserAddress>,
    ) {
        self.look_up_kernel(kernel);
        let mut locations = Vec::new();
        for address in user {
            self.refresh_mappings_for(address);
            locations.push(self.locate(address));
        }
        self.look_up_locations(locations);
    }

    /// Looks up many locations, file by file, and caches the results for [`Symbolizer::frames_at`]. One by one, each
    /// location would have its whole file read.
    pub fn look_up_locations(&mut self, locations: impl IntoIterator<Item = CodeLocation>) {
        let mut offsets: BTreeMap<FileId, BTreeSet<u64>> = BTreeMap::new();
        let mut anonymous: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        for location in locations {
            let (id, offset) = match location {
                CodeLocation::File { id, offset } => (id, offset),
                CodeLocation::Vdso { offset } => match self.vdso_file() {
                    Some(id) => (id, offset),
                    None => continue,
                },
                CodeLocation::Anonymous { pid, image, address } => {
                    if self.processes.is_last_program(pid, image) {
                        anonymous.entry(pid).or_default().insert(address);
                    }
                    continue;
                }
                CodeLocation::Unmapped { .. } => continue,
            };
            if !self.cache.contains(id, offset) {
                offsets.entry(id).or_default().insert(offset);
            }
        }
        for files in self.by_content(offsets).into_values() {
            self.look_up_file(&files);
        }
        for (pid, addresses) in anonymous {
            self.processes.look_up_anonymous(pid, &addresses, &mut self.parser, &mut self.losses);
        }
    }

    /// Groups files by container, and by what is the same file.
    fn by_content(
        &self,
        offsets: BTreeMap<FileId, BTreeSet<u64>>,
    ) -> BTreeMap<LookupGroup, Vec<(FileId, BTreeSet<u64>)>> {
        let mut groups: BTreeMap<LookupGroup, Vec<(FileId, BTreeSet<u64>)>> = BTreeMap::new();
        for (id, offsets) in offsets {
            groups.entry(self.files.lookup_group(id)).or_default().push((id, offsets));
        }
        groups
    }

    /// Looks up offsets of entries that show the same file.
    fn look_up_file(&mut self, files: &[(FileId, BTreeSet<u64>)]) {
        let Some((first, _)) = files.first() else { return };
        let all: BTreeSet<u64> = files.iter().flat_map(|(_, offsets)| offsets.iter().copied()).collect();
        let all: Vec<u64> = all.into_iter().collect();
        let Self { openers, parser, losses, .. } = self;
        let symbols = self.files.symbols(*first, &all, &mut FileHelpers { openers, parser }, losses);
        for (id, offsets) in files {
            let wanted = all.iter().zip(&symbols).filter(|(offset, _)| offsets.contains(offset));
            for (&offset, symbol) in wanted {
                self.keep_frames(*id, offset, symbol.clone());
            }
        }
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

    /// True if names can be had from a file with this build id that was held for the process.
    pub fn holds_build_id(&self, pid: u32, build_id: &[u8; 20]) -> bool {
        let own = self.processes.held_files(pid);
        own.iter().any(|&id| self.files.has_build_id(id, build_id) && self.files.is_held(id))
    }

    /// Where an offset of the file with a build id is (`bpf_stack_build_id` in `<linux/bpf.h>`), and whether that is the
    /// file that the process had mapped. A build id is the container's to choose: another file with the same one need not be
    /// the same file.
    pub fn locate_build_id(
        &mut self,
        pid: u32,
        build_id: &[u8; 20],
        offset: u64,
        is_return: bool,
    ) -> Option<(CodeLocation, bool)> {
        let offset = lookup_address(offset, is_return);
        let own = self.processes.held_files(pid);
        let own = own.iter().copied().filter(|&id| self.files.has_build_id(id, build_id));
        if let Some(id) = own.max_by_key(|&id| self.files.is_held(id)) {
            return Some((CodeLocation::File { id, offset }, true));
        }
        let id = self.files.by_build_id(build_id)?;
        Some((CodeLocation::File { id, offset }, false))
    }

    /// The frames at an offset of the file with a build id, if that file is held open.
    pub fn build_id_frames(
        &mut self,
        pid: u32,
        build_id: &[u8; 20],
        offset: u64,
        is_return: bool,
    ) -> Arc<[Frame]> {
        match self.locate_build_id(pid, build_id, offset, is_return) {
            Some((location, true)) => self.frames_at(location),
            Some((location, false)) => mark_by_build_id(&self.frames_at(location)),
            None => {
                self.losses.add(StackLossReason::BuildIdUnknown, 1);
                let offset = lookup_address(offset, is_return);
                Arc::from([Frame { build_id: Some(hex(build_id).into()), offset, ..Frame::default() }])
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

    /// Ends the parsing worker and frees what can be had again. Open files, known processes and the names of recent profiles
    /// stay. A recorder that always runs calls it between two profiles.
    pub fn trim(&mut self) {
        self.parser.rest();
        // The other reasons can be temporary: a file that is not open now is opened when it is next seen.
        self.cache.end_round(|reason| reason == StackLossReason::SymbolNotFound);
        self.kernel.trim();
        self.processes.trim();
    }

    /// Frees all that can be had again, at the cost of looking it up again: the names of recent profiles, the mappings of
    /// processes, and open files. Samples of processes that have ended lose their names.
    pub fn free(&mut self) {
        self.trim();
        self.cache.clear();
        self.processes = ProcessTable::default();
        self.files.close_unused_since(Instant::now());
    }

    fn processes_and_opener(&mut self) -> (&mut ProcessTable, FileOpener<'_>) {
        let Self { processes, files, openers, parser, losses, .. } = self;
        (processes, FileOpener { files, helpers: FileHelpers { openers, parser }, losses })
    }

    fn vdso_file(&mut self) -> Option<FileId> {
        self.vdso.file(&mut self.files, &mut self.parser)
    }

    fn file_frames(&mut self, id: FileId, offset: u64) -> Arc<[Frame]> {
        if let Some((frames, missing)) = self.cache.get(id, offset) {
            if let Some(reason) = missing {
                self.losses.add(reason, 1);
            }
            return frames;
        }
        let Self { openers, parser, losses, .. } = self;
        let symbol = self.files.symbols(id, &[offset], &mut FileHelpers { openers, parser }, losses).pop();
        let symbol = symbol.unwrap_or(Err(Unnamed::Lost(StackLossReason::FileForgotten)));
        let (frames, missing) = self.keep_frames(id, offset, symbol);
        if let Some(reason) = missing {
            self.losses.add(reason, 1);
        }
        frames
    }

    /// Makes the frames of a symbol, or those of the reason why there is none, and caches them.
    fn keep_frames(
        &mut self,
        id: FileId,
        offset: u64,
        symbol: Result<Symbol, Unnamed>,
    ) -> (Arc<[Frame]>, Option<StackLossReason>) {
        let (module, build_id) = match self.files.name(id) {
            Some((name, build_id)) => (Some(name), build_id),
            None => (None, None),
        };
        // A source line without a name is shown, but the name counts as missing.
        let missing = match &symbol {
            Err(unnamed) => Some(unnamed.loss()),
            Ok(symbol) if !symbol.has_name() => Some(StackLossReason::SymbolNotFound),
            Ok(_) => None,
        };
        let at = Frame { module, build_id, offset, ..Frame::default() };
        let frames = match symbol {
            Ok(symbol) => to_frames(symbol, &at),
            Err(Unnamed::Lost(StackLossReason::FileSystemNoAnswer)) => {
                gave_up(at, "its file system does not answer")
            }
            Err(Unnamed::Lost(_)) => Arc::from([at]),
            Err(Unnamed::InFunction { start, .. }) => {
                Arc::from([Frame { function_start: Some(start), ..at }])
            }
            Err(Unnamed::GaveUp(failure)) => gave_up(at, &failure.to_string()),
        };
        self.cache.insert(id, offset, Arc::clone(&frames), missing);
        (frames, missing)
    }

    fn anonymous_frames(&mut self, program: (u32, ProgramImage), address: u64) -> Arc<[Frame]> {
        let name = self.processes.anonymous_name(program, address, &mut self.parser, &mut self.losses);
        if name.is_none() {
            self.losses.add(StackLossReason::AnonymousCode, 1);
        }
        let module = Some(Arc::from("[anonymous]"));
        Arc::from([Frame { function: name, module, offset: address, ..Frame::default() }])
    }
}

/// What the addresses of a job have in common: their container, and their file.
type LookupGroup = (Tenant, Result<DescriptorId, FileId>);

/// Bytes of a name that are kept.
const MAX_NAME: usize = 1024;

/// Cuts a text after [`MAX_NAME`] bytes. Cut text ends in `…`, so that it is not taken for the whole.
fn shorten(mut text: String) -> String {
    if text.len() > MAX_NAME {
        text.truncate(text.floor_char_boundary(MAX_NAME));
        text.push('…');
    }
    text
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl CodeLocation {
    /// Whether no frame is shown for it, nor for its callers: what it was found by leads to no code.
    pub fn ends_stack(self) -> bool {
        matches!(self, CodeLocation::Unmapped { reason, .. } if reason != StackLossReason::FileOutOfReach)
    }
}
